"""Drawings as the vision tower's input: as questions show them, or changed at random for training, on one device."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from benchmarks.pretrained.architecture import IMAGE_MEAN, IMAGE_STD
from benchmarks.pretrained.drawings import DRAWING_SIZE, IMAGE_SIZE, Drawings

MOST_DRAWINGS = 8  # of a thing


class Pictures:
    """The drawings of *drawings* on *device*."""

    def __init__(self, drawings: Drawings, device: torch.device) -> None:
        self._pixels = torch.from_numpy(drawings.pixels).permute(0, 3, 1, 2).contiguous().to(device)
        self.things = torch.from_numpy(drawings.things).long().to(device)
        self._mean, self._std = (torch.tensor(part, device=device).view(3, 1, 1) for part in (IMAGE_MEAN, IMAGE_STD))
        num_things = len(drawings.names)
        table = torch.zeros(num_things, MOST_DRAWINGS, dtype=torch.long)
        counts = torch.zeros(num_things, dtype=torch.long)
        for row, (thing, held_out) in enumerate(zip(drawings.things.tolist(), drawings.held_out.tolist(), strict=True)):
            if not held_out:
                table[thing, counts[thing]] = row
                counts[thing] += 1
        self._table, self._counts = table.to(device), counts.to(device)
        self.held_out = torch.from_numpy(drawings.held_out.nonzero()[0]).to(device)

    def any_drawing(self, things: torch.Tensor) -> torch.Tensor:
        """A drawing for training of each of *things*, drawn at random."""
        chosen = (torch.rand(len(things), device=things.device) * self._counts[things]).long()
        return self._table[things, chosen]

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """The drawings *rows* on white, normalised [batch, 3, 72, 72]."""
        margin = (IMAGE_SIZE - DRAWING_SIZE) // 2
        pixels = functional.pad(self._pixels[rows].float() / 255, (margin,) * 4)
        return self._normalised(pixels[:, :3] + 1 - pixels[:, 3:])

    def changed(self, rows: torch.Tensor) -> torch.Tensor:
        """The drawings *rows*: turned, moved, scaled, mirrored and of other colours, on any background."""
        count, device = len(rows), rows.device

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, *shape, device=device)

        def happens(share: float) -> torch.Tensor:
            return uniform(0, 1, 1, 1, 1) < share

        angle, scale = uniform(-0.3, 0.3), uniform(0.7, 1.1) * DRAWING_SIZE / IMAGE_SIZE
        cos, sin, stretch = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.exp(uniform(-0.12, 0.12))
        mirror, moved = torch.where(uniform(0, 1) < 0.3, -1.0, 1.0), uniform(-0.15, 0.15, 2)
        entries = (cos * mirror * stretch, -sin, moved[:, 0], sin * mirror, cos / stretch, moved[:, 1])
        grid = functional.affine_grid(
            torch.stack(entries, 1).view(-1, 2, 3), [count, 4, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
        )
        pixels = functional.grid_sample(self._pixels[rows].float() / 255, grid, align_corners=False)
        colour, alpha = pixels[:, :3], pixels[:, 3:]

        # The hue turns around the grey axis.
        grey = colour.mean(1, keepdim=True)
        red, green, blue = (colour - grey).unbind(1)
        across = torch.stack([blue - green, red - blue, green - red], 1) / math.sqrt(3)
        turn = uniform(-0.4, 0.4, 1, 1, 1)
        saturation = uniform(0.6, 1.4, 1, 1, 1) * ~happens(0.1)
        colour = grey + saturation * (torch.cos(turn) * (colour - grey) + torch.sin(turn) * across)
        contrast, brightness = uniform(0.7, 1.3, 1, 1, 1), uniform(-0.15, 0.15, 1, 1, 1)
        colour = (colour - 0.5 * alpha) * contrast + (0.5 + brightness) * alpha
        colour = torch.minimum(colour.clamp(min=0), alpha)

        background = torch.where(happens(0.5), 1.0, uniform(0, 1, 3, 1, 1))
        picture = colour + (1 - alpha) * background
        # A patch of one colour over a part, for a quarter of them.
        at = torch.linspace(0, 1, IMAGE_SIZE, device=device)
        inside = (at - uniform(0, 1, 2, 1)).abs() < uniform(0.05, 0.2, 2, 1)
        patch = inside[:, 0, :, None] & inside[:, 1, None, :]
        picture = torch.where(patch[:, None] & happens(0.25), uniform(0, 1, 3, 1, 1), picture)
        picture = picture + uniform(0, 0.05, 1, 1, 1) * torch.randn_like(picture)
        return self._normalised(picture.clamp(0, 1))

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self._mean) / self._std
