"""Spans: what skipped blocks add is forecast, on the host and on an emulated GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eecompile.errors import EecompileError
from eecompile.measure.machine import gpus
from eecompile.programs.choice import Choice, Exit, Span
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.cuda.device import open_device
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from tests.runtime.emulated import (
    HALVES,
    EmulatedDevice,
    HostedEngine,
    bfloat16,
    compiled,
    wide,
)

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def sampler(small_sets: dict[str, Path]) -> Iterator[Sampler]:
    """The small network, chained: exits 1, 2 and 4, and cuts at every block."""
    with Sampler.open(small_sets["chained"]) as opened:
        yield opened


def emulated(host: Sampler, device: EmulatedDevice) -> Sampler:
    return Sampler(HostedEngine(host.engine, host.interface, device), host.interface)


def chosen(sampler: Sampler, choices: Sequence[Choice | int], solver: str = "ddim") -> Program:
    """A program with these choices, in the order in which steps are taken."""
    each = iter([Exit(c) if isinstance(c, int) else c for c in choices])
    return sampler.program(solver, len(choices), "full").with_choices(lambda time: next(each))


MIXED = [4, 4, Span(1, 3, 1, 4), 4, Span(0, 1, 0, 2), Span(1, 3, 2, 4), Span(3, 4, 1, 4), 1]


def test_a_span_that_adds_exactly_what_it_did_is_full_depth(sampler: Sampler) -> None:
    """Two evaluations at one moment; the second skips, for every span and every exit."""
    state, output = (Term("state", 1.0),), (Term("output", 1.0),)
    for (start, stop), saved in sampler.interface.spans.items():
        assert saved == (stop - start) / 4
        for depth in (d for d in sampler.interface.exits if d >= stop):
            made = []
            for choice in (Exit(depth), Span(start, stop, 0, depth)):
                first = Step(Exit(4), 400.0, state, (Update("unused", output),))
                program = Program(
                    solver="twice",
                    initial=1.0,
                    steps=(first, Step(choice, 400.0, state, (Update("state", output),))),
                )
                made.append(sampler.sample(3, solver=program, seed=1))
            np.testing.assert_allclose(made[1], made[0], rtol=1e-5, atol=1e-6)


def test_a_span_is_what_torch_makes_of_its_equation(sampler: Sampler, small_recipe: Path) -> None:
    """Differences kept in float64, extrapolated in half the log-SNR by numpy's polyfit."""
    from eecompile.networks.load import load_network
    from eecompile.recipe import load_recipe

    network = load_network(load_recipe(small_recipe).network, small_recipe.parent).double()
    program = chosen(sampler, [4, 4, 4, Span(1, 3, 2, 4), Span(1, 3, 1, 4), 4])
    assert program.process is not None
    added: list[tuple[float, torch.Tensor]] = []
    states = [r.state for r in sampler.steps(2, solver=program, seed=5, label=3)]
    label = torch.tensor([3, 3])
    state = torch.from_numpy(_noise(sampler, 2, 5)).double() * program.initial
    buffers = {"state": state}
    for index, step in enumerate(program.steps):
        x = sum(term.coefficient * buffers[term.buffer] for term in step.input)
        assert isinstance(x, torch.Tensor)
        place = program.process.at(step.moment).half_log_snr
        t = torch.full((2,), step.timestep, dtype=torch.float64)
        with torch.no_grad():
            hidden, condition = network._embed(x, t, label)
            hidden = network.blocks[0](hidden, condition)
            if isinstance(step.chosen, Span):
                last = added[::-1][: step.chosen.order + 1]
                powers = np.vander([p for p, _ in last], len(last))
                values = np.stack([a.numpy().reshape(-1) for _, a in last])
                polynomial = np.linalg.solve(powers, values)
                here = np.vander([place], len(last)) @ polynomial
                hidden = hidden + torch.from_numpy(here).reshape(hidden.shape)
            else:
                before = hidden
                for block in network.blocks[1:3]:
                    hidden = block(hidden, condition)
                added.append((place, hidden - before))
            hidden = network.blocks[3](hidden, condition)
            buffers["output"] = network._predict(4, hidden, condition, x)
        for update in step.updates:
            terms = [term.coefficient * buffers[term.buffer] for term in update.terms]
            total = torch.stack(terms).sum(0)
            buffers[update.into] = total.clip(*update.clip) if update.clip else total
        np.testing.assert_allclose(states[index], buffers["state"], rtol=1e-3, atol=1e-4)


def _noise(sampler: Sampler, n: int, seed: int) -> Array:
    """What a sampling starts from: a program of one step that hands it on."""
    state = (Term("state", 1.0),)
    step = Step(Exit(1), 500.0, state, (Update("state", state),))
    return sampler.sample(n, solver=Program(solver="none", initial=1.0, steps=(step,)), seed=seed)


