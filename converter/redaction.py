"""Hides secrets in messages: access tokens of the Hub, and signatures in its URLs."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from pathlib import Path

_HIDDEN = "<hidden>"

# The Hub's tokens, and other credentials.
_TOKEN = re.compile(r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|hf_(?:oauth|jwt)_[A-Za-z0-9._-]{16,})")
_AUTHORIZATION = re.compile(
    r"(?i)(\b(?:proxy-)?authorization\b['\"]?\s*[:=,]\s*(?:b(?=['\"]))?['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",)]+"
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\",)]+")
_USER_INFO = re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_QUERY = re.compile(r"\?[\w%.~-]+=[^\s'\"<>)]*")


def redact(text: str) -> str:
    """*text* without tokens, without credentials in headers and URLs, and without the queries of URLs."""
    for token in _known_tokens():
        text = text.replace(token, _HIDDEN)
    text = _TOKEN.sub(_HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{_HIDDEN}", text)
    text = _BEARER.sub(rf"\1{_HIDDEN}", text)
    text = _USER_INFO.sub(_HIDDEN, text)
    return _QUERY.sub("?...", text)


class RedactingFormatter(logging.Formatter):
    """Formats a message on one line, and redacts it and its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join(super().formatMessage(record).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _known_tokens() -> set[str]:
    """The tokens that the Hub's client may use: from the environment and, once it is imported, from its file."""
    tokens = {os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    client = sys.modules.get("huggingface_hub.constants")
    if client is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody is logged in
            tokens.add(Path(client.HF_TOKEN_PATH).read_text().strip())
    return {token for token in tokens if len(token) >= 4}  # shorter ones may be in any text
