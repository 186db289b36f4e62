"""The providers by name: built-in definitions and the operator's own, compiled and immutable.

An operator's definition with the name of a built-in one takes its place, so that a fleet is never stuck with
a mistake of ours.
"""

from __future__ import annotations

import difflib
import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

from providers import placement
from providers.connect import ConnectReader
from providers.credentials import ACCESS_TOKEN, ClientCredentials, Grant
from providers.exchange import Answer, Exchange, TokenRequest
from providers.loading import read_directory
from providers.parts import Parts
from providers.probes import ProbeReading
from providers.quota import QuotaHeaders
from providers.revocation import RevocationReading
from providers.spec import Lifetimes as LifetimesSpec
from providers.spec import ProviderSpec, Rate
from providers.steps import CompiledStep
from tokenfleet.errors import DefinitionError, UserError
from tokenfleet.lifetimes import Lifetimes
from tokenfleet.outcome import Outcome, Throttled
from tokenfleet.policy import ENDLESS_GRACE
from tokenfleet.presented import Presented
from tokenfleet.tokens import EARLIEST_MARGIN, LATEST_MARGIN, Margins

CATALOG: Final = Path(__file__).parent / "catalog"

PRESENTED: Final[Mapping[str, Presented]] = {
    "refresh_token": Presented.REFRESH_TOKEN,
    "token_exchange": Presented.SUBJECT_TOKEN,
    "access_token": Presented.ACCESS_TOKEN,
    "client_credentials": Presented.NOTHING,
    "jwt_bearer": Presented.NOTHING,
    "none": Presented.NOTHING,
}
"""What each grant presents of an account."""

