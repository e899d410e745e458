"""What is measured in a process of its own, where nothing else takes memory or time."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eecompile.programs.interface import Interface

Row = dict[str, Any]


def in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a script returns, called in a new process; both ways as JSON."""
    given = json.dumps(arguments, default=str)
    command = [sys.executable, __file__, function.__module__, function.__name__, given]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {function.__name__}{arguments} failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def runs_in_turns(
    calls: Mapping[str, tuple[Any, ...]], rounds: int
) -> dict[str, dict[str, list[Any]]]:
    """What functions return, by name and key of their rows, each round in new processes.

    Args:
        calls: by name, a function, which returns a row, and its arguments.
        rounds: in which they take turns.
    """
    runs: dict[str, list[Row]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            runs[name].append(in_child(*call))
    return {
        name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in runs.items()
    }


def medians_in_turns(calls: Mapping[str, tuple[Any, ...]], rounds: int) -> dict[str, Row]:
    """The medians of :func:`runs_in_turns`."""
    runs = runs_in_turns(calls, rounds)
    return {name: {key: median(v) for key, v in columns.items()} for name, columns in runs.items()}


def opening(folder: str, library: str = "", batch: int = 4) -> Row:
    """Seconds of opening an engine set; MiB once every exit has run a batch, and at the most.

    Memory is that of the whole process, and what opening and running added to it; where the
    library is named that runs the set, it is imported beforehand and does not count.
    """
    import eecompile
    from eecompile.measure.memory import resident

    if library == "openvino":
        from eecompile.runtime.engines.openvino import import_openvino

        import_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME")
    elif library:
        importlib.import_module(library)
    before, began = resident(), time.perf_counter()
    with eecompile.Sampler.open(folder) as sampler:
        opened = time.perf_counter()
        given = needed(sampler.interface, batch)
        for depth in sampler.interface.exits:
            sampler.sample(batch, steps=2, schedule=depth, guidance=1.0, **given)
        whole = resident()
    most = peak_bytes() / 2**20 - before
    return {"open": opened - began, "whole": whole, "engines": whole - before, "peak": most}


def needed(interface: Interface, batch: int) -> dict[str, Any]:
    """Random values for the conditions that have no default."""
    from eecompile.compiler.verify import random_inputs

    given = random_inputs(interface, batch, 1.0, seed=0)
    return {name: given[name] for name, c in interface.conditions.items() if c.default is None}


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def a_thousand_samplings(folder: str) -> Row:
    """Resident MiB before and after a thousand samplings, one after the other."""
    import eecompile
    from eecompile.measure.memory import resident

    with eecompile.Sampler.open(folder) as sampler:
        used = []
        for count in (50, 1000):
            for _ in range(count):
                sampler.sample(2, steps=2, solver="ddpm")
            used.append(resident())
    before, after = used
    return {"before, MiB": before, "after 1,000, MiB": after, "growth": after / before - 1}


def pooled(folder: str, shared: bool, batch: int, count: int) -> Row:
    """Milliseconds a step of the default schedule, of so many samplings."""
    import eecompile

    with eecompile.Sampler.open(folder, shared_pool=shared) as sampler:
        sampler.warmup(batch)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            sampler.sample(batch, steps=10)
            seconds.append(time.perf_counter() - started)
    return {"ms": 1e3 * median(seconds) / 10}


def random_checkpoint(path: str) -> int:
    """Write a recipe's checkpoints, filled at random; the bytes of their distinct tensors.

    Embedders that are equal stay equal. Encoders are T5-XXL's first six layers.
    """
    import torch
    from safetensors.torch import save_file

    from eecompile.recipe import load_recipe

    whole, folder = load_recipe(Path(path)), Path(path).parent
    recipe, encoders = whole.network, whole.encoders.values()
    exits = {} if recipe.blocks else {"exits": recipe.exits}
    network = pkgutil.resolve_name(recipe.factory or "")(**exits, **recipe.options)
    draws = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            fan = value[0].numel() if value.ndim > 1 else 100
            value.copy_(torch.randn(value.shape, generator=draws) / fan**0.5)
        first = re.sub(r"\.\d+\.norm1\.emb\.", ".0.norm1.emb.", key)
        if first != key:  # the published checkpoint repeats the embedder in every block
            value.copy_(state[first])
    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, folder / "weights.safetensors")
    sizes = {
        hashlib.sha256(tensor.detach().numpy().tobytes()).digest(): 4 * tensor.numel()
        for tensor in [*network.parameters(), *network.buffers()]
    }
    return sum(sizes.values()) + sum(random_t5(folder / each.checkpoint) for each in encoders)


def random_t5(folder: Path) -> int:
    """Write an encoder as T5-XXL's, of 6 layers instead of 24, and a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        d_model=4096,
        d_ff=10240,
        num_layers=6,
        num_heads=64,
        d_kv=64,
        feed_forward_proj="gated-gelu",
        vocab_size=32128,
    )
    encoder = T5EncoderModel(config)
    encoder.save_pretrained(folder)
    words = [(word, -float(place)) for place, word in enumerate(["<pad>", "</s>", "<unk>", "a"])]
    Tokenizer(models.Unigram(words, unk_id=2)).save(str(folder / "tokenizer.json"))
    return sum(4 * each.numel() for each in encoder.parameters())


def exported(path: str, folder: str, alone: bool) -> Row:
    """Export once, all exits or full depth alone: seconds, bytes, error, peak memory.

    Peak memory is what the system says of this process, pages of mapped files included.
    """
    from eecompile.compiler import bundle_from_recipe
    from eecompile.recipe import load_recipe

    deepest = load_recipe(Path(path)).network.exits[-1:]
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    manifest = bundle_from_recipe(Path(path), Path(folder), exits=deepest if alone else None)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "bundle_bytes": sum(record.bytes for record in manifest.files),
        "exits": len(manifest.interface.exits),
        "relative_error": max(exit_.relative_error for exit_ in manifest.exits),
    }


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    if "EECOMPILE_REHEARSAL" in os.environ:
        from rehearsal import rehearse

        rehearse()
    print(json.dumps(pkgutil.resolve_name(f"{module}:{name}")(*json.loads(given))))
