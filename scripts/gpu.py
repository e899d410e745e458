"""What only a GPU can settle, most valuable first; gpu-NAME.json after every part.

Each part (gpu_parts.py) is a process with its own limit of time. Parts that are done are not done
again; those that failed are tried again once all others have been.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from gpu_parts import LAST, PARTS
from gpu_sets import WORK
from rehearsal import REHEARSES, rehearse
from results import BENCHMARKS, ROOT, Results, Row, facts, main

from eecompile.measure.machine import Gpu, gpus

OLDEST = "7.5"  # compute capability: that of kernels.ptx, and of onnxruntime-gpu for CUDA 13

MINUTES, PATIENCE = (30, 3) if REHEARSES else (9.5, 1)  # of a rehearsal no time is judged


def run(
    parts: Annotated[list[str] | None, typer.Argument(help="Default all.")] = None,
    again: Annotated[bool, typer.Option(help="Also parts that are done.")] = False,
    minutes: Annotated[float, typer.Option(help="No part begins later, or runs longer.")] = MINUTES,
    output: Annotated[Path | None, typer.Option(help="JSON; default in docs/benchmarks.")] = None,
) -> None:
    """Run the parts, each in a process of its own; what is done is not done again."""
    end = time.perf_counter() + 60 * minutes
    for part in parts or ():
        if part not in PARTS:
            sys.exit(f"error: found no part {part!r}; expected one of {', '.join(PARTS)}.")
    name = "rehearsal" if REHEARSES else found_gpu(gpus())
    place = output or (WORK if REHEARSES else BENCHMARKS) / (
        f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    )
    results = Results(place, "")
    if place.is_file():
        results.values = json.loads(place.read_text())
    results.values["machine"] = facts() | {"gpu": name}
    known: dict[str, Row] = results.values.setdefault("parts", {})
    asked = [part for part in parts or PARTS if again or "failed" in known.get(part, {"failed": 1})]
    left = sorted(asked, key=lambda part: part in known)  # those that failed come last
    waiting = asyncio.run(_run_all(left, results, end))
    print(f"written: {place}")
    if waiting:
        sys.exit(f"{minutes:g} minutes are over; run the command again for: {', '.join(waiting)}")
    if failed := [part for part in asked if "failed" in known.get(part, {})]:
        sys.exit(f"error: failed: {', '.join(failed)}; the file says why.")


async def _run_all(parts: Sequence[str], results: Results, end: float) -> list[str]:
    """Those for which there was no time; in a rehearsal two run at once, as time is not judged."""
    free, done = asyncio.Semaphore(2 if REHEARSES else 1), {p: asyncio.Event() for p in parts}

    async def run_one(part: str) -> str:
        for other in PARTS[part].after:
            if other in done and other not in results.values["parts"]:
                await done[other].wait()
        async with free:
            seconds = min(PATIENCE * PARTS[part].seconds, end - time.perf_counter())
            began = time.perf_counter()
            if seconds >= 5:
                made = await _in_child(part, seconds) | {"seconds": time.perf_counter() - began}
                results.values["parts"][part] = made
                results.write()
                print(f"{part}, {made['seconds']:.0f} s: {made.get('failed', 'done')}", flush=True)
        done[part].set()
        return "" if seconds >= 5 else part

    return [part for part in await asyncio.gather(*map(run_one, parts)) if part]


def found_gpu(found: Sequence[Gpu]) -> str:
    """The name of the first GPU; where there is none, or one too old, the script ends."""
    if not found:
        sys.exit(
            "error: found no NVIDIA GPU; expected one with its driver; run 'eecompile doctor', "
            "or scripts/gpu --rehearse, which does every part on the CPU."
        )
    capability = found[0].compute_capability or OLDEST  # a driver that does not say
    if _numbers(capability) < _numbers(OLDEST):
        sys.exit(
            f"error: found {found[0].name}, compute capability {capability}; expected {OLDEST} or "
            "newer, for kernels.ptx and onnxruntime-gpu; set CUDA_VISIBLE_DEVICES to a newer GPU "
            "of this machine, or use another machine."
        )
    return found[0].name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


async def _in_child(part: str, seconds: float) -> Row:
    """A part's rows, and why there are no more if it failed; what it started ends with it."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows, log = (WORK / f"{part.replace('/', '-')}.{kind}" for kind in ("jsonl", "log"))
    rows.unlink(missing_ok=True)
    more = {"TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor")}  # what is compiled is kept
    if REHEARSES:  # on a CPU, compiling takes minutes, and says nothing of a GPU
        more["TORCH_COMPILE_DISABLE"] = "1"
    with log.open("wb") as said:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import sys, gpu; gpu.write_rows(*sys.argv[1:])", part, rows),
            cwd=ROOT / "scripts",
            env=os.environ | more,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
    failed = ""
    try:
        if status := await asyncio.wait_for(child.wait(), seconds):
            text = log.read_text(errors="replace")[-LAST:].replace(str(ROOT), ".")
            failed = f"it ended with {status}; {text}"
    except TimeoutError:
        failed = f"it took longer than {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    lines = rows.read_text().splitlines() if rows.exists() else []
    made = {"rows": [json.loads(line) for line in lines if line.endswith("}")]}
    return made | {"failed": failed} if failed else made


def write_rows(part: str, path: str) -> None:
    """Write each row as it is measured, in the process of the part."""
    rehearse()
    with Path(path).open("w") as file:
        for row in PARTS[part].rows():
            file.write(json.dumps(msgspec.to_builtins(row)) + "\n")
            file.flush()


if __name__ == "__main__":
    main(partial(typer.run, run))
