"""Local minima by persistence: how deep a minimum is before it joins a deeper one.

The persistence of a minimum is the height one must climb from it to reach a lower one: the loss at
the lowest saddle on the way, minus its own loss (0-dimensional persistent homology of sublevel
sets, computed by gudhi). Noise makes many shallow minima and few deep ones, so only minima above a
stated threshold count.

What the count depends on is explicit:

- Connectivity: with 8, points are neighbours across corners too; with 4, along the axes only. gudhi
  calls the first `top_dimensional_cells` (squares that touch in a corner are connected), the second
  `vertices`. The default is 8: a valley that runs diagonally across the grid is one valley. Along a
  ray both mean the two neighbours.
- Plateaus: connected points of equal loss are one minimum, reported at the point nearest to
  their centre.
- Boundary: a minimum is marked if it touches the edge of the grid or a point that is not finite,
  since the surface may fall further beyond.
- Points that are not finite are walls: excluded, counted, and never a way from minimum to minimum.
- The lowest minimum has infinite persistence (each ray and each region that walls enclose has one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gudhi
import numpy as np
import xarray as xr
from scipy import ndimage

from evolq.errors import InputError
from landscape.roughness import paired_standard_error

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
    and on the same images, which favours large persistences; hence 4 sigmas and not 2.

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
        if per_image is not None:
            images = per_image.isel(piece).transpose(*grid.dims, "image").values
        for bottom, saddle in _pairs(values, connectivity):
            persistence = np.inf if saddle is None else float(values[saddle] - values[bottom])
            noise = np.nan
            if per_image is not None and saddle is not None:
                noise = float(paired_standard_error(images[saddle] - images[bottom]))
            bar = sigmas * noise if threshold is None else threshold
            if np.isinf(persistence) or persistence > bar:
                found.append(_minimum(grid, values, bottom, persistence, noise, connectivity))
            else:
                below += 1
    found.sort(key=lambda minimum: (-minimum.persistence, minimum.value))
    excluded = int((~np.isfinite(surface)).sum())
    return Minima(tuple(found), below, excluded, connectivity, threshold, sigmas)


def _minimum(
    grid: xr.DataArray,
    values: np.ndarray,
    bottom: tuple[int, ...],
    persistence: float,
    noise: float,
    connectivity: int,
) -> Minimum:
    """Describe the plateau around `bottom`; `values` are those of `grid`, with walls at +inf."""
    neighbours = ndimage.generate_binary_structure(values.ndim, 1 if connectivity == 4 else 2)
    near = tuple(slice(max(0, i - 1), i + 2) for i in bottom)
    if np.count_nonzero(values[near] == values[bottom]) == 1:
        members = np.array([bottom])  # no plateau, as nearly always: no search of the whole grid
    else:
        labels, _ = ndimage.label(values == values[bottom], neighbours)
        members = np.argwhere(labels == labels[bottom])
    centre = members[((members - members.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    walls = np.pad(np.isinf(values), 1, constant_values=True)  # the edge of the grid is one too
    around = members[:, None] + np.argwhere(neighbours)  # indices of `walls`, which start at -1
    place = grid[dict(zip(grid.dims, centre, strict=True))]
    return Minimum(
        coordinates={
            str(name): float(place[name]) for name in ("ray", *grid.dims) if name in place.coords
        },
        value=float(values[bottom]),
        persistence=persistence,
        noise=noise,
        points=len(members),
        boundary=bool(walls[tuple(around.reshape(-1, values.ndim).T)].any()),
    )


def _pairs(
    values: np.ndarray, connectivity: int
) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Return the grid indices of each minimum and of its saddle (None if it never joins a lower).

    gudhi leaves out pairs of persistence 0 (steps within a plateau) and numbers points in Fortran
    order. `values` must not hold NaN, which crashes gudhi; walls are +inf, and the minima that they
    part join at +inf.
    """
    if connectivity == 4:
        grid = gudhi.CubicalComplex(vertices=values)
        grid.compute_persistence()
        finite, essential = grid.vertices_of_persistence_pairs()
    else:
        grid = gudhi.CubicalComplex(top_dimensional_cells=values)
        grid.compute_persistence()
        finite, essential = grid.cofaces_of_persistence_pairs()

    def indices(numbers: np.ndarray) -> list[tuple[int, ...]]:
        return list(
            zip(*(i.tolist() for i in np.unravel_index(numbers, values.shape, "F")), strict=True)
        )

    pairs: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
    if finite:
        bottoms, saddles = np.asarray(finite[0]).reshape(-1, 2).T
        pairs += zip(indices(bottoms), indices(saddles), strict=True)
    pairs += [(bottom, None) for bottom in indices(np.asarray(essential[0]))]
    return [(bottom, saddle) for bottom, saddle in pairs if np.isfinite(values[bottom])]
