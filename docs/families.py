"""The table of docs/families.md, from the models that tests/test_families.py tests.

`python docs/families.py` builds each of them (some minutes) and writes its row.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_families import FAMILIES, PAGE, SMALL, prepared, row

if __name__ == "__main__":
    text = [line for line in PAGE.read_text().splitlines() if not line.startswith("| ")]
    header = [line for line in PAGE.read_text().splitlines() if line.startswith("| model |")]
    rows = [row(prepared(family)) for family in FAMILIES if family.options is not SMALL]
    rule = text.pop()  # of the table, its last line that is no row
    PAGE.write_text("\n".join([*text, *header, rule, *rows]) + "\n")
