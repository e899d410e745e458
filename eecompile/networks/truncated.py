"""Any torch module, made to predict from several depths by cutting a list of its blocks.

Early exit in its plainest form (ASE, arXiv 2408.05927): the first blocks run, and the
rest of the module, its head, follows. The module is not changed and need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from eecompile.errors import RecipeError, summary
from eecompile.networks.base import MultiExitNetwork, check_exits
from eecompile.networks.call import Call


class _Cut:
    """How far the blocks run; stands between a module and each of its blocks.

    A block beyond the exit returns what the exit's last block has. Where it returns something
    of another structure, as a block of another list may, it returns what it was given.

    Attributes:
        depth: number of blocks that run.
        done: what each block has returned in this pass; None between passes, when the
            module runs as it would without a cut.
        shared: whether a block runs once for all exits, as it always does in an export.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.depth = self._count = len(blocks)
        self.done: list[Any] | None = None
        self.shared = False
        self._results: dict[int, _Result] = {}
        for index, block in enumerate(blocks):
            block.forward = self._forward(index, block.forward)

    def _forward(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.done is None:
                return run(*args, **kwargs)
            if index >= self.depth and len(self.done) >= self.depth:
                last, result = self._results[self.depth - 1], self._results[index]
                if last.spec == result.spec:
                    return _copied(self.done[self.depth - 1])
                return result.handed_on(args, kwargs)
            if index > len(self.done) or (index < len(self.done) and not self.once):
                raise RecipeError(
                    found=f"block {index + 1} running after {len(self.done)} others",
                    expected="blocks that run once a pass, in the order of their list",
                    remedy="write a module that returns a prediction per exit",
                )
            if index == len(self.done):
                result = run(*args, **kwargs)
                self.done.append(_copied(result))
                if index not in self._results:
                    self._results[index] = _Result(result, args, kwargs)
                return result
            return _copied(self.done[index])

        return forward

    @property
    def once(self) -> bool:
        return self.shared or torch.compiler.is_exporting()

    @property
    def known(self) -> bool:
        """Whether every block has run."""
        return len(self._results) == self._count


class _Result:
    """The structure of what a block returns, and which of its arguments are alike."""

    def __init__(self, result: Any, args: Any, kwargs: Any) -> None:
        leaves, self.spec = tree_flatten(result)
        given = tree_leaves((args, kwargs))
        self._sources: list[int | None] = []
        for leaf in leaves:
            alike = (
                index
                for index, value in enumerate(given)
                if isinstance(leaf, Tensor)
                and isinstance(value, Tensor)
                and value.shape == leaf.shape
                and index not in self._sources
            )
            self._sources.append(next(alike, None))

    def handed_on(self, args: Any, kwargs: Any) -> Any:
        """The arguments in the structure of the result."""
        given = tree_leaves((args, kwargs))
        if None in self._sources:
            raise RecipeError(
                found="an exit before a block that returns other shapes than it takes",
                expected="blocks of which each can be left out",
                remedy="name the deepest exit alone; spans between network.cuts need no exits",
            )
        chosen = [given[source] for source in self._sources if source is not None]
        return _copied(tree_unflatten(chosen, self.spec))


class Truncated(nn.Module):
    """Predicts from several depths of a module that was written for one.

    Blocks beyond an exit hand on what the exit's last block returned. While the network
    is exported, and within :meth:`each_block_once`, each block runs once for all exits;
    otherwise every exit runs the module from its start, so that verification can compare
    the two.

    Args:
        network: the module; its blocks may take and return anything, once a pass each.
        exits: depths that predict, ascending; the last is the number of blocks.
        blocks: name of the list of blocks within ``network``; or several names, of lists or of
            single modules, in the order in which they run.
        call: the arguments of the module.

    Raises:
        RecipeError: there is no such list, or the exits do not fit it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        exits: Sequence[int],
        blocks: str | Sequence[str],
        call: Call,
    ) -> None:
        super().__init__()
        self.network = network
        self.exits = check_exits(exits, len(found := _blocks(network, blocks)))
        self.call = call
        self.blocks = found
        self._cut = _Cut(found)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """One prediction per exit, shallowest first; see MultiExitNetwork."""
        cut, predictions = self._cut, []
        try:
            if not cut.known and self.exits[-1] < len(self.blocks):
                self._predict(len(self.blocks), inputs)
            for depth in reversed(self.exits):
                try:
                    predictions.append(self._predict(depth, inputs))
                except RuntimeError as error:  # torch's, where shapes do not fit
                    if not predictions or torch.compiler.is_exporting():
                        raise
                    raise _no_exit(depth, error) from error
        finally:
            cut.depth, cut.done = len(self.blocks), None
        return tuple(reversed(predictions))

    def _predict(self, depth: int, inputs: Mapping[str, Tensor]) -> Tensor:
        cut = self._cut
        if cut.done is None or not cut.once:
            cut.done = []
        cut.depth = depth
        prediction = prediction_in(self.network(**self.call(**inputs)))
        if len(cut.done) < depth:
            raise RecipeError(
                found=f"{len(cut.done)} of the blocks running where {depth} should",
                expected="every block called as a module, in the order of the list",
                remedy="call them in the network's forward, or write a module that "
                "returns a prediction per exit",
            )
        return prediction

    @contextmanager
    def each_block_once(self) -> Iterator[None]:
        """Evaluate all exits in about the time of the deepest."""
        self._cut.shared = True
        try:
            yield
        finally:
            self._cut.shared = False


class Renamed(nn.Module):
    """A multi-exit network whose forward takes other arguments than ``x``, ``t``, conditions."""

    def __init__(self, network: MultiExitNetwork, call: Call) -> None:
        super().__init__()
        self.network = network
        self.exits = network.exits
        self.blocks = getattr(network, "blocks", ())
        self.call = call

    def forward(self, **inputs: Tensor) -> Any:
        """One prediction per exit, shallowest first; see MultiExitNetwork."""
        return self.network(**self.call(**inputs))


def _no_exit(depth: int, error: Exception) -> RecipeError:
    return RecipeError(
        found=f"exit {depth} failing where full depth runs ({summary(error)})",
        expected="blocks of which each can be left out, since all take and return one shape",
        remedy="name the deepest exit alone, as for U-Nets; spans between network.cuts need no "
        "exits",
    )


def _copied(result: Any) -> Any:
    """With its tensors copied, for blocks and modules that change them in place."""
    return tree_map_only(Tensor, Tensor.clone, result)


def _blocks(network: nn.Module, names: str | Sequence[str]) -> list[nn.Module]:
    if isinstance(names, str):
        blocks = list(_listed(network, names, lists_only=True))
    else:
        blocks = [block for name in names for block in _listed(network, name)]
    if len(set(map(id, blocks))) < len(blocks):
        raise RecipeError(
            found=f"a block that is in {names!r} more than once",
            expected="a list of distinct blocks",
            remedy="write a module that returns a prediction per exit",
        )
    return blocks


def _listed(network: nn.Module, name: str, *, lists_only: bool = False) -> Iterable[nn.Module]:
    """The blocks of the list of that name; or, among several, a module that is no list."""
    try:
        found = network.get_submodule(name)
    except AttributeError:
        found = None
    if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
        return found
    if found is not None and not lists_only and not isinstance(found, nn.ModuleList):
        return [found]
    lists = [
        key
        for key, module in network.named_modules()
        if key and isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    raise RecipeError(
        found=f"network.blocks = {name!r}",
        expected=f"a list of blocks, such as {lists[:5]}" if lists else "a list of blocks",
        remedy=f"name the list in {type(network).__name__} that the exits cut",
    )


def prediction_in(result: Any) -> Tensor:
    """The prediction in what a module returned: itself, the first of several, or ``.sample``."""
    if isinstance(result, Mapping):
        result = result.get("sample", next(iter(result.values()), None))
    elif isinstance(result, tuple | list) and result:
        result = result[0]
    elif hasattr(result, "sample") and not isinstance(result, Tensor):
        result = result.sample
    if not isinstance(result, Tensor):
        raise RecipeError(
            found=f"a network that returns {type(result).__name__}",
            expected="its prediction, a tuple that begins with it, or an object with .sample",
            remedy="write a module that returns a prediction per exit",
        )
    return result
