"""What a diffusers scheduler's config says: its class, its process, its times.

A process is filled from the config, and believed only where the scheduler's own tables agree.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from eecompile.arrays import Floats
from eecompile.errors import RecipeError, UsageError, summary
from eecompile.programs.process import Betas, Prediction, Process

NETWORK_OPTIONS = frozenset(
    {
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
        *("prediction_type", "variance_type", "sigma_min", "sigma_max", "sigma_data"),
        *("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"),
        *("rescale_betas_zero_snr", "snr_shift_scale"),
    }
)
"""Options of schedulers that describe the network's training, not the solver."""

OTHER = "use another scheduler, or a native solver"
"""What to do about a scheduler that cannot be compiled at all."""

_NAME = "scheduler_config.json"
_CLOSE = 1e-5  # tables of diffusers are float32
_BETAS: dict[str, Betas] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


def refuse(scheduler: Any, what: str, remedy: str) -> NoReturn:
    """Refuse a scheduler, which ``what``."""
    raise UsageError(
        found=f"{type(scheduler).__name__}, which {what}",
        expected="a scheduler of diffusers whose step is a sum of state, output and noise",
        remedy=remedy,
    )


def scheduler_from_config(path: Path) -> Any:
    """The scheduler that a ``scheduler_config.json`` describes; or the one in a folder.

    Nothing in it is executed: it names a class of diffusers, and the class's options.

    Raises:
        UsageError: there is no such file, it is no such JSON, or diffusers refuses it.
        ModuleNotFoundError: diffusers is missing.
    """
    file = path / _NAME if path.is_dir() else path
    config = read_scheduler(file)
    kind = _class(file, config.get("_class_name"))
    total = config.get("num_train_timesteps", 1)
    if not isinstance(total, int) or not 1 <= total <= 100_000:
        raise UsageError(
            found=f"num_train_timesteps = {str(total)[:40]} in {file}",
            expected="1 to 100,000",
            remedy="give the number of timesteps that the network was trained with",
        )
    try:
        return kind.from_config(config)
    except Exception as error:
        raise UsageError(
            found=f"{file}, which {kind.__name__} refuses ({summary(error)})",
            expected="options that diffusers accepts",
            remedy="fix the file, or write it with scheduler.save_pretrained(folder)",
        ) from error


def read_scheduler(path: Path) -> dict[str, Any]:
    """The object in a ``scheduler_config.json``, or in the one in a folder.

    It may hold -Infinity, as Python writes it.

    Raises:
        UsageError: there is none.
    """
    file = path / _NAME if path.is_dir() else path
    expected = "a scheduler_config.json of diffusers"
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            found=f"no readable file {file}",
            expected=expected,
            remedy="give the file in the folder 'scheduler' of a diffusers pipeline",
        ) from error
    except (ValueError, RecursionError) as error:
        config = error
    if not isinstance(config, dict):
        raise UsageError(
            found=f"{file}, which is not JSON with an object in it"
            + (f" ({config})" if isinstance(config, ValueError) else ""),
            expected=expected,
            remedy="write it with scheduler.save_pretrained(folder)",
        )
    return config


def _class(file: Path, name: Any) -> Any:
    diffusers = importlib.import_module("diffusers")
    mixin = importlib.import_module("diffusers.schedulers.scheduling_utils").SchedulerMixin
    known = [word for word in dir(diffusers) if word.endswith("Scheduler")]
    kind = getattr(diffusers, name) if name in known else None
    if inspect.isclass(kind) and issubclass(kind, mixin) and kind is not mixin:
        return kind
    missing = ", ".join(getattr(kind, "_backends", ())) if name in known else ""
    if missing:
        raise UsageError(
            found=f"{name} in {file}, which needs more packages ({missing})",
            expected="packages that are installed",
            remedy="install them, or use another scheduler",
        )
    close = difflib.get_close_matches(str(name), known, 3)
    raise UsageError(
        found=f"_class_name = {name!r} in {file}",
        expected="the name of a scheduler that diffusers "
        f"{getattr(diffusers, '__version__', '')} has",
        remedy=f"write {' or '.join(close)}" if close else "fix _class_name",
    )


