"""Webhooks as Standard Webhooks 1.0 describes them: signing, verifying, and the names of our events.

Promises: what :func:`sign` signs, every library for Standard Webhooks verifies, and the other way round
(``tests/vectors/webhooks.json`` has examples, and what must be refused). A message that was altered, that is older
than the tolerance, or that somebody else signed is refused before a byte of it is read as JSON.

The signed content is ``<webhook-id>.<webhook-timestamp>.<body>``, the body exactly as it came over the wire. The
header ``webhook-signature`` holds one or more ``v1,<base64 of HMAC-SHA256>``, separated by spaces: several while a
secret is being replaced. A secret is written ``whsec_<base64>``.

A message may come more than once, always under the same ``webhook-id``: remember the ids that you have dealt with.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from tokenfleet_client.errors import KeyMaterialError, WebhookError
from tokenfleet_client.secret import Secret

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

SECRET_PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
TOLERANCE: Final = timedelta(minutes=5)
"""How far the moment of sending may be from the receiver's clock, in either direction."""
MAX_SIGNATURES: Final = 16
"""More signatures than any sender has secrets; each costs a comparison."""

_SCHEME: Final = "v1"


class EventType(StrEnum):
    """What webhooks are sent about; the published names."""

    CREATED = "integrated_account:created"
    AUTHENTICATION_ERROR = "integrated_account:authentication_error"
    REACTIVATED = "integrated_account:reactivated"
    REVOKED = "integrated_account:revoked"
    REFRESH_FAILING = "integrated_account:refresh_failing"
    """The token has expired and the provider still does not answer."""
    REAUTH_UPCOMING = "integrated_account:reauth_upcoming"
    """The grant ends soon, however often it is refreshed."""
    INCIDENT_OPENED = "provider:incident_opened"
    INCIDENT_RESOLVED = "provider:incident_resolved"
    TEST = "webhook:test"
    """Somebody asked whether the endpoint works. Says nothing about any account."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """One verified message. ``webhook_id`` is the same however often it is sent."""

    webhook_id: str
    sent_at: datetime
    event_type: str
    """One of :class:`EventType`, or one that is newer than this library."""
    timestamp: str
    """When it happened (RFC 3339)."""
    payload: Mapping[str, Any]


def new_secret() -> Secret:
    """Return a new random secret, ``whsec_`` and 32 bytes in base64."""
    return Secret(SECRET_PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode())


def sign(secrets: Sequence[Secret], webhook_id: str, sent_at: datetime, body: bytes) -> dict[str, str]:
    """Return the three headers of a message, signed with each of ``secrets``.

    ``sent_at`` is the moment of this attempt, cut to the second. Raises :class:`KeyMaterialError` when a secret is
    none, or when there is none.
    """
    if not secrets:
        raise KeyMaterialError("a webhook is signed with at least one secret")
    timestamp = str(int(sent_at.timestamp()))
    content = _content(webhook_id, timestamp, body)
    signatures = (base64.b64encode(_hmac(_key(secret), content)).decode() for secret in secrets)
    return {
        ID_HEADER: webhook_id,
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: " ".join(f"{_SCHEME},{signature}" for signature in signatures),
    }


def verify(
    secret: Secret | str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: timedelta = TOLERANCE,
    now: datetime | None = None,
) -> Webhook:
    """Return the message, once it is certain that its sender knows ``secret`` and has sent it now.

    ``headers`` are those of the request, in any case; ``body`` is the request's as it came, before any parsing.
    ``now`` is this machine's clock unless given. Raises :class:`WebhookError` for a message that is not to be
    believed: answer it with 400 or 401 and forget it. Raises :class:`KeyMaterialError` when ``secret`` is none.
    """
    key = _key(secret)
    given = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp, signatures = (
        _header(given, name) for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)
    )
    sent_at = _moment(timestamp)
    if abs(sent_at - (now or datetime.now(UTC))) > tolerance:
        raise WebhookError(
            f"{TIMESTAMP_HEADER} is further from this machine's clock than {tolerance.total_seconds():.0f} s"
        )
    expected = _hmac(key, _content(webhook_id, timestamp, body))
    if not any(
        hmac.compare_digest(expected, signature) for signature in _signatures(signatures)
    ):  # each of them, in constant time
        raise WebhookError(f"no signature in {SIGNATURE_HEADER} was made with this secret over this body")
    try:
        document = json.loads(body)
        return Webhook(
            webhook_id, sent_at, document["event_type"], document["timestamp"], document["payload"]
        )
    except (ValueError, KeyError, TypeError):
        raise WebhookError(
            "the body is signed, and is not a webhook: event_type, timestamp and payload"
        ) from None


def _key(secret: Secret | str) -> bytes:
    text = secret.reveal() if isinstance(secret, Secret) else secret
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise KeyMaterialError(
            f"a webhook secret is written {SECRET_PREFIX}<base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes>"
        )
    return key


def _content(webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{webhook_id}.{timestamp}.".encode() + body


def _hmac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)


def _header(given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value:
        raise WebhookError(f"the header {name} is missing")
    return value


def _moment(timestamp: str) -> datetime:
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 11:
        raise WebhookError(f"{TIMESTAMP_HEADER} is not a number of seconds since 1970")
    return datetime.fromtimestamp(int(timestamp), UTC)


def _signatures(header: str) -> list[bytes]:
    """Return the signatures of our scheme; others (asymmetric ones, say) are passed over."""
    found: list[bytes] = []
    for each in header.split(" ")[:MAX_SIGNATURES]:
        scheme, _, encoded = each.partition(",")
        if scheme == _SCHEME:
            try:
                found.append(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                continue
    return found
