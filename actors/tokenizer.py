"""A Hugging Face tokenizer behind `ports.Tokenizer`.

A folder with a `tokenizer.json` is read by the `tokenizers` library alone: transformers takes seconds to import, and a
user waits for them. It is asked only for chat templates and for tokenizers of older form.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import ModelError


class HuggingFaceTokenizer:
    """The tokenizer of a model's folder or hub name.

    It adds no special tokens: a prompt's text is what the policy reads, chat template and all.

    Raises:
        ModelError: there is no tokenizer that can be loaded.
    """

    def __init__(self, source: str | Path, *, trust_remote_code: bool = False) -> None:
        self._source = str(source)
        self._trust_remote_code = trust_remote_code
        folder = Path(source)
        self._settings = _json(folder / "tokenizer_config.json")
        self._template_file = folder / "chat_template.jinja"
        file = folder / "tokenizer.json"
        self._fast = _read(file) if file.is_file() else None
        if self._fast is None:
            self._slow  # noqa: B018  # a tokenizer that can't be loaded is found now

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a response; None when the tokenizer has none."""
        if self._fast is None:
            found: int | None = self._slow.eos_token_id
            return found
        eos = self._settings.get("eos_token")
        text = eos.get("content") if isinstance(eos, dict) else eos
        return self._fast.token_to_id(text) if isinstance(text, str) else None

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be called."""
        if self._fast is None:
            return bool(self._slow.chat_template)
        return "chat_template" in self._settings or self._template_file.is_file()

    def encode(self, text: str) -> Int32:
        """`text` → `[P] int32`."""
        if self._fast is None:
            ids = self._slow(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = self._fast.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def decode(self, tokens: Int32) -> str:
        """`[T] int32` → text, special tokens left out."""
        decoder = self._slow if self._fast is None else self._fast
        return str(decoder.decode(tokens.tolist(), skip_special_tokens=True))

    def chat(self, system: str, question: str) -> str:
        """What the policy reads when a user asks `question`, up to where its response begins; no system if empty."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return str(self._slow.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    @cached_property
    def _slow(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._source, trust_remote_code=self._trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"no tokenizer can be loaded from {self._source!r} ({error}): model.path must be a folder in "
                "Hugging Face form with its tokenizer's files, or a hub name that can be reached"
            ) from error


def _read(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"the tokenizer {file} can't be read ({error}): copy the model again") from error


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}): copy the model again") from error
    return found if isinstance(found, dict) else {}
