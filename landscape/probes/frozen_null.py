"""The null of frozen weight codes: the same slice, where no weight's code changes.

On slices of scale space full precision is constant and no null. Here every weight keeps the code
that it has at the start, and only scales move: what is left of minima and steps is not made by
codes of weights. Codes of activations depend on the images and follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from itertools import product

import numpy as np
import xarray as xr

from evolq.errors import InputError
from evolq.network.deployed import weight_nodes
from evolq.network.quantized import QuantizedNetwork
from evolq.on_disk import full
from evolq.points import Point
from landscape.large import variable
from landscape.ledger import Ledger, folder_of
from landscape.probes.cliff_losses import frozen, held_names
from landscape.probes.evaluation import Evaluation, HeldOutLoss, NoLoss, evaluate
from landscape.probes.slices import Line, Slice, directions_of, origin_of, point_at
from landscape.work.pieces import Failed, Piece, finish
from landscape.work.shared import Shared


def can_freeze(network: QuantizedNetwork, where: Slice) -> bool:
    """Return whether scales of weights move on a slice, and nothing else reads these weights."""
    moving = set().union(*directions_of(where))
    if not any(f"{name}.scale" in moving for name in weight_nodes(network)):
        return False
    start = origin_of(where)
    try:
        for line in [Line(start, direction) for direction in directions_of(where)]:
            frozen(network, start, line.at(1e-3))
    except InputError:
        return False
    return True


def add_frozen(
    dataset: xr.Dataset,
    where: Slice,
    network: QuantizedNetwork,
    test: HeldOutLoss,
    on_point: Callable[[xr.Dataset, int, int], None] | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> None:
    """Measure the test loss at all points of a scan with the start's codes of weights; in place.

    Args:
        dataset: of a plane or of rays; gets `frozen_test_loss_per_image` (..., image), NaN at
            points that failed, which the attribute `failed` names.
        where: the slice that was scanned.
        network: from `quantize`; see `can_freeze`.
        test: on test images.
        on_point: called after each point with the Dataset, the number done, and that of all.
        ledger: keeps each point.
        executor: measures the points, see `sample_plane`.
    """
    origin = origin_of(where)
    names = held_names(network, set().union(*directions_of(where)))
    at = partial(_frozen_at, network, origin, where)
    folder = folder_of(ledger)
    shared = Shared(Evaluation(NoLoss(), test, origin, at), folder)
    dims = [str(name) for name in dataset.test_loss.dims]
    cells = {}
    pieces = []
    for index in product(*(range(dataset.sizes[name]) for name in dims)):
        cell = list(zip(dims, index, strict=True))
        key = "frozen " + " ".join(f"{name}={place}" for name, place in cell)
        coordinates = {name: float(dataset[name][place]) for name, place in cell}
        cells[key] = index
        pieces.append(Piece(key, evaluate, (shared, names, coordinates)))
    shape = (*dataset.test_loss.shape, dataset.sizes["image"])
    array = full(shape, np.nan, np.float32, folder)
    dataset["frozen_test_loss_per_image"] = variable((*dims, "image"), array)
    failed = json.loads(dataset.attrs.get("failed", "{}"))
    for done, (key, found) in enumerate(finish(pieces, ledger, executor), start=1):
        if isinstance(found, Failed):
            failed[key] = found.error
        else:
            array[cells[key]] = found["test_loss"]
        if on_point:
            on_point(dataset, done, len(pieces))
    if failed:
        dataset.attrs["failed"] = json.dumps(failed)


def _frozen_at(
    network: QuantizedNetwork, origin: Point, where: Slice, coordinates: Mapping[str, float]
) -> Point:
    return frozen(network, origin, point_at(where, coordinates))
