"""What this process has heard of each app lately, and what that makes of the provider's next word.

In memory, and lost with the process: then a refused registration holds its app at once, as if nothing were known.
Nothing here is written for a healthy refresh but a moment in a dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from providers.transport import boottime
from store.apps import App
from store.rejection import Rejection
from tokenfleet.jobs import AccountId, AppId
from workers.results import AppHeld, Result

LATELY: Final = timedelta(minutes=10)
"""For how long a success speaks for a registration."""
DIFFERENT_ACCOUNTS: Final = 3
"""Of so many accounts in a row, without a success between, the registration must be refused after such a success:
a provider may refuse our client for one tenant only."""


@dataclass(slots=True)
class _Heard:
    """Of one app. ``succeeded_at`` is a success with the credentials of ``generation``."""

    generation: int
    succeeded_at: float | None = None
    refused: set[AccountId] = field(default_factory=set)
    since_rejection: bool = False


class Reputation:
    """One per worker process; used on its event loop."""

    def __init__(self) -> None:
        self._heard: dict[AppId, _Heard] = {}

    def succeeded(self, app: App) -> None:
        """Note that the provider has given tokens to the app's credentials."""
        heard = self._of(app)
        heard.succeeded_at = boottime()
        heard.since_rejection = True
        heard.refused.clear()

    def worked_within(self, app: App, elapsed: timedelta) -> bool:
        """Answer whether the app's credentials have worked within the last ``elapsed``, for any account."""
        succeeded_at = self._of(app).succeeded_at
        return succeeded_at is not None and boottime() - succeeded_at < elapsed.total_seconds()

    def weigh(self, app: App, results: tuple[Result, ...]) -> tuple[Result, ...]:
        """Return ``results`` in the light of what was heard before.

        A refused registration that has worked lately holds nothing until it is refused for several accounts; the
        account backs off meanwhile. A rejected grant says whether a success came before it.
        """
        weighed: list[Result] = []
        for result in results:
            if isinstance(result, AppHeld):
                if self._is_believed(app, result):
                    weighed.append(result)
            elif isinstance(result, Rejection):
                heard = self._of(app)
                weighed.append(replace(result, after_success=heard.since_rejection))
                heard.since_rejection = False
            else:
                weighed.append(result)
        return tuple(weighed)

    def _is_believed(self, app: App, held: AppHeld) -> bool:
        heard = self._of(app)
        heard.refused.add(held.account_id)
        worked = heard.succeeded_at is not None and boottime() - heard.succeeded_at < LATELY.total_seconds()
        return app.held_since is not None or not worked or len(heard.refused) >= DIFFERENT_ACCOUNTS

    def _of(self, app: App) -> _Heard:
        heard = self._heard.get(app.app_id)
        if heard is None or heard.generation < app.generation:
            heard = self._heard[app.app_id] = _Heard(app.generation)
        return heard
