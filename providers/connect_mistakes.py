"""What contradicts what in the token sets of the answer that connects an account."""

from __future__ import annotations

from collections.abc import Iterator

from providers.problems import Location
from providers.spec import ProviderSpec


def connect_mistakes(spec: ProviderSpec) -> Iterator[tuple[Location, str]]:
    """Yield every contradiction between the token sets of ``spec``: where it stands, and the reason."""
    sets = spec.connect
    if not sets:
        return
    if len(sets) == 1:
        yield (
            ("connect", next(iter(sets))),
            "is the only token set: an answer that brings one needs no connect",
        )
        return
    places: dict[str | None, str] = {}
    for name, one in sets.items():
        if one.at in places:
            where = "at the top" if one.at is None else f"at {one.at!r}"
            yield ("connect", name, "at"), f"stands {where}, as {places[one.at]} does: they are one token set"
        places.setdefault(one.at, name)
        if one.at is not None and "[" in one.at:
            yield ("connect", name, "at"), "leads into a list: a token set stands under a member, by names"
    if None not in places:
        yield ("connect",), "has no token set at the top: leave out 'at' in the one that stands there"
    unnamed = [name for name, one in sets.items() if one.external_id is None]
    for name in unnamed[1:]:
        yield (
            ("connect", name, "external_id"),
            f"is missing, as in {unnamed[0]}: their accounts would have the same external id",
        )
