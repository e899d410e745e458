"""Targets: where a bundle runs, and how its engines are built (TOML under engines/)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from eecompile.backends import BackendName
from eecompile.decoding import PlainName
from eecompile.errors import RecipeError, UsageError
from eecompile.store.companions import CompanionTarget
from eecompile.store.shipped import named_file
from eecompile.store.toml import read_toml


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Largest |difference| allowed against the reference: absolute + relative * |reference|."""

    absolute: float = 1e-4
    relative: float = 1e-3

    def __post_init__(self) -> None:
        # A bound that is not a number would let everything pass.
        if not all(0 <= bound < math.inf for bound in (self.absolute, self.relative)):
            raise RecipeError(
                found=f"tolerance of {self.absolute} and {self.relative}",
                expected="finite numbers, 0 or more",
                remedy="fix [tolerance]",
            )


class BatchProfile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batch sizes that the engines accept. Guidance doubles the batch."""

    min: Annotated[int, Meta(ge=1)] = 1
    opt: Annotated[int, Meta(ge=1)] = 16
    max: Annotated[int, Meta(ge=1)] = 64

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise RecipeError(
                found=f"batch sizes min {self.min}, opt {self.opt}, max {self.max}",
                expected="min <= opt <= max",
                remedy="reorder them in the target's [batch]",
            )


QuantisedKind = Literal["int8", "fp8", "int8-weights", "int4-weights"]


class Quantise(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What engines compute in 8 bits, or which weights they keep in 8 or 4.

    Attributes:
        kind: ``int8`` and ``fp8`` (E4M3): of products with weights, both factors;
            ``int8-weights`` and ``int4-weights``: of the weights alone, which are read as what
            ``precision`` says.
        samples: that are sampled to see the ranges of values, from seed 0 on, and to search; two
            at most of weights alone, which have no ranges.
        keep: regular expressions; operators whose kind or name matches one stay in
            ``precision``.
        block: weights that share a scale, where only weights are quantised.
        search: whether operators stay in ``precision``, too, as few as hold the tolerance.
        sensitivity: whether each operator is measured even where none need stay.
    """

    kind: QuantisedKind
    samples: Annotated[int, Meta(ge=1, le=1024)] = 8
    keep: tuple[str, ...] = ()
    block: Literal[16, 32, 64, 128, 256] = 32
    search: bool = True
    sensitivity: bool = False


class Target(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a bundle runs, and how its engines are built.

    Attributes:
        name: of the target; names the default output folder.
        backend: the library that runs the engines.
        precision: of weights and activations inside the engines, but for what is quantised.
        layout: ``chained`` (trunk segments that exits share, and a head an exit) or
            ``per_exit`` (one engine per exit).
        batch: batch sizes that the engines accept.
        tolerance: of the engines against the bundle's graphs.
        threads: threads of one evaluation; 0 takes the physical cores.
        options: of the backend, under its own names.
        keep_fp32: regular expressions; nodes whose operator or weights match one keep
            FP32 where the precision is lower.
        workspace_mib: memory that a TensorRT engine may use beside its weights; None
            leaves it to the library.
        quantise: what has fewer bits than ``precision``; None for nothing.
        companions: how encoders and decoders are built.
    """

    name: PlainName
    backend: BackendName
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    layout: Literal["chained", "per_exit"] = "per_exit"
    batch: BatchProfile = BatchProfile()
    tolerance: Tolerance = Tolerance()
    threads: Annotated[int, Meta(ge=0)] = 0
    options: dict[str, str | int | float | bool] = {}
    keep_fp32: tuple[str, ...] = ()
    workspace_mib: Annotated[int, Meta(ge=1)] | None = None
    quantise: Quantise | None = None
    companions: CompanionTarget = CompanionTarget()

    @property
    def numbers(self) -> str:
        """What engines compute in, or keep weights in: ``fp32``, or ``int8, else fp32``."""
        return (
            self.precision if not self.quantise else f"{self.quantise.kind}, else {self.precision}"
        )

    @property
    def for_companions(self) -> Target:
        """The target of companions: the same, in their backend and precision."""
        own = self.companions
        backend = own.backend or self.backend
        options = self.options if backend == self.backend else {}
        return replace(
            self,
            backend=backend,
            precision=own.precision,
            options=options,
            keep_fp32=(),
            quantise=None,
        )


DEFAULT_TARGET = Target(name="cpu", backend="onnxruntime", layout="per_exit")
"""What engines are built for unless told otherwise; ``engines/cpu.toml`` says the same."""


def load_target(path: Path) -> Target:
    """Read a target: a file, or the name of one that ships.

    Raises:
        RecipeError: the file is missing, is no TOML, or is malformed.
    """
    return read_toml(named_file("engines", path), Target, example="engines/cpu.toml")


def measuring_sensitivity(target: Target) -> Target:
    """The target, whose build also measures each operator that can be quantised.

    Raises:
        UsageError: the target quantises nothing.
    """
    if target.quantise is None:
        raise UsageError(
            found=f"--sensitivity for target {target.name!r}, which quantises nothing",
            expected="a target with [quantise], such as cpu-int8",
            remedy="leave --sensitivity out, or choose another target",
        )
    return replace(target, quantise=replace(target.quantise, sensitivity=True))
