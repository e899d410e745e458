"""The page at ``/``, with which a person tries an engine set, and the facts that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from eecompile.programs.solvers import FACTS
from eecompile.runtime.sampler import Sampler
from eecompile.serve.limits import Limits

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The page may run its own script and ask this server; it loads nothing from elsewhere."""


@lru_cache(maxsize=1)
def page() -> str:
    """The page, which is the same for every network: it asks for ``/network``."""
    return Path(__file__).with_name("page.html").read_text("utf-8")


def network_facts(sampler: Sampler, limits: Limits) -> dict[str, Any]:
    """What a caller may ask of an engine set, as JSON has it."""
    interface = sampler.interface
    family = interface.process.family
    return {
        "name": interface.name,
        "engines": sampler.engines,
        "exits": interface.exits,
        "state": msgspec.to_builtins(interface.state),
        "conditions": msgspec.to_builtins(interface.conditions),
        "encoders": msgspec.to_builtins(interface.encoders),
        "decoder": msgspec.to_builtins(interface.decoder),
        "solvers": [name for name, facts in FACTS.items() if family in facts.families],
        "schedules": list(interface.schedules),
        "sampling": msgspec.to_builtins(interface.sampling),
        "limits": {"n": limits.n, "steps": limits.steps},
    }