DEFAULT_MAX_OUTSTANDING: Final = 2000
"""Claims of one app that may be out at once where a definition says nothing: a provider that hangs for the
whole HTTP timeout cannot hold more of the fleet than this, and at 200 ms an answer it still allows 3,000
refreshes a second with as much again waiting in the queue."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A compiled definition. Immutable; safe in any thread."""

    name: str
    display_name: str
    spec: ProviderSpec = field(repr=False)
    origin: str
    """The file that it was read from."""
    margins: Margins
    lifetimes: Lifetimes = field(repr=False)
    rate_per_second: float | None
    burst: int
    max_outstanding: int
    rotates: bool
    """Whether an answer may carry a new refresh token that replaces the one presented."""
    replay_grace: timedelta | None
    """How long a replaced refresh token still works, ``ENDLESS_GRACE`` for as long as its answer is missing; None when
    it is spent at once, or never replaced."""
    max_live: int | None
    """How many refresh tokens can be alive at once before the oldest dies; None when unlimited, or never replaced."""
    presents: Presented = field(repr=False)
    """What of an account a renewal presents."""
    renews: bool = field(repr=False)
    """Whether access tokens are renewed at all; one that is not lives as long as its probes say."""
    needs_access_token: bool = field(repr=False)
    """Whether a renewal has the access token in its request."""
    endpoint_varies: bool
    """Whether accounts have token endpoints of their own: one that is down says nothing of the others."""
    _quota: QuotaHeaders = field(repr=False, compare=False)
    _allow_http: bool = field(repr=False, compare=False)
    _parts: Parts = field(repr=False, compare=False)
    steps: tuple[CompiledStep, ...] = field(repr=False, compare=False)
    """What follows a good answer, in order."""

    @classmethod
    def compile(cls, spec: ProviderSpec, *, origin: str, allow_http: bool) -> Provider:
        """Return the provider that ``spec`` describes; ``spec`` has passed ``providers.contradictions``."""
        rate, rotates = spec.rate, spec.rotation.policy != "never"
        return cls(
            name=spec.name,
            display_name=spec.display_name,
            spec=spec,
            origin=origin,
            margins=margins_of(spec.lifetimes),
            lifetimes=_lifetimes(spec),
            rate_per_second=rate.requests_per_second,
            burst=burst_of(rate),
            max_outstanding=rate.max_outstanding or DEFAULT_MAX_OUTSTANDING,
            rotates=rotates,
            replay_grace=_replay_grace(spec),
            max_live=spec.rotation.max_live if rotates else None,
            presents=PRESENTED[spec.refresh.grant],
            renews=spec.refresh.grant != "none",
            needs_access_token=spec.refresh.grant == "access_token" or ACCESS_TOKEN in placement.placed(spec),
            endpoint_varies="{" in (spec.refresh.endpoint or ""),
            _quota=QuotaHeaders(rate),
            _allow_http=allow_http,
            _parts=Parts(spec, allow_http=allow_http),
            steps=tuple(CompiledStep(spec, step, allow_http=allow_http) for step in spec.steps),
        )

    def required_variables(self) -> frozenset[str]:
        """Return the variables without default that an account must have to be refreshed, or else to be probed."""
        return self._parts.visits.required_variables

    def check_variables(self, variables: Mapping[str, str]) -> None:
        """Check what an account and its app say of the variables that a refresh needs, or else a probe.

        Raises :class:`~providers.credentials.RequestBuildError` that names the variable at fault.
        """
        self._parts.visits.check_variables(variables)

    def refresh_request(
        self, client: ClientCredentials, grant: Grant, *, now: datetime | None = None
    ) -> TokenRequest:
        """Return the request that presents ``grant`` once.

        ``now`` is the time of the wall clock; definitions that sign an assertion or stamp a request need it. Raises
        :class:`~providers.credentials.RequestBuildError` when a variable, a token or something of the app is missing or
        malformed; nothing was sent then, and the account is not at fault.
        """
        return self._parts.requests.build(client, grant, now=now)

    def read(self, exchange: Exchange, *, now: datetime) -> Outcome:
        """Return what ``exchange``, received at ``now``, means. Total: never raises."""
        outcome = self._parts.answers.read(exchange, now=now)
        if isinstance(outcome, Throttled) and outcome.retry_after is None and isinstance(exchange, Answer):
            return replace(outcome, retry_after=self._quota.resets_in(exchange, now))
        return outcome

    def connect_reader(self) -> ConnectReader:
        """Return a reader of the answers that connect accounts, which only imports need."""
        return ConnectReader(self.spec, allow_http=self._allow_http)

    def used_up_for(self, exchange: Exchange, *, now: datetime) -> timedelta | None:
        """Return for how long the app may ask no more, as an answer's rate headers say. Total: never raises."""
        return self._quota.used_up_for(exchange, now) if isinstance(exchange, Answer) else None

    def probe_request(self, client: ClientCredentials, grant: Grant, *, now: datetime) -> TokenRequest | None:
        """Return the request that tells whether the access token of ``grant`` works; None when it cannot be probed."""
        return self._parts.probes.build(client, grant, now) if self._parts.probes is not None else None

    def read_probe(self, exchange: Exchange) -> ProbeReading:
        """Return what the answer to a probe says of the token. Total: never raises."""
        assert self._parts.probes is not None
        return self._parts.probes.read(exchange)

    @property
    def revokes(self) -> bool:
        """Whether a grant can be ended by a request."""
        return self._parts.revocations is not None

    @property
    def revocation_shows_access_token(self) -> bool:
        """Whether that request carries the access token: one that has expired may not do then."""
        revocations = self._parts.revocations
        return revocations is not None and revocations.shows_access_token

    def revocation_request(self, client: ClientCredentials, grant: Grant, *, now: datetime) -> TokenRequest:
        """Return the request that ends ``grant`` (RFC 7009), which there is where ``revokes`` says so.

        Raises :class:`~providers.credentials.RequestBuildError`.
        """
        assert self._parts.revocations is not None
        return self._parts.revocations.build(client, grant, now)

    def read_revocation(self, exchange: Exchange) -> RevocationReading:
        """Return what the answer to a revocation request says. Total: never raises."""
        assert self._parts.revocations is not None
        return self._parts.revocations.read(exchange)


class Registry:
    """Every provider that this process knows."""

    __slots__ = ("_providers",)

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(sorted(providers.items()))

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._providers.values())

    def __len__(self) -> int:
        return len(self._providers)

    def __contains__(self, name: object) -> bool:
        return name in self._providers

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(self._providers)

    def get(self, name: str) -> Provider:
        """Return the provider called ``name``. Raises :class:`UserError` that names close matches."""
        provider = self._providers.get(name)
        if provider is None:
            raise UserError(_unknown(name, self.names()))
        return provider


