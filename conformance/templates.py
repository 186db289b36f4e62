"""Templates of a definition as a provider would fill them in: to expect a text, or to find in one what it was made of.

Written apart from ``providers.templates``, ``providers.computed`` and ``providers.assertions``: RFC 3986 for endpoints,
RFC 7515 and 7518 for signatures.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from conformance.registration import Registration
from providers.spec import ProviderSpec
from providers.spec_requests import Computed

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z][A-Za-z0-9_]*)\}")
"""A name between braces, or a doubled brace, which stands for itself."""


def names_in(*texts: str | None) -> set[str]:
    """Return the names between braces."""
    return {name for text in texts if text for name in _PIECE.findall(text) if name}


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return ``text`` with every name in braces replaced. Raises :class:`KeyError` for one without a value."""
    return _PIECE.sub(lambda match: values[match[1]] if match[1] else match[0][0], text)


def found_in(text: str, actual: str, values: Mapping[str, str]) -> dict[str, str] | None:
    """Return what stands in ``actual`` for the names without a value, or None when it is not made of ``text``."""
    expression, seen, end = "", set[str](), 0
    for match in _PIECE.finditer(text):
        name = match[1]
        expression += re.escape(text[end : match.start()])
        end = match.end()
        if not name:
            expression += re.escape(match[0][0])
        elif name in values:
            expression += re.escape(values[name])
        elif name in seen:
            expression += f"(?P={name})"
        else:
            seen.add(name)
            expression += f"(?P<{name}>.+?)"
    expression += re.escape(text[end:])
    whole = re.fullmatch(expression, actual, re.DOTALL)
    return None if whole is None else whole.groupdict()


def encoded_in(computed: Computed, actual: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return what an encoding was made of, as far as that can be read from it: nothing from a digest."""
    if computed.kind != "base64":
        return {}
    alphabet = b"-_" if computed.encoding == "base64url" else b"+/"
    try:
        text = base64.b64decode(actual + "=" * (-len(actual) % 4), altchars=alphabet, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return {}
    return found_in(computed.of or "", text, values) or {}


def endpoint(text: str, values: Mapping[str, str]) -> tuple[str, str, str]:
    """Return authority, path and query of the endpoint written as ``text``; path and query percent-encoded."""
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    if text.startswith("{"):
        base, _, rest = text[1:].partition("}")
        url = values[base].rstrip("/") + filled(rest, quoted) if rest else values[base]
    else:
        scheme, _, rest = text.partition("://")
        authority, slash, tail = rest.partition("/")
        url = f"{scheme}://{filled(authority, values)}{slash}{filled(tail, quoted)}"
    parts = urlsplit(url)
    return parts.netloc, parts.path or "/", parts.query


def covered(spec: ProviderSpec, texts: Iterable[str], *, arriving: bool = False) -> set[str]:
    """Return the names that ``texts`` use, through computed values too.

    ``arriving`` leaves out tokens of which only a digest is sent: a provider has to be given them all the same.
    """
    found: set[str] = set()
    waiting = names_in(*texts)
    while waiting:
        name = waiting.pop()
        found.add(name)
        if (computed := spec.computed.get(name)) is not None:
            inner = names_in(computed.of, computed.key)
            if arriving and computed.kind != "base64":
                inner -= {"refresh_token", "access_token", "assertion"}
            waiting |= inner - found
    return found


def computed_value(computed: Computed, values: Mapping[str, str]) -> str:
    """Return a digest or an encoding, computed anew."""
    data = filled(computed.of or "", values).encode()
    if computed.kind == "base64":
        return _text(data, "base64url" if computed.encoding == "base64url" else "base64")
    if computed.kind == "hmac_sha256":
        key = filled(computed.key or "", values).encode()
        return _text(hmac.new(key, data, hashlib.sha256).digest(), computed.encoding)
    return _text(hashlib.sha256(data).digest(), computed.encoding)


def _text(data: bytes, encoding: str) -> str:
    if encoding == "hex":
        return data.hex()
    if encoding == "upper_hex":
        return "".join(f"{byte:02X}" for byte in data)
    if encoding == "base64":
        return base64.b64encode(data).decode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class BadAssertion(ValueError):
    """An assertion that its provider does not accept; the message completes "the assertion ..."."""


def read_assertion(
    token: str, spec: ProviderSpec, who: Registration, values: Mapping[str, str], *, now: float
) -> str:
    """Check a signed assertion whole and return its ``jti``. Raises :class:`BadAssertion`."""
    assertion = spec.assertion
    if assertion is None:
        raise BadAssertion("is not what this provider expects at all")
    head, claims, signature, signed = _taken_apart(token)
    if head.get("alg") != assertion.algorithm:
        raise BadAssertion(f"is signed with {head.get('alg')}, {assertion.algorithm} was expected")
    if assertion.key_id is not None and head.get("kid") != filled(assertion.key_id, values):
        raise BadAssertion("names another key (kid) than was expected")
    if any(head.get(name) != filled(text, values) for name, text in assertion.head.items()):
        raise BadAssertion("has another head than was expected")
    if not _is_signed(assertion.algorithm, who, signed, signature):
        raise BadAssertion("has a signature that is not the client's")
    expected: dict[str, object] = {
        "iss": filled(assertion.issuer, values),
        **({"sub": filled(assertion.subject, values)} if assertion.subject else {}),
        **{
            name: filled(each, values) if isinstance(each, str) else each
            for name, each in assertion.claims.items()
        },
    }
    for name, value in expected.items():
        if claims.get(name) != value:
            raise BadAssertion(f"has another {name} than was expected")
    if not assertion.subject and "sub" in claims:
        raise BadAssertion("names a subject (sub), whom nobody asked for")
    audience = claims.get("aud")
    if filled(assertion.audience, values) not in (audience if isinstance(audience, list) else [audience]):
        raise BadAssertion("is for another audience (aud)")
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int) or not isinstance(expires, int) or not issued <= now + 1 or expires <= now:
        raise BadAssertion("is not valid now (iat, exp)")
    if expires - issued > assertion.lifetime_seconds:
        raise BadAssertion("lives longer than this provider permits (exp)")
    if now - issued < assertion.backdate_seconds - 1:
        raise BadAssertion("is not dated back as this provider needs it (iat)")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti:
        raise BadAssertion("has no jti")
    return jti


def _taken_apart(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    pieces = token.split(".")
    try:
        head, claims, signature = (
            base64.urlsafe_b64decode(piece + "=" * (-len(piece) % 4)) for piece in pieces
        )
        return json.loads(head), json.loads(claims), signature, token.rpartition(".")[0].encode()
    except (ValueError, binascii.Error):
        raise BadAssertion("is not a signed JSON Web Token") from None


def _is_signed(algorithm: str, who: Registration, signed: bytes, signature: bytes) -> bool:
    if algorithm == "HS256":
        secret = who.client_secret.reveal() if who.client_secret else ""
        return hmac.compare_digest(hmac.new(secret.encode(), signed, hashlib.sha256).digest(), signature)
    key = who.public_key
    try:
        if algorithm == "ES256":
            assert isinstance(key, ec.EllipticCurvePublicKey)
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            if len(signature) != 64:
                return False
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
            return True
        assert isinstance(key, rsa.RSAPublicKey)
        pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
        key.verify(signature, signed, pss if algorithm == "PS256" else padding.PKCS1v15(), SHA256())
        return True
    except InvalidSignature:
        return False
