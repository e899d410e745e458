"""The report of ``eecompile doctor`` as JSON, where the command line is not installed."""

from __future__ import annotations

import sys

import msgspec

from eecompile.doctor.examine import examine

if __name__ == "__main__":
    report = examine()
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    sys.exit(0 if report.usable else 1)
