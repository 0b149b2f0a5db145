"""The public names, and that foreign exceptions do not cross the seams."""

import inspect
import json
import shutil
import socket
import threading

import numpy as np
import onnx
import pytest

import offramp as off
from offramp import errors
from offramp.bundle.int8 import int8_graph
from offramp.connect import connect
from offramp.runtime.stages import check_tensor
from offramp.runtime.tail import TailRequest
from offramp.serving.channel import GrpcChannel

NAMES = [
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
    "UEEUCB",
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


def test_the_public_names():
    assert sorted(off.__all__) == NAMES


def test_every_name_says_where_it_lives():
    assert sorted(off._NAMES) == sorted(off.__all__)
    assert len(set(off.__all__)) == len(off.__all__)
    assert set(NAMES) <= set(dir(off))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_says_what_it_is(name):
    value = getattr(off, name)
    assert value.__name__ == name
    assert value.__module__ == f"offramp.{off._NAMES[name]}"
    text = inspect.getdoc(value)
    assert text
    assert text.splitlines()[0].endswith("."), text.splitlines()[0]
    if inspect.isclass(value):
        assert vars(value).get("__doc__"), "the docstring is its base class's"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Egde'"):
        _ = off.Egde


# --- seams ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tail(digits_bundle):
    return off.Tail(off.Stages(off.Bundle.load(digits_bundle)))


def foreign_model(inner=4):
    """x (N, 4) times a matrix of as many rows as `inner`."""
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", w]) for n, w in (("x", 4), ("y", 2))
    ]
    weight = onnx.numpy_helper.from_array(np.ones((inner, 2), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def hide_weights(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")


@pytest.fixture
def seams(tail, digits_bundle, tmp_path):
    """Calls into the library, each with what it meets inside; by name."""
    bundle = tail.bundle
    name = bundle.manifest.name
    good = np.zeros((1, 1, 28, 28), np.float32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    opened = []

    def copied(change):
        target = tmp_path / "copy"
        shutil.copytree(digits_bundle, target)
        change(target)
        return off.Bundle.load(target)

    def edited(file, **changes):
        def change(root):
            path = root / file
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return lambda: copied(change)

    def channel(address):
        opened.append(GrpcChannel(address))
        return opened[-1]

    def closed():
        found = channel(nobody)
        found.close()
        return found

    def twice():
        with off.GrpcServer(tail, port=0) as server:
            off.GrpcServer(tail, port=server.port)

    def slow():
        go = threading.Event()

        class SlowTail(off.Tail):
            def admit(self, request):
                assert go.wait(60)
                return super().admit(request)

        with off.GrpcServer(SlowTail(tail.stages), port=0) as server:
            one = channel(f"127.0.0.1:{server.port}")
            one.ping_ms(30)
            try:
                one.infer(TailRequest(name, {"input": good}), 0.1)
            finally:
                go.set()

    def over_the_wire(request):
        with off.GrpcServer(tail, port=0) as server:
            channel(f"127.0.0.1:{server.port}").infer(request, 30)

    def foreign(change):
        def load():
            model = foreign_model()
            change(model)
            path = tmp_path / "foreign.onnx"
            path.write_bytes(model.SerializeToString())
            off.find_cuts(path)

        return load

    yield {
        # onnx
        "an ONNX file that is none": lambda: off.find_cuts(bundle.path / "manifest.json"),
        "an ONNX file that is not valid": foreign(lambda m: m.graph.node[0].input.__setitem__(0, "nobody")),
        "an ONNX operator that does not run": foreign(lambda m: setattr(m.graph.node[0], "domain", "com.acme")),
        "an ONNX graph whose shapes clash": lambda: off.find_cuts(foreign_model(inner=5)),
        "weights outside the model's folder": foreign(hide_weights),
        "samples that the quantiser cannot run": lambda: int8_graph(foreign_model(), [{"x": good}]),
        # pydantic
        "a manifest with a wrong field": edited("manifest.json", name=7),
        "a manifest with an unknown field": edited("manifest.json", more=1),
        "a tuning with a wrong field": edited("tuning.json", temperatures=[-1, 1, 1]),
        "a manifest that is no JSON": lambda: copied(lambda root: (root / "manifest.json").write_text("{")),
        "a manifest that is a list": lambda: copied(lambda root: (root / "manifest.json").write_text("[]")),
        "preprocessing that cannot be": lambda: off.Preprocessing(color="pink", height=28, width=28),
        # onnxruntime
        "a stage fed the wrong type": lambda: tail.stages.stage(0, [good.astype(np.float64)]),
        "a stage fed the wrong shape": lambda: tail.stages.stage(0, [good[:, :, :5]]),
        "an exit fed the wrong shape": lambda: tail.stages.exit(0, [good]),
        "an encoder fed the wrong type": lambda: tail.stages.encode(0, "uint8", [good.astype(np.int64)]),
        "an unknown provider": lambda: off.Stages(bundle, provider="tpu"),
        "a tail fed the wrong shape": lambda: tail.infer(TailRequest(name, {"input": good[:, :, :5]})),
        "a tail fed NaN": lambda: tail.infer(TailRequest(name, {"input": good * np.nan})),
        "an edge fed the wrong shape": lambda: off.Edge(bundle).infer(good[:, :, :5]),
        "a tensor that does not fit": lambda: check_tensor(good, bundle.manifest.cut(0)[0]),
        # grpc
        "nobody there, infer": lambda: channel(nobody).infer(TailRequest(name, {"input": good}), 10),
        "nobody there, ping": lambda: channel(nobody).ping_ms(10),
        "nobody there, check": lambda: channel(nobody).check(name, bundle.digest, 10),
        "a closed channel": lambda: closed().infer(TailRequest(name, {"input": good}), 10),
        "no time": slow,
        "a port in use": twice,
        "no address": lambda: connect("nowhere", bundle),
        "refused over the wire": lambda: over_the_wire(TailRequest("other", {"input": good})),
        "another digest over the wire": lambda: over_the_wire(TailRequest(name, {"input": good}, "0" * 64)),
        "a type that cannot travel": lambda: channel(nobody).infer(
            TailRequest(name, {"input": good.astype(np.float64)}), 10
        ),
    }
    for one in opened:
        one.close()


SEAMS = {
    "an ONNX file that is none": errors.ExportError,
    "an ONNX file that is not valid": errors.ExportError,
    "an ONNX operator that does not run": errors.ExportError,
    "an ONNX graph whose shapes clash": errors.ExportError,
    "weights outside the model's folder": errors.ExternalDataError,
    "samples that the quantiser cannot run": errors.ExportError,
    "a manifest with a wrong field": errors.BundleManifestError,
    "a manifest with an unknown field": errors.BundleManifestError,
    "a tuning with a wrong field": errors.BundleManifestError,
    "a manifest that is no JSON": errors.BundleManifestError,
    "a manifest that is a list": errors.BundleManifestError,
    "preprocessing that cannot be": errors.ConfigError,
    "a stage fed the wrong type": errors.StageError,
    "a stage fed the wrong shape": errors.StageError,
    "an exit fed the wrong shape": errors.StageError,
    "an encoder fed the wrong type": errors.StageError,
    "an unknown provider": errors.ConfigError,
    "a tail fed the wrong shape": errors.InputError,
    "a tail fed NaN": errors.InputError,
    "an edge fed the wrong shape": errors.InputError,
    "a tensor that does not fit": errors.InputError,
    "nobody there, infer": errors.ServerUnavailableError,
    "nobody there, ping": errors.ServerUnavailableError,
    "nobody there, check": errors.ServerUnavailableError,
    "a closed channel": errors.ServerUnavailableError,
    "no time": errors.DeadlineError,
    "a port in use": errors.PortError,
    "no address": errors.AddressError,
    "refused over the wire": errors.ServerRefusedError,
    "another digest over the wire": errors.DigestMismatchError,
    "a type that cannot travel": errors.InputError,
}


@pytest.mark.parametrize(("seam", "expected"), SEAMS.items(), ids=SEAMS)
def test_foreign_exceptions_do_not_cross_the_seam(seams, seam, expected):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        seams[seam]()
    assert type(caught.value) is expected
    assert isinstance(caught.value, off.OfframpError)
    assert str(caught.value)


def test_every_seam_is_tried(seams):
    assert set(seams) == set(SEAMS)
