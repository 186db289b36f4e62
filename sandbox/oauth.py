"""The OAuth endpoints: token (RFC 6749), revocation (RFC 7009), introspection (RFC 7662) and userinfo.

Promise: a token request is in the ledger from the moment its refresh token can be read until its answer is
ready to leave or its client is gone, whatever else is wrong with it. Refusals are RFC 6749 section 5.2.
Nothing is logged here, least of all a form.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

from sandbox.authority import Authority
from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule
from sandbox.grants import Issued, Refusal, TokenFacts
from sandbox.ledger import Presentation
from sandbox.misbehaviour import misbehave, retry_moment
from sandbox.selection import Stage
from sandbox.tokens import AccessTokenRef
from sandbox.traffic import Wait
from tokenfleet_client.secret import Secret

JSON_HEADERS: Final = {"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache"}
"""RFC 6749 section 5.1 asks for both prohibitions."""

_ALTERED_ANSWERS: Final = frozenset(
    {FaultKind.SLOW, FaultKind.MISSING_REFRESH_TOKEN, FaultKind.MISSING_EXPIRES_IN}
)
"""Faults that let the decision through; every other one takes its place."""


class _RefusedError(Exception):
    """The request is refused with an error code of RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str, status: int = 400, *, challenge: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status
        self.challenge = challenge

    def response(self) -> web.Response:
        response = _json({"error": self.error, "error_description": self.description}, self.status)
        if self.challenge:
            response.headers["WWW-Authenticate"] = 'Basic realm="sandbox"'
        return response


class OAuthEndpoints:
    """Handlers over one :class:`Authority`."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def routes(self) -> list[web.RouteDef]:
        """Return what to serve where."""
        return [
            web.post("/token", self.token),
            web.post("/revoke", self.revoke),
            web.post("/introspect", self.introspect),
            web.get("/userinfo", self.userinfo),
        ]

    async def token(self, request: web.Request) -> web.StreamResponse:
        """Answer a token request."""
        ledger = self._authority.ledger
        ledger.request_opened()
        try:
            return await self._token(request)
        except _RefusedError as refused:
            ledger.request_rejected(refused.error)
            return refused.response()
        finally:
            ledger.request_closed()

    async def _token(self, request: web.Request) -> web.StreamResponse:
        arrived = self._authority.clock()
        form = await _read_form(request)
        ref = self._authority.mint.read_refresh_token(Secret(form.get("refresh_token", "")))
        if ref is None:
            self._check(request, form)
            raise _RefusedError("invalid_grant", Refusal.UNKNOWN)
        transport = request.transport
        presentation = self._authority.ledger.present(
            ref, lambda: transport is not None and not transport.is_closing()
        )
        self._authority.note_arrival(presentation, arrived)
        delivered = False
        try:
            self._check(request, form)
            response, delivered = await self._exchange(request, presentation)
            return response
        finally:
            # A client that hung up cancels this handler, wherever it waits: nothing was delivered then.
            delivered = delivered and presentation.connected()
            self._authority.ledger.close(presentation, delivered=delivered)

    def _check(self, request: web.Request, form: dict[str, str]) -> None:
        _authenticate(request, form, self._authority.config)
        grant_type = form.get("grant_type")
        if not grant_type:
            raise _RefusedError("invalid_request", "the parameter grant_type is missing")
        if grant_type != "refresh_token":
            raise _RefusedError("unsupported_grant_type", "only the grant type refresh_token is served here")
        if not form.get("refresh_token"):
            raise _RefusedError("invalid_request", "the parameter refresh_token is missing")
        if not set(form.get("scope", "").split()) <= set(self._authority.config.scope.split()):
            raise _RefusedError("invalid_scope", "the scope exceeds what the customer consented to")

    async def _exchange(
        self, request: web.Request, presentation: Presentation
    ) -> tuple[web.StreamResponse, bool]:
        """Return the answer, and whether it is the decision's own rather than a fault's in its place."""
        authority, subject = self._authority, presentation.entry.subject
        fault = authority.faults.choose(subject, presentation.ordinal, authority.clock())
        await authority.gate.passage(Stage.BEFORE_DECIDING, subject)
        if fault is not None and fault.strikes is Stage.BEFORE_DECIDING:
            substitute = await self._strike(request, fault, subject)
            if substitute is not None:
                return substitute, False
        if authority.is_too_early(presentation):
            raise _RefusedError(
                "invalid_request", "the access token is young: refresh it shortly before its end"
            )
        rotate = fault is None or fault.kind is not FaultKind.MISSING_REFRESH_TOKEN
        decision = authority.refresh(presentation, rotate=rotate)
        await authority.gate.passage(Stage.AFTER_DECIDING, subject)
        latency = authority.latency()
        if latency:
            await asyncio.sleep(latency)
        # A refusal has no tokens that could break off: it is given whole.
        is_void = (
            fault is not None and fault.kind is FaultKind.HALF_ANSWER and not isinstance(decision, Issued)
        )
        if fault is not None and fault.strikes is Stage.AFTER_DECIDING and not is_void:
            body = self._answer(decision) if isinstance(decision, Issued) else b""
            substitute = await self._strike(request, fault, subject, body)
            if substitute is not None:
                return substitute, False
        if not isinstance(decision, Issued):
            raise _RefusedError("invalid_grant", decision.reason)
        without_expiry = fault is not None and fault.kind is FaultKind.MISSING_EXPIRES_IN
        answer = self._answer(decision, without_expiry=without_expiry)
        return web.Response(body=answer, headers=JSON_HEADERS), True

    async def _strike(
        self, request: web.Request, fault: FaultRule, subject: str, answer: bytes = b""
    ) -> web.StreamResponse | None:
        if fault.kind is FaultKind.SLOW:
            await asyncio.sleep(fault.seconds or 0)
        if fault.kind in _ALTERED_ANSWERS:
            return None
        now = self._authority.clock()
        if (until := retry_moment(fault, now)) is not None:
            self._authority.traffic.told_to_wait(subject, Wait(now, until))
        return await misbehave(request, fault, answer, now=now)

    def _answer(self, issued: Issued, *, without_expiry: bool = False) -> bytes:
        members: dict[str, str | int] = {"access_token": issued.access_token.reveal(), "token_type": "Bearer"}
        if not without_expiry:
            members["expires_in"] = issued.expires_in
        if issued.refresh_token is not None:
            members["refresh_token"] = issued.refresh_token.reveal()
        if issued.refresh_token_expires_in is not None:
            members["refresh_token_expires_in"] = issued.refresh_token_expires_in
        members["scope"] = self._authority.config.scope
        return json.dumps(members).encode()

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        """Revoke a token. An unknown one is answered like a known one (RFC 7009 section 2.2)."""
        try:
            token = await self._token_parameter(request)
        except _RefusedError as refused:
            return refused.response()
        authority = self._authority
        if (refresh_ref := authority.mint.read_refresh_token(token)) is not None:
            authority.grants.revoke_family(refresh_ref)
        elif (access_ref := authority.mint.read_access_token(token)) is not None:
            authority.grants.revoke_access_token(access_ref)
        return web.Response(headers={"Cache-Control": "no-store"})

    async def introspect(self, request: web.Request) -> web.StreamResponse:
        """Say whether a token is good, and for whom."""
        try:
            token = await self._token_parameter(request)
        except _RefusedError as refused:
            return refused.response()
        authority, now = self._authority, self._authority.clock()
        facts: TokenFacts | None = None
        if (refresh_ref := authority.mint.read_refresh_token(token)) is not None:
            facts = authority.grants.refresh_token_facts(refresh_ref, now)
        elif (access_ref := authority.mint.read_access_token(token)) is not None:
            facts = authority.grants.access_token_facts(access_ref, now)
        if facts is None:
            return _json({"active": False})
        members: dict[str, str | int | bool] = {
            "active": True,
            "sub": facts.subject,
            "client_id": authority.config.client_id,
            "scope": authority.config.scope,
            "token_type": facts.token_type,
        }
        if facts.expires_at is not None:
            members["exp"] = int(facts.expires_at)
        return _json(members)

    async def userinfo(self, request: web.Request) -> web.StreamResponse:
        """Return the subject of a good access token; otherwise challenge as RFC 6750 section 3 says."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Bearer realm="sandbox"'})
        authority = self._authority
        ref = authority.mint.read_access_token(Secret(value))
        if ref is not None and (substitute := await self._api_fault(request, ref)) is not None:
            return substitute
        facts = None if ref is None else authority.grants.access_token_facts(ref, authority.clock())
        if facts is None:
            challenge = 'Bearer realm="sandbox", error="invalid_token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return _json({"sub": facts.subject})

    async def _api_fault(self, request: web.Request, ref: AccessTokenRef) -> web.StreamResponse | None:
        """Count a request of the API, hold it if that is ordered, and return what a fault answers in its place."""
        authority, subject = self._authority, self._authority.grants.subject_of(ref)
        ordinal = authority.ledger.api_requested(ref.family)
        fault = authority.faults.choose(subject, ordinal, authority.clock(), endpoint="userinfo")
        await authority.gate.passage(Stage.API_REQUEST, subject)
        if fault is None:
            return None
        if fault.kind is FaultKind.SLOW:
            await asyncio.sleep(fault.seconds or 0)
            return None
        return await misbehave(request, fault, b"", now=authority.clock())

    async def _token_parameter(self, request: web.Request) -> Secret:
        form = await _read_form(request)
        _authenticate(request, form, self._authority.config)
        token = form.get("token")
        if not token:
            raise _RefusedError("invalid_request", "the parameter token is missing")
        return Secret(token)


