"""The model in Triton that gives one response: it asks the one that holds the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eecompile.decoding import from_json


class UnaryModel:
    """``TritonPythonModel`` of the model ``NAME``; see :mod:`eecompile.serve.triton`."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Read which model has the engines."""
        parameters = from_json(arguments["model_config"], dict[str, Any])["parameters"]
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
