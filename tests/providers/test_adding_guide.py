"""``docs/adding-a-provider.md`` keeps its word: its definition validates, its keys and commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from cli.main import root
from conformance import run_all
from providers import Provider, load_registry
from providers.describe import lines, validate_paths
from providers.loading import read_definition
from providers.spec import ProviderSpec
from tests.providers.test_explanation import models_in

GUIDE = (Path(__file__).parents[2] / "docs" / "adding-a-provider.md").read_text("utf-8")
TABLES = tuple(ProviderSpec.model_fields)
KEYS = sorted(set(re.findall(rf"`((?:{'|'.join(TABLES)})(?:\.[A-Za-z0-9_]+)+)`", GUIDE)))
[DEFINITION] = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)


def knows(model: type[BaseModel], key: str) -> bool:
    """Answer whether ``key``, as people write it, leads to something in ``model``; in free tables any name does."""
    name, _, rest = key.partition(".")
    if name not in model.model_fields:
        return False
    annotation: Any = model.model_fields[name].annotation
    if not rest:
        return True
    if str(annotation).startswith("dict"):
        rest = rest.partition(".")[2]
    return not rest or any(knows(inner, rest) for inner in models_in(annotation))


def test_its_definition_validates_and_marks_what_it_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "acme_books.toml"
    file.write_text(DEFINITION)
    assert validate_paths([file]) == []
    spec, _ = read_definition(file, allow_http=False)
    assert spec is not None
    marked = [line for line in lines(spec, "") if line.endswith("[not confirmed]")]
    assert [line.partition(":")[0] for line in marked] == ["Access token", "Replaced token"]


def test_its_definition_passes_what_it_tells_authors_to_run(tmp_path: Path) -> None:
    file = tmp_path / "acme_books.toml"
    file.write_text(DEFINITION)
    spec, _ = read_definition(file, allow_http=False)
    assert spec is not None
    [report] = run_all([(Provider.compile(spec, origin=str(file), allow_http=False), None)])
    assert report.passed
    assert len([result for result in report.results if result.verdict == "passed"]) > 15


def test_every_key_that_it_names_exists() -> None:
    assert [key for key in KEYS if not knows(ProviderSpec, key)] == []


def test_it_names_every_table_of_the_language_and_many_keys() -> None:
    assert len(KEYS) > 50
    assert not knows(ProviderSpec, "rotation.grace")
    named = {key.partition(".")[0] for key in KEYS} | set(re.findall(r"^\[*(\w+)", DEFINITION, re.MULTILINE))
    assert set(TABLES) - named == set()


def test_every_definition_that_it_points_to_is_in_the_catalogue() -> None:
    rows = re.findall(r"^\|.*\| ([a-z0-9_, ]+) \|$", GUIDE, re.MULTILINE)
    names = {name for row in rows for name in row.split(", ") if name not in ("see", "you write")}
    assert len(names) > 20
    assert names <= set(load_registry().names())


def test_every_command_and_option_that_it_shows_exists() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    shown = re.findall(r"(?:^|  )(tokenfleet [^#|\n]*)", "\n".join(blocks), re.MULTILINE)
    shown += re.findall(r"`(tokenfleet [^`>]*)", GUIDE)
    assert len(shown) >= 10
    for text in shown:
        command: click.Command = root
        words = shlex.split(text)[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, text
            command = found
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, text
