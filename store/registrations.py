"""Which registration an account gets: the most specific one wins.

The choice is made once, when an account is created; from then on it stays tied to the app that issued its grant,
because no other client can refresh that.
"""

from __future__ import annotations

from collections.abc import Iterable

from store.apps import DEFAULT_NAME, App
from tokenfleet.app_levels import ACCOUNT_PREFIX, ANY_ENVIRONMENT


class Registrations:
    """The apps of a fleet, or those of them that certain accounts can have."""

    def __init__(self, apps: Iterable[App]) -> None:
        self._named = {(app.provider, app.environment, app.name): app for app in apps}

    def named(self, provider: str, environment: str, external_id: str, name: str) -> App | None:
        """Return the app called ``name`` for an account: its environment's, else the platform's, else None.

        Another account's own app is not for it, whoever names it.
        """
        if name.startswith(ACCOUNT_PREFIX) and name != ACCOUNT_PREFIX + external_id:
            return None
        here = self._named.get((provider, environment, name))
        return here or self._named.get((provider, ANY_ENVIRONMENT, name))

    def for_new(self, provider: str, environment: str, external_id: str) -> App | None:
        """Return the app of a new account that names none: its own, else its environment's, else the platform's."""
        own = self._named.get((provider, environment, ACCOUNT_PREFIX + external_id))
        return own or self.named(provider, environment, external_id, DEFAULT_NAME)

    def names(self, provider: str, environment: str) -> list[str]:
        """Return the names that accounts of ``environment`` may name, but for single accounts' own."""
        return sorted(
            {
                name
                for known, where, name in self._named
                if known == provider
                and where in (environment, ANY_ENVIRONMENT)
                and not name.startswith(ACCOUNT_PREFIX)
            }
        )
