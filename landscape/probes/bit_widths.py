"""The landscape over bit-widths: of all weights at once, and of one layer at a time.

A number of bits brings the scale and zero point that were calibrated for it: an old scale would
keep the old error.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from evolq.errors import InputError
from evolq.optimizers.mixed_precision import Table, entries_at
from evolq.points import Point, displace, role
from landscape.ledger import Ledger
from landscape.probes.sampling import CalibrationLoss, HeldOutLoss, OnPoint, sample_cells


def sample_bits(
    origin: Point,
    table: Table,
    multipliers: np.ndarray,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
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

    Returns:
        A Dataset as `landscape.sample_plane` returns, with dimensions `bits, multiplier`.

    Raises:
        InputError: if the table is empty, or multipliers are not positive and ascending.
    """
    bits = _bits(table, "Bits of all weights")
    if not (len(multipliers) and multipliers[0] > 0 and (np.diff(multipliers) > 0).all()):
        raise InputError(f"multipliers must be positive and ascending, not {multipliers}")

    def at(width: int, multiplier: float) -> Point:
        point = {**origin, **entries_at(dict.fromkeys(table, width), table)}
        scales = {name: point[name].new_ones(()) for name in names if role(name) == "scale"}
        return displace(point, scales, float(np.log(multiplier)))

    names = tuple(entries_at(dict.fromkeys(table, int(bits.values[0])), table))
    cells = (
        ({"bits": row, "multiplier": column}, at(int(width), float(multiplier)))
        for row, width in enumerate(bits.values)
        for column, multiplier in enumerate(multipliers)
    )
    words = {"long_name": "Factor on all weight scales", "units": "1"}
    coordinates = {"bits": bits, "multiplier": xr.Variable("multiplier", multipliers, words)}
    groups = [(names, cells)]
    return sample_cells(origin, coordinates, groups, objective, test, on_point, ledger=ledger)


def sample_layers(
    origin: Point,
    table: Table,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
) -> xr.Dataset:
    """Measure the losses with one layer at each number of bits, all others as in the start.

    Only the part of the network behind a layer is evaluated. Arguments and errors are those of
    `sample_bits`; the Dataset has dimensions `layer, bits`, layers by the names of their weights.
    """
    bits = _bits(table, "Bits of this layer's weights")

    def cells(layer: str, row: int) -> list[tuple[dict[str, int], Point]]:
        return [
            ({"layer": row, "bits": column}, {**origin, **table[layer][int(width)]})
            for column, width in enumerate(bits.values)
        ]

    groups = (
        (tuple(table[layer][int(bits.values[0])]), cells(layer, row))
        for row, layer in enumerate(table)
    )
    layers = xr.Variable("layer", list(table), {"long_name": "Layer, from input to output"})
    coordinates = {"layer": layers, "bits": bits}
    return sample_cells(origin, coordinates, groups, objective, test, on_point, ledger=ledger)


def _bits(table: Table, words: str) -> xr.Variable:
    """Return the widths that every layer has an entry for, as a coordinate of that name."""
    if not table:
        raise InputError("no weight's bits are to change; widen within or exclude")
    widths = sorted(set.intersection(*(set(widths) for widths in table.values())))
    return xr.Variable("bits", widths, {"long_name": words, "units": "bit"})
