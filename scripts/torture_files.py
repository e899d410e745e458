"""Trials with broken files: each ends with the result of the whole file, or in a typed error.

A trial copies what a command reads, breaks one file of it, mostly writes the digests anew so that
the checks behind them are reached, and does in a process of its own what a user would do with it.
A result that differs is right only where the edit changed what the owner of the files decides:
numbers of weights and graphs, a process, a schedule, data.
"""

from __future__ import annotations

import ctypes
import gc
import gzip
import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image
from results import ROOT
from torture_edits import (
    Editor,
    copied,
    edited_bytes,
    edited_idx,
    edited_json,
    edited_npy,
    edited_onnx,
    edited_place,
    edited_safetensors,
    edited_toml,
    edited_zip,
    with_command,
)
from torture_trial import Ended, Outcome, clocked, forked

from eecompile import EecompileError
from eecompile.decoding import from_json
from eecompile.store.bundle import MANIFEST, records, write_manifest
from eecompile.store.manifest import BundleManifest, EngineManifest

TRIALS, SMALL = 10_000, 120
_SECONDS = 30.0  # of the processor; an action takes less than 6
_ROOM = 256 << 20  # bytes of memory that an action may take; whole files take less than 100 MiB
_LONG = 7_000  # characters of a message: three parts of 2,000, and a path
_FIRST = (MANIFEST, "front.json", "report.json")
_STRANGE = "strange.txt"
_REPORTS = ROOT / "tests" / "golden" / "reports"
_EDITORS: dict[str, Editor] = {
    ".json": edited_json,
    ".toml": edited_toml,
    ".onnx": edited_onnx,
    ".safetensors": edited_safetensors,
    ".npy": edited_npy,
    ".npz": edited_zip,
    ".pt": edited_zip,
    ".gz": edited_idx,
}
_PICKLES = (".npy", ".npz", ".pt", ".pth")
_OWNERS = {
    "interface": ("process", "sampling", "schedules", "state", "conditions"),
    "target": ("precision", "options", "threads"),
}
"""What of a manifest the owner of a network decides, with another result for another value."""
_RECIPE = """
name = "tiny"

[network]
factory = "eecompile.networks.dit:DiT"
checkpoint = "weights.safetensors"
exits = [1, 3]
cuts = [0, 1, 2, 3]

[network.options]
depth = 3
size = 8
channels = 1
patch = 4
width = 16
heads = 2
classes = 4

[process]
timesteps = 100
betas = "cosine"
prediction = "v_prediction"

[state]
shape = [1, 8, 8]
range = [-1, 1]

[conditions.label]
dtype = "int64"
range = [0, 3]
default = "cycle"
null = 4
names = ["one", "two", "three", "four"]

[schedules]
fast = [3, "again", 1, 3]
saving = [3, "3/1-2:1", 3, 3]

[schedules.table]
depths = [3, 1]
thresholds = [0.4]

[sampling]
solver = "ddim"
steps = 5
schedule = "fast"
guidance = 1.5
guidance_interval = [10, 90]
"""
_TARGET = """
name = "NAME"
backend = "BACKEND"
precision = "fp32"
layout = "LAYOUT"
threads = 1

[batch]
min = 1
opt = 2
max = 8

[tolerance]
absolute = 1e-4
relative = 1e-3

[options]
"""
_IDENTITY = "of these settings"
_TARGETS = {
    "chained": ("onnxruntime", "chained"),
    "exits": ("onnxruntime", "per_exit"),
    "vino": ("openvino", "per_exit"),
}


class Action(NamedTuple):
    """What a user does with files; where it ends well, a file of the box may hold its result.

    Attributes:
        name: for the table.
        run: in the box; ends by SystemExit, or raises.
        result: name of that file.
        writes: names of what it may write or replace, the result included.
        as_in: says which actions have the same result with whole files, whatever they read.
    """

    name: str
    run: Callable[[], object]
    result: str = ""
    writes: tuple[str, ...] = ()
    as_in: str = ""


