"""ONNX files that are broken, hostile, or cannot be cut as they are: each with an error of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx_graphs import Builder, inception, value

from offramp.bundle.cuts import find_cuts
from offramp.bundle.onnxload import load_onnx, prepared
from offramp.bundle.shapes import session
from offramp.errors import ExportError, ExternalDataError


def small(batch: int | str = "N", last: int | str = 4, reshape: bool = False) -> ModelProto:
    b = Builder()
    x = b.add("Relu", b.add("MatMul", "x", b.weight(4, 300)))
    if reshape:
        x = b.add("Reshape", b.add("Reshape", x, b.ints(int(batch), 30, 10)), b.ints(int(batch), -1))
    return b.model(
        [value("x", batch, last)], [value(b.add("MatMul", x, b.weight(300, 2)), batch, 2)]
    )  # fmt: skip


def saved(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A model with its weights in a second file."""
    file = tmp_path / "model" / "net.onnx"
    file.parent.mkdir()
    onnx.save(small(), file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return file


def relocated(file: Path, **changes: str) -> Path:
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)
    return saved(model, file)


# --- weights in other files -----------------------------------------------------------------------------


def test_weights_beside_the_model_are_read(split: Path) -> None:
    model = load_onnx(split)
    assert all(t.data_location == TensorProto.DEFAULT for t in model.graph.initializer)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(session(model).run(None, {"x": x})[0], session(small()).run(None, {"x": x})[0])


def test_weights_below_the_model_are_read(split: Path) -> None:
    (split.parent / "data").mkdir()
    (split.parent / "weights.bin").rename(split.parent / "data" / "weights.bin")
    assert len(find_cuts(load_onnx(relocated(split, location="data/weights.bin")))) == 1


@pytest.mark.parametrize("location", ["../weights.bin", "data/../../weights.bin", "..\\weights.bin", "", "a\0b"])
def test_weights_outside_the_folder_are_refused(split: Path, location: str) -> None:
    (split.parent / "weights.bin").rename(split.parent.parent / "weights.bin")
    with pytest.raises(ExternalDataError, match="only lie in the model's own folder"):
        load_onnx(relocated(split, location=location))


def test_weights_at_an_absolute_path_are_refused(split: Path) -> None:
    with pytest.raises(ExternalDataError, match="only lie in the model's own folder"):
        load_onnx(relocated(split, location=str(split.parent / "weights.bin")))


@pytest.mark.parametrize("folder", [False, True])
def test_weights_behind_a_link_are_refused(split: Path, folder: bool) -> None:
    secret = split.parent.parent / "secret"
    secret.mkdir()
    (split.parent / "weights.bin").rename(secret / "weights.bin")
    if folder:
        (split.parent / "data").symlink_to(secret)
        relocated(split, location="data/weights.bin")
    else:
        (split.parent / "weights.bin").symlink_to(secret / "weights.bin")
    with pytest.raises(ExternalDataError, match="is a link; put a copy of the file there"):
        load_onnx(split)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "other.bin"}, "which is not there; copy it beside the model"),
        ({"offset": "10000000"}, "copy the file again"),
        ({"offset": "-1"}, "copy the file again"),
        ({"length": "99999999"}, "copy the file again"),
        ({"length": "3"}, "copy the file again"),
        ({"offset": "x"}, "is no number"),
    ],
)
def test_weights_that_are_not_all_there(split: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ExternalDataError, match=message):
        load_onnx(relocated(split, **changes))


def test_a_truncated_weights_file(split: Path) -> None:
    weights = split.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ExternalDataError, match=r"weights\.bin, which has \d+; copy the file again"):
        load_onnx(split)


def test_weights_inside_a_branch_are_found_too(tmp_path: Path) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../passwords")
    body = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "b", [], [value("y", 4)])
    b = Builder()
    more = b.add("Greater", b.add("ReduceMean", "x", keepdims=0), b.constant(np.array(0, np.float32)))
    b.nodes.append(helper.make_node("If", [more], ["z"], then_branch=body, else_branch=body))
    graph = helper.make_graph(b.nodes, "g", [value("x", "N", 4)], [value("z", 4)], b.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExternalDataError, match="'hidden'"):
        load_onnx(saved(model, tmp_path / "net.onnx"))


