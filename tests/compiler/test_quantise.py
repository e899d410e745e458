"""What is quantised computes what its bits can say; what stays is what must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import eecompile.compiler.quantised
import eecompile.runtime.opening
from eecompile import Sampler
from eecompile.compiler import calibration
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.calibration import calibration_set, points, value_ranges
from eecompile.compiler.graph.merge import merged_exits
from eecompile.compiler.graph.quantise import (
    SWITCHES,
    Range,
    Scheme,
    operators,
    quantise,
    scheme_for,
    values_read,
    weight_codes,
)
from eecompile.compiler.progress import silent
from eecompile.compiler.sensitivity import SwitchedGraph, searched
from eecompile.compiler.sessions import evaluate_apart, run_session, session_from_graph
from eecompile.errors import BackendError, UsageError, VerificationError
from eecompile.store.bundle import open_bundle, open_engine_set
from eecompile.store.manifest import EngineManifest
from eecompile.store.target import Quantise, Target, Tolerance, load_target, measuring_sensitivity
from tests.conftest import ROOT

INT8 = load_target(ROOT / "engines" / "cpu-int8-ort.toml")
U8S8 = scheme_for("int8", 32, cpu=True, vnni=True)
SCHEMES = {
    "u8s8": U8S8,
    "u8s7": scheme_for("int8", 32, cpu=True, vnni=False),
    "s8s8": scheme_for("int8", 32, cpu=False, vnni=False),
    "fp8": scheme_for("fp8", 32, cpu=False, vnni=False),
    "int8-weights": scheme_for("int8-weights", 16, cpu=True, vnni=True),
    "int4-weights": scheme_for("int4-weights", 16, cpu=True, vnni=True),
}


class Prepared:
    """The small network's joint graph as a file, its calibration set and ranges."""

    def __init__(self, bundle: Path, work: Path) -> None:
        self.bundle, self.manifest, self.work = bundle, open_bundle(bundle), work
        self.interface = self.manifest.interface
        model = merged_exits(bundle, self.interface.exits)
        self.path = work / "plain.onnx"
        ir.save(model, self.path, external_data="plain.data")
        self.data = calibration_set(bundle, self.manifest, 4, silent)
        read = list(values_read(operators(self.model().graph, U8S8)[0]))
        names = [value.name for value in read]
        model = self.model()
        values = {v.name: v for n in model.graph for v in n.outputs} | {
            v.name: v for v in model.graph.inputs
        }
        self.ranges: dict[str, Range] = value_ranges(
            model, [values[name] for name in names], self.data.rows, work, silent
        )

    def model(self) -> ir.Model:
        return ir.load(self.path)

    def quantised(self, scheme: Scheme, *kept: str, switches: bool = False) -> ir.Model:
        model = self.model()
        quantise(model, scheme, self.ranges, kept, switches=switches)
        return model

    def outputs(self, model: ir.Model, chosen: object = None) -> list[np.ndarray]:
        path = self.work / "shown.onnx"
        ir.save(model, path, external_data="shown.data")
        session = session_from_graph(path)
        (point,) = points(self.data.held_out, 1, 3)
        names = [value.name or "" for value in model.graph.outputs]
        given = {**point} if chosen is None else {**point, SWITCHES: np.asarray(chosen)}
        return run_session(session, given, names)

    def switched(self, tolerance: Tolerance) -> SwitchedGraph:
        return SwitchedGraph(
            self.path,
            U8S8,
            self.ranges,
            self.interface,
            points(self.data.rows, 3, 2),
            evaluate_apart(self.bundle, self.interface),
            tolerance,
            self.work,
        )


@pytest.fixture(scope="module")
def prepared(own_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(own_bundle, tmp_path_factory.mktemp("quantise"))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.sampled_from(list(SCHEMES)), st.floats(1e-6, 1e6))
def test_weights_are_at_most_half_a_step_away(seed: int, name: str, size: float) -> None:
    scheme = SCHEMES[name]
    weights = np.random.default_rng(seed).normal(0, size, (32, 6)).astype(np.float32)
    weights[:, 0] = 0
    codes, scales = weight_codes(weights, scheme, 1)
    if scheme.block:
        scales = np.repeat(scales, scheme.block, 0)
    if scheme.weights != ir.DataType.FLOAT8E4M3FN:
        assert np.abs(codes).max() <= scheme.top
        assert (codes == np.rint(codes)).all()
        assert (np.abs(codes * scales - weights) <= scales * 0.501).all()
    assert np.abs(codes).max() >= scheme.top * 0.999


