"""The gate for CI: what a report says that an older one did not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from eecompile.compare.report import Candidate, Comparison
from eecompile.errors import UsageError

_Figures = dict[str, float]


def fraction(text: str) -> float:
    """``5%`` or ``0.05`` as a number.

    Raises:
        UsageError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", text.strip())
    if not found:
        raise UsageError(
            found=f"--max-slowdown {text}",
            expected="a share such as 5% or 0.05",
            remedy="give how much slower a median may be",
        )
    return float(found[1]) / (100 if found[2] else 1)


def check_network(baseline: Comparison, network: str) -> None:
    """Pass when a baseline is of the network.

    Raises:
        UsageError: it is of another one.
    """
    if baseline.network != network:
        raise UsageError(
            found=f"a baseline of network {baseline.network}",
            expected=f"one of {network}",
            remedy="give a report.json of the same network",
        )


def check_limits(max_slowdown: float, max_error: float) -> None:
    """Pass when limits are such that something could exceed them.

    Raises:
        UsageError: one is negative or not finite.
    """
    for name, limit in (("slowdown", max_slowdown), ("error", max_error)):
        if not 0 <= limit < math.inf:
            raise UsageError(
                found=f"a limit of {limit:g} for the {name}",
                expected="a number from 0 up",
                remedy="fix it",
            )


def regressions(
    report: Comparison, baseline: Comparison, *, max_slowdown: float = 0.05, max_error: float = 1e-3
) -> list[str]:
    """What regressed, as sentences; empty where nothing did.

    Only candidates of the baseline are judged. Times are judged in units of the reference's,
    which took its turns between them: a machine that is busier today slows both. Where the
    two reports have other references, or other versions of it, times are judged as they are;
    then they must be of the same machine.

    Args:
        report: the new one.
        baseline: the old one.
        max_slowdown: share by which a median may grow.
        max_error: by how much an exit's largest relative error (the largest difference over
            the largest output of one evaluation) may grow.

    Raises:
        UsageError: the reports are of different networks or have no figure in common, or
            their times cannot be compared; or a limit is no number from 0 up.
    """
    check_limits(max_slowdown, max_error)
    check_network(baseline, report.network)
    ratios = _same_yardstick(report, baseline)
    if not ratios and not _same_machine(report, baseline):
        raise UsageError(
            found=f"a baseline measured on {_where(baseline)} against {baseline.reference}",
            expected=f"the same machine ({_where(report)}), or the same reference "
            f"({report.reference}) in the same version",
            remedy="make a new baseline here",
        )
    now, then = _times(report, ratios), _times(baseline, ratios)
    known = {candidate.name: candidate for candidate in report.candidates}
    kept = [each for each in baseline.candidates if not each.skipped]
    lost = [sentence for old in kept for sentence in _lost(known.get(old.name), old, max_error)]
    strangers = not any(each.name in known for each in kept)
    if not now.keys() & then.keys() and (strangers or (now and then and not lost)):
        raise UsageError(
            found=f"a baseline that has no {'figure' if strangers else 'time'} in common with "
            "this report",
            expected="the same candidates, exits and batch sizes",
            remedy="compare the same engine sets with the same --batch, or make a new baseline",
        )
    return lost + list(_slower(now, then, max_slowdown, report, ratios))


def unjudged(report: Comparison, baseline: Comparison) -> int:
    """How many times of a baseline have no counterpart, as for another batch size."""
    ratios = _same_yardstick(report, baseline)
    return len(_times(baseline, ratios).keys() - _times(report, ratios).keys())


def _lost(new: Candidate | None, old: Candidate, max_error: float) -> Iterator[str]:
    """What a candidate no longer does, or does less exactly."""
    if new is None:
        yield f"{old.name} was compared in the baseline, and now was not."
        return
    if new.skipped:
        yield f"{old.name} was compared in the baseline, and now failed ({new.skipped})."
    exits = {each.depth: each for each in new.exits}
    for before in old.exits:
        after = exits.get(before.depth)
        if after is None:
            if not new.skipped:
                yield f"{old.name} no longer has exit {before.depth}."
            continue
        worst, worst_before = after.relative or 0.0, before.relative or 0.0
        if math.isinf(worst):
            if not math.isinf(worst_before):
                yield (
                    f"{old.name}, exit {before.depth}: outputs are no longer finite (the largest "
                    f"relative error was {worst_before:.2g})."
                )
        elif worst - worst_before > max_error:
            yield (
                f"{old.name}, exit {before.depth}: relative error {worst:.2g}, which was "
                f"{worst_before:.2g}; at most {max_error:g} more is allowed."
            )
        elif before.passed and not after.passed:
            yield f"{old.name}, exit {before.depth}: outputs are no longer within the tolerance."


def _slower(
    now: Mapping[str, float],
    then: Mapping[str, float],
    max_slowdown: float,
    report: Comparison,
    ratios: bool,
) -> Iterator[str]:
    unit = f" times that of {report.reference}" if ratios else " ms"
    for what, value in now.items():
        before = then.get(what)
        if before and value > before * (1 + max_slowdown):
            yield (
                f"{what}: {value / before - 1:.1%} slower: {value:.3g}{unit}, which was "
                f"{before:.3g}; at most {max_slowdown:.1%} is allowed."
            )


def _times(report: Comparison, ratios: bool) -> _Figures:
    """Medians by what was timed: in milliseconds, or in the reference's own."""
    found = {
        (each.name, f"exit {exit_.depth}, batch {latency.batch}"): latency.median
        for each in report.candidates
        for exit_ in each.exits
        for latency in exit_.latencies
    }
    settings = report.settings
    steps = f"{settings.solver}, {settings.steps} steps"
    if settings.guidance != 1:
        steps += f", guidance {settings.guidance:g}"
        if settings.guidance_interval:
            steps += " between t = {:g} and {:g}".format(*settings.guidance_interval)
    if settings.shape:
        steps += ", samples of " + "x".join(map(str, settings.shape))
    found |= {
        (each.candidate, f"{each.schedule}, {steps}, batch {each.batch}"): 1e3
        * each.seconds_per_sample
        for each in report.trajectories
    }
    if not ratios:
        return {", ".join(key): value for key, value in found.items()}
    return {
        f"{name}, {what}": value / found[report.reference, what]
        for (name, what), value in found.items()
        if name != report.reference and found.get((report.reference, what))
    }


def _same_yardstick(report: Comparison, baseline: Comparison) -> bool:
    new, old = _reference(report), _reference(baseline)
    if new is None or old is None or not new.exits or not old.exits:
        return False
    same = (new.name, new.backend, new.versions) == (old.name, old.backend, old.versions)
    return same and any(each.latencies for each in new.exits)


def _reference(report: Comparison) -> Candidate | None:
    named = [each for each in report.candidates if each.name == report.reference]
    return named[0] if named else None


def _same_machine(report: Comparison, baseline: Comparison) -> bool:
    facts = ("cpu", "cores", "gpus")
    return all(report.machine.get(name) == baseline.machine.get(name) for name in facts)


def _where(report: Comparison) -> str:
    machine = report.machine
    return machine.get("gpus") or f"{machine.get('cpu')}, {machine.get('cores')} cores"
