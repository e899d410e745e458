"""What trials share: how one ends."""

from __future__ import annotations

import msgspec


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one trial ended.

    Attributes:
        number: of the trial; with the seed, it makes the same trial again.
        kind: what was done, in a few words that many trials share.
        ended: how, such as "the same result", "refused", "went on".
        fault: what happened that must not; empty where nothing did.
        seconds: taken.
    """

    number: int
    kind: str
    ended: str
    fault: str = ""
    seconds: float = 0.0
