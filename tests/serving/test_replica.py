"""A replica behind a cluster's gRPC server, without the cluster."""

import asyncio
import pickle
import shutil
import threading

import grpc
import numpy as np
import pytest
from other_version import other_version
from tritonclient.grpc import service_pb2 as pb

from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.errors import AccessError, BundleFileError, ConfigError, DigestMismatchError, ServerBusyError
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.access import Access
from offramp.serving.replica import Replica, ReplicaSettings, deployment_options
from offramp.serving.wire import from_outputs, request_message

TOKEN = "0123456789abcdef"


class Context:
    """What Ray gives a method beside the request."""

    def __init__(self, token=None):
        self.metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        self.code = self.details = None

    def peer(self):
        return "ipv4:10.0.0.7:40112"

    def invocation_metadata(self):
        return self.metadata

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def request_and_reply(bundle, digit_images):
    tail = Tail(Stages(bundle))
    x = preprocess(digit_images[0][:1], bundle.manifest.preprocessing)
    request = TailRequest(bundle.manifest.name, {"input": x}, bundle.digest, True)
    return request, tail.infer(request)


def started(*folders, access=None, held=(), **settings):
    settings = ReplicaSettings(tuple(str(folder) for folder in folders), max_batch=1, **settings)
    return Replica(settings, access, [bundle.digest for bundle in held])


def ask(replica, method, message, context=None):
    """The response, or the code and text of a refusal."""
    context = context or Context()
    content = message if isinstance(message, bytes) else message.SerializeToString()
    response = asyncio.run(getattr(replica, method)(content, context))
    return response if context.code is None else (context.code, context.details)


def infer(replica, request, context=None, **changes):
    message = request_message(*request._replace(**changes)[:4])
    return ask(replica, "ModelInfer", message, context)


@pytest.fixture(scope="module")
def replica(bundle):
    return started(bundle.path, held=[bundle])


def test_every_method_answers_as_our_own_server(replica, bundle, request_and_reply):
    name = bundle.manifest.name
    request, reply = request_and_reply
    assert ask(replica, "ServerLive", pb.ServerLiveRequest()).live
    assert ask(replica, "ServerReady", pb.ServerReadyRequest()).ready
    assert ask(replica, "ModelReady", pb.ModelReadyRequest(name=name)).ready
    assert ask(replica, "ServerMetadata", pb.ServerMetadataRequest()).name == "offramp"
    assert list(ask(replica, "ModelMetadata", pb.ModelMetadataRequest(name=name)).versions) == [bundle.digest]
    index = ask(replica, "RepositoryIndex", pb.RepositoryIndexRequest())
    assert (name, bundle.digest, "READY") in {(m.name, m.version, m.state) for m in index.models}
    found = from_outputs(infer(replica, request))
    np.testing.assert_array_equal(found["logits"], reply.logits)
    assert found["exit"].tolist() == [bundle.manifest.last]


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "no model 'nobody'"),
        ({"digest": "f" * 64}, "FAILED_PRECONDITION", "same bundle"),
        ({"tensors": {"input": np.zeros((1, 7), np.float32)}}, "INVALID_ARGUMENT", "input"),
        ({"tensors": {"input": np.full((1, 1, 28, 28), np.nan, np.float32)}}, "INVALID_ARGUMENT", "NaN"),
    ],
)
def test_a_refusal_is_the_code_and_the_text_of_our_own_server(replica, request_and_reply, changes, code, word):
    found, text = infer(replica, request_and_reply[0], **changes)
    assert found.name == code
    assert word in text


def test_what_cannot_be_read_is_refused(replica):
    code, text = ask(replica, "ModelInfer", b"\xff\xff\xff")
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "this is no ModelInferRequest")


def test_a_message_that_is_too_large_is_refused_unread(bundle):
    replica = started(bundle.path, held=[bundle], max_message_mb=1)
    code, text = ask(replica, "ModelInfer", b"\xff" * (2**20 + 1))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 MiB" in text


def test_tokens(bundle, request_and_reply):
    access = pickle.loads(pickle.dumps(Access([TOKEN])))
    replica = started(bundle.path, held=[bundle], access=access)
    assert ask(replica, "ServerReady", pb.ServerReadyRequest()).ready
    for given in (None, "f" * 16):
        code, text = infer(replica, request_and_reply[0], Context(given))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert "token" in text
    assert infer(replica, request_and_reply[0], Context(TOKEN)).model_version == bundle.digest


