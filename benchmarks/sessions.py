"""Modules as ONNX Runtime sessions with one thread, for the benchmarks that compare runtimes."""

from __future__ import annotations

import onnxruntime as ort
import torch
from torch import Tensor, nn

from offramp.bundle.codec import OPSET
from offramp.bundle.export import quiet_exporter

__all__ = ["layer_session", "session"]


def session(content: bytes) -> ort.InferenceSession:
    """An ONNX file as a session with one thread, set up as `offramp.runtime.stages` does."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def layer_session(layer: nn.Module, example: Tensor) -> ort.InferenceSession:
    """A layer alone, exported with a dynamic batch; its input is `x`."""
    with quiet_exporter():
        program = torch.onnx.export(
            layer.eval(),
            (torch.cat([example, example])[:2],),  # a batch of one would be taken for a constant
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            input_names=["x"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns the program
    return session(program.model_proto.SerializeToString())
