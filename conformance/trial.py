"""One scenario on its way: a played provider, an account of the fleet, and what must come of it.

Everything that is expected follows from the definition that is *played* and from DESIGN section 5, never from the one
that the fleet believes; where both are the same, the fleet is held against its own definition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from conformance.account import Account, Attempted
from conformance.answers import last_fields, stated_life
from conformance.detour import Detour
from conformance.meanings import ErrorAnswer
from conformance.player import Player
from conformance.stage import Stage
from providers.problems import Location
from providers.registry import Provider
from providers.spec import ProviderSpec
from tokenfleet.learning import NEVER_EXPIRES
from tokenfleet.lifetimes import Holding, must_present, next_visit
from tokenfleet.outcome import Refreshed
from tokenfleet.policy import HoldApp, PauseApp, Quarantine, RequireReauth, RetryLater, Save
from tokenfleet.tokens import TokenSet

READERS_MARGIN: Final = timedelta(seconds=30)
"""A token that readers find has at least so long to live (promise G1)."""
SHORT_LIFE_SHARE: Final = 0.6
"""Or this share of its life, where that is too short for it."""
TOLERANCE: Final = timedelta(seconds=1.5)
COARSEST_UNIT: Final = timedelta(days=1)
"""An end that an answer states in days is right to a day."""
LONGEST_WAIT: Final = timedelta(days=1)
MOST_VISITS: Final = 5000


class Mismatch(Exception):
    """Something else came than had to come. The message is a sentence, ``location`` the key that it points to."""

    def __init__(self, reason: str, location: Location = ()) -> None:
        super().__init__(reason)
        self.location = location


class DoesNotApply(Exception):
    """The scenario has nothing to say about this definition; the message says why."""


@dataclass(slots=True)
class Trial:
    """What a scenario works with."""

    provider: Provider
    """What the fleet believes."""
    truth: ProviderSpec
    """What is played."""
    stage: Stage
    account: Account
    detour: Detour
    player: Player
    origin: str
    second_values: dict[str, str]
    """Another value for each variable."""
    expectations: int = field(default=0)
    """How much was held against what came: a scenario that expects nothing proves nothing."""

    # What happens.

    @property
    def now(self) -> datetime:
        """The moment."""
        return self.account.clock.now

    def wait_until_due(self) -> None:
        """Let time go by until the played provider accepts a refresh."""
        life, chain = self.truth.lifetimes, self.stage.chain
        moment = self.now + timedelta(seconds=60 if chain.life_seconds > 600 else 1)
        if life.earliest_refresh_seconds is not None:
            opens = chain.access_expires_at - life.earliest_refresh_seconds
            moment = max(moment, datetime.fromtimestamp(opens, UTC))
        if life.minimum_age_seconds is not None:
            issued_at = datetime.fromtimestamp(chain.access_issued_at, UTC)
            moment = max(moment, issued_at + timedelta(seconds=life.minimum_age_seconds))
        self.account.clock.go_to(moment)

    async def renew(self) -> Attempted:
        """Refresh the account once it is due. Raises :class:`Mismatch` when the request itself is not accepted."""
        self.wait_until_due()
        return await self.refresh()

    async def refresh(self) -> Attempted:
        """Refresh the account now."""
        attempted = await self.account.refresh()
        self.expect_accepted()
        return attempted

    async def visit_until_refreshed(self) -> Attempted:
        """Visit the account whenever the fleet plans to, until a visit is a refresh, and return that one."""
        for _ in range(MOST_VISITS):
            account = self.account
            if account.next_refresh_at is None:
                break
            account.clock.go_to(account.next_refresh_at)
            holding = Holding(
                obtained_at=account.obtained_at,
                expires_at=account.tokens.expires_at,
                granted_at=account.granted_at,
                refresh_token_expires_at=account.tokens.refresh_token_expires_at,
                told=account.told,
                never_expires=account.learned_lifetime == NEVER_EXPIRES,
            )
            lifetimes, margins = self.provider.lifetimes, self.provider.margins
            if not account.probing or must_present(holding, lifetimes, margins, now=self.now):
                return await self.refresh()
            visit = next_visit(holding, lifetimes, margins, now=self.now, chance=account.chance)
            account.next_refresh_at, account.probing = visit.at, not visit.presents
        raise Mismatch(f"the account was not refreshed in {MOST_VISITS} visits", ("lifetimes",))

    # What must come of it.

    def applies(self, condition: object, otherwise: str) -> None:
        """Raise :class:`DoesNotApply` with the reason ``otherwise``, unless ``condition``."""
        if not condition:
            raise DoesNotApply(otherwise)

    def expect(self, condition: object, expected: str, got: str, location: Location = ()) -> None:
        """Raise :class:`Mismatch` unless ``condition``."""
        self.expectations += 1
        if not condition:
            raise Mismatch(f"expected {expected}; got: {got}", location)

    def expect_accepted(self) -> None:
        """Expect that the played provider found nothing wrong with the requests so far."""
        self.expectations += 1
        if self.stage.refusals:
            refusal = self.stage.refusals[0]
            raise Mismatch(f"the provider did not accept the request: {refusal.reason}", refusal.key)

    def expect_saved(self, attempted: Attempted, *, expires_in: timedelta | None = None) -> None:
        """Expect that the last answer was saved whole: tokens, expiry, scope, and the next visit in time.

        ``expires_in`` is what the life has to be taken for, if it is not what the provider meant.
        """
        issued, truth, tokens = self.stage.issued, self.truth, self.account.tokens
        denied = f" (the provider said: {self.stage.denials[-1]})" if self.stage.denials else ""
        self.expect(
            isinstance(attempted.decision, Save) and isinstance(attempted.outcome, Refreshed),
            "a good answer to be saved",
            attempted.told + denied,
            ("answer",),
        )
        assert issued is not None
        where: Location = ("answer", "access_token")
        self.expect(
            tokens.access_token == issued.access_token, "the access token that was issued", "another", where
        )
        self.expect_right_refresh_token()
        where = ("answer", "scope")
        self.expect(
            tokens.scope == self.stage.client.scope, "the scope that was granted", f"{tokens.scope}", where
        )
        self._expect_stated_end()
        if expires_in is None and not truth.lifetimes.access_never_expires:
            expires_in = timedelta(seconds=stated_life(last_fields(truth), issued.life_seconds))
        self.expect_expiry(attempted, expires_in)
        self.expect_visit(attempted)

    def expect_right_refresh_token(self) -> None:
        """Expect that the account holds the refresh token that lives."""
        if self.truth.refresh.grant != "refresh_token":
            return
        holds = self.account.tokens.refresh_token == self.stage.chain.refresh_token
        where: Location = ("answer", "refresh_token")
        self.expect(
            holds, "the refresh token that lives to be kept", "another one: the account is lost", where
        )
        twice = self.stage.chain.ledger.counters.presented_twice
        self.expect(
            not twice, "each refresh token to be presented once", f"{twice} presented twice", ("rotation",)
        )

    def _expect_stated_end(self) -> None:
        """Expect the end of the refresh token to be taken from an answer that states it."""
        if self.stage.stated_end is None or self.truth.refresh.grant != "refresh_token":
            return
        ends, held = self.stage.stated_end, self.account.tokens.refresh_token_expires_at
        right = held is not None and abs(held.timestamp() - ends) <= COARSEST_UNIT.total_seconds()
        wanted = f"the refresh token to end in {ends - self.now.timestamp():,.0f} s"
        got = "no end" if held is None else _span(held - self.now)
        self.expect(right, wanted, got, ("answer", "refresh_token_expires_in"))

    def expect_expiry(self, attempted: Attempted, expires_in: timedelta | None) -> None:
        """Expect the access token to be taken to end in ``expires_in``; None for never, or unknown."""
        expires_at = self.account.tokens.expires_at
        got = "never" if expires_at is None else _span(expires_at - attempted.at)
        wanted = "never" if expires_in is None else _span(expires_in)
        right = expires_at is None if expires_in is None else (
            expires_at is not None and abs(expires_at - attempted.at - expires_in) <= TOLERANCE
        )  # fmt: skip
        self.expect(right, f"the access token to end in {wanted}", got, ("answer", "expires_in"))

    def expect_visit(self, attempted: Attempted) -> None:
        """Expect the next visit in time for readers, in the provider's window, and before disuse ends the grant."""
        at, chain, life = self.account.next_refresh_at, self.stage.chain, self.truth.lifetimes
        assert at is not None
        self.expect(at > attempted.at, "a next visit that lies ahead", f"{_span(at - attempted.at)} from now")
        if self.account.probing:
            at = None
        if at is not None and not life.access_never_expires:
            ends = datetime.fromtimestamp(chain.access_expires_at, UTC)
            margin = min(READERS_MARGIN, timedelta(seconds=chain.life_seconds) * SHORT_LIFE_SHARE)
            self.expect(
                at <= ends - margin + TOLERANCE,
                f"a refresh {_span(margin)} before the access token ends, or earlier",
                f"one {_span(ends - at)} before, {_span(at - attempted.at)} after it was issued",
                ("lifetimes",),
            )
            if life.earliest_refresh_seconds is not None:
                window = timedelta(seconds=life.earliest_refresh_seconds)
                got = f"one {_span(ends - at)} before"
                where: Location = ("lifetimes", "earliest_refresh_seconds")
                self.expect(
                    at >= ends - window - TOLERANCE, f"no refresh more than {_span(window)} early", got, where
                )
        if at is not None and life.minimum_age_seconds is not None:
            age = timedelta(seconds=life.minimum_age_seconds)
            where = ("lifetimes", "minimum_age_seconds")
            got = f"one after {_span(at - attempted.at)}"
            self.expect(
                at >= attempted.at + age - TOLERANCE,
                f"no refresh before {_span(age)} have passed",
                got,
                where,
            )
        if (
            at is not None
            and life.refresh_idle_seconds is not None
            and self.truth.refresh.grant == "refresh_token"
        ):
            dies = datetime.fromtimestamp(chain.used_at + life.refresh_idle_seconds, UTC)
            where = ("lifetimes", "refresh_idle_seconds")
            self.expect(
                at < dies,
                "a refresh before the refresh token dies of disuse",
                f"{_span(at - dies)} late",
                where,
            )

    def expect_decided(self, attempted: Attempted, answer: ErrorAnswer, held: TokenSet) -> None:
        """Expect what section 5 says of an error that means ``answer.outcome``; tokens stay ``held``."""
        decision, outcome = attempted.decision, attempted.outcome
        where: Location = () if answer.rule is None else ("errors", answer.rule)
        right, wanted = {
            "grant_rejected": (
                isinstance(decision, RequireReauth),
                "the customer to be asked to sign in again",
            ),
            "client_rejected": (
                isinstance(decision, HoldApp if answer.whole_app else Quarantine),
                "the app to be held" if answer.whole_app else "the account to be quarantined",
            ),
            "throttled": (
                isinstance(decision, PauseApp if answer.whole_app else RetryLater),
                "the app to pause" if answer.whole_app else "the account to wait",
            ),
            "unavailable": (
                isinstance(decision, RetryLater) and not decision.in_doubt,
                "another try later, without a doubt about the account",
            ),
        }.get(
            answer.outcome,
            (
                isinstance(decision, RetryLater) and decision.in_doubt,
                "another try later, and nobody bothered",
            ),
        )
        self.expect(right, f"{wanted} by {answer.outcome} ({answer.told})", attempted.told, where)
        if answer.code is not None and not isinstance(outcome, Refreshed):
            self.expect(outcome.code == answer.code, f"the code {answer.code}", outcome.code, where)
        if answer.outcome == "grant_rejected":
            self.expect(
                self.account.needs_reauth != "rotation_lost", "a reason of the provider's", "rotation_lost"
            )
        else:
            self.expect_unharmed(held)

    def expect_unharmed(self, held: TokenSet) -> None:
        """Expect that the account still is what it was: same tokens, nobody asked to sign in, a next visit ahead."""
        account = self.account
        self.expect(
            account.needs_reauth is None, "no customer to be asked to sign in", f"{account.needs_reauth}"
        )
        self.expect(account.tokens == held, "the tokens to stay as they were", "others")
        at = account.next_refresh_at
        if at is not None:
            self.expect(
                self.now < at <= self.now + LONGEST_WAIT, "another try within a day", _span(at - self.now)
            )


def _span(duration: timedelta) -> str:
    return f"{duration.total_seconds():,.0f} s"
