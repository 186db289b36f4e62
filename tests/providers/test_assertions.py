"""Assertions: signed as RFC 7515 shows it, with the claims of RFC 7523, and a clear word about keys that do not fit."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from providers import ClientCredentials, Grant, RequestBuildError, assertions
from providers.assertions import SigningKeyError, check_signing_key, signature
from providers.credentials import APP_FAULTS
from tests.providers.definitions import provider
from tests.support.pem import ec_key, private_pem, rsa_key
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

# RFC 7515 appendix A.2, a published example.
A2_INPUT = (
    b"eyJhbGciOiJSUzI1NiJ9."
    b"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
A2_SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdb"
    "F9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383"
    "LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWy"
    "wlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
A2_MODULUS = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SF"
    "d2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo"
    "7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkM"
    "Ls91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
A2_EXPONENT = (
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395"
    "IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV"
    "_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQ"
    "yGWSeWjnczT0QU91p1DhOVRuOopznQ"
)


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def parts(jwt: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Return head and claims of an assertion, what was signed, and the signature."""
    head, claims, seal = jwt.split(".")
    return (
        json.loads(unpadded(head)),
        json.loads(unpadded(claims)),
        f"{head}.{claims}".encode(),
        unpadded(seal),
    )


def test_the_published_example_of_rs256_is_reproduced() -> None:
    n, d = (int.from_bytes(unpadded(text), "big") for text in (A2_MODULUS, A2_EXPONENT))
    p, q = rsa.rsa_recover_prime_factors(n, 65537, d)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(65537, n)
    )
    made = signature(A2_INPUT, "RS256", private_pem(numbers.private_key()))
    assert made == unpadded(A2_SIGNATURE)


def asked(algorithm: str, key: str, extra: str = "", variables: dict[str, str] | None = None) -> str:
    """Return the assertion of a request with the grant jwt_bearer."""
    asking = provider(
        '[variables.user]\ndescription = "who"\n'
        f'[assertion]\nalgorithm = "{algorithm}"\nsubject = "{{user}}"\naudience = "https://auth.example.com"\n{extra}',
        client='authentication = "none"',
        refresh='endpoint = "https://auth.example.com/token"\ngrant = "jwt_bearer"\nbody = "json"',
    )
    grant = Grant(None, None, variables or {"user": "anna@example.com"})
    request = asking.refresh_request(ClientCredentials("client-1", Secret(key)), grant, now=NOW)
    sent = json.loads(request.body)
    assert sent.keys() == {"grant_type", "assertion"}
    assert sent["grant_type"] == JWT_BEARER
    return str(sent["assertion"])


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "HS256"])
def test_every_signature_is_one_that_an_independent_verifier_accepts(algorithm: str) -> None:
    key = "shared secret"
    if algorithm != "HS256":
        key = private_pem(ec_key() if algorithm == "ES256" else rsa_key())
    head, _, signed, seal = parts(asked(algorithm, key))
    assert head == {"alg": algorithm, "typ": "JWT"}
    match algorithm:
        case "RS256":
            rsa_key().public_key().verify(seal, signed, padding.PKCS1v15(), SHA256())
        case "PS256":
            scheme = padding.PSS(padding.MGF1(SHA256()), 32)
            rsa_key().public_key().verify(seal, signed, scheme, SHA256())
        case "ES256":
            assert len(seal) == 64
            der = encode_dss_signature(int.from_bytes(seal[:32], "big"), int.from_bytes(seal[32:], "big"))
            ec_key().public_key().verify(der, signed, ec.ECDSA(SHA256()))
        case _:
            import hashlib
            import hmac

            assert seal == hmac.new(b"shared secret", signed, hashlib.sha256).digest()


def test_the_claims_are_those_of_the_rfc_and_the_definition() -> None:
    extra = (
        'issuer = "app:{client_id}"\nlifetime_seconds = 120\nbackdate_seconds = 60\nkey_id = "key-{user}"\n'
        'head = { "x5t#S256" = "print of {user}" }\n'
        'claims = { scope = "read for {user}", "https://example.com/level" = 3, admin = false }'
    )
    head, claims, _, _ = parts(asked("HS256", "s", extra, {"user": "anna"}))
    noon = int(NOW.timestamp())
    assert head == {"alg": "HS256", "typ": "JWT", "kid": "key-anna", "x5t#S256": "print of anna"}
    assert len(claims.pop("jti")) >= 16
    assert claims == {
        "iss": "app:client-1",
        "sub": "anna",
        "aud": "https://auth.example.com",
        "iat": noon - 60,
        "exp": noon + 60,
        "scope": "read for anna",
        "https://example.com/level": 3,
        "admin": False,
    }


def test_an_assertion_may_be_for_nobody_in_particular() -> None:
    asking = provider(
        '[assertion]\nalgorithm = "HS256"\nsubject = ""\naudience = "a"\n',
        client='authentication = "private_key_jwt"',
    )
    client = ClientCredentials("client-1", Secret("s"))
    request = asking.refresh_request(client, Grant(Secret("rt-1")), now=NOW)
    _, claims, _, _ = parts(
        dict(pair.split("=") for pair in request.body.decode().split("&"))["client_assertion"]
    )
    assert "sub" not in claims
    assert claims["iss"] == "client-1"


def test_no_two_assertions_have_one_name() -> None:
    names = {parts(asked("HS256", "s"))[1]["jti"] for _ in range(20)}
    assert len(names) == 20


@pytest.mark.parametrize(
    ("algorithm", "key", "reason"),
    [
        ("RS256", lambda: "no key", "is not a private key in PEM form"),
        ("RS256", lambda: private_pem(ec_key()), "is not an RSA key, which RS256 signs with"),
        ("ES256", lambda: private_pem(rsa_key()), "is not a key on the curve P-256, which ES256 signs with"),
        (
            "ES256",
            lambda: private_pem(ec.generate_private_key(ec.SECP384R1())),
            "is not a key on the curve P-256, which ES256 signs with",
        ),
        ("PS256", lambda: private_pem(rsa_key(1024)), "has 1024 bits: PS256 needs 2048 or more"),
        (
            "RS256",
            lambda: private_pem(ec_key(), passphrase="open sesame"),
            "is encrypted with a passphrase: store it without one",
        ),
    ],
)
def test_a_key_that_cannot_sign_is_the_app_s_fault_and_said_in_one_sentence(
    algorithm: assertions.Algorithm, key: Any, reason: str
) -> None:
    text = key()
    with pytest.raises(SigningKeyError, match=reason):
        check_signing_key(text, algorithm)
    with pytest.raises(RequestBuildError) as caught:
        asked(algorithm, text)
    assert caught.value.code == "signing_key_unusable"
    assert caught.value.code in APP_FAULTS
    assert str(caught.value) == f"the app's signing key {reason}"


def test_keys_are_parsed_once_and_no_more_than_a_bound_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    load = assertions._loaded

    def loaded(pem: str) -> assertions.SigningKey:
        parsed.append(pem)
        return load(pem)

    monkeypatch.setattr(assertions, "_loaded", loaded)
    monkeypatch.setattr(assertions, "MAX_PARSED_KEYS", 2)
    assertions._parsed.clear()
    first, second, third = (private_pem(ec_key(number)) for number in range(3))
    for pem in (first, second, first, second, first, third, first, second):
        check_signing_key(pem, "ES256")
    assert parsed == [first, second, third, second]
    assert len(assertions._parsed) == 2
