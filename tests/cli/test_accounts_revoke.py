"""``accounts revoke``: what becomes of the account here, at the provider, and what the command says of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from cli.accounts_revoke import _confirm
from store.engine import make_engine
from store.keys import Vault
from store.revocations import CONFIRMED, REFUSED, RevocationMade, settle
from tests.cli.conftest import Shell
from tests.providers.definitions import toml
from tests.support.builders import (
    ACTOR,
    HOUR,
    JOB_ID,
    claim,
    history_of,
    job_of,
    make_account,
    make_app,
    now,
    start,
    told_about,
)
from tests.support.fleet import eventually
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus

DEFINITION = '[revoke]\nendpoint = "https://auth.example.com/revoke"'


@pytest.fixture
def shell(environ: dict[str, str], tmp_path: Path) -> Shell:
    """A shell that knows ``acme``, which has a revocation, and ``mute``, which has none."""
    (tmp_path / "acme.toml").write_text(toml(DEFINITION).replace('"example"', '"acme"', 1))
    (tmp_path / "mute.toml").write_text(toml().replace('"example"', '"mute"', 1))
    return Shell(environ | {"TOKENFLEET_PROVIDERS_DIR": str(tmp_path)})


@pytest.fixture
def app(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault, name="default")


@pytest.fixture
def scheduler(settings: Settings) -> Iterator[None]:
    """A scheduler is connected."""
    engine = make_engine(settings.database_url, application_name="tokenfleet scheduler host-1")
    with engine.connect():
        yield
    engine.dispose()


def holds_tokens(engine: Engine, account_id: AccountId) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.execute(
                text(
                    "SELECT access_token IS NOT NULL OR refresh_token IS NOT NULL FROM tokenfleet.token_sets "
                    "WHERE account_id = :id"
                ),
                {"id": account_id},
            ).scalar_one()
        )


def answer_as_provider(engine: Engine, app: AppId, kind: str, code: str) -> None:
    """Play the worker that asks the provider, which answers so."""

    def is_due() -> bool:
        attempts = start(engine, job_of(app, claim(engine, app)))
        for attempt in attempts:
            assert attempt.status is AccountStatus.REVOKED
            made = RevocationMade(
                account_id=attempt.account_id,
                epoch=attempt.epoch,
                generation=attempt.generation,
                kind=kind,
                code=code,
                next_refresh_at=None if kind == CONFIRMED else now() + HOUR,
                job_id=JOB_ID,
                duration_ms=12,
            )
            with engine.begin() as connection:
                settle(connection, [made], actor=ACTOR)
        return bool(attempts)

    eventually(is_due)


@pytest.mark.usefixtures("scheduler")
def test_revoke_waits_for_the_provider_and_says_that_it_has_confirmed(
    shell: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, external_id="c-1", due_in=HOUR)
    with ThreadPoolExecutor(1) as beside:
        provider = beside.submit(answer_as_provider, engine, app, CONFIRMED, "http_200")
        ran = shell("accounts", "revoke", "acme/c-1", "--yes", "--reason", "ticket 17")
        provider.result()
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert (
        "acme/c-1: revoked; the provider has confirmed it (http_200), and its tokens are forgotten"
        in ran.stdout
    )
    assert not holds_tokens(engine, account_id)
    assert told_about(engine, account_id) == ["integrated_account:revoked"]
    again = shell("accounts", "revoke", "acme/c-1", "--yes")
    assert (again.exit_code, again.stdout) == (0, "acme/c-1: it was revoked already\n")
    history = shell("accounts", "history", "acme/c-1")
    for part in (
        "account.revoked",
        "reason: ticket 17",
        "by operator ",
        "revocation.confirmed",
        "Its tokens are forgotten",
    ):
        assert part in history.stdout
    assert history_of(engine, account_id) == ["account.revoked", "revocation.confirmed"]


@pytest.mark.usefixtures("scheduler")
def test_a_provider_that_refuses_is_told_of_and_the_account_is_revoked_all_the_same(
    shell: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, status=AccountStatus.PAUSED)
    with ThreadPoolExecutor(1) as beside:
        provider = beside.submit(answer_as_provider, engine, app, REFUSED, "invalid_client")
        ran = shell("accounts", "revoke", str(account_id), "--yes", "--json")
        provider.result()
    assert ran.exit_code == 1
    [result] = ran.document
    assert result["outcome"] == "waiting"
    assert (
        "revoked, but the provider refuses to end its grant (invalid_client): it is asked again"
        in result["message"]
    )
    shown = shell("accounts", "show", str(account_id)).stdout
    assert "has not confirmed that yet; it said invalid_client. It is asked at" in shown
    assert "--local-only' forgets them now" in shown
    forgotten = shell("accounts", "revoke", str(account_id), "--yes", "--local-only")
    assert (forgotten.exit_code, holds_tokens(engine, account_id)) == (0, False)
    assert "The provider was not told, as you asked" in forgotten.stdout
    assert told_about(engine, account_id) == ["integrated_account:revoked"]


def test_a_provider_without_a_revocation_is_not_told_and_the_command_says_so(
    shell: Shell, engine: Engine, vault: Vault
) -> None:
    account_id = make_account(engine, vault, make_app(engine, vault, provider="mute"))
    ran = shell("accounts", "revoke", str(account_id), "--yes")
    assert ran.exit_code == 0
    assert (
        "its tokens are forgotten. The provider was not told, because its definition has no revocation"
        in ran.stdout
    )
    assert not holds_tokens(engine, account_id)
    assert history_of(engine, account_id) == ["account.revoked", "revocation.forgotten"]


def test_without_a_scheduler_the_account_is_revoked_and_the_provider_is_told_later(
    shell: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    ran = shell("accounts", "revoke", str(account_id), "--yes")
    assert ran.exit_code == 0
    assert "No scheduler is connected here: the providers are told when one runs." in ran.stderr
    assert "revoked; the provider is told, and its tokens are forgotten then" in ran.stdout
    assert holds_tokens(engine, account_id)
    assert told_about(engine, account_id) == ["integrated_account:revoked"]


def test_nobody_is_revoked_by_a_slip_of_the_hand(
    shell: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    ran = shell("accounts", "revoke", str(account_id))
    assert ran.exit_code == 2
    assert "say --yes" in ran.stderr
    assert history_of(engine, account_id) == []
    missing = shell("accounts", "revoke", str(account_id), "acme/nobody", "--yes", "--local-only")
    assert missing.exit_code == 1
    assert "there is no account acme/nobody" in missing.stderr
    assert history_of(engine, account_id) == ["account.revoked", "revocation.forgotten"]


@pytest.mark.parametrize(
    ("accounts", "asked"),
    [
        (("acme/c-1",), "End the grant of acme/c-1 for good?"),
        (("17", "17"), "End the grant of account 17 for good?"),
        (("17", "18"), "End 2 grants for good?"),
    ],
)
def test_who_is_asked_whether_to_revoke_reads_which_account_and_may_say_no(
    accounts: tuple[str, ...], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []

    def no(question: str, **_: object) -> bool:
        questions.append(question)
        return False

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", no)
    with pytest.raises(UserError, match="nothing was revoked"):
        _confirm(accounts)
    assert questions[0].startswith(asked)


def test_new_tokens_begin_a_revoked_account_anew(
    shell: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, external_id="c-1")
    shell("accounts", "revoke", "acme/c-1", "--yes", "--local-only")
    line = '{"provider": "acme", "external_id": "c-1", "refresh_token": "anew", "access_token": "a", "expires_in": 9}'
    ran = shell("accounts", "import", "-", stdin=line)
    assert ran.exit_code == 0, ran.stderr
    assert told_about(engine, account_id) == ["integrated_account:revoked", "integrated_account:reactivated"]
    assert holds_tokens(engine, account_id)
