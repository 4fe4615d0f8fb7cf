"""What a training is asked for, what it came to, and the weights that it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Float32Array, decode
from ..choices import LEARNING_RATE, STEPS, TRAINED
from ..errors import UsageError, shown
from ..mask import HeadMask
from .figures import rounded


@dataclass(frozen=True)
class TrainingSettings:
    """*train* names the projections of kept heads that are trained, as letters; the rest of the model stays.

    *learning_rate* is that of the first steps; it falls to 0 along a cosine. With *self_answers*, the calibration
    questions have the original's own greedy answers in place of the file's.

    Raises:
        UsageError: a setting is out of range.
    """

    train: str = TRAINED[0]
    steps: int = STEPS
    learning_rate: float = LEARNING_RATE
    self_answers: bool = False

    def __post_init__(self) -> None:
        if self.train not in TRAINED:
            raise UsageError(f"`train` {shown(self.train)} is none of {', '.join(TRAINED)}")
        if self.steps < 1:
            raise UsageError(f"`steps` {self.steps}: take at least one")
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"`learning_rate` {self.learning_rate}: give a number above 0, up to 1")

    def to_json(self) -> dict[str, Any]:
        """The settings by their names."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class TrainedRows:
    """The rows of a projection's weight as they are stored in *dtype*; *read* gives *count* from *first* on."""

    dtype: str
    read: Callable[[int, int], bytes | bytearray]

    def values(self, first: int, count: int) -> Float32Array:
        """Rows [first, first + count) in float32, [count, columns]."""
        return decode(self.read(first, count), self.dtype).reshape(count, -1)


@dataclass(frozen=True)
class Check:
    """After *step* steps: the KL to the original on held-out samples, and its mean in training since the last check.

    *worse* names the parts of held-out samples that are further from the original than they were at the start.
    """

    step: int
    held_out: float
    training: float
    worse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """What became of a training by *settings*, on *num_samples* samples, judged by *num_held_out* others.

    KL is the Kullback-Leibler divergence from the original's output, in nats a token of text, over samples that count
    the same; *refit* is that of the least-squares refit that the training started from, *checks* are those on the way.
    Of those that make no part worse, the weights of the best are kept, those of *best_step*; 0 is the refit. It was
    computed in *dtype* on *device*.
    """

    settings: TrainingSettings
    num_samples: int
    num_held_out: int
    held_out_tokens: int
    refit: float
    checks: tuple[Check, ...]
    best_step: int
    device: str
    dtype: str

    @property
    def kl(self) -> float:
        """That of what is kept."""
        return next((check.held_out for check in self.checks if check.step == self.best_step), self.refit)

    def to_json(self) -> dict[str, Any]:
        """Settings and figures for a script to read."""
        return {
            **self.settings.to_json(),
            "num_samples": self.num_samples,
            "num_held_out": self.num_held_out,
            "held_out_tokens": self.held_out_tokens,
            "refit_kl": rounded(self.refit),
            "checks": [[check.step, rounded(check.held_out), rounded(check.training)] for check in self.checks],
            "worse": {str(check.step): list(check.worse) for check in self.checks if check.worse},
            "best_step": self.best_step,
            "kl": rounded(self.kl),
            "device": self.device,
            "dtype": self.dtype,
        }

    def to_text(self) -> str:
        """The outcome in a line."""
        steps = self.checks[-1].step if self.checks else 0
        early = "" if steps == self.settings.steps else f" of {self.settings.steps} (it got no better)"
        text = (
            f"{steps} steps{early} on {', '.join(self.settings.train)} of kept heads, {self.num_samples} samples; KL "
            f"to the original on {self.num_held_out} others: {self.refit:.4g} by least squares, "
        )
        if not self.best_step:
            best = min(self.checks, key=lambda check: check.held_out)
            worse = f", but further on {' and '.join(best.worse)}" if best.held_out < self.refit else ""
            return f"{text}{best.held_out:.4g} trained{worse}, so the least-squares refit stays"
        return f"{text}{self.kl:.4g} trained (step {self.best_step})"


def trained_bytes(checkpoint: Checkpoint, mask: HeadMask, train: str) -> int:
    """What the weights of a training of the projections *train* take, at the most."""
    rows = (checkpoint.projection(layer, name, "weight") for layer in mask.touched_layers for name in train)
    return sum(part.count * part.tensor.row_bytes for part in rows if part is not None)
