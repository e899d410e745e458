"""Optimise a graph as it was traced: fold constants, and drop what has no effect."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import passes
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule, onnx_fusions
from onnxscript.rewriter.rules import common as rules

# The rules that torch.onnx applies, but those that compare numbers by a tolerance, those for
# quantised networks, and those that join limits (which are wrong where the limits cross).
_RULES: list[RewriteRule] = [
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,  # before reshape_reshape_rule
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
    rules.dropout_inference_rule,
]
_ROUNDS = 2  # as torch.onnx does
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def optimise(model: ir.Model) -> None:
    """What torch.onnx does by default, with constants compared exactly; in place.

    Its own rules take a constant within 1e-8 of 0 for 0, and one within 1e-5 of 1 for 1
    (onnxscript 0.7): the epsilon of a norm would vanish.
    """
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        passes.Sequential(
            DropNeutral(),
            common.IdentityEliminationPass(),
            RewritePass(_RULES),
            common.RemoveUnusedNodesPass(),
        )(model)
    onnx_fusions.fuse(model)


class DropNeutral(passes.InPlacePass):
    """Makes an addition of exactly 0, or a multiplication by exactly 1, an Identity.

    The constant has no axes, so that the other operand has the result's shape.
    """

    def call(self, model: ir.Model) -> passes.PassResult:
        """Replace, in place."""
        changed = False
        for node in model.graph:
            kept = _kept(node)
            if kept is None:
                continue
            made, old = ir.Node("", "Identity", [kept]), node.outputs[0]
            made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [made], node.outputs, made.outputs
            )
            changed = True
        return passes.PassResult(model, changed)


def _kept(node: ir.Node) -> ir.Value | None:
    """The operand that the node returns unchanged; None where it does anything."""
    if node.domain or node.op_type not in _NEUTRAL:
        return None
    first, second = node.inputs
    pairs = [(first, second), (second, first)] if node.op_type in ("Add", "Mul") else []
    for kept, other in pairs or [(first, second)]:
        constant = ir.convenience.get_const_tensor(other) if other is not None else None
        scalar = constant is not None and not constant.shape.dims
        if constant is not None and scalar and constant.numpy().item() == _NEUTRAL[node.op_type]:
            return kept
    return None
