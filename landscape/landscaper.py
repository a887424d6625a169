"""Planes for Landscaper, the topological tool of LBNL (github.com/ml-science-tools/landscaper).

Its `LossLandscape.load_from_npz` reads what is written here; merge trees, profiles and persistence
then come from the same numbers as this project's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from evolq.atomic import whole_file
from evolq.errors import InputError


def to_landscaper(dataset: xr.Dataset, path: str | Path, loss: str = "test_loss") -> None:
    """Write the loss of a plane as Landscaper's `.npz`.

    The file holds `loss`, (y, x), and `coordinates`, (2, points): those along x, then along y.
    Landscaper 1.3 lists points as `numpy.meshgrid` of the coordinates does and flattens the loss
    row by row; one array holds both axes, so that they need equally many points. Means over images
    are all that it takes: what is noise, only this project's file knows.

    Args:
        dataset: of a plane.
        path: ends in .npz, as Landscaper demands.
        loss: `test_loss` or `loss`.

    Raises:
        InputError: for another suffix, a Dataset that is no plane of as many points along x as
            along y or has no such loss, losses that are not finite (Landscaper has no walls), or
            a file that cannot be written.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"Landscaper reads files that end in .npz, not {Path(path).name!r}")
    if loss not in dataset or set(dataset[loss].dims) != {"y", "x"}:
        raise InputError(f"the Dataset has no plane of {loss!r}; scan with `probe` plane")
    if dataset.sizes["x"] != dataset.sizes["y"]:
        raise InputError(
            f"Landscaper reads as many points along x as along y, not {dataset.sizes['x']} and "
            f"{dataset.sizes['y']}"
        )
    values = dataset[loss].transpose("y", "x").values.astype(np.float64)
    missing = int((~np.isfinite(values)).sum())
    if missing:
        raise InputError(f"{missing} losses are not finite, and Landscaper has no place for them")
    with whole_file(path) as file:
        np.savez(file, loss=values, coordinates=np.stack([dataset.x.values, dataset.y.values]))