def process_from_scheduler(scheduler: Any) -> Process | None:
    """The process that a scheduler, its timesteps set, samples; None where we have no such one."""
    try:
        process = _configured(scheduler)
        if process is None or not _agrees(scheduler, process):
            return None
        return process
    except (RecipeError, AttributeError, KeyError, TypeError, ValueError):
        return None  # a config of another kind


def _configured(scheduler: Any) -> Process | None:
    config = scheduler.config
    total = config.get("num_train_timesteps", 1000)
    word = config.get("prediction_type", "epsilon")
    if _is_edm(scheduler):
        predictions: dict[str, Prediction] = {"epsilon": "edm", "v_prediction": "v_prediction"}
        return Process(
            family="edm",
            prediction=predictions[word],
            c_noise="atan" if float(scheduler.precondition_noise(1.0)) == 0.5 else "log",
            timesteps=total,
            sigma_min=float(config["sigma_min"]),
            sigma_max=float(config["sigma_max"]),
            sigma_data=float(config["sigma_data"]),
        )
    if _is_flow(scheduler):
        shift = float(config.get("flow_shift", config.get("shift", 1.0)) or 1.0)
        return Process(family="flow", prediction="flow", timesteps=total, shift=shift)
    listed = config.get("trained_betas")
    betas = _BETAS.get(config.get("beta_schedule", "")) if listed is None else _listed(listed)
    if betas is None:
        return None
    process = Process(
        timesteps=total,
        betas=betas,
        prediction=word,
        variance="fixed_large" if config.get("variance_type") == "fixed_large" else "fixed_small",
        snr_shift=float(config.get("snr_shift_scale", 1.0)),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")),
    )
    if betas == "cosine" or listed is not None:
        return process
    ends = float(config["beta_start"]), float(config["beta_end"])
    return msgspec.structs.replace(process, beta_start=ends[0], beta_end=ends[1])


def _listed(betas: Any) -> tuple[float, ...]:
    return tuple(float(beta) for beta in betas)


def _is_edm(scheduler: Any) -> bool:
    """Whether it scales inputs and outputs as in arXiv 2206.00364, table 1."""
    methods = ("precondition_inputs", "precondition_outputs", "precondition_noise")
    return all(hasattr(scheduler, name) for name in methods)


def _is_flow(scheduler: Any) -> bool:
    """Whether its state is ``(1 - sigma) * data + sigma * noise``, and its output noise - data.

    Most flow matching schedulers have no prediction_type: these take that one.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas"):
        return bool(config.get("prediction_type") == "flow_prediction")
    names = ("FlowMatchEuler", "FlowMatchHeun", "FlowMatchLCM", "LTXEulerAncestralRF")
    return type(scheduler).__name__.startswith(names)


def _agrees(scheduler: Any, process: Process) -> bool:
    """Whether the scheduler's own tables are those of ``process``."""
    if process.family == "diffusion":
        mine = _alpha_bar(scheduler)
        return mine is not None and _near(mine, process.alpha_bar())
    stamps = _floats(scheduler.timesteps)
    sigmas = _floats(scheduler.sigmas)
    if process.family == "flow":  # each timestep is T times a sigma
        wanted = process.timesteps * sigmas
        return all(np.abs(wanted - stamp).min() <= 1 for stamp in stamps)
    found = [process.sigma_at(stamp) for stamp in stamps]
    return bool(np.allclose(found, sigmas[: len(stamps)], rtol=1e-3))


def _alpha_bar(scheduler: Any) -> Floats | None:
    table = getattr(scheduler, "alphas_cumprod", None)
    return None if table is None else _floats(table)


def _floats(values: Any) -> Floats:
    return np.array([float(value) for value in values])


def _near(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= _CLOSE)


def check_process(scheduler: Any, process: Process) -> None:
    """Pass when the scheduler samples the process that a network was trained on."""
    differences = [*_differences(scheduler, process)]
    if differences:
        raise UsageError(
            found=f"{type(scheduler).__name__} for another process than the network's: "
            f"{'; '.join(differences)}",
            expected="the process that the network was trained with",
            remedy="take the scheduler_config.json that belongs to the network; if this is it, "
            "fix [process] in the network's recipe and export again",
        )


