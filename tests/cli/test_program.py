"""Programs on the command line: compiled from a scheduler's config, shown, and sampled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from eecompile.compiler.schedulers.program import program_from_scheduler
from eecompile.programs.choice import Exit
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.runtime.sampler import Sampler
from eecompile.show.programs import program_parts
from eecompile.show.terminal import rendered
from eecompile.store.bundle import open_bundle
from tests.cli.conftest import Run
from tests.cli.test_cli import fails

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]
NETWORK: dict[str, Any] = {  # what the shipped network was trained with
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def config(folder: Path, **options: Any) -> Path:
    DPMSolverMultistepScheduler(**{**NETWORK, **options}).save_pretrained(folder)
    return folder / "scheduler_config.json"


def read(path: Path) -> Program:
    return Program.from_json(path.read_bytes())


def test_a_config_becomes_a_program_with_open_choices(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "program.json"
    output.write_text("an older one")
    status, out, _ = run("program", config(tmp_path), "--steps", 8, "-o", output)
    assert status == 0
    assert "open: an exit schedule chooses" in out
    assert str(output) in "".join(out.split())
    program = read(output)
    assert program == program_from_scheduler(DPMSolverMultistepScheduler(**NETWORK), 8)
    assert set(program.choices) == {None}
    assert {p.name for p in tmp_path.iterdir()} == {"program.json", "scheduler_config.json"}


def test_a_program_for_a_network_has_its_choices(run: Run, bundle: Path, tmp_path: Path) -> None:
    output, made = tmp_path / "program.json", config(tmp_path)
    interface = open_bundle(bundle).interface
    total = interface.process.timesteps
    for given, name in ((("--schedule", "fast"), "fast"), ((), "full")):
        command = ("program", made, "--steps", 6, "--for", bundle, "-o", output, *given)
        status, out, _ = run(*command)
        assert status == 0
        assert "of the blocks" in out
        program = read(output)
        exits = interface.schedules[name]
        assert program.choices == tuple(exits.choice_at(s.moment, total) for s in program.steps)
        assert program.process == interface.process
    assert run("program", made, "--for", bundle, "--schedule", "6", "-o", output)[0] == 0
    assert read(output).choices == (Exit(6),) * interface.sampling.steps


def test_a_solver_becomes_the_program_that_sampling_runs(
    run: Run, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "program.json"
    folder = engine_sets["per_exit"]
    assert run("program", "ddim", "--for", folder, "--steps", 5, "-o", output)[0] == 0
    with Sampler.open(folder) as sampler:
        expected = sampler.program("ddim", 5)
        program = read(output)
        assert program == expected
        np.testing.assert_array_equal(
            sampler.sample(1, solver=program), sampler.sample(1, solver="ddim", steps=5)
        )
    _, shown, _ = run("inspect", folder, "--program", "--solver", "ddim", "--steps", 5, "--json")
    assert Program.from_json(shown.encode()) == expected


def test_the_program_is_sampled(run: Run, engine_sets: dict[str, Path], tmp_path: Path) -> None:
    """The same noise gives the same image, whatever the solver, if the steps are many."""
    folder, output = engine_sets["per_exit"], tmp_path / "program.json"
    made = config(tmp_path, timestep_spacing="trailing")
    assert run("program", made, "--for", folder, "--steps", 40, "-o", output)[0] == 0
    command = ("sample", folder, "-n", 2, "--seed", 3)
    assert run(*command, "--program", output, "-o", tmp_path / "a.npy")[0] == 0
    assert run(*command, "--steps", 200, "-o", tmp_path / "b.npy")[0] == 0
    one, other = (np.load(tmp_path / name) for name in ("a.npy", "b.npy"))
    assert np.abs(one - other).mean() < 0.05 < 0.3 < np.abs(one).mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction_type": "epsilon"}, ["prediction epsilon", "v_prediction"]),
        ({"beta_schedule": "linear"}, ["betas linear, 0.0001 to 0.02", "cosine"]),
        ({"num_train_timesteps": 500}, ["T 500", "1000"]),
    ],
)
def test_a_scheduler_for_another_network_is_refused(
    run: Run, bundle: Path, tmp_path: Path, options: dict[str, Any], words: list[str]
) -> None:
    made = config(tmp_path, **options)
    command = ("program", made, "--for", bundle, "--steps", 5, "-o", tmp_path / "program.json")
    fails(run(*command), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["scheduler_config.json"]


def test_wrong_arguments_of_program(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path / "scheduler")
    monkeypatch.chdir(tmp_path)
    end = ("-o", "p.json")
    fails(run("program", made, *end), "no --steps and no --for")
    fails(run("program", "ddim", "--steps", 5, *end), "solver ddim without --for")
    given = ("--steps", 5, "--schedule", "full")
    fails(run("program", made, *given, *end), "--schedule full without --for")
    fails(run("program", "ddimm", "--steps", 5, *end), "no file ddimm", "ddim")
    fails(run("program", made, "--steps", 5000, "--for", tmp_path, *end), "no manifest.json")
    fails(run("program", made, "--for", bundle, "--schedule", "5", *end), "depth 5")
    fails(run("program", made, "--for", bundle, "--schedule", "best", *end), "'best'")
    fails(run("program", made, "--steps", 0, *end), "0 steps", "at least 1")
    fails(run("program", made, "--steps", 5, "-o", "p.txt"), "p.txt", ".json")
    fails(run("program", made, "--steps", 5, "-o", "none/p.json"), "none/p.json", "exists")
    DDIMScheduler(**NETWORK).save_pretrained(tmp_path / "clips")
    fails(run("program", "clips", "--steps", 5, *end), "clip_sample=True", "native solver")
    (tmp_path / "x.json").write_text("{}")
    fails(run("program", "x.json", "--steps", 5, *end), "_class_name = None")
    assert not (tmp_path / "p.json").exists()


def test_without_diffusers_the_extra_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = run("program", made, "--steps", 5, "-o", tmp_path / "p.json")
    fails(result, "no package diffusers", "pip install 'eecompile[diffusers]'")


def test_inspect_shows_a_program(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "program.json"
    run("program", config(tmp_path), "--steps", 30, "-o", output)
    status, out, _ = run("inspect", output)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for word in ("DPMSolverMultistep", "evaluations  30", "cosine betas", "v_prediction", "open"):
        assert word in out
    assert "--all shows all" in out
    first, last = read(output).steps[0], read(output).steps[-1]
    assert f"{first.timestep:g}" in out
    assert f"{last.timestep:g}" in out
    middle = f" {read(output).steps[15].timestep:g} "
    assert middle not in out
    assert middle in run("inspect", output, "--all")[1]
    assert json.loads(run("inspect", output, "--json")[1]) == json.loads(output.read_text())


def test_inspect_shows_what_sampling_would_run(
    run: Run, bundle: Path, engine_sets: dict[str, Path]
) -> None:
    for folder in (bundle, engine_sets["chained"]):
        status, out, _ = run("inspect", folder, "--program", "--steps", 4, "--schedule", "12,3")
        assert status == 0
        assert "62% of the blocks" in out
        assert "▂▂██" in out
        assert max(map(len, out.splitlines())) <= 80
    fails(run("inspect", bundle, "--program", "--solver", "leap"), "solver 'leap'")
    fails(run("inspect", bundle, "--steps", 4), "without --program")


def test_inspect_of_what_is_no_program(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"steps": 3}')
    fails(run("inspect", other), "no program")
    fails(run("inspect", tmp_path / "none.json"), "no manifest.json")
    fails(run("inspect", other, "--program"), "which is a file")


def test_sums_are_written_as_one_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    updates = (
        Update("data", (Term("state", 1.25), Term("output", -1.0)), clip=(-1.0, 1.0)),
        Update("state", (Term("data", -0.98), Term("state", 1.0), Term("noise", 0.1))),
    )
    step = Step(Exit(3), 999.0, (Term("state", 0.5),), updates, time=700.0)
    Console(width=120).print(
        rendered(*program_parts(Program(solver="x", initial=2.0, steps=(step,) * 3)))
    )
    out = capsys.readouterr().out
    assert "data = clip(1.25 state - output; -1 to 1)" in out
    assert "state = -0.98 data + state + 0.1 noise" in out
    assert "0.5 state" in out
    assert "drawn in 3 of 3 steps" in out
    assert "normal noise times 2" in out
    assert "700" in out
