"""What every figure of a scan shows, computed once and drawn by either library.

The modules beside this one, one for each kind of scan, turn a Dataset and its analysis into plain
arrays and words (`plane_info`, `rays_info`, `bits_info`); what draws them only places them on paper
or on screen. Tests compare these, not pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray import DataArray, Dataset

from landscape.probes.sampling import NOT_COMPUTED
from landscape.words import UNTITLED, measure_of, with_unit

# What figures call the two losses of a scan, whatever each of them measures.
LOSSES = {"loss": "Calibration loss", "test_loss": "Test loss"}

# The entries of a legend.
NOT_FINITE_WORDS = "loss not finite"
NOT_COMPUTED_WORDS = "not computed"


def error_words(error: float) -> str:
    """Return an error as it stands behind a value; nothing where none is known (one image)."""
    return f" ± {error:.4f}" if np.isfinite(error) else ""


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


def loss_of(dataset: Dataset, which: str, values: DataArray | None = None) -> Quantity:
    """Return a loss of a scan.

    Args:
        dataset: the result of a scan.
        which: `loss` or `test_loss`.
        values: shown in its place, in its unit: its change from the start.
    """
    name = LOSSES[which]
    shown = dataset[which] if values is None else values
    return quantity_of(shown, dataset.status, name, measure_of(dataset[which], name.lower()))


def axis_of(coordinate: DataArray) -> Axis:
    """Return a coordinate with its own name and unit."""
    unit = coordinate.attrs.get("units", "")
    return Axis(name_of(coordinate), unit, coordinate.values.astype(np.float64))


def name_of(array: DataArray) -> str:
    """Return what a reader calls an array."""
    return array.attrs.get("long_name", str(array.name))


def title_of(dataset: Dataset) -> str:
    """Return what was measured."""
    return dataset.attrs.get("title", UNTITLED)


def subtitle_of(dataset: Dataset) -> str:
    """Return where it was measured, and on how many images."""
    return " · ".join(
        [
            dataset.attrs.get("comment", "around the start"),
            f"{dataset.sizes['calibration_image']:,} calibration images",
            f"{dataset.sizes['image']:,} test images",
        ]
    )


def table_of(dataset: Dataset, over: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return the points as columns of one length: coordinates, and what is known of each point.

    Args:
        dataset: a scan or a comparison.
        over: its dimensions, the slowest first.
    """
    known = dataset.drop_vars([name for name in dataset.coords if name not in over])
    points = known[[name for name in known.data_vars if set(known[name].dims) == {*over}]]
    shape = tuple(dataset.sizes[name] for name in over)
    places = np.meshgrid(*(dataset[name].values for name in over), indexing="ij")
    return {
        **{name: place.ravel() for name, place in zip(over, places, strict=True)},
        **{
            str(name): points[name].transpose(*over).values.reshape(np.prod(shape))
            for name in points.data_vars
        },
    }