# --- files that are no model ----------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_part_of_a_file(tmp_path: Path, keep: float) -> None:
    content = inception().SerializeToString()
    (tmp_path / "part.onnx").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ExportError, match=r"part\.onnx"):
        load_onnx(tmp_path / "part.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x08\x08", np.random.default_rng(0).bytes(1000), b"{}"]
)
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="no ONNX file"):
        load_onnx(tmp_path / "net.onnx")


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.onnx", tmp_path):
        with pytest.raises(ExportError, match="cannot read"):
            load_onnx(path)


def without(part: str) -> ModelProto:
    model = small()
    model.graph.ClearField(part)
    return model


@pytest.mark.parametrize(
    ("part", "message"),
    [("node", "graph is empty"), ("input", "takes no input"), ("output", "has no output")],
)
def test_graphs_without_a_part(tmp_path: Path, part: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_onnx(saved(without(part), tmp_path / "net.onnx"))
    with pytest.raises(ExportError, match=message):
        prepared(without(part))


def test_a_graph_that_reads_what_nobody_makes(tmp_path: Path) -> None:
    model = small()
    model.graph.node[1].input[0] = "nobody"
    with pytest.raises(ExportError, match=r"no valid ONNX model: .*nobody"):
        load_onnx(saved(model, tmp_path / "net.onnx"))


# --- what ONNX Runtime lacks ----------------------------------------------------------------------------


def changed(how: Callable[[ModelProto], object]) -> ModelProto:
    model = small()
    how(model)
    return model


def of_another_domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.acme"
    model.graph.node[1].op_type = "Frobnicate"
    model.opset_import.append(helper.make_opsetid("com.acme", 3))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            of_another_domain,
            r"ONNX Runtime \S+ cannot run .*com\.acme:Frobnicate.*opsets ai\.onnx 17, com\.acme 3",
        ),
        (lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"), "Frobnicate.*out of standard operators"),
        (lambda m: setattr(m.opset_import[0], "version", 9999), "9999.*upgrade onnxruntime"),
        (lambda m: setattr(m, "ir_version", 9999), "IR 9999"),
        (lambda m: setattr(m, "ir_version", onnx.IR_VERSION), r"onnx: Unsupported model IR version: \d+, max"),
        (lambda m: setattr(m.opset_import[0], "version", 27), r"onnx: ONNX Runtime only .*Opset 27 is under"),
    ],
)
def test_operators_and_opsets_that_do_not_run(
    tmp_path: Path, how: Callable[[ModelProto], object], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        load_onnx(saved(changed(how), tmp_path / "net.onnx"))
    assert "onnxruntime_src" not in str(caught.value)


# --- shapes ---------------------------------------------------------------------------------------------


def test_a_dynamic_size_names_the_tensor_the_axis_and_the_tool() -> None:
    with pytest.raises(
        ExportError, match=r"axis 1 \('T'\) of input 'x' is dynamic.*--dim_param T --dim_value SIZE"
    ):
        prepared(small(last="T"))
    nameless = small()
    nameless.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    with pytest.raises(ExportError, match=r"axis 1 of input 'x' is dynamic.*export it again with a fixed size"):
        prepared(nameless)


def test_inputs_without_a_shape_or_a_batch() -> None:
    shapeless = small()
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ExportError, match="input 'x' has no shape"):
        prepared(shapeless)
    single = small()
    del single.graph.input[0].type.tensor_type.shape.dim[:]
    with pytest.raises(ExportError, match="input 'x' is a single number"):
        prepared(single)


def test_an_initialiser_that_is_listed_as_an_input_is_a_constant() -> None:
    """As IR 3 wanted it."""
    model = small()
    model.graph.input.extend(value(t.name, *t.dims) for t in model.graph.initializer)
    assert find_cuts(model) == find_cuts(small())


