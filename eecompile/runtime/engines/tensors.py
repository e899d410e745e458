"""Whether an engine takes and gives what its manifest says, whatever library opened it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eecompile.arrays import Inputs
from eecompile.errors import BackendError
from eecompile.store.manifest import EngineManifest, Segment

Found = Mapping[str, tuple[object, Sequence[object]]]
"""By name, a tensor's type in the library's words, and its lengths, if these are known.

What is no integer is free.
"""


def check_tensors(
    segment: Segment,
    manifest: EngineManifest,
    names: Iterable[str],
    found: Found,
    types: Mapping[str, object],
) -> None:
    """Pass when an engine's inputs, or outputs, are those of the manifest.

    Of the network's own, types and shapes are compared, too; ``types`` gives the library's word
    for a numpy type.

    Raises:
        BackendError: they are not.
    """
    if set(names) - set(found):
        raise _other(segment, f"tensors {sorted(found)}", str(sorted(names)))
    interface = manifest.interface
    results = {name for plan in manifest.exits for name in plan.outputs}
    known = dict.fromkeys(("x", *results), ("float32", (None, *interface.state.shape)))
    known |= {"t": ("float32", (None,))}
    for name, spec in interface.conditions.items():
        known[name] = spec.dtype, (None, *spec.shape)
    for name, (kind, lengths) in found.items():
        if name not in known:
            continue
        dtype, wanted = known[name]
        alike = not lengths or len(lengths) == len(wanted)
        alike = alike and all(
            not isinstance(length, int) or length == one
            for length, one in zip(lengths[1:], wanted[1:], strict=False)
        )
        if kind != types[dtype] or not alike:
            raise _other(
                segment,
                f"tensor {name} of type {kind}, shape {list(lengths)}",
                f"{types[dtype]} of shape [batch, {', '.join(map(str, wanted[1:]))}]",
            )


def shapes(inputs: Inputs) -> str:
    """The shapes of arrays, in words."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())


def _other(segment: Segment, found: str, expected: str) -> BackendError:
    return BackendError(
        found=f"{found} in {segment.file}",
        expected=f"{expected}, as its manifest says",
        remedy="build the engine set again",
    )
