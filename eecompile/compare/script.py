"""A script with eecompile's runners and polygraphy's Comparator, to change and to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eecompile.compare.checks import checked_bundle
from eecompile.errors import UsageError
from eecompile.store.files import written

_HEAD = '''#!/usr/bin/env python3
"""Compares exits of {network} with polygraphy; written by eecompile {version}."""

from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    L2CompareFunc,
    PsnrCompareFunc,
    SimpleCompareFunc,
)
from polygraphy.logger import G_LOGGER

from eecompile.compare import {imports}

G_LOGGER.module_severity = G_LOGGER.WARNING
BUNDLE = {bundle!r}
ENGINES = {engines!r}
'''

_BODY = '''

def compare_exit(interface, depth):
    """Every runner's outputs against those of the first; True when all are close."""
    inputs = points(interface, [4])
    runners = {reference}
    runners += [EngineRunner(path, depth, name=path) for path in ENGINES]
    results = Comparator.run(runners, data_loader=inputs, warm_up=1)
    functions = [
        SimpleCompareFunc(check_error_stat="max", atol=1e-4, rtol=1e-3),
        L2CompareFunc(l2_threshold=1e-1),
        CosineSimilarityCompareFunc(cosine_similarity_threshold=0.999),
        PsnrCompareFunc(psnr_threshold=40.0),
    ]
    pairs = [(0, index) for index in range(1, len(runners))]
    found = Comparator.compare_accuracy(results, comparisons=pairs, compare_func=functions)
    for name, iterations in results:
        fastest = 1e3 * min(each.runtime for each in iterations)
        print(f"exit {{depth:3}}  {{fastest:9.3f}} ms  {{name}}")
    return bool(found)


def main():
    interface = checked_bundle(BUNDLE).interface
    passed = [compare_exit(interface, depth) for depth in interface.exits]
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
'''


def check_script(path: Path) -> None:
    """Pass when a script may be written.

    Raises:
        UsageError: its folder does not exist, or it is a folder itself.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            found=f"script {path}",
            expected="a file in a folder that exists",
            remedy="create the folder, or choose another place",
        )


def write_script(
    path: Path, bundle: Path, engines: Sequence[Path], recipe: Path | None = None
) -> None:
    """Write a script that compares the same engine sets in the public runners.

    A ``recipe`` is the trained network's, which is then the reference.
    """
    import eecompile

    names = ["EngineRunner", "checked_bundle", "points"]
    names += ["TorchRunner", "TrainedNetwork"] if recipe else ["OnnxRuntimeRunner"]
    head = _HEAD.format(
        network=checked_bundle(bundle).interface.name,
        version=eecompile.__version__,
        imports=", ".join(sorted(names)),
        bundle=str(bundle),
        engines=[str(folder) for folder in engines],
    )
    if recipe:
        head += f"NETWORK = TrainedNetwork(BUNDLE, {str(recipe)!r})\n"
    reference = "[TorchRunner(NETWORK, depth)]" if recipe else "[OnnxRuntimeRunner(BUNDLE, depth)]"
    with written(path) as partial:
        partial.write_text(head + _BODY.format(reference=reference))
