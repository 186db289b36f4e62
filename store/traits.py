"""What the definitions say that readers' functions in Postgres have to know, beside each app.

Postgres has no definitions. Whether a provider renews tokens at all, has a probe, and how early it allows a refresh,
stand in columns of ``oauth_apps``, which the schedulers fill in; NULL, where none has yet, is taken for an ordinary
provider. Invariant: they decide what a reader is told and nothing else; workers ask their own registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

_DESCRIBE = text("""
    UPDATE tokenfleet.oauth_apps p
    SET renews = i.renews, probes = i.probes, earliest_refresh = i.earliest_refresh, minimum_age = i.minimum_age
    FROM unnest(CAST(:providers AS text[]), CAST(:renews AS boolean[]), CAST(:probes AS boolean[]),
                CAST(:earliest AS interval[]), CAST(:ages AS interval[]))
        AS i (provider, renews, probes, earliest_refresh, minimum_age)
    WHERE p.provider = i.provider
      AND (p.renews, p.probes, p.earliest_refresh, p.minimum_age)
          IS DISTINCT FROM (i.renews, i.probes, i.earliest_refresh, i.minimum_age)
""")


@dataclass(frozen=True, slots=True)
class Traits:
    """Of one provider: whether it renews tokens, whether they can be probed, and before when it refuses a refresh."""

    renews: bool
    probes: bool
    earliest_refresh: timedelta | None
    minimum_age: timedelta | None


def describe(connection: Connection, traits: Mapping[str, Traits]) -> None:
    """Write down what is said of each provider, beside its apps, where it is not there yet."""
    each = list(traits.values())
    connection.execute(
        _DESCRIBE,
        {
            "providers": list(traits),
            "renews": [one.renews for one in each],
            "probes": [one.probes for one in each],
            "earliest": [one.earliest_refresh for one in each],
            "ages": [one.minimum_age for one in each],
        },
    )
