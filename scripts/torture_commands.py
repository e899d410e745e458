"""The commands that kills, disks and surroundings are tried on: a tiny network, seconds each.

``python torture_commands.py REPORT MOMENT WHOM COMMAND ...`` runs one and counts its changes to
files; at the MOMENT-th it kills itself, alone or with its group. With 0 it writes their number.
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from filelock import FileLock
from results import ROOT
from torture_trial import Outcome

from eecompile.compare import read_report
from eecompile.evaluate.report import Evaluation
from eecompile.programs.schedule import ExitSchedule
from eecompile.store import open_bundle, open_engine_set
from eecompile.store.files import form_bytes
from eecompile.tune import read_front

TIMEOUT = 300  # seconds, far more than any command takes
NAME = re.compile(r"error: found .+; expected .+; \w.*\S\.", re.DOTALL)
_BEGUN = ".tune.partial"  # what tune has measured so far, in its folder
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}


class Command(NamedTuple):
    """A command, which writes one thing.

    Attributes:
        arguments: of eecompile, or a script; ``{given}`` and ``{out}`` stand for folders.
        output: what it writes, in ``{out}``.
        same: a digest of what may not differ in the output.
        older: other arguments, of an older result that this one replaces; () for none.
    """

    arguments: tuple[str, ...]
    output: str
    same: Callable[[Path], str]
    older: tuple[str, ...] = ()


class Reference(msgspec.Struct):
    """What a command does undisturbed.

    Attributes:
        same: see :class:`Command`; ``older``, of the older result.
        seconds: taken.
        changes: to files, that Python made.
        names: of what there is in the folder of outputs afterwards.
        bytes: of all that.
    """

    same: str
    older: str
    seconds: float
    changes: int
    names: list[str]
    bytes: int


class Ended(NamedTuple):
    """How a process ended; its output as text, None where that was closed."""

    status: int
    out: str
    err: str

    @property
    def typed(self) -> bool:
        """Whether it failed with a sentence, as it should."""
        return self.status == 1 and bool(NAME.search(" ".join(self.err.split())))

    @property
    def said(self) -> str:
        """The last words."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"status {self.status}: {' / '.join(lines[-3:])[-400:]}"


def _bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bundle(folder: Path) -> str:
    """Its own, of all files."""
    return open_bundle(folder).digest


def _engine_set(folder: Path) -> str:
    """Of engines and the samples that they give."""
    from eecompile import Sampler

    with Sampler.open(folder, threads=1) as sampler:
        return _plans(folder) + _digest(sampler.sample(2, steps=2, seed=0).tobytes())


def _plans(folder: Path) -> str:
    """Of what engines are built from: they are not written the same each time."""
    found = open_engine_set(folder)
    return _digest([found.fingerprint, [segment.key for segment in found.segments]])


def _front(folder: Path) -> str:
    """Of what was asked of a tuning: what it finds depends on times."""
    found = read_front(folder / "front.json")
    for point in found.points:
        if point.kind == "found":
            ExitSchedule.read(folder / f"{point.name}.json")
    return _digest(found.settings)


def _report(folder: Path) -> str:
    """Of the outputs that a comparison saw, without times."""
    found = read_report(folder / "report.json")
    exits = [[each.name, [[e.depth, e.errors] for e in each.exits]] for each in found.candidates]
    return _digest([found.settings, exits])


def _figures(path: Path) -> str:
    return _digest(msgspec.json.decode(path.read_bytes(), type=Evaluation))


def _tensors(path: Path) -> str:
    from safetensors.numpy import load_file

    found = load_file(path)
    return _digest([[name, value.tobytes()] for name, value in sorted(found.items())])


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def _build(target: str) -> tuple[str, ...]:
    return "build", "{given}/bundle", "--target", target, "-o", "{out}/set"


def _target(name: str) -> str:
    return str(ROOT / "engines" / f"{name}.toml")


