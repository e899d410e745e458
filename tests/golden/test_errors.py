"""What bad input gets: one golden file of all messages."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import eecompile
from eecompile import (
    Condition,
    EecompileError,
    ExitSchedule,
    FakeEngine,
    Interface,
    Process,
    Program,
    Sampler,
    SampleRequest,
    State,
)
from eecompile.__main__ import main
from eecompile.programs.choice import Exit, Forecast
from tests.conftest import RECIPE, ROOT
from tests.golden.adapters import interface_of, write_folder
from tests.golden.stored import check
from tests.golden.test_reports import REPORTS

SENTENCE = re.compile(r"found .+; expected .+; \w.*\S\.")
# In a folder that holds what the fixture `place` puts there.
COMMANDS = """
    sample engines -o out.npy --solver eulers
    sample engines -o out.npy --solver ddim:eta=big
    sample engines -o out.npy --solver flow-heun
    sample engines -o out.npy --steps 0
    sample engines -o out.npy --schedule fastest
    sample engines -o out.npy --schedule 12,5
    sample engines -o out.npy --schedule 12,0
    sample engines -o out.npy --schedule 12,again
    sample engines -o out.npy --schedule 12,again@gpu,6
    sample engines -o out.npy --schedule 12/6-9,12
    sample engines -o out.npy --schedule 12/6-9:1,12
    sample engines -o out.npy --schedule 12;9
    sample engines -o out.npy --schedule 12@,6
    sample engines -o out.npy --schedule 12@gpu,6
    sample engines -o out.npy --schedule 12:2,3
    sample engines -o out.npy --schedule 12:0.5,6:0.2,3
    sample engines -o out.npy --schedule none.json
    sample engines -o out.npy --schedule program.json
    sample engines -o out.npy --set label=12
    sample engines -o out.npy --set class=1
    sample engines -o out.npy --set label=boot
    sample engines -o out.npy --set label=1 --set label=2
    sample engines -o out.npy --set label=[[1,2],[3]]
    sample engines -o out.npy --set label=[1,2,3] -n 2
    sample engines -o out.npy --set label=@none.npy
    sample engines -o out.npy --null class=1 --guidance 2
    sample engines -o out.npy --guidance nan
    sample engines -o out.npy --guidance-interval 5
    sample engines -o out.npy --guidance-interval 800,100
    sample engines -o out.npy --shape 1,14,14
    sample engines -o out.npy --shape wide
    sample engines -o out.npy --seed -1
    sample engines -o out.npy -n 0
    sample engines -o out.jpg
    sample engines -o no/such/out.png
    sample engines -o out.npy --program program.json --solver ddim
    sample engines -o out.npy --program program.json --steps 3
    sample engines -o out.npy --program words.json
    sample engines -o out.npy --program unwritten.json
    sample bundle -o out.npy
    sample nowhere -o out.npy
    export nowhere.toml
    export unknown-key.toml
    export unknown-table.toml
    export wrong-depth.toml
    export wrong-betas.toml
    export wrong-default.toml
    export descending.toml
    build nowhere
    build engines
    build bundle --target nowhere.toml
    build bundle --target wrong-backend.toml
    build bundle --target wrong-batch.toml
    build altered
    build incomplete
    build edited
    build truncated
    build older
    build newer
    compare bundle -o report
    compare bundle -o report --engines engines
    compare bundle -o report --engines engines --max-slowdown 5%
    compare bundle -o report --engines engines --baseline words.json
    compare bundle -o report --engines engines --baseline other.json
    compare bundle -o report --engines engines --baseline report.json --max-slowdown fast
    compare bundle -o report --engines engines --rounds 0
    compare bundle -o report --engines engines --batch one
    compare bundle -o report --peer keras
    compare bundle -o report --engines engines --set label=12
    compare bundle -o report --engines engines --set class=1
    compare bundle -o report --engines engines --set label=[[1,2],[3]]
    compare bundle -o report --engines engines --set label=[1,2,3] --batch 1,2
    compare bundle -o report --engines engines --guidance-interval 800,100
    compare bundle -o report --engines engines --shape 1,14,14
    compare bundle -o report --engines engines --seed -1
    compare bundle -o taken --engines engines
    tune engines -o schedules --budget 2
    tune engines -o schedules --seeds 1
    tune engines -o schedules --batch 100000
    tune engines -o schedules --set label=12
    tune engines -o schedules --set class=1
    tune engines -o schedules --set label=[[1,2],[3]]
    tune engines -o schedules --set label=[1,2,3,4,5] --seeds 2 --held-out 2
    tune engines -o schedules --guidance-interval 800,100
    tune engines -o schedules --shape 1,14,14
    tune engines -o schedules --seed -1
    tune engines -o taken
    tune engines -o tuned
    program ddimm -o out.json
    program ddim -o out.json --steps 5
    program words.json -o out.json
    program words.json -o out.json --steps 5 --schedule full
    program ddim -o out.txt --for bundle
    program ddim -o out.json --for bundle --schedule 5
    inspect nowhere
    inspect words.json
    inspect bundle --steps 4
    inspect program.json --program
    inspect stranger
    inspect bundle --check
    inspect engines --check --limit 0
    inspect engines --limit 5
    inspect program.json --check
    inspect engines --signed-by key.pub
    inspect engines --signed-by words.json
    sign nowhere --key key.pem
    sign engines --key words.json
    build bundle --sign words.json
    evaluate --reference real.npy
    evaluate --reference real.npy --schedule full
    evaluate --reference real.npy engines -n 1
    evaluate --reference real.npy engines --set label=12
    evaluate --reference real.npy engines --set class=1
    evaluate --reference real.npy engines --set label=[[1,2],[3]]
    evaluate --reference real.npy engines --set label=@labels.npy -n 20
    evaluate --reference real.npy engines --guidance-interval 800,100
    evaluate --reference real.npy engines --shape 1,14,14
    evaluate --reference real.npy engines --seed -1
    evaluate --reference real.npy engines -o out.txt
    evaluate --reference real.npy --samples nowhere.npy