class Subject(NamedTuple):
    """Files that are broken.

    Attributes:
        name: for the table.
        share: of the trials.
        broken: the name in the box of what is broken: a file, or a folder of which any is.
        files: what the box holds besides, by name in the base folder.
        actions: one is drawn.
        owned: whether all of its content is the owner's, so that other results are right.
        manifest: what it must hold; None for what has no manifest.
    """

    name: str
    share: int
    broken: str
    files: tuple[str, ...]
    actions: tuple[Action, ...]
    owned: bool = True
    manifest: Any = None


class Broken(NamedTuple):
    """What was broken.

    Attributes:
        told: what was done.
        kind: of that, for the table.
        meant: whether another result is right.
        renewed: whether a file that a library reads has a right digest.
        damaged: whether a digest is wrong, so that nothing may be shown.
    """

    told: str
    kind: str = ""
    meant: bool = False
    renewed: bool = False
    damaged: bool = False


def cli(*arguments: str) -> None:
    """Run a command of eecompile; returns where it ends well."""
    from eecompile.cli import main

    sys.argv = ["eecompile", *arguments]
    try:
        main()
    except SystemExit as error:
        if error.code:
            raise


def told(function: Callable[[], object]) -> None:
    """Call a function of the package; its errors are told as the command line tells them."""
    try:
        function()
    except EecompileError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _sampled(name: str, *more: str) -> Action:
    arguments = ("sample", name, "-o", "out.npy", "-n", "3", "--seed", "5", *more)
    return Action("sample", partial(cli, *arguments), "out.npy", ("out.npy",))


def _shown(name: str) -> tuple[Action, ...]:
    return (
        Action("inspect", partial(cli, "inspect", name)),
        Action("inspect --json", partial(cli, "inspect", name, "--json")),
    )


def _built(target: str) -> Action:
    def run() -> None:
        cli("build", "bundle", "--target", f"{target}.toml", "-o", "built")
        cli("sample", "built", "-o", "out.npy", "-n", "2", "--steps", "2")

    return Action(f"build {target}", run, "out.npy", ("out.npy", "built"), f"sets {target}")


def _rebuilt(target: str) -> Action:
    def run() -> None:
        cli("build", "bundle", "--target", f"{target}.toml", "-o", target)
        cli("sample", target, "-o", "out.npy", "-n", "2", "--steps", "2")

    return Action("build over it", run, "out.npy", ("out.npy", target), f"sets {target}")


def _compiled(name: str, *more: str) -> Action:
    arguments = ("program", "ddpm", "--for", name, "--steps", "4", "-o", "out.json", *more)
    return Action("program", partial(cli, *arguments), "out.json", ("out.json",))


def _evaluated(reference: str) -> Action:
    arguments = ("evaluate", "--reference", reference, "--samples", "made.npy", "-n", "20")
    more = ("--features", "features.onnx", "-o", "out.json", "--work", "work")
    return Action("evaluate", partial(cli, *arguments, *more), "out.json", ("out.json", "work"))


def _in_python(name: str) -> Action:
    """Sample with the class that applications use, in more ways than the command line has."""

    def run() -> None:
        from eecompile import Sampler

        with Sampler.open(name, threads=1) as sampler:
            kinds = ("full", "fast", 1) if sampler.engine.members else (None,)
            parts = [sampler.sample(2, schedule=kind, steps=3) for kind in kinds]
        np.save("out.npy", np.concatenate(parts))

    return Action("Sampler", partial(told, run), "out.npy", ("out.npy",))


