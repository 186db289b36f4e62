"""Registrations that a definition's requests can be built with: keys of the kind that it signs with, a certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from providers.credentials import ClientCredentials
from providers.registry import Provider
from tokenfleet_client.secret import Secret


def client_of(provider: Provider) -> ClientCredentials:
    """Return a registration that has all that ``provider`` asks for."""
    algorithm = provider.spec.assertion.algorithm if provider.spec.assertion else "HS256"
    secret = "hush" if algorithm == "HS256" else _key("EC" if algorithm == "ES256" else "RSA")
    certificate = Secret(_certificate()) if provider.spec.client.certificate else None
    return ClientCredentials("client-1", Secret(secret), certificate)


@cache
def _key(kind: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@cache
def _certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client-1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return (certificate.public_bytes(Encoding.PEM) + pem).decode()
