"""A request as it arrived at the provider that is played: taken apart, its secrets in no ``repr``."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus

CERTIFICATE: Final = "conformance-client-certificate"
"""The header that says, on the way to the player, that the connection would carry the client's certificate."""
FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"


class Malformed(ValueError):
    """The request cannot be read as what the definition says it is; the message says why."""


@dataclass(frozen=True, slots=True)
class Received:
    """One request. Header names are lower-case; ``target`` is the path with its query, as it stood in the line."""

    method: str
    authority: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    certificate: bool = False
    """Whether the connection would have carried the client's certificate."""

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the path, decoded."""
        return path_parts(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query. Raises :class:`Malformed` when one is repeated."""
        return _pairs(self.target.partition("?")[2], "query")

    def parameters(self, place: str) -> dict[str, Any]:
        """Return what stands in the body, or the query: ``form``, ``json``, ``query`` or ``none``.

        Members of nested objects are named with dots. Raises :class:`Malformed`.
        """
        if place == "query":
            return dict(self.query)
        if place == "any" and self.body in (b"", b"{}"):
            return {}
        if place in ("none", "any"):
            if self.body:
                raise Malformed("there is a body, where none is expected")
            return {}
        wanted = JSON_TYPE if place == "json" else FORM_TYPE
        given = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != wanted:
            raise Malformed(f"the content type is {given or 'missing'}, {wanted} was expected")
        if place == "form":
            try:
                return dict(_pairs(self.body.decode("ascii"), "form"))
            except UnicodeDecodeError:
                raise Malformed("the form is not ASCII") from None
        try:
            document = json.loads(self.body)
        except ValueError:
            raise Malformed("the body is not JSON") from None
        if not isinstance(document, dict):
            raise Malformed("the body is not a JSON object")
        return _flat(document)

    def basic(self) -> tuple[str, str] | None:
        """Return user name and password of Basic authentication, decoded from base64 only."""
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return user, password

    def bearer(self) -> str | None:
        """Return the bearer token of the Authorization header."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None


def path_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a percent-encoded path, each decoded: an encoded slash parts nothing."""
    return tuple(map(unquote, path.split("/")))


def form_decoded(text: str) -> str:
    """Return ``text`` as RFC 6749 section 2.3.1 wants it read."""
    return unquote_plus(text)


def _pairs(text: str, place: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=200)
    except ValueError:
        raise Malformed(f"the {place} cannot be read") from None
    if len(dict(pairs)) != len(pairs):
        raise Malformed(f"a parameter stands twice in the {place}")
    return dict(pairs)


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
