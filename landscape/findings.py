"""What a scan found, in words: a short table that someone new to it can read.

Readings follow fixed thresholds, stated here once; figures use the same words.

- The network's share is that of the variance of the steps between neighboring points which other
  test images would show, too. Below 1/3 the steps are mostly sampling noise, above 2/3 mostly the
  network's own.
- Differences of two test losses are read by the bands of `landscape.analysis`.
- Total variation is relative to the range: 1 where each line across the scan only rises or only
  falls, 2 where it crosses one valley or hill. Up to 2.5 is called smooth, unless there are more
  minima than one, from 4 on jagged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from xarray import Dataset

from landscape.analysis import PERHAPS_HIGHER, Analysis, bands
from landscape.cliff_findings import describe_cliffs
from landscape.probes.sampling import FINITE
from landscape.statistics.intervals import Interval
from landscape.statistics.numerical_noise import NoiseFloor
from landscape.statistics.resampling import FEWEST_IMAGES
from landscape.statistics.roughness import ROUNDING, Reliability
from landscape.statistics.ruggedness import STATISTICS
from landscape.words import Row, configuration_of

# Of the bands in landscape.analysis.
BAND_WORDS = (
    "clearly lower",
    "perhaps lower",
    "not told apart",
    "perhaps higher",
    "clearly higher",
)
MOSTLY_NOISE, MOSTLY_NETWORK = 1 / 3, 2 / 3
SMOOTH, JAGGED = 2.5, 4.0
FEWEST_FOR_SHARES = 4  # images: two halves of two

# Of landscape.statistics.null_counts.
NULL_WORDS = {
    "sampling": "of sampling noise alone",
    "smooth": "on a smooth bowl with it",
    "numerical": "on one with numerical noise",
}


def describe(dataset: Dataset, analysis: Analysis) -> list[Row]:
    """Say in words what a scan found.

    Args:
        dataset: the result of a scan of any kind.
        analysis: of it.
    """
    known = [_points(analysis), *describe_radius(dataset), *_start(dataset, analysis)]
    if "bits" in dataset.dims:
        describe_width = _layers_at if "layer" in dataset.dims else _factors_at
        widths = sorted((int(bits) for bits in dataset.bits), reverse=True)
        return [*known, *(describe_width(dataset, analysis, width) for width in widths)]
    if "walk" in dataset.dims:
        own = [*_ends(dataset, analysis), *_lowest(analysis)]
    else:
        variation = _variation(dataset, analysis)
        minima = [*_minima(dataset, analysis), *_frozen(analysis), *_escapes(analysis)]
        own = [*_lowest(analysis), *minima, variation]
    if analysis.cliffs is not None:
        own = [*describe_cliffs(analysis.cliffs), *own]
    return [*_jaggedness(analysis), *known, *own, *_ruggedness(dataset, analysis)]


def _jaggedness(analysis: Analysis) -> list[Row]:
    """Say how much of the steps between neighbors is the network's, and how much is noise."""
    reliability, share = analysis.reliability, analysis.numerical_share
    assert reliability is not None  # a plane or rays have one
    return [
        Row("Jaggedness: the network's", *_network(reliability)),
        Row("Jaggedness: sampling noise", *_sampling(reliability)),
        Row("Jaggedness: numerical noise", *_numerical(analysis.test_loss_floor, share)),
    ]


def _network(reliability: Reliability) -> tuple[str, str]:
    share = reliability.true_share
    if np.isnan(share):
        return "not known", _no_share(reliability)
    low, high = reliability.true_share_interval
    if share < MOSTLY_NOISE:
        words = "mostly sampling noise"
    elif share < MOSTLY_NETWORK:
        words = "partly the network, partly sampling noise"
    else:
        words = "mostly the network's own"
    words += f": {low:.0%} to {high:.0%} (95 %) of the variance of the steps between neighbors"
    if not reliability.interval_holds:
        words += "; few images carry it, so it may be less or more"
    return f"{share:.0%}", words


