"""Signing and verifying: the published vectors, the project's own library, and everything that must be refused."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Standard
from standardwebhooks.webhooks import WebhookVerificationError

from tokenfleet_client.errors import KeyMaterialError, WebhookError
from tokenfleet_client.secret import Secret
from tokenfleet_client.webhooks import new_secret, sign, verify

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "webhooks.json").read_text())
BODY = b'{"event_type":"webhook:test","timestamp":"2026-11-21T07:00:00Z","payload":{}}'


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["name"])
def test_a_vector_is_signed_as_written_and_verified(vector: dict[str, Any]) -> None:
    sent_at = datetime.fromtimestamp(int(vector["headers"]["webhook-timestamp"]), UTC)
    secrets = [Secret(each) for each in vector["signed_with"]]
    body = vector["body"].encode()

    assert sign(secrets, vector["headers"]["webhook-id"], sent_at, body) == vector["headers"]
    message = verify(vector["secret"], vector["headers"], body, now=sent_at)
    assert message.webhook_id == vector["headers"]["webhook-id"]
    assert message.event_type == json.loads(vector["body"])["event_type"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_a_vector_that_must_be_refused_is(vector: dict[str, Any]) -> None:
    at = datetime.fromtimestamp(vector["now"], UTC)
    with pytest.raises(WebhookError):
        verify(vector["secret"], vector["headers"], vector["body"].encode(), now=at)


def test_the_example_of_the_standard_projects_own_tests_has_its_signature() -> None:
    """Secret, message and signature as the project publishes them for its libraries."""
    secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign(
        [secret],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        b'{"test": 2432232314}',
    )
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(body=st.text(), count=st.integers(1, 3))
def test_what_we_sign_the_standard_library_verifies_and_the_other_way_round(body: str, count: int) -> None:
    raw = json.dumps({"event_type": "x:y", "timestamp": body, "payload": {"text": body}}).encode()
    secrets = [new_secret() for _ in range(count)]
    ours = sign(secrets, "id-1", now(), raw)
    for secret in secrets:
        Standard(secret.reveal()).verify(raw, ours)
        assert verify(secret, ours, raw).payload == {"text": body}
    with pytest.raises(WebhookVerificationError):
        Standard(new_secret().reveal()).verify(raw, ours)

    sent_at = now()
    theirs = {
        "Webhook-Id": "id-2",
        "Webhook-Timestamp": str(int(sent_at.timestamp())),
        "Webhook-Signature": Standard(secrets[0].reveal()).sign("id-2", sent_at, raw.decode()),
    }
    assert verify(secrets[0].reveal(), theirs, raw).webhook_id == "id-2"


@pytest.mark.parametrize("part", ["webhook-id", "webhook-timestamp", "webhook-signature", "body"])
def test_nothing_signed_can_be_changed_or_left_out(part: str) -> None:
    secret, at = new_secret(), now()
    headers = sign([secret], "id-1", at, BODY)
    verify(secret, headers, BODY)

    for change in ("altered", "missing"):
        changed, body = dict(headers), BODY
        if part == "body":
            body = BODY[:-1] if change == "missing" else BODY.replace(b"test", b"tess")
        elif change == "missing":
            del changed[part]
        else:
            changed[part] = {
                "webhook-id": "id-2",
                "webhook-timestamp": str(int(at.timestamp()) + 1),
                "webhook-signature": f"v1,{base64.b64encode(os.urandom(32)).decode()}",
            }[part]
        with pytest.raises(WebhookError):
            verify(secret, changed, body)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_message_of_another_time_is_refused(seconds: int) -> None:
    secret, at = new_secret(), datetime.fromtimestamp(1_800_000_000, UTC)
    headers = sign([secret], "id-1", at, BODY)

    verify(secret, headers, BODY, now=at + timedelta(seconds=seconds - (1 if seconds > 0 else -1)))
    with pytest.raises(WebhookError, match="clock"):
        verify(secret, headers, BODY, now=at + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_short", "planted-value", "whsec_" + base64.b64encode(bytes(65)).decode()]
)
def test_what_is_no_secret_is_told_without_repeating_it(secret: str) -> None:
    with pytest.raises(KeyMaterialError) as refusal:
        verify(secret, {}, BODY)
    assert "planted-value" not in str(refusal.value)


@given(
    headers=st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text(max_size=30)
    ),
    body=st.binary(max_size=30),
)
def test_whatever_comes_is_refused_in_one_way(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookError):
        verify(new_secret(), headers, body)
