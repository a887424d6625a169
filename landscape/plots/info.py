"""What a figure shows, computed once and drawn by either library.

`plane_info` and `rays_info` turn the Dataset of a scan into plain arrays and words; the drawing
modules beside this one only place them on paper or on screen. Tests compare these, not pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xarray import DataArray, Dataset

from landscape.analysis import CLEARLY_HIGHER, NOT_TOLD_APART, Analysis
from landscape.probes.sampling import NOT_COMPUTED
from landscape.words import UNTITLED, measure_of, with_unit

# The bands of landscape.analysis in figures, in paired standard errors.
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

    @property
    def label(self) -> str:
        """Name and unit."""
        return with_unit(self.name, self.unit)


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity over the points of a scan; NaN where it has no finite value."""

    name: str
    measure: str  # what it is, with its unit
    values: NDArray[np.float64]
    not_finite: NDArray[np.bool_]
    not_computed: NDArray[np.bool_]

    @property
    def label(self) -> str:
        """Name and unit."""
        return with_unit(self.name, self.measure)

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


def plane_info(dataset: Dataset, analysis: Analysis) -> PlaneInfo:
    """Return what a figure of a plane shows.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it.
    """
    dataset = dataset.transpose("y", "x", ...)
    changes = analysis.changes.transpose("y", "x")
    checkpoints = _checkpoints(dataset)
    shown = tuple(one for one in checkpoints if _in_range(dataset, one))
    subtitle = _subtitle(dataset)
    if len(shown) < len(checkpoints):
        outside = len(checkpoints) - len(shown)
        subtitle += f" · {outside} of {len(checkpoints)} checkpoints outside the map"
    return PlaneInfo(
        title=_title(dataset),
        subtitle=subtitle,
        x=_axis(dataset.x),
        y=_axis(dataset.y),
        loss=Surface(_loss(dataset), Marker(0.0, 0.0, analysis.start_loss)),
        test_loss=Surface(
            _test_loss(dataset),
            Marker(0.0, 0.0, analysis.start_test_loss.value),
            tuple(
                Marker(m.coordinates["x"], m.coordinates["y"], m.value, m.boundary)
                for m in (analysis.minima.minima if analysis.minima else ())
            ),
        ),
        change=changes.test_loss_change.values,
        change_error=changes.test_loss_change_error.values,
        confidence=quantity_of(
            changes.test_loss_band,
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


def rays_info(dataset: Dataset, analysis: Analysis) -> RaysInfo:
    """Return what a figure of rays shows.

    Args:
        dataset: the result of a scan of rays.
        analysis: of it.
    """
    dataset = dataset.transpose("ray", "distance", ...)
    changes = analysis.changes.transpose("ray", "distance")
    return RaysInfo(
        title=_title(dataset),
        subtitle=_subtitle(dataset),
        distance=_axis(dataset.distance),
        loss=Curves(
            _loss(dataset, changes.loss_change),
            None,
            changes.mean_loss_change.values,
            None,
            analysis.start_loss,
        ),
        test_loss=Curves(
            _test_loss(dataset, changes.test_loss_change),
            changes.test_loss_change_error.values,
            changes.mean_test_loss_change.values,
            changes.mean_test_loss_change_error.values,
            analysis.start_test_loss.value,
        ),
        accuracy=dataset.test_accuracy.values,
    )


def bits_info(dataset: Dataset, analysis: Analysis) -> BitsInfo:
    """Return what a heat map over bit-widths shows; the most bits come first.

    Args:
        dataset: the result of a scan of bits or of layers.
        analysis: of it.
    """
    layers = "layer" in dataset.dims
    over = ("layer", "bits") if layers else ("bits", "multiplier")
    dataset = dataset.sortby("bits", ascending=False).transpose(*over, ...)
    changes = analysis.changes.sortby("bits", ascending=False).transpose(*over)
    quantity = quantity_of(
        changes.test_loss_change, dataset.status, "Test loss above the start's", _unit(dataset)
    )
    highest = max(quantity.limits[1], 1e-6)
    rises = sorted({float(f"{highest * (step / 4) ** 2:.1g}") for step in range(5)})
    band = changes.test_loss_band.values
    bits = [int(width) for width in dataset.bits]
    if layers:
        rows, columns = tuple(map(str, dataset.layer.values)), tuple(map(str, bits))
        boxed = tuple(
            (rows.index(layer), bits.index(fewest))
            for layer, fewest in analysis.fewest_bits.items()
        )
        words = np.where(band < CLEARLY_HIGHER, "", _each(quantity.values, "+.2g"))
    else:
        factors = dataset.multiplier.values.tolist()
        rows, columns = tuple(map(str, bits)), tuple(f"×{factor:.2g}" for factor in factors)
        boxed = tuple(
            (bits.index(width), factors.index(best))
            for width, best in analysis.best_factors.items()
        )
        words = _each(100 * dataset.test_accuracy.values, ".0f")
    return BitsInfo(
        title=f"{_title(dataset)}: " + (LAYERS_TITLE if layers else MULTIPLIER_TITLE),
        subtitle=_subtitle(dataset),
        row_name=_name(dataset[over[0]]),
        rows=rows,
        column_name=_name(dataset[over[1]]),
        columns=columns,
        quantity=quantity,
        change_error=changes.test_loss_change_error.values,
        shades=np.where(band == NOT_TOLD_APART, np.nan, np.sqrt(np.clip(quantity.values, 0, None))),
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


def _loss(dataset: Dataset, values: DataArray | None = None) -> Quantity:
    """Return the calibration loss, or values that are in its unit, such as its change."""
    shown = dataset.loss if values is None else values
    measure = measure_of(dataset.loss, "calibration loss")
    return quantity_of(shown, dataset.status, "Calibration loss", measure)


def _test_loss(dataset: Dataset, values: DataArray | None = None) -> Quantity:
    """Return the test loss, or values that are in its unit, such as its change."""
    shown = dataset.test_loss if values is None else values
    measure = measure_of(dataset.test_loss, "test loss")
    return quantity_of(shown, dataset.status, "Test loss", measure)


def _axis(coordinate: DataArray) -> Axis:
    unit = coordinate.attrs.get("units", "")
    return Axis(_name(coordinate), unit, coordinate.values.astype(np.float64))


def _name(array: DataArray) -> str:
    return array.attrs.get("long_name", str(array.name))


def _unit(dataset: Dataset) -> str:
    return dataset.test_loss.attrs.get("units", "")


def _title(dataset: Dataset) -> str:
    return dataset.attrs.get("title", UNTITLED)


def _subtitle(dataset: Dataset) -> str:
    return " · ".join(
        [
            dataset.attrs.get("comment", "around the start"),
            f"{dataset.sizes['calibration_image']:,} calibration images",
            f"{dataset.sizes['image']:,} test images",
        ]
    )
