"""What the caller knows and a mask file may not say: the model's geometry, a polarity, a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.checkpoint.geometry import Geometry
from converter.errors import MaskError
from converter.mask.layer_lists import Polarity

if TYPE_CHECKING:
    from converter.mask.schedules import Schedule


@dataclass(frozen=True)
class Hints:
    """The geometry always; *polarity* for 0/1 flags and *schedule* for scores, where the file needs them."""

    geometry: Geometry
    polarity: Polarity | None = None
    schedule: Schedule | None = None

    def needed_polarity(self) -> Polarity:
        """The polarity, of which the file does not speak; MaskError where it is not given."""
        if self.polarity is None:
            raise MaskError(
                "holds 0/1 flags and does not say which are pruned; say what a 1 means with "
                "--mask-polarity keep or --mask-polarity prune"
            )
        return self.polarity

    def refuse_polarity(self, what: str) -> None:
        """Raise MaskError if a polarity is given for a file of *what*, where it has nothing to say."""
        if self.polarity is not None:
            raise MaskError(f"holds {what}, so --mask-polarity has nothing to say; leave it out")

    def refuse_schedule(self, what: str) -> None:
        """Raise MaskError if a schedule is given for a file of *what*, which says itself what is pruned."""
        if self.schedule is not None:
            raise MaskError(f"holds {what}, not scores; leave --rate and --schedule out")
