"""Benchmarks. Every claim is a ratio of medians measured side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import bench_peers
import bench_runtime
import caching_page
import torch
import typer
from bench_schedules import SOLVERS, schedules
from bundles import TARGETS, bundles_of, engine_set, random_recipe
from children import a_thousand_samplings, in_child
from results import BENCHMARKS, OUT, RECIPE, Results, console, main, medians, print_table

from eecompile import Sampler
from eecompile.compiler import bundle_from_recipe

PEERS_TARGETS = {"onnxruntime": "cpu", "openvino bf16": "cpu-bf16"}
# Of networks: the batches that are timed, that whose memory is measured, and most rounds.
SPANS = {"DiT-S/2": ((1, 4), 8, 5), "PixArt-alpha 256, 6 layers": ((1,), 2, 3)}
SPAN_STEPS = 9
LAYOUT_BATCHES = {"fashion-dit": (1, 16), "DiT-S/2": (1,)}
PARTS = "default all, otherwise what was measured of the others stays."
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each action.")]
Seconds = Annotated[float, typer.Option(min=1, help="Of load, for each mode.")]
Output = Annotated[Path | None, typer.Option(help="JSON; default under docs/benchmarks.")]

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
app.command()(schedules)


def shipped(*layouts: str) -> dict[str, Path]:
    """The shipped network's bundle and engine sets, which are made unless they are there."""
    bundle = OUT / "bundle"
    bundle_from_recipe(RECIPE, bundle)
    return {"bundle": bundle} | {n: engine_set(bundle, OUT, TARGETS[n]) for n in layouts}


@app.command()
def sampling(rounds: Rounds = 9, output: Output = None) -> None:
    """Schedules, full depth against torch, both layouts; sampling-cpu.json."""
    folders = shipped(*TARGETS)
    layouts = {name: folders[name] for name in TARGETS}
    torch.set_num_threads(os.cpu_count() or 1)
    sampler = Sampler.open(folders["per_exit"], threads=torch.get_num_threads())
    interface = sampler.interface
    samplers = {"eecompile": sampler} | bench_runtime.torch_samplers(folders["bundle"])
    results = Results(output, "sampling-cpu")
    results.keep("threads", torch.get_num_threads())
    results.keep("bundle", interface.name)
    results.keep("default_schedule", interface.sampling.schedule)
    speedups = (
        bench_runtime.schedule_speedup(sampler, name, batch, 10, rounds * (3 if batch > 1 else 15))
        for name in interface.schedules
        if name != "full"
        for batch in (1, 16)
    )
    results.keep("schedule_speedup", speedups)
    full = ({"batch": n} | bench_runtime.step_row(samplers, n, "full", rounds * 3) for n in (1, 16))
    results.keep("full_depth_ms_per_step", full)
    with bench_runtime.open_samplers(layouts) as opened:
        results.keep("layouts_ms_per_step", bench_runtime.exit_rows(opened, (1, 16), rounds * 2))
    results.keep("bytes_over_full_depth_only", bench_runtime.sizes(folders))
    results.show()


@app.command()
def decisions(rounds: Rounds = 9, output: Output = None) -> None:
    """What docs/decisions.md rests on; decisions-cpu.json."""
    import bench_decisions as bench

    folders = shipped("per_exit")
    engines = folders["per_exit"]
    results = Results(output, "decisions-cpu")
    results.keep("thread_modes_ms", bench.thread_modes(engines, rounds))
    results.keep("levels_ms", bench.levels(engines, rounds))
    results.keep("attention_ms", bench.attention(rounds))
    results.keep("one_graph_ms", bench.one_graph(folders["bundle"], rounds))
    results.keep("forecast_variables", bench.forecast_variables(engines, 16))
    results.keep("forecasts", bench.forecasts_and_fewer_steps(engines, 32))
    results.show()


@app.command()
def export(
    networks: Annotated[list[str] | None, typer.Argument(help="Default all.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Default 3; 1 above 1 GB.")] = None,
    output: Output = None,
) -> None:
    """Exports at full size: time, memory, bytes, errors; export-cpu.json."""
    from bench_build import export_rows

    results = Results(output, "export-cpu")
    results.keep("exports", export_rows(networks, rounds))
    results.show()


@app.command()
def networks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Default all; the others' rows stay.")
    ] = None,
    output: Output = None,
) -> None:
    """The networks of diffusers at a tiny size; networks-cpu.json and docs/networks.md."""
    from networks import network_rows

    torch.set_num_threads(1)
    results = Results(output, "networks-cpu")
    known = json.loads(results.output.read_text()) if results.output.exists() else {}
    others = (row for row in known.get("networks", []) if names and row["network"] not in names)
    results.keep("networks", chain(list(others), network_rows(names)))
    results.show()
    _write_tables("networks", results.output, False)


