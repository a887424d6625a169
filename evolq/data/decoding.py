"""From image files to pixels: decoding, resizing and cropping as a model wants them.

The work is timm's own evaluation transform, up to but without the normalization, so that a cached
image is one byte per value. Orientation tags are not applied, as in every ImageNet evaluation.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor

from evolq.data import cache as image_cache
from evolq.errors import InputError

IMAGES_PER_WORKER = 1000
"""Starting a process and importing torch in it takes as long as decoding about this many images."""

MODES = {1: "L", 3: "RGB"}


class Decoded(NamedTuple):
    """An image as the model wants it, before normalization."""

    pixels: Tensor
    """(channels, height, width) uint8."""
    content: str
    """SHA-256 (hex) of the file."""


def decode_images(
    paths: Iterable[Path], preprocessing: Mapping[str, Any], workers: int | None = None
) -> Generator[tuple[Path, Decoded | InputError]]:
    """Yield each image as pixels or, if it is unreadable, as the error to raise.

    Cached images come first, then the others in the order given. The pixels depend on neither the
    cache nor `workers`.

    Args:
        paths: The files, all different.
        preprocessing: As from `models.preprocessing`.
        workers: Processes that decode; None for one per `IMAGES_PER_WORKER` images that are not
            cached, at most one per core. One worker is this process itself.

    Raises:
        InputError: if the model wants neither gray nor color images.
    """
    config = _configuration(preprocessing)
    absent = {}
    for path in paths:
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            yield path, _unreadable(path, error)
            continue
        pixels = image_cache.read(_cache_key(content, config))
        if pixels is None:
            absent[path] = content
        else:
            yield path, Decoded(pixels, content)
    if workers is None:
        workers = min(os.cpu_count() or 1, len(absent) // IMAGES_PER_WORKER)
    cache_works = True
    decoded = _decode_all(list(absent), config, workers)
    for (path, content), result in zip(absent.items(), decoded, strict=True):
        if isinstance(result, InputError):
            yield path, result
            continue
        pixels = torch.from_numpy(result)
        if cache_works:
            cache_works = _try_to_cache(_cache_key(content, config), pixels)
        yield path, Decoded(pixels, content)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 pixels (n, c, h, w) as float32: over 255, minus mean (c,), over std (c,)."""
    shape = (1, -1, 1, 1)
    shift, scale = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)


def _configuration(preprocessing: Mapping[str, Any]) -> str:
    """Return the preprocessing as text, which is both a cache key and an argument of `_decode`."""
    channels = preprocessing["input_size"][0]
    if channels not in MODES:
        raise InputError(
            f"the model wants images of {channels} channels, image files give 1 (gray) or 3 "
            "(color); choose another model"
        )
    return json.dumps(dict(preprocessing), sort_keys=True)


def _cache_key(content: str, config: str) -> str:
    versions = (PIL.__version__, torchvision.__version__, timm.__version__)
    return hashlib.sha256(json.dumps([content, config, versions]).encode()).hexdigest()


def _try_to_cache(key: str, pixels: Tensor) -> bool:
    try:
        image_cache.write(key, pixels)
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept for the next run: {image_cache.cache_folder()} cannot be "
            f"written ({error.strerror}); name another folder with EVOLQ_CACHE",
            stacklevel=2,
        )
        return False
    return True


# Decoding -----------------------------------------------------------------------------------------


def _decode_all(
    paths: Sequence[Path], config: str, workers: int
) -> Iterator[np.ndarray | InputError]:
    if workers < 2:
        yield from (_decode(path, config) for path in paths)
        return
    # Forking would copy torch's locks in whatever state its threads left them.
    context = multiprocessing.get_context("spawn")
    done = 0
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for result in pool.map(_decode, paths, [config] * len(paths), chunksize=16):
                yield result
                done += 1
        except BrokenProcessPool:
            warnings.warn(
                "worker processes ended early, one process goes on alone; in a script, call under "
                "`if __name__ == '__main__':`",
                stacklevel=2,
            )
            yield from (_decode(path, config) for path in paths[done:])
        finally:
            pool.shutdown(cancel_futures=True)  # the caller may stop at the first unreadable image


def _decode(path: Path, config: str) -> np.ndarray | InputError:
    """Return the pixels (channels, height, width), or why there are none.

    An array, since torch would send a tensor through a file descriptor of its own.
    """
    mode, transform = _transform(config)
    try:
        with Image.open(path) as image:
            pixels = transform(_converted(image, mode)).contiguous().numpy()
    except Exception as error:  # each decoder of Pillow raises its own kinds
        return _unreadable(path, error)
    return pixels


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot read image {path} ({error}); replace or remove it, or pass --skip-unreadable"
    )


@lru_cache(maxsize=1)
def _transform(config: str) -> tuple[str, Callable[[Image.Image], Tensor]]:
    options = json.loads(config)
    transform = timm.data.create_transform(**options, is_training=False, normalize=False)
    return MODES[options["input_size"][0]], transform


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
        image = image.point(lambda value: value / 256).convert("L")
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert(mode)
