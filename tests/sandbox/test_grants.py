"""The rotation core: what RFC 9700 section 4.14.2 asks of a server that rotates refresh tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from sandbox.config import Rotation, SandboxConfig
from sandbox.grants import Grants, Issued, Refusal, Refused
from sandbox.tokens import Mint, RefreshTokenRef

NOW = 1_700_000_000.0
LIFETIME = 60


@dataclass
class Core:
    """Grants, addressed by the tokens themselves."""

    config: SandboxConfig
    mint: Mint = field(default_factory=Mint)

    def __post_init__(self) -> None:
        self.grants = Grants(self.config, self.mint)

    def read(self, issued: Issued) -> RefreshTokenRef:
        assert issued.refresh_token is not None
        ref = self.mint.read_refresh_token(issued.refresh_token)
        assert ref is not None
        return ref

    def issue(self, subject: str = "acct-1", now: float = NOW) -> RefreshTokenRef:
        return self.read(self.grants.issue(subject, now))


def strict(**changes: Any) -> Core:
    return Core(replace(SandboxConfig(access_lifetime_seconds=LIFETIME), **changes))


def test_a_refresh_spends_the_token_and_returns_its_successor() -> None:
    core = strict()
    first = core.issue()
    answer = core.grants.refresh(first, NOW)
    assert isinstance(answer, Issued)
    assert answer.rotated
    assert answer.expires_in == LIFETIME
    assert core.read(answer) != first


def test_a_spent_token_is_refused_and_ends_its_family() -> None:
    core = strict()
    first = core.issue()
    answer = core.grants.refresh(first, NOW)
    assert isinstance(answer, Issued)
    assert core.grants.refresh(first, NOW) == Refused(Refusal.REUSED, revoked_family=True)
    assert core.grants.refresh(core.read(answer), NOW) == Refused(Refusal.REVOKED)


def test_without_family_revocation_the_live_token_survives_a_reuse() -> None:
    core = strict(family_revocation=False)
    first = core.issue()
    answer = core.grants.refresh(first, NOW)
    assert isinstance(answer, Issued)
    assert core.grants.refresh(first, NOW) == Refused(Refusal.REUSED)
    assert isinstance(core.grants.refresh(core.read(answer), NOW), Issued)


def test_a_replay_inside_the_grace_gets_the_same_tokens_again() -> None:
    core = strict(grace_seconds=10)
    first = core.issue()
    answer, again = core.grants.refresh(first, NOW), core.grants.refresh(first, NOW + 9)
    assert isinstance(answer, Issued)
    assert isinstance(again, Issued)
    assert again.replayed
    assert (again.access_token, again.refresh_token) == (answer.access_token, answer.refresh_token)
    assert again.expires_in == LIFETIME - 9


def test_the_grace_ends() -> None:
    core = strict(grace_seconds=10)
    first = core.issue()
    core.grants.refresh(first, NOW)
    assert core.grants.refresh(first, NOW + 10) == Refused(Refusal.REUSED, revoked_family=True)


def test_the_grace_ends_early_when_the_successor_is_used() -> None:
    core = strict(grace_seconds=10)
    first = core.issue()
    answer = core.grants.refresh(first, NOW)
    assert isinstance(answer, Issued)
    core.grants.refresh(core.read(answer), NOW + 1)
    assert core.grants.refresh(first, NOW + 2) == Refused(Refusal.REUSED, revoked_family=True)


def test_without_rotation_the_refresh_token_stays_good_and_is_not_returned() -> None:
    core = strict(rotation=Rotation.NEVER)
    first = core.issue()
    one, two = core.grants.refresh(first, NOW), core.grants.refresh(first, NOW)
    assert isinstance(one, Issued)
    assert isinstance(two, Issued)
    assert one.refresh_token is two.refresh_token is None
    assert one.access_token != two.access_token


def test_a_spared_token_stays_good() -> None:
    core = strict()
    first = core.issue()
    spared = core.grants.refresh(first, NOW, rotate=False)
    assert isinstance(spared, Issued)
    assert spared.refresh_token is None
    assert isinstance(core.grants.refresh(first, NOW), Issued)


def test_an_idle_refresh_token_dies_and_a_used_one_does_not() -> None:
    core = strict(refresh_idle_lifetime_seconds=100)
    idle, busy = core.issue("idle"), core.issue("busy")
    answer = core.grants.refresh(busy, NOW + 60)
    assert isinstance(answer, Issued)
    assert answer.refresh_token_expires_in == 100
    assert core.grants.refresh(idle, NOW + 100) == Refused(Refusal.EXPIRED)
    assert isinstance(core.grants.refresh(core.read(answer), NOW + 100), Issued)


def test_a_family_dies_at_its_absolute_age_however_busy() -> None:
    core = strict(refresh_absolute_lifetime_seconds=100)
    answer = core.grants.refresh(core.issue(), NOW + 99)
    assert isinstance(answer, Issued)
    assert answer.refresh_token_expires_in == 1
    assert core.grants.refresh(core.read(answer), NOW + 100) == Refused(Refusal.EXPIRED)


def test_signing_in_again_ends_the_family_before() -> None:
    core = strict()
    old, new = core.issue(), core.issue()
    assert core.grants.refresh(old, NOW) == Refused(Refusal.REVOKED)
    assert isinstance(core.grants.refresh(new, NOW), Issued)
    assert len(core.grants) == 1


def test_an_access_token_is_good_until_it_expires_and_no_longer() -> None:
    core = strict()
    ref = core.mint.read_access_token(core.grants.issue("acct-1", NOW).access_token)
    assert ref is not None
    facts = core.grants.access_token_facts(ref, NOW + LIFETIME - 0.01)
    assert facts is not None
    assert facts.subject == "acct-1"
    assert core.grants.access_token_facts(ref, NOW + LIFETIME) is None


class RotationMachine(RuleBasedStateMachine):
    """Any order of signing in, refreshing, replaying, waiting and revoking, against a small model."""

    subjects = st.sampled_from(["acct-1", "acct-2"])
    tokens = Bundle("tokens")

    @initialize(
        grace=st.sampled_from([0, 5]),
        family_revocation=st.booleans(),
        idle=st.sampled_from([None, 50]),
    )
    def start(self, grace: int, family_revocation: bool, idle: int | None) -> None:
        self.core = strict(
            grace_seconds=grace, family_revocation=family_revocation, refresh_idle_lifetime_seconds=idle
        )
        self.grace, self.family_revocation, self.idle = grace, family_revocation, idle
        self.now = NOW
        self.live: dict[str, RefreshTokenRef] = {}
        self.used_at: dict[str, float] = {}
        self.predecessor: dict[RefreshTokenRef, tuple[float, Issued]] = {}
        self.accepted: set[RefreshTokenRef] = set()

    @rule(target=tokens, subject=subjects)
    def sign_in(self, subject: str) -> RefreshTokenRef:
        return self._sign_in(subject)

    def _sign_in(self, subject: str) -> RefreshTokenRef:
        self._end(subject)
        self.live[subject] = self.core.issue(subject, self.now)
        self.used_at[subject] = self.now
        return self.live[subject]

    @rule(seconds=st.sampled_from([1, 4, 5, 20]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for subject in list(self.live):
            if self.idle is not None and self.now - self.used_at[subject] >= self.idle:
                self._end(subject)

    @rule(subject=subjects)
    def customer_revokes(self, subject: str) -> None:
        was_living = self.core.grants.revoke_subject(subject)
        if subject in self.live:
            assert was_living
        self._end(subject)

    @rule(target=tokens, ref=tokens, spare=st.booleans())
    def present(self, ref: RefreshTokenRef, spare: bool) -> RefreshTokenRef:
        return self._present(ref, spare=spare)

    def _present(self, ref: RefreshTokenRef, *, spare: bool) -> RefreshTokenRef:
        subject = self.core.grants.subject_of(ref)
        answer = self.core.grants.refresh(ref, self.now, rotate=not spare)
        if self.live.get(subject) == ref:
            assert isinstance(answer, Issued)
            self.used_at[subject] = self.now
            if spare:
                assert answer.refresh_token is None
                return ref
            assert ref not in self.accepted
            self.accepted.add(ref)
            self.live[subject] = self.core.read(answer)
            self.predecessor = {**self._without_family(ref), ref: (self.now, answer)}
            return self.live[subject]
        spent_at, first_answer = self.predecessor.get(ref, (None, None))
        if spent_at is not None and self.now - spent_at < self.grace:
            assert isinstance(answer, Issued)
            assert first_answer is not None
            assert answer.refresh_token == first_answer.refresh_token
            return ref
        assert isinstance(answer, Refused)
        if self._has_living_family(ref):
            assert answer == Refused(Refusal.REUSED, revoked_family=self.family_revocation)
            if self.family_revocation:
                self._end(subject)
        return ref

    @rule(target=tokens, subject=subjects)
    def refresh(self, subject: str) -> RefreshTokenRef:
        if subject not in self.live:
            return self._sign_in(subject)
        return self._present(self.live[subject], spare=False)

    @invariant()
    def live_is_what_the_model_says(self) -> None:
        grants = self.core.grants
        live = {each.subject: each.live for each in grants.families() if grants.is_live(each, self.now)}
        assert live == self.live

    def _has_living_family(self, ref: RefreshTokenRef) -> bool:
        return any(live.family == ref.family for live in self.live.values())

    def _without_family(self, ref: RefreshTokenRef) -> dict[RefreshTokenRef, tuple[float, Issued]]:
        return {each: what for each, what in self.predecessor.items() if each.family != ref.family}

    def _end(self, subject: str) -> None:
        live = self.live.pop(subject, None)
        if live is not None:
            self.predecessor = self._without_family(live)


TestRotation = RotationMachine.TestCase
TestRotation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