def _loaded(checkpoint: str) -> Action:
    """Make the recipe's network, with a checkpoint."""

    def run() -> None:
        from eecompile.networks.load import load_network
        from eecompile.recipe import load_recipe

        given = Path(checkpoint) if checkpoint else None
        recipe = load_recipe(Path("recipe.toml"), checkpoint=given)
        state = load_network(recipe.network, Path()).state_dict()
        np.save("out.npy", np.concatenate([each.numpy().ravel() for each in state.values()]))

    return Action("load", partial(told, run), "out.npy", ("out.npy",), "networks")


def _exported(checkpoint: str = "") -> Action:
    more = ("--checkpoint", checkpoint) if checkpoint else ()

    def run() -> None:
        cli("export", "recipe.toml", "-o", "made", *more)
        cli("build", "made", "--target", "exits.toml", "-o", "built")
        cli("sample", "built", "-o", "out.npy", "-n", "2", "--steps", "2")

    return Action("export", run, "out.npy", ("made", "built", "out.npy"), "sets exits")


def _front() -> Action:
    """What ``tune --force`` does with a folder that holds a front."""

    def run() -> None:
        from eecompile.tune.output import check_output, write
        from eecompile.tune.report import read_front

        check_output(Path("front"), force=True)
        write(read_front(Path("whole/front.json")), Path("front"))
        shutil.copy("front/front.json", "out.json")

    return Action("tune --force", partial(told, run), "out.json", ("out.json", "front"))


def _front_shown() -> Action:
    def run() -> None:
        from eecompile.cli.console import show
        from eecompile.tune.page import page_of
        from eecompile.tune.report import read_front
        from eecompile.tune.tables import front_parts

        front = read_front(Path("front/front.json"))
        show(*front_parts(front))
        page_of(front)

    return Action("show", partial(told, run))


def _report() -> Action:
    """What ``compare`` does with a folder that holds a report."""

    def run() -> None:
        from eecompile.compare.comparison import ComparisonResult, check_output, write
        from eecompile.compare.report import read_report

        check_output(Path("report"))
        write(ComparisonResult(read_report(Path("whole/report.json")), {}), Path("report"))
        shutil.copy("report/report.json", "out.json")

    return Action("compare over it", partial(told, run), "out.json", ("out.json", "report"))


def _gate() -> Action:
    """What ``compare --baseline`` does with an older report."""

    def run() -> None:
        from eecompile.cli.console import show
        from eecompile.compare import gate
        from eecompile.compare.report import read_report
        from eecompile.compare.tables import comparison_parts

        older, new = (read_report(Path(f"{name}/report.json")) for name in ("report", "whole"))
        gate.check_network(older, new.network)
        show(*comparison_parts(older))
        found = gate.regressions(new, older, max_slowdown=0.05, max_error=1e-3)
        Path("out.json").write_text(json.dumps([found, gate.unjudged(new, older)]))

    return Action("compare --baseline", partial(told, run), "out.json", ("out.json",))


def _measured() -> Action:
    """What an interrupted tuning goes on from."""

    def run() -> None:
        from eecompile.tune.work import Work

        with Work(Path(".tune.partial"), _IDENTITY) as work:
            found = [work.recall(key, partial(_figures, key)) for key in ("one", "two", "three")]
        np.save("out.npy", np.concatenate(found))

    return Action("tune", partial(told, run), "out.npy", ("out.npy", ".tune.partial"))


def _figures(key: str) -> np.ndarray[Any, Any]:
    return np.arange(50.0) * len(key)


def _compare() -> Action:
    arguments = ("compare", "bundle", "--engines", "chained", "-o", "compared", "--batch", "1")
    return Action("compare", partial(cli, *arguments, "--rounds", "1"), "", ("compared",))


def _files_exported() -> Action:
    """Export ready-made ONNX files, and build them."""

    def run() -> None:
        cli("export", "files.toml", "-o", "made")
        cli("build", "made", "--target", "exits.toml", "-o", "built")
        cli("sample", "built", "-o", "out.npy", "-n", "2", "--steps", "2")

    return Action("export files", run, "out.npy", ("made", "built", "out.npy"), "files")