def _sampling(reliability: Reliability) -> tuple[str, str]:
    share = reliability.true_share
    if np.isnan(share):
        return "not known", _no_share(reliability)
    words = f"other {reliability.images:,} test images would show "
    words += f"{reliability.predicted_share:.0%} of these steps' variance"
    wanted = reliability.images_for(0.9)
    if share < 0.9:
        words += (
            f"; about {wanted:,.0f} images would make the network's share 90%"
            if np.isfinite(wanted)
            else "; nothing here is told from noise"
        )
    return f"{1 - share:.0%}", words


def _no_share(reliability: Reliability) -> str:
    few = reliability.images < FEWEST_FOR_SHARES
    return f"fewer than {FEWEST_FOR_SHARES} images" if few else "nothing varies between neighbors"


def _numerical(floor: NoiseFloor | None, share: Interval | None) -> tuple[str, str]:
    if floor is None:
        return "not measured", "give repeats of the start to measure it"
    size = floor.mean_loss
    words = (
        f"each test loss scatters by {size.estimate:.2g} ({size.low:.2g} to {size.high:.2g}) "
        f"under changes of 1e-6 that mean nothing, each image's by {floor.per_image:.2g}"
    )
    return "not known" if share is None else _percent(share.estimate), words


def _percent(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.001 else f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _layers_at(dataset: Dataset, analysis: Analysis, bits: int) -> Row:
    """Describe which layers suffer at one number of bits."""
    found = analysis.changes.sel(bits=bits)
    worse = found.where(~(found.test_loss_band < PERHAPS_HIGHER), drop=True)
    worst = worse.sortby(worse.test_loss_change.fillna(np.inf), ascending=False)
    name = f"Layers worse at {bits} bits"
    value = f"{worse.sizes['layer']} of {found.sizes['layer']}"
    if not worse.sizes["layer"]:
        return Row(name, value, "no layer alone is told apart from the start")
    changes = zip(worst.layer.values, worst.test_loss_change.values, strict=True)
    words = [
        f"{layer} {change:+.3f}" if np.isfinite(change) else f"{layer} (not finite)"
        for layer, change in changes
    ]
    return Row(name, value, f"the test loss rises most with {', '.join(words[:3])}")


def _factors_at(dataset: Dataset, analysis: Analysis, bits: int) -> Row:
    """Describe the accuracy of one number of bits, at the calibrated scales and the best factor."""
    accuracy = dataset.test_accuracy.sel(bits=bits)
    calibrated = float(accuracy.sel(multiplier=1.0, method="nearest"))
    words = "with the calibrated scales"
    if bits in analysis.best_factors:
        best = analysis.best_factors[bits]
        words += f"; times {best:.2g}, the best for the calibration loss: "
        words += f"{float(accuracy.sel(multiplier=best)):.1%}"
    return Row(f"Test accuracy at {bits} bits", f"{calibrated:.1%}", words)


def table(rows: Iterable[Row]) -> Table:
    """Lay rows out for a terminal."""
    result = Table("What", "Value", "In words", box=SIMPLE_HEAD, pad_edge=False)
    for column in result.columns[:2]:
        column.no_wrap = True
    for row in rows:
        result.add_row(*row)
    return result


def in_words(change: float, standard_error: float, critical: float) -> str:
    """Return the words for one change, given the critical value of all."""
    band = float(bands(change, standard_error, critical))
    return "not comparable with it" if np.isnan(band) else BAND_WORDS[int(band)]


def _points(analysis: Analysis) -> Row:
    holes = []
    if analysis.not_finite:
        holes.append(f"{analysis.not_finite:,} with a loss that is not finite")
    if analysis.not_computed:
        holes.append(f"{analysis.not_computed:,} not computed")
    total = analysis.finite + analysis.not_finite + analysis.not_computed
    return Row(
        "Points measured",
        f"{analysis.finite:,} of {total:,}",
        f"without {' and '.join(holes)}" if holes else "every loss is finite",
    )


def describe_radius(dataset: Dataset) -> list[Row]:
    """Describe a radius that was chosen by the test loss; nothing of one that was given."""
    configuration = configuration_of(dataset)
    if "radius_reached" not in configuration:
        return []
    change, errors = (configuration[f"radius_{key}"] for key in ("change", "standard_errors"))
    if change is None:
        words = "the test loss is not finite there"
    else:
        words = f"the test loss has moved by {change:+.4f} there, "
        words += f"{errors:.1f} paired standard errors" if errors is not None else "on every image"
    if not configuration["radius_reached"]:
        words += "; less than 4: the surface is flat as far as these images can tell"
    return [Row("Radius, chosen", f"{configuration['radius']:.3g}", words)]


def _start(dataset: Dataset, analysis: Analysis) -> list[Row]:
    images = dataset.sizes["image"]
    of_images = f"of {images:,} test images" if images > 1 else "of one test image"
    loss, accuracy = analysis.start_test_loss, analysis.start_test_accuracy
    floor = analysis.loss_floor
    lower = "what a search would lower"
    if floor is not None:
        lower += f"; numerical noise {floor.mean_loss.estimate:.2g}"
    return [
        Row(
            "Calibration loss at the start",
            f"{analysis.start_loss:.4f}",
            lower,
        ),
        Row(
            "Test loss at the start",
            f"{loss.estimate:.4f}",
            _between(of_images, f"{loss.low:.4f} to {loss.high:.4f}", images),
        ),
        Row(
            "Test accuracy at the start",
            f"{accuracy.estimate:.1%}",
            _between(of_images, f"{accuracy.low:.1%} to {accuracy.high:.1%}", images),
        ),
    ]


def _between(of_images: str, bounds: str, images: int) -> str:
    return f"{of_images}; {bounds} (95 %)" if images > 1 else f"{of_images}: no error is known"


def _lowest(analysis: Analysis) -> list[Row]:
    """Describe the lowest test loss; nothing if no point is finite."""
    lowest = analysis.lowest
    if lowest is None:
        return []
    place = ", ".join(f"{name} = {value:.3g}" for name, value in lowest.coordinates.items())
    change, error = lowest.change.value, lowest.change.error
    critical = analysis.critical.lower if change < 0 else analysis.critical.both
    words = f"at {place}: {change:+.4f}"
    if np.isfinite(error):
        words += f" ± {error:.4f} from the start, {in_words(change, error, critical)}"
        words += (
            f" (all points at once: {critical:.1f} standard errors)"
            if np.isfinite(critical)
            else f" (fewer than {FEWEST_IMAGES} images cannot tell for all points at once)"
        )
    else:
        words += " from the start; no error is known"
    if change < 0:
        words += f"; picked as the best of {analysis.finite:,}: expect less on other images"
    return [Row("Lowest test loss", f"{lowest.test_loss:.4f}", words)]


def _ends(dataset: Dataset, analysis: Analysis) -> list[Row]:
    """Describe how far walks lead, and what the loss has done there."""
    changes = analysis.changes
    last = changes.isel(step=-1)
    value, error = float(last.mean_test_loss_change), float(last.mean_test_loss_change_error)
    if not np.isfinite(value):
        return [Row("Test loss at the end of walks", "not known", "not all of them are finite")]
    words = f"± {error:.4f} over images, " if np.isfinite(error) else ""
    words += f"mean of {changes.sizes['walk']} after {changes.sizes['step'] - 1} steps; "
    each = last.test_loss_change.values
    words += f"single walks {each.min():+.3f} to {each.max():+.3f}"
    return [Row("Test loss at the end of walks", f"{value:+.4f}", words)]


def _minima(dataset: Dataset, analysis: Analysis) -> list[Row]:
    minima = analysis.minima
    assert minima is not None  # a plane or rays have them
    found = minima.minima
    if not found:
        nothing = analysis.not_finite == 0
        words = "nothing was measured" if nothing else "no point is finite"
        return [Row("Local minima above the noise", "none", words)]
    others = _others(analysis)
    on_edge = sum(minimum.boundary and minimum.edge for minimum in found)
    beside = sum(minimum.boundary and not minimum.edge for minimum in found)
    words = "the lowest point" + (" of each ray" if "ray" in dataset.dims else "")
    words += ", which always counts, and "
    if np.isinf(minima.sigmas):
        words += f"no other can be told from noise by fewer than {FEWEST_IMAGES} images"
    elif others:
        words += f"{others:,} deeper than {minima.sigmas:.2g} standard errors"
    else:
        words += f"no other: none is deeper than {minima.sigmas:.2g} standard errors"
    if minima.bound is not None:
        words += f", which noise alone exceeds in {minima.bound.level:.0%} of scans"
    if on_edge:
        words += f"; {on_edge:,} on the edge of the scan: the loss may fall further outside"
    if beside:
        words += f"; {beside:,} beside points that are not finite"
    counted = f"{minima.below:,} of them could be made by sampling noise alone"
    if analysis.nulls:
        counted += "; nulls have " + ", ".join(
            f"{count.mean:.3g} ({count.low:.0f} to {count.high:.0f}) {NULL_WORDS[kind]}"
            for kind, count in analysis.nulls.items()
        )
    return [
        Row("Local minima above the noise", f"{len(found):,}", words),
        Row("Local minima, noise ignored", f"{len(found) + minima.below:,}", counted),
    ]


def _frozen(analysis: Analysis) -> list[Row]:
    """Describe the null of frozen weight codes; nothing where it was not measured."""
    null = analysis.frozen
    if null is None:
        return []
    words = f"{null.ignored:,} with noise ignored; scales move, but no weight's code changes"
    if np.isfinite(null.step_share):
        words += f": steps have {_percent(null.step_share)} of the variance of the network's"
    return [Row("Local minima, codes frozen", f"{null.above:,}", words)]


def _escapes(analysis: Analysis) -> list[Row]:
    """Describe descents off the slice from each minimum."""
    rows = []
    for found in analysis.escapes:
        place = ", ".join(f"{name} = {value:.3g}" for name, value in found.coordinates.items())
        words = f"descents off the slice from {place} that lower the test loss by more than noise"
        words += f"; {found.lower} lower the calibration loss"
        if found.lower:
            words += f", the best by {-found.loss_change:.2g}: test loss {found.change:+.4f}"
            if np.isfinite(found.error):
                words += f" ± {found.error:.4f}"
            if found.floor:
                words += f", numerical noise {found.floor:.1g}"
        rows.append(Row("Ways out of a minimum", f"{found.escaped} of {found.descents}", words))
    return rows


def _others(analysis: Analysis) -> int:
    """Return how many minima above the noise flow into a lower one."""
    assert analysis.minima is not None  # a plane or rays have them
    return sum(bool(np.isfinite(minimum.persistence)) for minimum in analysis.minima.minima)


def _variation(dataset: Dataset, analysis: Analysis) -> Row:
    """Describe the total variation relative to the range; 1 is the least."""
    variation, others = analysis.variation, _others(analysis)
    assert variation is not None  # a plane or rays have one
    name = "Total variation / range"
    if np.isnan(variation):
        return Row(name, "not known", "too few finite points to tell")
    losses = dataset.test_loss.values[dataset.status.transpose(*dataset.test_loss.dims) == FINITE]
    if losses.size and np.ptp(losses) <= ROUNDING * np.abs(losses).max():
        return Row(name, "none", "flat: every point has the same loss, but for rounding")
    if variation < JAGGED and others:
        words = f"few turns along each line, but {others:,} more minima than the lowest are real"
    elif variation <= SMOOTH:
        words = "smooth: about one slope or one valley along each line"
    elif variation < JAGGED:
        words = "uneven: lines turn more often than one valley would"
    else:
        words = "jagged: lines go up and down again and again"
    return Row(name, f"{variation:.2f}", f"{words} (sampling noise included)")


def _ruggedness(dataset: Dataset, analysis: Analysis) -> list[Row]:
    """Describe statistics of ruggedness with their intervals over images, or walks and images."""
    over = "walks and images" if dataset.sizes.get("walk", 1) > 1 else "images"
    rows = []
    for name, found in analysis.ruggedness.items():
        statistic = STATISTICS[name]
        if not np.isfinite(found.value):
            continue
        words = f"{statistic.what}: {statistic.reading}"
        if np.isfinite(found.low):
            words = f"{found.low:.2g} to {found.high:.2g} (95 %, over {over}); {words}"
        rows.append(Row(name.replace("_", " ").capitalize(), f"{found.value:.3g}", words))
    return rows
