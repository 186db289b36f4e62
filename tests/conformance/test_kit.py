"""The kit's own parts: answers are written apart from the fleet's reader, and nothing passes for want of a look."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conformance import Kit, Verdict
from conformance.documents import with_value
from conformance.meanings import every_error, meaning, silent_rules
from conformance.player import Player
from conformance.scenarios import SCENARIOS, Scenario
from conformance.stage import Delivery, Reaction
from conformance.trial import Trial
from providers.paths import Path as AnswerPath
from tests.conformance.conftest import Run
from tests.providers.definitions import provider
from tests.providers.test_provider_facts import FACTS
from tokenfleet.outcome import Outcome

OUTCOMES = {
    "GrantRejected": "grant_rejected",
    "ClientRejected": "client_rejected",
    "RequestRejected": "request_rejected",
    "Throttled": "throttled",
    "Unavailable": "unavailable",
}


def name_of(outcome: Outcome) -> str:
    """What a definition calls an outcome."""
    return OUTCOMES[type(outcome).__name__]


def test_who_asks_a_stage_that_is_down_finds_nobody_and_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def ask() -> bytes:
        async with Player() as player:
            port = urlsplit(player.origin).port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /stage1/api.example.com/me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            try:
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(ask()) == b""
    assert caplog.records == []


@pytest.mark.parametrize("name", [name for name, fact in FACTS.items() if isinstance(fact[2], dict)])
def test_the_kit_understands_what_real_providers_answer(name: str) -> None:
    rule, status, body, meant = FACTS[name]
    assert isinstance(body, dict)
    spec = provider("[[errors]]\n" + rule.replace("; ", "\n")).spec

    assert meaning(spec, status, body)[0] == name_of(meant)


@pytest.mark.parametrize("name", FACTS)
def test_a_rule_about_real_answers_is_played_and_comes_to_what_it_says(name: str, run: Run) -> None:
    rule = FACTS[name][0]

    [result] = run(provider("[[errors]]\n" + rule.replace("; ", "\n")), only="error_rules").results

    assert (result.verdict, result.reason) == (Verdict.PASSED, "")


def test_a_rule_is_played_with_each_value_pattern_path_and_status() -> None:
    spec = provider("""
        [[errors]]
        outcome = "unavailable"
        status = [400, "5xx"]
        path = ["error", "errors[].code"]
        value = ["busy", 7]
        pattern = "try * later"
    """).spec

    played = {(answer.status, json.dumps(answer.document)) for answer in every_error(spec)}

    assert played == {
        (400, '{"error": "busy"}'),
        (400, '{"error": 7}'),
        (400, '{"error": "try seven later"}'),
        (400, '{"errors": [{"code": "busy"}]}'),
        (400, '{"errors": [{"code": 7}]}'),
        (400, '{"errors": [{"code": "try seven later"}]}'),
        (500, '{"error": "busy"}'),
    }
    assert silent_rules(spec) == []


@pytest.mark.parametrize(
    "path", ["error", "data.token", "errors[0].code", "codes[]", "[0].errorCode", "a[2].b[].c"]
)
def test_what_is_written_at_a_path_is_what_the_fleet_reads_there(path: str) -> None:
    assert list(AnswerPath.compile(path).values(with_value(None, path, "here"))) == ["here"]


def test_a_scenario_that_expects_nothing_fails() -> None:
    async def idle(trial: Trial) -> None:
        """Nothing."""

    async def play() -> list[Verdict]:
        async with Kit([Scenario("idle", "nothing", idle)]) as kit:
            return [result.verdict for result in (await kit.run(provider())).results]

    assert asyncio.run(play()) == [Verdict.FAILED]


def test_a_provider_that_hangs_is_given_up_and_asked_once_more() -> None:
    async def hung(trial: Trial) -> None:
        """A provider acts and says nothing."""
        trial.stage.script.append(Reaction(delivery=Delivery.HUNG))
        trial.expect_saved(await trial.renew())
        asked, lost = trial.stage.requests, trial.stage.chain.ledger.counters.replays_after_loss
        trial.expect((asked, lost) == (2, 1), "one replay after a loss", f"{asked} requests, {lost} replays")

    async def play() -> list[str]:
        graceful = provider(rotation='policy = "always"\ngrace_seconds = 60')
        async with Kit([Scenario("hung", "patience ends", hung)], timeout_seconds=1.0) as kit:
            return [str(result) for result in (await kit.run(graceful)).failures]

    assert asyncio.run(play()) == []


def test_every_scenario_says_what_it_proves() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 25
    assert all(scenario.proves.endswith(".") and len(scenario.proves) > 40 for scenario in SCENARIOS)


def test_a_variable_for_which_no_value_can_be_made_up_is_told(run: Run) -> None:
    report = run(
        provider(
            '[variables.region]\ndescription = "where"\nkind = "digits"\npattern = "eu-*"\n'
            '[refresh.parameters]\nregion = "{region}"\n'
        )
    )

    [failure] = report.failures
    assert failure.key == "variables"
    assert "region" in failure.reason


def test_the_guide_tells_of_every_scenario() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text("utf-8")

    assert [scenario.name for scenario in SCENARIOS if f"| `{scenario.name}` |" not in guide] == []
