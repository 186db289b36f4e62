"""Computed values: published digests, in the order of definition, over the credentials of one request."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from providers import ClientCredentials, Grant
from providers.computed import Computation
from providers.spec_requests import Computed
from providers.templates import VariableRule
from tests.providers.definitions import provider
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
RULES = {name: VariableRule(name, "text") for name in ("text", "key")}


def value(computed: Computed, **values: str) -> str:
    return Computation(computed, RULES).value(values, NOW)


@pytest.mark.parametrize(
    ("computed", "expected"),
    [
        # FIPS 180-4, example of one block.
        (
            Computed(kind="sha256", of="{text}"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            Computed(kind="sha256", of="{text}", encoding="upper_hex"),
            "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
        ),
        (
            Computed(kind="sha256", of="{text}", encoding="base64"),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        ),
        (
            Computed(kind="sha256", of="{text}", encoding="base64url"),
            "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0",
        ),
        # RFC 4231, test case 2.
        (
            Computed(kind="hmac_sha256", key="{key}", of="what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        # RFC 4648 section 10.
        (Computed(kind="base64", of="foob"), "Zm9vYg=="),
        (Computed(kind="base64", of="foob", encoding="base64url"), "Zm9vYg"),
        (Computed(kind="timestamp"), "1772366400"),
        (Computed(kind="timestamp", unit="milliseconds"), "1772366400250"),
    ],
)
def test_values_are_those_of_the_standards(computed: Computed, expected: str) -> None:
    assert value(computed, text="abc", key="Jefe") == expected


def test_random_values_have_16_bytes_and_differ() -> None:
    drawn = {value(Computed(kind="random", encoding="base64url")) for _ in range(20)}
    assert len(drawn) == 20
    assert {len(base64.urlsafe_b64decode(f"{text}==")) for text in drawn} == {16}


SIGNED = """
[variables.shop]
description = "which shop"
[refresh.headers]
X-Shop = "{client_id}"
X-Time = "{stamp}"
X-Sign = "{outer}"
Authorization = "Basic {pair}"
[computed.stamp]
kind = "timestamp"
unit = "milliseconds"
[computed.inner]
kind = "hmac_sha256"
key = "{client_secret}"
of = "{stamp}|{shop}|{refresh_token}"
[computed.outer]
kind = "sha256"
of = "{inner}"
[computed.pair]
kind = "base64"
of = "{client_id}:{access_token}"
"""


def test_a_signed_request_sends_what_is_computed_and_not_what_it_covers() -> None:
    asking = provider(
        SIGNED,
        refresh='endpoint = "https://auth.example.com/token"\nbody = "none"\ngrant = "client_credentials"',
        client='authentication = "none"',
    )
    client = ClientCredentials("client-1", Secret("hush"))
    grant = Grant(Secret("rt-1"), None, {"shop": "berlin"}, Secret("at-1"))
    request = asking.refresh_request(client, grant, now=NOW)
    inner = value(Computed(kind="hmac_sha256", key="{key}", of="1772366400250|berlin|rt-1"), key="hush")
    assert request.headers == {
        "Accept": "application/json",
        "X-Shop": "client-1",
        "X-Time": "1772366400250",
        "X-Sign": sha256(inner.encode()).hexdigest(),
        "Authorization": f"Basic {base64.b64encode(b'client-1:at-1').decode()}",
    }
    assert (request.body, request.url) == (b"", "https://auth.example.com/token")
    assert asking.required_variables() == {"shop"}


def test_a_stamped_request_needs_to_be_told_the_time() -> None:
    asking = provider('[refresh.parameters]\nat = "{stamp}"\n[computed.stamp]\nkind = "timestamp"')
    with pytest.raises(TypeError, match="give now"):
        asking.refresh_request(ClientCredentials("client-1", Secret("hush")), Grant(Secret("rt-1")))