NO_RESULT = "no result"
_SAMPLE = ("sample", "{given}/cpu", "-n", "4", "--steps", "4", "-o", "{out}/samples.npy")
_EVALUATE = (
    *("evaluate", "{given}/cpu", "--reference", "{given}/real.npy", "--steps", "4"),
    *("--features", "{given}/features.onnx", "-n", "24", "--batch", "8"),
    *("--work", "{out}/work", "-o", "{out}/figures.json"),
)
_COMPARE = (
    *("compare", "{given}/bundle", "--engines", "{given}/cpu", "--batch", "1", "--rounds", "2"),
    *("--steps", "2", "--schedule", "full", "-o", "{out}/compared"),
)
_TUNE = (
    *("tune", "{given}/cpu", "--use", "exits", "--steps", "3", "--seeds", "2", "--held-out", "2"),
    *("--minutes", "0.01", "--batch", "1", "--force", "-o", "{out}/tuned"),
)
_EXPORT = ("export", "{given}/recipe/recipe.toml", "-o", "{out}/bundle")
_BUILD = _build(_target("cpu-chained"))
COMMANDS = {
    "sample": Command(_SAMPLE, "samples.npy", _bytes, (*_SAMPLE, "--seed", "1")),
    "build": Command(
        _build(_target("cpu-chained")), "set", _engine_set, _build("{given}/cpu.toml")
    ),
    "evaluate": Command(_EVALUATE, "figures.json", _figures, (*_EVALUATE, "--seed", "1")),
    "export": Command(_EXPORT, "bundle", _bundle, (*_EXPORT, "--exits", "1,4")),
    "build for OpenVINO": Command(_build(_target("cpu-openvino")), "set", _engine_set),
    "build for TensorRT-RTX": Command(_build("{given}/rtx.toml"), "set", _plans),
    "tune": Command(_TUNE, "tuned", _front, (*_TUNE, "--seed", "1")),
    "compare": Command(_COMPARE, "compared", _report, (*_COMPARE, "--seed", "1")),
    "fine-tune": Command(
        (
            *(str(ROOT / "scripts" / "finetune.py"), "{given}/recipe/recipe.toml"),
            *("--schedule", "fast", "--run", "{out}/run", "--data", "{given}/data"),
            *("--steps", "8", "--save-every", "2", "--batch", "16", "--no-compile"),
            *("--device", "cpu"),
        ),
        "run/weights.safetensors",
        _tensors,
    ),
}


def prepare(work: Path) -> None:
    """What all commands are given, in a folder beside those of the parts; made once a version."""
    given, made = given_of(work), given_of(work) / "made"
    sources = sorted((ROOT / "eecompile").rglob("*.py"))
    version = _digest([source.read_bytes() for source in sources])
    with FileLock(given.parent / "given.lock"):
        if made.exists():
            if made.read_text() == version:
                return
            for old in (given, given.parent / "undisturbed"):
                shutil.rmtree(old, ignore_errors=True)
        given.mkdir(parents=True, exist_ok=True)
        if not (given / "recipe" / "recipe.toml").exists():
            from bundles import random_recipe

            random_recipe("tiny", given / "recipe")
        for name, command in (
            ("bundle", ("export", "recipe/recipe.toml", "-o", "bundle")),
            ("cpu", ("build", "bundle", "--target", _target("cpu-chained"), "-o", "cpu")),
        ):
            if not (given / name).exists():
                ended = run(command, given)
                assert ended.status == 0, ended.said
        for name, source in (("cpu", "cpu-chained"), ("rtx", "rtx-fp32")):
            text = (ROOT / "engines" / f"{source}.toml").read_text()
            if name == "rtx":  # a plan an exit takes less time than one a part
                text = text.replace('"chained"', '"per_exit"')
            (given / f"{name}.toml").write_text(re.sub(r"max = \d+", "max = 16", text))
        _write_data(given)
        made.write_text(version)


def given_of(work: Path) -> Path:
    """The folder of what commands are given."""
    return work.parent / "given"


