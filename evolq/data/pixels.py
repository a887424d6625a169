"""Images as bytes: kept as they were decoded, normalized batch by batch where a network needs them.

A quarter of the memory of normalized ones, or none: pixels beyond a share of the memory lie in a
file (`evolq.on_disk`), of which batches are read. They are read one after the other, so that the
operating system has the next one ready before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from evolq.on_disk import DiskArray


class Images(Protocol):
    """Images (n, channels, height, width), float32: a Tensor, or what gives one for a slice."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, channels, height, width)."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return some images, normalized."""

    def to(self, device: torch.device | str, /) -> Images:
        """Return the same images, slices of which are on a device."""


def batches(images: Images, size: int) -> Iterator[Tensor]:
    """Yield images, `size` at a time."""
    return (images[first : first + size] for first in range(0, len(images), size))


@dataclass(frozen=True, eq=False, repr=False)
class Pixels:
    """Images (n, channels, height, width) that are bytes, and float32 when a slice is taken.

    Attributes:
        values: uint8.
        mean: of each channel, in units of full white.
        std: likewise.
        device: where slices are.
    """

    values: Tensor | DiskArray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device | str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, channels, height, width)."""
        return tuple(self.values.shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.values)

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return some images, or all with `[:]`: a Tensor, normalized on the device."""
        values = self.values[part]
        values = values if isinstance(values, Tensor) else torch.from_numpy(values)
        return normalize(values.to(self.device), self.mean, self.std)

    def to(self, device: torch.device | str) -> Pixels:
        """Return the same images, whose slices are on a device; the bytes stay where they are."""
        return replace(self, device=device)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 pixels (n, c, h, w) as float32: over 255, minus mean (c,), over std (c,)."""
    shape = (1, -1, 1, 1)
    shift, scale = (torch.tensor(v, device=pixels.device).view(shape) for v in (mean, std))
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)
