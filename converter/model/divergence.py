"""How far a model's output is from another's: the Kullback-Leibler divergence of what they say comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .decoder import full_float32
from .output_head import OutputHead

if TYPE_CHECKING:
    import torch

NOTICED = 0.01  # of a KL: by so much, two are told apart
NOTHING = 1e-3  # nats a token: where a model is sure of what to say, KL is all but 0, and changes by less with anything
_BLOCK = 512  # tokens at a time: a row has a number for each token of the vocabulary


@dataclass(frozen=True)
class Divergence:
    """The mean KL(original || other) in nats a token, and *top1*, the share of places where both prefer the same token.

    It is over *tokens* places of samples that count the same, however long they are: a question with an answer of one
    letter tells as much of a model as a page of text.
    """

    kl: float
    top1: float
    tokens: int

    def is_nearer(self, other: Divergence) -> bool:
        """Whether this is nearer to the original than *other*, by more than :data:`NOTICED` and :data:`NOTHING`."""
        return self.kl < min(other.kl * (1 - NOTICED), other.kl - NOTHING)

    def to_json(self) -> dict[str, float]:
        """The figures, rounded to four significant digits."""
        return {"kl": float(f"{self.kl:.4g}"), "top1": float(f"{self.top1:.4g}")}

    @staticmethod
    def mean(samples: Sequence[Compared]) -> Divergence:
        """Over *samples*, each by the mean over its own places."""
        kl = sum(float(one.total) / one.tokens for one in samples) / len(samples)
        top1 = sum(int(one.equal) / one.tokens for one in samples) / len(samples)
        return Divergence(kl, top1, sum(one.tokens for one in samples))


@dataclass(frozen=True)
class Compared:
    """The sum *total* [] of the divergences of *tokens* places, and how many are *equal* [] in what they prefer.

    *gradient* [tokens, hidden_size] is that of *total* with respect to the other's states.
    """

    total: torch.Tensor
    equal: torch.Tensor
    tokens: int
    gradient: torch.Tensor | None = None

    @staticmethod
    def together(parts: Sequence[Compared]) -> Compared:
        """*parts* as if they were one sample, without their gradients."""
        import torch

        total, equal = (torch.stack(figures).sum() for figures in ([p.total for p in parts], [p.equal for p in parts]))
        return Compared(total, equal, sum(part.tokens for part in parts))


def compare(head: OutputHead, original: torch.Tensor, other: torch.Tensor, *, with_gradient: bool = False) -> Compared:
    """KL(original || other) of what *head* makes of states [tokens, hidden_size] behind the final norm, in float32."""
    import torch

    with torch.no_grad(), full_float32():
        total = torch.zeros((), dtype=torch.float64, device=other.device)
        equal = torch.zeros((), dtype=torch.int64, device=other.device)
        pulled = []
        for first in range(0, len(other), _BLOCK):
            wanted, found = (
                head.logits(states[first : first + _BLOCK].float()).log_softmax(-1) for states in (original, other)
            )
            equal += (wanted.argmax(-1) == found.argmax(-1)).sum()
            probabilities = wanted.exp()
            total += wanted.sub_(found).mul_(probabilities).sum(-1).double().sum()
            if with_gradient:  # of the logits, it is the difference of the probabilities
                pulled.append(head.pull_back(found.exp_().sub_(probabilities)))
        return Compared(total, equal, len(other), torch.cat(pulled) if with_gradient else None)