def _write_data(given: Path) -> None:
    """Pictures to train with, a network that sees features, and what it sees."""
    import gzip

    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draws = np.random.default_rng(0)
    (given / "data").mkdir(exist_ok=True)
    for name, content in (
        ("images-idx3", draws.integers(0, 256, (96, 28, 28), np.uint8)),
        ("labels-idx1", draws.integers(0, 10, 96, np.uint8)),
    ):
        header = bytes((0, 0, 8, content.ndim)) + np.array(content.shape, ">u4").tobytes()
        path = given / "data" / f"train-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + content.tobytes()))
    weights = numpy_helper.from_array(draws.normal(size=(784, 16)).astype(np.float32), "weights")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph(nodes, "features", [x], [y], [weights])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), given / "features.onnx")
    np.save(given / "real.npy", draws.uniform(-1, 1, (64, 1, 28, 28)).astype(np.float32))


def line_of(command: Sequence[str], given: Path, out: Path) -> list[str]:
    """A command's arguments with its folders."""
    return [each.format(given=given, out=out) for each in command]


def environment(**changes: str) -> dict[str, str]:
    """Of a command: one thread, and the package as it is here."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
    return {**os.environ, **fixed, **changes}


def python(line: Sequence[str], *options: str) -> list[str]:
    """The whole command: of a script, or of eecompile."""
    module = [] if line[0].endswith(".py") else ["-m", "eecompile"]
    return [sys.executable, *options, *module, *line]


def run(
    line: Sequence[str],
    folder: Path,
    *,
    before: Sequence[str] = (),
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    during: Callable[[subprocess.Popen[bytes]], object] | None = None,
    **started: Any,
) -> Ended:
    """Run a command to its end, or to a time at which it hangs; ``during`` it, do something."""
    command = [*before, *python(line, *options)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | started
    with subprocess.Popen(
        command, cwd=folder, env=env or environment(), start_new_session=True, **streams
    ) as process:
        if during:
            during(process)
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            err = (err or b"") + b"\nit hangs"
    texts = ((each or b"").decode(errors="replace") for each in (out, err))
    return Ended(process.returncode, *texts)


def counting(
    line: Sequence[str], folder: Path, report: Path, moment: int = 0, *, alone: bool = False
) -> subprocess.Popen[bytes]:
    """A command that counts its changes to files, and kills itself at one of them."""
    how = [str(report), str(moment), "alone" if alone else "group"]
    return subprocess.Popen(
        [sys.executable, __file__, *how, *line],
        cwd=folder,
        env=environment(TMPDIR=str(report.parent)),
        stdout=subprocess.DEVNULL,
        stderr=(report.parent / "stderr").open("wb"),
        start_new_session=True,
    )


def reference(work: Path, name: str) -> Reference:
    """What a command does undisturbed, found out once; its older result stays beside that."""
    place = given_of(work).parent / "undisturbed" / name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        if (place / "reference.json").exists():
            return msgspec.json.decode((place / "reference.json").read_bytes(), type=Reference)
        command, given = COMMANDS[name], given_of(work)
        for out in (place / "older", place / "out"):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
        older = ""
        if command.older:
            ended = run(line_of(command.older, given, place / "older"), place)
            assert ended.status == 0, ended.said
            older = command.same(place / "older" / command.output)
        began = time.perf_counter()
        line = line_of(command.arguments, given, place / "out")
        status = counting(line, place, place / "changes").wait(TIMEOUT)
        assert status == 0, (place / "stderr").read_text()
        made = Reference(
            same=command.same(place / "out" / command.output),
            older=older,
            seconds=time.perf_counter() - began,
            changes=int((place / "changes").read_text()),
            names=sorted(path.name for path in (place / "out").iterdir()),
            bytes=sum(path.stat().st_size for path in (place / "out").rglob("*")),
        )
        (place / "reference.json").write_bytes(form_bytes(made))
        return made


def lay_older(work: Path, name: str, out: Path) -> None:
    """Put the older result of a command where its output will be."""
    source = given_of(work).parent / "undisturbed" / name.replace(" ", "-") / "older"
    shutil.copytree(source, out, dirs_exist_ok=True)


def state(command: Command, out: Path, known: Mapping[str, str]) -> tuple[str, str]:
    """What is at the output's place, of what is ``known`` by digest; and what is wrong there."""
    path = out / command.output
    if not os.path.lexists(path) or (path.is_dir() and set(os.listdir(path)) == {_BEGUN}):  # noqa: PTH208
        return "nothing", ""
    try:
        found = command.same(path)
    except Exception as error:
        return "damaged", f"{command.output} is damaged: {error}"
    named = next((name for name, digest in known.items() if digest == found), "")
    return named or "another", "" if named else f"{command.output} is another"


