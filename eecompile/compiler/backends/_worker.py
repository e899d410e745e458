"""A process that builds plans: it reads jobs from its input and answers line by line.

``python -m eecompile.compiler.backends._worker LOG``; what the library and polygraphy print
goes to LOG. Polygraphy's switch in the environment says which library it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import msgspec
import onnx_ir as ir

from eecompile.children import die_with_parent
from eecompile.compiler.backends._tensorrt import SWITCH, Flavour, PlanJob
from eecompile.compiler.progress import Report
from eecompile.decoding import from_json
from eecompile.errors import BackendError
from eecompile.handle import Handle
from eecompile.store.target import Target


class _Answer(msgspec.Struct, omit_defaults=True):
    """A step of a job, its end, or why it failed."""

    done: int = 0
    total: int = 0
    finished: bool = False
    error: tuple[str, str, str] | None = None


class Worker(Handle):
    """Builds plans in a process of its own, which starts with the first one and ends with this.

    What the library prints goes to ``log``; all plans share ``timing_cache``, of measured kernels.
    """

    def __init__(self, flavour: Flavour, log: Path, timing_cache: Path | None = None) -> None:
        self.flavour, self.log = flavour, log
        self._timing_cache = timing_cache
        self._process: subprocess.Popen[bytes] | None = None

    def build(
        self, model: ir.Model, path: Path, target: Target, report: Report, *, name: str
    ) -> None:
        """Build the plan of one segment and write it to ``path``.

        Raises:
            BackendError: the library refuses the graph, cannot build it, or crashes.
        """
        _check_batches(model, name)
        source = path.with_suffix(".onnx")
        ir.save(model, source, external_data=f"{path.stem}.data")
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        job = PlanJob(str(source), str(path), name, target, str(self._timing_cache or ""))
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._crashed(name) from error
        for line in process.stdout:
            answer = from_json(line, _Answer)
            if answer.error is not None:
                found, expected, remedy = answer.error
                for reason in self._logged("[E]")[-1:]:
                    found = f"{found}: {reason[:300]}"
                raise BackendError(found=found, expected=expected, remedy=remedy)
            if answer.finished:
                return
            report(f"building {name}", answer.done, answer.total)
        raise self._crashed(name)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", __name__, str(self.log)]
            switch = "1" if self.flavour == "tensorrt_rtx" else "0"
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Polygraphy needs docstrings.
                env=os.environ | {SWITCH: switch, "PYTHONOPTIMIZE": ""},
            )
        return self._process

    def _crashed(self, name: str) -> BackendError:
        assert self._process is not None
        status = self._process.wait()
        lines = self._logged()
        return BackendError(
            found=f"{self.flavour} crashing while it built segment {name} "
            f"(status {status}{'; ' + lines[-1] if lines else ''})",
            expected="a plan",
            remedy="free memory, or choose another precision or backend",
        )

    def _logged(self, start: str = "") -> list[str]:
        """The lines of the log that begin so, without their beginning."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.strip().splitlines()]
        return [line.removeprefix(start).strip() for line in lines if line.startswith(start)]


def _serve(log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    die_with_parent()
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers, log.open("ab") as file:
        os.dup2(file.fileno(), 1)  # libraries print where they like
        os.dup2(file.fileno(), 2)
        for line in sys.stdin.buffer:
            _build(from_json(line, PlanJob), cast(IO[bytes], answers))


def _build(job: PlanJob, answers: IO[bytes]) -> None:
    from eecompile.compiler.backends._plan import build_plan

    def say(answer: _Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")

    try:
        build_plan(job, lambda done, total: say(_Answer(done, total)))
    except BackendError as error:
        say(_Answer(error=(error.found, error.expected, error.remedy)))
    else:
        say(_Answer(finished=True))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))


def _check_batches(model: ir.Model, name: str) -> None:
    """Pass when the first axis of all that goes in and out is the batch, not a multiple of it.

    A plan's profile knows batch sizes and nothing else; tokens of all samples in one row are
    refused.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        first = value.shape[0] if value.shape else None
        symbol = first.value if isinstance(first, ir.SymbolicDim) else None
        if symbol is not None and symbol != "batch" and "batch" in symbol:
            raise BackendError(
                found=f"segment {name}, whose tensor {value.name} has shape {value.shape}",
                expected="the batch itself as first axis, for the plan's profile",
                remedy='choose layout "per_exit" in the target, whose engines exchange nothing',
            )
