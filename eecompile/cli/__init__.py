"""The command line: thin, one function a command."""

from __future__ import annotations

from eecompile.cli.app import main

__all__ = ["main"]
