"""The functions in `kernels.cpp`, compiled when they are first needed."""

from __future__ import annotations

import ctypes
import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from evolq.errors import first_line

SOURCE = Path(__file__).with_name("kernels.cpp")

# Beside the processor's own: what PyTorch's builder does not ask for, or forbids.
FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    "-ftree-loop-vectorize",
)
TILE_FLAGS = ("-mamx-tile", "-mamx-int8", "-DEVOLQ_TILES")

# Sums in a vector.
LANES = 16


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled functions, from PyTorch's cache on disk if they are there.

    They have `product` only where tiles work: on a processor with AMX, if the system lets this
    process use them and the compiler knows them. None for a processor without AVX-512 VNNI, or if
    nothing can be built: a warning says why.
    """
    if not torch.cpu._is_vnni_supported():
        return None
    if _tiles_work():
        try:
            return _build(FLAGS + TILE_FLAGS)
        except Exception:  # by a compiler from before AMX; the next one says what else is wrong
            pass
    try:
        return _build(FLAGS)
    except Exception as error:  # of whatever the builder raises
        warnings.warn(
            f"the functions in {SOURCE.name} cannot be built here ({first_line(error)}); PyTorch "
            "does their work, with the same results, more slowly",
            stacklevel=2,
        )
        return None


def tile_product() -> Callable[..., None] | None:
    """Return `product`, None where there is none: nothing is built for a processor without AMX."""
    return getattr(kernels(), "product", None) if _tiles_work() else None


@cache
def _tiles_work() -> bool:
    """Whether the processor has tiles (AMX), and the system lets this process use them."""
    return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def _build(flags: tuple[str, ...]) -> ctypes.CDLL:
    """Compile the functions and say what they take."""
    # it warns of a toolkit without a GPU, which nothing here needs
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch._inductor import codecache
    from torch._inductor.cpu_vec_isa import invalid_vec_isa

    # To choose flags, it else compiles a program for each set of instructions that it knows: seven
    # seconds the first time. FLAGS are chosen.
    with patch.object(codecache, "pick_vec_isa", lambda: invalid_vec_isa):
        library = codecache.CppCodeCache.load(SOURCE.read_text(), extra_flags=flags)
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.attention.argtypes = [
        *[pointer] * 4, *[whole] * 5, *[ctypes.c_int32] * 2, *[real] * 6, *[pointer] * 3, whole,
    ]  # fmt: skip
    library.linear.argtypes = [
        *[pointer] * 7, *[whole] * 2, *[pointer] * 3, *[whole] * 3, *[pointer] * 3, whole,
    ]  # fmt: skip
    library.layer_norm.argtypes = [
        *[pointer] * 5, real, pointer, *[whole] * 2, pointer, whole,
    ]  # fmt: skip
    library.encode.argtypes = [pointer, *[real] * 5, whole, pointer, whole]
    library.squared_errors.argtypes = [
        *[pointer] * 3, *[real] * 2, *[whole] * 3, pointer, whole,
    ]  # fmt: skip
    library.fake_quantize.argtypes = [
        *[pointer] * 3, *[real] * 2, *[whole] * 2, pointer, whole,
    ]  # fmt: skip
    library.fake_quantize_gradient.argtypes = [
        *[pointer] * 4, *[real] * 2, *[whole] * 2, *[pointer] * 3, whole,
    ]  # fmt: skip
    library.weight_codes.argtypes = [
        *[pointer] * 3, *[real] * 2, *[whole] * 2, real, pointer, *[real] * 2, *[whole] * 2,
        *[pointer] * 6, whole,
    ]  # fmt: skip
    library.weight_codes.restype = whole  # the others return nothing
    if hasattr(library, "product"):
        library.product.argtypes = [*[pointer] * 2, *[whole] * 3, pointer, whole]
    return library
