"""Schedulers whose step is handed what it said before: CogVideoXDPMScheduler of diffusers."""

from __future__ import annotations

import copy
import inspect
from typing import Any

_FORMER = ("old_pred_original_sample", "timestep_back")


def remembering(scheduler: Any) -> Any:
    """The scheduler; a copy that keeps its last prediction itself, where a caller would.

    CogVideoXPipeline hands to ``step`` the data predicted in the last step and the timestep
    before, and None in the first.
    """
    step = getattr(type(scheduler), "step", None)
    if step is None or not {*_FORMER} <= {*inspect.signature(step).parameters}:
        return scheduler

    def stepped(
        self: Any, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0
    ) -> tuple[Any]:
        former = dict(zip(_FORMER, self.former, strict=True))
        state, data = step(
            self,
            model_output=model_output,
            timestep=int(timestep),
            sample=sample,
            eta=eta,
            return_dict=False,
            **former,
        )
        self.former = [data, int(timestep)]
        return (state,)

    kind = type(scheduler)
    made = copy.deepcopy(scheduler)
    made.__class__ = type(kind.__name__, (kind,), {"step": stepped, "__init__": kind.__init__})
    made.__class__.__module__ = kind.__module__
    made.former = [None, None]
    return made
