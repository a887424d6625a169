"""Merge trees of surfaces: which minimum joins which, and at what height.

Let the water rise over a surface: each minimum starts a lake; two lakes meet at a saddle, where
the one with the higher minimum ends (the elder rule). Birth and death of every lake are the
0-dimensional persistent homology of sublevel sets; who meets whom is the merge tree.

Points are ordered by value and, where values are equal, by their place, so that no two are equal;
pairs within a plateau then have persistence 0. Each point belongs to the minimum that steepest
descent leads to, over the lowest neighbor each time. The lowest edge out of a point that is not a
minimum is the one to its lowest neighbor, thus an edge of a minimum spanning tree: basins joined at
their lowest common edges have the minima and saddles of the whole grid (the first step of Boruvka's
algorithm, 1926). So do further steps: a minimum whose lowest edge leads to the basin of a lower one
ends there. All steps are array operations, over any number of surfaces of one shape at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evolq.errors import InputError

CONNECTIVITIES = (4, 8)


@dataclass(frozen=True)
class MergeTree:
    """The minima of surfaces, lowest first, and how they join.

    Attributes:
        minima: flat index of each minimum in the array of all surfaces, (minima,).
        saddles: flat index of the point at which it joins a lower one, (minima,); -1 where it never
            does: the lowest of each surface, and of each region that walls enclose.
        parents: number of the minimum in whose basin it flows over its saddle, (minima,); its own
            number where there is none. This one is lower, or has joined a lower one before.
        basins: number of the minimum that steepest descent leads to, in the shape of the surfaces;
            -1 at walls.
    """

    minima: NDArray[np.int64]
    saddles: NDArray[np.int64]
    parents: NDArray[np.int64]
    basins: NDArray[np.int64]


def merge_tree(surfaces: NDArray[np.floating], connectivity: int = 8) -> MergeTree:
    """Return the minima of surfaces and the saddles at which they join.

    Args:
        surfaces: (surfaces, y, x), or (surfaces, distance) for lines. What is not finite is a wall.
        connectivity: 8 if points are neighbors across corners too, 4 if along the axes only.

    Raises:
        InputError: for another connectivity.
    """
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is 4 or 8, not {connectivity}")
    flat = surfaces.ravel()
    inside = np.isfinite(flat)
    order = np.argsort(np.where(inside, flat, np.inf), kind="stable")  # walls last
    rank = np.empty(flat.size, dtype=np.int64)
    rank[order] = np.arange(flat.size)
    grid, finite = rank.reshape(surfaces.shape), int(inside.sum())
    pairs = [_slices(offset) for offset in _offsets(surfaces.ndim - 1, connectivity)]

    lowest = grid.copy()  # among a point and its neighbors
    for here, there in pairs:
        np.minimum(lowest[here], grid[there], out=lowest[here])
        np.minimum(lowest[there], grid[here], out=lowest[there])
    down = np.empty_like(rank)
    down[rank] = lowest.ravel()
    bottom = _followed(down)
    is_minimum = bottom[:finite] == np.arange(finite)
    number = np.cumsum(is_minimum) - 1  # of each finite point that is a minimum, by rank
    basins = np.where(inside, number[bottom[rank] % max(finite, 1)] if finite else -1, -1)
    basins = basins.reshape(surfaces.shape)

    edges = [_edges(grid, basins, here, there) for here, there in pairs]
    heights, ends, others = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    lowest_first = np.argsort(heights, kind="stable")
    parents, at = _joined(
        heights[lowest_first], ends[lowest_first], others[lowest_first], int(is_minimum.sum())
    )
    return MergeTree(
        minima=order[:finite][is_minimum],
        saddles=np.where(at < 0, -1, order[at]) if flat.size else at,
        parents=parents,
        basins=basins,
    )


def _joined(
    heights: NDArray[np.int64], ends: NDArray[np.int64], others: NDArray[np.int64], minima: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return parents and heights at which minima end; edges are given lowest first."""
    parents, at, lakes = np.arange(minima), np.full(minima, -1), np.arange(minima)
    end_lakes, other_lakes = ends, others
    while len(heights):
        # The first edge of each lake: of writes to one place, the last one stays.
        none = len(heights)
        backwards = np.arange(none)[::-1]
        first, first_other = np.full(minima, none), np.full(minima, none)
        first[end_lakes[::-1]] = backwards
        first_other[other_lakes[::-1]] = backwards
        first = np.minimum(first, first_other)
        lake = np.flatnonzero(first < none)
        edge = first[lake]
        across = end_lakes[edge] + other_lakes[edge] - lake
        ending = across < lake
        lake, edge, across = lake[ending], edge[ending], across[ending]
        lakes[lake] = across
        parents[lake] = np.where(end_lakes[edge] == lake, others[edge], ends[edge])
        at[lake] = heights[edge]
        lakes = _followed(lakes)
        end_lakes, other_lakes = lakes[end_lakes], lakes[other_lakes]
        apart = end_lakes != other_lakes
        heights, ends, others = heights[apart], ends[apart], others[apart]
        end_lakes, other_lakes = end_lakes[apart], other_lakes[apart]
    return parents, at


def _edges(
    grid: NDArray[np.int64], basins: NDArray[np.int64], here: tuple, there: tuple
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the height and both basins of each edge in one direction that leads between two."""
    ends, others = basins[here], basins[there]
    between = (ends != others) & (ends >= 0) & (others >= 0)
    heights = np.maximum(grid[here][between], grid[there][between])
    return heights, ends[between], others[between]


def _offsets(dimensions: int, connectivity: int) -> list[tuple[int, ...]]:
    """Return one of each two opposite steps to a neighbor."""
    steps = [tuple(i - 1 for i in index) for index in np.ndindex((3,) * dimensions)]
    near = 1 if connectivity == 4 else dimensions
    return [step for step in steps if step > (0,) * dimensions and sum(map(abs, step)) <= near]


def _slices(offset: tuple[int, ...]) -> tuple[tuple, tuple]:
    """Return the slices of all points that have a neighbor at `offset`, and of these neighbors."""
    starts = {-1: slice(1, None), 0: slice(None), 1: slice(None, -1)}
    here = (slice(None), *(starts[step] for step in offset))
    return here, (slice(None), *(starts[-step] for step in offset))


def _followed(pointers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each pointer leads in the end (pointer doubling)."""
    while True:
        twice = pointers[pointers]
        if np.array_equal(twice, pointers):
            return twice
        pointers = twice


def kept_basins(tree: MergeTree, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the basins of some minima alone; the others' flow over their saddles into these.

    Args:
        tree: of surfaces.
        kept: whether each minimum stays, (minima,). One that joins no other always does.

    Returns:
        Numbers of minima that stay, as `MergeTree.basins`.
    """
    into = _followed(np.where(kept, np.arange(len(kept)), tree.parents))
    return np.where(tree.basins < 0, -1, into[tree.basins]) if len(into) else tree.basins
