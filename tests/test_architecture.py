"""What may import what, what an edge device needs, and the tree of errors."""

import ast
import functools
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import offramp
from offramp import errors

ROOT = Path(offramp.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
#: From left to right; a module imports offramp modules of its own or of an earlier group only.
ORDER = (
    "errors",
    "config",
    "tables",
    "interval",
    "evalmode",
    "inputs",
    "datasets",
    "sparse",
    "exits",
    "bundle",
    "policy",
    "runtime",
    "serving",
    "connect",
    "observe",
    "replay",
    "report",
    "recipes",
    "reproduce",
    "demo",
    "cli",
)
SPARSE = (
    "density",
    "pattern",
    "block",
    "structured",
    "clash_free",
    "registry",
    "layers",
    "counting",
    "convolution",
    "budget",
    "report",
    "config",
    "allocation",
    "uses",
    "sparsify",
)
EXEMPT = {ROOT / "__init__.py", ROOT / "__main__.py"}
MOST_LINES = 350
BANNED = (
    "torch",
    "onnx",
    "onnxscript",
    "lightning",
    "matplotlib",
    "jinja2",
    "pooch",
    "prometheus_client",
    "opentelemetry",
    "yaml",
    "aiohttp",
    "numba",
    "river",
    "ray",
)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return tuple(part for part in parts if part != "__init__")


class Imports(ast.NodeVisitor):
    """The offramp modules that a file imports when it runs, as tuples below `offramp`."""

    def __init__(self, path):
        self.path, self.found = path, set()

    def visit_If(self, node):
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                self.visit(other)
            return
        self.generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"{self.path} imports relatively"
        # `from offramp.sparse import layers` names a module, `from offramp.errors import X` does not.
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            inner = ROOT.joinpath(*full.split(".")[1:])
            is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
            self._add(full if is_module else node.module)

    def _add(self, name):
        top, *rest = name.split(".")
        if top == "offramp":
            self.found.add(tuple(rest))


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path):
    visitor = Imports(path)
    visitor.visit(parsed(path))
    return visitor.found


def name_of(path):
    return str(path.relative_to(ROOT))


def test_every_module_has_its_place_in_the_order():
    groups = {module_of(path)[0] for path in SOURCES if path not in EXEMPT}
    assert groups <= set(ORDER)


@pytest.mark.parametrize("path", [p for p in SOURCES if p not in EXEMPT], ids=name_of)
def test_a_module_imports_only_from_its_left(path):
    here = module_of(path)
    for there in imports_of(path):
        if not there:  # the root, whose public names live in `connect` and to its left
            assert ORDER.index(here[0]) > ORDER.index("connect"), f"{name_of(path)} imports offramp itself"
            continue
        assert there[0] in ORDER, there
        assert ORDER.index(there[0]) <= ORDER.index(here[0]), f"{'.'.join(here)} imports {'.'.join(there)}"
        if here[0] == there[0] == "sparse" and len(here) == len(there) == 2:
            assert SPARSE.index(there[1]) < SPARSE.index(here[1]), f"{'.'.join(here)} imports {'.'.join(there)}"


def test_no_imports_go_round_in_a_circle():
    graph = {module_of(p): imports_of(p) for p in SOURCES if p not in EXEMPT}
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " → ".join(".".join(m) for m in [*under_way, module])
        if module in done or module not in graph:
            return
        under_way.append(module)
        for other in graph[module]:
            visit(other)
        done.add(under_way.pop())

    for module in graph:
        visit(module)
    assert len(done) > 20


@pytest.mark.parametrize(("package", "place"), [("numba", "policy/compiled.py"), ("river", "policy/drift.py")])
def test_what_policies_may_use_is_imported_in_one_place_and_only_when_it_is_called(package, place):
    importing = {
        name_of(path): node.col_offset
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == package for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package)
    }
    assert set(importing) == {place}
    assert importing[place] > 0


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines; a file is one idea"


# --- the edge without torch and onnx --------------------------------------------------------------------

EDGE_SIDE = [
    "offramp",
    "offramp.connect",
    *(f"offramp.exits.{name}" for name in ("calibration", "confidence", "thresholds")),
    "offramp.cli.tuning",
    "offramp.report.tuning",
    "offramp.observe.logs",
    *(f"offramp.bundle.{name}" for name in ("bundle", "manifest", "preprocessing", "onnxfile")),
    *(
        "offramp." + ".".join(module_of(path))
        for path in SOURCES
        # HTTP, metrics, KServe's YAML and Ray are extras of the server's; whoever quantises has onnx.
        if path.parent.name in ("policy", "runtime", "serving")
        and path.stem not in ("http", "kserve", "quantization", "ray")
    ),
]

BARE = """
import importlib, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = {argv!r}
{body}
"""


def run_bare(body, *argv):
    """Runs Python code where what an edge device lacks cannot be imported; gives what it prints as JSON."""
    code = BARE.format(banned=BANNED, argv=["-c", *map(str, argv)], body=body)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_edge_side_imports_neither_torch_nor_onnx():
    loaded = run_bare(
        """
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
""",
        *EDGE_SIDE,
    )
    assert not set(BANNED) & set(loaded)
    assert {"offramp", "onnxruntime", "grpc"} <= set(loaded)


