"""What the command ``serve`` refuses before it serves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytest.importorskip("uvicorn")


def test_a_port_in_use_is_a_sentence(run: Run, small_sets: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, error = run("serve", small_sets["per_exit"], "--port", port)
    assert status == 1
    assert f"--port {port}, which cannot be listened at (address already in use)" in error
    assert "choose another port" in error