def _set(name: str, share: int) -> Subject:
    backend, layout = _TARGETS[name]
    actions = (
        *(_sampled(name), _sampled(name, "--schedule", "full"), _in_python(name), _rebuilt(name)),
        *(_compiled(name), *_shown(name)),
    )
    if layout == "chained":
        actions += (_sampled(name, "--schedule", "saving", "--steps", "4"), _compare())
    title, files = f"engine set, {backend}, {layout}", ("bundle", f"{name}.toml")
    return Subject(title, share, name, files, actions, manifest=EngineManifest)


def _checkpoint(title: str, name: str) -> Subject:
    files = ("recipe.toml", "weights.safetensors", "exits.toml")
    actions = (*(_loaded(name),) * 39, _exported(name))
    return Subject(f"checkpoint, {title}", 4, name, files, actions)


def _data(name: str, reference: str = "", **more: Any) -> Subject:
    given = tuple(sorted({"data.npy", "made.npy", "features.onnx"} - {name}))
    return Subject(f"data, {name}", 2, name, given, (_evaluated(reference or name),), **more)


SUBJECTS = (
    Subject(
        "bundle",
        14,
        "bundle",
        tuple(f"{name}.toml" for name in _TARGETS),
        (
            *(_built("chained"), _built("chained"), _built("exits"), _built("vino")),
            *(*_shown("bundle"), _compiled("bundle")),
        ),
        manifest=BundleManifest,
    ),
    *(_set("chained", 16), _set("exits", 8), _set("vino", 12)),
    Subject(
        "program",
        10,
        "program.json",
        ("chained",),
        (*_shown("program.json"), *(_sampled("chained", "--program", "program.json"),) * 2),
    ),
    Subject(
        "schedule",
        6,
        "schedule.json",
        ("chained",),
        (
            _sampled("chained", "--schedule", "schedule.json"),
            _compiled("chained", "--schedule", "schedule.json"),
        ),
    ),
    Subject(
        "recipe",
        10,
        "recipe.toml",
        ("weights.safetensors", "exits.toml"),
        (*(_loaded(""),) * 24, _exported()),
    ),
    Subject(
        "target",
        5,
        "chained.toml",
        ("bundle",),
        (
            _built("chained"),
            Action(
                "build --dry-run",
                partial(cli, "build", "bundle", "--target", "chained.toml", "-o", "b", "--dry-run"),
            ),
        ),
    ),
    _checkpoint("safetensors", "other.safetensors"),
    _checkpoint("torch.save", "weights.pt"),
    _checkpoint("old torch.save", "old.pth"),
    Subject(
        "ONNX files", 4, "files", ("files.toml", "data.npy", "exits.toml"), (_files_exported(),)
    ),
    Subject(
        "calibration", 1, "data.npy", ("files", "files.toml", "exits.toml"), (_files_exported(),)
    ),
    *(_data(name) for name in ("data.npy", "data.npz", "data.idx.gz", "pictures")),
    _data("made.npy", "data.npy"),
    _data("work", "data.npy", owned=False),
    Subject(
        "condition", 2, "label.npy", ("exits",), (_sampled("exits", "--set", "label=@label.npy"),)
    ),
    Subject("front", 5, "front", ("whole",), (_front(), _front(), _front_shown())),
    Subject("report", 4, "report", ("whole",), (_report(), _gate())),
    Subject("measured", 2, ".tune.partial", (), (_measured(),), owned=False),
    Subject(
        "scheduler",
        3,
        "scheduler_config.json",
        (),
        (
            Action(
                "program",
                partial(cli, "program", "scheduler_config.json", "--steps", "4", "-o", "out.json"),
                "out.json",
                ("out.json",),
            ),
        ),
    ),
)