def test_local_functions_are_looked_into() -> None:
    model = small()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Gate", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gate", "own"
    assert [(c.bytes, c.macs_before) for c in find_cuts(model)] == [(1200, 1200)]


def test_a_batch_of_minus_one_is_a_dynamic_one() -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert find_cuts(model) == find_cuts(small())


def test_a_fixed_batch_is_named_with_the_way_out() -> None:
    with pytest.raises(ExportError, match=r"batch is fixed in the file: 1 of input 'x'.*--free-batch"):
        prepared(small(1))


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_freed(tmp_path: Path, batch: int, reshape: bool) -> None:
    """Reshapes to a constant shape that begins with it are freed too."""
    fixed = small(batch, reshape=reshape)
    free = load_onnx(saved(fixed, tmp_path / "net.onnx"), free_batch=True)
    assert find_cuts(free)
    x = np.random.default_rng(0).normal(size=(3 * batch, 4)).astype(np.float32)
    parts = [session(fixed).run(None, {"x": part})[0] for part in np.split(x, 3)]
    np.testing.assert_allclose(session(free).run(None, {"x": x})[0], np.concatenate(parts), atol=1e-6)


def test_a_dynamic_batch_stays_as_it_is(tmp_path: Path) -> None:
    assert load_onnx(saved(small(), tmp_path / "net.onnx"), free_batch=True) == small()


def mixing() -> ModelProto:
    """Subtracts the batch's mean: samples that are run together change each other."""
    b = Builder()
    x = b.add("MatMul", "x", b.weight(4, 8))
    x = b.add("Sub", x, b.add("Mul", b.add("ReduceMean", x, axes=[0]), b.constant(np.array(0.5, np.float32))))
    return b.model([value("x", 2, 4)], [value(b.add("MatMul", x, b.weight(8, 2)), 2, 2)])


def counting() -> ModelProto:
    """Adds a constant per place in the batch."""
    b = Builder()
    x = b.add("Add", b.add("MatMul", "x", b.weight(4, 8)), b.weight(2, 8))
    return b.model([value("x", 2, 4)], [value(b.add("MatMul", x, b.weight(8, 2)), 2, 2)])


@pytest.mark.parametrize("make", [mixing, counting])
def test_a_batch_that_cannot_be_freed(tmp_path: Path, make: Callable[[], ModelProto]) -> None:
    with pytest.raises(ExportError, match=r"cannot be made dynamic: .*export the model again"):
        load_onnx(saved(make(), tmp_path / "net.onnx"), free_batch=True)


def test_batches_of_different_sizes(tmp_path: Path) -> None:
    b = Builder()
    out = b.add("Add", b.add("MatMul", "x", b.weight(4, 2)), "z")
    model = b.model([value("x", 3, 4), value("z", 1, 2)], [value(out, 3, 2)])
    with pytest.raises(ExportError, match=r"different fixed sizes, \[1, 3\]"):
        load_onnx(saved(model, tmp_path / "net.onnx"), free_batch=True)


def test_shapes_that_inference_gives_up_on_are_measured() -> None:
    """Half of a size, by a division that onnx does not follow."""
    b = Builder()
    x = b.add("MatMul", "x", b.weight(4, 8))
    sizes = b.add("Shape", x)
    half = b.add("Div", b.add("Gather", sizes, b.ints(1)), b.ints(2))
    folded = b.add("Reshape", x, b.add("Concat", b.add("Gather", sizes, b.ints(0)), half, b.ints(2), axis=0))
    out = b.add("ReduceMean", b.add("MatMul", folded, b.weight(2, 3)), axes=[1], keepdims=0)
    model = b.model([value("x", "N", 4)], [value(out, "N", 3)])
    bare = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert folded not in {
        v.name for v in bare.graph.value_info if all(d.dim_value for d in v.type.tensor_type.shape.dim[1:])
    }
    (cut,) = find_cuts(model)
    assert (cut.name, cut.tensors[0].shape, cut.macs_before, cut.macs_after) == (folded, (4, 2), 32, 24)