"""


def altered_recipe(folder: Path, name: str, old: str, new: str) -> None:
    text = RECIPE.read_text()
    assert old in text
    (folder / f"{name}.toml").write_text(text.replace(old, new))


def damaged(folder: Path) -> None:
    """Copies of the bundle, each with another damage."""
    for name in ("altered", "incomplete", "edited", "truncated", "older", "newer", "stranger"):
        shutil.copytree(folder / "bundle", folder / name)
    (folder / "altered" / "file.bin").write_bytes(b"abd")
    (folder / "incomplete" / "file.bin").unlink()
    text = (folder / "bundle" / "manifest.json").read_text()
    number = json.loads(text)["format"]
    for name, other in (
        ("edited", text.replace('"timesteps": 1000', '"timesteps": 999')),
        ("truncated", text[:200]),
        ("older", text.replace(f'"format": {number}', '"format": 1')),
        ("newer", text.replace(f'"format": {number}', '"format": 99')),
        ("stranger", text.replace('"kind": "bundle"', '"kind": "cake"')),
    ):
        assert other != text
        (folder / name / "manifest.json").write_text(other)


def write_keys(folder: Path) -> None:
    """``key.pem``, and ``key.pub``, which goes with it."""
    key, encoding = Ed25519PrivateKey.from_private_bytes(bytes(32)), Encoding.PEM
    private = key.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)
    public = key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands find: folders, good and damaged, recipes, and files of all kinds."""
    folder = tmp_path_factory.mktemp("errors")
    write_folder(REPORTS / "bundle.json", folder / "bundle")
    write_folder(REPORTS / "engine-set.json", folder / "engines")
    damaged(folder)
    write_keys(folder)
    for name, old, new in (
        ("unknown-key", "checkpoint =", "chekpoint ="),
        ("unknown-table", "[sampling]", "[samplin]"),
        ("wrong-depth", "[schedules]", "[schedules]\nodd = [12, 5]"),
        ("wrong-betas", 'betas = "cosine"', 'betas = "cubic"'),
        ("wrong-default", 'schedule = "half"', 'schedule = "best"'),
        ("descending", "exits = [3, 6, 9, 12]", "exits = [12, 9]"),
    ):
        altered_recipe(folder, name, old, new)
    target = (ROOT / "engines" / "cpu.toml").read_text()
    (folder / "wrong-backend.toml").write_text(target.replace("onnxruntime", "onnxruntme"))
    (folder / "wrong-batch.toml").write_text(target.replace("min = 1", "min = 32"))
    with fake() as sampler:
        program = sampler.program("ddim", 2)
    (folder / "program.json").write_bytes(program.to_json())
    (folder / "words.json").write_text('{"steps": 3}')
    report = (REPORTS / "report.json").read_text()
    (folder / "report.json").write_text(report)
    (folder / "other.json").write_text(report.replace('"fashion-dit"', '"other-dit"'))
    np.save(folder / "labels.npy", np.zeros(30, np.int64))
    np.save(folder / "real.npy", np.zeros((4, 1, 28, 28), np.float32))
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").touch()
    (folder / "tuned").mkdir()
    shutil.copy(REPORTS / "front.json", folder / "tuned")
    return folder


