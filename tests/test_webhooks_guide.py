"""The receiver's guide keeps its word: its Python block verifies what our sender signs, and refuses the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import root
from tokenfleet.delivery_policy import LONGEST_REST, RETRY_DELAYS, TOLERATED_FAILURES
from tokenfleet_client.webhooks import EventType, new_secret, sign

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "webhooks.md").read_text()


def test_the_python_block_takes_a_message_once_and_refuses_what_is_not_signed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [block] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    secret, asked = new_secret(), list[str]()
    monkeypatch.setenv("WEBHOOK_SECRET", secret.reveal())
    found: dict[str, Any] = {"seen": set(), "ask_to_sign_in_again": asked.append}
    exec(compile(block, "docs/webhooks.md", "exec"), found)
    receive: Callable[[dict[str, str], bytes], int] = found["receive"]

    body = (
        b'{"event_type":"integrated_account:authentication_error","timestamp":"2026-11-21T07:00:00Z",'
        b'"payload":{"external_id":"customer-17"}}'
    )
    headers = sign([secret], "id-1", datetime.now(UTC), body)
    assert [receive(headers, body), receive(headers, body)] == [204, 204]
    assert receive(sign([new_secret()], "id-2", datetime.now(UTC), body), body) == 400
    assert asked == ["customer-17"]


def test_every_event_command_and_number_of_the_guide_exists() -> None:
    for event in EventType:
        assert f"`{event.value}`" in GUIDE
    group = root.get_command(click.Context(root), "webhooks")
    assert isinstance(group, click.Group)
    named = set(re.findall(r"tokenfleet webhooks ([a-z-]+)", GUIDE))
    assert named <= set(group.list_commands(click.Context(group)))
    assert {"add", "list", "test", "deliveries", "replay", "rotate-secret"} <= named
    assert len(RETRY_DELAYS) == 9
    assert TOLERATED_FAILURES == 5
    assert LONGEST_REST.total_seconds() == 300
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target
