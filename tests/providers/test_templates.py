"""Templates: whatever a variable holds, the request stays on the host that the definition allows."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.patterns import Pattern
from providers.templates import (
    Template,
    UndeclaredVariableError,
    VariableKind,
    VariableRule,
    placeholders,
    text_template,
    url_template,
)


def rule(name: str, kind: VariableKind, *patterns: str) -> VariableRule:
    return VariableRule(name, kind, patterns=tuple(map(Pattern.compile, patterns)))


RULES = {
    one.name: one
    for one in (
        rule("tenant", "text"),
        rule("company", "digits"),
        rule("shop", "label"),
        rule("host", "host"),
        rule("dc", "host", "com", "eu", "com.au"),
        rule("base", "url"),
    )
}


def compiled(text: str, *, allow_http: bool = False) -> Template:
    return url_template(text, RULES, allow_http=allow_http)


def expand(text: str, values: dict[str, str], *, allow_http: bool = False) -> str:
    template = compiled(text, allow_http=allow_http)
    checked = {name: RULES[name].check(value, allow_http=allow_http) for name, value in values.items()}
    return template.expand(checked)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("https://a.example/token", {}, "https://a.example/token"),
        ("https://a.example:8443/token?x=1", {}, "https://a.example:8443/token?x=1"),
        (
            "https://a.example/{tenant}/token",
            {"tenant": "a b/../c?d#e"},
            "https://a.example/a%20b%2F..%2Fc%3Fd%23e/token",
        ),
        ("https://a.example/t?c={tenant}", {"tenant": "a&b=c"}, "https://a.example/t?c=a%26b%3Dc"),
        (
            "https://a.example/{company}/{tenant}",
            {"company": "12", "tenant": "é"},
            "https://a.example/12/%C3%A9",
        ),
        ("https://{shop}.shops.example/t", {"shop": "ACME-1"}, "https://acme-1.shops.example/t"),
        ("https://{host}/t", {"host": "Login.Example.com"}, "https://login.example.com/t"),
        ("https://accounts.example.{dc}/t", {"dc": "com.au"}, "https://accounts.example.com.au/t"),
        ("https://{shop}.example.{dc}/t", {"shop": "a", "dc": "eu"}, "https://a.example.eu/t"),
        ("{base}", {"base": "https://x.example/a/b?c=d"}, "https://x.example/a/b?c=d"),
        ("{base}/userinfo", {"base": "https://x.example/"}, "https://x.example/userinfo"),
    ],
)
def test_values_are_put_in_their_place(text: str, values: dict[str, str], expected: str) -> None:
    assert expand(text, values) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://a.example/token", "in the clear"),
        ("ftp://a.example/token", "must begin with https"),
        ("a.example/token", "must begin with https"),
        ("{tenant}/token", "must begin with https"),
        ("https:///token", "has no host"),
        ("https://A.example/", "host that is not made of"),
        ("https://user@a.example/", "host that is not made of"),
        ("https://a.example\\@b.example/", "host that is not made of"),
        ("https://a.example:x/", "host that is not made of"),
        ("https://a.example:{company}/", "host that is not made of"),
        ("https://a.example/a b", "character that a URL cannot have"),
        ("https://a.example/a#b", "fragment"),
        ("https://{tenant}.example.com/", "kind 'label' or 'host'"),
        ("https://login.{host}/", "lets {host} end its host"),
        ("https://login.{shop}/", "lets {shop} end its host"),
        ("https://{shop}/", "lets {shop} end its host"),
        ("https://{shop}{dc}/", "lets {dc} end its host"),
        ("https://{shop}.{dc}/", "lets {dc} end its host"),
        ("https://{shop}.com/", "does not end in a domain name"),
        ("https://{shop}example.com/", "does not end in a domain name"),
        ("https://a.example/{base}", "after its beginning"),
        ("{base}userinfo", "must go on"),
        ("{base}/{tenant}", "must go on"),
        ("https://a.example/{", "a brace"),
        ("https://a.example/{a-b}", "a brace"),
        ("https://a.example/{{tenant}}", "cannot have unencoded"),
        ("https://{{tenant}}.example/", "host that is not made of"),
    ],
)
def test_templates_that_could_leave_their_host_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compiled(text)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("{{ viewer {{ id }} }}", "{ viewer { id } }"),
        ("{{{tenant}}}", "{acme}"),
        ("{{tenant}} is {tenant}", "{tenant} is acme"),
    ],
)
def test_a_brace_that_is_meant_is_written_twice(text: str, sent: str) -> None:
    assert text_template(text, RULES).expand({"tenant": "acme"}) == sent


@pytest.mark.parametrize("text", ["{ viewer }", "{{tenant}", "{tenant}}", "}"])
def test_a_lone_brace_is_told_how_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \{\{ and \}\} for braces"):
        text_template(text, RULES)


def test_an_undeclared_variable_is_named() -> None:
    with pytest.raises(UndeclaredVariableError, match="tenat") as caught:
        compiled("https://a.example/{tenat}")
    assert caught.value.name == "tenat"


def test_http_is_for_those_who_allow_it() -> None:
    assert expand("http://127.0.0.1:80/t", {}, allow_http=True) == "http://127.0.0.1:80/t"
    assert expand("{base}", {"base": "http://127.0.0.1:80/t"}, allow_http=True) == "http://127.0.0.1:80/t"
    with pytest.raises(ValueError, match="must be an https URL"):
        expand("{base}", {"base": "http://127.0.0.1:80/t"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", ""),
        ("tenant", "."),
        ("tenant", ".."),
        ("tenant", "a\nb"),
        ("tenant", "\ud800"),
        ("tenant", "x" * 513),
        ("company", "12a"),
        ("company", ""),
        ("company", "\N{ARABIC-INDIC DIGIT ONE}"),
        ("shop", "a.b"),
        ("shop", "-a"),
        ("shop", "evil.example/"),
        ("host", "a.example/"),
        ("host", "a.example:80"),
        ("host", "u@a.example"),
        ("host", "a..b"),
        ("host", "a.example\n"),
        ("host", "\N{LATIN SMALL LETTER LONG S}.example"),
        ("dc", "evil"),
        ("dc", "com.evil.example"),
        ("base", "https://a.example/#x"),
        ("base", "https://u:p@a.example/"),
        ("base", "https://a.example:80@evil.example/"),
        ("base", "https://a.example\\.evil.example/"),
        ("base", "//a.example/"),
        ("base", "javascript:alert(1)"),
        ("base", "https://"),
    ],
)
def test_values_of_another_kind_are_refused_without_being_repeated(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"^must be") as caught:
        RULES[name].check(value, allow_http=False)
    assert len(value) < 4 or value not in str(caught.value)


def test_a_path_after_a_url_with_a_query_is_refused() -> None:
    with pytest.raises(ValueError, match="without a query"):
        expand("{base}/x", {"base": "https://a.example/?b=c"})


@given(st.text(max_size=40))
def test_no_value_leaves_the_host(value: str) -> None:
    for text, name, host in (
        ("https://a.example/{tenant}/token", "tenant", "a.example"),
        ("https://a.example/t?x={tenant}", "tenant", "a.example"),
        ("https://{shop}.shops.example/t", "shop", None),
        ("https://accounts.example.{dc}/t", "dc", None),
    ):
        try:
            url = urlsplit(expand(text, {name: value}))
        except ValueError:
            continue
        assert url.scheme == "https"
        assert url.hostname is not None
        assert url.fragment == ""
        if host is not None:
            assert url.netloc == host
            assert url.path.count("/") == text.count("/") - 2
        else:
            assert url.netloc.endswith((".shops.example", "accounts.example.com", ".eu", ".com.au"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ me {{ id }} }}", "{ me { id } }"),
        ("{{me{{id}}}}", "{me{id}}"),
        ("{{{name}}}", "{Ada}"),
        ("{name}{{name}}", "Ada{name}"),
    ],
)
def test_doubled_braces_stand_for_braces(text: str, expected: str) -> None:
    template = text_template(text, {"name": VariableRule("name", "text")})
    assert template.expand({"name": "Ada"}) == expected
    assert template.names == placeholders(text) == (frozenset({"name"}) if "Ada" in expected else frozenset())


@pytest.mark.parametrize("text", ["{", "}", "{ me }", "{{ me }", "{name}}", "{{{", "a}b"])
def test_a_single_brace_is_a_mistake(text: str) -> None:
    with pytest.raises(ValueError, match="brace"):
        text_template(text, {"name": VariableRule("name", "text")})


def test_a_url_has_no_braces_of_its_own() -> None:
    with pytest.raises(ValueError, match="character"):
        url_template("https://a.example/{{x}}", {}, allow_http=False)