def load_registry(extra_dir: Path | None = None, *, allow_http: bool = False) -> Registry:
    """Return the built-in providers and those of ``extra_dir``.

    ``allow_http`` permits plain http endpoints: for sandboxes and tests. Raises :class:`DefinitionError` that
    lists every mistake of every file.
    """
    found, problems = _built_in(allow_http)
    if extra_dir is not None:
        own, mistakes = compiled(extra_dir, allow_http=allow_http)
        found, problems = found | own, [*problems, *mistakes]
    if problems:
        raise DefinitionError(problems)
    return Registry(found)


@cache
def _built_in(allow_http: bool) -> tuple[dict[str, Provider], list[str]]:
    """Return the catalogue by name and its mistakes, read once: it does not change while a process lives."""
    found = compiled(CATALOG, allow_http=allow_http)
    # So no collection of cycles ever walks through it.
    gc.freeze()
    return found


def compiled(directory: Path, *, allow_http: bool) -> tuple[dict[str, Provider], list[str]]:
    """Return the providers that are defined directly in ``directory`` by name, and every mistake in the others."""
    with _uncollected():
        definitions, problems = read_directory(directory, allow_http=allow_http)
        providers = {
            definition.spec.name: Provider.compile(
                definition.spec, origin=definition.file, allow_http=allow_http
            )
            for definition in definitions
        }
    return providers, list(map(str, problems))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector of cycles from looking again and again at definitions, all of which stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def burst_of(rate: Rate) -> int:
    """Return how many requests may leave at once; a second's worth where the definition says nothing."""
    return rate.burst or max(1, math.ceil(rate.requests_per_second or 1))


def _lifetimes(spec: ProviderSpec) -> Lifetimes:
    life = spec.lifetimes

    def duration(seconds: int | None) -> timedelta | None:
        return None if seconds is None else timedelta(seconds=seconds)

    return Lifetimes(
        renews=spec.refresh.grant != "none",
        access_never_expires=life.access_never_expires,
        earliest_refresh=duration(life.earliest_refresh_seconds),
        minimum_age=duration(life.minimum_age_seconds),
        refresh_idle=duration(life.refresh_idle_seconds),
        refresh_absolute=duration(life.refresh_absolute_seconds),
        probe_every=duration(spec.probe.every_seconds) if spec.probe else None,
    )


def _replay_grace(spec: ProviderSpec) -> timedelta | None:
    rotation = spec.rotation
    if rotation.grace_seconds:
        # Also where first use ends it sooner: nobody uses what is missing.
        return timedelta(seconds=rotation.grace_seconds)
    return ENDLESS_GRACE if rotation.grace_until_first_use else None


def margins_of(lifetimes: LifetimesSpec) -> Margins:
    """Return how long before its end an access token is renewed."""
    earliest, latest = lifetimes.margin_earliest_seconds, lifetimes.margin_latest_seconds
    latest_margin = LATEST_MARGIN if latest is None else timedelta(seconds=latest)
    earliest_margin = EARLIEST_MARGIN if earliest is None else timedelta(seconds=earliest)
    if lifetimes.earliest_refresh_seconds is not None:
        # Drawn within the window in which the provider allows a refresh, not all of them at its opening.
        earliest_margin = min(earliest_margin, timedelta(seconds=lifetimes.earliest_refresh_seconds))
    if lifetimes.minimum_age_seconds is not None and lifetimes.access_seconds is not None:
        window = lifetimes.access_seconds - lifetimes.minimum_age_seconds
        earliest_margin = min(earliest_margin, timedelta(seconds=window))
    if latest is None:
        latest_margin = min(latest_margin, earliest_margin)
    return Margins(earliest=max(earliest_margin, latest_margin), latest=latest_margin)


def _unknown(name: str, names: tuple[str, ...]) -> str:
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    close = [
        known for known in names if len(folded) > 2 and (folded in known or f"_{known}_" in f"_{folded}_")
    ]
    close += [known for known in difflib.get_close_matches(folded, names, n=3) if known not in close]
    if close:
        return f"there is no provider {name!r}: did you mean {' or '.join(close[:3])}?"
    return f"there is no provider {name!r}: 'tokenfleet providers list' shows the known ones"
