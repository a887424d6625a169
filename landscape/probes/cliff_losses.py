"""What cliffs do to the loss: the jump at each, and what lies between them.

`cliffs` says where codes of weights change along a line. Here the loss is measured on both sides of
a change, a finely sampled line is split into jumps and drift, and a line is scanned exactly, once
between each two cliffs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from evolq.errors import InputError
from evolq.files.saved import weight_nodes
from evolq.losses.paired import paired_standard_error
from evolq.network.layers import matches_moments
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.quantizers import dequantize, quantize
from landscape.probes.cliffs import Cliffs, find_cliffs
from landscape.probes.evaluation import CalibrationLoss
from landscape.probes.slices import Line

# Evaluations of an exact scan: on the bundled networks, 100 images, some minutes on one core.
MOST_INTERVALS = 10_000


@dataclass(frozen=True, eq=False)
class Jumps:
    """The loss on both sides of places where codes of weights change.

    Attributes:
        low: (n,) distance of the evaluation before the change.
        high: (n,) and after it.
        cliffs: (n,) how many cliffs lie between the two. Those closer than float32 tells apart are
            one place; on a line over all scales of a network at 8 bits that is most of them.
        before: (n, images) losses at `low`.
        after: (n, images) losses at `high`.
    """

    low: np.ndarray
    high: np.ndarray
    cliffs: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def jump(self) -> np.ndarray:
        """Change of the mean loss over the images, (n,)."""
        return (self.after - self.before).mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Paired standard error of `jump` over the images, (n,): the sampling noise."""
        return paired_standard_error(self.after - self.before)

    def above(self, floor: float) -> np.ndarray:
        """Return which jumps are larger than a numerical floor, (n,) bool.

        Args:
            floor: change of the mean loss that rounding alone makes, for instance measured by
                repeats under a relative jitter of 1e-6.

        Raises:
            InputError: if the floor is negative.
        """
        _check_floor(floor)
        return np.abs(self.jump) > floor


@dataclass(frozen=True, eq=False)
class Variation:
    """A line sampled at n distances, each of its steps split into drift and jump.

    From a to b, with f(c | p) the loss at c with the codes that weights have at p:
    f(b | b) - f(a | a) = (f(b | a) - f(a | a)) + (f(b | b) - f(b | a)), drift and jump.

    Held are the codes of weights. Codes of activations depend on the images and change with the
    drift, so that their share counts there. The finer the sampling, the more single flips are told
    apart (`cliffs.resolving_step`).

    Attributes:
        following: (n, images) losses f(a | a).
        held: (n - 1, images) losses f(b | a), from `held_losses`.
    """

    following: np.ndarray
    held: np.ndarray

    @property
    def drift(self) -> np.ndarray:
        """Change of the mean loss from one distance to the next, codes held, (n - 1,)."""
        return (self.held - self.following[:-1]).mean(axis=1)

    @property
    def jump(self) -> np.ndarray:
        """Change when the codes follow, at the new distance, (n - 1,)."""
        return (self.following[1:] - self.held).mean(axis=1)

    def share_of_jumps(self, floor: float = 0.0) -> float:
        """Return the sum of |jump| over that of |jump| and |drift|; NaN if there is neither.

        Changes up to `floor`, the numerical noise of a difference of losses, count as none: without
        it, steps in which little flips and little drifts add noise to both sums. Numerical noise is
        part of whatever moves a scale: of drift and jump with plain quantizers; of the jump alone
        with moment matching, where holding the codes changes nothing at all.

        Raises:
            InputError: if the floor is negative.
        """
        _check_floor(floor)
        jump, drift = (
            np.where(sizes > floor, sizes, 0.0).sum()
            for sizes in (np.abs(self.jump), np.abs(self.drift))
        )
        return float(jump / (jump + drift)) if jump + drift > 0 else np.nan

    def of_images(self, drawn: np.ndarray) -> Variation:
        """Return that of some images, given by index; they may repeat."""
        return Variation(self.following[:, drawn], self.held[:, drawn])


