"""Scenarios about good answers, plain and odd: what is saved, and when the account is visited next."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from conformance.answers import Shape, alternates, last_fields
from conformance.meanings import meaning
from conformance.stage import Reaction
from conformance.trial import Trial
from tokenfleet.policy import RequireReauth, Save

FAR_FUTURE: Final = 10**12
"""A number that is no lifetime, and no moment that an answer could mean."""


async def refresh(trial: Trial) -> None:
    """The request is the one that the provider expects, and what it answers is saved whole and in time."""
    attempted = await trial.renew()
    trial.expect(trial.stage.requests == 1, "one request", f"{trial.stage.requests}", ("refresh",))
    trial.expect_saved(attempted)


async def answer_shapes(trial: Trial) -> None:
    """Each field is read at each of its paths, its number as number or text, its expiry as lifetime or moment."""
    fields = last_fields(trial.truth)
    told_by = ("in", "at") if fields.expires_at is not None else ("in",)
    for alternate in range(alternates(trial.truth)):
        for told in told_by:
            for as_text in (False, True):
                shape = Shape(alternate=alternate, told_by=told, as_text=as_text)
                trial.stage.script.append(Reaction(shape=shape))
                trial.expect_saved(await trial.renew())


async def in_time(trial: Trial) -> None:
    """Whenever the fleet plans to refresh within its margins, readers have a living token and the provider agrees."""
    trial.applies(
        not trial.truth.lifetimes.access_never_expires or trial.truth.lifetimes.refresh_idle_seconds,
        "access tokens never expire, and no refresh token dies of disuse",
    )
    for chance in (0.0, 0.999):
        trial.account.chance = chance
        trial.expect_saved(await trial.renew())
        before = trial.stage.chain.access_token.reveal()
        attempted = await trial.visit_until_refreshed()
        if not trial.truth.lifetimes.access_never_expires:
            left = trial.stage.chain.expiry_of(before) - attempted.at.timestamp()
            trial.expect(
                left > 0, "a refresh before the access token ends", f"{-left:.0f} s too late", ("lifetimes",)
            )
        trial.expect_saved(attempted)


async def captured_variables(trial: Trial) -> None:
    """Values that an answer states are captured, and the next request is made with them."""
    captured = {
        name: trial.second_values[name] for name, each in trial.truth.variables.items() if each.from_answer
    }
    trial.applies(captured, "answers state no variables")
    paths = max(len(trial.truth.variables[name].from_answer) for name in captured)
    for alternate in range(paths):
        trial.stage.script.append(Reaction(shape=Shape(alternate=alternate, variables=captured)))
        trial.expect_saved(await trial.renew())
        for name, value in captured.items():
            got = trial.account.variables.get(name)
            trial.expect(got == value, f"the variable {name} to be captured", f"{got}", ("variables", name))
    trial.expect_saved(await trial.renew())


async def no_refresh_token(trial: Trial) -> None:
    """An answer without a refresh token keeps the one there is (RFC 6749 section 6), and it works the next time."""
    trial.applies(trial.truth.refresh.grant == "refresh_token", "no refresh token is presented")
    trial.stage.script.append(Reaction(shape=Shape(refresh_token=False), rotate=False))
    trial.expect_saved(await trial.renew())
    trial.expect_saved(await trial.renew())


async def no_access_token(trial: Trial) -> None:
    """An answer without an access token costs nobody one: its refresh token is kept, readers keep what they have, and
    where the provider means it so, the access token lives on from then."""
    held = trial.account.tokens
    trial.stage.script.append(Reaction(shape=Shape(access_token=False)))
    attempted = await trial.renew()
    decision = attempted.decision
    trial.expect(
        not isinstance(decision, RequireReauth), "no word about the grant", attempted.told, ("errors",)
    )
    if trial.truth.answer.keeps_access_token:
        trial.expect(isinstance(decision, Save), "the access token to live on", attempted.told, ("answer",))
        if (life := trial.truth.lifetimes.access_seconds) is not None:
            trial.expect_expiry(attempted, timedelta(seconds=life))
    tokens = trial.account.tokens
    where = ("answer", "access_token")
    trial.expect(
        tokens.access_token == held.access_token, "readers to keep their access token", "another", where
    )
    trial.expect_right_refresh_token()
    trial.expect_saved(await trial.renew())


async def odd_expiry(trial: Trial) -> None:
    """An expiry that is missing or absurd is neither "never" nor an invented hour; one that is too long is believed
    only as far as the account is visited before it."""
    truth, fields = trial.truth, last_fields(trial.truth)
    never = truth.lifetimes.access_never_expires
    fallback = None if never else timedelta(seconds=trial.stage.chain.life_seconds)
    shapes = [
        Shape(told_by="nothing"),
        *(Shape(expiry=odd) for odd in (-3600, "soon", "", True, FAR_FUTURE * 1000)),
    ]
    for shape in [*shapes, *([] if fields.expires_in.zero_is_never else [Shape(expiry=0)])]:
        trial.stage.script.append(Reaction(shape=shape))
        trial.expect_saved(await trial.renew(), expires_in=fallback)
    if fields.expires_in.zero_is_never:
        trial.stage.script.append(Reaction(shape=Shape(expiry=0)))
        attempted = await trial.renew()
        trial.expect_expiry(attempted, None)
    if never:
        return
    trial.stage.script.append(Reaction(shape=Shape(stretch=1000)))
    attempted = await trial.renew()
    trial.expect(isinstance(attempted.decision, Save), "the tokens to be saved", attempted.told, ("answer",))
    trial.expect_right_refresh_token()


async def error_in_200(trial: Trial) -> None:
    """An answer of 200 that fails the success test is no success, whatever stands in it."""
    conditions = trial.truth.answer.success
    trial.applies(conditions, "nothing but the access token makes a success")
    for condition in conditions:
        held = trial.account.tokens
        shape = Shape(breaks_success=condition, refresh_token=False)
        trial.stage.script.append(Reaction(shape=shape, rotate=False))
        attempted = await trial.renew()
        where = ("answer", "success")
        trial.expect(not isinstance(attempted.decision, Save), "an error", attempted.told, where)
        trial.expect(trial.account.tokens == held, "the tokens to stay as they were", "others", where)
        if meaning(trial.truth, 200, trial.stage.last_document)[0] != "grant_rejected":
            trial.expect_unharmed(held)
        trial.account.needs_reauth = None
