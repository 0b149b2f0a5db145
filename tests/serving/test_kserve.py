"""InferenceServices: the YAML, read again, against the fields that KServe and Kubernetes know."""

from __future__ import annotations

import pytest
import yaml

import offramp as off
from offramp.errors import BundleError, ConfigError, ExportError
from offramp.serving.kserve import inference_service, write_kserve

URI = "s3://models/digits"
#: What is used here of the models in KServe's Python SDK 0.21 and in Kubernetes's: a field's name and its type.
PORTS = [{"containerPort": int, "name": str, "protocol": str}]
KNOWN = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {str: str}},
    "spec": {
        "predictor": {
            "model": {
                "modelFormat": {"name": str},
                "protocolVersion": str,
                "runtimeVersion": str,
                "storageUri": str,
                "ports": PORTS,
            },
            "containers": [
                {
                    "name": str,
                    "image": str,
                    "args": [str],
                    "env": [{"name": str, "value": str}],
                    "ports": PORTS,
                    "readinessProbe": {"grpc": {"port": int}},
                }
            ],
            "terminationGracePeriodSeconds": int,
        }
    },
}


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return off.Bundle.load(digits_bundle)


def assert_known(value, known, where="document"):
    if isinstance(known, list):
        assert isinstance(value, list), where
        for part in value:
            assert_known(part, known[0], f"{where}[]")
    elif isinstance(known, dict):
        assert isinstance(value, dict), where
        for key, part in value.items():
            assert str in known or key in known, f"{where} has no {key}"
            assert_known(part, known.get(key, known.get(str)), f"{where}.{key}")
    else:
        assert type(value) is known, where


@pytest.mark.parametrize("image", [None, "registry.example/offramp:1"])
@pytest.mark.parametrize("knative", [False, True])
def test_every_field_is_known(bundle, tmp_path, image, knative):
    name = write_kserve(bundle, tmp_path / "new" / "service.yaml", storage_uri=URI, image=image, knative=knative)
    document = yaml.safe_load((tmp_path / "new" / "service.yaml").read_text())
    assert document == inference_service(bundle, storage_uri=URI, image=image, knative=knative)
    assert_known(document, KNOWN)
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["metadata"]["name"] == name == "digits"
    assert document["metadata"]["annotations"]["offramp/digest"] == bundle.digest
    mode = document["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
    assert mode == ("Knative" if knative else "Standard")


@pytest.mark.parametrize(("knative", "port"), [(False, "grpc-port"), (True, "h2c")])
def test_triton(bundle, knative, port):
    predictor = inference_service(bundle, storage_uri=URI, knative=knative)["spec"]["predictor"]
    assert set(predictor) == {"model"}
    model = predictor["model"]
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "triton"}, "grpc-v2")
    assert model["storageUri"] == URI
    assert model["ports"] == [{"containerPort": 9000, "name": port, "protocol": "TCP"}]


def test_our_own_server(bundle):
    predictor = inference_service(bundle, storage_uri=URI, image="registry.example/offramp:1")["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert set(predictor) == {"containers", "terminationGracePeriodSeconds"}
    assert predictor["terminationGracePeriodSeconds"] > 30, "serve answers what is under way for up to 30 seconds"
    assert container["name"] == "kserve-container"
    assert container["env"] == [{"name": "STORAGE_URI", "value": URI}]
    assert [port["containerPort"] for port in container["ports"]] == [8001]
    assert container["readinessProbe"] == {"grpc": {"port": 8001}}
    assert not [option for option in container["args"] if "tls" in option], "such probes speak none"


def test_knative_takes_no_grace_period(bundle):
    image = "registry.example/offramp:1"
    predictor = inference_service(bundle, storage_uri=URI, image=image, knative=True)["spec"]["predictor"]
    assert set(predictor) == {"containers"}


def test_its_command_line_is_one_that_serve_takes(bundle):
    """Down to the bundle that is not there: `offramp` knows the command and each option."""
    from typer.testing import CliRunner

    from offramp.cli import app
    from offramp.errors import BundleFileError

    service = inference_service(bundle, storage_uri=URI, image="registry.example/offramp:1")
    (container,) = service["spec"]["predictor"]["containers"]
    done = CliRunner().invoke(app, container["args"])
    assert isinstance(done.exception, BundleFileError)
    assert "/mnt/models" in str(done.exception)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", "digits"),
        ("Fire_and.Smoke-2", "fire-and-smoke-2"),
        ("7segment", "bundle-7segment"),
        ("x" * 64, "x" * 48),
        ("a" * 47 + "-b", "a" * 47),
        ("0", "bundle-0"),
    ],
)
def test_names_that_kubernetes_takes(bundle, name, expected):
    manifest = bundle.manifest.model_copy(update={"name": name})
    named = off.Bundle(bundle.path, manifest, bundle.tuning, bundle.held)
    document = inference_service(named, storage_uri=URI)
    assert document["metadata"]["name"] == expected
    assert document["metadata"]["annotations"]["offramp/bundle"] == name


@pytest.mark.parametrize("uri", ["", "digits.bundle", "/mnt/digits", "s3:digits", "s3://", "s3://a b", "S3 ://a"])
def test_addresses_that_no_cluster_finds(bundle, uri):
    with pytest.raises(ConfigError, match="such as s3://bucket/path, not"):
        inference_service(bundle, storage_uri=uri)


@pytest.mark.parametrize("image", ["", " ", "a b", "/offramp"])
def test_images_that_are_none(bundle, image):
    with pytest.raises(ConfigError, match="--image is a container image"):
        inference_service(bundle, storage_uri=URI, image=image)


def test_refusals(bundle, tmp_path):
    copy = bundle.edge_copy(tmp_path / "edge.bundle", 1)
    with pytest.raises(ExportError, match="edge copy"):
        write_kserve(copy, tmp_path / "service.yaml", storage_uri=URI)
    (tmp_path / "directory").mkdir()
    for place in (tmp_path / "directory", bundle.path / "manifest.json" / "service.yaml"):
        with pytest.raises(BundleError, match="cannot write"):
            write_kserve(bundle, place, storage_uri=URI)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "edge.bundle"]


def test_an_older_file_is_replaced(bundle, tmp_path):
    file = tmp_path / "service.yaml"
    write_kserve(bundle, file, storage_uri=URI)
    write_kserve(bundle, file, storage_uri="gs://other/place")
    assert yaml.safe_load(file.read_text())["spec"]["predictor"]["model"]["storageUri"] == "gs://other/place"
