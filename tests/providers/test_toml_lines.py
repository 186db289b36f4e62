"""A mistake is told with the line of its key, however deep its table, its list or its string is."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.describe import validate_paths
from providers.registry import CATALOG
from providers.toml_lines import Lines
from tests.providers.definitions import toml

MISTAKES = """
[refresh.names]
client_idd = "x"  # refresh.names.client_idd is not a known key: did you mean 'client_id'?
[refresh.parameters]
"a b" = "x"  # refresh.parameters."a b" must be 1 to 64 printable characters without spaces
audience = 5  # refresh.parameters.audience must be text in quotes
[assertion]  # assertion.audience is missing
algorithm = "RS265"  # assertion.algorithm must be one of RS256, PS256, ES256, HS256: did you mean 'RS256'?
claims.level = 1.5  # assertion.claims.level must be text
[computed.sign]
kind = "hmac_sha265"  # computed.sign.kind must be one of
[computed."bad-name"]  # computed.bad-name must be letters, digits and underscores
kind = "random"
[answer]
expires_in = { path = "x", unit = "second" }  # answer.expires_in.unit must be one of
success = [
    { path = "ok", value = true },
    # Nothing [ of { this } is a bracket.
    { path = "ok", valeu = true },  # answer.success[2].valeu is not a known key: did you mean 'value'?
]
[connect.user]
att = "user"  # connect.user.att is not a known key: did you mean 'at'?
[[steps]]
endpoint = "https://example.com/a"
methd = "POST"  # steps[1].methd is not a known key: did you mean 'method'?
[[steps]]  # steps[2].endpoint is missing
body = "xml"  # steps[2].body must be one of form, json, query, none
[steps.answer]
access_tokn = "x"  # steps[2].answer.access_tokn is not a known key: did you mean 'access_token'?
[steps.answer.expires_at]  # steps[2].answer.expires_at.path is missing
format = "iso8601"
[lifetimes]
minimum_age_seconds = 0  # lifetimes.minimum_age_seconds must be more than 0
[probe]
endpoint = "https://api.example.com/me"
alive_status = [
    200,
    99,  # probe.alive_status[2] must be at least 200
]
[[probe.alive_when]]
path = "a..b"  # probe.alive_when[1].path[1] is not a path
[[probe.dead_when]]
path = "error"
[[probe.dead_when]]
path = ["error", "b..c"]  # probe.dead_when[2].path[2] is not a path
[probe.headers]
X-Good = '''
two lines'''
"X Bad" = "1"  # probe.headers."X Bad" must be a header name
[revoke]
endpoint = "https://api.example.com/revoke"
token = "refresh"  # revoke.token must be one of refresh_token, access_token: did you mean 'refresh_token'?
gone_status = ["404"]  # revoke.gone_status[1] must be a whole number
[variables.shop]  # variables.shop.description is missing
kind = "lable"  # variables.shop.kind must be one of text, digits, label, host, url: did you mean 'label'?
"""


def test_mistakes_in_nested_tables_are_told_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(toml(MISTAKES), "utf-8")
    told = {(problem.line, f"{problem.key} {problem.reason}") for problem in validate_paths([file])}
    expected = [
        (number, line.rpartition("  # ")[2])
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)
        if "  # " in line and not line.strip().startswith("#")
    ]
    missing = [
        (number, text)
        for number, text in expected
        if not any(line == number and reason.startswith(text) for line, reason in told)
    ]
    assert missing == []
    assert len(told) == len(expected)


def places(document: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of everything in ``document``."""
    if place:
        yield place
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in inner:
        yield from places(value, (*place, key))


@pytest.mark.parametrize("file", [Path(__file__).with_name("every_key.toml"), CATALOG / "google.toml"])
def test_everything_in_a_file_has_a_line_that_names_it(file: Path) -> None:
    text = file.read_text("utf-8")
    lines, written = Lines(text), text.splitlines()
    for place in places(tomllib.loads(text)):
        line = lines.of(place)
        assert line is not None, place
        name = [part for part in place if isinstance(part, str)][-1]
        assert name in written[line - 1] or isinstance(place[-1], int), (place, written[line - 1])


def test_a_list_of_one_may_be_written_without_its_brackets() -> None:
    lines = Lines('[probe]\nalive_status = 200\n[probe.alive_when]\npath = "a"\n')
    assert lines.of(("probe", "alive_status", 0)) == 2
    assert lines.of(("probe", "alive_when", 0, "path", 0)) == 4
    assert lines.of(("probe", "alive_when", 0, "vale")) == 3
    assert lines.of(("nothing", "like", "it")) is None


def test_no_file_of_the_catalogue_confuses_it() -> None:
    for file in sorted(CATALOG.glob("*.toml"))[::10]:
        text = file.read_text("utf-8")
        lines = Lines(text)
        for place in places(tomllib.loads(text)):
            assert lines.of(place) is not None, (file.stem, place)
