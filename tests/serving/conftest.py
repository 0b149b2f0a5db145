"""A tail to serve, and certificates: one authority that server and edge trust, another that nobody does."""

import datetime
import ipaddress
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from offramp.bundle.bundle import Bundle
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail

PEM = serialization.Encoding.PEM


def _signed(folder, name, issuer=None, *, host=None, password=None, days=1):
    """Writes NAME.pem and NAME.key; gives what can sign others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=2 + days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if host is not None:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(host))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
    secret = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, secret))
    return subject, key


@pytest.fixture(scope="module")
def tail(digits_bundle):
    return Tail(Stages(Bundle.load(digits_bundle)))


@pytest.fixture(scope="module")
def name(tail):
    return tail.bundle.manifest.name


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Paths: ca, server, edge (signed by ca), other_ca, stranger (signed by other_ca), late (expired), locked."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = _signed(folder, "ca"), _signed(folder, "other_ca")
    _signed(folder, "server", ca, host="127.0.0.1")
    _signed(folder, "elsewhere", ca, host="192.0.2.1")
    _signed(folder, "late", ca, host="127.0.0.1", days=-1)
    _signed(folder, "edge", ca)
    _signed(folder, "stranger", other)
    _signed(folder, "locked", ca, password=b"secret")
    found = {f"{file.stem}{'_key' if file.suffix == '.key' else ''}": file for file in folder.iterdir()}
    return SimpleNamespace(**found)