def _differences(scheduler: Any, process: Process) -> list[str]:
    """In words, each property of the scheduler's process that the network's has not."""
    mine = process_from_scheduler(scheduler)
    config = scheduler.config
    total = config.get("num_train_timesteps")
    if mine is None:
        table = _alpha_bar(scheduler)
        family = "diffusion" if table is not None and not _is_flow(scheduler) else None
        prediction = config.get("prediction_type")
    else:
        family, prediction, table = mine.family, mine.prediction, None
        if mine.family == "diffusion":
            table = mine.alpha_bar()
    if family is None:
        return [f"one that eecompile does not know (the network's is {process.family})"]
    wanted = "flow" if process.prediction == "flow_to_data" else process.prediction
    pairs: list[tuple[str, Any, Any]] = [
        ("family", family, process.family),
        ("prediction", prediction, wanted),
        ("T", total, process.timesteps),
    ]
    if mine is not None and mine.family == process.family == "edm":
        pairs.append(("sigma_data", mine.sigma_data, process.sigma_data))
    found = [f"{name} {one} (the network's: {other})" for name, one, other in pairs if one != other]
    comparable = family == process.family == "diffusion" and total == process.timesteps
    if comparable and table is not None and not _near(table, process.alpha_bar()):
        found.append(f"betas {_betas(config)} (the network's: {_of(process)})")
    return found


def _betas(config: Any) -> str:
    words = [str(config.get("beta_schedule", "unknown"))]
    if config.get("snr_shift_scale", 1.0) != 1:
        words.append(f"snr_shift {config['snr_shift_scale']:g}")
    if "beta_start" in config and "beta_end" in config:
        words.append(f"{config['beta_start']:g} to {config['beta_end']:g}")
    if config.get("rescale_betas_zero_snr"):
        words.append("zero_terminal_snr")
    if config.get("trained_betas") is not None:
        words.append("trained_betas")
    return ", ".join(words)


def _of(process: Process) -> str:
    words: list[str] = [process.betas if isinstance(process.betas, str) else "listed"]
    if words[0] not in ("cosine", "listed"):
        words.append(f"{process.beta_start:g} to {process.beta_end:g}")
    if process.snr_shift != 1:
        words.append(f"snr_shift {process.snr_shift:g}")
    return ", ".join([*words, *(["zero_terminal_snr"] if process.zero_terminal_snr else [])])


def times_of(scheduler: Any) -> list[float]:
    """The time of each timestep on [0, T], by which exit schedules go.

    Timesteps that are logarithms of sigmas are laid out evenly between ``sigma_min`` and
    ``sigma_max``, and those from 0 to 1 over all of T.

    Raises:
        UsageError: the scheduler leads from data to noise.
    """
    config = scheduler.config
    stamps = _floats(scheduler.timesteps)
    total = float(config.get("num_train_timesteps") or 1000)
    table = getattr(scheduler, "sigmas", None)
    sigmas = _floats(table)[: len(stamps)] if table is not None else np.zeros(0)
    if len(sigmas) == len(stamps) and _logarithmic(stamps, sigmas):
        low = math.log(config.get("sigma_min") or sigmas.min())
        high = math.log(config.get("sigma_max") or sigmas.max())
        share = (np.log(sigmas) - low) / ((high - low) or 1.0)
        return [float(time) for time in np.clip(share, 0, 1) * total]
    if len(stamps) > 1 and stamps[0] < stamps[-1]:
        falling = len(sigmas) == len(stamps) and bool((np.diff(sigmas) < 0).all())
        if not falling:
            refuse(
                scheduler,
                "leads from data to noise (its timesteps ascend)",
                "use the scheduler that it inverts",
            )
        stamps = sigmas
    if _alpha_bar(scheduler) is None and stamps.max() <= 1 < total:
        stamps = stamps * total
    return [float(stamp) for stamp in stamps]


def _logarithmic(stamps: Floats, sigmas: Floats) -> bool:
    """Whether each timestep is a quarter of its sigma's logarithm, or that times 1000."""
    if not (sigmas > 0).all():
        return False
    quarters = 0.25 * np.log(sigmas)
    return any(bool(np.allclose(stamps, scale * quarters, rtol=1e-3)) for scale in (1.0, 1000.0))
