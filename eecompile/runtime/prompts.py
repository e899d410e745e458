"""Prompts to tokens, by the package tokenizers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eecompile.backends import install
from eecompile.errors import BackendError, UsageError, one_line
from eecompile.programs.companions import PLACE, PromptEncoder
from eecompile.store.companions import tokenizer_name

_SHOWN = 200  # characters of what is cut


class Tokens(NamedTuple):
    """A prompt's tokens, and which of them are no padding: int64 [length] each."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


class PromptTokenizer:
    """Makes an encoder's tokens of prompts.

    Args:
        folder: of an engine set whose files have been checked.
        name: of the encoder.
        encoder: whose tokens they are.

    Raises:
        BackendError: the package tokenizers is missing, or refuses the file.
    """

    def __init__(self, folder: Path, name: str, encoder: PromptEncoder) -> None:
        self._name, self._encoder = name, encoder
        self._tokenizer = opened_tokenizer(folder / tokenizer_name(name))
        templates = (encoder.template, encoder.negative_template)
        spans = [template_tokens(self._tokenizer, encoder, each) for each in templates]
        self._length = encoder.length + max(len(span) for span in spans)
        self._dropped = spans

    def kept(self, *, negative: bool) -> NDArray[np.int64]:
        """Indices of the tokens that outputs are kept of, int64 [length]."""
        everywhere = np.arange(self._length)
        return np.delete(everywhere, self._dropped[negative])[: self._encoder.length]

    def tokens(self, prompt: str, *, negative: bool = False) -> Tokens:
        """The tokens of a prompt; a warning says what is cut of one that is too long.

        Raises:
            BackendError: the tokenizer makes another number of them than the encoder takes.
        """
        text = prompt.lower().strip() if self._encoder.lower else prompt
        text = self._encoder.template_of(negative=negative).replace(PLACE, text)
        encoding = self._tokenizer.encode(text)
        ids = np.array(encoding.ids, np.int64)
        if ids.shape != (self._length,):
            raise BackendError(
                found=f"{len(ids)} tokens of encoder {self._name!r}",
                expected=f"{self._length}, cut or padded by its tokenizer",
                remedy="export the bundle again",
            )
        if encoding.overflowing:
            self._warn(text, encoding)
        return Tokens(ids, np.array(encoding.attention_mask, np.int64))

    def _warn(self, text: str, encoding: Any) -> None:
        kept = max((end for _, end in encoding.offsets), default=0)
        cut = text[kept:].strip()
        shown = cut if len(cut) <= _SHOWN else f"{cut[:_SHOWN]} ..."
        warnings.warn(
            f"a prompt of more than the {self._encoder.length} tokens that encoder "
            f"{self._name!r} takes; what it does not see: {shown!r}",
            stacklevel=2,
        )


def template_tokens(tokenizer: Any, encoder: PromptEncoder, template: str) -> range:
    """The tokens of a template before the prompt, by their indices, which outputs leave out.

    A space before the prompt is a part of the prompt's first token.
    """
    before = template.partition(PLACE)[0].rstrip(" ")
    if not before or not encoder.drop_template:
        return range(0)
    encoding = tokenizer.encode(before)
    pairs = zip(encoding.attention_mask, encoding.special_tokens_mask, strict=True)
    own = [index for index, (kept, mark) in enumerate(pairs) if kept and not mark]
    return range(own[0], own[-1] + 1) if own else range(0)


def opened_tokenizer(path: Path) -> Any:
    """The tokenizer in a ``tokenizer.json``.

    Raises:
        BackendError: the package tokenizers is missing, or refuses the file.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendError(
            found=f"no usable package tokenizers ({error})",
            expected="it, to make tokens of prompts",
            remedy=install("prompts"),
        ) from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it raises no type of its own
        raise BackendError(
            found=f"{path}, which is no tokenizer ({one_line(error)})",
            expected="a tokenizer.json",
            remedy="export the bundle again, or upgrade the package tokenizers",
        ) from error


def count_of(n: int | None, prompt: object, what: str = "prompt") -> int:
    """The number of samples: ``n``, or that of the prompts, which must be one or as many.

    Raises:
        UsageError: they are not, or are no prompts.
    """
    listed = 1 if prompt is None else len(prompts_of(prompt, what))
    if n is None:
        return listed
    if listed not in (1, n):
        raise UsageError(
            found=f"{listed} {what}s for {n} samples",
            expected="one for all samples, or one for each",
            remedy=f"pass as many {what}s as samples, or leave n out",
        )
    return n


def prompts_of(given: object, what: str = "prompt") -> list[str]:
    """One prompt or several, as a list.

    Raises:
        UsageError: it is something else, or an empty list.
    """
    listed = [given] if isinstance(given, str) else given
    texts = isinstance(listed, list | tuple) and all(isinstance(each, str) for each in listed)
    if not isinstance(listed, list | tuple) or not texts or not listed:
        raise UsageError(
            found=f"{what}={given!r}",
            expected="a text, or a list with a text for each sample",
            remedy="pass a string",
        )
    return [str(each) for each in listed]