def prepare(work: Path) -> None:
    """Make whole files of every kind, and what every action gives with them."""
    base = work / "base"
    if (base / "made").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    _warm()
    ended = forked(partial(_make_base, base), work, 600)
    if ended.status:
        sys.exit(f"error: the whole files could not be made\n{ended.err}")
    for subject in SUBJECTS:
        for action in dict.fromkeys(subject.actions):
            if _kept(base, subject, action).is_file():
                continue
            box = _laid(work / "whole", base, subject)
            ended = _acted(action, box, box.parent)
            if ended.status or ended.peak > _ROOM:
                sys.exit(f"error: {subject.name}, {action.name}: {ended.peak}\n{ended.err}")
            if action.result:
                shutil.copy(box / action.result, _kept(base, subject, action))
    shutil.rmtree(work / "whole")
    (base / "made").touch()


def trial(work: Path, number: int, seed: int) -> Outcome:
    """Break a file, use it, and judge."""
    _warm()
    began, draws = time.perf_counter(), Random(f"files {seed} {number}")
    subject = draws.choices(SUBJECTS, [each.share for each in SUBJECTS])[0]
    action = draws.choice(subject.actions)
    folder = work / "trials" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    box = _laid(folder, work / "base", subject)
    broken = _break(subject, box, draws)
    outside, before = box.parent / "outside", _state(folder, action.writes)
    with Watch(outside) as watch:
        ended = _acted(action, box, folder)
        opened = watch.opened()
    after = _state(folder, action.writes)
    fault, how = _touched(before, after), "refused"
    opened -= {f"kept-{MANIFEST}"}  # a manifest may be a link, as in caches of downloads
    if subject.manifest and opened:
        fault = fault or f"opened {', '.join(sorted(opened))} outside of its folder"
    if not fault:
        whole = _kept(work / "base", subject, action)
        how, fault = judged(action, broken, ended, box / action.result, whole)
    if fault:
        fault = f"{action.name}: {broken.told}: {fault}"[:700]
    else:
        shutil.rmtree(folder)
    name = f"{subject.name}: {broken.kind}" if broken.kind else subject.name
    return Outcome(number, name, how, fault, clocked(began))


_IMPORTED = (
    *("PIL.PngImagePlugin", "diffusers", "onnxruntime", "eecompile.cli", "eecompile.networks.dit"),
    *("eecompile.compare.comparison", "eecompile.compare.page", "eecompile.compiler.build"),
    *("eecompile.compiler.backends.onnxruntime", "eecompile.compiler.backends.openvino"),
    *("eecompile.compiler.export", "eecompile.compiler.schedulers.config"),
    *("eecompile.compiler.schedulers.program", "eecompile.evaluate.evaluation"),
    *("eecompile.runtime.engines.onnxruntime", "eecompile.tune.output", "eecompile.tune.page"),
)
_warmed: list[bool] = []


def _warm() -> None:
    """Import what actions use, so that their processes need not; nothing of it starts threads."""
    if _warmed:
        return
    os.environ.update(COLUMNS="200", LC_ALL="C.UTF-8", OMP_NUM_THREADS="1", NO_COLOR="1")
    for name in _IMPORTED:
        import_module(name)
    import_module("eecompile.runtime.engines.openvino").import_openvino()
    import_module("torch").set_num_threads(1)
    gc.collect()
    gc.freeze()
    _warmed.append(True)


def _acted(action: Action, box: Path, folder: Path) -> Ended:
    def run() -> None:
        os.chdir(box)
        action.run()

    return forked(run, folder, _SECONDS)


def _laid(folder: Path, base: Path, subject: Subject) -> Path:
    """A folder for one trial: a box with what the action reads, and what lies outside of it."""
    shutil.rmtree(folder, ignore_errors=True)
    box, outside = folder / "box", folder / "outside"
    box.mkdir(parents=True)
    outside.mkdir()
    for place in (folder, outside):
        (place / "precious.json").write_text('{"precious": true}')
    shutil.copy(base / "bundle" / "weights.safetensors", outside)
    for name in (subject.broken, *subject.files):
        copied(base / name, box)
    return box