def litter(out: Path, expected: Reference) -> str:
    """What is left that an undisturbed command does not leave."""
    left = [path.name for path in out.iterdir() if path.name not in expected.names]
    left += [str(p.relative_to(out)) for p in out.rglob(".*") if p.parent != out]
    return f"left behind: {', '.join(sorted(left))}" if left else ""


class Trial:
    """One trial: a folder of its own, a command, and how it ended."""

    def __init__(self, work: Path, number: int, name: str, kind: str) -> None:
        self.work, self.number, self.name, self.kind = work, number, name, kind
        self.command, self.expected = COMMANDS[name], reference(work, name)
        self.given, self.folder = given_of(work), work / f"{number:05d}"
        self.began = time.perf_counter()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.out = self.folder / "out"
        self.out.mkdir(parents=True)
        (self.folder / "tmp").mkdir()

    @property
    def known(self) -> dict[str, str]:
        """Digests of what may be there."""
        older = {"the older": self.expected.older} if self.command.older else {}
        return {"the new": self.expected.same, **older}

    @property
    def line(self) -> list[str]:
        """The command's arguments."""
        return line_of(self.command.arguments, self.given, self.out)

    def lay_older(self) -> None:
        """See :func:`lay_older`."""
        lay_older(self.work, self.name, self.out)

    def again(self) -> str:
        """Run the command once more, undisturbed; what is wrong then."""
        env = environment(TMPDIR=str(self.folder / "tmp"))
        ended = run(self.line, self.folder, env=env)
        if ended.status:
            return f"the next run fails, {ended.said}"
        return self.judged(ended)[1]

    def judged(self, ended: Ended) -> tuple[str, str]:
        """How a command ended, and what is wrong with that: its result, or that it has none."""
        if "Traceback" in ended.err or "hangs" in ended.err:
            return "a traceback", ended.said
        if ended.status == 0:
            found, fault = state(self.command, self.out, {"the new": self.expected.same})
            fault = fault or (NO_RESULT if found == "nothing" else "")
            return "the same result", fault or litter(self.out, self.expected)
        if ended.typed:
            return "refused", state(self.command, self.out, self.known)[1]
        return "crashed" if ended.status < 0 else "failed", ended.said

    def end(self, ended: str, fault: str) -> Outcome:
        """The outcome; what was made stays only if there is a fault."""
        if not fault:
            shutil.rmtree(self.folder, ignore_errors=True)
        taken = time.perf_counter() - self.began
        return Outcome(self.number, f"{self.name}, {self.kind}", ended, fault, round(taken, 2))


def _run_counting(report: Path, moment: int, whom: str, line: list[str]) -> None:
    """Run a command here; see the top of this file."""
    changes = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in _CHANGES or (event == "open" and len(args) > 2 and args[2] & writes):
            changes += 1
            if changes == moment:
                (os.killpg if whom == "group" else os.kill)(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        if line[0].endswith(".py"):
            sys.argv = line
            sys.path[0] = str(Path(line[0]).parent)
            runpy.run_path(line[0], run_name="__main__")
        else:
            sys.argv = ["eecompile", *line]
            runpy.run_module("eecompile", run_name="__main__", alter_sys=True)
    finally:
        if not moment:
            report.write_text(str(changes))


if __name__ == "__main__":
    _run_counting(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
