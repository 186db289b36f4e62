"""The guide to leaving keeps its word: its commands, run as they stand by two fleets, move an account."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from tests.cli.conftest import Shell
from tests.cli.test_leaving import founded
from tests.support.databases import cloned_database
from tests.support.fleet import Fleet

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "leaving.md").read_text()
BLOCKS = re.findall(r"```sh (here|there)\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def fleets(
    servers: Mapping[str, str], template: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, tuple[Fleet, Shell]]]:
    """Where accounts are and where they go, with the files that the guide speaks of in one directory."""
    monkeypatch.chdir(tmp_path)
    with (
        SandboxServer(SandboxConfig()) as server,
        cloned_database(servers, template) as one,
        cloned_database(servers, template) as other,
        founded(server, one, redis_url, tmp_path / "here") as here,
        founded(server, other, redis_url, tmp_path / "there") as there,
    ):
        yield {"here": here, "there": there}


def test_the_commands_of_the_guide_move_accounts(
    fleets: dict[str, tuple[Fleet, Shell]], tmp_path: Path
) -> None:
    (here, here_shell), (there, _) = fleets["here"], fleets["there"]
    lines = [
        {
            "provider": "sandbox",
            "external_id": grant.subject,
            "tenant": "t-204",
            "refresh_token": grant.tokens.refresh_token.reveal(),
            "access_token": grant.tokens.access_token.reveal(),
        }
        for grant in here.server.issue("customer-1", "customer-2", "customer-3")
        if grant.tokens.refresh_token is not None
    ]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    (tmp_path / "connections.jsonl").write_text(json.dumps(lines[2]) + "\n")
    (tmp_path / "their.secret").write_text("theirs")
    assert here_shell("accounts", "import", "old.jsonl").exit_code == 0

    recipient = ""
    for where, block in BLOCKS:
        for line in block.splitlines():
            program, *words = re.findall(r'"[^"]*"|\S+', line)
            assert program == "tokenfleet"
            ran = fleets[where][1](*(word.strip('"').replace("age1...", recipient) for word in words))
            assert ran.exit_code == 0, (line, ran)
            if "recipient" in words:
                recipient = ran.stdout.strip()
    statuses = {
        name: fleet.column(
            "SELECT external_id || ' ' || status FROM tokenfleet.accounts ORDER BY external_id"
        )
        for name, (fleet, _) in fleets.items()
    }
    assert statuses == {
        "here": ["customer-1 revoked", "customer-2 paused"],
        "there": ["customer-1 active", "customer-2 active", "customer-3 active"],
    }
    assert there.strays() == []
    assert (tmp_path / "preview.jsonl").read_text().count("t-204") == 2


def test_every_link_of_the_guide_leads_somewhere_and_every_reason_is_the_commands() -> None:
    from cli.departures import WHY

    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target
    told = re.findall(r"^\| ([a-z][^|]+) \|", GUIDE.split("### What stays")[1].split("###")[0], re.MULTILINE)
    assert len(told) == 6
    for reason in told[1:]:
        assert any(reason in sentence for sentence in WHY.values()), reason
