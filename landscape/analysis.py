"""What a scan found, computed once: for the table, for figures of either kind, and for the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from xarray import DataArray, Dataset

from evolq.errors import InputError
from landscape.probes.sampling import FINITE, NOT_COMPUTED, NOT_FINITE
from landscape.statistics.minima import Minima, significant_minima
from landscape.statistics.roughness import (
    Reliability,
    paired_noise,
    paired_standard_error,
    split_half_reliability,
    total_variation,
)

# A difference of two test losses on the same images within 2 paired standard errors is not told
# apart from nothing; beyond 4 it is clear even as one of hundreds of points.
BAND_EDGES = (-4.0, -2.0, 2.0, 4.0)
NOT_TOLD_APART, PERHAPS_HIGHER, CLEARLY_HIGHER = 2, 3, 4  # bands between and beyond the edges

# The variables of `Analysis.changes`; the last four of rays alone.
CHANGES = (
    "test_loss_change",
    "test_loss_change_error",
    "test_loss_band",
    "loss_change",
    "mean_loss_change",
    "mean_test_loss_change",
    "mean_test_loss_change_error",
)


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Lowest:
    """The finite point of lowest test loss: where it is, and its change from the start."""

    coordinates: Mapping[str, float]
    test_loss: float
    change: Estimate


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a scan found.

    Attributes:
        finite: number of points with finite losses.
        not_finite: number of points with a loss that is not finite.
        not_computed: number of points that were not measured.
        start_loss: calibration loss at the start.
        start_test_loss: test loss at the start.
        start_test_accuracy: share of test images that are correct at the start.
        lowest: of a plane or of rays; None if no point is finite.
        minima: of the test loss of a plane or of rays, above the noise.
        variation: total variation of the test loss over its range, on a plane or on rays.
        reliability: of the test loss of a plane or of rays, between halves of the test images.
        fewest_bits: of one layer at a time, before its test loss is clearly higher; layers whose
            loss is clearly higher at the most bits are missing.
        best_factors: number of bits -> the factor on the scales of lowest calibration loss; bits
            without a finite one are missing.
        changes: over the points, from the start: `test_loss_change`, its paired standard error
            `test_loss_change_error`, and its `test_loss_band` (see `bands`), NaN where not finite.
            Of rays also `loss_change`, and the means over the rays, `mean_loss_change`,
            `mean_test_loss_change` and `mean_test_loss_change_error`.
    """

    finite: int
    not_finite: int
    not_computed: int
    start_loss: float
    start_test_loss: Estimate
    start_test_accuracy: Estimate
    lowest: Lowest | None
    minima: Minima | None
    variation: float | None
    reliability: Reliability | None
    fewest_bits: Mapping[str, int]
    best_factors: Mapping[int, float]
    changes: Dataset


def analyze(dataset: Dataset) -> Analysis:
    """Compute what a scan found.

    Args:
        dataset: the result of a scan of any kind.
    """
    changes = _changes(dataset)
    slice_of_space = "bits" not in dataset.dims
    status = dataset["status"]
    return Analysis(
        finite=int((status == FINITE).sum()),
        not_finite=int((status == NOT_FINITE).sum()),
        not_computed=int((status == NOT_COMPUTED).sum()),
        start_loss=float(dataset.start_loss_per_image.mean(dtype=np.float64)),
        start_test_loss=_estimate(dataset.start_test_loss_per_image),
        start_test_accuracy=_estimate(dataset.start_test_correct_per_image),
        lowest=_lowest(dataset, changes) if slice_of_space else None,
        minima=significant_minima(dataset) if slice_of_space else None,
        variation=total_variation(dataset["test_loss"]) if slice_of_space else None,
        reliability=(
            split_half_reliability(dataset["test_loss_per_image"]) if slice_of_space else None
        ),
        fewest_bits=_fewest_bits(changes) if "layer" in dataset.dims else {},
        best_factors=_best_factors(dataset) if "multiplier" in dataset.dims else {},
        changes=changes,
    )


def with_analysis(dataset: Dataset, analysis: Analysis) -> Dataset:
    """Return a scan with its analysis: `changes` as variables, the rest as JSON in an attribute.

    Numbers that are not finite, which JSON does not have, are strings: "nan", "inf".
    """
    found = {
        field.name: _plain(getattr(analysis, field.name))
        for field in fields(analysis)
        if field.name != "changes"
    }
    return dataset.assign(analysis.changes.data_vars).assign_attrs(analysis=json.dumps(found))


