"""The sandbox's own endpoints under /sandbox/: issue grants, read the ledger, order faults, hold answers.

They are for whoever tests a fleet, and served on the same loopback listener. Only ``POST /sandbox/grants``
returns tokens, those it has just issued; the ledger returns counts, names and fingerprints. Long listings are
JSON Lines, written in portions, so that reading 100,000 accounts does not stop the token endpoint.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Annotated, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox.authority import Authority, Grant
from sandbox.doors import Doors
from sandbox.faults import explain, parse_rules
from sandbox.selection import Selection, Stage
from sandbox.traffic import Arrival, Wait
from tokenfleet.errors import UserError

LINES_PER_PORTION: Final = 200


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Life = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _GrantsOrder(_Body):
    subjects: list[str] = []
    """Who signs in; empty: ``count`` of them, named by ``prefix`` and a number from ``first`` on."""
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    prefix: str = "acct-"
    first: Annotated[int, Field(ge=0)] = 1
    provider: Annotated[str, Field(min_length=1)] = "sandbox"
    environment: str | None = None
    tenant: str | None = None
    seconds_left: Annotated[tuple[_Life, _Life], Field(min_length=2, max_length=2)] | None = None
    """How long their access tokens still live, spread evenly from the first number to the second: customers of
    a fleet that has run for long. None: as long as new ones."""


class _DoorOrder(_Body):
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any."""


class _WatchOrder(_Body):
    prefixes: Annotated[list[str], Field(min_length=1, max_length=100)]


class _Subjects(_Body):
    subjects: Annotated[list[str], Field(min_length=1)]


