"""Authentication for requests: ``requests.get(url, auth=TokenAuth(tokens, account))``.

Promises: as of :mod:`tokenfleet_client.httpx`. Redirected, a token goes no further than requests takes the header: to
the same host, or from ``http`` to ``https`` there.

Install it with ``pip install tokenfleet-client[requests]``.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, Protocol, cast

from requests import PreparedRequest, Response
from requests.auth import AuthBase

from tokenfleet_client.client import TokenClient
from tokenfleet_client.errors import TokenfleetError
from tokenfleet_client.reading import MIN_VALIDITY
from tokenfleet_client.tokens import BEARER, AccountRef, Token

_HEADER = "Authorization"


class _Connection(Protocol):
    """What requests sends one request with, without following redirects."""

    def send(self, request: PreparedRequest, **options: Any) -> Response: ...


class TokenAuth(AuthBase):
    """The tokens of one account. Any thread may use it, with any session.

    Besides what requests raises, a request raises what :meth:`tokenfleet_client.TokenClient.get_token` does.
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
        self._tokens = tokens
        self._account = account
        self._min_validity = min_validity
        self._scheme = scheme

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put a token into the request."""
        token = self._tokens.get_token(self._account, self._min_validity)
        r.headers[_HEADER] = token.authorization(self._scheme)
        r.register_hook("response", partial(self._send_again, token))
        return r

    def _send_again(self, token: Token, response: Response, **options: Any) -> Response:
        """Return the answer to the request, or after a 401 to our token the answer to the request with a newer one."""
        request = response.request
        # Redirected to another host the request went without it, and a body that is a stream is gone.
        if (
            response.status_code != 401
            or request.headers.get(_HEADER) != token.authorization(self._scheme)
            or not isinstance(request.body, str | bytes | None)
        ):
            return response
        try:
            newer = self._tokens.report_unauthorized(token, self._min_validity)
        except TokenfleetError:
            return response
        # The connection can be used again once its answer was read.
        _ = response.content
        response.close()
        again = request.copy()
        again.headers[_HEADER] = newer.authorization(self._scheme)
        second = cast("_Connection", response.connection).send(again, **options)
        second.history.append(response)
        second.request = again
        return second
