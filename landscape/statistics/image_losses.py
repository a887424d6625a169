"""The losses of many images at many points, of which one block at a time is in memory.

A scan of 101 x 101 points on 50,000 images has 510 million losses, 2 GB as they are measured, 4 GB
in float64. Every statistic of them is made of a few sums, so that blocks do: sums over images with
weights (`weighted`), and of squared differences between points, image by image (`paired_squares`).
They add up in float64, in another order than one sum over all would: results differ by rounding,
some 1e-16 of the largest term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from evolq.losses.paired import paired_standard_error
from evolq.on_disk import boxes

# Values in a block: 16 MB in float64, and a few times that while they are added up.
BLOCK_VALUES = 2_000_000

# Differences at once: some 1 MB, which stays in a second-level cache.
_CACHED_VALUES = 2**17


@dataclass(frozen=True, eq=False)
class ImageLosses:
    """Losses (points, images), float64, read from wherever they are in blocks of one or the other.

    Attributes:
        source: over the dimensions of the points and, last, the images; in memory or not.
        grid: shape of the points.
        start: subtracted from each point's losses, (images,); None to leave them as they are.
        known: whether a point's losses mean anything, (points,); those that do not are NaN.
        chosen: indices of the images that count, ascending; None for all.
    """

    source: xr.Variable
    grid: tuple[int, ...]
    start: NDArray[np.float64] | None = None
    known: NDArray[np.bool_] | None = None
    chosen: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, losses: ImageLosses | xr.DataArray | NDArray[np.floating]) -> ImageLosses:
        """Return losses as such: an array's last dimension, or the one named `image`."""
        if isinstance(losses, ImageLosses):
            return losses
        if isinstance(losses, xr.DataArray):
            source = losses.variable.transpose(..., losses.dims[-1])
            if "image" in losses.dims:
                source = losses.variable.transpose(..., "image")
        else:
            source = xr.Variable([f"axis {number}" for number in range(losses.ndim)], losses)
        return cls(source, source.shape[:-1])

    @property
    def points(self) -> int:
        """How many points there are."""
        return int(np.prod(self.grid))

    @property
    def images(self) -> int:
        """How many images count."""
        return self.source.shape[-1] if self.chosen is None else len(self.chosen)

    @property
    def sums_at_once(self) -> int:
        """How many sums over images to ask `weighted` for: their weights and they have 64 MB."""
        return max(1, 4 * BLOCK_VALUES // max(self.images, self.points, 1))

    def minus(self, start: xr.DataArray) -> ImageLosses:
        """Return the differences from the losses of one point on the same images, (images,)."""
        return replace(self, start=start.values.astype(np.float64))

    def where(self, known: NDArray[np.bool_]) -> ImageLosses:
        """Return the losses with NaN at all points but those that are known, of any shape."""
        both = known.ravel() if self.known is None else known.ravel() & self.known
        return replace(self, known=both)

    def of_images(self, chosen: NDArray[np.int64]) -> ImageLosses:
        """Return the losses of some images, given by index; their order does not matter."""
        return replace(self, chosen=np.sort(chosen))

    def by_points(self, most: int | None = None) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the losses of some points after the other, (points, images).

        Args:
            most: points in a block.
        """
        images = self.source.shape[-1]
        most = max(1, BLOCK_VALUES // max(images, 1)) if most is None else most
        first = 0
        for box in boxes(self.source.shape[:-1], most):
            block = self.source[box].values.reshape(-1, images)
            part = slice(first, first + len(block))
            yield part, self._read(block, part, slice(None))
            first = part.stop

    def by_images(self) -> Iterator[NDArray[np.float64]]:
        """Yield the losses of some images after the other, at all points, (points, images)."""
        size = max(1, BLOCK_VALUES // max(self.points, 1))
        # what is on a disk is read in longer pieces
        longer = size * max(1, 4 * BLOCK_VALUES // max(size * self.points, 1))
        images = self.source.shape[-1]
        for begin in range(0, images, longer):
            piece = self.source[..., begin : begin + longer].values
            for first in range(0, piece.shape[-1], size):
                part = slice(begin + first, min(begin + first + size, images))
                block = piece[..., first : first + size].reshape(self.points, -1)
                found = self._read(block, slice(None), part)
                if found.shape[1]:
                    yield found

    def _read(self, block: NDArray[np.floating], points: slice, images: slice) -> NDArray:
        """Return what is said of a block as it was measured."""
        values = block.astype(np.float64)
        if self.start is not None:
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                values -= self.start[images]
        if self.known is not None:
            values[~self.known[points]] = np.nan
        if self.chosen is not None:
            first, last, _ = images.indices(self.source.shape[-1])
            low, high = np.searchsorted(self.chosen, (first, last))
            values = values[:, self.chosen[low:high] - first]
        return values

    @cached_property
    def _of_points(self) -> dict[str, NDArray[Any]]:
        """What is known of each point by itself, (points,) each; all found in one pass."""
        found: dict[str, list[NDArray[Any]]] = {}
        for _, block in self.by_points():
            with np.errstate(invalid="ignore"):  # infinities
                own = {
                    "means": block.mean(axis=1),
                    "errors": paired_standard_error(block),
                    "finite": np.isfinite(block).all(axis=1),
                    "largest": np.abs(block).max(axis=1, initial=0.0),
                }
            for name, values in own.items():
                found.setdefault(name, []).append(values)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all images are finite at a point, (points,)."""
        return self._of_points["finite"]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean over images, (points,); NaN where one is not finite."""
        return np.where(self.finite, self._of_points["means"], np.nan)

    @property
    def errors(self) -> NDArray[np.float64]:
        """Standard error of the mean, (points,); NaN where an image is not finite."""
        return np.where(self.finite, self._of_points["errors"], np.nan)

    @property
    def largest(self) -> NDArray[np.float64]:
        """The largest magnitude of a loss at each point, (points,)."""
        return self._of_points["largest"]

    def weighted(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums over images with weights (sums, images) at each point: (sums, points)."""
        sums = np.empty((len(weights), self.points))
        for part, block in self.by_points():
            with np.errstate(invalid="ignore"):  # not finite, and stays so
                sums[:, part] = weights @ block.T
        return sums

    def paired_squares(
        self, ends: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the sum over images of (d_i - mean d)^2, d the difference of two points' losses.

        Blocks are merged as Chan, Golub and LeVeque (1983) do, "Algorithms for computing the sample
        variance", without cancellation.

        Args:
            ends: indices of the points from which is subtracted, (pairs,).
            starts: indices of those that are subtracted, (pairs,).
        """
        count = 0
        means, squares = np.zeros(len(ends)), np.zeros(len(ends))
        for block in self.by_images():
            more = block.shape[1]
            size = max(1, _CACHED_VALUES // more)
            for first in range(0, len(ends), size):
                part = slice(first, first + size)
                differences = block[ends[part]] - block[starts[part]]
                own = differences.mean(axis=1)
                differences -= own[:, None]
                apart = own - means[part]
                squares[part] += np.einsum("ij,ij->i", differences, differences)
                squares[part] += apart**2 * (count * more / (count + more))
                means[part] += apart * (more / (count + more))
            count += more
        return squares
