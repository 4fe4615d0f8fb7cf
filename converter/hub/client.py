"""Sets up the Hub's client: its messages, its progress bars, and what an interrupt does."""

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


# The context that a transfer runs in; its argument tells the state after an interrupt. The client does not end a
# transfer before its current files are complete, so the command line sets a context that ends the process at once.
interruptible: ContextVar[Callable[[str], AbstractContextManager[None]]] = ContextVar(
    "interruptible", default=lambda then: nullcontext()
)


@contextmanager
def hub_client(*, progress: bool, then: str) -> Iterator[HfApi]:
    """The client; with *progress*, it shows bars if stderr is a terminal. *then* tells the state after an interrupt.

    The client reads its environment variables (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
    """
    from huggingface_hub import HfApi

    if logging.getLogger().handlers:  # otherwise the client's messages would also go to stderr
        logging.getLogger("huggingface_hub").handlers.clear()
    with interruptible.get()(then), _bars(shown=progress and sys.stderr is not None and sys.stderr.isatty()):
        yield HfApi(library_name="s4convert", library_version=__version__)


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
