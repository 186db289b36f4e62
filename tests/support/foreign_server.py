"""An authorization server that this project did not write: Authlib's, in Flask, over real HTTP.

Authlib decides everything that RFC 6749, RFC 6750 and RFC 7636 decide; here are only its storage, a sign-in
page without a password, and notes of what was presented. Policy as strict as the field knows it: refresh
tokens rotate, each is good once, and presenting a spent one ends every token of that user (RFC 9700).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7636 import CodeChallenge
from flask import Flask, Response, request
from werkzeug.serving import BaseWSGIServer, make_server

from tokenfleet_client.secret import Secret

CLIENT_ID: Final = "tokenfleet-at-a-foreign-server"
CLIENT_SECRET: Final = Secret("foreign-client-secret")
REDIRECT_URI: Final = "https://product.example/connected"
SCOPE: Final = "accounts"
GRANT_TYPES: Final = ("authorization_code", "refresh_token")
PROVIDER: Final = "foreign"

_DEFINITION: Final = """\
name = "{name}"
display_name = "A foreign server"
category = "testing"
documentation = "https://docs.authlib.org/"
confidence = "high"
checked = 2026-11-21

[client]
authentication = "client_secret_basic"

[refresh]
endpoint = {endpoint}

[rotation]
policy = "always"
family_revocation = true
"""


@dataclass(slots=True)
class _Client(ClientMixin):
    """The one registration, a confidential client."""

    def get_client_id(self) -> str:
        return CLIENT_ID

    def get_default_redirect_uri(self) -> str:
        return REDIRECT_URI

    def get_allowed_scope(self, scope: Collection[str] | str) -> str:
        words = scope.split() if isinstance(scope, str) else scope
        return " ".join(word for word in words if word == SCOPE)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == REDIRECT_URI

    def check_client_secret(self, client_secret: str) -> bool:
        return Secret(client_secret) == CLIENT_SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in GRANT_TYPES


@dataclass(slots=True)
class _Code(AuthorizationCodeMixin):
    """An authorization code on its way through the customer's browser."""

    code: str
    user: str
    scope: str
    redirect_uri: str
    code_challenge: str | None
    code_challenge_method: str | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass(slots=True)
class _Token(TokenMixin):
    """What one token response handed out."""

    user: str
    access_token: str
    refresh_token: str
    scope: str
    expires_in: int
    issued_at: float = field(default_factory=time.time)
    revoked: bool = False
    spent: bool = False

    def check_client(self, client: ClientMixin) -> bool:
        return isinstance(client, _Client)

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return self.expires_in

    def is_expired(self) -> bool:
        return time.time() >= self.issued_at + self.expires_in

    def is_revoked(self) -> bool:
        return self.revoked


class _Storage:
    """Everything the server remembers, and what was done to it. Reads and writes from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.codes: dict[str, _Code] = {}
        self.by_access_token: dict[str, _Token] = {}
        self.by_refresh_token: dict[str, _Token] = {}
        self.presented: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.rotations: Counter[str] = Counter()

    def save(self, token: Mapping[str, Any], user: str) -> None:
        issued = _Token(
            user, token["access_token"], token["refresh_token"], token["scope"], token["expires_in"]
        )
        with self.lock:
            self.by_access_token[issued.access_token] = issued
            self.by_refresh_token[issued.refresh_token] = issued

    def present(self, refresh_token: str) -> _Token | None:
        """Return what a refresh token stands for while it is good; a spent one ends its user's tokens."""
        with self.lock:
            self.presented[refresh_token] += 1
            token = self.by_refresh_token.get(refresh_token)
            if token is not None and token.spent:
                for each in self.by_refresh_token.values():
                    each.revoked = each.revoked or each.user == token.user
            return token if token is not None and not token.revoked and not token.spent else None

    def spend(self, token: _Token) -> None:
        with self.lock:
            token.spent = True
            self.accepted[token.refresh_token] += 1
            self.rotations[token.user] += 1


def _application(storage: _Storage, lifetime_seconds: int) -> Flask:
    # The published types of Authlib know neither its hooks' arguments nor what Flask makes of its responses,
    # hence Any.
    class CodeGrant(grants.AuthorizationCodeGrant):
        def save_authorization_code(self, code: str, request: Any) -> None:
            data = request.payload.data
            storage.codes[code] = _Code(
                code,
                request.user,
                request.payload.scope,
                request.payload.redirect_uri,
                data.get("code_challenge"),
                data.get("code_challenge_method"),
            )

        def query_authorization_code(self, code: str, client: ClientMixin) -> _Code | None:
            return storage.codes.get(code)

        def delete_authorization_code(self, authorization_code: _Code) -> None:
            storage.codes.pop(authorization_code.code, None)

        def authenticate_user(self, authorization_code: _Code) -> str:
            return authorization_code.user

    class RefreshGrant(grants.RefreshTokenGrant):
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, refresh_token: str) -> Any:
            return storage.present(refresh_token)

        def authenticate_user(self, refresh_token: Any) -> Any:
            return refresh_token.user

        def revoke_old_credential(self, refresh_token: Any) -> None:
            storage.spend(refresh_token)

    class AccessTokens(BearerTokenValidator):
        def authenticate_token(self, token_string: str) -> _Token | None:
            return storage.by_access_token.get(token_string)

    app = Flask("foreign")
    app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
    app.config["OAUTH2_TOKEN_EXPIRES_IN"] = dict.fromkeys(GRANT_TYPES, lifetime_seconds)
    server: Any = AuthorizationServer(
        app,
        query_client=lambda client_id: _Client() if client_id == CLIENT_ID else None,
        save_token=lambda token, request: storage.save(token, request.user),
    )
    server.register_grant(CodeGrant, [CodeChallenge(required=True)])
    server.register_grant(RefreshGrant)
    protect: Any = ResourceProtector()
    protect.register_token_validator(AccessTokens())

    @app.get("/authorize")
    def ask_for_consent() -> str:
        grant = server.get_consent_grant(end_user=None)
        return f"{grant.client.get_client_id()} asks for {SCOPE}: who are you?"

    @app.post("/authorize")
    def consent() -> Response:
        user = request.form["username"]
        grant = server.get_consent_grant(end_user=user)
        response: Response = server.create_authorization_response(grant_user=user, grant=grant)
        return response

    @app.post("/token")
    def token() -> Response:
        # One at a time: Authlib checks a refresh token and spends it in two steps.
        with storage.lock:
            response: Response = server.create_token_response()
            return response

    @app.get("/me")
    def me() -> dict[str, str]:
        with protect.acquire(SCOPE) as token:
            return {"sub": token.user}

    return app


class ForeignServer:
    """The server on a port of its own, in threads: ``with ForeignServer(lifetime_seconds=6) as server``."""

    def __init__(self, *, lifetime_seconds: int) -> None:
        """Prepare a server whose access tokens live ``lifetime_seconds``."""
        self._storage = _Storage()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, _application(self._storage, lifetime_seconds), threaded=True
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="foreign", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def presented(self) -> Counter[int]:
        """How many refresh tokens were presented once, twice and so on."""
        return Counter(self._storage.presented.values())

    @property
    def accepted(self) -> Counter[int]:
        """How many refresh tokens were accepted once, twice and so on."""
        return Counter(self._storage.accepted.values())

    def rotations(self, user: str) -> int:
        """Return how often a user's refresh token was replaced."""
        return self._storage.rotations[user]

    def definition(self) -> str:
        """Return what an operator writes into ``TOKENFLEET_PROVIDERS_DIR`` for it."""
        return _DEFINITION.format(name=PROVIDER, endpoint=json.dumps(f"{self.url}/token"))
