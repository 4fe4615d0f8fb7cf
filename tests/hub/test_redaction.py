"""What is taken out of messages before they are shown."""

from __future__ import annotations

import logging

import pytest

from s4convert.redaction import RedactingFormatter, redact

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}!", "token <hidden>!"),
        ("authorization: Bearer abcdef", "authorization: Bearer <hidden>"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer <hidden>'}"),
        ("(b'authorization', b'Bearer abc')", "(b'authorization', b'Bearer <hidden>')"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic <hidden>"),
        ("http://me:secret@127.0.0.1:80/x", "http://<hidden>@127.0.0.1:80/x"),
        ("PUT http://h/lfs/a?X-Amz-Signature=12ab&x=1 failed", "PUT http://h/lfs/a?... failed"),
        ('"GET /lfs/a?sig=12%2Fab HTTP/1.1" 200', '"GET /lfs/a?... HTTP/1.1" 200'),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text", ["org/name: no such file", "is this IN? yes", "a = b", "config.json?", "hf_hub_download_of_many_files()"]
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_token_of_any_form_is_hidden_where_the_environment_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "my own token")
    assert redact("sent my own token there") == "sent <hidden> there"


def test_tracebacks_of_log_messages_are_redacted() -> None:
    formatter = RedactingFormatter("%(message)s")
    error = ValueError(f"no {TOKEN}")
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "at %s", (TOKEN,), (ValueError, error, None))
    assert TOKEN not in formatter.format(record)
    assert "ValueError: no <hidden>" in formatter.format(record)
