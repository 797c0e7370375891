"""A Hugging Face tokenizer behind `ports.Tokenizer`.

A folder with a `tokenizer.json` is read by the `tokenizers` library alone: transformers takes seconds to import, and a
user waits for them. It is asked only for chat templates and for tokenizers of older form.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from entrostat.actors.tasks.problem import Turn
from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import ModelError, TaskError


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

    def chat(self, system: str, turns: Sequence[Turn], question: str, options: Mapping[str, bool | int | str]) -> str:
        """What the policy reads when a user asks `question` after `turns`, up to where its response begins.

        No system message if `system` is empty. `options` are the template's own, such as `enable_thinking`.

        Raises:
            TaskError: the template refuses the messages, or never mentions an option.
        """
        from jinja2 import TemplateError

        self._check_options(options)
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in turns]
        messages.append({"role": "user", "content": question})
        try:
            return str(
                self._slow.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options),
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TaskError(
                f"the chat template of {self._source} refuses messages of {roles} ({error}): change the task's system "
                "and few_shot, or set chat = false"
            ) from error

    def _check_options(self, options: Mapping[str, bool | int | str]) -> None:
        """The library takes any option in silence, and some for itself."""
        if not options:
            return
        template = str(self._slow.chat_template)
        own = inspect.signature(self._slow.apply_chat_template).parameters
        unknown = [name for name in options if name in own or not re.search(rf"\b{re.escape(name)}\b", template)]
        if unknown:
            raise TaskError(
                f"the chat template of {self._source} has no option {', '.join(map(repr, unknown))} (the task's "
                "chat_options): leave it out"
            )

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
