"""Every error that offramp raises on purpose. Catch `OfframpError` to catch them all.

```
OfframpError
├── ConfigError              a setting that cannot be (also a ValueError)
│   ├── DensityError         a density, degree or block count that the layer does not admit
│   ├── LayerNameError       a layer or submodule name that matches nothing
│   └── AddressError         a server address that is no HOST:PORT
├── PatternError             a checkpoint whose sparsity pattern is not the layer's
├── MissingExtraError        an optional dependency is not installed
├── DatasetError             data that is missing, altered, or of the wrong form
├── ExportError              a network that cannot be exported or cut
├── BundleError              a bundle that cannot be trusted or read
│   ├── BundleVersionError   a format version that this offramp does not know
│   ├── BundleManifestError  a manifest or tuning file that does not validate
│   ├── BundleFileError      a file is missing, or not held by this edge copy
│   ├── BundleAlteredError   a file whose sha256 is not the manifest's
│   ├── BundlePathError      a path that leaves the bundle's directory
│   ├── ExternalDataError    an ONNX file that points to data outside itself
│   └── BundleShapeError     stages whose tensors do not chain
├── TraceError               a trace that cannot be read or written, or does not agree with itself
├── InputError               an input of wrong name, shape or dtype, or not finite
├── ActionError              a policy chose what this edge cannot do
├── PolicyStateError         a policy's state that is torn, foreign, or of other settings
├── StageError               the ONNX runtime failed in a stage
└── ServerError              the server's side of an offload
    ├── ServerUnavailableError   nobody there, or the connection broke
    ├── DeadlineError            no answer in time
    ├── ServerBusyError          the server refuses more work for now
    ├── DigestMismatchError      the server holds another version of the bundle
    ├── AccessError              the server wants a valid token or certificate, or its own is not valid
    ├── ServerRefusedError       the server understood the request and said no
    ├── ProtocolError            what answers does not speak the Open Inference Protocol
    └── PortError                a port that cannot be listened on
```
"""

from __future__ import annotations


class OfframpError(Exception):
    """The root of every error that offramp raises on purpose."""


class ConfigError(OfframpError, ValueError):
    """A setting that cannot be."""


class DensityError(ConfigError):
    """A density, degree or block count that the layer does not admit."""


class LayerNameError(ConfigError):
    """A layer or submodule name that matches nothing."""


class AddressError(ConfigError):
    """A server address that is no HOST:PORT."""


class PatternError(OfframpError):
    """A checkpoint whose sparsity pattern is not the layer's."""


class MissingExtraError(OfframpError, ImportError):
    """An optional dependency is not installed."""


class DatasetError(OfframpError):
    """Data that is missing, altered, or of the wrong form."""


class ExportError(OfframpError):
    """A network that cannot be exported or cut."""


class BundleError(OfframpError):
    """A bundle that cannot be trusted or read."""


class BundleVersionError(BundleError):
    """A format version that this offramp does not know."""


class BundleManifestError(BundleError):
    """A manifest or tuning file that does not validate."""


class BundleFileError(BundleError):
    """A file is missing, or not held by this edge copy."""


class BundleAlteredError(BundleError):
    """A file whose sha256 is not the manifest's."""


class BundlePathError(BundleError):
    """A path that leaves the bundle's directory."""


class ExternalDataError(BundleError):
    """An ONNX file that points to data outside itself."""


class BundleShapeError(BundleError):
    """Stages whose tensors do not chain."""


class TraceError(OfframpError):
    """A trace that cannot be read or written, or does not agree with itself."""


class InputError(OfframpError, ValueError):
    """An input of wrong name, shape or dtype, or not finite."""


class ActionError(OfframpError):
    """A policy chose what this edge cannot do."""


class PolicyStateError(OfframpError):
    """A policy's state that is torn, foreign, or of other settings."""


class StageError(OfframpError):
    """The ONNX runtime failed in a stage."""


class ServerError(OfframpError):
    """The server's side of an offload."""


class ServerUnavailableError(ServerError):
    """Nobody there, or the connection broke."""


class DeadlineError(ServerError):
    """No answer in time."""


class ServerBusyError(ServerError):
    """The server refuses more work for now."""


class DigestMismatchError(ServerError):
    """The server holds another version of the bundle."""


class AccessError(ServerError):
    """The server wants a valid token or certificate, or its own is not valid."""


class ServerRefusedError(ServerError):
    """The server understood the request and said no."""


class ProtocolError(ServerError):
    """What answers does not speak the Open Inference Protocol."""


class PortError(ServerError):
    """A port that cannot be listened on."""
