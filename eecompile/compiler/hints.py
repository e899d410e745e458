"""Plausible causes of what went wrong, where they can be told."""

from __future__ import annotations

import re

import numpy as np

from eecompile.arrays import AnyArray
from eecompile.compiler.verify import Evaluate, random_inputs
from eecompile.programs.interface import Interface

_INDICES = re.compile(r"indices.*(Long|long)|(Long|long).*indices", re.DOTALL)
# Shares of what a prediction changes from T to T / 2, and of its size.
_COARSE, _NOTICEABLE = 5e-3, 1e-5
_LARGE = 10.0  # timesteps below are not too large for anything


def remedy_of_call(error: BaseException, usual: str) -> str:
    """What to do about a forward that fails on its inputs."""
    if _INDICES.search(str(error)):
        return (
            "where the forward looks its timestep up in a table, set network.dtypes.t = "
            "'int64'; where it is a condition, set the condition's dtype"
        )
    return usual


def too_large_times(network: Evaluate, interface: Interface) -> str:
    """What to do about timesteps that the network cannot tell from their neighbours; or nothing.

    Where it expects t from 0 to 1 and multiplies it by a thousand, float32 no longer holds the
    angles of its embedding: neighbouring numbers at t = 1000 lead to different predictions,
    and so does whatever rounds otherwise.
    """
    process = interface.process
    one = random_inputs(interface, 1, process.timesteps, seed=3)
    t = one["t"].astype(np.float32)
    if abs(float(t[0])) < _LARGE:
        return ""
    inputs: dict[str, AnyArray] = {name: np.concatenate([value] * 3) for name, value in one.items()}
    middle = process.at(process.timesteps / 2).timestep
    inputs["t"] = np.array([t[0], np.nextafter(t[0], np.float32(0)), middle], np.float32)
    prediction = network(inputs)[interface.exits[-1]][0].astype(np.float64)
    step, whole = (float(np.abs(row - prediction[0]).max()) for row in prediction[1:])
    size = float(np.abs(prediction[0]).max())
    if not (step > _COARSE * whole and step > _NOTICEABLE * size):
        return ""
    return (
        f"set process.time_scale = {1 / process.timesteps:g} if the network takes t from 0 to 1: "
        f"from t = {t[0]:g} to the next float32 number its prediction changes by "
        f"{step / whole:.1%} of what it changes to t = {middle:g}"
    )
