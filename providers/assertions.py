"""JSON Web Tokens that a client signs: RFC 7523 (claims), RFC 7515 (JWS compact form), RFC 7518 (algorithms).

The app's secret is the key: a private key as PEM, or for HS256 the shared secret itself. Promise: a key that cannot be
used is one sentence without a value, and the fault of the app, never of an account.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from threading import Lock
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from providers.computed import base64url
from providers.credentials import RequestBuildError
from providers.spec_requests import Assertion
from providers.templates import Template, VariableRule, text_template

Algorithm = Literal["RS256", "PS256", "ES256", "HS256"]
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

OWN_CLAIMS: Final = frozenset({"iss", "sub", "aud", "iat", "exp", "jti"})
"""Claims that every assertion has by itself."""
OWN_HEAD: Final = frozenset({"alg", "kid"})
"""Members of the head that have keys of their own in a definition."""
MIN_RSA_BITS: Final = 2048
"""RFC 7518 sections 3.3 and 3.5."""
MAX_PARSED_KEYS: Final = 256
"""Private keys kept parsed: parsing one takes as long as signing with it, and an app signs again and again."""
P256_BYTES: Final = 32

_parsed: Final[OrderedDict[bytes, SigningKey]] = OrderedDict()
_parsed_lock: Final = Lock()


class SigningKeyError(ValueError):
    """The key cannot be used. The message completes a sentence that begins with what it is, and holds no value."""


class Assertions:
    """Makes the assertions of one definition. Immutable; safe in any thread."""

    __slots__ = ("_algorithm", "_backdate", "_claims", "_constants", "_head", "_lifetime", "names")

    def __init__(self, assertion: Assertion, rules: Mapping[str, VariableRule]) -> None:
        """Compile ``assertion``, which has passed ``providers.contradictions``; ``rules`` are its variables'."""
        self._algorithm: Algorithm = assertion.algorithm
        self._lifetime = assertion.lifetime_seconds
        self._backdate = assertion.backdate_seconds
        texts = {"iss": assertion.issuer, "sub": assertion.subject, "aud": assertion.audience}
        texts |= {name: value for name, value in assertion.claims.items() if isinstance(value, str)}
        self._claims: Mapping[str, Template] = {
            name: text_template(text, rules) for name, text in texts.items() if text or name != "sub"
        }
        self._constants = {
            name: value for name, value in assertion.claims.items() if not isinstance(value, str)
        }
        members = ({"kid": assertion.key_id} if assertion.key_id else {}) | assertion.head
        self._head = {name: text_template(text, rules) for name, text in members.items()}
        templates = [*self._claims.values(), *self._head.values()]
        self.names = frozenset(name for template in templates for name in template.names)
        """The variables that an assertion needs."""

    def sign(self, values: Mapping[str, str], key: str, now: datetime) -> str:
        """Return a fresh assertion over ``values``, signed at ``now``; each has a ``jti`` of its own.

        Raises :class:`RequestBuildError` ``signing_key_unusable``.
        """
        issued = int(now.timestamp()) - self._backdate
        head = {"alg": self._algorithm, "typ": "JWT"}
        head |= {name: template.expand(values) for name, template in self._head.items()}
        claims: dict[str, str | int | bool] = {
            name: template.expand(values) for name, template in self._claims.items()
        }
        claims |= self._constants
        claims |= {
            "iat": issued,
            "exp": issued + self._lifetime,
            "jti": secrets.token_urlsafe(16),
        }
        try:
            return signed(head, claims, self._algorithm, key)
        except SigningKeyError as error:
            raise RequestBuildError("signing_key_unusable", f"the app's signing key {error}") from None


def signed(head: Mapping[str, object], claims: Mapping[str, object], algorithm: Algorithm, key: str) -> str:
    """Return the JWS in compact form. Raises :class:`SigningKeyError`."""
    signing_input = f"{_part(head)}.{_part(claims)}"
    return f"{signing_input}.{base64url(signature(signing_input.encode('ascii'), algorithm, key))}"


def signature(signing_input: bytes, algorithm: Algorithm, key: str) -> bytes:
    """Return the JWS signature over ``signing_input``. Raises :class:`SigningKeyError`."""
    if algorithm == "HS256":
        return hmac.digest(key.encode(), signing_input, "sha256")
    private = signing_key(key, algorithm)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        # JWS wants both numbers side by side (RFC 7518 section 3.4), not the DER that libraries make.
        r, s = decode_dss_signature(private.sign(signing_input, ec.ECDSA(SHA256())))
        return r.to_bytes(P256_BYTES, "big") + s.to_bytes(P256_BYTES, "big")
    if algorithm == "PS256":
        scheme = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
        return private.sign(signing_input, scheme, SHA256())
    return private.sign(signing_input, padding.PKCS1v15(), SHA256())


def signing_key(pem: str, algorithm: Algorithm) -> SigningKey:
    """Return the private key in ``pem`` for ``algorithm``. Raises :class:`SigningKeyError` with the reason."""
    digest = sha256(pem.encode()).digest()
    with _parsed_lock:
        key = _parsed.get(digest)
        if key is not None:
            _parsed.move_to_end(digest)
    if key is None:
        key = _loaded(pem)
        with _parsed_lock:
            _parsed[digest] = key
            if len(_parsed) > MAX_PARSED_KEYS:
                _parsed.popitem(last=False)
    if algorithm == "ES256":
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise SigningKeyError("is not a key on the curve P-256, which ES256 signs with")
    elif not isinstance(key, rsa.RSAPrivateKey):
        raise SigningKeyError(f"is not an RSA key, which {algorithm} signs with")
    elif key.key_size < MIN_RSA_BITS:
        raise SigningKeyError(f"has {key.key_size} bits: {algorithm} needs {MIN_RSA_BITS} or more")
    return key


def check_signing_key(text: str, algorithm: Algorithm) -> None:
    """Check that ``text`` can sign with ``algorithm``. Raises :class:`SigningKeyError`."""
    if algorithm != "HS256":
        signing_key(text, algorithm)


def _loaded(pem: str) -> SigningKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise SigningKeyError("is encrypted with a passphrase: store it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningKeyError("is not a private key in PEM form") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise SigningKeyError("is neither an RSA key nor one on an elliptic curve")
    return key


def _part(members: Mapping[str, object]) -> str:
    return base64url(json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode())
