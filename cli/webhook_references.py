"""Naming a webhook endpoint on a command line, and what a failure says in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from store.endpoints import Endpoint

F = TypeVar("F", bound=Callable[..., Any])

LARGEST_ID: Final = 2**63 - 1


class _Id(click.IntRange):
    # What a message calls it: "'x' is not a valid id."
    name = "id"


ID: Final = _Id(1, LARGEST_ID)


def endpoint_argument(command: F) -> F:
    """Add ENDPOINT, an id, as the parameter ``endpoint_id``."""
    return click.argument("endpoint_id", metavar="ENDPOINT", type=ID)(command)


def find_endpoint(connection: Connection, endpoint_id: int) -> Endpoint:
    """Return the endpoint. Raises :class:`UserError` when there is none."""
    from store import endpoints
    from tokenfleet.errors import UserError
    from tokenfleet.jobs import EndpointId

    found = endpoints.load(connection, EndpointId(endpoint_id))
    if found is None:
        raise UserError(
            f"there is no webhook endpoint {endpoint_id}: 'tokenfleet webhooks list' shows those that exist"
        )
    return found
