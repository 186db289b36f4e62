"""Where a reader's keys come from: its environment, its key file, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenfleet_client import KeyEncryptionKey, KeyMaterialError
from tokenfleet_client.access_keys import keys_from_environ

ONE, TWO = KeyEncryptionKey.generate("one").export(), KeyEncryptionKey.generate("two").export()


def names(environ: dict[str, str]) -> list[str]:
    return [key.key_id for key in keys_from_environ(environ)]


def test_the_variable_holds_one_key_or_several() -> None:
    assert names({"TOKENFLEET_ACCESS_KEYS": ONE}) == ["one"]
    assert names({"TOKENFLEET_ACCESS_KEYS": f"{ONE}, {TWO}"}) == ["one", "two"]


def test_of_a_key_file_the_access_ring_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"access": [ONE], "refresh": [TWO]}))

    assert names({"TOKENFLEET_KEYS_FILE": str(path)}) == ["one"]


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "set TOKENFLEET_ACCESS_KEYS"),
        ({"TOKENFLEET_KEYS_FILE": "/nonexistent/keys.json"}, "not a readable key file"),
        ({"TOKENFLEET_ACCESS_KEYS": "one:hvac://vault/transit/one"}, "in a key service"),
        ({"TOKENFLEET_ACCESS_KEYS": "one:" + "c2hvcnQ="}, "5 bytes instead of 32"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_that_repeats_no_key(environ: dict[str, str], told: str) -> None:
    with pytest.raises(KeyMaterialError, match=told) as refusal:
        keys_from_environ(environ)
    assert "c2hvcnQ" not in str(refusal.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"access": "one"}', '{"access": [1]}', "no json"])
def test_a_file_that_is_no_key_file_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)

    with pytest.raises(KeyMaterialError, match="JSON with the list 'access'"):
        keys_from_environ({"TOKENFLEET_KEYS_FILE": str(path)})
