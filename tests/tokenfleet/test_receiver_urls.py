"""Where webhooks may be sent, as far as a URL shows it."""

from __future__ import annotations

import pytest

from tokenfleet.errors import UserError
from tokenfleet.receiver_urls import check_url, is_public

NOT_PUBLIC = "is not an address of the public internet"


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example/hooks?customer=17",
        "https://receiver.example:8443/",
        "https://receiver.example./",
        "https://xn--bcher-kva.example/",
        "https://93.184.215.14/",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        "https://10.example/",
    ],
)
def test_what_names_a_place_on_the_public_internet_is_taken(url: str) -> None:
    assert check_url(url, allow_private=False) == url


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "017700000001", "0",
        "10.0.0.1", "169.254.169.254", "0.0.0.0", "[::]", "[::1]", "[::ffff:10.0.0.1]", "[::ffff:a00:1]", "[fd00::1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "localhost", "LOCALHOST.", "me.localhost",
    ],
)  # fmt: skip
def test_a_place_of_our_own_is_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(UserError, match=NOT_PUBLIC):
        check_url(f"https://{host}/hook", allow_private=False)
    assert check_url(f"https://{host}/hook", allow_private=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://receiver.example/", "https only"),
        ("//receiver.example/", "https only"),
        ("file:///etc/passwd", "https only"),
        ("https://receiver.example:99999/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https:///hook", "names no host"),
        ("https://me:planted-password@receiver.example/", "no user, password or fragment"),
        ("https://receiver.example@127.0.0.1/", "no user, password or fragment"),
        ("https://127.0.0.1\\@receiver.example/", "no user, password or fragment"),
        ("https://receiver.example/#part", "no user, password or fragment"),
        ("https://\uff11\uff12\uff17.0.0.1/", "printable ASCII"),
        ("https://receiver.example/\r\nHost: other", "printable ASCII"),
        ("https://receiver.example/" + "x" * 2048, "at most 2048 characters"),
    ],
)
def test_anything_else_is_refused_in_a_sentence_without_the_password(url: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        check_url(url, allow_private=False)
    assert words in str(refused.value)
    assert "planted-password" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "receiver.example", "127.0.0.1/8", "::1%lo", "1.2.3"])
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert not is_public(text)
