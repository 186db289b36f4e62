"""Transactions of a worker that reads and starts jobs: short, and each for one function of ``store``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

P = ParamSpec("P")
R = TypeVar("R")


class Transactions:
    """Runs functions of ``store``. One per worker process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(
        self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run ``function`` in one transaction of its own; once more when the connection was a dead one.

        So it must be one that may be repeated: what a lost commit has already done, it does not do again. Raises
        SQLAlchemy's ``DBAPIError`` when Postgres is away.
        """
        try:
            async with self._engine.begin() as connection:
                return await connection.run_sync(function, *args, **kwargs)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        async with self._engine.begin() as connection:
            return await connection.run_sync(function, *args, **kwargs)
