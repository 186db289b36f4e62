"""What a line means for the account it names. Pure: rows and rules in, a verdict out.

A token here is what the account lives by (``store.import_admission``): in most cases a refresh token.

The rule behind all of them: a token that the fleet may have spent is never put back (G2). A token
that was imported before is known by its fingerprint, even when the fleet has rotated it since; so a file can
be imported again at any time, and an old file cannot overwrite a live token with a dead one. A token that was
never imported is taken for what it claims to be, a new sign-in, whatever the account's status. So one thing
cannot be told apart from it: a token that the fleet itself received, that somebody copied out of the
database, and that was rotated since.

The one exception corrects a mistake of the operator: a token that was imported for the wrong app, or with
variables that led to the wrong server, and that nobody has rotated, was never answered by its own
authorization server. It may be imported again with the right ones.

An account that lives by its client alone has no token to be known by. A line about one that needs a new sign-in says
that it may be tried again; of any other it changes the description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from store.apps import DEFAULT_NAME, App
from store.import_admission import UNKNOWN_PROVIDER, NumberedLine
from store.import_line import spelled
from store.import_rules import ProviderRules, RulesOf
from store.registrations import Registrations
from tokenfleet.app_levels import ANY_ENVIRONMENT
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

ENDED: Final = frozenset({AccountStatus.NEEDS_REAUTH, AccountStatus.REVOKED})
"""Statuses in which a token that we had before cannot be the one that helps."""

SPENT: Final = "this {credential} was already imported and is spent: the customer has to sign in again"
REJECTED: Final = "the provider has rejected this {credential}: the customer has to sign in again"
EVERY_ENVIRONMENT: Final = "environment must be one of yours: * stands for all of them"
OTHER_CLIENT: Final = (
    "its tokens were issued to another client than the one that the app {app} registers, and no other client can "
    "refresh them (RFC 6749 section 6): name the app that has its client_id, or register that"
)
NOT_NEWER: Final = (
    "the account was exported from here, and this file was not made after that: what brings it back is an export of "
    "the fleet that has it now ('tokenfleet accounts resume --exported' if none has)"
)
ROTATED: Final = (
    "this {credential} was already imported and replaced since: to move the account to another app, the "
    "customer has to sign in again"
)


@dataclass(frozen=True, slots=True)
class KnownAccount:
    """The account that a line names, as it stands before the import."""

    account_id: AccountId
    app_id: AppId
    status: AccountStatus
    tenant: str | None
    variables: Mapping[str, str]
    metadata: Mapping[str, Any]
    fingerprints: frozenset[bytes]
    exported_at: datetime | None = None
    """When it was exported last, if it is paused for that.

    Only another fleet that has let go of it since brings it back. A line without ``exported_at`` never does, nor one of
    the export itself: so the list from which accounts were once imported may be imported again while they are away, and
    a file of this fleet's own by mistake, and neither starts anybody here.
    """


@dataclass(frozen=True, slots=True)
class Reject:
    """Leave the line out and say why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Create:
    """A new account of ``app``."""

    app: App
    rules: ProviderRules


@dataclass(frozen=True, slots=True)
class Keep:
    """The tokens stay as they are; ``changed`` names the descriptive fields that do not.

    ``remember`` says that the token was met for the first time in a file.
    """

    changed: tuple[str, ...]
    remember: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """What to do depends on the token that is stored now: :func:`settle`."""

    app: App
    rules: ProviderRules
    imported: bool
    corrects: bool
    returns: bool = False
    """The line comes from a fleet that the account was exported to, later than that."""


@dataclass(frozen=True, slots=True)
class Renew:
    """A re-authentication: the line's tokens replace what is stored."""

    app: App
    rules: ProviderRules
    returns: bool = False
    """The account was exported, and comes back: the fleet asks about it again."""


