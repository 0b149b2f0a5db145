"""A runtime for MLServer that holds a bundle's tails: its manifest, ONNX Runtime, and nothing of offramp.

MLServer loads `tails.Tail` once per model; `parameters.extra` of its model-settings.json names the bundle, cut and
mode. It answers with `logits` alone, and passes over the request parameters `digest` and `final`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse


@functools.cache
def session(file: Path) -> ort.InferenceSession:
    """Loaded once for all tails that share it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Tail(MLModel):
    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        bundle, cut, mode = Path(extra["bundle"]), extra["cut"], extra["mode"]
        manifest = json.loads((bundle / "manifest.json").read_text())
        codecs = [c["decoder"] for c in manifest["codecs"] if (c["cut"], c["mode"]) == (cut, mode)]
        graphs = [*codecs, *(stage["graph"] for stage in manifest["stages"][cut + 1 :])]
        self.chain = [session(bundle / graph["file"]) for graph in graphs]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensors = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        wanted = {value.name for value in self.chain[0].get_inputs()}
        if set(tensors) != wanted:
            raise InferenceError(f"{self.name} takes {', '.join(sorted(wanted))}")
        for part in self.chain:
            names = [value.name for value in part.get_outputs()]
            tensors = dict(zip(names, part.run(names, tensors), strict=True))
        (logits,) = tensors.values()
        return InferenceResponse(
            model_name=self.name, id=payload.id, outputs=[NumpyCodec.encode_output("logits", logits)]
        )
