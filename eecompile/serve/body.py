"""The body of a request, and what is wrong with one that is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from eecompile.errors import one_line
from eecompile.runtime.prompts import count_of
from eecompile.runtime.request import SampleRequest
from eecompile.serve.limits import Limits

Number = int | float
Values = Number | list[Any]
Prompt = Annotated[str, Field(max_length=10_000)]
Prompts = Prompt | Annotated[list[Prompt], Field(min_length=1)]


class SampleBody(BaseModel):
    """Which samples; what is left out takes the recipe's default."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"n": 4, "seed": 7, "schedule": "full"},
                {"n": 1, "solver": "dpmpp-2m", "steps": 20, "conditions": {"label": 3}},
                {"prompt": "a cat in the snow", "negative": "blurry"},
            ]
        },
    )

    n: Annotated[
        int | None,
        Field(ge=1, description="Number of samples; by default one, or one for each prompt."),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**64, description="Same seed, same samples.")] = 0
    first: Annotated[int, Field(ge=0, description="Index of the first sample.")] = 0
    prompt: Annotated[
        Prompts | None,
        Field(description="Where the network has an encoder: for all samples, or one for each."),
    ] = None
    negative: Annotated[
        Prompts | None,
        Field(description="Likewise, what guidance leads away from; by default nothing."),
    ] = None
    latents: Annotated[
        bool, Field(description="Samples as they are, where the network has a decoder.")
    ] = False
    solver: Annotated[
        str | None, Field(max_length=500, description="Such as ddim or dpmpp-2m.")
    ] = None
    steps: Annotated[int | None, Field(ge=1, description="Number of steps.")] = None
    schedule: Annotated[
        str | int | list[int | str] | None,
        Field(description="A name, a depth, or choices over equal slices of time."),
    ] = None
    conditions: Annotated[
        dict[str, Values],
        Field(description="By name, a value for all samples or a list with one for each."),
    ] = {}
    nulls: Annotated[dict[str, Values], Field(description='What stands for "no condition".')] = {}
    guidance: Annotated[
        Number | list[Number] | None,
        Field(description="Scale for all samples or one for each; 1 is none."),
    ] = None
    guidance_interval: Annotated[
        list[Number] | None,
        Field(min_length=2, max_length=2, description="Times between which guidance acts."),
    ] = None
    shape: Annotated[
        list[int] | None, Field(max_length=16, description="Of a sample, if it may vary.")
    ] = None
    priority: Annotated[
        float, Field(description="A head start in seconds: how much older it counts.")
    ] = 0.0
    deadline: Annotated[float | None, Field(gt=0, description="Seconds after which it fails.")] = (
        None
    )

    @property
    def count(self) -> int:
        """The number of samples.

        Raises:
            UsageError: there are other numbers of prompts and samples.
        """
        return count_of(self.n, self.prompt)

    def request(self) -> SampleRequest:
        """Which samples, as a sampler takes it."""
        interval = self.guidance_interval
        return SampleRequest(
            n=self.count,
            seed=self.seed,
            first=self.first,
            guidance=self.guidance,
            guidance_interval=None if interval is None else (interval[0], interval[1]),
            conditions=self.conditions,
            nulls=self.nulls,
            shape=self.shape,
        )

    def check(self, limits: Limits, usual: Sequence[int]) -> None:
        """Pass when it asks for no more than it may.

        Args:
            limits: what it may.
            usual: shape of a sample, unless it asks for another.

        Raises:
            UsageError: it asks for more.
        """
        limits.check(
            n=self.count,
            shape=self.shape or usual,
            steps=self.steps,
            priority=self.priority,
            deadline=self.deadline,
        )


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong first: found, expected, remedy."""
    error = errors[0]
    where = [str(part) for part in error["loc"][1:]]
    named = 2 if where[:1] in (["conditions"], ["nulls"]) else 1
    name, kind = ".".join(where[:named]), error["type"]
    if kind == "extra_forbidden":
        fields = ", ".join(SampleBody.model_fields)
        return f"found a field {name[:100]!r}; expected only {fields}; remove or rename it."
    if kind == "json_invalid":
        reason = one_line(error.get("ctx", {}).get("error", ""))
        return f"found a body that is no JSON ({reason}); expected an object; fix its syntax."
    if not where:
        return (
            "found a body that is no JSON object; expected one, which may be empty; send {} with "
            "Content-Type: application/json."
        )
    same = [each["msg"] for each in errors if each["loc"][:2] == error["loc"][:2]]
    forms = dict.fromkeys(one_line(each).removeprefix("Input should be ") for each in same)
    expected, given = " or ".join(forms), one_line(repr(error.get("input")))[:100]
    return f"found {name[:100]} = {given}; expected {expected}; fix it."
