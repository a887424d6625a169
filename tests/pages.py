"""What is inside a page."""

import base64
import gzip
import re


def unpacked(page: str, name: str) -> str:
    """Return the text that a page holds compressed under `name`, as a browser unpacks it."""
    packed = re.search(rf'id="{name}">([^<]+)<', page)
    assert packed is not None
    return gzip.decompress(base64.b64decode(packed.group(1))).decode()