def _kept(base: Path, subject: Subject, action: Action) -> Path:
    """Where the result of an action with whole files is kept."""
    index = list(dict.fromkeys(subject.actions)).index(action)
    return base / f"result of {action.as_in or f'{subject.name} {index}'}{action.result[3:]}"


def _break(subject: Subject, box: Path, draws: Random) -> Broken:
    """Break one file of a subject."""
    place = box / subject.broken
    whole_folder = place.is_dir()
    choices = sorted(p for p in place.rglob("*") if p.is_file()) if whole_folder else [place]
    if draws.random() < 0.5:  # most is in the manifest, the front, the report
        choices = [p for p in choices if p.name in _FIRST] or choices
    path = draws.choice(choices)
    if draws.random() < 0.05:
        done = edited_place(path, box.parent / "outside", draws, pipes=whole_folder)
        meant = subject.owned and not subject.manifest  # a folder of pictures may have fewer
        return Broken(f"{path.name}: {done}", "something else in its place", meant)
    if whole_folder and draws.random() < 0.03:
        (place / _STRANGE).write_text("somebody's")
        return Broken("a strange file in the folder", "a strange file")
    alike = [p for p in choices if p.suffix == path.suffix and p != path]
    if subject.manifest and alike and draws.random() < 0.1:
        return _exchanged(path, draws.choice(alike), subject.manifest)
    whole = path.read_bytes()
    editor = _EDITORS.get(path.suffix, edited_bytes)
    edit = (edited_bytes if draws.random() < 0.3 else editor)(whole, draws)
    if path.suffix in _PICKLES and draws.random() < 0.1:
        edit = with_command(whole, path.suffix)
    path.write_bytes(edit.data)
    told = f"{path.name}: {edit.told}"
    if not subject.manifest:
        return Broken(told, meant=subject.owned)
    inner = path.name if path.name == MANIFEST else path.suffix
    kind, named = subject.manifest, f"{inner}, new digests"
    if draws.random() < 0.15:
        damaged = whole != edit.data and not (inner == MANIFEST and _alike(whole, edit.data, kind))
        return Broken(told, f"{inner}, old digests", damaged=damaged)
    if path.name != MANIFEST:
        _renew(place, kind)
        return Broken(told, named, meant=True, renewed=True)
    meant = False
    with suppress(ValueError, EecompileError):  # what does not fit its form needs no digest
        manifest = from_json(edit.data, kind)
        write_manifest(place, manifest)
        meant = _owned(from_json(whole, kind), manifest)
    return Broken(told, named, meant=meant)


def _alike(whole: bytes, data: bytes, kind: Any) -> bool:
    """Whether two manifests say the same: spaces, defaults and spelling of numbers aside."""
    with suppress(ValueError, EecompileError):
        return bool(from_json(whole, kind) == from_json(data, kind))
    return False


def _exchanged(one: Path, other: Path, kind: Any) -> Broken:
    """Exchange two files of a folder: the names in graphs and manifests tell."""
    data = one.read_bytes(), other.read_bytes()
    other.write_bytes(data[0])
    one.write_bytes(data[1])
    _renew(one.parent, kind)
    told = f"{one.name} and {other.name} exchanged"
    return Broken(told, f"{one.suffix} exchanged, new digests", renewed=True)


def _renew(folder: Path, kind: Any) -> None:
    """Write the digests of files anew."""
    manifest = from_json((folder / MANIFEST).read_bytes(), kind)
    write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))


def _owned(whole: Any, manifest: Any) -> bool:
    """Whether manifests differ in what the owner of a network decides."""
    one, other = msgspec.to_builtins(whole), msgspec.to_builtins(manifest)
    return any(
        one[part].get(name) != other[part].get(name)
        for part, names in _OWNERS.items()
        if part in one and part in other
        for name in names
    )