@app.command()
def build(rounds: Rounds = 9, output: Output = None) -> None:
    """Plans, half precision, rebuilds, OpenVINO; build-cpu.json."""
    import bench_build as bench

    results = Results(output, "build-cpu")
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundle_from_recipe(RECIPE, work / "shipped")
        bundle_from_recipe(RECIPE, work / "fewer", exits=(3, 9, 12))
        recipe, _ = random_recipe("DiT-S/2", work / "small")
        bundle_from_recipe(recipe, work / "small" / "bundle")
        bundles = {"fashion-dit": work / "shipped", "DiT-S/2": work / "small" / "bundle"}
        results.keep("plans", bench.plan_rows(min(rounds, 3)))
        results.keep("half_precision", bench.half_precision_rows(bundles))
        results.keep("rebuilds", bench.rebuild_rows(work / "shipped", work / "fewer"))
        for name, bundle in bundles.items():
            results.keep(f"openvino, {name}", bench.openvino_rows(bundle, rounds))
        results.keep("openvino_layouts", bench.openvino_layout_rows(work / "shipped", rounds))
        results.keep("openvino_opening", bench.openvino_opening_rows(work / "shipped", rounds))
    results.show()


@app.command()
def runtime(rounds: Rounds = 9, output: Output = None) -> None:
    """Beside the engines: time, memory, threads, requests; runtime-cpu.json."""
    results = Results(output, "runtime-cpu")
    with TemporaryDirectory() as temporary:
        sets = {}
        for network in ("fashion-dit", "DiT-S/2"):
            work = Path(temporary) / network.replace("/", "-")
            work.mkdir()
            recipe = RECIPE if network == "fashion-dit" else random_recipe(network, work)[0]
            bundle, deepest = bundles_of(recipe, work)
            sets[network] = {name: engine_set(bundle, work, t) for name, t in TARGETS.items()}
            alone = engine_set(deepest, work / "alone", TARGETS["chained"])
            sets[network]["full depth alone"] = alone
        layouts = {name: sets["fashion-dit"][name] for name in TARGETS}
        sampler = Sampler.open(layouts["per_exit"])
        results.keep("overhead", bench_runtime.overhead_rows(sampler.interface, rounds))
        results.keep("outside_engines", bench_runtime.outside_rows(sampler, rounds))
        results.keep("start_up", [bench_runtime.start_up(layouts["per_exit"])])
        results.keep("memory", bench_runtime.memory_rows(sets, min(rounds, 5)))
        results.keep("a_thousand_samplings", [in_child(a_thousand_samplings, layouts["chained"])])
        results.keep("threads", [bench_runtime.agreement_row(layouts["chained"])])
        results.keep("thread_pools", bench_runtime.pool_rows(layouts, rounds))
        results.keep("requests", bench_runtime.requests_rows(sampler, rounds * 2))
    results.show()


Tables = Annotated[bool, typer.Option("--tables", help="Only write the documents' tables anew.")]


@app.command()
def peers(rounds: Rounds = 9, tables: Tables = False, output: Output = None) -> None:
    """Against what people would use instead; peers-cpu.json, and the documents' tables."""
    place = output or BENCHMARKS / "peers-cpu.json"
    if not tables:
        _measure_peers(rounds, place)
    _write_tables("peers", place, tables)


@app.command()
def caching(
    rounds: Rounds = 5,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 16,
    tables: Tables = False,
    output: Output = None,
) -> None:
    """Caches around the torch network, and forecasts: caching-cpu.json, its page, and tables."""
    place = output or BENCHMARKS / "caching-cpu.json"
    if not tables:
        _measure_caching(rounds, batch, place)
    if place.exists():
        path = (OUT if output is None else place.parent) / f"{place.stem}.html"
        path.write_text(caching_page.page(json.loads(place.read_text())))
        print(f"written: {path}")
    _write_tables("caching", place, tables)


def _write_tables(name: str, place: Path, always: bool) -> None:
    """Write the documents' tables, where ``place`` is one of the JSON files they are made of."""
    import bench_tables

    if always or place.resolve() in bench_tables.results_files(name):
        for path in bench_tables.write_tables():
            print(f"written: {path}")