def test_a_pickled_access_holds_no_token_and_still_knows_it():
    content = pickle.dumps(Access([TOKEN], rate=1))
    assert TOKEN.encode() not in content
    access = pickle.loads(content)
    access.check("10.0.0.7", f"Bearer {TOKEN}")
    with pytest.raises(ServerBusyError):
        access.check("10.0.0.7", f"Bearer {TOKEN}")
    with pytest.raises(AccessError):
        access.check("10.0.0.8", "Bearer fedcba9876543210")


def test_whoever_gave_up_is_not_computed(bundle, request_and_reply):
    """Ray cancels the coroutine of a client that has gone or whose deadline has passed."""
    replica = started(bundle.path, held=[bundle])
    callers = []
    infer_now = replica.service.infer

    def held(question, wanted):
        callers.append(wanted)
        assert wanted()
        go.wait(30)
        return infer_now(question, wanted)

    go = threading.Event()
    replica.service.infer = held

    async def give_up():
        call = asyncio.ensure_future(
            replica.ModelInfer(request_message(*request_and_reply[0][:4]).SerializeToString(), Context())
        )
        while not callers:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not callers[0]()
        go.set()

    asyncio.run(give_up())


def test_health_answers_while_every_worker_computes(bundle, request_and_reply):
    replica = started(bundle.path, held=[bundle], workers=1, queue=1)
    go, inside = threading.Event(), []
    infer_now = replica.service.infer

    def held(question, wanted):
        inside.append(question)
        go.wait(30)
        return infer_now(question, wanted)

    replica.service.infer = held
    content = request_message(*request_and_reply[0][:4]).SerializeToString()

    async def both():
        calls = [asyncio.ensure_future(replica.ModelInfer(content, Context())) for _ in range(2)]
        while len(inside) < 2:
            await asyncio.sleep(0.001)
        ready = await replica.ServerReady(b"", Context())
        go.set()
        return ready, await asyncio.gather(*calls)

    ready, answers = asyncio.run(both())
    assert ready.ready
    assert [answer.model_version for answer in answers] == [bundle.digest] * 2


# --- what is held ---------------------------------------------------------------------------------------


def test_two_versions_in_a_folder_are_both_served(bundle, request_and_reply, tmp_path):
    """How edges that still hold the old one go on: a rolling update replaces every replica."""
    shutil.copytree(bundle.path, tmp_path / "digits-1")
    newer = other_version(bundle.path, tmp_path / "digits-2")
    replica = started(tmp_path, held=[bundle, newer])
    for digest in (bundle.digest, newer.digest):
        assert infer(replica, request_and_reply[0], digest=digest).model_version == digest
    assert infer(replica, request_and_reply[0], digest=None).model_version == newer.digest


def test_a_replica_that_holds_another_bundle_does_not_start(bundle, tmp_path):
    newer = other_version(bundle.path, tmp_path / "newer")
    with pytest.raises(DigestMismatchError, match="every machine the same bundles"):
        started(bundle.path, held=[newer])


def test_a_replica_without_the_bundle_does_not_start(tmp_path):
    with pytest.raises(BundleFileError, match="missing"):
        started(tmp_path / "missing.bundle")


@pytest.mark.parametrize("bundles", [(), ("digits.bundle",), ("/a", "b")])
def test_settings_name_places_that_every_machine_has(bundles):
    with pytest.raises(ConfigError, match="absolute paths"):
        ReplicaSettings(bundles)


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="at least one worker"):
        Replica(ReplicaSettings((str(tmp_path),), workers=0))


# --- what Ray Serve is told -----------------------------------------------------------------------------


def test_a_number_of_replicas():
    settings = ReplicaSettings(("/models",), workers=2, threads=3, queue=10)
    options = deployment_options(settings, 4, 4)
    assert options["num_replicas"] == 4
    assert "autoscaling_config" not in options
    assert options["ray_actor_options"] == {"num_cpus": 6, "num_gpus": 0}
    # A refusal needs a place too, or Ray would let it wait before it is refused.
    assert options["max_ongoing_requests"] > 2 + 10


def test_as_many_replicas_as_the_load_needs():
    options = deployment_options(ReplicaSettings(("/models",), workers=2, provider="cuda"), 1, 4)
    assert "num_replicas" not in options
    scale = options["autoscaling_config"]
    assert (scale["min_replicas"], scale["max_replicas"], scale["target_ongoing_requests"]) == (1, 4, 4)
    assert options["ray_actor_options"]["num_gpus"] == 1
