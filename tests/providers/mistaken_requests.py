"""Contradictions of refresh requests: the parts of a definition, what is added to it, and what is said of it."""

from __future__ import annotations

REFRESH = 'endpoint = "https://auth.example.com/token"\n'
ASSERTION = '[assertion]\nalgorithm = "{}"\naudience = "https://auth.example.com"\n'
RS256, HS256 = ASSERTION.format("RS256"), ASSERTION.format("HS256")
NOBODY = {"client": 'authentication = "none"'}
EMPTY_BODY = {**NOBODY, "refresh": REFRESH + 'body = "none"'}
IN_HEADER = '[refresh.headers]\nX-Token = "{refresh_token}"\n'

REQUESTS: dict[str, tuple[dict[str, str], str, str]] = {
    "authorization set twice": (
        {"client": 'authentication = "client_secret_basic"'},
        '[refresh.headers]\nAuthorization = "Bearer x"',
        "refresh.headers.Authorization is set by client.authentication (client_secret_basic) already",
    ),
    "header in two cases": (
        {},
        '[refresh.headers]\nX-A = "1"\nx-a = "2"',
        "refresh.headers.x-a is there twice: upper and lower case make no difference",
    ),
    "secret in an endpoint": (
        {"refresh": 'endpoint = "https://auth.example.com/{refresh_token}"'},
        "",
        "refresh.endpoint places {refresh_token} in a URL, which is logged: put it into a parameter or a header",
    ),
    "digest in an endpoint": (
        {"refresh": 'endpoint = "https://auth.example.com/{digest}"'},
        '[computed.digest]\nkind = "sha256"\nof = "{client_secret}"',
        "refresh.endpoint places {digest} in a URL, which is logged: put it into a parameter or a header",
    ),
    "secret in a probe's endpoint": (
        {},
        '[probe]\nendpoint = "https://api.example.com/{access_token}"\nalive_status = 200',
        "probe.endpoint places {access_token} in a URL, which is logged: put it into a parameter or a header",
    ),
    "secret in a claim": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + 'claims = { token = "{access_token}" }',
        "assertion.claims.token places {access_token} in an assertion, which anybody can read: use variables",
    ),
    "secret in a key id": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + 'key_id = "{client_secret}"',
        "assertion.key_id places {client_secret} in an assertion, which anybody can read: use variables",
    ),
    "variable that is a credential": (
        {},
        '[variables.access_token]\ndescription = "it"',
        "variables.access_token is a credential, which no variable can have the name of",
    ),
    "no assertion for the grant": (
        {**NOBODY, "refresh": REFRESH + 'grant = "jwt_bearer"'},
        "",
        "assertion is missing: the grant jwt_bearer presents one",
    ),
    "no assertion for the authentication": (
        {"client": 'authentication = "signed_secret"'},
        "",
        "assertion is missing: signed_secret presents one",
    ),
    "no assertion for a template": (
        {},
        '[refresh.headers]\nX-A = "{assertion}"',
        "assertion is missing: a template presents one",
    ),
    "assertion for nobody": (
        {},
        HS256,
        "assertion has no meaning: neither authentication nor grant nor a template presents it",
    ),
    "assertion for two": (
        {"client": 'authentication = "private_key_jwt"', "refresh": REFRESH + 'grant = "jwt_bearer"'},
        RS256,
        "client.authentication would present the grant's assertion a second time: let one of them do without",
    ),
    "claim of its own": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + "claims = { exp = 5 }",
        "assertion.claims.exp is a claim that every assertion has by itself",
    ),
    "head of its own": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + 'head = { kid = "1" }',
        "assertion.head.kid is what key_id says",
    ),
    "secret in a head": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + 'head = { x = "{client_secret}" }',
        "assertion.head.x places {client_secret} in an assertion, which anybody can read: use variables",
    ),
    "assertion that is over when it is sent": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + "lifetime_seconds = 60\nbackdate_seconds = 60",
        "assertion.backdate_seconds is not shorter than its life (60): it would be over when it is sent",
    ),
    "signing key as client secret": (
        {"refresh": REFRESH + 'grant = "jwt_bearer"'},
        RS256,
        "client.authentication would send the app's secret, which is the signing key here",
    ),
    "signing key in a template": (
        {"client": 'authentication = "private_key_jwt"'},
        RS256 + '[refresh.parameters]\nkey = "{client_secret}"',
        "assertion.algorithm makes the app's secret a signing key, and a template sends it",
    ),
    "computed for nobody": (
        {},
        '[computed.digest]\nkind = "sha256"\nof = "{client_secret}"',
        "computed.digest is computed but no template uses it",
    ),
    "computed from itself": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "sha256"\nof = "{a}"',
        "computed.a.of is computed from itself",
    ),
    "computed from what comes after": (
        {},
        (
            '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "sha256"\nof = "{b}"\n'
            '[computed.b]\nkind = "base64"\nof = "{a}"'
        ),
        "computed.a.of uses {b}, which is computed after it: define that one before",
    ),
    "computed under a variable's name": (
        {},
        '[refresh.headers]\nX-A = "{client_id}"\n[computed.client_id]\nkind = "random"',
        "computed.client_id has the name of a variable: call it something else",
    ),
    "digest of nothing": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "sha256"',
        "computed.a.of is missing: sha256 needs something to work on",
    ),
    "random number of something": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "random"\nof = "x"',
        "computed.a.of has no meaning for the kind 'random'",
    ),
    "keyed digest without a key": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "hmac_sha256"\nof = "x"',
        "computed.a.key is missing: without one it is sha256",
    ),
    "key of a plain digest": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "sha256"\nof = "x"\nkey = "y"',
        "computed.a.key has no meaning for the kind 'sha256'",
    ),
    "unit of a digest": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "sha256"\nof = "x"\nunit = "seconds"',
        "computed.a.unit has no meaning for the kind 'sha256'",
    ),
    "encoding of a moment": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "timestamp"\nencoding = "hex"',
        "computed.a.encoding has no meaning for the kind 'timestamp'",
    ),
    "base64 that is hex": (
        {},
        '[refresh.headers]\nX-A = "{a}"\n[computed.a]\nkind = "base64"\nof = "x"\nencoding = "hex"',
        "computed.a.encoding is 'hex', but the kind is 'base64'",
    ),
    "names of what is not sent": (
        NOBODY,
        '[refresh.names]\nclient_secret = "secret"',
        "refresh.names.client_secret renames what this request does not send",
    ),
    "names of what a template places": (
        {},
        '[refresh.names]\nrefresh_token = "token"\n[refresh.parameters]\nold = "{refresh_token}"',
        "refresh.names.refresh_token renames what this request does not send",
    ),
    "dotted name in a form": (
        {},
        '[refresh.names]\nclient_id = "client.id"',
        "refresh.names.client_id leads with 'client.id' into an object, which only a JSON body has",
    ),
    "dotted parameter in a query": (
        {"refresh": REFRESH + 'method = "GET"'},
        '[refresh.parameters]\n"a.b" = "1"',
        "refresh.parameters.\"a.b\" leads with 'a.b' into an object, which only a JSON body has",
    ),
    "dotted name inside another": (
        {"refresh": REFRESH + 'body = "json"'},
        '[refresh.parameters]\n"client_id.kind" = "1"',
        "refresh.parameters.\"client_id.kind\" is inside 'client_id', which is sent as text",
    ),
    "dotted name with an empty part": (
        {"refresh": REFRESH + 'body = "json"'},
        '[refresh.parameters]\n"a..b" = "1"',
        "refresh.parameters.\"a..b\" has an empty part: 'a..b'",
    ),
    "parameters without a body": (
        EMPTY_BODY,
        IN_HEADER + '[refresh.parameters]\na = "1"',
        "refresh.parameters has no meaning when the body is 'none': nothing is sent as a parameter",
    ),
    "names without a body": (
        EMPTY_BODY,
        IN_HEADER + '[refresh.names]\nscope = "s"',
        "refresh.names has no meaning when the body is 'none': nothing is sent as a parameter",
    ),
    "no place for the refresh token": (
        EMPTY_BODY,
        "",
        "refresh.body leaves no place for the refresh token: put {refresh_token} into a header",
    ),
    "no place for the secret": (
        {"refresh": REFRESH + 'body = "none"'},
        IN_HEADER,
        "refresh.body leaves no place for what client_secret_post sends",
    ),
    "names where nothing is asked": (
        {**NOBODY, "refresh": 'grant = "none"'},
        '[refresh.names]\nscope = "s"',
        "refresh.names has no meaning when the grant is 'none'",
    ),
    "endpoint where nothing is asked": (
        {**NOBODY, "refresh": REFRESH + 'grant = "none"'},
        "",
        "refresh.endpoint has no meaning when the grant is 'none'",
    ),
    "no endpoint": (
        {"refresh": 'method = "PUT"'},
        "",
        "refresh.endpoint is missing: without one, grant has to be 'none'",
    ),
    "exchange of an unnamed kind": (
        {"refresh": REFRESH + 'grant = "token_exchange"'},
        "",
        "refresh.parameters.subject_token_type is missing: RFC 8693 requires it of a token exchange",
    ),
    "client that nobody knows": (
        {**NOBODY, "refresh": REFRESH + 'grant = "client_credentials"'},
        "",
        "client.authentication is 'none', and the grant client_credentials presents nothing else",
    ),
    "id where nothing is asked": (
        {"client": 'authentication = "none"\nsend_id = true', "refresh": 'grant = "none"'},
        "",
        "client.send_id has no meaning when the grant is 'none'",
    ),
    "id without a body": (
        {"client": 'authentication = "none"\nsend_id = true', "refresh": REFRESH + 'body = "none"'},
        IN_HEADER,
        "client.send_id has no meaning when the body is 'none'",
    ),
    "certificate of nobody": (
        {"client": 'authentication = "none"\ncertificate = true\nsend_id = false'},
        "",
        "client.send_id has to be true: a certificate alone needs the client id (RFC 8705 section 2)",
    ),
    "certificate for nothing": (
        {"client": 'authentication = "none"\ncertificate = true', "refresh": 'grant = "none"'},
        "",
        "client.certificate has no meaning: nothing is ever asked",
    ),
}