def judged(
    action: Action, broken: Broken, ended: Ended, found: Path, whole: Path
) -> tuple[str, str]:
    """How an action ended, and what is wrong with that.

    Its result is at ``found``, that with whole files at ``whole``.
    """
    if ended.status is None:
        return "stopped", f"it took more than {_SECONDS:.0f} s"
    if ended.status < 0:
        if broken.renewed:
            return "the library died", ""
        return "died", f"signal {-ended.status}"
    if ended.peak > _ROOM:
        return "large", f"{ended.peak >> 20} MiB of memory"
    if ended.status == 1:
        return "refused", _wrong_message(ended)
    if ended.status:
        lines = ended.err.strip().splitlines()
        places = [line.rpartition("eecompile/")[2] for line in lines if line.startswith("  File")]
        where = next((place for place in reversed(places) if place[0] != " "), "")
        return "raised", f"status {ended.status}: {' '.join(lines[-1:])[:300]} ({where})"
    if not (ended.out + ended.err).replace("\n", "").isprintable():
        return "shown", "something printed that terminals obey"
    if not action.result:
        return "shown", "a digest is wrong" if broken.damaged else ""
    if not found.is_file():
        return "no result", f"no {action.result}"
    return _compared(whole, found, broken.meant)


def _wrong_message(ended: Ended) -> str:
    """What is wrong with what an action says that was refused: it is one line, without more."""
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: found ")]
    if "Traceback" in ended.err or len(errors) != 1 or lines[-1] != errors[0]:
        return f"not one line: {ended.err[-300:]!r}"
    if len(errors[0]) > _LONG:
        return f"a message of {len(errors[0])} characters: {errors[0][:100]}"
    if not ended.err.replace("\n", "").isprintable():
        return f"a message with what terminals obey: {errors[0]!r:.200}"
    return ""


def _compared(whole: Path, found: Path, meant: bool) -> tuple[str, str]:
    """Whether a result is that of the whole files, or may be another."""
    if whole.suffix == ".json":
        same = json.loads(whole.read_text()) == json.loads(found.read_text())
    else:
        one, other = np.load(whole), np.load(found)
        same = one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-4)
        if not np.isfinite(other).all():
            return "another result", "NaN or infinity in the result"
    if same:
        return "the same result", ""
    return "another result", "" if meant else "another result, silently"


def _state(folder: Path, but: Sequence[str]) -> dict[str, str]:
    """What lies in a trial's folder, by place: kinds and contents, but for what is written."""
    found = {}
    for place, folders, files in os.walk(folder):
        within = Path(place).relative_to(folder)
        if within == Path("box"):
            folders[:] = [name for name in folders if name not in but]
            files = [name for name in files if name not in but]
        for name in (*folders, *files):
            path = Path(place) / name
            if within == Path() and name in ("out", "err"):
                continue
            if path.is_symlink():
                found[str(within / name)] = f"link to {path.readlink()}"
            elif path.is_file():
                found[str(within / name)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(within / name)] = f"kind {path.lstat().st_mode:o}"
    strange = next((folder / "box").glob(f"*/{_STRANGE}"), None)
    if strange:
        found[str(strange.relative_to(folder))] = strange.read_text()
    return found


def _touched(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return f"{', '.join(changed[:5])} written or removed" if changed else ""


class Watch:
    """Tells which files of a folder are opened, by whatever library (inotify; Linux)."""

    _OPEN = 0x20

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        self._libc.inotify_add_watch(self._handle, os.fsencode(folder), self._OPEN)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)

    def opened(self) -> set[str]:
        """Names of files that were opened since."""
        try:
            data = os.read(self._handle, 1 << 16)
        except BlockingIOError:
            return set()
        found, place = set(), 0
        while place < len(data):
            _, _, _, length = struct.unpack_from("iIII", data, place)
            name = data[place + 16 : place + 16 + length].rstrip(b"\0")
            found.add(os.fsdecode(name))
            place += 16 + length
        return found - {""}


