"""The published JSON Schema: what editors show of each key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from providers.schema import SCHEMA_FILE, schema
from providers.spec import ProviderSpec
from tests.providers.definitions import toml

SCHEMA: dict[str, Any] = json.loads(SCHEMA_FILE.read_text("utf-8"))


def keys(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key of every table with what the schema says of it."""
    for table, part in {"": document, **document["$defs"]}.items():
        for key, said in part.get("properties", {}).items():
            yield f"{table}.{key}".lstrip("."), said


def test_every_key_and_every_table_says_in_a_sentence_what_it_is() -> None:
    mute = [key for key, said in keys(SCHEMA) if not said.get("description", "").endswith(".")]
    mute += [
        table for table, part in SCHEMA["$defs"].items() if "properties" in part and "description" not in part
    ]
    assert mute == []
    assert len(list(keys(SCHEMA))) > 100


def test_descriptions_are_what_an_editor_can_show() -> None:
    for key, said in keys(SCHEMA):
        assert "\n" not in said["description"], key
        assert "``" not in said["description"], key


def test_it_has_a_name_and_an_identifier_that_leads_nowhere() -> None:
    assert SCHEMA["title"] == "Tokenfleet provider definition"
    assert SCHEMA["$id"].startswith("urn:")
    assert schema() == SCHEMA


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("unverified", "one sentence without brackets", True),
        ("answer", {"scope": "data.scope[0]"}, True),
        ("answer", {"scope": "not a path"}, False),
        ("errors", [{"outcome": "unavailable", "path": "error", "pattern": "*"}], False),
    ],
)
def test_an_editor_and_the_fleet_agree(key: str, value: object, fits: bool) -> None:
    document = tomllib.loads(toml()) | {key: value}
    is_valid = Draft202012Validator(SCHEMA).is_valid({**document, "checked": "2026-01-31"})
    try:
        ProviderSpec.model_validate(document)
    except ValidationError:
        assert not fits
    else:
        assert fits
    assert is_valid == fits
