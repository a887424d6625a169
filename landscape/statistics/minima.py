"""Local minima by persistence: how deep a minimum is before it joins a deeper one.

The persistence of a minimum is the height one must climb from it to reach a lower one: the loss at
the lowest saddle on the way, minus its own loss (0-dimensional persistent homology of sublevel
sets, computed by gudhi). Noise makes many shallow minima and few deep ones, so only minima above a
stated threshold count.

What the count depends on is explicit:

- Connectivity: with 8, points are neighbors across corners too; with 4, along the axes only. gudhi
  calls the first `top_dimensional_cells` (squares that touch in a corner are connected), the second
  `vertices`. The default is 8: a valley that runs diagonally across the grid is one valley. Along a
  ray both mean the two neighbors.
- Plateaus: connected points of equal loss are one minimum, reported at the point nearest to
  their center.
- Boundary: a minimum is marked if it touches the edge of the grid or a point that is not finite,
  since the surface may fall further beyond.
- Points that are not finite are walls: excluded, counted, and never a way from minimum to minimum.
- The lowest minimum has infinite persistence (each ray and each region that walls enclose has one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gudhi
import numpy as np
import xarray as xr
from scipy import ndimage

from evolq.errors import InputError
from evolq.losses.paired import paired_standard_error

CONNECTIVITIES = (4, 8)


@dataclass(frozen=True)
class Minimum:
    """A local minimum: where it is, its loss, and how far one must climb to leave it for a lower.

    `noise` is the paired standard error of the persistence (NaN if not estimated or infinite),
    `points` the number of grid points of equal loss that form it, `boundary` whether it touches the
    edge of what was measured.
    """

    coordinates: Mapping[str, float]
    value: float
    persistence: float
    noise: float
    points: int
    boundary: bool


@dataclass(frozen=True)
class Minima:
    """The minima above a threshold, most persistent first, and what was left out.

    `below` counts the minima at or below the threshold, `excluded` the points that are not finite
    or were not computed. The threshold is `threshold`, in units of the loss, or, where that is
    None, `sigmas` times the noise of each minimum.
    """

    minima: tuple[Minimum, ...]
    below: int
    excluded: int
    connectivity: int
    threshold: float | None
    sigmas: float


def find_minima(surface: xr.DataArray, threshold: float, connectivity: int = 8) -> Minima:
    """Find the minima of a plane or of rays whose persistence exceeds `threshold`.

    `surface` has dimensions `y, x` or `ray, distance` (each ray by itself), with coordinates.

    Raises:
        InputError: for other dimensions, another connectivity or a negative threshold.
    """
    if not threshold >= 0:
        raise InputError(f"the persistence threshold must be 0 or more, not {threshold}")
    return _find(surface, None, connectivity, threshold=threshold, sigmas=np.nan)


def significant_minima(dataset: xr.Dataset, sigmas: float = 4.0, connectivity: int = 8) -> Minima:
    """Find the minima of `test_loss` whose persistence exceeds `sigmas` times its own noise.

    A persistence is the difference of two test losses, at the saddle and at the minimum, measured
    on the same images. Its noise is therefore the paired standard error of that difference, from
    the per-image losses at those two points. Both points were picked for being extreme, among many
    and on the same images, which favors large persistences; hence 4 sigmas and not 2.

    Raises:
        InputError: if `dataset` is not a scan, for another connectivity or negative `sigmas`.
    """
    if not sigmas >= 0:
        raise InputError(f"the number of sigmas must be 0 or more, not {sigmas}")
    return _find(
        dataset["test_loss"],
        dataset["test_loss_per_image"],
        connectivity,
        threshold=None,
        sigmas=sigmas,
    )


def _find(
    surface: xr.DataArray,
    per_image: xr.DataArray | None,
    connectivity: int,
    threshold: float | None,
    sigmas: float,
) -> Minima:
    """Collect the minima above `threshold`, or else above `sigmas` times their noise."""
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is 4 or 8, not {connectivity}")
    dimensions = set(surface.dims)
    pieces: list[dict[str, int]]
    if dimensions == {"y", "x"}:
        pieces = [{}]
    elif dimensions == {"ray", "distance"}:
        pieces = [{"ray": ray} for ray in range(surface.sizes["ray"])]
    else:
        raise InputError(f"a surface has dimensions y, x or ray, distance, not {surface.dims}")
    found: list[Minimum] = []
    below = 0
    for piece in pieces:
        grid = surface.isel(piece)
        values = np.where(np.isfinite(grid.values), grid.values, np.inf)
        bottoms, saddles = _pairs(values, connectivity)
        joining = bottoms[: len(saddles)]  # the others have no saddle
        persistences = np.full(len(bottoms), np.inf)
        persistences[: len(saddles)] = values[tuple(saddles.T)] - values[tuple(joining.T)]
        noises = np.full(len(bottoms), np.nan)
        if per_image is not None:
            images = per_image.isel(piece).transpose(*grid.dims, "image").values
            noises[: len(saddles)] = [
                paired_standard_error(images[tuple(saddle)] - images[tuple(bottom)])
                for bottom, saddle in zip(joining, saddles, strict=True)
            ]
        bars = sigmas * noises if threshold is None else threshold
        above = np.isinf(persistences) | (persistences > bars)
        below += int((~above).sum())
        described = _described(grid, values, bottoms[above], connectivity)
        found += [
            Minimum(persistence=float(persistence), noise=float(noise), **fields)
            for persistence, noise, fields in zip(
                persistences[above], noises[above], described, strict=True
            )
        ]
    found.sort(key=lambda minimum: (-minimum.persistence, minimum.value))
    excluded = int((~np.isfinite(surface)).sum())
    return Minima(tuple(found), below, excluded, connectivity, threshold, sigmas)


def _described(
    grid: xr.DataArray, values: np.ndarray, bottoms: np.ndarray, connectivity: int
) -> Iterator[dict[str, Any]]:
    """Describe the plateau around each of `bottoms`: all fields of a Minimum that are its own.

    `values` are those of `grid`, with walls at +inf.
    """
    neighbors = ndimage.generate_binary_structure(values.ndim, 1 if connectivity == 4 else 2)
    offsets = np.argwhere(neighbors)  # indices in `walls`, whose indices are higher by one
    walls = np.pad(np.isinf(values), 1, constant_values=True)  # the edge of the grid is one too
    shared = {"ray": float(grid["ray"])} if "ray" in grid.coords else {}
    axes = {str(name): grid[name].values for name in grid.dims if name in grid.coords}
    for bottom in map(tuple, bottoms):
        near = tuple(slice(max(0, i - 1), i + 2) for i in bottom)
        if np.count_nonzero(values[near] == values[bottom]) == 1:
            members = np.array([bottom])  # no plateau, as nearly always: no search of the grid
        else:
            labels, _ = ndimage.label(values == values[bottom], neighbors)
            members = np.argwhere(labels == labels[bottom])
        center = members[((members - members.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        around = (members[:, None] + offsets).reshape(-1, values.ndim)
        yield {
            "coordinates": shared
            | {
                str(name): float(axes[name][index])
                for name, index in zip(grid.dims, center, strict=True)
                if name in axes
            },
            "value": float(values[bottom]),
            "points": len(members),
            "boundary": bool(walls[tuple(around.T)].any()),
        }


def _pairs(values: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the grid indices of the minima, and those of the saddles of the first ones.

    The minima that have no saddle, since they never join a lower one, are the last. gudhi leaves
    out pairs of persistence 0 (steps within a plateau) and numbers points in Fortran order.
    `values` must not hold NaN, which crashes gudhi; walls are +inf, and the minima that they part
    join at +inf.
    """
    if connectivity == 4:
        grid = gudhi.CubicalComplex(vertices=values)
        grid.compute_persistence()
        finite, essential = grid.vertices_of_persistence_pairs()
    else:
        grid = gudhi.CubicalComplex(top_dimensional_cells=values)
        grid.compute_persistence()
        finite, essential = grid.cofaces_of_persistence_pairs()

    def indices(numbers: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(numbers, values.shape, "F"), axis=-1)

    inside = np.isfinite(values).flatten("F")
    pairs = np.asarray(finite[0] if finite else [], dtype=int).reshape(-1, 2)
    pairs = pairs[inside[pairs[:, 0]]]
    alone = np.asarray(essential[0], dtype=int)
    alone = alone[inside[alone]]
    return indices(np.concatenate([pairs[:, 0], alone])), indices(pairs[:, 1])
