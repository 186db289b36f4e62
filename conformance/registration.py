"""Who plays the client: a registration at the provider that a definition describes, and one account's variables.

The client id and secret have characters that every encoding treats differently, so that a wrong encoding shows. Keys
are made once for each process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from providers.spec import ProviderSpec
from providers.templates import VariableRule
from tokenfleet_client.secret import Secret

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

SIGNING: Final = frozenset({"private_key_jwt", "signed_secret", "bearer_assertion"})
"""Authentications whose secret is a signing key."""

SCOPE: Final = "accounts.read offline_access"

_SAMPLES: Final[Mapping[str, tuple[str, str]]] = {
    "text": ("acme & söhne/7", "moved & söhne/8"),
    "digits": ("4711", "4712"),
    "label": ("acme-7", "moved-8"),
    "host": ("acme-7.example.com", "moved-8.example.com"),
    "url": ("https://acme-7.example.com/base", "https://moved-8.example.com/base"),
}
"""A value of each kind for the start, and another one to which it may change."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A client and what its provider knows of it."""

    client_id: str
    client_secret: Secret | None
    """The secret, or the signing key (PEM) where assertions are signed."""
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None
    """What the provider checks signatures with; None where the secret itself does."""
    certificate: Secret | None = None
    """The client's certificate and its key (PEM), where connections carry one."""


def register(spec: ProviderSpec, mark: str) -> Registration:
    """Return a registration as ``spec`` needs it; ``mark`` makes its client id unlike any other."""
    client_id = f"client:{mark}+/%41"
    certificate = _certificate() if spec.client.certificate else None
    assertion = spec.assertion
    signs = spec.client.authentication in SIGNING or spec.refresh.grant == "jwt_bearer"
    if assertion is not None and signs and assertion.algorithm != "HS256":
        pem, public_key = _key_pair("EC" if assertion.algorithm.startswith("ES") else "RSA")
        return Registration(client_id, Secret(pem), public_key, certificate)
    if spec.client.authentication == "none" and not _placed_secret(spec):
        return Registration(client_id, None, None, certificate)
    return Registration(
        client_id, Secret(f"played secret {mark}&=+/%2B-and-32-characters-more"), None, certificate
    )


def variables(spec: ProviderSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Return a value for each declared variable, and another one where there is another.

    Raises :class:`ValueError` that names a variable for which no value can be made up.
    """
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    rules = spec.variable_rules()
    for name, variable in spec.variables.items():
        found = list(_candidates(rules[name], tuple(variable.pattern)))
        if not found:
            raise ValueError(
                f"no value of the kind {variable.kind!r} fits the pattern of the variable {name!r}"
            )
        first[name] = found[0]
        second[name] = found[-1]
    return first, second


def _candidates(rule: VariableRule, patterns: tuple[str, ...]) -> list[str]:
    samples = _SAMPLES[rule.kind]
    if not patterns:
        # What stands inside a URL or a header: printable and ASCII, but in need of encoding.
        texts = [text.replace("ö", "o") for text in samples]
    else:
        short = ("acme-7", "moved-8", "4711", "4712", "acme-7.example.com", "moved-8.example.com", "seven")
        texts = [pattern.replace("*", each) for each in short for pattern in patterns]
    return [text for text in dict.fromkeys(texts) if _permits(rule, text)]


def _permits(rule: VariableRule, text: str) -> bool:
    try:
        return rule.check(text, allow_http=False) == text
    except ValueError:
        return False


def _placed_secret(spec: ProviderSpec) -> bool:
    texts = [*map(str, spec.refresh.parameters.values()), *spec.refresh.headers.values()]
    texts += [text for computed in spec.computed.values() for text in (computed.of, computed.key) if text]
    return any("{client_secret}" in text for text in texts)


@cache
def _private_key(kind: str) -> PrivateKey:
    if kind == "EC":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def _key_pair(kind: str) -> tuple[str, rsa.RSAPublicKey | ec.EllipticCurvePublicKey]:
    key = _private_key(kind)
    return _pem(key), key.public_key()


def _pem(key: PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@cache
def _certificate() -> Secret:
    key = _private_key("EC")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "conformance")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    return Secret(certificate.public_bytes(serialization.Encoding.PEM).decode() + _pem(key))