def test_the_public_edge_names_work_and_the_others_say_what_to_install():
    said = run_bare(
        """
import offramp as off
from offramp.errors import MissingExtraError
said = {}
for name in off.__all__:
    try:
        getattr(off, name)
        said[name] = "here"
    except MissingExtraError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
    )
    torch_side = {
        "ConvHead",
        "DeepHead",
        "DistilledLoss",
        "FeatureCache",
        "JointLoss",
        "MultiExit",
        "MultiExitModule",
        "PooledHead",
        "SparseConv1d",
        "SparseConv2d",
        "SparseLinear",
        "TokenHead",
        "calibrate",
        "evaluate",
        "export",
        "fit",
        "sparsify_",
        "suggest_exits",
    }
    onnx_side = {"Cut", "best_cuts", "bundle_from_onnx", "cuts_at", "find_cuts", "quantize_stages"}
    observing = {"EdgeMetrics", "EdgeTracer"}
    assert {name for name, text in said.items() if text != "here"} == torch_side | onnx_side | observing
    for name in torch_side | onnx_side | observing:
        extra = "observe" if name in observing else "onnx" if name in onnx_side else "train"
        assert f"offramp.{name}" in said[name]
        assert f"pip install 'offramp[{extra}]'" in said[name]


def test_cutting_an_onnx_model_needs_no_torch():
    loaded = run_bare(
        """
sys.meta_path[0].find_spec = lambda name, path=None, target=None: None  # onnx may be imported here
import offramp as off
off.find_cuts, off.bundle_from_onnx
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    )
    assert {"onnx", "networkx"} <= set(loaded)
    assert not {"torch", "onnxscript", "lightning"} & set(loaded)


def test_edge_and_server_run_without_torch_and_onnx(digits_bundle, digit_images, tmp_path):
    import numpy as np

    images = tmp_path / "images.npy"
    np.save(images, digit_images[0][:8])
    results = run_bare(
        """
import numpy as np
import offramp as off
bundle = off.Bundle.load(sys.argv[1])
with off.GrpcServer(off.Tail(off.Stages(bundle)), port=0) as server:
    with off.Edge(bundle, f"127.0.0.1:{server.port}", off.ServerOnly(), deadline_ms=30_000) as edge:
        results = [r.to_dict() for r in edge.run(np.load(sys.argv[2]))]
print(json.dumps(results))
""",
        digits_bundle,
        images,
    )
    assert [(r["index"], r["status"], r["where"]) for r in results] == [(i, "ok", "server") for i in range(8)]


COMMAND = """
import contextlib, io
from offramp.cli import main
sys.argv[0] = "offramp"
said, code = io.StringIO(), 0
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
        main()
    except SystemExit as left:
        code = left.code
print(json.dumps([code or 0, said.getvalue()]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "--dataset", "mnist-subset", "--max-drop", "0.2"),
        ("modes", "--dataset", "mnist-subset", "--limit", "50", "--write"),
    ],
    ids=["tune", "modes"],
)
def test_tuning_needs_neither_torch_nor_onnx(digits_bundle, tmp_path, arguments):
    import shutil

    shutil.copytree(digits_bundle, tmp_path / "copy")
    code, said = run_bare(COMMAND, arguments[0], tmp_path / "copy", *arguments[1:])
    assert code == 0, said
    assert "wrote" in said


def test_a_run_that_nobody_watches_needs_nothing_for_it(digits_bundle, digit_images, tmp_path):
    import numpy as np

    np.save(tmp_path / "images.npy", digit_images[0][:2])
    options = ("--log-format", "json", "--log-level", "info")
    code, said = run_bare(COMMAND, "run", digits_bundle, tmp_path / "images.npy", *options)
    assert code == 0, said
    assert json.loads(said.splitlines()[-1])["ok"] == 2


@pytest.mark.parametrize(
    "arguments", [("run", "--traces"), ("run", "--metrics-port", "0"), ("serve", "--grpc-port", "0", "--traces")]
)
def test_what_watches_is_an_extra_and_says_so(digits_bundle, digit_images, tmp_path, arguments):
    import numpy as np

    np.save(tmp_path / "images.npy", digit_images[0][:2])
    command, *options = arguments
    inputs = [tmp_path / "images.npy"] if command == "run" else []
    code, said = run_bare(COMMAND, command, digits_bundle, *inputs, *options)
    assert code == 1
    assert "pip install 'offramp[observe]'" in said
    assert "Traceback" not in said


# --- errors ---------------------------------------------------------------------------------------------


def drawn_tree():
    """Name → (parent, what it says), from the module's docstring."""
    tree, above = {}, []
    for line in inspect.getdoc(errors).splitlines():
        found = re.match(r"^([│├└─ ]*)([A-Z]\w+(?:Error))(?:\s{2,}(.*))?$", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        assert found[2] not in tree, f"{found[2]} is drawn twice"
        above = above[:depth]
        tree[found[2]] = (above[-1] if above else None, (found[3] or "").strip())
        above.append(found[2])
    return tree


CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def test_the_tree_of_errors_draws_every_class_once():
    assert set(drawn_tree()) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_errors_are_as_drawn(name):
    kind = CLASSES[name]
    parent, says = drawn_tree()[name]
    assert issubclass(kind, errors.OfframpError)
    ours = [base.__name__ for base in kind.__bases__ if base.__module__ == errors.__name__]
    assert ours == ([] if parent is None else [parent])
    if parent is not None:
        words = says.replace(" (also a ValueError)", "")
        assert kind.__doc__.rstrip(".").lower() == words.lower()
    assert ("also a ValueError" in says) <= issubclass(kind, ValueError)


def test_every_error_raised_by_name_is_one_of_ours_or_pythons():
    """No file raises an exception of grpc, onnxruntime or pydantic itself."""
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised = ast.unparse(node.exc.func)
                assert not raised.startswith(("grpc.", "ort.", "pydantic.", "onnx.")), f"{name_of(path)}: {raised}"
