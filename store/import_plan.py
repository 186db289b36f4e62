"""What a chunk of lines comes to, worked out before anything is written.

Reads the accounts that the lines name, and locks the token sets of those whose token has to be compared with
the stored one; judges every line (``store.import_judgement``); and computes what will be written.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from store import apps, import_known
from store.import_admission import NumberedLine
from store.import_creation import NewAccount
from store.import_judgement import (
    ENDED,
    Apps,
    Compare,
    Create,
    Keep,
    KnownAccount,
    Reject,
    Renew,
    judge,
    settle,
)
from store.import_known import StoredTokens
from store.import_line import fingerprint
from store.import_renewal import Description, RenewedTokens
from store.import_rules import ProviderRules, RulesOf
from store.import_source import BadLine
from store.keys import Vault
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.lifetimes import Holding, Visit, first_visit
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import (
    Binding,
    DataKeys,
    access_token_binding,
    key_id_of,
    refresh_token_binding,
)
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

OVERTAKEN: Final = (
    "keys were rotated since this import began, and its token cannot be compared: run the command again"
)


@dataclass(slots=True)
class Plan:
    """The lines of a chunk by what becomes of them. Only ``bad`` and ``unchanged`` write nothing."""

    bad: list[BadLine] = field(default_factory=list)
    creations: list[NewAccount] = field(default_factory=list)
    renewals: list[RenewedTokens] = field(default_factory=list)
    descriptions: list[Description] = field(default_factory=list)
    """Of accounts that keep their tokens. Those that change nothing only remember a fingerprint."""
    reactivated: int = 0
    paused: int = 0
    unchanged: int = 0

    def __bool__(self) -> bool:
        """Answer whether there is anything to write."""
        return bool(self.creations or self.renewals or self.descriptions)


class Planner:
    """Plans the chunks of one import."""

    def __init__(self, vault: Vault, rules_of: RulesOf) -> None:
        self._vault = vault
        self._rules_of = rules_of
        self._chance = random.random

    def plan(self, connection: Connection, lines: Sequence[NumberedLine], now: datetime) -> Plan:
        """Return what ``lines`` come to. ``now`` is the database's clock."""
        plan = Plan()
        registered = Apps(apps.all_for(connection, [entry.line.external_id for entry in lines]))
        known = _known_accounts(connection, lines)
        compared: list[NumberedLine] = []
        for entry in lines:
            named = _named(entry, known.get(_key(entry)))
            verdict = judge(entry, named.known, registered, self._rules_of, named.fingerprint)
            if isinstance(verdict, Compare):
                compared.append(entry)
            else:
                self._add(plan, named, verdict, now)
        if compared:
            ids = [known[_key(entry)].account_id for entry in compared]
            self._compare(connection, plan, compared, ids, registered, now)
        return plan

    def _compare(
        self,
        connection: Connection,
        plan: Plan,
        lines: Sequence[NumberedLine],
        ids: Sequence[AccountId],
        registered: Apps,
        now: datetime,
    ) -> None:
        """Judge the lines whose token has to be compared with the one that is stored."""
        stored = {tokens.account_id: tokens for tokens in import_known.lock_tokens(connection, ids)}
        # Read again: before the lock was ours, another import may have brought the same token.
        known = _known_accounts(connection, lines)
        for entry in lines:
            account = known[_key(entry)]
            named = _named(entry, account)
            verdict = judge(entry, account, registered, self._rules_of, named.fingerprint)
            if not isinstance(verdict, Compare):
                self._add(plan, named, verdict, now)
                continue
            tokens = stored[account.account_id]
            if self._is_overtaken(tokens):
                plan.bad.append(BadLine(entry.number, OVERTAKEN))
                continue
            same = entry.credential is not None and entry.credential == self._held(tokens, verdict.rules)
            settled = settle(entry, account, verdict, same_as_stored=same)
            if isinstance(settled, Renew):
                renewal = self._renewal(named, account, tokens, settled, now)
                plan.renewals.append(renewal)
                plan.reactivated += account.status in ENDED
                comes_back = renewal.returns and not renewal.stays_paused
                plan.paused += account.status is AccountStatus.PAUSED and not comes_back
            else:
                self._add(plan, named, settled, now)

    def _is_overtaken(self, stored: StoredTokens) -> bool:
        """Answer whether the tokens are under a data key that is younger than this import.

        What they are cannot be told then, and nothing is lost: unlike those under an older key that is not here.
        """
        return _is_younger(self._vault.access, stored.access_token) or _is_younger(
            self._vault.refresh, stored.refresh_token
        )

    def _held(self, stored: StoredTokens, rules: ProviderRules) -> Secret | None:
        """Return what the account lives by now."""
        if rules.credential == "refresh_token":
            binding = refresh_token_binding(stored.account_id, stored.generation)
            return _opened(self._vault.refresh, stored.refresh_token, binding)
        return self._access_token(stored)

    def _access_token(self, stored: StoredTokens) -> Secret | None:
        binding = access_token_binding(stored.account_id, stored.generation)
        return _opened(self._vault.access, stored.access_token, binding)

    def _add(self, plan: Plan, named: _Named, verdict: Reject | Create | Keep, now: datetime) -> None:
        match verdict:
            case Reject(reason):
                plan.bad.append(BadLine(named.entry.number, reason))
            case Create(app, rules):
                expires_at = _expiry(named.entry, now)
                visit = self._first_visit(named.entry, expires_at, rules, now)
                account = NewAccount(named.entry, app.app_id, named.fingerprint, expires_at, visit)
                plan.creations.append(account)
            case Keep(changed, remember):
                if not changed:
                    plan.unchanged += 1
                if changed or remember:
                    plan.descriptions.append(named.description(changed=changed, remember=remember))

    def _renewal(
        self, named: _Named, known: KnownAccount, stored: StoredTokens, verdict: Renew, now: datetime
    ) -> RenewedTokens:
        line = named.entry.line
        access_token, expires_at = line.access_token or None, _expiry(named.entry, now)
        visit = self._first_visit(named.entry, expires_at, verdict.rules, now)
        kept = None
        if access_token is None and known.status not in ENDED:
            # Readers of a healthy account keep what they have until the first refresh, which is due at once.
            kept = self._access_token(stored)
            expires_at = stored.expires_at if kept else None
        return RenewedTokens(
            description=named.description(app_id=verdict.app.app_id),
            generation=stored.generation + 1,
            access_token=access_token or kept,
            refresh_token=line.refresh_token or None,
            token_type=line.token_type or (stored.token_type if kept else None),
            scope=line.scope or (stored.scope if kept else None),
            expires_at=expires_at,
            refresh_token_expires_at=line.refresh_token_expires_at,
            # What answers of the provider told stays until the next one does, but for what the line says.
            variables={
                name: value for name, value in stored.variables.items() if name not in (line.variables or ())
            }
            | dict(named.entry.captured or {}),
            obtained_at=named.entry.received_at or now,
            granted_at=line.granted_at or named.entry.received_at or now,
            learned_lifetime=None
            if line.learned_lifetime is None
            else timedelta(seconds=line.learned_lifetime),
            next_visit=visit,
            returns=verdict.returns,
            stays_paused=line.status == AccountStatus.PAUSED.value,
            brought=tuple(map(bytes.fromhex, line.fingerprints or ())),
        )

    def _first_visit(
        self, entry: NumberedLine, expires_at: datetime | None, rules: ProviderRules, now: datetime
    ) -> Visit:
        # A sign-in, as far as anybody can tell: the grant's life begins now, or when its answer came; unless another
        # fleet knows better.
        obtained_at = entry.received_at or now
        granted_at = entry.line.granted_at or obtained_at
        holding = Holding(obtained_at, expires_at, granted_at, entry.line.refresh_token_expires_at)
        return first_visit(
            holding,
            rules.lifetimes,
            rules.margins,
            has_access_token=bool(entry.line.access_token),
            now=now,
            chance=self._chance(),
        )