@dataclass(frozen=True, eq=False)
class Intervals:
    """A line, evaluated once between each two cliffs.

    Attributes:
        low: (n,) where each interval begins.
        high: (n,) and ends; between two intervals codes change, within float32's resolution.
        losses: (n, images) in its middle.
        constant: whether the loss is the same all over each interval, but for the numerical floor,
            so that the lowest of these is the true minimum of the line: with moment matching.
            Otherwise the loss drifts inside, see `Variation`.
    """

    low: np.ndarray
    high: np.ndarray
    losses: np.ndarray
    constant: bool

    @property
    def minimum(self) -> int:
        """The interval whose mean loss is lowest; the first of several."""
        return int(np.argmin(self.losses.mean(axis=1)))


def frozen(network: QuantizedNetwork, codes_of: Point, at: Point) -> dict[str, Tensor]:
    """Return the Point `at` with the codes that weights have at `codes_of`.

    A plain quantizer gets (code - zero point) times its scale in `at` in place of its weight: it
    divides by that scale, adds the zero point and rounds back to the code.

    With moment matching this would not do, since the moments to match are those of the weight that
    is given. But there the quantized weight does not depend on the scale while its codes are held
    (matching the deviation undoes any factor): the quantizer keeps all its entries of `codes_of`.

    Weights whose entries are the same tensors in both Points are left alone.

    Raises:
        InputError: for a weight that is read through a view or by other operators as well, so that
            its entry cannot be replaced.
    """
    point = dict(at)
    for name, node in weight_nodes(network).items():
        site = network.sites[name]
        entries = [name, *(f"{name}.{role}" for role in site.roles())]
        if all(codes_of.get(entry) is at.get(entry) for entry in entries):
            continue
        _check_own(network, name, node)
        if matches_moments(network, node):
            point.update({entry: codes_of[entry] for entry in entries})
            continue
        zero_point, bits = f"{name}.zero_point", f"{name}.bits"
        with torch.no_grad():
            codes = quantize(
                codes_of[name],
                codes_of[f"{name}.scale"],
                codes_of.get(zero_point),
                codes_of[bits],
                site.spec,
            )
            point[name] = dequantize(
                codes, at[f"{name}.scale"], at.get(zero_point), at[bits], site.spec
            )
    return point


def loss_jumps(
    objective: CalibrationLoss, line: Line, cliffs: Cliffs, chosen: Sequence[int] | None = None
) -> Jumps:
    """Measure the loss just before and just after cliffs: two evaluations for each place.

    The two lie outside the reach of float32 on either side, so that all codes have changed between
    them, and nothing has moved in between but by some 1e-6: what remains of the drift is part of
    the numerical floor.

    Args:
        objective: of calibration or test images.
        line: on which the cliffs were found.
        cliffs: from `find_cliffs`.
        chosen: indices into `cliffs`, all if None.
    """
    low, high, place = _places(cliffs)
    wanted = np.unique(place if chosen is None else place[np.asarray(chosen)])
    names = tuple(sorted(line.direction))
    varied = objective.vary(names, at=line.origin)
    before, after = (
        [_losses(varied, names, line.at(float(a))) for a in side[wanted]] for side in (low, high)
    )
    counts = np.bincount(place, minlength=len(low))
    return Jumps(low[wanted], high[wanted], counts[wanted], np.array(before), np.array(after))


