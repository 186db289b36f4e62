"""For whom a client registration is: one account, an environment, the whole platform.

The levels are names and environments of one table, so whatever names an app by these two names all of them:
:data:`ANY_ENVIRONMENT` stands for every environment, ``account:<external id>`` for one account of an environment.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

ANY_ENVIRONMENT: Final = "*"
ACCOUNT_PREFIX: Final = "account:"
"""Begins the name of a registration for one account; the account's external id follows."""


class AppLevel(StrEnum):
    """For whom a registration is, the most specific first."""

    ACCOUNT = "account"
    ENVIRONMENT = "environment"
    PLATFORM = "platform"


def level_of(environment: str, name: str) -> AppLevel:
    """Return the level of the app called ``name`` in ``environment``."""
    if name.startswith(ACCOUNT_PREFIX):
        return AppLevel.ACCOUNT
    return AppLevel.PLATFORM if environment == ANY_ENVIRONMENT else AppLevel.ENVIRONMENT


def is_more_specific(one: AppLevel, other: AppLevel) -> bool:
    """Answer whether an app of level ``one`` goes before one of level ``other``."""
    order = list(AppLevel)
    return order.index(one) < order.index(other)
