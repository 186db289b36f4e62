"""Keys and certificates made on the spot, in PEM form: no file in the tree looks like a secret."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

LOOPBACK: Final = "127.0.0.1"
AUTHORITY: Final = "authority"


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return one RSA key for all tests of a process: making one takes its time."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    """Return a key on P-256, another one for each ``number``."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: SigningKey, *, passphrase: str | None = None) -> str:
    """Return ``key`` as it would be stored."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption(),
    ).decode()


def certificate_pem(
    key: SigningKey,
    *,
    subject: str = LOOPBACK,
    issuer: SigningKey | None = None,
    days: int = 1,
    host: str | None = None,
) -> str:
    """Return a certificate of ``key`` for loopback, or for ``host``, that is valid for ``days`` from now.

    It is signed by ``issuer``, the authority called :data:`AUTHORITY`, or by itself.
    """
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY)]) if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - timedelta(days=1))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(host) if host else x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(issuer or key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
