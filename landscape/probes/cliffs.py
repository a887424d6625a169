"""Cliffs: every place on a line at which the code of a weight changes, in closed form.

Along a line in scale space a scale moves as s exp(a d), a the distance and d the direction's entry,
so that a weight w is quantized from u(a) = w / (s exp(a d)) + z, with the zero point z rounded. Its
code is u(a) rounded and clamped: it changes where u(a) crosses k + 1/2 for a code k below the
highest, which is at

    a = ln(w / (s (k + 1/2 - z))) / d    if w and k + 1/2 - z have the same sign, and nowhere else.

A weight that is zero, or whose scale does not move, has no cliff. On a cliff itself rounding is
half to even; a single point of the line.

Cliffs are many: the bundled transformer has 300,000 per unit of distance at 4 bits and 5 million at
8, so that a jitter of 1e-6 in all scales, meant to show numerical noise, flips 0.3 and 5 codes.

Positions are those of exact arithmetic, float64 here. A network computes in float32 and changes its
code within `Cliffs.resolution` of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evolq.errors import InputError
from evolq.network.deployed import constants, weight_nodes
from evolq.network.quantized import QuantizedNetwork
from evolq.tensor.quantizers import codes_range
from landscape.probes.slices import Line

# Rounding to nearest in float32 changes a result by at most this share of it.
_UNIT_ROUNDOFF = 2.0**-24

# Share of flips that a scan at the step `resolving_step` sees alone in their step.
_ALONE = 0.95


@dataclass(frozen=True, eq=False)
class Cliffs:
    """Where the codes of weights change along a line; one entry for each change, by distance.

    Attributes:
        layers: names of the weights' quantizers.
        distance: (n,) float64, ascending, in units of the line's direction.
        layer: (n,) index into `layers`.
        channel: (n,) index of the scale in its flattened tensor: a channel, a group, or 0.
        element: (n,) index of the weight in its flattened tensor, as its quantizer reads it.
        before: (n,) code on the side of smaller distances.
        after: (n,) code on the other side, one more or one less.
        jump: (n,) change of the dequantized weight there, (after - before) times the scale at that
            distance, in the weight's unit and before moment matching.
        resolution: (n,) how far from `distance` float32 may change the code, by a bound on its
            rounding errors.
    """

    layers: tuple[str, ...]
    distance: np.ndarray
    layer: np.ndarray
    channel: np.ndarray
    element: np.ndarray
    before: np.ndarray
    after: np.ndarray
    jump: np.ndarray
    resolution: np.ndarray

    def __len__(self) -> int:
        """Return the number of cliffs."""
        return len(self.distance)


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight along a line, float64: arrays (scales, weights that share one) or (scales, 1)."""

    name: str
    ratio: np.ndarray  # w / s at the origin
    scale: np.ndarray
    zero_point: np.ndarray
    rate: np.ndarray  # d
    elements: np.ndarray
    lower: int
    upper: int


def find_cliffs(network: QuantizedNetwork, line: Line, radius: float) -> Cliffs:
    """Return every cliff of the weights at distances from -radius to radius.

    Args:
        network: from `quantize`.
        line: its origin a complete Point. Scales of weights move, and anything that is not part of
            a weight's quantizer, such as scales of activations, whose codes are not listed: they
            depend on the images.
        radius: positive, in units of the direction.

    Raises:
        InputError: for a radius that is not positive and finite, a direction that moves weights,
            their zero points or bits, or weights that are quantized by log2.
    """
    _check(radius)
    parts = [_cliffs_of(weight, radius) for weight in _weights(network, line)]
    if not parts:
        raise InputError(
            "no scale of a quantized weight moves along this line (scheme "
            f"{network.quantization.scheme}); choose a direction over scales of weights"
        )
    names, columns = zip(*parts, strict=True)
    layer = np.repeat(np.arange(len(names)), [len(part[0]) for part in columns])
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    distance, channel, element, before, after, jump, resolution = (part[order] for part in joined)
    return Cliffs(names, distance, layer[order], channel, element, before, after, jump, resolution)


def count_cliffs(network: QuantizedNetwork, line: Line, radius: float) -> dict[str, int]:
    """Return how many cliffs `find_cliffs` would list for each weight, without listing them.

    Layer by layer, so that memory is that of the largest weight; names of weights whose scales do
    not move are left out. Arguments and errors as there.
    """
    _check(radius)
    return {weight.name: int(_span(weight, radius)[1].sum()) for weight in _weights(network, line)}


def expected_cliffs(network: QuantizedNetwork, line: Line) -> dict[str, float]:
    """Return the expected number of cliffs per unit of distance at the line's origin, by weight.

    Sum of |d w / s| over the weights inside the range of codes: as fast as u(a) moves, with its
    fraction taken as uniform between 0 and 1 (Bennett 1948, "Spectra of quantized signals"). Where
    a step of the quantizer is not small against the spread of the weights, at 3 bits, this errs by
    some 10 %. It is proportional to 1 / s, so that each bit more doubles it: the bits are those of
    the Point. Errors as `find_cliffs`.

    It does not hold within about 1 % of scales that were chosen for least squared error (observer
    `mse`): that error has a kink upward at every cliff, where a weight is as far from either code,
    so that its minima keep away from cliffs. At 3 bits the bundled transformer has a quarter of the
    expected cliffs within 0.001 of such a start, and the expected number within 0.1. Weights that
    GPTQ has rounded lie on the grid and have none near.
    """
    rates = {}
    for weight in _weights(network, line):
        code = weight.ratio + weight.zero_point
        inside = (code >= weight.lower) & (code <= weight.upper)
        rates[weight.name] = float((np.abs(weight.ratio * weight.rate) * inside).sum())
    return rates


