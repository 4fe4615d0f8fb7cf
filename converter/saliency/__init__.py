"""Saliency: a score for every head, higher means more worth keeping.

:func:`score_heads` is all that a command needs; :data:`METRICS` names the metrics. The command's options map to its
arguments one to one: ``CKPT`` (opened), ``--metric``, ``--calibration FILE``, ``--images DIR``, ``--num-samples N``,
``--gamma X``, ``--seed N``, ``--device cpu|cuda``, and ``progress`` unless ``--quiet``.
"""

from .metrics import METRICS
from .score import score_heads

__all__ = ["METRICS", "score_heads"]
