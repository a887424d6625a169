"""A measured surface, as statistics of ruggedness see it: losses, lines, and where points lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial.distance import pdist, squareform

from evolq.errors import InputError
from landscape.statistics.image_losses import ImageLosses

# Statistics of all pairs look at this many points, two million pairs.
_MOST_POINTS = 2000


@dataclass(frozen=True, eq=False)
class Places:
    """Where points lie, (points, dimensions); distances are computed once."""

    positions: np.ndarray

    @cached_property
    def sample(self) -> np.ndarray:
        """Indices of the points whose distances are known: all, or 2,000 drawn with seed 0."""
        count = len(self.positions)
        if count <= _MOST_POINTS:
            return np.arange(count)
        return np.sort(np.random.default_rng(0).permutation(count)[:_MOST_POINTS])

    @cached_property
    def distances(self) -> np.ndarray:
        """Euclidean distances between the points of `sample`, (sample, sample)."""
        return squareform(pdist(self.positions[self.sample]))


@dataclass(frozen=True, eq=False)
class Surface:
    """Losses at points, and the lines of equal steps that these lie on.

    Made by `from_lines`, `from_plane` or `from_walks`. Points whose loss is not finite are left out
    by every statistic, never replaced.

    Attributes:
        losses: mean loss of each point, (points,) float64; NaN where it is not finite.
        per_image: of each image, at the same points; None where means are all that is known.
        axes: arrays (lines, points of a line) of indices into the points, neighbors one step apart;
            one array, or two for a plane (its rows and its columns).
        places: where the points lie.
        step: distance between neighbors.
        floor: changes of the mean loss up to here mean nothing: the numerical noise.
    """

    losses: np.ndarray
    per_image: ImageLosses | None
    axes: tuple[np.ndarray, ...]
    places: Places
    step: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check what all statistics rely on."""
        if not 0 < self.step < np.inf:
            raise InputError(f"the step must be positive and finite, not {self.step}")
        if not self.floor >= 0:
            raise InputError(f"the floor is {self.floor}; give a change of the loss, 0 or more")
        if any(axis.shape[1] < 2 for axis in self.axes):
            raise InputError("a line has a single point; ruggedness needs 2 or more")

    @classmethod
    def from_lines(
        cls, losses: np.ndarray | ImageLosses, step: float, floor: float = 0.0
    ) -> Surface:
        """Return the surface of losses (lines, points) or (lines, points, images) along lines.

        The lines are taken to be orthogonal to each other and to meet in their middles, as rays in
        random directions nearly do in a space of many dimensions.
        """
        per_image = _of_lines(losses)
        lines, points = per_image.grid
        positions = np.zeros((lines, points, lines))
        along = (np.arange(points) - (points - 1) / 2) * step
        positions[np.arange(lines), :, np.arange(lines)] = along
        index = np.arange(lines * points).reshape(lines, points)
        places = Places(positions.reshape(-1, lines))
        return cls(per_image.means, per_image, (index,), places, step, floor)

    @classmethod
    def from_plane(
        cls, losses: np.ndarray | ImageLosses, step: float, floor: float = 0.0
    ) -> Surface:
        """Return the surface of losses (y, x) or (y, x, images), with the same step on both axes.

        The axes of a plane are taken to be orthogonal and of equal unit.
        """
        per_image = _of_lines(losses)
        index = np.arange(per_image.points).reshape(per_image.grid)
        places = Places(np.stack(np.unravel_index(index.ravel(), index.shape), axis=1) * step)
        return cls(per_image.means, per_image, (index, index.T), places, step, floor)

    @classmethod
    def from_walks(
        cls,
        losses: np.ndarray | ImageLosses,
        positions: np.ndarray,
        step: float,
        floor: float = 0.0,
    ) -> Surface:
        """Return the surface of losses (walks, steps) or (walks, steps, images) along walks.

        Args:
            losses: of each Point.
            positions: (walks, steps, components), of each walk in a basis of its own; walks are
                taken to be orthogonal to each other, as random ones nearly are.
            step: length of a step.
            floor: see `Surface`.
        """
        walks, steps, components = positions.shape
        placed = np.zeros((walks, steps, walks, components))
        placed[np.arange(walks), :, np.arange(walks)] = positions
        index = np.arange(walks * steps).reshape(walks, steps)
        places = Places(placed.reshape(walks * steps, walks * components))
        per_image = _of_lines(losses)
        return cls(per_image.means, per_image, (index,), places, step, floor)

    @property
    def images(self) -> int:
        """How many images there are; 1 where only means are known."""
        return 1 if self.per_image is None else self.per_image.images

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return sum(len(axis) for axis in self.axes)

    def resampled(self, drawn: Sequence[np.ndarray]) -> Iterator[Surface]:
        """Yield the mean surfaces of some images, given by index (images,); they may repeat."""
        assert self.per_image is not None  # which has the images to draw from
        counts = (np.bincount(one, minlength=self.images) / len(one) for one in drawn)
        for means in self.per_image.weighted(np.stack(list(counts))):
            yield replace(self, losses=np.where(np.isfinite(means), means, np.nan), per_image=None)

    def with_lines(self, drawn: np.ndarray) -> Surface:
        """Return the mean surface of some lines, given by index; they may repeat.

        Raises:
            InputError: for a plane, whose lines cross each other and are no independent draws.
        """
        if len(self.axes) > 1:
            raise InputError(
                "the lines of a plane cross, so that they cannot be drawn one by one; give an "
                "interval over images, or scan rays or walks"
            )
        points = self.axes[0][drawn]
        return replace(
            self,
            losses=self.losses[points.ravel()],
            per_image=None,
            axes=(np.arange(points.size).reshape(points.shape),),
            places=Places(self.places.positions[points.ravel()]),
        )

    def pairs(self, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses of all points that are `lag` steps apart on a line: (n,) and (n,)."""
        first, second = (
            np.concatenate([self.losses[part].ravel() for part in parts])
            for parts in (
                [axis[:, :-lag] for axis in self.axes],
                [axis[:, lag:] for axis in self.axes],
            )
        )
        finite = np.isfinite(first) & np.isfinite(second)
        return first[finite], second[finite]


def _of_lines(losses: np.ndarray | ImageLosses) -> ImageLosses:
    """Return losses on a grid of two dimensions as such; means are those of one image."""
    if isinstance(losses, np.ndarray) and losses.ndim == 2:
        losses = losses[..., None]
    found = ImageLosses.of(losses)
    if len(found.grid) != 2:
        raise InputError(
            f"losses have the shape {found.source.shape}; wanted two dimensions of points, and a "
            "third of images or none"
        )
    return found