class _Loss(_Body):
    subject: str
    refresh_token_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the token that was presented, whose answer was lost."""


class _LossesOrder(_Body):
    losses: Annotated[list[_Loss], Field(min_length=1)]


class _HoldOrder(_Body):
    stage: Stage = Stage.AFTER_DECIDING
    subjects: frozenset[str] = frozenset()
    prefix: str = ""


_B = TypeVar("_B", bound=_Body)


class AdminEndpoints:
    """Handlers over one :class:`Authority` and the doors it is asked at."""

    def __init__(self, authority: Authority, doors: Doors) -> None:
        self._authority = authority
        self._doors = doors

    def routes(self) -> list[web.RouteDef]:
        """Return what to serve where."""
        return [
            web.post("/sandbox/grants", self.issue_grants),
            web.get("/sandbox/ledger", self.ledger),
            web.get("/sandbox/ledger/live", self.live),
            web.get("/sandbox/faults", self.list_faults),
            web.post("/sandbox/faults", self.add_faults),
            web.delete("/sandbox/faults", self.clear_faults),
            web.get("/sandbox/held", self.held),
            web.post("/sandbox/hold", self.hold),
            web.post("/sandbox/release", self.release),
            web.post("/sandbox/revoke", self.revoke),
            web.get("/sandbox/losses", self.losses),
            web.post("/sandbox/losses", self.declare_losses),
            web.get("/sandbox/violations", self.violations),
            web.post("/sandbox/doors", self.open_door),
            web.delete("/sandbox/doors/{port:[0-9]{1,5}}", self.close_door),
            web.post("/sandbox/traffic", self.watch),
            web.get("/sandbox/traffic", self.traffic),
        ]

    async def issue_grants(self, request: web.Request) -> web.StreamResponse:
        """Sign customers in; answer with one line to import for each."""
        order = await _read(request, _GrantsOrder)
        place = {"environment": order.environment, "tenant": order.tenant}

        def lines() -> Iterator[str]:
            numbers = range(order.first, order.first + order.count)
            subjects = order.subjects or [f"{order.prefix}{number}" for number in numbers]
            for subject, seconds_left in zip(
                subjects, _lives(order.seconds_left, len(subjects)), strict=True
            ):
                grant = self._authority.issue(subject, seconds_left=seconds_left)
                yield import_line(grant, order.provider, place)

        return await _stream(request, lines())

    async def ledger(self, request: web.Request) -> web.StreamResponse:
        """Answer with the totals, or with one subject's record (``?subject=``)."""
        subject = request.query.get("subject")
        if subject is None:
            return _json(dataclasses.asdict(self._authority.report()))
        report = self._authority.report_subject(subject)
        if report is None:
            return _json({"error": f"no grant was ever issued to {subject!r} here"}, status=404)
        return _json(dataclasses.asdict(report))

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line for each subject: fingerprints of its live tokens."""
        return await _stream(
            request, (json.dumps(dataclasses.asdict(each)) for each in self._authority.live())
        )

    async def list_faults(self, request: web.Request) -> web.StreamResponse:
        """Answer with the rules in force and how often each kind has struck."""
        return self._faults()

    async def add_faults(self, request: web.Request) -> web.StreamResponse:
        """Put further rules in force."""
        try:
            rules = parse_rules(await request.read())
        except UserError as error:
            raise _bad_request(str(error)) from error
        self._authority.faults.add(rules, self._authority.clock())
        return self._faults()

    async def clear_faults(self, request: web.Request) -> web.StreamResponse:
        """End all rules."""
        self._authority.faults.clear()
        return self._faults()

    async def held(self, request: web.Request) -> web.StreamResponse:
        """Answer with how many requests are held now."""
        return _json({"held": self._authority.gate.held})

    async def hold(self, request: web.Request) -> web.StreamResponse:
        """Let the token requests chosen wait from now on."""
        order = await _read(request, _HoldOrder)
        self._authority.gate.hold(order.stage, Selection(order.subjects, order.prefix))
        return _json({"held": self._authority.gate.held})

    async def release(self, request: web.Request) -> web.StreamResponse:
        """Let everything that is held go on."""
        held = self._authority.gate.held
        self._authority.gate.release()
        return _json({"released": held})

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        """End grants, as customers do in their account settings."""
        subjects = (await _read(request, _Subjects)).subjects
        ended = [subject for subject in subjects if self._authority.grants.revoke_subject(subject)]
        return _json({"revoked": len(ended), "not_living": sorted(set(subjects) - set(ended))})

    async def losses(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line for each answer that was ever lost."""
        return await _stream(
            request, [json.dumps(dataclasses.asdict(each)) for each in self._authority.losses()]
        )

    async def violations(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line for each presentation that should not have been."""
        return await _stream(
            request, [json.dumps(dataclasses.asdict(each)) for each in self._authority.violations()]
        )

    async def open_door(self, request: web.Request) -> web.StreamResponse:
        """Listen on one more port."""
        order = await _read(request, _DoorOrder)
        try:
            port = await self._doors.open(order.port)
        except UserError as error:
            raise _bad_request(str(error)) from error
        return _json({"port": port, "url": self._doors.url(port)})

    async def close_door(self, request: web.Request) -> web.StreamResponse:
        """Refuse connections on a port from now on."""
        port = int(request.match_info["port"])
        return _json({"closed": await self._doors.close(port)})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Note when requests come for subjects of these prefixes, from now on."""
        prefixes = (await _read(request, _WatchOrder)).prefixes
        for prefix in prefixes:
            self._authority.traffic.watch(prefix)
        return _json({"watched": len(prefixes)})

    async def traffic(self, request: web.Request) -> web.StreamResponse:
        """Answer with what is known of a watched ``?prefix=``: one line of totals, then one for each event."""
        prefix, traffic = request.query.get("prefix", ""), self._authority.traffic
        if not traffic.is_watched(prefix):
            return _json({"error": f"nobody watches {prefix!r}: POST it first"}, status=404)
        totals = json.dumps({"forgotten": traffic.forgotten(prefix)})
        events = itertools.chain[Wait | Arrival](traffic.waits(prefix), traffic.arrivals(prefix))
        lines = (json.dumps(dataclasses.asdict(event)) for event in events)
        return await _stream(request, itertools.chain((totals,), lines))

    async def declare_losses(self, request: web.Request) -> web.StreamResponse:
        """Take a tester's word that nobody held the answers to certain presentations."""
        losses = (await _read(request, _LossesOrder)).losses
        nothing = [
            each.subject
            for each in losses
            if not self._authority.declare_lost(each.subject, each.refresh_token_sha256)
        ]
        return _json({"lost": len(losses) - len(nothing), "nothing_to_lose": nothing})

    def _faults(self) -> web.Response:
        rules = self._authority.faults.in_force(self._authority.clock())
        return _json(
            {
                "rules": [rule.model_dump(mode="json") for rule in rules],
                "struck": dict(self._authority.faults.struck),
            }
        )


def import_line(grant: Grant, provider: str, place: Mapping[str, str | None]) -> str:
    """Return ``grant`` as a line that ``accounts import`` reads. ``place`` may name environment and tenant.

    Expiries are absolute: the line stays true however long it lies before it is imported.
    """
    tokens = grant.tokens
    members = {
        "provider": provider,
        "external_id": grant.subject,
        "refresh_token": None if tokens.refresh_token is None else tokens.refresh_token.reveal(),
        "access_token": tokens.access_token.reveal(),
        "token_type": "Bearer",
        "expires_at": grant.expires_at.isoformat(),
        "refresh_token_expires_at": (
            None if grant.refresh_token_expires_at is None else grant.refresh_token_expires_at.isoformat()
        ),
        **place,
    }
    return json.dumps({name: value for name, value in members.items() if value is not None})


def _lives(spread: tuple[float, float] | None, count: int) -> Iterator[float | None]:
    for number in range(count):
        yield None if spread is None else spread[0] + (spread[1] - spread[0]) * number / max(count - 1, 1)


async def _read(request: web.Request, shape: type[_B]) -> _B:
    try:
        return shape.model_validate_json(await request.read() or b"{}")
    except ValidationError as error:
        raise _bad_request(explain(error)) from error


def _bad_request(reason: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": reason}), content_type="application/json")


def _json(members: dict[str, object], status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(members), status=status, content_type="application/json")


async def _stream(request: web.Request, lines: Iterable[str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/jsonl", "Cache-Control": "no-store"})
    await response.prepare(request)
    async for portion in _portions(lines):
        await response.write(portion)
    await response.write_eof()
    return response


async def _portions(lines: Iterable[str]) -> AsyncIterator[bytes]:
    portion: list[str] = []
    for line in lines:
        portion.append(line)
        if len(portion) == LINES_PER_PORTION:
            yield ("\n".join(portion) + "\n").encode()
            portion.clear()
            await asyncio.sleep(0)
    if portion:
        yield ("\n".join(portion) + "\n").encode()
