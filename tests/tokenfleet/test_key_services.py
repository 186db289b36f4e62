"""One suite over every kind of key-encryption key, then what is particular to a key service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.key_rings import read_key_rings
from tokenfleet.key_services.aws_kms import AwsKmsKey
from tokenfleet.key_services.vault_transit import VaultAccess, VaultTransitKey
from tokenfleet_client.envelope import KEY_BYTES, KeyEncryptionKey, KeyWrapper, Ring
from tokenfleet_client.errors import EnvelopeError, KeyServiceUnavailable
from tokenfleet_client.secret import Secret

REGION = "eu-central-1"
KINDS = ("own", "vault", "aws")
Pair = Callable[[str], tuple[KeyWrapper, KeyWrapper]]


@pytest.fixture
def vault_server() -> Iterator[VaultServer]:
    with VaultServer("one", "two") as server:
        yield server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # In requirements.lock; an environment that is older than the extra does without this part only.
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with moto.mock_aws():
        yield


@pytest.fixture
def pair(vault_server: VaultServer, request: pytest.FixtureRequest) -> Pair:
    """Two keys of a kind."""

    def make(kind: str) -> tuple[KeyWrapper, KeyWrapper]:
        if kind == "own":
            return KeyEncryptionKey.generate("one"), KeyEncryptionKey.generate("two")
        if kind == "vault":
            return vault_key(vault_server, "one"), vault_key(vault_server, "two")
        request.getfixturevalue("aws")
        import boto3

        kms = boto3.client("kms", region_name=REGION)
        one, two = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
        return AwsKmsKey("one", REGION, one), AwsKmsKey("two", REGION, two)

    return make


def vault_key(server: VaultServer, name: str, access: VaultAccess | None = None) -> VaultTransitKey:
    key_id, _, url = server.address(name, name).partition(":")
    return VaultTransitKey.parse(key_id, url, access or VaultAccess(Secret(TOKEN)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrapped_opens_with_the_same_key_for_the_same_place_only(kind: str, pair: Pair) -> None:
    one, two = pair(kind)
    data_key = os.urandom(KEY_BYTES)
    wrapped = one.wrap(data_key, Ring.REFRESH, 7)
    assert data_key not in wrapped
    assert one.unwrap(wrapped, Ring.REFRESH, 7) == data_key
    assert not one.is_outdated(wrapped)
    for key, ring, data_key_id in ((two, Ring.REFRESH, 7), (one, Ring.ACCESS, 7), (one, Ring.REFRESH, 8)):
        # Of another key's ciphertext AWS says IncorrectKey, and moto that access is denied: no word on the value.
        refused = (EnvelopeError, KeyServiceUnavailable) if kind == "aws" and key is two else EnvelopeError
        with pytest.raises(refused):
            key.unwrap(wrapped, ring, data_key_id)
    with pytest.raises(EnvelopeError):
        one.unwrap(b"nothing that anybody has wrapped", Ring.REFRESH, 7)


def test_a_new_version_in_vault_opens_the_older_one_and_says_that_it_is_older(
    vault_server: VaultServer,
) -> None:
    key = vault_key(vault_server, "one")
    wrapped = key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1)
    vault_server.rotate("one")
    assert key.is_outdated(wrapped)
    assert key.unwrap(wrapped, Ring.ACCESS, 1) == bytes(KEY_BYTES)
    assert not key.is_outdated(key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1))
    vault_server.min_decryption_version = 2
    with pytest.raises(EnvelopeError):
        key.unwrap(wrapped, Ring.ACCESS, 1)


def test_a_vault_that_cannot_answer_is_away_and_nothing_is_called_damaged(vault_server: VaultServer) -> None:
    key = vault_key(vault_server, "one")
    wrapped = key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1)
    vault_server.sealed = True
    with pytest.raises(KeyServiceUnavailable, match="sealed") as sealed:
        key.unwrap(wrapped, Ring.ACCESS, 1)
    vault_server.sealed = False
    vault_server.token = "another"
    with pytest.raises(KeyServiceUnavailable, match="policy"):
        key.unwrap(wrapped, Ring.ACCESS, 1)
    vault_server.token = TOKEN
    material = vault_server.keys.pop("one")
    with pytest.raises(KeyServiceUnavailable, match="knows no key 'one'"):
        key.unwrap(wrapped, Ring.ACCESS, 1)
    vault_server.keys["one"] = material
    vault_server.go()
    with pytest.raises(KeyServiceUnavailable, match="does not answer"):
        key.unwrap(wrapped, Ring.ACCESS, 1)
    assert TOKEN not in str(sealed.value) + repr(key)


def test_a_token_file_that_an_agent_renews_is_read_at_every_call(
    vault_server: VaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    key = vault_key(vault_server, "one", VaultAccess(token_file=path))
    with pytest.raises(KeyServiceUnavailable, match="token file"):
        key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1)
    path.write_text(f"{TOKEN}\n")
    wrapped = key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1)
    vault_server.token = "the next"
    path.write_text("the next")
    assert key.unwrap(wrapped, Ring.ACCESS, 1) == bytes(KEY_BYTES)


def test_what_kms_refuses_for_another_reason_is_away(aws: None) -> None:
    key = AwsKmsKey("one", REGION, "alias/nobody-made-it")
    with pytest.raises(KeyServiceUnavailable, match="NotFoundException"):
        key.wrap(bytes(KEY_BYTES), Ring.ACCESS, 1)


def test_a_key_list_names_keys_of_every_kind() -> None:
    problems: list[str] = []
    own = KeyEncryptionKey.generate("own").export()
    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
    environ = {
        "TOKENFLEET_ACCESS_KEYS": own,
        "TOKENFLEET_REFRESH_KEYS": f"v:vault://vault.test:8200/team/transit/refresh,a:aws-kms://{REGION}/{arn}",
    }
    access, refresh = read_key_rings(environ, Path("/nowhere"), problems)
    assert problems == []
    assert list(access.keys) == ["own"]
    assert refresh.primary == VaultTransitKey(
        "v", "https://vault.test:8200", "team/transit", "refresh", VaultAccess()
    )
    assert refresh.keys["a"] == AwsKmsKey("a", REGION, arn)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v:vault+http://vault.test/transit/key", "plain HTTP"),
        ("v:vault://s.sometoken@vault.test/transit/key", "TOKENFLEET_VAULT_TOKEN_FILE"),
        ("v:vault://vault.test/key", "must be written"),
        ("a:aws-kms://region", "must be written"),
        ("g:gcp-kms://project/key", "not known"),
        ("a name that is none:vault://vault.test/transit/key", "32 letters"),
    ],
)
def test_a_mistaken_address_is_one_sentence_without_what_was_secret_in_it(text: str, said: str) -> None:
    problems: list[str] = []
    read_key_rings({"TOKENFLEET_REFRESH_KEYS": text}, Path("/nowhere"), problems)
    [problem] = problems
    assert said in problem
    assert "sometoken" not in problem


def test_one_key_of_a_service_in_both_rings_is_refused() -> None:
    problems: list[str] = []
    address = "vault://vault.test/transit/key"
    environ = {"TOKENFLEET_ACCESS_KEYS": f"a:{address}", "TOKENFLEET_REFRESH_KEYS": f"r:{address}"}
    read_key_rings(environ, Path("/nowhere"), problems)
    assert ["readers could open refresh" in problem for problem in problems] == [True]