def _make_base(base: Path) -> None:
    """Write whole files of every kind."""
    import onnx
    import torch
    from onnx import TensorProto, helper
    from safetensors.torch import save_file

    from eecompile import ExitSchedule
    from eecompile.compare.comparison import ComparisonResult
    from eecompile.compare.comparison import write as write_report
    from eecompile.compare.report import read_report
    from eecompile.networks.dit import DiT
    from eecompile.recipe import load_recipe
    from eecompile.tune.output import write as write_front
    from eecompile.tune.report import read_front
    from eecompile.tune.work import Work

    os.chdir(base)
    Path("recipe.toml").write_text(_RECIPE)
    for name, (backend, layout) in _TARGETS.items():
        text = _TARGET.replace("NAME", name).replace("BACKEND", backend)
        Path(f"{name}.toml").write_text(text.replace("LAYOUT", layout))
    torch.manual_seed(0)
    network = DiT(exits=(1, 3), **load_recipe(Path("recipe.toml")).network.options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), "weights.safetensors")
    save_file(network.state_dict(), "other.safetensors")
    torch.save({"model": network.state_dict(), "epoch": 3}, "weights.pt")
    torch.save(network.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
    cli("export", "recipe.toml", "-o", "bundle")
    for name in _TARGETS:
        cli("build", "bundle", "--target", f"{name}.toml", "-o", name)
    cli("program", "dpmpp-2m", "--for", "chained", "--steps", "5", "-o", "program.json")
    Path("schedule.json").write_bytes(ExitSchedule.parse("3:0.2,again:0.5,1:0.7,3").to_json(a=[1]))
    write_front(read_front(_REPORTS / "front.json"), Path("front"))
    write_report(ComparisonResult(read_report(_REPORTS / "report.json"), {}), Path("report"))
    Path("whole").mkdir()
    for name in ("front", "report"):
        shutil.copy(_REPORTS / f"{name}.json", "whole")
    _write_data()
    with Work(Path(".tune.partial"), _IDENTITY) as work:
        for key in ("one", "two", "three"):
            work.put(key, _figures(key))
    Path("files").mkdir()
    for name in ("exit-001.onnx", "exit-003.onnx", "weights.safetensors"):
        shutil.copy(Path("bundle") / name, "files")
    files = 'files = ["files/exit-001.onnx", "files/exit-003.onnx"]\nexits = [1, 3]'
    text, rest = _RECIPE.partition("[network]")[0], _RECIPE.partition("[process]")[2]
    rest = "[process]" + rest.replace('saving = [3, "3/1-2:1", 3, 3]\n', "")
    Path("files.toml").write_text(f'{text}calibration = "data.npy"\n[network]\n{files}\n{rest}')
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "features", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "features.onnx")
    config = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.30.0"}
    config |= {"num_train_timesteps": 100, "beta_schedule": "linear", "solver_order": 2}
    config |= {"prediction_type": "epsilon", "beta_start": 1e-4, "beta_end": 0.02}
    Path("scheduler_config.json").write_text(json.dumps(config))
    _evaluated("data.npy").run()


def _write_data() -> None:
    draws = np.random.default_rng(0)
    pictures = draws.integers(0, 256, (24, 8, 8), np.uint8)
    np.save("data.npy", (pictures[:, None] / np.float32(127.5) - 1).astype(np.float32))
    np.savez("data.npz", pictures)
    np.save("made.npy", draws.uniform(-1, 1, (24, 1, 8, 8)).astype(np.float32))
    np.save("label.npy", np.array([0, 3, 1]))
    Path("pictures").mkdir()
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(f"pictures/{index:02d}.png")
    content = bytes((0, 0, 8, 3)) + struct.pack(">3I", *pictures.shape) + pictures.tobytes()
    Path("data.idx.gz").write_bytes(gzip.compress(content))
