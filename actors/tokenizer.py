"""A Hugging Face tokenizer behind `ports.Tokenizer`."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import ModelError


class HuggingFaceTokenizer:
    """The tokenizer of a model's folder or hub name.

    It adds no special tokens: a prompt's text is what the policy reads, chat template and all.

    Raises:
        ModelError: there is no tokenizer that can be loaded.
    """

    def __init__(self, source: str | Path, *, trust_remote_code: bool = False) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"no tokenizer can be loaded from {str(source)!r} ({error}): model.path must be a folder in "
                "Hugging Face form with its tokenizer's files, or a hub name that can be reached"
            ) from error

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a response; None when the tokenizer has none."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be called."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> Int32:
        """`text` → `[P] int32`."""
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def decode(self, tokens: Int32) -> str:
        """`[T] int32` → text, special tokens left out."""
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    def chat(self, system: str, question: str) -> str:
        """What the policy reads when a user asks `question`, up to where its response begins; no system if empty."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
