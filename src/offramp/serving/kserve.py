"""A KServe InferenceService for a bundle, served by Triton or by `offramp serve`. Needs the extra `serve`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from offramp.bundle.bundle import Bundle, write_whole
from offramp.errors import BundleError, ConfigError
from offramp.serving.service import DRAIN_S
from offramp.serving.triton import check_whole

__all__ = ["inference_service", "write_kserve"]

#: The ports of KServe's own Triton runtime and of `offramp serve`.
_TRITON_PORT, _OUR_PORT = 9000, 8001
#: KServe's usual Triton, 23.05, has an ONNX Runtime that is too old for what torch exports today.
_TRITON = "26.05-py3"
_MODELS = "/mnt/models"
#: Seconds from SIGTERM to the end: what requests under way have, and ten for the rest.
_GRACE_S = round(DRAIN_S) + 10
_MAX_NAME = 48


def write_kserve(
    bundle: Bundle, target: str | Path, *, storage_uri: str, image: str | None = None, knative: bool = False
) -> str:
    """Writes an InferenceService as YAML; gives its name in the cluster.

    Args:
        bundle: The whole bundle.
        target: The file; an older one is replaced.
        storage_uri: As `inference_service` takes it.
        image: As `inference_service` takes it.
        knative: As `inference_service` takes it.

    Raises:
        ConfigError: As `inference_service` says.
        ExportError: An edge copy.
        BundleError: The file cannot be written.
    """
    document = inference_service(bundle, storage_uri=storage_uri, image=image, knative=knative)
    file = Path(target)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, yaml.safe_dump(document, sort_keys=False).encode())
    except OSError as error:
        raise BundleError(f"cannot write {file}: {error}") from error
    name: str = document["metadata"]["name"]
    return name


def inference_service(
    bundle: Bundle, *, storage_uri: str, image: str | None = None, knative: bool = False
) -> dict[str, Any]:
    """An InferenceService, `serving.kserve.io/v1beta1`, that answers over gRPC.

    Args:
        bundle: The whole bundle.
        storage_uri: Where KServe finds the Triton repository, or with an image the bundle: `s3://…`, `gs://…`,
            `pvc://…`.
        image: A container image whose command is `offramp`; it serves the bundle in place of Triton.
        knative: For KServe's Knative mode, which may start and stop servers with the load; Standard otherwise.

    Raises:
        ConfigError: A storage address without a scheme, or an image's name with spaces in it.
        ExportError: An edge copy.
    """
    check_whole(bundle)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", storage_uri):
        raise ConfigError(
            f"--storage-uri is where the cluster finds the model, such as s3://bucket/path, not {storage_uri!r}"
        )
    if image is not None and not re.fullmatch(r"[^\s/]\S*", image):
        raise ConfigError(f"--image is a container image such as registry.example/offramp:1, not {image!r}")
    port = _TRITON_PORT if image is None else _OUR_PORT
    # Knative knows gRPC by the name h2c, KServe's Standard mode by the protocol that a port's name starts with.
    ports = [{"containerPort": port, "name": "h2c" if knative else "grpc-port", "protocol": "TCP"}]
    predictor: dict[str, Any]
    if image is None:
        predictor = {
            "model": {
                "modelFormat": {"name": "triton"},
                "protocolVersion": "grpc-v2",
                "runtimeVersion": _TRITON,
                "storageUri": storage_uri,
                "ports": ports,
            }
        }
    else:
        container = {
            "name": "kserve-container",
            "image": image,
            "args": ["serve", _MODELS, "--host", "0.0.0.0", "--grpc-port", str(port)],
            "env": [{"name": "STORAGE_URI", "value": storage_uri}],
            "ports": ports,
            # The port opens when the bundle is verified and loaded; while it drains, it is open and not ready.
            # Knative's queue-proxy probes over gRPC too (knative/serving#14134).
            "readinessProbe": {"grpc": {"port": port}},
        }
        predictor = {"containers": [container]}
        if not knative:  # which takes no such field
            predictor["terminationGracePeriodSeconds"] = _GRACE_S
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": _cluster_name(bundle.manifest.name),
            "annotations": {
                "serving.kserve.io/deploymentMode": "Knative" if knative else "Standard",
                "offramp/bundle": bundle.manifest.name,
                "offramp/digest": bundle.digest,
            },
        },
        "spec": {"predictor": predictor},
    }


def _cluster_name(bundle: str) -> str:
    """A bundle's name as Kubernetes takes it: small letters, digits and hyphens, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", bundle.lower()).strip("-")
    return (name if name[:1].isalpha() else f"bundle-{name}")[:_MAX_NAME].rstrip("-")
