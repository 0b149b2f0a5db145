from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from offramp.bundle.partition import describe, graph_cost, partition
from offramp.errors import ExportError


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def made(
    nodes: list[NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, tuple[int, ...]] | None = None,
) -> ModelProto:
    """A checked model with inferred shapes, its weights drawn."""
    rng = np.random.default_rng(0)
    initialisers = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def run(model: ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString()).run(None, feed)


def chain() -> ModelProto:
    """input → Gemm → a → Relu → b → Gemm → c, with an exit at b."""
    return made(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "w2"], ["c"]),
            helper.make_node("MatMul", ["b", "w3"], ["e"]),
        ],
        [value("x", "N", 5)],
        [value("c", "N", 3), value("e", "N", 2)],
        {"w1": (5, 4), "b1": (4,), "w2": (4, 3), "w3": (4, 2)},
    )


X = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)


def test_pieces_chain_to_the_whole() -> None:
    model = chain()
    found = partition(model, [["b"]], ["e"], final="c")
    (cut,) = run(found.stages[0], x=X)
    assert found.exits[0] is not None
    whole_c, whole_e = run(model, x=X)
    np.testing.assert_allclose(run(found.stages[1], b=cut)[0], whole_c, atol=1e-6)
    np.testing.assert_allclose(run(found.exits[0], b=cut)[0], whole_e, atol=1e-6)
    assert found.depths == (1, 2)


def test_each_weight_is_stored_once() -> None:
    found = partition(chain(), [["b"]], ["e"], final="c")
    assert found.exits[0] is not None
    pieces = (*found.stages, found.exits[0])
    assert [sorted(t.name for t in p.graph.initializer) for p in pieces] == [["b1", "w1"], ["w2"], ["w3"]]


def test_several_cuts_some_without_an_exit() -> None:
    model = chain()
    found = partition(model, [["a"], ["b"]], [None, "e"], final="c")
    assert [p is None for p in found.exits] == [True, False]
    assert len(found.stages) == 3
    assert found.depths == (1, 1, 2)
    (a,) = run(found.stages[0], x=X)
    (b,) = run(found.stages[1], a=a)
    np.testing.assert_allclose(run(found.stages[2], b=b)[0], run(model, x=X)[0], atol=1e-6)


def residual() -> ModelProto:
    """input → Conv → a; a → Conv → Conv → d; Add(d, a) → e; e → Conv → f."""
    kernels = {f"w{i}": (2, 2, 3, 3) for i in range(4)}
    pads = {"pads": [1, 1, 1, 1]}
    return made(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], **pads),
            helper.make_node("Conv", ["a", "w1"], ["c"], **pads),
            helper.make_node("Conv", ["c", "w2"], ["d"], **pads),
            helper.make_node("Add", ["d", "a"], ["e"]),
            helper.make_node("Conv", ["e", "w3"], ["f"], **pads),
        ],
        [value("x", "N", 2, 5, 5)],
        [value("f", "N", 2, 5, 5)],
        kernels,
    )


def test_depth_counts_the_longest_path() -> None:
    assert partition(residual(), [["a"], ["e"]], [None, None], final="f").depths == (1, 3, 4)


def test_a_cut_of_two_tensors_may_separate_where_one_does_not() -> None:
    model = residual()
    found = partition(model, [["a", "c"]], [None], final="f")
    x = np.random.default_rng(2).normal(size=(2, 2, 5, 5)).astype(np.float32)
    a, c = run(found.stages[0], x=x)
    np.testing.assert_allclose(run(found.stages[1], a=a, c=c)[0], run(model, x=x)[0], rtol=1e-4, atol=1e-4)
    assert found.depths == (2, 4)


def test_a_cut_that_the_input_goes_around_is_refused() -> None:
    model = made(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["c"])],
        [value("x", "N", 5)],
        [value("c", "N", 5)],
    )
    with pytest.raises(ExportError, match=r"stage 1 needs the tensor 'x' besides a: the cut does not separate"):
        partition(model, [["a"]], [None], final="c")


