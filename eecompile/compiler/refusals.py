"""Why a network could not be traced, in one sentence."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import torch

from eecompile.compiler.graph.operators import network_line
from eecompile.errors import TraceError, summary
from eecompile.networks import truncated
from eecompile.programs.interface import Resizable

# What lies between a network's own code and the exporter.
_LIBRARIES = [Path(torch.__file__).parent, Path(onnx_ir.__file__).parent, Path(__file__).parent]
_CUT = Path(truncated.__file__)


def explained(
    error: BaseException, free: Resizable | None, program: torch.export.ExportedProgram | None
) -> TraceError:
    """What went wrong in a trace, in one sentence: the operator, and where it comes from."""
    causes = list(_causes(error))
    text = " ".join(str(cause) for cause in causes)
    place = next((found for cause in reversed(causes) if (found := place_in_network(cause))), "")
    kinds = " ".join(type(cause).__name__ for cause in causes)
    if re.search(r"unhashable type: .*SymInt", text):
        return TraceError(
            found=f"a graph that depends on data: a length or an index is read from a tensor, such "
            f"as a mask{place}",
            expected="a network that does the same steps whatever its inputs hold",
            remedy="keep every sample at one length, and mask what does not count",
        )
    if "data-dependent" in text or "DataDependent" in kinds:
        operator = re.search(r"aten\.[a-z_]*(?:item|nonzero)[a-z_.]*", text)
        return TraceError(
            found=f"a graph that depends on data: {operator[0] if operator else 'aten.item'} "
            f"reads a tensor's value{place}",
            expected="a network that does the same steps whatever its inputs hold",
            remedy="replace branches, loops and sizes that depend on values, for example by "
            "torch.where",
        )
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing and program is not None and not place:
        of = (node for node in program.graph.nodes if str(node.target).startswith(missing[1]))
        place = next((network_line(str(node.meta.get("stack_trace"))) for node in of), "")
    if missing and "complex" in text:
        return TraceError(
            found=f"complex numbers that depend on the inputs, in operator {missing[1]}, for which "
            f"torch.onnx has no conversion{place}",
            expected="complex numbers that are constants, or are multiplied",
            remedy="compute with real numbers in the network's forward: cosines and sines",
        )
    if missing:
        return TraceError(
            found=f"operator {missing[1]}, which ONNX does not have{place}",
            expected="operators that torch.onnx can convert",
            remedy="write it with others in the network's forward",
        )
    if free is not None and ("onstraint" in text or "pecializ" in text):
        return one_size(f" ({_constraint(text)}){place}", free)
    reason = _constraint(text) if "Constraints violated" in text else summary(causes[-1])
    return TraceError(
        found=f"a network that torch.export cannot trace ({reason}){place}",
        expected="a module without control flow over data, for any batch size",
        remedy="make its forward traceable by torch.export",
    )


def one_size(why: str, free: Resizable | None) -> TraceError:
    """The refusal of a network whose samples were to have several sizes."""
    axes = list(free.axes) if free else []
    return TraceError(
        found=f"a network that takes samples of one size only{why}",
        expected=f"axes {axes} of any allowed length",
        remedy="remove state.resizable; positions that are stored for one size allow no other",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, the origin last."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def place_in_network(error: BaseException) -> str:
    """Where in the network's own code an error arose: ``, from FILE, line N (CODE)``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_file() or path == _CUT or any(path.is_relative_to(p) for p in _LIBRARIES):
            continue
        return f", from {frame.filename}, line {frame.lineno} ({frame.line})"
    return ""


def _constraint(text: str) -> str:
    """The line in which torch.export says which size is fixed."""
    lines = [line.strip(" -") for line in text.splitlines()]
    words = ("pecializ", "constant", "Not all values")
    telling = [line for line in lines if any(word in line for word in words)]
    return (telling or lines)[0][:200]
