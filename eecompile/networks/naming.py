"""Weights by the network's own names, where training wrappers have written others."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from eecompile.errors import CheckpointError

LOG = logging.getLogger("eecompile.networks")
Value = TypeVar("Value")
# Parts of names that torch.compile, FSDP and activation checkpointing put in.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|shadow)([._]|\Z)")


def named_as(
    wanted: Iterable[str], state: Mapping[str, Value], prefix: str | None = None
) -> dict[str, Value]:
    """The entries of a state_dict under the network's names.

    Wrappers put a prefix before every name: ``module.`` (DistributedDataParallel,
    AveragedModel), ``_orig_mod.`` (torch.compile), an attribute's name (Lightning,
    ema-pytorch). Where a prefix leads to more of the network's names than the names themselves
    do, entries below it are taken, and the others left out. What was done is logged.

    Args:
        wanted: the network's names.
        state: what the checkpoint holds.
        prefix: the one to take; None finds it, averaged weights first.

    Raises:
        CheckpointError: no entry has ``prefix``, or several prefixes lead to as many names.
    """
    names = frozenset(wanted)
    inner = {_unwrapped(name, names): value for name, value in state.items()}
    wrapped = sorted({part for name in state for part in name.split(".")} & _WRAPPERS)
    if wrapped and len(inner) == len(state) and inner.keys() != state.keys():
        LOG.warning("checkpoint: names without %s", ", ".join(f"{part}." for part in wrapped))
        state = inner
    chosen = _prefix(names, state) if prefix is None else prefix
    if not chosen:
        return dict(state)
    found = {name[len(chosen) :]: v for name, v in state.items() if name.startswith(chosen)}
    if not found:
        raise CheckpointError(
            found=f"no entry whose name begins with {chosen!r}",
            expected="the prefix of the network's weights in the checkpoint",
            remedy="fix network.checkpoint_key, or remove it",
        )
    others = len(state) - len(found)
    left_out = f"; {others} entries without it are left out" * bool(others)
    LOG.warning("checkpoint: names without their prefix %s%s", chosen, left_out)
    return found


def _unwrapped(name: str, wanted: frozenset[str]) -> str:
    if name in wanted:
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefix(wanted: frozenset[str], state: Mapping[str, object]) -> str:
    """The prefix below which most of the wanted names are; empty where none is better."""
    counts: Counter[str] = Counter()
    for name in state:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    most = max(counts.values(), default=0)
    if counts[""] == most:
        return ""
    best = [prefix for prefix, count in counts.items() if count == most]
    averaged = [prefix for prefix in best if _AVERAGED.search(prefix)]
    if len(averaged) == 1:
        return averaged[0]
    if len(best) > 1:
        raise CheckpointError(
            found=f"{most} of the network's {len(wanted)} names below each of {sorted(best)[:5]}",
            expected="one prefix of the network's weights in the checkpoint",
            remedy=f"name it in network.checkpoint_key, such as {sorted(best)[0]!r}",
        )
    return best[0]