def test_a_cut_that_another_tensor_goes_around_is_refused_by_that_tensors_name() -> None:
    with pytest.raises(ExportError, match=r"stage 1 needs the tensor 'a' besides c"):
        partition(residual(), [["c"]], [None], final="f")


def test_an_exit_that_is_not_fed_by_its_cut_is_refused() -> None:
    model = made(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["x"], ["e"]),
            helper.make_node("Abs", ["a"], ["c"]),
        ],
        [value("x", "N", 5)],
        [value("c", "N", 5), value("e", "N", 5)],
    )
    with pytest.raises(ExportError, match=r"exit 0 .*'x'"):
        partition(model, [["a"]], ["e"], final="c")


@pytest.mark.parametrize(
    ("cuts", "exits", "final"),
    [([["nope"]], ["e"], "c"), ([["b"]], ["nope"], "c"), ([["b"]], ["e"], "nope")],
)
def test_unknown_names_are_refused(cuts: list[list[str]], exits: list[str], final: str) -> None:
    with pytest.raises(ExportError, match="nope"):
        partition(chain(), cuts, exits, final=final)


def test_cuts_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ExportError, match="stage 1"):
        partition(chain(), [["b"], ["a"]], [None, None], final="c")


def test_a_number_of_exits_that_does_not_fit() -> None:
    with pytest.raises(ExportError, match="1 cuts need as many exits"):
        partition(chain(), [["b"]], [], final="c")


def two_inputs() -> ModelProto:
    """Gemm(x) → a; Mul(a, z) → b; Gemm(b) → c; Add(c, z) → d: z is needed early and late."""
    return made(
        [
            helper.make_node("Gemm", ["x", "w1"], ["a"]),
            helper.make_node("Mul", ["a", "z"], ["b"]),
            helper.make_node("Gemm", ["b", "w2"], ["c"]),
            helper.make_node("Add", ["c", "z"], ["d"]),
        ],
        [value("x", "N", 5), value("z", "N", 4)],
        [value("d", "N", 4)],
        {"w1": (5, 4), "w2": (4, 4)},
    )


def test_an_input_that_later_stages_need_is_handed_on() -> None:
    model = two_inputs()
    z = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    found = partition(model, [["a", "z"], ["z", "c"]], [None, None], final="d")
    tensors = [X, z]
    for stage, names in zip(found.stages, (["x", "z"], ["a", "z.cut_0"], ["z.cut_1", "c"]), strict=True):
        onnx.checker.check_model(stage, full_check=True)
        tensors = run(stage, **dict(zip(names, tensors, strict=True)))
    np.testing.assert_allclose(tensors[0], run(model, x=X, z=z)[0], atol=1e-6)
    assert found.depths == (1, 2, 2)


def test_what_is_handed_on_has_memory_of_its_own() -> None:
    """ONNX Runtime gives an output that is an input the same memory, which may be freed too early."""
    z = np.ones((6, 4), np.float32)
    found = partition(two_inputs(), [["a", "z"], ["z", "c"]], [None, None], final="d")
    _, first = run(found.stages[0], x=X, z=z)
    second, _ = run(found.stages[1], a=z, **{"z.cut_0": first})
    z[:], first[:] = 7, 7
    assert (second == 1).all()


@pytest.mark.parametrize("called", ["a", "cut_0", "input", "cut_1"])
def test_pieces_with_the_names_of_a_bundle(called: str) -> None:
    """Even if the graph uses one of these names for something else."""
    model = chain()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [called if name == "a" else name for name in names]
    for tensor in model.graph.value_info:
        tensor.name = called if tensor.name == "a" else tensor.name
    found = partition(model, [["b"], ["b"]], ["e", None], final="c", bundle_names=True)
    pieces = (*found.stages, found.exits[0])
    ends = [[v.name for v in (*p.graph.input, *p.graph.output)] for p in pieces if p is not None]
    assert ends == [["input", "cut_0"], ["cut_0", "cut_1"], ["cut_1", "exit_2"], ["cut_0", "exit_0"]]
    tensors = [X]
    for stage in found.stages:
        onnx.checker.check_model(stage, full_check=True)
        tensors = run(stage, **{stage.graph.input[0].name: tensors[0]})
    np.testing.assert_allclose(tensors[0], run(chain(), x=X)[0], atol=1e-6)