class Apps:
    """The client registrations, as lines choose among them."""

    def __init__(self, apps: list[App]) -> None:
        self._registrations = Registrations(apps)
        self._by_id = {app.app_id: app for app in apps}

    def of(self, entry: NumberedLine, known: KnownAccount | None) -> App | None:
        """Return the app that ``entry`` names; else the one its account has; else the most specific one for it."""
        line = entry.line
        whose = (line.provider, entry.environment, line.external_id)
        if line.app:
            return self._registrations.named(*whose, line.app)
        return self._by_id.get(known.app_id) if known else self._registrations.for_new(*whose)

    def missing(self, entry: NumberedLine) -> str:
        """Return why there is no app for ``entry``, and the command that makes one."""
        provider, name = entry.line.provider, entry.line.app or DEFAULT_NAME
        others = self._registrations.names(provider, entry.environment)
        registered = f" (registered: {', '.join(others)})" if others else ""
        environment = (spelled(entry.environment) or "<environment>").strip("'")
        shown = (spelled(name) or "<app>").strip("'")
        return (
            f"no app {shown} is registered for {provider} in environment {environment}{registered}: run "
            f"'tokenfleet apps set {provider} --environment {environment} --name {shown}'"
        )


def judge(
    entry: NumberedLine,
    known: KnownAccount | None,
    apps: Apps,
    rules_of: RulesOf,
    fingerprint: bytes | None,
) -> Reject | Create | Keep | Compare:
    """Return what ``entry`` means for ``known``, the account that it names, if there is one.

    ``fingerprint`` is that of its credential, if it has one.
    """
    line = entry.line
    try:
        rules = rules_of(line.provider)
    except UserError as error:
        return Reject(str(error) if spelled(line.provider) else UNKNOWN_PROVIDER)
    if entry.environment == ANY_ENVIRONMENT:
        return Reject(EVERY_ENVIRONMENT)
    app = apps.of(entry, known)
    if app is None:
        return Reject(apps.missing(entry))
    if line.client_id and line.client_id != app.client_id:
        return Reject(OTHER_CLIENT.format(app=spelled(app.name) or "of the account"))
    moved = known is not None and app.app_id != known.app_id
    if known is None or moved or line.variables is not None:
        own = line.variables if line.variables is not None else known.variables if known else {}
        if reason := rules.check({**app.variables, **own, **(entry.captured or {})}):
            return Reject(reason)
    if known is None:
        return Create(app, rules)
    ended = known.status in ENDED
    changed = changes(entry, known)
    if fingerprint is None:
        # Nothing in the line says that somebody wants back what was deliberately ended.
        anew = known.status is AccountStatus.NEEDS_REAUTH or (moved and not ended)
        return Compare(app, rules, imported=False, corrects=True) if anew else Keep(changed)
    imported = fingerprint in known.fingerprints
    # Nothing spends a key: switched on again at its provider it works as before, and a probe finds out.
    revives = known.status is AccountStatus.NEEDS_REAUTH and not rules.lifetimes.renews
    corrects = moved or revives or (ended and "variables" in changed)
    if line.exported_at is not None and known.exported_at is not None:
        if line.exported_at > known.exported_at:
            return Compare(app, rules, imported, corrects, returns=True)
        return Reject(NOT_NEWER)
    if imported and not corrects:
        return Reject(_told(SPENT, rules)) if ended else Keep(changed)
    return Compare(app, rules, imported, corrects)


def settle(
    entry: NumberedLine, known: KnownAccount, comparison: Compare, *, same_as_stored: bool
) -> Reject | Keep | Renew:
    """Return what ``entry`` means now that its token was compared with the stored one."""
    if comparison.returns:
        if comparison.imported and not same_as_stored:
            return Keep(changes(entry, known))
        return Renew(comparison.app, comparison.rules, returns=True)
    if comparison.corrects:
        if comparison.imported and not same_as_stored:
            return Reject(_told(ROTATED, comparison.rules))
    elif same_as_stored:
        if known.status in ENDED:
            return Reject(_told(REJECTED, comparison.rules))
        return Keep(changes(entry, known), remember=True)
    return Renew(comparison.app, comparison.rules)


def changes(entry: NumberedLine, known: KnownAccount) -> tuple[str, ...]:
    """Return the descriptive fields that ``entry`` gives and that differ. What it leaves out stays."""
    line = entry.line
    changed = []
    if line.tenant and line.tenant != known.tenant:
        changed.append("tenant")
    if line.variables is not None and line.variables != known.variables:
        changed.append("variables")
    if line.metadata is not None and line.metadata != known.metadata:
        changed.append("metadata")
    return tuple(changed)


def _told(reason: str, rules: ProviderRules) -> str:
    return reason.format(credential=rules.credential_name)
