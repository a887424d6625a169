"""What the minima of a slice are worth: beside frozen codes, and off the slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from xarray import Dataset

from evolq.losses.paired import paired_standard_error
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.intervals import mean_interval
from landscape.statistics.minima import significant_minima
from landscape.statistics.roughness import step_variance

# One-sided level at which the test loss of a descent is lower: so many of descents that lead
# nowhere would be called so by sampling noise.
LEVEL = 0.05


@dataclass(frozen=True)
class FrozenNull:
    """The slice with the start's codes of weights, while scales move.

    Attributes:
        above: its minima above the noise, the lowest included.
        ignored: its minima, noise ignored.
        step_share: variance of its steps between neighbors over that of the slice's own; NaN where
            nothing varies.
    """

    above: int
    ignored: int
    step_share: float


@dataclass(frozen=True)
class Escape:
    """Descents off the slice from one minimum.

    Attributes:
        coordinates: of the minimum.
        descents: their number.
        lower: how many found a lower calibration loss.
        escaped: how many of these are lower on the test images, too: a one-sided paired t test at
            5 %, and by more than the numerical noise of a difference.
        loss_change: of the calibration loss, of the descent that lowered it most.
        change: of the test loss there; those images had no part in the choice.
        error: its paired standard error.
        floor: numerical noise of a difference of two test losses; 0 if it is not known.
    """

    coordinates: Mapping[str, float]
    descents: int
    lower: int
    escaped: int
    loss_change: float
    change: float
    error: float
    floor: float


def analyze_frozen(dataset: Dataset) -> FrozenNull:
    """Return what is left of a slice whose weights keep their codes.

    Args:
        dataset: a scan with `frozen_test_loss_per_image`.
    """
    per_image = dataset.frozen_test_loss_per_image.transpose(*dataset.test_loss.dims, "image")
    means = ImageLosses.of(per_image).means.reshape(dataset.test_loss.shape)
    null = dataset.assign(
        test_loss=dataset.test_loss.copy(data=means), test_loss_per_image=per_image
    )
    found = significant_minima(null)
    own = step_variance(dataset.test_loss)
    share = step_variance(null.test_loss) / own if own > 0 else np.nan
    return FrozenNull(len(found.minima), len(found.minima) + found.below, float(share))


def analyze_escapes(dataset: Dataset, floor: float) -> tuple[Escape, ...]:
    """Return what descents from each minimum found.

    Args:
        dataset: a scan with `landscape.probes.escapes.add_escapes`.
        floor: standard deviation of the mean test loss by numerical noise; 0 if it is not known.
    """
    noise = float(np.sqrt(2) * floor)
    losses = dataset.escape_loss_change.transpose("minimum", "direction").values
    changes = dataset.escape_change_per_image.transpose("minimum", "direction", "image").values
    axes = [name for name in ("x", "y", "ray", "distance") if f"minimum_{name}" in dataset]
    found = []
    for number, (loss, change) in enumerate(zip(losses, changes, strict=True)):
        mean, error = change.mean(axis=1), paired_standard_error(change)
        # below the upper end of a two-sided interval of twice the level
        high = np.full(len(mean), np.inf)
        if change.shape[1] > 1:
            high = np.array([mean_interval(each, 1 - 2 * LEVEL).high for each in change])
        best = int(loss.argmin())
        found.append(
            Escape(
                {name: float(dataset[f"minimum_{name}"][number]) for name in axes},
                len(loss),
                int((loss < 0).sum()),
                int(((loss < 0) & (high < 0) & (mean < -noise)).sum()),
                float(loss[best]),
                float(mean[best]),
                float(error[best]),
                noise,
            )
        )
    return tuple(found)