def test_an_input_that_is_needed_but_does_not_cross_is_named() -> None:
    with pytest.raises(ExportError, match=r"stage 1 needs the tensor 'z' besides b"):
        partition(two_inputs(), [["b"]], [None], final="d")


def test_a_graph_without_inputs_is_refused() -> None:
    model = made([helper.make_node("Relu", ["w"], ["c"])], [], [value("c", 2)], {"w": (2,)})
    with pytest.raises(ExportError, match="takes no input"):
        partition(model, [], [], final="c")


def sized() -> ModelProto:
    """Relu → a; Neg → b; reshape b to (len(x), size of a's second axis, 1): two shapes of earlier tensors."""
    constants = {"zero": [0], "one": [1]}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Shape", ["x"], ["sx"]),
        helper.make_node("Gather", ["sx", "zero"], ["n"]),
        helper.make_node("Shape", ["a"], ["sa"], start=1),
        helper.make_node("Concat", ["n", "sa", "one"], ["s"], axis=0),
        helper.make_node("Reshape", ["b", "s"], ["c"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", "N", 5)],
        [value("c", "N", 5, 1)],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
        value_info=[value("a", "N", 5), value("b", "N", 5)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_of_earlier_tensors_need_not_cross(batch: int) -> None:
    model = sized()
    found = partition(model, [["a"], ["b"]], [None, None], final="c")
    assert [[i.name for i in stage.graph.input] for stage in found.stages] == [["x"], ["a"], ["b"]]
    tensors = [X[:batch]]
    for stage in found.stages:
        onnx.checker.check_model(stage, full_check=True)
        tensors = run(stage, **{i.name: t for i, t in zip(stage.graph.input, tensors, strict=True)})
    np.testing.assert_array_equal(tensors[0], run(model, x=X[:batch])[0])


def test_a_tensor_whose_sizes_were_read_early_may_be_computed_late() -> None:
    """The head reshapes b to the sizes of a; a itself belongs to the tail."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Reshape", ["b", "s"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["d"]),
    ]
    model = made(nodes, [value("x", "N", 5)], [value("d", "N", 5)])
    found = partition(model, [["x", "c"]], [None], final="d")
    assert [[n.op_type for n in stage.graph.node if n.op_type in ("Relu", "Neg")] for stage in found.stages] == [
        ["Neg"],
        ["Relu"],
    ]
    x, c = run(found.stages[0], x=X)
    (d,) = run(found.stages[1], **{"x.cut_0": x, "c": c})
    np.testing.assert_array_equal(d, run(model, x=X)[0])


def test_sizes_that_are_no_batch_have_to_cross() -> None:
    """Where another axis may change too, its size is part of the sample."""
    model = sized()
    for entry in (*model.graph.input, *model.graph.value_info):
        entry.type.tensor_type.shape.dim[1].dim_param = "T"
    with pytest.raises(ExportError, match="stage 1 needs the tensor 'a' besides b"):
        partition(model, [["b"]], [None], final="c")


def branching() -> ModelProto:
    """Relu → a; Neg(a) → b; If(sum of b > 0) gives a or b, which its branches take from outside."""

    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Identity", [name], ["y"])], name, [], [value("y", "N", 5)])

    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["more"]),
            helper.make_node("If", ["more"], ["c"], then_branch=branch("a"), else_branch=branch("b")),
        ],
        "g",
        [value("x", "N", 5)],
        [value("c", "N", 5)],
        [zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def test_what_a_branch_takes_from_outside_counts_as_its_input() -> None:
    model = branching()
    whole = partition(model, [], [], final="c")
    np.testing.assert_array_equal(run(whole.stages[0], x=X)[0], run(model, x=X)[0])
    with pytest.raises(ExportError, match="'a'"):
        partition(model, [["b"]], [None], final="c")


def test_macs_of_convolutions_by_hand() -> None:
    model = made(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 1]),
            helper.make_node("Conv", ["a", "w2"], ["b"], group=4),
        ],
        [value("x", "N", 3, 8, 10)],
        [value("b", "N", 12, 3, 6)],
        {"w1": (8, 3, 3, 3), "w2": (12, 2, 2, 5)},
    )
    found = graph_cost(model)
    assert found.macs == 8 * 4 * 10 * (3 * 9) + 12 * 3 * 6 * (2 * 10)
    assert found.parameters == 8 * 27 + 12 * 20


@pytest.mark.parametrize("transposed", [False, True])
def test_macs_of_gemm_by_hand(transposed: bool) -> None:
    model = made(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(transposed))],
        [value("x", "N", 7)],
        [value("y", "N", 3)],
        {"w": (3, 7) if transposed else (7, 3), "b": (3,)},
    )
    assert graph_cost(model).macs == 21
    assert graph_cost(model).parameters == 24


def test_macs_of_batched_matrix_products_by_hand() -> None:
    """Four blocks: (4, N, 5) times (4, 5, 6)."""
    model = made(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["t", "w"], ["u"]),
            helper.make_node("Transpose", ["u"], ["y"], perm=[1, 0, 2]),
        ],
        [value("x", "N", 4, 5)],
        [value("y", "N", 4, 6)],
        {"w": (4, 5, 6)},
    )
    assert graph_cost(model).macs == 4 * 5 * 6
    assert graph_cost(model).parameters == 4 * 5 * 6


def test_macs_of_attention_by_hand() -> None:
    """Products of two computed tensors count too: 9 tokens of 4 features against each other."""
    model = made(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        [value("x", "N", 9, 4)],
        [value("y", "N", 9, 9)],
    )
    assert graph_cost(model).macs == 9 * 9 * 4
    assert graph_cost(model).parameters == 0


def test_index_tensors_are_no_parameters() -> None:
    model = made(
        [helper.make_node("Gather", ["x", "index"], ["y"], axis=1)],
        [value("x", "N", 4), value("index", 2, kind=TensorProto.INT64)],
        [value("y", "N", 2)],
    )
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3]), "index"))
    assert graph_cost(model).parameters == 0


def test_describe() -> None:
    found = describe(chain(), "stages/x.onnx", b"1234", "0" * 64)
    assert (found.file, found.bytes, found.sha256) == ("stages/x.onnx", 4, "0" * 64)
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [("x", "float32", (5,))]
    assert [(t.name, t.shape) for t in found.outputs] == [("c", (3,)), ("e", (2,))]
    assert found.parameters == 20 + 4 + 12 + 8
    assert found.macs == 20 + 12 + 8


def test_describe_refuses_what_cannot_travel() -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    double = made(
        relu, [value("x", "N", 2, kind=TensorProto.DOUBLE)], [value("y", "N", 2, kind=TensorProto.DOUBLE)]
    )
    with pytest.raises(ExportError, match=r"'x' is DOUBLE; float32, uint8, int64, bool can travel"):
        describe(double, "f", b"", "0" * 64)
    dynamic = made(relu, [value("x", "N", "T")], [value("y", "N", "T")])
    with pytest.raises(ExportError, match=r"'x' has shape \['N', 'T'\]; only the batch"):
        describe(dynamic, "f", b"", "0" * 64)


def test_shapes_that_cannot_be_inferred_are_refused() -> None:
    model = made(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", "N", "T", 3)],
        [value("y", "N", "T", 2)],
        {"w": (3, 2)},
    )
    with pytest.raises(ExportError, match="cannot infer the shapes of MatMul"):
        graph_cost(model)
