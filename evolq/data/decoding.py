"""From image files to pixels: decoding, resizing and cropping as a model wants them.

The work is timm's own evaluation transform, up to but without the normalization, so that an image
stays one byte per value. Orientation tags are not applied, as in every ImageNet evaluation.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from PIL import Image
from torch import Tensor

from evolq.data.folders import readable
from evolq.errors import InputError

MODES = {1: "L", 3: "RGB"}

# Formats whose pixels of mode `I` are 16 bits wide (Pillow scales other ranges of PGM to it).
SIXTEEN_BITS = ("PNG", "PPM")


class Decoded(NamedTuple):
    """An image as the model wants it, before normalization."""

    pixels: Tensor
    """(channels, height, width) uint8."""
    content: str
    """SHA-256 (hex) of the file."""


def decoder(preprocessing: Mapping[str, Any]) -> Callable[[Path], Decoded]:
    """Return the function that reads an image file; it raises InputError for an unreadable one.

    Args:
        preprocessing: As from `models.preprocessing`.

    Raises:
        InputError: if the model wants neither gray nor color images.
    """
    channels = preprocessing["input_size"][0]
    if channels not in MODES:
        raise InputError(
            f"the model wants images of {channels} channels, image files give 1 (gray) or 3 "
            "(color); choose another model"
        )
    transform = timm.data.create_transform(**preprocessing, is_training=False, normalize=False)

    def decode(path: Path) -> Decoded:
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                pixels = transform(_converted(image, MODES[channels])).contiguous()
        except Exception as error:  # each decoder of Pillow raises its own kinds
            reason = getattr(error, "strerror", None) or str(error)
            if "BytesIO" in reason:  # the object that Pillow was given to read
                reason = "in no format that Pillow knows"
            raise InputError(
                f"cannot read image {readable(path)} ({reason}); replace or remove it, or leave "
                "out such images with skip_unreadable"
            ) from error
        return Decoded(pixels, hashlib.sha256(content).hexdigest())

    return decode


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        # Pillow would clip 16 bits to 8, not scale them; `I` takes either order of bytes.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert(mode)