def read_analysis(dataset: Dataset) -> Analysis:
    """Return the analysis that a scan was saved with.

    Raises:
        InputError: if there is none, as in an unfinished scan.
    """
    if "analysis" not in dataset.attrs:
        raise InputError("the scan holds no analysis; compute it with landscape.analyze")
    hints = get_type_hints(Analysis)
    found = {
        name: _restored(hints[name], value)
        for name, value in json.loads(dataset.attrs["analysis"]).items()
    }
    changes = dataset[[name for name in CHANGES if name in dataset]]
    return Analysis(**found, changes=changes)


def bands(changes: ArrayLike, standard_errors: ArrayLike) -> NDArray[np.float64]:
    """Return the band of each change: how many of BAND_EDGES it exceeds, in standard errors.

    NaN if it is not finite.
    """
    change, error = np.asarray(changes), np.asarray(standard_errors)
    with np.errstate(divide="ignore", invalid="ignore"):  # the start: 0 with a standard error of 0
        in_standard_errors = np.where(change == 0, 0.0, change / error)
    comparable = np.isfinite(change) & ~np.isnan(in_standard_errors)
    return np.where(comparable, np.digitize(in_standard_errors, BAND_EDGES), np.nan)


def _changes(dataset: Dataset) -> Dataset:
    """Compare each point with the start, on the same images."""
    per_image = _change(dataset, "test_loss_per_image")
    change = per_image.mean("image", skipna=False)
    error = paired_noise(dataset).transpose(*change.dims)
    found = {
        "test_loss_change": change,
        "test_loss_change_error": error,
        "test_loss_band": change.copy(data=bands(change, error)),
    }
    if "ray" in dataset.dims:
        loss = _change(dataset, "loss_per_image").mean("calibration_image", skipna=False)
        # The rays share their images: the error of their mean is that of each image's mean change.
        mean = per_image.mean("ray", skipna=False).transpose("distance", "image")
        found |= {
            "loss_change": loss,
            "mean_loss_change": loss.mean("ray", skipna=False),
            "mean_test_loss_change": mean.mean("image", skipna=False),
            "mean_test_loss_change_error": ("distance", paired_standard_error(mean.values)),
        }
    return Dataset(found)


def _change(dataset: Dataset, name: str) -> DataArray:
    """Return each image's change from the start, NaN if not finite; 0 at the start itself."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        change = dataset[name].astype(np.float64) - dataset[f"start_{name}"]
    return change.where(np.isfinite(change) & (dataset.status != NOT_COMPUTED))


def _estimate(per_image: DataArray) -> Estimate:
    values = per_image.values.astype(np.float64)
    return Estimate(float(values.mean()), float(paired_standard_error(values)))


def _lowest(dataset: Dataset, changes: Dataset) -> Lowest | None:
    finite = dataset.test_loss.where(dataset.status == FINITE)
    if not finite.notnull().any():
        return None
    cell = finite.argmin(...)
    point, change = dataset.isel(cell), changes.isel(cell)
    return Lowest(
        {str(name): float(point[name]) for name in sorted(finite.dims, key=str)},
        float(point.test_loss),
        Estimate(float(change.test_loss_change), float(change.test_loss_change_error)),
    )


def _fewest_bits(changes: Dataset) -> dict[str, int]:
    band = changes.test_loss_band.sortby("bits", ascending=False).transpose("layer", "bits")
    fine = (band < CLEARLY_HIGHER).values.cumprod(1).sum(1)  # from the most bits down; NaN is not
    return {
        str(layer): int(band.bits[count - 1])
        for layer, count in zip(band.layer.values, fine, strict=True)
        if count
    }


def _best_factors(dataset: Dataset) -> dict[int, float]:
    known = np.isfinite(dataset.loss) & (dataset.status != NOT_COMPUTED)
    loss = dataset.loss.where(known, np.inf).transpose("bits", "multiplier").values
    return {
        int(bits): float(dataset.multiplier[row.argmin()])
        for bits, row in zip(dataset.bits.values, loss, strict=True)
        if np.isfinite(row).any()
    }


def _plain(value: Any) -> Any:
    """Return what JSON can hold."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _restored(kind: Any, value: Any) -> Any:
    """Return the value of a type that `_plain` made JSON of."""
    arguments = get_args(kind)
    if value is None:
        return None
    if type(None) in arguments:  # that type or None
        return _restored(arguments[0], value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _restored(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is np.ndarray:
        return np.asarray(value, dtype=np.float64)
    if get_origin(kind) is Mapping:
        return {arguments[0](key): _restored(arguments[1], item) for key, item in value.items()}
    if get_origin(kind) is tuple:
        return tuple(_restored(arguments[0], item) for item in value)
    return kind(value)
