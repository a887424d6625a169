"""What is inside a page."""

import base64
import gzip
import re
from pathlib import Path


def page_data(path: Path) -> str:
    """Return what a page draws, as JSON, unpacked as a browser does it."""
    packed = re.search(r'id="data">([^<]+)<', path.read_text(encoding="utf-8"))
    assert packed is not None
    return gzip.decompress(base64.b64decode(packed.group(1))).decode()
