"""Which registration a command line means: ``--platform``, ``--environment`` with ``--name``, or ``--account``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

import click

from tokenfleet.app_levels import ACCOUNT_PREFIX, ANY_ENVIRONMENT

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ENVIRONMENT: Final = "production"
DEFAULT_NAME: Final = "default"
MAX_EXTERNAL_ID_CHARACTERS: Final = 512


def app_options(command: F) -> F:
    """Add what names one app: the command gets it as ``provider``, ``environment`` and ``name``.

    Ends in a usage error when the options contradict each other.
    """

    @wraps(command)
    def resolved(
        *args: Any,
        environment: str | None,
        name: str | None,
        platform: bool,
        account: str | None,
        **kwargs: Any,
    ) -> Any:
        environment, name = place(environment, name, platform=platform, account=account)
        return command(*args, environment=environment, name=name, **kwargs)

    for option in (
        click.option("--account", metavar="EXTERNAL_ID", help="The one account whose own client it is."),
        click.option("--platform", is_flag=True, help="For every environment that has none of its own."),
        click.option("--name", show_default=DEFAULT_NAME, help="Which of several clients there."),
        click.option("--environment", show_default=DEFAULT_ENVIRONMENT, help="Your environment."),
        click.argument("provider"),
    ):
        resolved = option(resolved)
    return resolved  # type: ignore[return-value]


def place(
    environment: str | None, name: str | None, *, platform: bool, account: str | None
) -> tuple[str, str]:
    """Return environment and name of the app that the options mean. Raises :class:`click.UsageError`."""
    if platform and environment is not None:
        raise click.UsageError("--platform is for every environment: leave out --environment.")
    if platform and account is not None:
        raise click.UsageError("--platform and --account contradict each other: give one of them.")
    if environment == ANY_ENVIRONMENT:
        raise click.UsageError("--environment names one environment: --platform stands for all of them.")
    if account is None:
        if name is not None and (not name or name.startswith(ACCOUNT_PREFIX)):
            raise click.UsageError(
                f"--name {name!r} is no name: one account's own client is set by --account."
            )
        return (ANY_ENVIRONMENT if platform else environment or DEFAULT_ENVIRONMENT), name or DEFAULT_NAME
    if name is not None:
        raise click.UsageError("An account has one client of its own: leave out --name.")
    if not account or len(account) > MAX_EXTERNAL_ID_CHARACTERS:
        raise click.UsageError("--account takes an external id: text of 1 to 512 characters.")
    return environment or DEFAULT_ENVIRONMENT, ACCOUNT_PREFIX + account