@pytest.mark.parametrize("name", SCHEMES)
def test_a_graph_is_near_the_plain_one_and_not_equal(prepared: Prepared, name: str) -> None:
    plain = prepared.outputs(prepared.model())
    for one, other in zip(prepared.outputs(prepared.quantised(SCHEMES[name])), plain, strict=True):
        error = np.abs(one - other).max() / np.abs(other).max()
        assert 0 < error < 0.2


def test_switches_choose_between_both(prepared: Prepared) -> None:
    model = prepared.quantised(U8S8, switches=True)
    count = len(operators(prepared.model().graph, U8S8)[0])
    for on, right in (
        (np.zeros(count, bool), prepared.model()),
        (np.ones(count, bool), prepared.quantised(U8S8)),
    ):
        for one, other in zip(prepared.outputs(model, on), prepared.outputs(right), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_what_exits_share_is_quantised_once(prepared: Prepared) -> None:
    found, _ = operators(prepared.model().graph, U8S8)
    graph = prepared.quantised(U8S8).graph
    int8 = [v for v in graph.initializers.values() if v.dtype == ir.DataType.INT8]
    large = [v for v in int8 if not str(v.name).endswith((".zero", ".zeros"))]
    assert len(large) == len({each.node.inputs[1] for each in found})
    assert len({each.name for each in found}) == len(found)
    assert "blocks.0.attn.qkv" in {each.name for each in found}


@pytest.mark.parametrize("name", ["u8s8", "int4-weights"])
def test_no_weight_is_left_behind(prepared: Prepared, name: str) -> None:
    graph = prepared.quantised(SCHEMES[name]).graph
    read = {value for node in graph for value in node.inputs}
    assert set(graph.initializers.values()) <= read


def test_inputs_outputs_and_ends_of_blocks_stay(prepared: Prepared) -> None:
    before, after = prepared.model().graph, prepared.quantised(U8S8).graph
    for one, other in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert [(v.name, v.dtype) for v in one] == [(v.name, v.dtype) for v in other]
    marked = [sorted(n.metadata_props.values()) for g in (before, after) for n in g]
    counts = [
        sum("eecompile.blocks" in node.metadata_props for node in graph)
        for graph in (before, after)
    ]
    assert marked
    assert counts[0] == counts[1] > 0


def test_weights_that_do_not_fit_a_block_are_refused_by_name(prepared: Prepared) -> None:
    scheme = scheme_for("int4-weights", 64, cpu=True, vnni=True)
    found, refused = operators(prepared.model().graph, scheme)
    assert "blocks.0.mlp.fc2" in {each.name for each in found}
    assert "blocks.0.attn.qkv" in refused


def test_an_old_opset_is_refused(prepared: Prepared) -> None:
    model = prepared.model()
    model.graph.opset_imports[""] = 18
    with pytest.raises(BackendError, match="opset 18"):
        quantise(model, U8S8, prepared.ranges)


def test_calibration_visits_the_timesteps_of_samplings(prepared: Prepared) -> None:
    rows, interface = prepared.data.rows, prepared.interface
    with Sampler(calibration._Recorder(prepared.bundle, interface), interface) as sampler:
        steps = sampler.program(steps=25, schedule="full").steps
    assert prepared.data.times == tuple(sorted({float(s.timestep) for s in steps}, reverse=True))
    x, t, labels = (rows[name].at(slice(None)) for name in ("x", "t", "label"))
    assert len(x) == len(labels) == 25 * (4 + 2)  # half of the samples are guided
    # A guided sample's rows share its state, and all steps the label.
    counts = {name: len(column.values) for name, column in rows.items()}
    assert counts == {"x": 25 * 4, "t": 25, "label": len(np.unique(labels))}
    null = interface.conditions["label"].null
    for found in points(rows, 3, 4), points(prepared.data.held_out, 3, 4):
        assert [len(set(point["t"])) for point in found] == [1, 1, 1]
        assert all(null in point["label"] and point["label"][0] != null for point in found)
    assert np.mean(labels == null) == 2 / 6
    # The first evaluation is of noise; the last is of nearly a picture.
    spread = [x[t == time].std() for time in prepared.data.times]
    assert spread[0] == pytest.approx(1, abs=0.05)
    held_out = prepared.data.held_out["x"].values
    assert not any(np.array_equal(one, other) for one in held_out[:3] for other in x[:6])


def test_calibration_is_kept_beside_the_bundle(
    own_bundle: Path,
    tmp_path: Path,
    copied: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = copied(own_bundle)
    manifest, kept = open_bundle(bundle), bundle.with_name("bundle.calibration.npz")
    first = calibration_set(bundle, manifest, 2, silent)
    written = kept.stat().st_mtime_ns
    assert calibration_set(bundle, manifest, 2, silent).digest == first.digest
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:-100])
    assert calibration_set(bundle, manifest, 2, silent).digest == first.digest
    with np.load(kept) as file:
        arrays = dict(file)
    arrays["rows label which"] += 1000
    np.savez(kept, **arrays)
    assert calibration_set(bundle, manifest, 2, silent).digest == first.digest
    assert calibration_set(bundle, manifest, 3, silent).digest != first.digest
    monkeypatch.setattr(calibration, "_STEPS", 4)
    with pytest.raises(BackendError, match="raise samples"):
        calibration_set(bundle, manifest, 1, silent)