async def _read_form(request: web.Request) -> dict[str, str]:
    if request.content_type != "application/x-www-form-urlencoded":
        raise _RefusedError("invalid_request", "the body must be application/x-www-form-urlencoded")
    try:
        pairs = parse_qsl((await request.read()).decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise _RefusedError("invalid_request", "the body is not a form in UTF-8") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _RefusedError("invalid_request", "a parameter is included more than once")
    return form


def _authenticate(request: web.Request, form: dict[str, str], config: SandboxConfig) -> None:
    """Check client_secret_basic or client_secret_post (RFC 6749 section 2.3.1)."""
    header = request.headers.get("Authorization")
    if header is None:
        client_id, client_secret = form.get("client_id", ""), form.get("client_secret", "")
    elif "client_secret" in form:
        raise _RefusedError("invalid_request", "the client authenticates in two ways at once")
    else:
        client_id, client_secret = _read_basic(header)
    known = hmac.compare_digest(client_id.encode(), config.client_id.encode())
    if not (Secret(client_secret) == config.client_secret and known):
        raise _RefusedError(
            "invalid_client", "client authentication failed", 401, challenge=header is not None
        )


def _read_basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded, validate=True).decode() if scheme.lower() == "basic" else ""
    except (binascii.Error, UnicodeDecodeError):
        decoded = ""
    client_id, _, client_secret = decoded.partition(":")
    return unquote_plus(client_id), unquote_plus(client_secret)


def _json(
    members: dict[str, str | int | bool] | dict[str, str] | dict[str, bool], status: int = 200
) -> web.Response:
    return web.Response(body=json.dumps(members).encode(), status=status, headers=JSON_HEADERS)