@pytest.mark.parametrize("guidance", [1.0, [1.0, 3.0, 1.0, 2.0, 0.5]])
def test_samples_do_not_depend_on_their_batch(
    sampler: Sampler, guidance: float | list[float]
) -> None:
    program = chosen(sampler, MIXED)
    together = sampler.sample(5, solver=program, seed=2, guidance=guidance, label=[1, 2, 3, 4, 5])
    for index in range(5):
        scale = guidance[index] if isinstance(guidance, list) else guidance
        alone = sampler.sample(
            1, solver=program, seed=2, first=index, guidance=scale, label=index + 1
        )
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interval", [None, (0.0, 400.0), (300.0, 800.0)])
def test_an_emulated_gpu_does_as_the_host(
    sampler: Sampler, interval: tuple[float, float] | None
) -> None:
    """Step by step, as a graph, and once more with other samples."""
    device = EmulatedDevice()
    with emulated(sampler, device) as other:
        for solver in ("ddim", "dpmpp-2m"):
            program = chosen(sampler, MIXED, solver)
            for seed in (0, 3):
                how = {"solver": program, "seed": seed, "guidance": [2.0, 1.0, 3.0]}
                how |= {"guidance_interval": interval}
                right = sampler.sample(3, **how)  # type: ignore[arg-type]
                np.testing.assert_array_equal(other.sample(3, **how), right)  # type: ignore[arg-type]
                last = list(other.steps(3, **how))[-1].state  # type: ignore[arg-type]
                np.testing.assert_array_equal(last, right)
    assert device.graphs
    assert "blend" in device.launched


def test_openvino_does_as_onnx_runtime(
    sampler: Sampler, small_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from eecompile.compiler.build import engine_set_from_bundle
    from eecompile.store.target import Target

    target = Target(name="vino", backend="openvino", layout="chained")
    spans = engine_set_from_bundle(small_bundle, target, tmp_path / "vino").manifest.spans
    assert all((span.relative_error or 0.0) < 1e-5 for span in spans)
    with Sampler.open(tmp_path / "vino") as other:
        program = chosen(sampler, MIXED)
        for n in (3, 1):  # on models of every size, and of one
            right = sampler.sample(n, solver=program, guidance=2.0)
            found = other.sample(n, solver=program, guidance=2.0)
            np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)


def test_rows_that_a_span_needs_are_evaluated_where_guidance_does_not_act(
    small_sets: dict[str, Path],
) -> None:
    """Guidance begins at a span: the step that it reads evaluates those rows for it."""
    rows: list[int] = []
    with Sampler.open(small_sets["chained"], on_step=lambda m: rows.append(m.rows)) as sampler:
        program = chosen(sampler, [4, 4, 4, Span(1, 3, 0, 4), 4, 4])
        moments = [step.moment for step in program.steps]
        interval = (moments[4], moments[3])
        narrow = sampler.sample(
            2, solver=program, guidance=2.0, guidance_interval=interval, label=[1, 2]
        )
        assert rows == [2, 2, 4, 4, 4, 2]
        wide_ = sampler.sample(2, solver=program, guidance=1.0, label=[1, 2])
        assert rows[6:] == [2] * 6
        assert np.abs(narrow - wide_).max() > 1e-3


def test_engines_of_batch_one(sampler: Sampler, small_sets: dict[str, Path]) -> None:
    """Guided rows one after the other: on the host as in one batch, on a GPU refused."""
    program = chosen(sampler, MIXED)
    right = sampler.sample(1, solver=program, guidance=2.0, label=3)
    with Sampler.open(small_sets["chained"]) as single:
        single.engine.max_batch = 1
        found = single.sample(1, solver=program, guidance=2.0, label=3)
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
        other = emulated(single, EmulatedDevice())
        with pytest.raises(EecompileError, match=r"spans with guidance.* a larger batch.max"):
            other.sample(1, solver=program, guidance=2.0, label=3)


def test_kept_tensors_share_places(sampler: Sampler) -> None:
    """However many steps: as many places as are read at one time."""
    from eecompile.programs.forecasts import forecasts
    from eecompile.runtime.trajectory.spans import SpanPlaces

    program = chosen(sampler, [4, 4, 4, *[Span(1, 3, 2, 4), 4] * 10])
    places = SpanPlaces(program, sampler.engine, forecasts(program))
    assert sum(place.startswith("kept") for place in places.tensors) == 3


