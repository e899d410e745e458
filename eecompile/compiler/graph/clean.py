"""Bring a graph, traced or ready-made, into the form that the compiler works on."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import passes
from onnx_ir.passes import common


def clean(model: ir.Model) -> None:
    """Make constants weights, inline functions, drop metadata and what nothing needs.

    In place. Afterwards no node is a constant or of no effect, and no function is left.
    """
    passes.Sequential(
        common.InlinePass(),
        common.ClearMetadataAndDocStringPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
