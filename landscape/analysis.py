"""What a scan found, computed once: for the table, for figures of either kind, and for the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from xarray import DataArray, Dataset

from evolq.declared import check_value
from evolq.errors import InputError
from evolq.losses.paired import paired_standard_error
from landscape.cliff_analysis import CliffAnalysis, analyze_cliffs
from landscape.probes.sampling import FINITE, NOT_COMPUTED, NOT_FINITE
from landscape.slice_analysis import Escape, FrozenNull, analyze_escapes, analyze_frozen
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.intervals import IMAGES, Interval, mean_interval, proportion_interval
from landscape.statistics.minima import Minima, find_minima, significant_minima
from landscape.statistics.null_counts import NullCount, null_counts
from landscape.statistics.numerical_noise import NoiseFloor, noise_floor
from landscape.statistics.persistence import count_curve
from landscape.statistics.resampling import FEWEST_IMAGES, upper_quantile
from landscape.statistics.roughness import (
    Reliability,
    split_half_reliability,
    step_variance,
    total_variation,
)
from landscape.statistics.ruggedness import STATISTICS, estimate
from landscape.statistics.ruggedness import Estimate as Ruggedness
from landscape.statistics.ruggedness_correlation import autocorrelation
from landscape.statistics.simultaneous import largest_deviations
from landscape.statistics.surface import Surface

# A difference of two test losses on the same images within 2 paired standard errors is not told
# apart from nothing. Beyond 2 it is, if one looks at that point alone; of many points some are
# beyond by noise. Clear is what is beyond the critical value of all points together.
ALONE = 2.0
LEVEL = 0.05
NOT_TOLD_APART, PERHAPS_HIGHER, CLEARLY_HIGHER = 2, 3, 4  # bands between and beyond the edges

# Of landscape.statistics.ruggedness, those in the table. Resamples of the images: the 2.5 %
# quantile is the fifth smallest.
RUGGEDNESS = ("correlation_length", "nugget", "max_information")
WALK_RUGGEDNESS = (
    *("autocorrelation", "correlation_length"),
    *("max_information", "partial_information"),
)
RESAMPLES = 199

# Lines of a scan -> the dimension along them.
LINES = {"ray": "distance", "walk": "step"}

# Lags at which the autocorrelation of walks is told: up to half their length.
LAGS = 12

# Thresholds at which minima are counted, up to 1.2 times the deepest that has one; and
# surfaces of noise for their band, fewer on grids of more than 20,000 points.
THRESHOLDS = 25
CURVE_MOST, CURVE_LEAST, CURVE_POINTS = 199, 19, 4_000_000

# What every scan has.
MEASURED = (
    *("loss", "test_loss", "status", "test_loss_per_image", "loss_per_image"),
    *("start_loss_per_image", "start_test_loss_per_image", "start_test_correct_per_image"),
)

# The variables of `Analysis.changes`; the last four of rays and walks alone.
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


@dataclass(frozen=True)
class Critical:
    """Paired standard errors within which noise stays at all points at once, in 95 % of scans.

    Attributes:
        both: upwards and downwards; infinite below 10 images, which cannot tell. 2 or more.
        lower: downwards alone.
    """

    both: float
    lower: float


@dataclass(frozen=True, eq=False)
class Counts:
    """The number of local minima above each threshold, see `persistence.count_curve`.

    Attributes:
        threshold: persistences, in units of the test loss.
        count: of the measured surface.
        low: the true surface has at least so many, at all thresholds at once, in 95 % of scans.
        high: and at most so many; infinite where noise hides them.
        noise: mean of noise alone, on a flat surface.
    """

    threshold: NDArray[np.float64]
    count: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    noise: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Correlogram:
    """The autocorrelation of walks at each lag, with 95 % intervals as of `ruggedness`."""

    lag: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a scan found.

    Attributes:
        finite: number of points with finite losses.
        not_finite: number of points with a loss that is not finite.
        not_computed: number of points that were not measured.
        start_loss: calibration loss at the start.
        start_test_loss: test loss at the start, with its 95 % interval by Student's t (NaN for one
            image).
        start_test_accuracy: share of test images that are correct at the start, likewise, exact.
        loss_floor: numerical noise of the calibration loss; None without repeats.
        test_loss_floor: of the test loss.
        critical: for differences from the start, at all points together.
        lowest: of a plane, rays or walks; None if no point is finite.
        minima: of the test loss of a plane or of rays, above the noise.
        variation: total variation of the test loss over its range, on a plane, rays or walks.
        reliability: of the test loss there, between halves of the test images.
        numerical_share: share of the variance of the steps of the test loss between neighbors that
            is numerical noise, its interval that of the floor; None without repeats, or where
            nothing varies.
        counts: of minima as a function of the threshold; None below 10 images, or without minima.
        nulls: minima, whatever their depth, of smooth surfaces with one kind of noise; see
            `landscape.statistics.null_counts`.
        frozen: the null of frozen weight codes; None where it was not measured.
        escapes: descents off the slice from each minimum, the deepest first.
        ruggedness: statistics of the test loss with intervals over images, by their names in
            `landscape.statistics.ruggedness.STATISTICS`; of a plane with different steps along its
            axes along x alone; of 2 walks or more over walks and images. Empty where points are not
            evenly spaced, or for one image.
        correlogram: of walks.
        cliffs: where the jaggedness of a line comes from, if its cliffs were measured.
        fewest_bits: of one layer at a time, before its test loss is clearly higher; layers whose
            loss is clearly higher at the most bits are missing.
        best_factors: number of bits -> the factor on the scales of lowest calibration loss; bits
            without a finite one are missing.
        changes: over the points, from the start: `test_loss_change`, its paired standard error
            `test_loss_change_error`, and its `test_loss_band` (see `bands`), NaN where not finite.
            Of rays and walks also `loss_change`, and the means over them, `mean_loss_change`,
            `mean_test_loss_change` and `mean_test_loss_change_error`.
    """

    finite: int
    not_finite: int
    not_computed: int
    start_loss: float
    start_test_loss: Interval
    start_test_accuracy: Interval
    loss_floor: NoiseFloor | None
    test_loss_floor: NoiseFloor | None
    critical: Critical
    lowest: Lowest | None
    minima: Minima | None
    variation: float | None
    reliability: Reliability | None
    numerical_share: Interval | None
    counts: Counts | None
    nulls: Mapping[str, NullCount]
    frozen: FrozenNull | None
    escapes: tuple[Escape, ...]
    ruggedness: Mapping[str, Ruggedness]
    correlogram: Correlogram | None
    cliffs: CliffAnalysis | None
    fewest_bits: Mapping[str, int]
    best_factors: Mapping[int, float]
    changes: Dataset