def _measure_caching(rounds: int, batch: int, output: Path) -> None:
    import bench_caching

    results = _results(output)
    results.keep("batch", batch)
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundle_from_recipe(RECIPE, work / "bundle")
        engines = _peers_engines(work)
        results.keep("network", "fashion-dit")
        cases = {}
        for solver, steps in SOLVERS:
            case = bench_peers.Case(RECIPE, work / "bundle", "full", batch, steps)
            cases[f"{solver}, {steps} steps"] = bench_caching.measured(
                case, solver, engines, rounds
            )
            results.keep("cases", cases)
    for name, case in cases.items():
        print_table(name, case["rows"])
    print(f"written: {output}")


def _results(output: Path) -> Results:
    """Empty results; PyTorch takes all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    return Results(output, "")


def _measure_peers(rounds: int, output: Path) -> None:
    results = _results(output)
    results.keep("batch", 16)
    with TemporaryDirectory() as temporary:
        small, _ = random_recipe("DiT-S/2", Path(temporary) / "small")
        cases = {"fashion-dit": (RECIPE, "balanced", 10), "DiT-S/2": (small, "ase", 4)}
        for network, (recipe, schedule, steps) in cases.items():
            work = Path(temporary) / network.replace("/", "-")
            bundle_from_recipe(recipe, work / "bundle")
            case = bench_peers.Case(recipe, work / "bundle", schedule, 16, steps)
            results.keep(network, bench_peers.measured(case, _peers_engines(work), rounds))
    results.show()


def _peers_engines(work: Path) -> dict[str, Path]:
    """Engine sets of a bundle by name."""
    return {
        name: engine_set(work / "bundle", work, target) for name, target in PEERS_TARGETS.items()
    }


@app.command()
def spans(rounds: Rounds = 5, tables: Tables = False, output: Output = None) -> None:
    """Spans: time beside blocks, memory, what cuts and layouts cost; spans-cpu.json, tables."""
    place = output or BENCHMARKS / "spans-cpu.json"
    if not tables:
        _measure_spans(rounds, place)
    _write_tables("spans", place, tables)


@app.command()
def precision(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help=f"Of samples, speed, calibration, choices; {PARTS}"),
    ] = None,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """INT8 beside FP32 and BF16: time, errors, and tuning; precision-cpu.json."""
    import bench_precision as bench

    results = Results(output, "precision-cpu", more=bool(parts))
    with TemporaryDirectory() as temporary:
        bundles = bench.Bundles(Path(temporary))
        every = {
            "samples": lambda: bench.sample_rows(bundles),
            "speed": lambda: bench.speed_rows(bundles, (1, 4, 16), rounds),
            "calibration": lambda: bench.calibration_rows(bundles),
            "choices": lambda: bench.choice_rows(bundles),
        }
        _keep_parts(results, every, parts)
    results.show()


@app.command()
def sizes(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of weights, large, plans; {PARTS}")
    ] = None,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """Bytes and memory of weights in INT4 and INT8, and of plans; precision-sizes.json."""
    import bench_precision as bench

    results = Results(output, "precision-sizes", more=bool(parts))
    with TemporaryDirectory() as temporary:
        bundles, kinds = bench.Bundles(Path(temporary)), ("fp32", "int8", "int4")
        every = {
            "weights": lambda: bench.weight_rows(bundles, bench.SMALL, kinds, rounds),
            "large": lambda: bench.weight_rows(bundles, bench.LARGE, kinds[::2], 1),
            "plans": lambda: bench.plan_rows(bundles),
        }
        _keep_parts(results, every, parts)
    results.show()


def _keep_parts(
    results: Results, every: Mapping[str, Callable[[], object]], parts: list[str] | None
) -> None:
    """Measure the parts that are named, or all."""
    if unknown := set(parts or ()) - set(every):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected {', '.join(every)}")
    for name in parts or every:
        results.keep(name, every[name]())


def _measure_spans(rounds: int, output: Path) -> None:
    import bench_spans as bench

    results = Results(output, "")
    results.keep("target", bench.TARGET)
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundles = {name: bench.bundle_of(name, work / str(i)) for i, name in enumerate(SPANS)}
        sets = {name: engine_set(b, b.parent, bench.TARGET) for name, b in bundles.items()}
        times = (
            row
            for name, (batches, _, most) in SPANS.items()
            for row in bench.time_rows(name, sets[name], batches, SPAN_STEPS, min(rounds, most))
        )
        memory = (
            row
            for name, (_, batch, _) in SPANS.items()
            for row in bench.memory_rows(name, sets[name], batch, min(rounds, 2))
        )
        results.keep("time", times)
        results.keep("memory", memory)
        bundle_from_recipe(RECIPE, work / "fashion-dit")
        layouts = {"fashion-dit": bench.layouts_of(work / "fashion-dit", work / "sets")}
        layouts["DiT-S/2"] = bench.layouts_of(bundles["DiT-S/2"], bundles["DiT-S/2"].parent)
        results.keep(
            "layouts",
            (
                row
                for name, each in layouts.items()
                for row in bench.layout_rows(name, each, LAYOUT_BATCHES[name], 2 * rounds)
            ),
        )
    results.show()


@app.command()
def serving(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help=f"Of overhead, equality, light, load, http, ray; {PARTS}"),
    ] = None,
    rounds: Rounds = 15,
    seconds: Seconds = 25.0,
    simulate: Annotated[
        bool, typer.Option(help="Simulate replicas under load instead; serving-simulated.json.")
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="JSON of what --simulate takes evaluations to last: by machine and exit, seconds "
            "by rows; default measured here."
        ),
    ] = None,
    output: Output = None,
) -> None:
    """Joining beside gather-and-run under load, what it costs, and Ray; serving-cpu.json."""
    import bench_serving as bench

    if simulate:
        simulated(costs, output)
        return
    results = Results(output, "serving-cpu", more=bool(parts))
    engines = shipped("per_exit")["per_exit"]
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        bundle_from_recipe(random_recipe("DiT-S/2", work)[0], work / "bundle")
        folders = {
            "fashion-dit": engines,
            "DiT-S/2": engine_set(work / "bundle", work, TARGETS["per_exit"]),
        }
        samplers = {n: stack.enter_context(Sampler.open(f)) for n, f in folders.items()}
        way = {"solver": "ddim", "steps": 4}
        small = {"fashion-dit": samplers["fashion-dit"]}
        large = {"DiT-S/2": samplers["DiT-S/2"]}
        few = max(3, rounds // 3)
        every = {
            "overhead": lambda: bench.overhead_rows(small["fashion-dit"].interface, rounds),
            "equality": lambda: [bench.equality_row(small["fashion-dit"])],
            "light": lambda: chain(
                bench.light_rows(small, rounds), bench.light_rows(large, few, **way)
            ),
            "load": lambda: chain(
                bench.load_rows(small, seconds), bench.load_rows(large, 6 * seconds, **way)
            ),
            "http": lambda: [bench.http_row(engines, rounds)],
            "ray": lambda: bench.ray_rows(engines, 2),
        }
        _keep_parts(results, every, parts)
    results.show()


def simulated(costs: Path | None, output: Path | None) -> None:
    """Replicas under load, with the shipped network's schedules."""
    import serving_simulation as simulation

    results = Results(output, "serving-simulated")
    with Sampler.open(shipped("per_exit")["per_exit"]) as sampler:
        found = {"here": simulation.measured_costs(sampler)}
        if costs is not None:
            found = simulation.read_costs(costs)
        programs = {name: simulation.evaluated(sampler, name) for name in ("full", "half", "ase")}
    results.keep("costs", found)
    for name, each in found.items():
        results.keep(f"load, {name}", simulation.load_rows(name, each, programs, 1500))
    for name, each in found.items():
        most = simulation.capacity(each, programs["full"]) / simulation.SAMPLES
        allowed = 3 * sum(simulation.seconds(each, choice, 4) for choice in programs["full"])
        rates = [round(factor * most, 2) for factor in (1, 4, 16)]
        results.keep(
            f"plan, {name}", simulation.plan_rows(name, each, programs, rates, allowed, 1500)
        )
    results.show()


@app.command()
def demo(rounds: Rounds = 3) -> None:
    """The default schedule against full depth and torch eager."""
    sampler = Sampler.open(OUT / "cpu")
    schedule, batch = sampler.interface.sampling.schedule, 16
    eager = bench_runtime.torch_samplers(OUT / "bundle")["torch eager"]
    seconds = medians(
        {
            "schedule": lambda: sampler.sample(batch),
            "full": lambda: sampler.sample(batch, schedule="full"),
            "eager": lambda: eager.sample(batch, schedule="full"),
        },
        rounds,
    )
    share = sampler.interface.share(sampler.interface.schedules[schedule])
    for name, label in (("full", "full depth on the same engines"), ("eager", "torch eager")):
        factor = seconds[name] / seconds["schedule"]
        console().print(f"schedule {schedule!r} is {factor:.2f} times as fast as {label}")
    console().print(f"(it runs {share:.0%} of the blocks; batch {batch}, medians of {rounds})")


if __name__ == "__main__":
    main(app)
