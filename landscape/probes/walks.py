"""Random walks through the space of Points, and losses along them.

A walk takes steps of one length in directions drawn anew for each: what autocorrelation, length
scale and the like were defined on (Weinberger 1990, "Correlated and uncorrelated fitness landscapes
and how to tell the difference"). Unlike rays, walks do not share the neighborhood of the start, and
their distance from it grows as the root of the number of steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
import xarray as xr

from evolq.errors import InputError
from evolq.points import Point, displace, displacement
from landscape.ledger import Ledger
from landscape.probes.directions import gaussian, normalize
from landscape.probes.evaluation import CalibrationLoss, Evaluation, HeldOutLoss
from landscape.probes.sampling import OnPoint, sample_cells

Walk = Sequence[Point]


def random_walk(
    origin: Point, names: Collection[str], length: float, steps: int, generator: torch.Generator
) -> list[Point]:
    """Return the origin and `steps` Points, each one random step from the Point before it.

    A step moves all `names` at once in a direction that is uniform on a sphere, its root mean
    square `length` for each kind of entry (`directions.normalize`): a typical scale changes by a
    factor exp(length), whatever its size. The same generator state gives the same walk.

    Args:
        origin: where the walk begins; complete, so that the Points are.
        names: entries that move; the others are the origin's own tensors.
        length: of a step, positive.
        steps: 1 or more.
        generator: draws the directions.

    Raises:
        InputError: if the length is not positive and finite, there is no step, or no name, or one
            that the origin lacks.
    """
    if not 0 < length < np.inf:
        raise InputError(f"the length of a step must be positive and finite, not {length}")
    if steps < 1:
        raise InputError(f"a walk of {steps} steps was asked for; give 1 or more")
    unknown = sorted(set(names) - set(origin))
    if unknown or not names:
        raise InputError(
            f"the walk is to move {unknown[0]!r}, which the Point does not have"
            if unknown
            else "the walk moves nothing; name at least one entry of the Point"
        )
    moving = {name: origin[name] for name in sorted(names)}
    walk = [origin]
    for _ in range(steps):
        direction = normalize(gaussian(moving, generator), moving)
        walk.append(displace(walk[-1], direction, length))
    return walk


def sample_walks(
    walks: Sequence[Walk],
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses at every Point of walks, one walk after the other.

    `on_point`, `ledger` and `executor` as in `sampling.sample_plane`.

    Returns:
        A Dataset as `sampling.sample_plane` makes it, with dimensions `walk, step`; step 0 is the
        start. Besides, `position` (walk, step, component): where each Point lies, in an orthonormal
        basis of the space that its walk spans, so that distances between Points of one walk are
        those between their positions. They are Euclidean over all entries that move (log scales),
        divided by the root of their number: changes of a typical entry, as the length of a step.

    Raises:
        InputError: before any work, if there is no walk, one has fewer than 2 Points, walks differ
            in length, or begin at different Points.
    """
    lengths = sorted({len(walk) for walk in walks})
    if len(lengths) != 1 or lengths[0] < 2:
        raise InputError(
            f"walks of {lengths or 'no'} Points were given; give walks of 2 Points or more, all of "
            "one length"
        )
    origin = walks[0][0]
    if any(walk[0] is not origin for walk in walks):
        raise InputError("all walks must begin at one Point: pass the same origin to each")
    names = tuple(
        sorted({name for walk in walks for name in origin if walk[-1][name] is not origin[name]})
    )
    if not names:
        raise InputError("the walks move no entry of the Point")
    positions = np.stack([_positions(walk, names) for walk in walks])
    also = xr.Dataset({"position": (("walk", "step", "component"), positions)})
    coordinates = {
        "walk": xr.Variable("walk", np.arange(len(walks))),
        "step": xr.Variable("step", np.arange(lengths[0]), {"long_name": "Step of a walk"}),
    }
    cells = (
        ({"walk": number, "step": step}, ({name: point[name] for name in names},))
        for number, walk in enumerate(walks)
        for step, point in enumerate(walk)
    )
    evaluation = Evaluation(objective, test, origin, dict)
    groups = [(names, cells)]
    return sample_cells(evaluation, coordinates, groups, on_point, also, ledger, executor)


def _positions(walk: Walk, names: tuple[str, ...]) -> np.ndarray:
    """Return the position of each Point, (points, points - 1)."""
    offsets = np.stack([
        torch.cat([
            value.double().flatten()
            for value in displacement(walk[0], point, names).values()
        ]).cpu().numpy()
        for point in walk[1:]
    ])  # fmt: skip
    # A = R^T Q^T for the QR decomposition of A^T: the rows of R^T are A in the basis Q.
    triangle = np.asarray(np.linalg.qr(offsets.T / np.sqrt(offsets.shape[1]), mode="r")).T
    positions = np.zeros((len(walk), len(walk) - 1))
    positions[1:, : triangle.shape[1]] = triangle
    return positions
