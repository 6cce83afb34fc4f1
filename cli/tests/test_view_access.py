"""Secrets, and the hosts and origins that a page may come from."""

import pytest
from krabby_cli.errors import UsageError
from krabby_cli.view.access import TOKEN_ENV, Tokens, host_allowed, origin_allowed, url

SECRET = "abcdefghijklmnopqrstuvwxyz"


def test_each_secret_has_its_role_and_a_wrong_one_has_none():
    tokens = Tokens(SECRET)
    assert tokens.role(SECRET) == "operate"
    assert tokens.role(tokens.see) == "see"
    assert tokens.see != SECRET
    for wrong in ("", SECRET[:-1], SECRET + "a", None, 7, "ü" * 26):
        assert tokens.role(wrong) is None


def test_every_start_has_another_secret(monkeypatch):
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    assert Tokens.make().operate != Tokens.make().operate


def test_a_secret_that_can_be_guessed_is_refused(monkeypatch):
    monkeypatch.setenv(TOKEN_ENV, "robot")
    with pytest.raises(UsageError, match="KRABBY_VIEW_TOKEN has 5 characters"):
        Tokens.make()


def test_the_secret_is_in_the_part_of_the_address_that_is_not_sent():
    assert url("0.0.0.0", 8088, SECRET) == f"http://127.0.0.1:8088/#{SECRET}"
    assert url("::1", 80, SECRET) == f"http://[::1]:80/#{SECRET}"


@pytest.mark.parametrize(
    ("host", "loopback", "allowed"),
    [
        ("127.0.0.1:8088", True, True),
        ("localhost:8088", True, True),
        ("[::1]:8088", True, True),
        ("192.168.1.7:8088", True, False),
        ("192.168.1.7:8088", False, True),
        ("crab.local:8088", False, True),
        ("rebound.example:8088", True, False),
        ("rebound.example:8088", False, False),
        ("127.0.0.1.example", False, False),
        ("[::1", True, False),
        ("", True, False),
        (None, True, False),
    ],
)
def test_a_name_that_was_not_given_can_be_rebound_and_is_refused(host, loopback, allowed):
    assert host_allowed(host, loopback=loopback, names=frozenset({"crab.local"})) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8088", True),
        ("https://127.0.0.1:8088", True),
        ("http://127.0.0.1:9999", False),
        ("http://localhost:8088", False),
        ("http://example.org", False),
        ("null", False),
        ("file://", False),
    ],
)
def test_another_sites_page_is_refused(origin, allowed):
    assert origin_allowed(origin, "127.0.0.1:8088") is allowed
