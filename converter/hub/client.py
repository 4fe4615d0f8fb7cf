"""The Hub's client, set up so that it keeps to our ways of showing messages and progress."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# What a transfer runs in: told how things stand if it is interrupted. The client lets a transfer end only when every
# file that it is at has ended, so the command line puts in here what ends the process at once.
interruptible: ContextVar[Callable[[str], AbstractContextManager[None]]] = ContextVar(
    "interruptible", default=lambda then: nullcontext()
)


@contextmanager
def hub_client(*, progress: bool, then: str) -> Iterator[HfApi]:
    """The client; its bars show only where *progress* asks for them and stderr is a terminal.

    *then* says how things stand if it is interrupted.

    Its own environment variables (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE) hold for it.
    """
    from huggingface_hub import HfApi

    _hand_over_messages()
    with interruptible.get()(then), _bars(shown=progress and sys.stderr is not None and sys.stderr.isatty()):
        yield HfApi(library_name="s4convert", library_version=__version__)


def _hand_over_messages() -> None:
    """Where somebody has set up logging, the client's messages go there, and not past it to stderr as well."""
    if logging.getLogger().handlers:
        logging.getLogger("huggingface_hub").handlers.clear()


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    is_settled = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    if shown or is_settled:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
