"""``docs/providers.md`` says what the definitions say, and stays readable however many there are."""

from __future__ import annotations

import re
import tomllib
from typing import Final, get_args

from cli.provider_list import GRANTS as LISTED_GRANTS
from providers.page import PAGE, catalogue, page
from providers.page_section import GRANTS
from providers.spec import ProviderSpec
from providers.spec_requests import Grant
from tests.providers.definitions import toml

SPECS: Final = catalogue()
TEXT: Final = page(SPECS)


def one(extra: str = "", **parts: str) -> str:
    """Return the section of a small definition."""
    document = tomllib.loads(toml(extra, **parts))
    return page([ProviderSpec.model_validate(document)]).partition("### example")[2]


def test_the_published_page_is_what_the_definitions_say() -> None:
    assert PAGE.read_text("utf-8") == TEXT, "run: python -m providers.page"


def test_every_provider_has_a_row_and_a_section_that_it_leads_to() -> None:
    names = [spec.name for spec in SPECS]
    assert re.findall(r"^\| \[(\w+)\]\(#\w+\)", TEXT, re.MULTILINE) == names
    assert re.findall(r"^### (\w+)$", TEXT, re.MULTILINE) == names
    for spec in SPECS:
        assert f"[documentation]({spec.documentation})" in TEXT
        assert f"checked {spec.checked.isoformat()}" in TEXT


def test_every_row_of_a_table_has_all_of_its_cells() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| [")]
    assert {row.count(" | ") for row in rows} == {6}


def test_sections_are_short() -> None:
    for section in TEXT.split("\n### ")[1:]:
        assert len(section.splitlines()) <= 30, section.splitlines()[0]


def test_what_nobody_has_confirmed_has_a_question_mark_in_table_and_section() -> None:
    doubtful = next(spec for spec in SPECS if "the access token's life" in spec.unverified)
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| [{doubtful.name}]"))
    assert "**?**" in row.split(" | ")[2]
    assert "**Lifetimes:** access token" in TEXT
    assert "**?**" not in one("[lifetimes]\naccess_seconds = 60")


def test_a_section_says_rotation_limits_errors_probe_and_revocation() -> None:
    text = one(
        '[[errors]]\noutcome = "grant_rejected"\nstatus = 400\npath = "error"\nvalue = ["gone", "away"]\n'
        '[[errors]]\noutcome = "grant_rejected"\nstatus = 400\npath = "error"\nvalue = "lost"\n'
        "[lifetimes]\naccess_seconds = 3600\nrefresh_absolute_seconds = 31536000\nminimum_age_seconds = 600\n"
        "[rate]\nrequests_per_second = 2.5\n"
        '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200\n'
        '[revoke]\nendpoint = "https://auth.example.com/revoke"',
        rotation='policy = "always"\ngrace_seconds = 60\ngrace_until_first_use = true\nmax_live = 2',
    )
    for line in (
        "- **Renewal:** `POST https://auth.example.com/token`, form, `client_secret_post`",
        "- **Lifetimes:** access token 1 hour; grant 1 year from consent; no refresh in the first 10 minutes",
        (
            "- **Rotation:** always; the replaced one works until the new access token is first used, 1 minute at "
            "most"
        ),
        "- **Limits:** 2 live refresh tokens; 2.5 requests a second, bursts of 3",
        "- **Errors:** *grant gone* `400 error=gone|away|lost`",
        "- **Probe:** `GET https://api.example.com/me` every 6 hours: 200 alive, 401 dead",
        "- **Revocation:** `POST https://auth.example.com/revoke`, the refresh token",
    ):
        assert line in text.splitlines()


def test_what_is_unusual_of_request_and_answer_is_said_and_what_is_usual_is_not() -> None:
    assert "Answer" not in one()
    assert "Success" not in one()
    text = one('[answer]\naccess_token = "data.at"\n[assertion]\nalgorithm = "RS256"\naudience = "us"')
    assert "- **Answer:** the access token stands at data.at" in text
    assert "- **Assertion:** a JSON Web Token, signed with RS256" in text


def test_every_grant_has_words() -> None:
    assert tuple(GRANTS) == tuple(LISTED_GRANTS) == get_args(Grant)
