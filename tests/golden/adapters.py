"""Everything that the golden tests use from inside the package.

Where a module moves, or a function takes its arguments in another form, only this file changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eecompile import Program
from eecompile.runtime.solvers import FACTS

__all__ = ["FAMILIES", "json_of_program"]

FAMILIES: Mapping[str, tuple[str, ...]] = {name: facts.families for name, facts in FACTS.items()}
"""The names of all native solvers, and the families of processes that each takes."""


def json_of_program(program: Program) -> dict[str, Any]:
    """What its file holds.

    Where another format writes the same facts in another form, this brings them back to the
    form that is stored, so that the coefficients stay compared.
    """
    written: dict[str, Any] = json.loads(program.to_json())
    return written
