"""What must not be shown: access tokens of the Hub, and the signatures in the URLs that it hands out."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from pathlib import Path

_HIDDEN = "<hidden>"

# The Hub's own tokens, and whatever else is sent to prove who someone is.
_TOKEN = re.compile(r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|hf_(?:oauth|jwt)_[A-Za-z0-9._-]{16,})")
_AUTHORIZATION = re.compile(
    r"(?i)(\b(?:proxy-)?authorization\b['\"]?\s*[:=,]\s*(?:b(?=['\"]))?['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",)]+"
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\",)]+")
_USER_INFO = re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_QUERY = re.compile(r"\?[\w%.~-]+=[^\s'\"<>)]*")


def redact(text: str) -> str:
    """*text* without tokens, credentials in headers and URLs, and the queries of URLs, which may be signatures."""
    for token in _known_tokens():
        text = text.replace(token, _HIDDEN)
    text = _TOKEN.sub(_HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{_HIDDEN}", text)
    text = _BEARER.sub(rf"\1{_HIDDEN}", text)
    text = _USER_INFO.sub(_HIDDEN, text)
    return _QUERY.sub("?...", text)


class RedactingFormatter(logging.Formatter):
    """A formatter of one line for a message, and whatever a traceback takes, all of it redacted."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join(super().formatMessage(record).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _known_tokens() -> set[str]:
    """The tokens that the Hub's client may have read: from the environment, and from its file once it is loaded."""
    tokens = {os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    client = sys.modules.get("huggingface_hub.constants")
    if client is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody is logged in
            tokens.add(Path(client.HF_TOKEN_PATH).read_text().strip())
    return {token for token in tokens if len(token) >= 4}  # shorter ones would stand in any text
