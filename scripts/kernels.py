"""Compile the GPU kernels of the runtime: kernels.cu to kernels.ptx, beside it.

    pip install 'eecompile[dev]'
    python scripts/kernels.py

The PTX is for compute capability 7.5 (Turing) and up: the driver compiles it for the GPU at
hand. NVRTC names the newest version of PTX that it knows, which only its own drivers read;
what these kernels use is older, so the file names VERSION.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

PACKAGE = Path(__file__).resolve().parent.parent / "eecompile" / "runtime" / "cuda"
SOURCE, OUTPUT = PACKAGE / "kernels.cu", PACKAGE / "kernels.ptx"
ARCHITECTURE = "compute_75"
VERSION = "7.0"  # of PTX: drivers from CUDA 11.0 on
# Each product and each sum is rounded, as on the host; nothing is approximated.
OPTIONS = (f"--gpu-architecture={ARCHITECTURE}", "--fmad=false", "--std=c++17")


def ptx_from_source(source: str) -> str:
    """The PTX of a CUDA C++ source, of version VERSION; it says what it was made from."""
    program = _call(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    options = [option.encode() for option in OPTIONS]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _call(nvrtc.nvrtcGetProgramLogSize(program))
        _call(nvrtc.nvrtcGetProgramLog(program, log))
        raise SystemExit(log.rstrip(b"\x00").decode())
    code = b" " * _call(nvrtc.nvrtcGetPTXSize(program))
    _call(nvrtc.nvrtcGetPTX(program, code))
    text = code.rstrip(b"\x00").decode()
    text = re.sub(r"^\.version .*$", f".version {VERSION}", text, flags=re.MULTILINE)
    text = re.sub(r"^//.*\n", "", text, flags=re.MULTILINE).strip()
    digest = hashlib.sha256(source.encode()).hexdigest()
    return f"// Of kernels.cu ({digest}) by NVRTC {nvrtc_version()}: scripts/kernels.py\n{text}\n"


def nvrtc_version() -> str:
    """The compiler's version, such as 13.0."""
    return ".".join(map(str, _call(nvrtc.nvrtcVersion())))


def _call(answer: tuple[Any, ...]) -> Any:
    status, *rest = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise SystemExit(f"NVRTC: {status.name}")
    return rest[0] if len(rest) == 1 else rest


if __name__ == "__main__":
    OUTPUT.write_text(ptx_from_source(SOURCE.read_text()))
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")
