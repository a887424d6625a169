"""The landscape over bit-widths: of all weights at once, and of one layer at a time.

A number of bits brings the scale and zero point that were calibrated for it: an old scale would
keep the old error.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numpy as np
import xarray as xr

from evolq.errors import InputError
from evolq.optimizers.mixed_precision import Table, entries_at
from evolq.points import Point, displace, role
from landscape.ledger import Ledger
from landscape.probes.evaluation import CalibrationLoss, Evaluation, HeldOutLoss
from landscape.probes.sampling import Cells, OnPoint, sample_cells


def sample_bits(
    origin: Point,
    table: Table,
    multipliers: np.ndarray,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses with all weights in `table` at the same bits and all their scales scaled.

    Args:
        origin: the start; what is not in the table stays as it is here.
        table: of the weights that change, from `mixed_precision.calibration_table`.
        multipliers: positive, ascending: what the calibrated scales are multiplied by.
        objective: on calibration images.
        test: on test images.
        on_point: see `landscape.sample_plane`.
        ledger: likewise.
        executor: likewise.

    Returns:
        A Dataset as `landscape.sample_plane` returns, with dimensions `bits, multiplier`.

    Raises:
        InputError: if the table is empty, or multipliers are not positive and ascending.
    """
    bits = _bits(table, "Bits of all weights")
    if not (len(multipliers) and multipliers[0] > 0 and (np.diff(multipliers) > 0).all()):
        raise InputError(f"multipliers must be positive and ascending, not {multipliers}")
    names = tuple(entries_at(dict.fromkeys(table, int(bits.values[0])), table))
    cells = (
        ({"bits": row, "multiplier": column}, (int(width), float(multiplier)))
        for row, width in enumerate(bits.values)
        for column, multiplier in enumerate(multipliers)
    )
    words = {"long_name": "Factor on all weight scales", "units": "1"}
    coordinates = {"bits": bits, "multiplier": xr.Variable("multiplier", multipliers, words)}
    evaluation = Evaluation(objective, test, origin, partial(_scaled, table))
    groups = [(names, cells)]
    return sample_cells(evaluation, coordinates, groups, on_point, None, ledger, executor)


def _scaled(table: Table, width: int, multiplier: float) -> Point:
    """Return the entries of all weights at some bits, the calibrated scales multiplied."""
    entries = entries_at(dict.fromkeys(table, width), table)
    scales = {name: entries[name].new_ones(()) for name in entries if role(name) == "scale"}
    return displace(entries, scales, float(np.log(multiplier)))


def sample_layers(
    origin: Point,
    table: Table,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses with one layer at each number of bits, all others as in the start.

    Only the part of the network behind a layer is evaluated. Arguments and errors are those of
    `sample_bits`; the Dataset has dimensions `layer, bits`, layers by the names of their weights.
    """
    bits = _bits(table, "Bits of this layer's weights")

    def cells(layer: str, row: int) -> Cells:
        return [
            ({"layer": row, "bits": column}, (layer, int(width)))
            for column, width in enumerate(bits.values)
        ]

    groups = (
        (tuple(table[layer][int(bits.values[0])]), cells(layer, row))
        for row, layer in enumerate(table)
    )
    layers = xr.Variable("layer", list(table), {"long_name": "Layer, from input to output"})
    coordinates = {"layer": layers, "bits": bits}
    evaluation = Evaluation(objective, test, origin, partial(_layer_at, table))
    return sample_cells(evaluation, coordinates, groups, on_point, None, ledger, executor)


def _layer_at(table: Table, layer: str, width: int) -> Point:
    return table[layer][width]


def _bits(table: Table, words: str) -> xr.Variable:
    """Return the widths that every layer has an entry for, as a coordinate of that name."""
    if not table:
        raise InputError("no weight's bits are to change; widen within or exclude")
    widths = sorted(set.intersection(*(set(widths) for widths in table.values())))
    return xr.Variable("bits", widths, {"long_name": words, "units": "bit"})