def fake(outputs: float = 0.5) -> Sampler:
    """A sampler of the shipped network's interface whose outputs are all the same number."""
    interface = interface_of(REPORTS / "engine-set.json")
    engine = FakeEngine(interface.exits, lambda depth, x, t, given: np.full_like(x, outputs))
    return Sampler(engine, interface)


@pytest.fixture
def said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Runs a command that must fail with one sentence, which is returned."""
    opened = Sampler.open

    def open_(cls: type[Sampler], path: str | PathLike[str], *more: Any, **options: Any) -> Sampler:
        return fake() if str(path) == "engines" else opened(path, *more, **options)

    monkeypatch.chdir(place)
    monkeypatch.setattr(eecompile.Sampler, "open", classmethod(open_))

    def call(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["eecompile", *shlex.split(command)])
        with pytest.raises(SystemExit) as caught:
            main()
        error = capsys.readouterr().err
        assert caught.value.code == 1, f"{command}: {error}"
        assert error.count("error: ") == 1, f"{command}: {error}"
        return error.partition("error: ")[2].rstrip("\n")

    return call


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls of the Python API that must fail, each under the name of what is wrong."""
    interface = interface_of(REPORTS / "engine-set.json")
    sampler, closed = fake(), fake()
    closed.close()
    free = Interface(name="free", exits=(3,), state=State(shape=(2, 2)))
    required = {"text": Condition(dtype="float32", shape=(4,))}
    texts = Interface(name="texts", exits=(3,), state=State(shape=(2, 2)), conditions=required)
    unguided = Sampler(FakeEngine((3,), lambda depth, x, t, given: x), free)
    demanding = Sampler(FakeEngine((3,), lambda depth, x, t, given: x), texts)
    program = sampler.program("ddim", 2)
    flow = Process(family="flow", prediction="flow")
    for_flow = Interface(name="flow", exits=(3,), state=State(shape=(2, 2)), process=flow)
    foreign = Sampler(FakeEngine((3,), lambda depth, x, t, given: x), for_flow).program(
        "euler", 2, 3
    )
    given: Any = {"steps": 2}
    yield "an unknown solver", lambda: sampler.program("leap")
    yield "an unknown option of a solver", lambda: sampler.program("ddim:speed=2")
    yield "steps that are no number", lambda: sampler.program("ddim", 2.5)
    yield "too many steps", lambda: sampler.program("ddim", 5000)
    yield "an unknown schedule", lambda: sampler.sample(1, schedule="best")
    yield "a depth that is no exit", lambda: sampler.sample(1, schedule=[12, 5])
    yield "a depth that is no number", lambda: sampler.schedule([12, 2.5])
    yield "too few thresholds", lambda: ExitSchedule((12, 3))
    yield "a negative depth", lambda: ExitSchedule((-3, 12), (0.5,))
    yield "depth 0", lambda: ExitSchedule((12, 0, 6), (0.2, 0.5))
    yield "nothing to use again", lambda: ExitSchedule((12, Forecast()), (0.5,))
    yield "a span of a network without cuts", lambda: sampler.schedule(["12/6-9:1", 12])
    yield "a span that descends", lambda: ExitSchedule.parse("12/9-6:1,12")
    yield "a span to begin with", lambda: ExitSchedule.parse("12,12/6-9:0")
    yield "a text in place of choices", lambda: ExitSchedule.from_slices("12")
    yield "no schedule", lambda: ExitSchedule.parse("deep")
    yield "no samples", lambda: sampler.sample(0)
    yield "half a sample", lambda: sampler.sample(1.5)
    yield "a negative seed", lambda: sampler.sample(1, seed=-1)
    yield "a negative index", lambda: sampler.sample(1, first=-1)
    yield "an unknown condition", lambda: sampler.sample(1, colour=3)
    yield "a condition out of range", lambda: sampler.sample(1, label=11)
    yield "a condition of another kind", lambda: sampler.sample(1, label=1.5)
    yield "a condition of another shape", lambda: sampler.sample(2, label=[1, 2, 3])
    yield "a missing condition", lambda: demanding.sample(1, steps=1, schedule=3)
    yield (
        "a condition that is not finite",
        lambda: demanding.sample(1, schedule=3, text=[1, 2, 3, np.nan]),
    )
    yield (
        "conditions that are no mapping",
        lambda: sampler.check(SampleRequest(conditions=[3])),
    )
    yield "a request of another type", lambda: sampler.sample_requests([3])
    yield "another shape", lambda: sampler.sample(1, shape=(1, 14, 14))
    yield "guidance without conditions", lambda: unguided.sample(1, schedule=3, guidance=2)
    yield (
        "guidance without a null value",
        lambda: demanding.sample(1, schedule=3, guidance=2, text=[0, 0, 0, 0]),
    )
    yield "guidance of another shape", lambda: sampler.sample(3, guidance=[1, 2])
    yield "a guidance interval that descends", lambda: sampler.sample(1, guidance_interval=(9, 2))
    yield "a program and steps", lambda: sampler.sample(1, solver=program, steps=3)
    yield "a program for another process", lambda: sampler.sample(1, solver=foreign)
    yield "a program without steps", lambda: Program(solver="x", initial=1.0, steps=())
    yield "JSON that is no program", lambda: Program.from_json(b'{"solver": "x"}')
    yield "a closed sampler", lambda: closed.sample(1, **given)
    yield "outputs that are not finite", lambda: fake(np.nan).sample(1, **given)
    yield "a process without timesteps", lambda: Process(timesteps=0)
    yield "a process that predicts otherwise", lambda: Process(prediction="flow")
    yield "a default out of range", lambda: Condition(dtype="int64", range=(0, 9), default=11)
    yield "a range that descends", lambda: State(shape=(2, 2), range=(1, -1))
    yield (
        "engines that are not open",
        lambda: Sampler(FakeEngine((3, 12), lambda depth, x, t, given: x), interface).sample(
            1, schedule=ExitSchedule((Exit(12, "gpu"),)), **given
        ),
    )


def test_all_messages(said: Callable[[str], str], place: Path) -> None:
    lines = []
    before = sorted(path.name for path in place.iterdir())
    for command in map(str.strip, COMMANDS.strip().splitlines()):
        message = said(command)
        assert SENTENCE.fullmatch(message), f"{command}: {message}"
        lines += [f"eecompile {command}", f"    {message}"]
    assert sorted(path.name for path in place.iterdir()) == before
    for name, call in calls():
        with pytest.raises(EecompileError) as caught:
            call()
        error = caught.value
        assert all((error.found, error.expected, error.remedy)), name
        whole = f"found {error.found}; expected {error.expected}; {error.remedy}."
        assert str(error) == whole
        lines += [name, f"    {type(error).__name__}: {whole}"]
    check("errors.txt", "\n".join(lines) + "\n")
