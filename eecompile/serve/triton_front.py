"""The model in Triton that gives one response: it asks the one that holds the engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class UnaryModel:
    """``TritonPythonModel`` of the model ``NAME``; see :mod:`eecompile.serve.triton`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Read which model has the engines."""
        parameters = json.loads(arguments["model_config"])["parameters"]
        self._stream = parameters["stream"]["string_value"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Give the samples of each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as triton

        asked = triton.InferenceRequest(
            model_name=self._stream,
            requested_output_names=["samples"],
            inputs=request.inputs(),
        )
        last = triton.InferenceResponse(error=triton.TritonError("found no answer"))
        for response in asked.exec(decoupled=True):
            if response.has_error():
                return triton.InferenceResponse(error=response.error())
            if response.output_tensors():
                last = triton.InferenceResponse(response.output_tensors())
        return last
