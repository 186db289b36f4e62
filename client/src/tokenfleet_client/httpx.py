"""Authentication for httpx: ``httpx.Client(auth=TokenAuth(tokens, account))``.

Promises: a request carries a token that is valid; when the API answers 401 to it, that is reported, and the request is
sent once more with the token that replaces it; when there is none, the API's answer is what the caller gets. A token
goes where the request was sent to and, redirected, no further than httpx takes the header: to the same origin, or from
``http`` to ``https`` on the same host.

Install it with ``pip install tokenfleet-client[httpx]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from datetime import timedelta

import httpx

from tokenfleet_client.async_client import AsyncTokenClient
from tokenfleet_client.client import TokenClient
from tokenfleet_client.errors import TokenfleetError
from tokenfleet_client.reading import MIN_VALIDITY
from tokenfleet_client.tokens import BEARER, AccountRef, Token

_HEADER = "Authorization"


class _TokenAuth(httpx.Auth):
    def __init__(
        self, account: AccountRef, *, min_validity: timedelta = MIN_VALIDITY, scheme: str = BEARER
    ) -> None:
        self._account = account
        self._min_validity = min_validity
        self._scheme = scheme

    def _sign(self, request: httpx.Request, token: Token) -> None:
        request.headers[_HEADER] = token.authorization(self._scheme)

    @staticmethod
    def _may_send_again(request: httpx.Request, response: httpx.Response) -> bool:
        """Answer whether the API refused our token, and the request can be repeated.

        Redirected to another origin the request went without it. A body that is a stream is gone once it was sent.
        """
        return (
            response.status_code == httpx.codes.UNAUTHORIZED
            and response.request.headers.get(_HEADER) == request.headers[_HEADER]
            and isinstance(request.stream, httpx.ByteStream)
        )


class TokenAuth(_TokenAuth):
    """The tokens of one account, for ``httpx.Client`` and the functions of httpx.

    Besides what httpx raises, a request raises what :meth:`tokenfleet_client.TokenClient.get_token` does.
    """

    def __init__(
        self,
        tokens: TokenClient,
        account: AccountRef,
        *,
        min_validity: timedelta = MIN_VALIDITY,
        scheme: str = BEARER,
    ) -> None:
        """Take the tokens of ``account`` from ``tokens``. ``scheme`` is what stands before them in the header."""
        super().__init__(account, min_validity=min_validity, scheme=scheme)
        self._tokens = tokens

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with a token, and once more after a 401."""
        token = self._tokens.get_token(self._account, self._min_validity)
        self._sign(request, token)
        response = yield request
        if self._may_send_again(request, response):
            try:
                newer = self._tokens.report_unauthorized(token, self._min_validity)
            except TokenfleetError:
                return
            self._sign(request, newer)
            yield request

    def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Refuse: a ``TokenClient`` would block the event loop."""
        raise TypeError("httpx.AsyncClient needs AsyncTokenAuth, with an AsyncTokenClient")


class AsyncTokenAuth(_TokenAuth):
    """The tokens of one account, for ``httpx.AsyncClient``.

    Besides what httpx raises, a request raises what :meth:`tokenfleet_client.TokenClient.get_token` does.
    """

    def __init__(
        self,
        tokens: AsyncTokenClient,
        account: AccountRef,
        *,
        min_validity: timedelta = MIN_VALIDITY,
        scheme: str = BEARER,
    ) -> None:
        """Take the tokens of ``account`` from ``tokens``. ``scheme`` is what stands before them in the header."""
        super().__init__(account, min_validity=min_validity, scheme=scheme)
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request with a token, and once more after a 401."""
        token = await self._tokens.get_token(self._account, self._min_validity)
        self._sign(request, token)
        response = yield request
        if self._may_send_again(request, response):
            try:
                newer = await self._tokens.report_unauthorized(token, self._min_validity)
            except TokenfleetError:
                return
            self._sign(request, newer)
            yield request

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Refuse: an ``AsyncTokenClient`` cannot be waited for without an event loop."""
        raise TypeError("httpx.Client needs TokenAuth, with a TokenClient")