@pytest.mark.parametrize("relative", [0.3, 0.02])
def test_as_few_operators_are_kept_as_hold_the_tolerance(
    prepared: Prepared, relative: float
) -> None:
    tolerance = Tolerance(absolute=0, relative=relative)
    graph, (found, _) = prepared.switched(tolerance), operators(prepared.model().graph, U8S8)
    result = searched(graph, found, (), tolerance, search=True, measure=False, report=silent)
    chosen = np.array([each.name not in result.kept for each in found])
    assert graph.used(chosen) <= 1
    assert bool(result.kept) == (relative < 0.1) == (result.errors is not None)
    for index in np.flatnonzero(~chosen):
        assert graph.used(chosen | (np.arange(len(found)) == index)) > 0.6


def test_a_tolerance_that_cannot_be_held_says_what_could_be(prepared: Prepared) -> None:
    tolerance = Tolerance(absolute=0, relative=1e-6)
    graph, (found, _) = prepared.switched(tolerance), operators(prepared.model().graph, U8S8)
    for search in (True, False):
        with pytest.raises(VerificationError, match=r"all operators would hold .* relative = 0\.0"):
            searched(graph, found, (), tolerance, search=search, measure=False, report=silent)


def manifest_of(folder: Path) -> EngineManifest:
    manifest = open_engine_set(folder)
    assert manifest.quantisation is not None
    return manifest


def test_an_engine_set_computes_in_integers_and_samples_alike(
    int8_set: Path, small_sets: dict[str, Path]
) -> None:
    manifest = manifest_of(int8_set)
    found = manifest.quantisation
    assert found is not None
    assert manifest.verified == "the engines"
    assert found.scheme in ("U8S8", "U8S7")
    assert manifest.target.numbers == "int8, else fp32"
    assert found.share > 0.5
    segment = ir.load(int8_set / manifest.segments[-1].file)
    kinds = [node.op_type for node in segment.graph]
    quantised = sum(not operator.kept for operator in found.operators if operator.kind == "MatMul")
    assert 0 < kinds.count("MatMulIntegerToFloat") <= quantised
    with Sampler.open(int8_set) as one, Sampler.open(small_sets["per_exit"]) as other:
        difference = one.sample(4, steps=5) - other.sample(4, steps=5)
    assert 0 < np.sqrt(np.square(difference).mean()) < 0.1  # of a range of 2


def test_openvino_reads_the_same_graph(own_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    target = load_target(ROOT / "engines" / "cpu-int8.toml")
    engine_set_from_bundle(own_bundle, target, tmp_path / "set")
    manifest = manifest_of(tmp_path / "set")
    assert manifest.verified == "the engines"
    text = (tmp_path / "set" / manifest.segments[-1].file).read_text()
    assert text.count('element_type="i8"') > 10


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["int8-weights", "int4-weights"])
def test_weights_alone_take_fewer_bytes(
    own_bundle: Path, small_sets: dict[str, Path], tmp_path: Path, backend: str, kind: str
) -> None:
    pytest.importorskip(backend)
    target = Target(
        name="few",
        backend=backend,
        layout="chained",
        tolerance=Tolerance(absolute=1e-3, relative=0.3),
        quantise=Quantise(kind=kind, block=16),  # type: ignore[arg-type]
    )
    engine_set_from_bundle(own_bundle, target, tmp_path / "set")
    manifest = manifest_of(tmp_path / "set")
    found = manifest.quantisation
    assert found
    # Fewer samples than for ranges, but every timestep: errors are largest at the smallest.
    assert (found.samples, len(found.steps)) == (2, 25)
    before = sum(s.bytes for s in open_engine_set(small_sets["chained"]).segments)
    after = sum(segment.bytes for segment in manifest.segments)
    # Convolutions stay, and a scale for 16 weights is a quarter of 8 bits.
    assert after < before * (0.65 if kind == "int8-weights" else 0.55)
    if backend == "onnxruntime":
        graphs = [ir.load(tmp_path / "set" / segment.file).graph for segment in manifest.segments]
        assert any(node.op_type == "MatMulNBits" for graph in graphs for node in graph)