def analyze(dataset: Dataset) -> Analysis:
    """Compute what a scan found.

    Noise is drawn with seed 0, so that one file always has the same analysis.

    Args:
        dataset: the result of a scan of any kind.
    """
    check_value("dataset", dataset, Dataset)
    missing = [name for name in MEASURED if name not in dataset]
    if missing:
        raise InputError(f"the dataset is no scan: it lacks {', '.join(missing)}")
    status = dataset["status"]
    dataset = _without_garbage(dataset)
    in_space = "bits" not in dataset.dims
    slice_of_space = in_space and "walk" not in dataset.dims
    loss_floor, test_loss_floor = (
        _floor(dataset, f"repeat_{name}_per_image") for name in ("loss", "test_loss")
    )
    critical = _critical(dataset)
    changes = _changes(dataset, critical)
    minima = significant_minima(dataset) if slice_of_space else None
    noise = None if test_loss_floor is None else test_loss_floor.mean_loss.estimate
    return Analysis(
        finite=int((status == FINITE).sum()),
        not_finite=int((status == NOT_FINITE).sum()),
        not_computed=int((status == NOT_COMPUTED).sum()),
        start_loss=float(dataset.start_loss_per_image.mean(dtype=np.float64)),
        start_test_loss=_interval(dataset.start_test_loss_per_image, mean_interval),
        start_test_accuracy=_interval(dataset.start_test_correct_per_image, proportion_interval),
        loss_floor=loss_floor,
        test_loss_floor=test_loss_floor,
        critical=critical,
        lowest=_lowest(dataset, changes) if in_space else None,
        minima=minima,
        variation=total_variation(dataset["test_loss"]) if in_space else None,
        reliability=(
            split_half_reliability(_per_image(dataset, "test_loss")) if in_space else None
        ),
        numerical_share=_numerical_share(dataset, test_loss_floor) if in_space else None,
        counts=None if minima is None else _counts(dataset, minima),
        nulls=(null_counts(dataset, np.random.default_rng(0), noise) if slice_of_space else {}),
        frozen=analyze_frozen(dataset) if "frozen_test_loss_per_image" in dataset else None,
        escapes=(analyze_escapes(dataset, noise or 0.0) if "escape_loss_change" in dataset else ()),
        ruggedness=_ruggedness(dataset, noise or 0.0) if in_space else {},
        correlogram=_correlogram(dataset) if "walk" in dataset.dims else None,
        cliffs=analyze_cliffs(dataset, noise or 0.0) if "cliff" in dataset.dims else None,
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
    changes = {name: values.variable for name, values in analysis.changes.data_vars.items()}
    return dataset.assign(changes).assign_attrs(analysis=json.dumps(found))  # units stay


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


def analysis_of(dataset: Dataset) -> Analysis:
    """Return the analysis that a scan was saved with; computed where this version has more."""
    names = {field.name for field in fields(Analysis)} - {"changes"}
    stored = json.loads(dataset.attrs.get("analysis", "{}"))
    return read_analysis(dataset) if stored.keys() == names else analyze(dataset)


def band_edges(critical: float) -> tuple[float, float, float, float]:
    """Return the limits between bands of changes, in paired standard errors.

    Args:
        critical: of all points together.
    """
    outer = max(critical, ALONE)  # one point alone can need less than two errors
    return (-outer, -ALONE, ALONE, outer)


def bands(changes: ArrayLike, standard_errors: ArrayLike, critical: float) -> NDArray[np.float64]:
    """Return the band of each change: how many of the `band_edges` it exceeds.

    NaN if it is not finite. A change without any error is beyond all.
    """
    change, error = np.asarray(changes), np.asarray(standard_errors)
    with np.errstate(divide="ignore", invalid="ignore"):  # the start: 0 with a standard error of 0
        in_standard_errors = np.where(change == 0, 0.0, change / error)
    comparable = np.isfinite(change) & ~np.isnan(in_standard_errors)
    return np.where(comparable, np.digitize(in_standard_errors, band_edges(critical)), np.nan)


def _without_garbage(dataset: Dataset) -> Dataset:
    """Return a scan whose points that were not computed have no mean losses."""
    computed = dataset["status"] != NOT_COMPUTED
    return dataset.assign({name: dataset[name].where(computed) for name in ("loss", "test_loss")})


def _per_image(dataset: Dataset, name: str) -> ImageLosses:
    """Return the losses of each image; NaN at points that were not computed."""
    per_image = dataset[f"{name}_per_image"]
    computed = (dataset.status != NOT_COMPUTED).transpose(*_points(dataset, name)).values
    return ImageLosses.of(per_image).where(computed)


def _points(dataset: Dataset, name: str) -> tuple[Hashable, ...]:
    """Return the dimensions of the points, in the order in which losses of images have them."""
    return tuple(dim for dim in dataset[f"{name}_per_image"].dims if dim in dataset.status.dims)


def _floor(dataset: Dataset, name: str) -> NoiseFloor | None:
    if name not in dataset or not np.isfinite(dataset[name]).all():
        return None
    return noise_floor(dataset[name].transpose("repeat", ...).values)


def _critical(dataset: Dataset) -> Critical:
    if dataset.sizes["image"] < FEWEST_IMAGES:
        return Critical(np.inf, np.inf)
    largest = largest_deviations(_change(dataset, "test_loss"), np.random.default_rng(0))
    found = {side: upper_quantile(drawn, LEVEL).value for side, drawn in largest.items()}
    # All equal: no noise, and nothing to tell apart.
    return Critical(max(found["both"], ALONE), found["lower"])


def _numerical_share(dataset: Dataset, floor: NoiseFloor | None) -> Interval | None:
    """Return the numerical noise of a difference of two points over the variance of steps."""
    variance = step_variance(dataset["test_loss"])
    if floor is None or not variance > 0:
        return None
    estimate, low, high = (
        2 * value**2 / variance
        for value in (floor.mean_loss.estimate, floor.mean_loss.low, floor.mean_loss.high)
    )
    return Interval(estimate, low, high, floor.mean_loss.level, floor.mean_loss.over)


def _counts(dataset: Dataset, minima: Minima) -> Counts | None:
    """Count minima at thresholds up to past the deepest."""
    if dataset.sizes["image"] < FEWEST_IMAGES or not minima.minima:
        return None
    every = [found.persistence for found in find_minima(dataset.test_loss, 0.0).minima]
    finite = dataset.test_loss.values[np.isfinite(dataset.test_loss.values)]
    depths = [depth for depth in every if np.isfinite(depth)]
    largest = 1.2 * max(depths, default=float(np.ptp(finite)))
    replicates = int(np.clip(CURVE_POINTS // dataset.test_loss.size, CURVE_LEAST, CURVE_MOST))
    curve = count_curve(
        dataset,
        np.linspace(0, largest, THRESHOLDS),
        np.random.default_rng(0),
        replicates=replicates,
    )
    names = ("threshold", "count", "low", "high", "noise_count")
    return Counts(*(curve[name].values.astype(np.float64) for name in names))


def _ruggedness(dataset: Dataset, floor: float) -> dict[str, Ruggedness]:
    surface = _surface(dataset, floor)
    if surface is None:
        return {}
    names = WALK_RUGGEDNESS if "walk" in dataset.dims else RUGGEDNESS
    generator = np.random.default_rng(0)
    return {
        name: estimate(
            STATISTICS[name].function, surface, generator, _resampled(dataset), RESAMPLES
        )
        for name in names
    }


def _correlogram(dataset: Dataset) -> Correlogram | None:
    surface = _surface(dataset, 0.0)
    if surface is None:
        return None
    lags = np.arange(1, min(LAGS, dataset.sizes["step"] // 2) + 1)
    generator = np.random.default_rng(0)
    over = _resampled(dataset)
    found = [
        estimate(partial(autocorrelation, lag=int(lag)), surface, generator, over, RESAMPLES)
        for lag in lags
    ]
    columns = [np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high")]
    return Correlogram(lags.astype(np.float64), *columns)


def _resampled(dataset: Dataset) -> tuple[str, ...]:
    """Return what intervals of ruggedness are over; walks, unlike rays, share no region."""
    return ("images", "lines") if dataset.sizes.get("walk", 1) > 1 else ("images",)


def _surface(dataset: Dataset, floor: float) -> Surface | None:
    """Return the surface of the test loss; None if it is not evenly spaced, or of one image."""
    if dataset.sizes["image"] < 2:
        return None
    noise = np.sqrt(2) * floor
    if "walk" in dataset.dims:
        per_image = _per_image(dataset.transpose("walk", "step", ...), "test_loss")
        positions = dataset.position.transpose("walk", "step", "component").values
        length = float(np.linalg.norm(np.diff(positions, axis=1), axis=2).mean())
        return Surface.from_walks(per_image, positions, length, noise)
    axis = "distance" if "ray" in dataset.dims else "x"
    step = _step(dataset, axis)
    if step is None:
        return None
    lines = "ray" if "ray" in dataset.dims else "y"
    per_image = _per_image(dataset.transpose(lines, axis, ...), "test_loss")
    rows = _step(dataset, "y") if lines == "y" else None
    square = rows is not None and np.isclose(rows, step)
    make = Surface.from_plane if square else Surface.from_lines
    return make(per_image, step, noise)


def _step(dataset: Dataset, axis: str) -> float | None:
    """Return the distance between neighbors along an axis; None if it is not one."""
    steps = np.diff(dataset[axis].values.astype(np.float64))
    return float(steps.mean()) if np.allclose(steps, steps.mean(), atol=0) else None


def _changes(dataset: Dataset, critical: Critical) -> Dataset:
    """Compare each point with the start, on the same images."""
    losses = _change(dataset, "test_loss")
    change = _over_points(dataset, "test_loss", losses.means)
    error = change.copy(data=losses.errors.reshape(change.shape))
    found = {
        "test_loss_change": change,
        "test_loss_change_error": error,
        "test_loss_band": change.copy(data=bands(change, error, critical.both)),
    }
    for line in LINES.keys() & set(dataset.dims):
        loss = _over_points(dataset, "loss", _change(dataset, "loss").means)
        # Lines share their images: the error of their mean is that of each image's mean change.
        mean, mean_error = _of_all_lines(dataset, line)
        found |= {
            "loss_change": loss,
            "mean_loss_change": loss.mean(line, skipna=False),
            "mean_test_loss_change": (LINES[line], mean),
            "mean_test_loss_change_error": (LINES[line], mean_error),
        }
    return Dataset(found)


def _change(dataset: Dataset, name: str) -> ImageLosses:
    """Return each image's change from the start; 0 at the start itself."""
    return _per_image(dataset, name).minus(dataset[f"start_{name}_per_image"])


def _over_points(dataset: Dataset, name: str, values: NDArray[np.float64]) -> DataArray:
    """Return values (points,) over the points of a scan."""
    template = dataset[name].transpose(*_points(dataset, name)).drop_attrs()
    return template.copy(data=values.reshape(template.shape))


def _of_all_lines(dataset: Dataset, line: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over rays or walks of the change of the test loss, and its error."""
    along = LINES[line]
    means, errors = [], []
    for number in range(dataset.sizes[along]):
        at = dataset.isel({along: [number]}).transpose(line, along, ...)
        ((_, block),) = _change(at, "test_loss").by_points(at.sizes[line])
        block = np.where(np.isfinite(block), block, np.nan)
        mean = block.mean(axis=0)
        means.append(mean.mean())
        errors.append(paired_standard_error(mean))
    return np.array(means), np.array(errors)


def _interval(per_image: DataArray, of: Callable[[NDArray[Any]], Interval]) -> Interval:
    """Return a mean with its interval; without bounds for one image."""
    values = per_image.values
    if len(values) < 2:
        return Interval(float(values.mean()), np.nan, np.nan, 0.95, IMAGES)
    return of(values)


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
        return _plain(tuple(value.tolist()))
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
