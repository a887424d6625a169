"""What a figure shows, computed once and drawn by either library.

`plane_info` and `rays_info` turn the Dataset of a scan into plain arrays and words; the drawing
modules beside this one only place them on paper or on screen. Tests compare these, not pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray import DataArray, Dataset

from evolq.losses.criteria import words_of
from evolq.losses.paired import paired_standard_error
from landscape.probes.sampling import NOT_COMPUTED
from landscape.report import BAND_WORDS, NOT_TOLD_APART, bands
from landscape.statistics.minima import Minimum
from landscape.statistics.roughness import paired_noise

TEST_LOSS_WORDS = words_of("cross_entropy")

# What is scanned -> how a reader knows it, and what a step of 1 along a direction does there
# (the normalizations of landscape.directions).
OVER_WORDS = {
    "scales": ("scale space", "RMS log change of the scales"),
    "zero_points": ("zero-point space", "RMS shift of the zero points in codes"),
    "weights": ("weight space", "RMS change of the weights"),
}
# What a step of 1 is along directions with lengths of their own (landscape.guided).
GUIDED_WORDS = {
    "towards": "1: the checkpoint",
    "pca": "in RMS distances of the checkpoints",
}
NORMALIZED_WEIGHTS_WORDS = {
    "layer": "change relative to each layer's norm",
    "filter": "change relative to each filter's norm",
}

# The bands of landscape.report in figures, in paired standard errors.
BAND_LIMITS = ("beyond −4", "−4 to −2", "−2 to 2", "2 to 4", "beyond 4")

# Heat maps over bit-widths.
LAYERS_TITLE = "how many bits does each layer need?"
LAYERS_BOX = "fewest bits before the test loss is clearly higher"
LAYERS_WORDS = (
    "One layer at a time at these bits, all others as in the start.\n"
    "White: not told apart from the start (2 paired standard errors). Numbers: clear rises (4)."
)
MULTIPLIER_TITLE = "how many bits, and which scales?"
MULTIPLIER_BOX = "best factor by the calibration loss, at these bits"
MULTIPLIER_WORDS = (
    "All weights at these bits, their calibrated scales times a factor.\n"
    "Numbers: test accuracy (%). White: not told apart from the start."
)

# A checkpoint nearer to the plane than this share of its distance from the start lies on it: the
# rest is rounding.
ON_THE_PLANE = 1e-3

# The entries of a legend.
START_WORDS = "start"
MINIMUM_WORDS = "local minimum of the test loss"
EDGE_MINIMUM_WORDS = "local minimum of the test loss, at an edge"
NOT_FINITE_WORDS = "loss not finite"
NOT_COMPUTED_WORDS = "not computed"
RAY_WORDS = "one ray ± 1 standard error (paired with the start)"
MEAN_WORDS = "mean of the rays ± 1 standard error"
HOW_TO_READ = """\
Each cell is one measured network.
Nothing is smoothed.
Paired standard error: the noise that
is left in the difference of two losses
on the same test images."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Coordinates along one axis, what a reader calls them and what a step of 1 is."""

    name: str
    unit: str
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity over the points of a scan; NaN where it has no finite value."""

    name: str
    measure: str  # with its unit
    values: NDArray[np.float64]
    not_finite: NDArray[np.bool_]
    not_computed: NDArray[np.bool_]

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value; 0 and 1 if there is none."""
        finite = self.values[np.isfinite(self.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


@dataclass(frozen=True)
class Marker:
    """A place on a surface that the reader's eye should find."""

    x: float
    y: float
    value: float
    on_edge: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies on a plane: its nearest point there."""

    number: int  # in the order in which they were given, from 1
    x: float
    y: float
    words: str  # its name, and how far off the plane it is, as a share of its way from the start

    @property
    def label(self) -> str:
        """Its entry in a legend."""
        return f"{self.number}: {self.words}"


@dataclass(frozen=True, eq=False)
class Surface:
    """One loss of a plane, with what is marked on it."""

    quantity: Quantity
    start: Marker
    minima: tuple[Marker, ...] = ()


@dataclass(frozen=True, eq=False)
class PlaneInfo:
    """All that a figure of a plane shows; arrays are (y, x)."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    loss: Surface
    test_loss: Surface
    change: NDArray[np.float64]  # of the test loss from the start
    change_error: NDArray[np.float64]  # its paired standard error
    confidence: Quantity  # the band that change / change_error lies in: an index of BAND_WORDS
    accuracy: NDArray[np.float64]
    checkpoints: tuple[Checkpoint, ...]  # those in the range of the axes


@dataclass(frozen=True, eq=False)
class Curves:
    """One loss over rays, as its change from the start; arrays are (ray, distance)."""

    quantity: Quantity
    errors: NDArray[np.float64] | None  # paired standard errors; None: no error bars
    mean: NDArray[np.float64]  # over the rays, (distance,)
    mean_errors: NDArray[np.float64] | None
    start: float  # the loss itself at the start

    @property
    def label(self) -> str:
        """What the vertical axis shows, with its unit."""
        return f"Change from the start: {self.quantity.measure}"


@dataclass(frozen=True, eq=False)
class RaysInfo:
    """All that a figure of rays shows."""

    title: str
    subtitle: str
    distance: Axis
    loss: Curves
    test_loss: Curves
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BitsInfo:
    """All that a heat map over bit-widths shows; arrays are (row, column)."""

    title: str
    subtitle: str
    row_name: str
    rows: tuple[str, ...]
    column_name: str
    columns: tuple[str, ...]
    quantity: Quantity  # the change of the test loss from the start
    change_error: NDArray[np.float64]  # its paired standard error
    shades: NDArray[np.float64]  # roots of rises, so that small ones show; NaN: not told apart
    darkest: float  # the highest shade
    ticks: tuple[tuple[float, str], ...]  # shades and the rises that they stand for
    words: NDArray[np.object_]  # in each cell
    boxed: tuple[tuple[int, int], ...]  # cells that the eye should find
    box_words: str
    how_to_read: str
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def plane_info(dataset: Dataset, minima: Iterable[Minimum] = ()) -> PlaneInfo:
    """Return what a figure of the plane in `dataset` shows.

    Args:
        dataset: the result of a scan with probe `plane`.
        minima: the local minima of the test loss to mark.
    """
    dataset = dataset.transpose("y", "x", ...)
    configuration = configuration_of(dataset)
    change = _change(dataset, "test_loss_per_image").mean("image", skipna=False)
    change_error = paired_noise(dataset)
    checkpoints = _checkpoints(dataset)
    shown = tuple(one for one in checkpoints if _in_range(dataset, one))
    subtitle = _subtitle(dataset, configuration)
    if len(shown) < len(checkpoints):
        outside = len(checkpoints) - len(shown)
        subtitle += f" · {outside} of {len(checkpoints)} checkpoints outside the map"
    return PlaneInfo(
        title=title_of(configuration),
        subtitle=subtitle,
        x=_axis(dataset.x, "Step along x", configuration),
        y=_axis(dataset.y, "Step along y", configuration),
        loss=Surface(
            quantity_of(
                dataset.loss, dataset.status, "Calibration loss", criterion_words(configuration)
            ),
            Marker(0.0, 0.0, _start(dataset, "loss_per_image")),
        ),
        test_loss=Surface(
            quantity_of(dataset.test_loss, dataset.status, "Test loss", TEST_LOSS_WORDS),
            Marker(0.0, 0.0, _start(dataset, "test_loss_per_image")),
            tuple(
                Marker(m.coordinates["x"], m.coordinates["y"], m.value, m.boundary) for m in minima
            ),
        ),
        change=change.values,
        change_error=change_error.values,
        confidence=quantity_of(
            change.copy(data=bands(change, change_error)),
            dataset.status,
            "Test loss against the start",
            "in paired standard errors",
        ),
        accuracy=dataset.test_accuracy.values,
        checkpoints=shown,
    )


def _checkpoints(dataset: Dataset) -> list[Checkpoint]:
    """Return the checkpoints in a Dataset, if there are any."""
    if "checkpoint" not in dataset.dims:
        return []
    return [
        Checkpoint(
            number + 1,
            float(one.checkpoint_x),
            float(one.checkpoint_y),
            _checkpoint_words(
                str(one.checkpoint.values),
                float(one.checkpoint_distance),
                float(one.checkpoint_distance_from_start),
            ),
        )
        for number in range(dataset.sizes["checkpoint"])
        for one in [dataset.isel(checkpoint=number)]
    ]


def _checkpoint_words(name: str, off: float, from_start: float) -> str:
    if off <= ON_THE_PLANE * from_start:
        return name
    return f"{name} ({off / from_start:.1%} off the plane)"


def _in_range(dataset: Dataset, checkpoint: Checkpoint) -> bool:
    x, y = dataset.x.values, dataset.y.values
    return bool(x[0] <= checkpoint.x <= x[-1] and y[0] <= checkpoint.y <= y[-1])


def rays_info(dataset: Dataset) -> RaysInfo:
    """Return what a figure of the rays in `dataset` shows."""
    dataset = dataset.transpose("ray", "distance", ...)
    configuration = configuration_of(dataset)
    loss = _change(dataset, "loss_per_image").mean("calibration_image", skipna=False)
    test_loss = _change(dataset, "test_loss_per_image")
    # The rays share their images: the error of their mean is that of each image's mean change.
    mean_test_loss = test_loss.mean("ray", skipna=False).transpose("distance", "image")
    return RaysInfo(
        title=title_of(configuration),
        subtitle=_subtitle(dataset, configuration),
        distance=_axis(dataset.distance, "Signed distance along a ray", configuration),
        loss=Curves(
            quantity_of(loss, dataset.status, "Calibration loss", criterion_words(configuration)),
            None,
            loss.mean("ray", skipna=False).values,
            None,
            _start(dataset, "loss_per_image"),
        ),
        test_loss=Curves(
            quantity_of(
                test_loss.mean("image", skipna=False), dataset.status, "Test loss", TEST_LOSS_WORDS
            ),
            paired_noise(dataset).values,
            mean_test_loss.mean("image", skipna=False).values,
            paired_standard_error(mean_test_loss.values),
            _start(dataset, "test_loss_per_image"),
        ),
        accuracy=dataset.test_accuracy.values,
    )


def bits_info(dataset: Dataset) -> BitsInfo:
    """Return what a heat map of the bit-widths in `dataset` shows.

    Args:
        dataset: the result of `sample_layers` or `sample_bits`; widest bits come first.
    """
    layers = "layer" in dataset.dims
    dataset = dataset.sortby("bits", ascending=False).transpose(
        *(("layer", "bits") if layers else ("bits", "multiplier")), ...
    )
    configuration = configuration_of(dataset)
    change = _change(dataset, "test_loss_per_image").mean("image", skipna=False)
    quantity = quantity_of(change, dataset.status, "Test loss above the start's", "nats")
    highest = max(quantity.limits[1], 1e-6)
    rises = sorted({float(f"{highest * (step / 4) ** 2:.1g}") for step in range(5)})
    error = paired_noise(dataset).values
    bits = tuple(str(int(width)) for width in dataset.bits)
    band = bands(quantity.values, error)
    clear = np.isnan(band) | (band == len(BAND_WORDS) - 1)
    if layers:
        rows, columns = tuple(map(str, dataset.layer.values)), bits
        needed = (~clear).cumprod(1).sum(1) - 1  # bits fall from left to right
        boxed = tuple((row, int(column)) for row, column in enumerate(needed) if column >= 0)
        words = np.where(clear, _each(quantity.values, "+.2g"), "")
    else:
        rows = bits
        columns = tuple(f"×{multiplier:.2g}" for multiplier in dataset.multiplier.values)
        best = dataset.loss.where(np.isfinite(dataset.loss), np.inf).argmin("multiplier").values
        boxed = tuple((row, int(column)) for row, column in enumerate(best))
        words = _each(100 * dataset.test_accuracy.values, ".0f")
    return BitsInfo(
        title=f"{_network(configuration)}: " + (LAYERS_TITLE if layers else MULTIPLIER_TITLE),
        subtitle=" · ".join(
            ["Start: " + ", ".join(_quantization(configuration)), _images(dataset)]
        ),
        row_name="Layer, from input to output" if layers else "Bits of all weights",
        rows=rows,
        column_name="Bits of this layer's weights" if layers else "Factor on all weight scales",
        columns=columns,
        quantity=quantity,
        change_error=error,
        shades=np.where(
            band == BAND_WORDS.index(NOT_TOLD_APART),
            np.nan,
            np.sqrt(np.clip(quantity.values, 0, None)),
        ),
        darkest=highest**0.5,
        ticks=tuple((rise**0.5, f"{rise:g}") for rise in rises if rise <= highest),
        words=np.where(quantity.not_finite | quantity.not_computed, "", words).astype(object),
        boxed=boxed,
        box_words=LAYERS_BOX if layers else MULTIPLIER_BOX,
        how_to_read=LAYERS_WORDS if layers else MULTIPLIER_WORDS,
        loss=dataset.loss.values,
        accuracy=dataset.test_accuracy.values,
    )


def _each(values: NDArray[np.float64], form: str) -> NDArray[np.object_]:
    return np.vectorize(lambda value: format(value, form), otypes=[object])(values)


def _change(dataset: Dataset, name: str) -> DataArray:
    """Return each image's change from the start, NaN if not finite; 0 at the start itself."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        change = dataset[name].astype(np.float64) - dataset[f"start_{name}"]
    return change.where(np.isfinite(change) & (dataset.status != NOT_COMPUTED))


def _start(dataset: Dataset, name: str) -> float:
    return float(dataset[f"start_{name}"].mean(dtype=np.float64))


def quantity_of(values: DataArray, status: DataArray, name: str, measure: str) -> Quantity:
    """Return a quantity over the points of a scan or of a map, given their status.

    Each quantity is judged by itself: a test loss that is not finite hides no calibration loss.
    """
    numbers = values.values.astype(np.float64)
    not_computed = status.transpose(*values.dims).values == NOT_COMPUTED
    finite = np.isfinite(numbers) & ~not_computed
    return Quantity(
        name, measure, np.where(finite, numbers, np.nan), ~finite & ~not_computed, not_computed
    )


def configuration_of(dataset: Dataset) -> dict[str, Any]:
    """Return the configuration in a Dataset's provenance, empty if there is none."""
    return json.loads(dataset.attrs.get("provenance", "{}")).get("configuration", {})


def _axis(coordinate: DataArray, name: str, configuration: Mapping[str, Any]) -> Axis:
    over = configuration.get("over", "")
    _, unit = OVER_WORDS.get(over, ("", "lengths of the direction"))
    if over == "weights":
        unit = NORMALIZED_WEIGHTS_WORDS.get(configuration.get("normalize", ""), unit)
    unit = GUIDED_WORDS.get(configuration.get("directions", ""), unit)
    return Axis(name, unit, coordinate.values.astype(np.float64))


def criterion_words(configuration: Mapping[str, Any]) -> str:
    """Return how a reader knows the criterion, with its unit."""
    return words_of(configuration.get("criterion", "loss"))


def _network(configuration: Mapping[str, Any]) -> str:
    return str(configuration.get("model", "network"))


def title_of(configuration: Mapping[str, Any]) -> str:
    """Return what was measured, in words."""
    return ", ".join([_network(configuration), *_quantization(configuration)])


def _quantization(configuration: Mapping[str, Any]) -> list[str]:
    parts = []
    scheme = configuration.get("scheme")
    if scheme == "none":
        parts.append("not quantized")
    elif scheme is not None:
        parts.append(f"{configuration['weight_bits']}-bit weights")
        if scheme != "weights":  # that scheme leaves activations alone
            parts.append(f"{configuration['activation_bits']}-bit activations")
        parts.append(f"scheme {scheme}")
    return parts


def _subtitle(dataset: Dataset, configuration: Mapping[str, Any]) -> str:
    where, _ = OVER_WORDS.get(configuration.get("over", ""), ("", ""))
    parts = [f"around the start in {where}" if where else "around the start"]
    if configuration.get("within"):
        parts.append(f"within {configuration['within']}")
    if configuration.get("exclude"):
        parts.append(f"without {configuration['exclude']}")
    parts.append(_images(dataset))
    return " · ".join(parts)


def _images(dataset: Dataset) -> str:
    return (
        f"{dataset.sizes['calibration_image']:,} calibration images · "
        f"{dataset.sizes['image']:,} test images"
    )
