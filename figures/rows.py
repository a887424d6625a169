"""Numbers of stored rows, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLAIMS = Path(__file__).parent / "claims" / "runs.jsonl"
MEASURE_CLAIMS = "python -m figures.claims"

Row = Mapping[str, Any]


def by_seed(rows: Sequence[Row], measure: str, network: str, bits: int) -> dict[int, Row]:
    """Return the numbers of one measure of one network, by seed."""
    wanted = measure, network, bits
    return {
        row["seed"]: row["values"]
        for row in rows
        if (row["measure"], row["network"], row["bits"]) == wanted
    }