BAD: dict[str, tuple[Callable[[Sampler], object], str]] = {
    "an exit that is none": (
        lambda s: s.sample(1, solver=chosen(s, [4, Span(2, 4, 0, 5)])),
        r"depth 5 in an exit schedule; expected one of the exits \[1, 2, 4\]",
    ),
    "backwards": (lambda s: Span(3, 1, 0, 4), "ascending cuts from 0 to the exit"),
    "beyond the exit": (lambda s: Span(1, 3, 0, 2), "ascending cuts from 0 to the exit"),
    "too high an order": (lambda s: Span(1, 3, 3, 4), "an order from 0 to 2"),
    "the first step": (
        lambda s: chosen(s, [Span(1, 3, 0, 4), 4]),
        "step 0 is '4/1-3:0', after 0 evaluations; expected at least 1",
    ),
    "more orders than evaluations": (
        lambda s: chosen(s, [4, 4, Span(1, 3, 2, 4)]),
        "step 2 is '4/1-3:2', after 2 evaluations; expected at least 3",
    ),
    "blocks that never ran": (
        lambda s: chosen(s, [4, 2, Span(1, 3, 0, 4), Span(0, 3, 0, 4), Span(0, 3, 1, 4)]),
        "step 4 is '4/0-3:1', after 1 evaluation; expected at least 2",
    ),
    "an exit that does not run them": (
        lambda s: s.sample(1, solver=chosen(s, [2, Span(2, 4, 0, 4)])),
        "step 1 is '4/2-4:0', after 0 evaluations; expected at least 1",
    ),
    "a text of a span beyond its exit": (
        lambda s: ExitSchedule.parse("2/1-3:0,4"),
        "blocks after 1 up to 3, with exit 2; expected ascending cuts from 0 to the exit",
    ),
    "a text of too high an order": (
        lambda s: ExitSchedule.parse("4/1-3:9,4"),
        "a forecast of order 9; expected an order from 0 to 2",
    ),
    "the first slice of a schedule": (
        lambda s: s.schedule(["4", "4/1-3:0"]),
        "an exit in the last slice",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused_in_a_sentence(sampler: Sampler, what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(EecompileError, match=message):
        call(sampler)


def test_engine_sets_without_spans_say_how_to_get_them(
    small_sets: dict[str, Path], sampler: Sampler
) -> None:
    """Alone, and as the engine set that evaluated what a span of another reads."""
    with Sampler.open(small_sets["per_exit"]) as whole:
        program = chosen(whole, [4, 4, Span(1, 3, 1, 4)])
        with pytest.raises(EecompileError, match=r"built without spans; .* layout = 'chained'"):
            whole.sample(1, solver=program)
    with Sampler.open(small_sets["chained"], small_sets["per_exit"]) as both:
        second = both.engines[1]
        program = chosen(both, [4, Exit(4, second), Span(1, 3, 1, 4)])
        with pytest.raises(EecompileError, match=f"the engine set '{second}', which was built"):
            both.sample(1, solver=program)
        fits = chosen(both, [4, 4, Span(1, 3, 1, 4), Exit(4, second)])
        expected = sampler.sample(2, solver=chosen(sampler, [4, 4, Span(1, 3, 1, 4), 4]))
        np.testing.assert_allclose(both.sample(2, solver=fits), expected, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels are compiled for the host by g++")
def test_the_kernel_converts_every_half(tmp_path: Path) -> None:
    check_halves(EmulatedDevice(compiled(tmp_path)))


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_a_real_gpu_converts_every_half() -> None:
    with open_device() as device:
        check_halves(device)


def check_halves(device: Any) -> None:
    """Every float16 and bfloat16 to float32 and back; and float32 between two of them."""
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    draws = np.random.default_rng(0)
    floats = np.concatenate(
        [
            draws.standard_normal(4096).astype(np.float32) * np.float32(10.0) ** exponent
            for exponent in range(-9, 6)
        ]
    )
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    floats = np.concatenate([floats, (finite[:-1] + finite[1:]) / 2])
    for code, kind in enumerate(HALVES):
        if not code:
            continue
        given = halves.view(np.float16) if code == 1 else halves
        with np.errstate(over="ignore", invalid="ignore"):
            expected = wide(given)
            rounded = floats.astype(np.float16) if code == 1 else bfloat16(floats)
        np.testing.assert_array_equal(blended(device, given, code << 2, np.float32), expected)
        exact = given[np.isfinite(expected)]
        np.testing.assert_array_equal(blended(device, exact, code | code << 2, kind), exact)
        np.testing.assert_array_equal(blended(device, floats, code, kind), rounded)
    infinite = np.array([np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(blended(device, infinite, 1, np.float16), infinite)
    np.testing.assert_array_equal(wide(blended(device, infinite, 2, np.uint16)), infinite)


def blended(device: Any, given: NDArray[np.generic], types: int, kind: type) -> NDArray[np.generic]:
    """One times ``given``, by the kernel."""
    made = np.empty(given.shape, kind)
    with device.using():
        source, into = device.allocate(given.nbytes), device.allocate(made.nbytes)
        device.upload(source, given)
        pairs = [part for factor in (1, 0, 0, 0) for part in (source, np.float32(factor))]
        count = np.int64(given.size)
        device.launch("blend", 1, into, count, np.int32(types), np.int32(1), *pairs)
        device.download(into, made)
        device.release(source)
        device.release(into)
    return made


def test_engines_without_spans_have_none() -> None:
    assert not Engine.spans
