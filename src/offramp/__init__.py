"""Train a network sparse from the start, let easy inputs leave early, split the rest.

The public names stand here, flat. Those that need torch are loaded on first use, so an edge device, which
has none, imports only what it runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.bundle.bundle import Bundle
    from offramp.bundle.cuts import Cut, best_cuts, cuts_at, find_cuts
    from offramp.bundle.export import export
    from offramp.bundle.foreign import bundle_from_onnx
    from offramp.bundle.manifest import Preprocessing
    from offramp.connect import Edge
    from offramp.errors import OfframpError
    from offramp.exits.cache import FeatureCache
    from offramp.exits.evaluation import calibrate, evaluate
    from offramp.exits.heads import ConvHead, DeepHead, PooledHead, TokenHead
    from offramp.exits.network import MultiExit
    from offramp.exits.objective import DistilledLoss, JointLoss
    from offramp.exits.suggest import suggest_exits
    from offramp.exits.training import MultiExitModule, fit
    from offramp.observe.edge_metrics import EdgeMetrics
    from offramp.observe.edge_tracer import EdgeTracer
    from offramp.policy.base import Action, Observation, Policy
    from offramp.policy.cascade import ThresholdCascade
    from offramp.policy.cost import CostModel
    from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
    from offramp.policy.i_splitee import ISplitEE
    from offramp.policy.random import RandomArm
    from offramp.policy.splitee import SplitEE
    from offramp.policy.splitee_s import SplitEES
    from offramp.policy.uee import UEEUCB
    from offramp.runtime.modes import measure_modes
    from offramp.runtime.quantization import quantize_stages
    from offramp.runtime.repository import Repository
    from offramp.runtime.result import Result
    from offramp.runtime.stages import Stages
    from offramp.runtime.tail import Tail
    from offramp.serving.access import Access
    from offramp.serving.server import GrpcServer
    from offramp.serving.tls import Credentials, ServerTls
    from offramp.sparse.block import BlockPattern
    from offramp.sparse.clash_free import ClashFreePattern
    from offramp.sparse.config import SparsityConfig
    from offramp.sparse.convolution import SparseConv1d, SparseConv2d
    from offramp.sparse.layers import SparseLinear
    from offramp.sparse.pattern import Pattern
    from offramp.sparse.registry import pattern_from_recipe
    from offramp.sparse.report import SparsityReport
    from offramp.sparse.sparsify import sparsify_
    from offramp.sparse.structured import StructuredPattern

__version__ = "0.1.0"

#: name → module, and what to install where the module needs more than the edge has
_NAMES = {
    "Access": "serving.access",
    "Action": "policy.base",
    "BlockPattern": "sparse.block",
    "Bundle": "bundle.bundle",
    "ClashFreePattern": "sparse.clash_free",
    "ConvHead": "exits.heads",
    "CostModel": "policy.cost",
    "Credentials": "serving.tls",
    "Cut": "bundle.cuts",
    "DeepHead": "exits.heads",
    "DistilledLoss": "exits.objective",
    "DynamicSplit": "policy.dynamic_split",
    "Edge": "connect",
    "EdgeMetrics": "observe.edge_metrics",
    "EdgeOnly": "policy.fixed",
    "EdgeTracer": "observe.edge_tracer",
    "FeatureCache": "exits.cache",
    "FixedSplit": "policy.fixed",
    "GrpcServer": "serving.server",
    "ISplitEE": "policy.i_splitee",
    "JointLoss": "exits.objective",
    "MeasuredCost": "policy.cost",
    "MultiExit": "exits.network",
    "MultiExitModule": "exits.training",
    "Observation": "policy.base",
    "OfframpError": "errors",
    "Pattern": "sparse.pattern",
    "Policy": "policy.base",
    "PooledHead": "exits.heads",
    "Preprocessing": "bundle.manifest",
    "RandomArm": "policy.random",
    "Repository": "runtime.repository",
    "Result": "runtime.result",
    "ServerOnly": "policy.fixed",
    "ServerTls": "serving.tls",
    "SparseConv1d": "sparse.convolution",
    "SparseConv2d": "sparse.convolution",
    "SparseLinear": "sparse.layers",
    "SparsityConfig": "sparse.config",
    "SparsityReport": "sparse.report",
    "SplitEE": "policy.splitee",
    "SplitEES": "policy.splitee_s",
    "Stages": "runtime.stages",
    "StructuredPattern": "sparse.structured",
    "Tail": "runtime.tail",
    "ThresholdCascade": "policy.cascade",
    "TokenHead": "exits.heads",
    "UEEUCB": "policy.uee",
    "best_cuts": "bundle.cuts",
    "bundle_from_onnx": "bundle.foreign",
    "calibrate": "exits.evaluation",
    "cuts_at": "bundle.cuts",
    "evaluate": "exits.evaluation",
    "export": "bundle.export",
    "find_cuts": "bundle.cuts",
    "fit": "exits.training",
    "measure_modes": "runtime.modes",
    "pattern_from_recipe": "sparse.registry",
    "quantize_stages": "runtime.quantization",
    "sparsify_": "sparse.sparsify",
    "suggest_exits": "exits.suggest",
}

__all__ = [
    "UEEUCB",
    "Access",
    "Action",
    "BlockPattern",
    "Bundle",
    "ClashFreePattern",
    "ConvHead",
    "CostModel",
    "Credentials",
    "Cut",
    "DeepHead",
    "DistilledLoss",
    "DynamicSplit",
    "Edge",
    "EdgeMetrics",
    "EdgeOnly",
    "EdgeTracer",
    "FeatureCache",
    "FixedSplit",
    "GrpcServer",
    "ISplitEE",
    "JointLoss",
    "MeasuredCost",
    "MultiExit",
    "MultiExitModule",
    "Observation",
    "OfframpError",
    "Pattern",
    "Policy",
    "PooledHead",
    "Preprocessing",
    "RandomArm",
    "Repository",
    "Result",
    "ServerOnly",
    "ServerTls",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparsityConfig",
    "SparsityReport",
    "SplitEE",
    "SplitEES",
    "Stages",
    "StructuredPattern",
    "Tail",
    "ThresholdCascade",
    "TokenHead",
    "best_cuts",
    "bundle_from_onnx",
    "calibrate",
    "cuts_at",
    "evaluate",
    "export",
    "find_cuts",
    "fit",
    "measure_modes",
    "pattern_from_recipe",
    "quantize_stages",
    "sparsify_",
    "suggest_exits",
]

_TRAINING = ("torch", "lightning", "onnx", "onnxscript", "networkx")
_OBSERVING = ("prometheus_client", "opentelemetry")
#: What needs onnx and no torch.
_ONNX = ("bundle.cuts", "bundle.foreign", "runtime.quantization")


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"offramp.{_NAMES[name]}")
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent not in (*_TRAINING, *_OBSERVING):
            raise
        from offramp.errors import MissingExtraError

        extra = "observe" if absent in _OBSERVING else "onnx" if _NAMES[name] in _ONNX else "train"
        raise MissingExtraError(
            f"offramp.{name} needs {error.name}, which is not installed: pip install 'offramp[{extra}]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
