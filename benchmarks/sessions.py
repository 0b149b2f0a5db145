"""Modules as ONNX Runtime sessions with one thread, for the benchmarks that compare runtimes."""

from __future__ import annotations

import onnx
import onnxruntime as ort
from torch import Tensor, nn

from offramp.bundle.export import export_graph
from offramp.bundle.partition import partition
from offramp.exits.network import MultiExit

__all__ = ["layer_model", "session", "session_options"]


def session(content: bytes) -> ort.InferenceSession:
    """An ONNX file as a session with one thread and memory of its own."""
    return ort.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"])


def session_options() -> ort.SessionOptions:
    """Options for one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def layer_model(layer: nn.Module, example: Tensor) -> onnx.ModelProto:
    """A layer alone with a dynamic batch, input `x`, as a bundle would hold it if it were a stage.

    So the graph is exported and cut as a user's is: behind an exit, which needs an operation before it.
    """
    net = MultiExit(nn.Sequential(nn.ReLU(), layer), {"0": nn.Identity()})
    pieces = partition(export_graph(net, example), [["cut_0"]], ["exit_0"], final="exit_1")
    model = pieces.stages[1]
    model.graph.input[0].name = "x"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "cut_0":
                node.input[i] = "x"
    return model