@dataclass(frozen=True, slots=True)
class _Named:
    """A line, the account that it names if that exists, and the fingerprint of its credential if it has one."""

    entry: NumberedLine
    known: KnownAccount | None
    fingerprint: bytes | None

    def description(
        self, *, app_id: AppId | None = None, changed: tuple[str, ...] = (), remember: bool = True
    ) -> Description:
        assert self.known is not None
        line = self.entry.line
        return Description(
            account_id=self.known.account_id,
            app_id=app_id,
            tenant=line.tenant or None,
            variables=line.variables,
            metadata=line.metadata,
            fingerprint=self.fingerprint if remember else None,
            changed=changed,
        )


def _named(entry: NumberedLine, known: KnownAccount | None) -> _Named:
    return _Named(entry, known, None if entry.credential is None else fingerprint(entry.credential))


def _key(entry: NumberedLine) -> tuple[str, str, str]:
    return entry.line.provider, entry.environment, entry.line.external_id


def _known_accounts(
    connection: Connection, lines: Sequence[NumberedLine]
) -> dict[tuple[str, str, str], KnownAccount]:
    """Return the accounts that exist already, by provider, environment and external id."""
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in lines:
        groups[entry.line.provider, entry.environment].append(entry.line.external_id)
    return {
        (provider, environment, external_id): account
        for (provider, environment), external_ids in groups.items()
        for external_id, account in import_known.existing(connection, provider, environment, external_ids)
    }


def _expiry(entry: NumberedLine, now: datetime) -> datetime | None:
    """Return when the line's access token expires: its own word, or counted from the database's clock."""
    line = entry.line
    if not line.access_token:
        return None
    if line.expires_at is None and line.expires_in is not None:
        return (entry.received_at or now) + timedelta(seconds=line.expires_in)
    return line.expires_at


def _is_younger(keys: DataKeys, envelope: bytes | None) -> bool:
    if envelope is None or keys.holds_key_of(envelope):
        return False
    return key_id_of(envelope) > keys.primary_id


def _opened(keys: DataKeys, envelope: bytes | None, binding: Binding) -> Secret | None:
    """Return the token in ``envelope``; None when there is none, or none that anybody could still use."""
    if envelope is None:
        return None
    try:
        return Secret(keys.open(envelope, binding, Purpose.IMPORT))
    except EnvelopeError:
        return None
