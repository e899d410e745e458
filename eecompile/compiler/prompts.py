"""Tokenizers of encoders: read, set to one length, and checked against the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from eecompile.errors import CheckpointError, RecipeError, summary
from eecompile.interrupt import check
from eecompile.runtime.prompts import opened_tokenizer, template_tokens
from eecompile.store.companions import (
    DECODER,
    DECODER_TOKENIZER,
    DecoderRecipe,
    EncoderRecipe,
    tokenizer_name,
)
from eecompile.store.files import is_file, is_folder

_FILE = "tokenizer.json"


class _Padding(NamedTuple):
    token: str
    number: int


def write_tokenizer(name: str, recipe: EncoderRecipe, base: Path, folder: Path) -> Any:
    """Write the tokenizer of an encoder, which cuts and pads every prompt; it is also returned.

    Args:
        name: of the encoder.
        recipe: of the encoder, whose paths are relative to ``base``.
        base: folder of the recipe.
        folder: of the bundle.

    Raises:
        CheckpointError: there is no tokenizer.
        RecipeError: what it pads with is not known.
    """
    tokenizer, padding = _read(base / recipe.tokenizer, f"encoder {name!r}", f"encoders.{name}")
    padding = _padding(name, recipe, tokenizer, padding)
    tokenizer.no_truncation()
    own = recipe.encoder
    templates = (own.template, own.negative_template)
    length = own.length + max(len(template_tokens(tokenizer, own, each)) for each in templates)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(
        length=length, pad_id=padding.number, pad_token=padding.token, direction="right"
    )
    tokenizer.save(str(folder / tokenizer_name(name)))
    return tokenizer


def write_decoder_tokenizer(recipe: DecoderRecipe, base: Path, folder: Path, tokens: int) -> None:
    """Write the tokenizer of a decoder of text, which gives a score to so many tokens.

    Other arguments and errors are those of :func:`write_tokenizer`.
    """
    tokenizer, _ = _read(base / recipe.tokenizer, "the decoder", DECODER)
    most = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if most > tokens:
        raise RecipeError(
            found=f"a tokenizer of {most} tokens for a decoder that gives scores to {tokens}",
            expected="the tokenizer that the network was trained with",
            remedy="fix decoder.tokenizer",
        )
    tokenizer.save(str(folder / DECODER_TOKENIZER))


def check_belongs(name: str, tokenizer: Any, module: nn.Module) -> None:
    """Pass when an encoder knows the tokens that a tokenizer makes.

    Raises:
        RecipeError: there are more tokens than the encoder has embeddings, or others mark the
            beginning and the end of a prompt.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return
    most = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    known: Any = module.get_input_embeddings()
    config = module.config.to_dict()
    marks = {config.get(f"{which}_token_id") for which in ("bos", "eos", "pad", "cls", "sep")}
    encoding = tokenizer.encode("")
    found = {i for i, kept in zip(encoding.ids, encoding.attention_mask, strict=True) if kept}
    older = config.get("model_type", "").startswith("clip") and config.get("eos_token_id") == 2
    wrong = found - marks if marks - {None} and not older else set()
    if most > known.num_embeddings or wrong:
        marked = f"; it marks prompts with {sorted(wrong)}" if wrong else ""
        raise RecipeError(
            found=f"a tokenizer of {most} tokens for encoder {name!r}, a "
            f"{type(module).__name__} that knows {known.num_embeddings}{marked}",
            expected="the tokenizer that the encoder was trained with"
            + (f", whose marks are {sorted(m for m in marks if m is not None)}" if wrong else ""),
            remedy=f"fix encoders.{name}.tokenizer",
        )


def _read(path: Path, whose: str, key: str) -> tuple[Any, _Padding | None]:
    """The tokenizer in a file, or in a folder that transformers reads, which knows its padding."""
    if is_folder(path):
        return _from_folder(path, whose, key)
    if not is_file(path):
        raise _missing(path, whose, key, "no such file")
    return opened_tokenizer(path), None


def _from_folder(path: Path, whose: str, key: str) -> tuple[Any, _Padding | None]:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        found: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (Exception, SystemExit) as error:  # its errors share no base class
        check()
        raise _missing(path, whose, key, summary(error)) from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise _missing(path, whose, key, f"a {type(found).__name__}, which has no {_FILE}")
    pads = found.pad_token_id is not None
    padding = _Padding(str(found.pad_token), int(found.pad_token_id)) if pads else None
    return found.backend_tokenizer, padding


def _padding(name: str, recipe: EncoderRecipe, tokenizer: Any, usual: _Padding | None) -> _Padding:
    """What fills prompts: what the recipe says, or what the tokenizer does."""
    if recipe.padding is not None:
        number = tokenizer.token_to_id(recipe.padding)
        if number is None:
            raise RecipeError(
                found=f"encoders.{name}.padding = {recipe.padding!r}",
                expected="a token that its tokenizer knows",
                remedy="fix it",
            )
        return _Padding(recipe.padding, number)
    if usual is not None:
        return usual
    if tokenizer.padding is None:
        raise RecipeError(
            found=f"the tokenizer of encoder {name!r}, which does not say what it pads with",
            expected="a token that fills prompts",
            remedy=f"name it in encoders.{name}.padding, such as '<pad>'",
        )
    return _Padding(tokenizer.padding["pad_token"], tokenizer.padding["pad_id"])


def _missing(path: Path, whose: str, key: str, reason: str) -> CheckpointError:
    return CheckpointError(
        found=f"no tokenizer of {whose} at {path} ({reason})",
        expected=f"a {_FILE}, or the folder that a tokenizer's save_pretrained wrote",
        remedy=f"fix {key}.tokenizer, or copy it there",
    )
