"""Changes that mean nothing, in the sixth digit, and what a search gains by them.

A deep quantized network is chaotic: such a change flips a few codes, which flip more in every layer
after them. How far losses scatter over jitters is their numerical noise. Pixels and the scales of
activations are jittered. Pixels alone would not do: where they are 8-bit values, the quantizer of
the input takes the jitter away before it meets another layer. Scales of weights stay, since codes
of many weights lie so near a border that a relative 1e-6 changes some of them: a step, if a small
one, in the space that is scanned and searched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from evolq.data.pixels import Images
from evolq.losses.objective import Forward, Objective, TestEvaluation
from evolq.points import Point, displace

Measure = TypeVar("Measure", Objective, TestEvaluation)

# Far above the rounding of float32 (6e-8), far below what an 8-bit image resolves (4e-3).
RELATIVE = 1e-6

# Normal numbers lie within, for up to 1e300 of them; and the step of the integral, which falls
# exponentially with it (Trefethen and Weideman 2014, "The exponentially convergent trapezoidal
# rule", SIAM Review 56).
_REACH, _STEP = 40.0, 0.005


@dataclass(frozen=True, eq=False)
class JitteredImages:
    """Images (n, channels, height, width) with each pixel changed a little, the same each time.

    Attributes:
        images: as they were.
        relative: standard deviation of the relative change of a pixel.
        seed: of the first image's changes; that of the next one is one more.
    """

    images: Images
    relative: float
    seed: int

    @property
    def shape(self) -> Sequence[int]:
        """(n, channels, height, width)."""
        return self.images.shape

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def to(self, device: torch.device | str, /) -> JitteredImages:
        """Return the same images, slices of which are on a device."""
        return replace(self, images=self.images.to(device))

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return some images, changed."""
        images = self.images[part]
        first, _, _ = part.indices(len(self))
        normal = [
            torch.randn(image.shape, generator=torch.Generator().manual_seed(self.seed + number))
            for number, image in enumerate(images, first)
        ]
        return images * (1 + self.relative * torch.stack(normal).to(images))


def jittered(
    measure: Measure, point: Point, generator: torch.Generator, relative: float = RELATIVE
) -> tuple[Measure, dict[str, Tensor]]:
    """Return the same measure on jittered pixels, and the Point with jittered activation scales.

    The full-precision teacher's predictions stay those of the pixels as they were.

    Args:
        measure: an objective or a test evaluation.
        point: where it is measured.
        generator: on the CPU; draws the jitter.
        relative: standard deviation of the relative change of each pixel, as the network sees it,
            and of each scale.
    """
    forward = measure.forward
    seed = int(torch.randint(2**62, (), generator=generator))
    images = JitteredImages(forward.images, relative, seed)
    direction = {}
    for name, site in forward.network.sites.items():
        if site.kind != "weight":
            scale = point[f"{name}.scale"]
            direction[f"{name}.scale"] = torch.randn(scale.shape, generator=generator).to(scale)
    moved = displace(point, direction, relative) if direction else dict(point)
    whole = Forward.whole(forward.network, images, forward.batch_size)
    return replace(measure, forward=whole), moved


def expected_maximum(number: int) -> float:
    """Return the mean of the largest of `number` standard normal numbers.

    0.56 of 2, 1.54 of 10, 2.51 of 100: by so many standard deviations the best of so many draws
    gains, though all are worth the same.
    """
    x = torch.arange(-_REACH, _REACH + _STEP, _STEP, dtype=torch.float64)
    log_density = -(x**2) / 2 - math.log(2 * math.pi) / 2
    density = number * torch.exp(log_density + (number - 1) * torch.special.log_ndtr(x))
    return float((x * density).sum() * _STEP)