def held_losses(
    network: QuantizedNetwork, objective: CalibrationLoss, line: Line, distances: np.ndarray
) -> np.ndarray:
    """Return the loss at each distance with the codes that weights have at the one before it.

    Args:
        network: from `quantize`.
        objective: of calibration or test images.
        line: over scales.
        distances: (n,) ascending.

    Returns:
        (n - 1, images), for `Variation`.

    Raises:
        InputError: if the distances are not ascending, finite and 2 or more, or as `frozen`.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 1 or len(distances) < 2 or not (np.diff(distances) > 0).all():
        raise InputError("a line is split over 2 or more distances, ascending and finite")
    names = held_names(network, line.direction)
    varied = objective.vary(names, at=line.origin)
    points = [line.at(float(distance)) for distance in distances]
    return np.array([
        _losses(varied, names, frozen(network, before, point))
        for before, point in pairwise(points)
    ])  # fmt: skip


def held_names(network: QuantizedNetwork, direction: Iterable[str]) -> tuple[str, ...]:
    """Return what moves when the names of a direction do and codes are held (`frozen`)."""
    moving = set(direction)
    plain = {
        name
        for name, node in weight_nodes(network).items()
        if f"{name}.scale" in moving and not matches_moments(network, node)
    }
    return tuple(sorted(moving | plain))


def scan_intervals(
    network: QuantizedNetwork,
    objective: CalibrationLoss,
    line: Line,
    radius: float,
    most: int = MOST_INTERVALS,
) -> Intervals:
    """Evaluate a line once between each two cliffs: nothing that codes do is missed.

    Args:
        network: from `quantize`.
        objective: of calibration or test images.
        line: over scales of weights, of one small layer for instance.
        radius: the line from -radius to radius.
        most: evaluations to make.

    Raises:
        InputError: if there are more intervals than `most`, the direction moves anything but scales
            of weights, or as `find_cliffs`.
    """
    nodes = weight_nodes(network)
    others = [n for n in line.direction if n.removesuffix(".scale") not in nodes]
    if others:
        raise InputError(
            f"the direction moves {others[0]}; between cliffs of weights its effect is not known, "
            "so choose a direction over scales of weights alone"
        )
    low, high, _ = _places(find_cliffs(network, line, radius))
    inside = (low > -radius) & (high < radius)  # at an end the interval is beyond float32
    low, high = low[inside], high[inside]
    if len(low) + 1 > most:
        raise InputError(
            f"the line has {len(low) + 1} intervals between cliffs and {most} evaluations are "
            "allowed; choose a smaller radius, fewer layers, or a larger `most`"
        )
    starts, ends = np.append(-radius, high), np.append(low, radius)
    names = tuple(sorted(line.direction))
    varied = objective.vary(names, at=line.origin)
    middles = (starts + ends) / 2
    losses = [_losses(varied, names, line.at(float(a))) for a in middles]
    moving = [node for name, node in nodes.items() if f"{name}.scale" in line.direction]
    constant = all(matches_moments(network, node) for node in moving)
    return Intervals(starts, ends, np.array(losses), constant)


def _check_floor(floor: float) -> None:
    if not floor >= 0:
        raise InputError(f"the floor is {floor}; give a change of the loss, 0 or more")


def _places(cliffs: Cliffs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where places that float32 tells apart begin and end, and the place of each cliff."""
    low, high = cliffs.distance - cliffs.resolution, cliffs.distance + cliffs.resolution
    order = np.argsort(low, kind="stable")
    reach = np.maximum.accumulate(high[order])
    apart = low[order][1:] > reach[:-1]
    first = np.flatnonzero(np.append(True, apart)[: len(order)])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(order))))
    return low[order][first], reach[np.append(first[1:], len(order))[: len(first)] - 1], place


def _losses(objective: CalibrationLoss, names: tuple[str, ...], point: Point) -> np.ndarray:
    varied = {name: point[name] for name in names}
    return objective.per_image(varied).detach().double().cpu().numpy()


def _check_own(network: QuantizedNetwork, name: str, node: fx.Node) -> None:
    """Check that the quantizer `node` is all that reads the entry `name`."""
    entries = dict(
        zip(network.module.graph.find_nodes(op="placeholder"), network.names, strict=False)
    )
    value: Any = node.args[0]
    if entries.get(value) != name or len(value.users) > 1:
        raise InputError(
            f"the weight {name} is read through a view or by several operators, so that its codes "
            "cannot be held; choose a line that does not move its scale"
        )