def resolving_step(rate: float, alone: float = _ALONE) -> float:
    """Return the step of a scan at which a share `alone` of all flips are alone in their step.

    With flips as a Poisson process of `rate` per unit of distance, the others leave the step of a
    flip empty with probability exp(-rate step). A scan that is coarser sees sums of flips.

    Raises:
        InputError: if the rate is not positive, or the share not between 0 and 1.
    """
    if not (rate > 0 and 0 < alone < 1):
        raise InputError(
            f"a rate of {rate:g} and a share of {alone:g} were given; the rate must be positive, "
            "the share between 0 and 1"
        )
    return -math.log(alone) / rate


def _check(radius: float) -> None:
    if not 0 < radius < math.inf:
        raise InputError(f"the radius must be positive and finite, not {radius}")


def _weights(network: QuantizedNetwork, line: Line) -> Iterator[_Weight]:
    """Yield the weights whose scales move along `line`, one after the other."""
    nodes = weight_nodes(network)
    for name in nodes:
        for role in ("zero_point", "bits"):
            if f"{name}.{role}" in line.direction:
                raise InputError(
                    f"the direction moves {name}.{role}; cliffs are known in closed form where "
                    "only scales move"
                )
    fixed = {entry for entry in line.direction if entry in network.weights}
    if fixed:
        raise InputError(
            f"the direction moves the weight {min(fixed)}; cliffs are known in closed form where "
            "only scales move"
        )
    values: dict[Any, Any] = dict(constants(network, line.origin))
    for name, node in nodes.items():
        if f"{name}.scale" not in line.direction:
            continue
        spec = network.sites[name].spec
        if spec.kind != "uniform":
            raise InputError(f"{name} is quantized by {spec.kind}; cliffs need uniform quantizers")
        value, scale, zero_point, bits = node.args
        rows = spec.granularity.rows(values[value])
        lower, upper = (int(code) for code in codes_range(int(values[bits]), spec))

        def column(tensor: torch.Tensor, count: int = len(rows)) -> np.ndarray:
            """Return one entry for each row; an entry that all share is repeated."""
            flat = tensor.detach().double().cpu().numpy().reshape(-1, 1)
            return np.broadcast_to(flat, (count, 1))

        zero = values[zero_point].round() if spec.has_zero_point else torch.zeros(())
        elements = torch.arange(values[value].numel()).reshape(values[value].shape)
        scales = column(values[scale])
        yield _Weight(
            name=name,
            ratio=rows.double().cpu().numpy() / scales,
            scale=scales,
            zero_point=column(zero),
            rate=column(line.direction[f"{name}.scale"]),
            elements=spec.granularity.rows(elements).numpy(),
            lower=lower,
            upper=upper,
        )


def _span(weight: _Weight, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return for each weight the lowest code k of which it crosses k + 1/2, and how many it does.

    w / s moves between its values at -radius and radius, monotonically: both are its value now
    times or divided by exp(radius |d|), of its sign.
    """
    factor = np.exp(radius * np.abs(weight.rate))
    near, far = weight.ratio / factor, weight.ratio * factor
    offset = weight.zero_point - 0.5
    first = np.ceil(np.minimum(near, far) + offset).clip(min=weight.lower)
    last = np.floor(np.maximum(near, far) + offset).clip(max=weight.upper - 1)
    count = (last - first + 1).clip(min=0)
    return first.astype(np.int64), np.where(weight.rate == 0, 0, count).astype(np.int64)


def _cliffs_of(weight: _Weight, radius: float) -> tuple[str, tuple[np.ndarray, ...]]:
    """Return the name and, for each cliff, what `Cliffs` holds but for the layer."""
    first, count = _span(weight, radius)
    row, place = np.nonzero(count)
    repeats = count[row, place]
    position = np.arange(repeats.sum()) - np.repeat(repeats.cumsum() - repeats, repeats)
    row, place = np.repeat(row, repeats), np.repeat(place, repeats)
    code = first[row, place] + position  # the lower one of the two
    level = code + 0.5 - weight.zero_point[row, 0]
    ratio, rate = weight.ratio[row, place], weight.rate[row, 0]
    distance = np.log(ratio / level) / rate
    rising = ratio * rate < 0
    before, after = np.where(rising, code, code + 1), np.where(rising, code + 1, code)
    jump = (after - before) * weight.scale[row, 0] * np.exp(distance * rate)
    # The step, exp (2), the product with the scale and the division each round once, the exponent
    # twice; the sum with the zero point rounds in proportion to the code.
    roundings = 5 + 2 * np.abs(distance * rate) + np.abs((code + 0.5) / level)
    resolution = _UNIT_ROUNDOFF * roundings / np.abs(rate)
    return weight.name, (
        distance, row, weight.elements[row, place], before, after, jump, resolution
    )  # fmt: skip
