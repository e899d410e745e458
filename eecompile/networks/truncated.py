"""Any torch module, made to predict from several depths by cutting a list of its blocks.

Early exit in its plainest form (ASE, arXiv 2408.05927): the first blocks run, and the
rest of the module, its head, follows. The module is not changed and need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from eecompile.errors import RecipeError
from eecompile.networks.base import MultiExitNetwork, check_exits


class _Cut:
    """How far the blocks run; stands between a module and each of its blocks.

    Attributes:
        depth: number of blocks that run.
        done: what each block has returned in this pass; None between passes, when the
            module runs as it would without a cut.
        shared: whether a block runs once for all exits, as it always does in an export.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.depth = len(blocks)
        self.done: list[Any] | None = None
        self.shared = False
        for index, block in enumerate(blocks):
            block.forward = self._forward(index, block.forward)

    def _forward(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.done is None:
                return run(*args, **kwargs)
            if index >= self.depth and len(self.done) >= self.depth:
                return _copied(self.done[self.depth - 1])
            if index > len(self.done) or (index < len(self.done) and not self.once):
                raise RecipeError(
                    found=f"block {index + 1} running after {len(self.done)} others",
                    expected="blocks that run once a pass, in the order of their list",
                    remedy="write a module that returns a prediction per exit",
                )
            if index == len(self.done):
                result = run(*args, **kwargs)
                self.done.append(_copied(result))
                return result
            return _copied(self.done[index])

        return forward

    @property
    def once(self) -> bool:
        return self.shared or torch.compiler.is_exporting()


class Truncated(nn.Module):
    """Predicts from several depths of a module that was written for one.

    Blocks beyond an exit hand on what the exit's last block returned. While the network
    is exported, and within :meth:`each_block_once`, each block runs once for all exits;
    otherwise every exit runs the module from its start, so that verification can compare
    the two.

    Args:
        network: the module; its blocks may take and return anything, once a pass each.
        exits: depths that predict, ascending; the last is the number of blocks.
        blocks: name of the list of blocks within ``network``.
        arguments: the module's name for an input, by ours (``x``, ``t``, conditions);
            with a dot, an entry of a dictionary.

    Raises:
        RecipeError: there is no such list, or the exits do not fit it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        exits: Sequence[int],
        blocks: str,
        arguments: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.network = network
        self.exits = check_exits(exits, len(found := _blocks(network, blocks)))
        self.arguments = dict(arguments)
        self.blocks = found
        self._cut = _Cut(found)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """One prediction per exit, shallowest first; see MultiExitNetwork."""
        cut, predictions = self._cut, []
        try:
            for depth in reversed(self.exits):
                if cut.done is None or not cut.once:
                    cut.done = []
                cut.depth = depth
                predictions.append(_tensor(self.network(**named(self.arguments, inputs))))
                if len(cut.done) < depth:
                    raise RecipeError(
                        found=f"{len(cut.done)} of the blocks running where {depth} should",
                        expected="every block called as a module, in the order of the list",
                        remedy="call them in the network's forward, or write a module that "
                        "returns a prediction per exit",
                    )
        finally:
            cut.depth, cut.done = self.exits[-1], None
        return tuple(reversed(predictions))

    @contextmanager
    def each_block_once(self) -> Iterator[None]:
        """Evaluate all exits in about the time of the deepest."""
        self._cut.shared = True
        try:
            yield
        finally:
            self._cut.shared = False


class Renamed(nn.Module):
    """A multi-exit network whose forward has other names for inputs, as in :class:`Truncated`."""

    def __init__(self, network: MultiExitNetwork, arguments: Mapping[str, str]) -> None:
        super().__init__()
        self.network = network
        self.exits = network.exits
        self.blocks = getattr(network, "blocks", ())
        self.arguments = dict(arguments)

    def forward(self, **inputs: Tensor) -> Any:
        """One prediction per exit, shallowest first; see MultiExitNetwork."""
        return self.network(**named(self.arguments, inputs))


def named(arguments: Mapping[str, str], inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inputs under the network's names; ``a.b`` is entry ``b`` of the dictionary ``a``."""
    call: dict[str, Any] = {}
    for name, value in inputs.items():
        outer, _, inner = arguments.get(name, name).partition(".")
        if inner:
            call.setdefault(outer, {})[inner] = value
        else:
            call[outer] = value
    return call


def _copied(result: Any) -> Any:
    """With its tensors copied, for blocks and modules that change them in place."""
    return tree_map_only(Tensor, Tensor.clone, result)


def _blocks(network: nn.Module, name: str) -> list[nn.Module]:
    try:
        found = network.get_submodule(name)
    except AttributeError:
        found = None
    lists = [
        key
        for key, module in network.named_modules()
        if key and isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise RecipeError(
            found=f"network.blocks = {name!r}",
            expected=f"a list of blocks, such as {lists[:5]}" if lists else "a list of blocks",
            remedy=f"name the list in {type(network).__name__} that the exits cut",
        )
    blocks = list(found)
    if len(set(map(id, blocks))) < len(blocks):
        raise RecipeError(
            found=f"a block that is in {name!r} more than once",
            expected="a list of distinct blocks",
            remedy="write a module that returns a prediction per exit",
        )
    return blocks


def _tensor(result: Any) -> Tensor:
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
