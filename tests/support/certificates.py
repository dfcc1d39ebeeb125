"""Certificates for tests, signed by an authority created for the run."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = serialization.NoEncryption()


def make_certificate(folder: Path, name: str, issuer: str | None) -> None:
    """`NAME.pem` and `NAME.key`, signed by `issuer` (None: by itself, as an authority)."""
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509
        .CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    signer, by = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key((folder / f"{issuer}.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, by = loaded, x509.load_pem_x509_certificate((folder / f"{issuer}.pem").read_bytes()).subject
    certificate = builder.issuer_name(by).sign(signer, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    (folder / f"{name}.key").write_bytes(key.private_bytes(*form))


def tls_settings(folder: Path) -> dict[str, str]:
    """A certificate that is its own authority, as Hypercorn's settings name its files."""
    make_certificate(folder, "server", None)
    return {"certfile": str(folder / "server.pem"), "keyfile": str(folder / "server.key")}