def test_spans_of_a_quantised_set_are_verified(own_bundle: Path, tmp_path: Path) -> None:
    target = replace(INT8, layout="chained")
    engine_set_from_bundle(own_bundle, target, tmp_path / "set")
    spans = manifest_of(tmp_path / "set").spans
    assert spans
    assert all(span.relative_error is not None for span in spans)


def test_sensitivity_is_measured_where_it_is_asked_for(own_bundle: Path, tmp_path: Path) -> None:
    target = measuring_sensitivity(replace(INT8, tolerance=Tolerance(absolute=1e-3, relative=0.5)))
    engine_set_from_bundle(own_bundle, target, tmp_path / "set")
    found = manifest_of(tmp_path / "set").quantisation
    assert found is not None
    assert len(found.timesteps) == 5
    assert not any(operator.kept for operator in found.operators)
    assert all(len(operator.errors) == 5 for operator in found.operators)
    assert sum(operator.cost for operator in found.operators) == pytest.approx(1)
    with pytest.raises(UsageError, match="quantises nothing"):
        measuring_sensitivity(Target(name="cpu", backend="onnxruntime"))


def test_what_is_named_stays(own_bundle: Path, tmp_path: Path) -> None:
    quantised = Quantise(kind="int8", keep=("adaLN", "^Conv"))
    target = replace(INT8, quantise=quantised, tolerance=Tolerance(absolute=1e-3, relative=0.5))
    engine_set_from_bundle(own_bundle, target, tmp_path / "set")
    found = manifest_of(tmp_path / "set").quantisation
    assert found is not None
    kept = {operator.name for operator in found.operators if operator.kept}
    assert kept == {
        o.name for o in found.operators if "adaLN" in o.name or o.kind.startswith("Conv")
    }


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantise": Quantise(kind="int8", keep=("nothing",))}, "matches no operator"),
        ({"quantise": Quantise(kind="fp8")}, "'fp8' for onnxruntime"),
        ({"tolerance": Tolerance(absolute=0, relative=1e-7)}, "times as far away"),
        ({"options": {"provider": "cuda"}}, "'int8' for onnxruntime-cuda"),
    ],
)
def test_what_cannot_be_leaves_the_engine_set_as_it_is(
    own_bundle: Path,
    int8_set: Path,
    copied: Callable[[Path], Path],
    change: dict[str, object],
    match: str,
) -> None:
    folder = copied(int8_set)
    before = open_engine_set(folder).digest
    with pytest.raises((BackendError, VerificationError), match=match) as raised:
        engine_set_from_bundle(own_bundle, replace(INT8, **change), folder)
    assert "\n" not in str(raised.value)
    assert open_engine_set(folder).digest == before


def test_a_network_of_which_nothing_can_be_quantised_is_told(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eecompile.compiler.quantised, "operators", lambda *_: ([], ["deconv"]))
    with pytest.raises(BackendError, match=r"no product .* can be quantised \(deconv\)"):
        engine_set_from_bundle(own_bundle, INT8, tmp_path / "set")


def test_without_the_instructions_weights_have_seven_bits(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eecompile.compiler.quantised, "eight_bit_products", lambda *_: "")
    engine_set_from_bundle(own_bundle, INT8, tmp_path / "set")
    manifest = manifest_of(tmp_path / "set")
    assert manifest.quantisation
    assert (manifest.quantisation.scheme, manifest.quantisation.instructions) == ("U8S7", "")
    assert any("no VNNI" in warning for warning in manifest.warnings)


def test_a_processor_without_the_instructions_is_told(
    int8_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (found := manifest_of(int8_set).quantisation) or not found.instructions:
        pytest.skip("this processor has no such instructions")
    monkeypatch.setattr(eecompile.runtime.opening, "eight_bit_products", lambda *_: "")
    with pytest.raises(BackendError, match="would saturate"):
        Sampler.open(int8_set)
