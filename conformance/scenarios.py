"""Every scenario, in the order in which reports tell of them. Its name and its promise are its function's.

A scenario raises ``Mismatch`` when something else came than had to come, and ``DoesNotApply`` when the definition that
is played has nothing to do with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from conformance import scenarios_access, scenarios_answers, scenarios_errors, scenarios_rotation
from conformance.trial import Trial

Play = Callable[[Trial], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario: its name in reports, what passing it proves, and the play itself."""

    name: str
    proves: str
    play: Play
    renews: bool = True
    """Whether it is about renewing access tokens, so that it does not apply where none ever is."""


def _scenario(play: Play, *, renews: bool = True) -> Scenario:
    name: str = play.__name__
    return Scenario(name, (inspect.getdoc(play) or "").replace("\n", " "), play, renews)


SCENARIOS: Final = tuple(
    map(
        _scenario,
        (
            scenarios_answers.refresh,
            scenarios_answers.answer_shapes,
            scenarios_answers.in_time,
            scenarios_answers.captured_variables,
            scenarios_answers.no_refresh_token,
            scenarios_answers.no_access_token,
            scenarios_answers.odd_expiry,
            scenarios_answers.error_in_200,
            scenarios_rotation.rotation,
            scenarios_rotation.lost_answer,
            scenarios_rotation.lost_twice,
            scenarios_rotation.replay_after_grace,
            scenarios_rotation.idle_expiry,
            scenarios_rotation.absolute_expiry,
            scenarios_errors.revoked_grant,
            scenarios_errors.client_rejected,
            scenarios_errors.throttled,
            scenarios_errors.rate_headers,
            scenarios_errors.server_error,
            scenarios_errors.firewall,
            scenarios_errors.connection_refused,
            scenarios_errors.error_rules,
            scenarios_errors.undescribed_error,
            scenarios_access.steps,
        ),
    )
) + tuple(
    _scenario(play, renews=False)
    for play in (scenarios_access.probe, scenarios_access.revocation, scenarios_access.never_renewed)
)
