"""Checks of what users declare: types as the hints say, numbers within bounds, one message for all.

Nothing here imports torch, so that command lines can refuse bad options before they need it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from evolq.errors import InputError

Bounds = tuple[float, float]

# Normal numbers: more than 0, less than infinity.
SMALLEST_FLOAT, LARGEST_FLOAT = sys.float_info.min, sys.float_info.max

# More images than any set has, and the largest batch that is of use.
MAX_IMAGES, MAX_BATCH = 10**8, 2**16
# Generators take 64 bits; half of that keeps seeds within every library's integers.
MAX_SEED = 2**63 - 1

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text that is not empty",
    Path: "a path",
}


def check_fields(declared: Any, **bounds: Bounds) -> None:
    """Check the fields of a dataclass: types as declared, numbers finite and within `bounds`.

    A Literal's members are not looked up: the registries behind them are open.

    Raises:
        InputError: for the first field that is wrong.
    """
    hints = get_type_hints(type(declared))
    for entry in fields(declared):
        value, hint = getattr(declared, entry.name), hints[entry.name]
        check_value(entry.name, value, hint, bounds.get(entry.name))


def check_value(name: str, value: Any, hint: Any, bounds: Bounds | None = None) -> None:
    """Check one value; `name` is what the message calls it, see `check_fields`.

    Raises:
        InputError: if it has another type, is NaN or infinite, or is out of bounds.
    """
    options = get_args(hint) if get_origin(hint) not in (tuple, Literal) else ()
    if NoneType in options:
        if value is None:
            return
        (hint,) = (option for option in options if option is not NoneType)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise InputError(f"`{name}` is {_shown(value)}; give several in a tuple")
        for item in value:
            check_value(name, item, get_args(hint)[0], bounds)
        return
    if not _has_type(value, str if get_origin(hint) is Literal else hint):
        wanted = _limits(hint, bounds) if bounds else _WORDS.get(hint) or _named(hint)
        raise InputError(f"`{name}` is {_shown(value)}; give {wanted}")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise InputError(f"`{name}` is {_shown(value)}; give {_limits(hint, bounds)}")


def check_batch_size(batch_size: int) -> None:
    """Check a number of images per pass.

    Raises:
        InputError: unless it is a whole number from 1 to `MAX_BATCH`.
    """
    check_value("batch_size", batch_size, int, (1, MAX_BATCH))


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
        InputError: unless it is a whole number from 0 to `MAX_SEED`.
    """
    check_value("seed", seed, int, (0, MAX_SEED))


def _has_type(value: Any, hint: Any) -> bool:
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        return number and not isinstance(value, bool) and (hint is int or math.isfinite(value))
    if hint is str:
        return isinstance(value, str) and value != ""
    if hint is Path:
        return isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)
    kind = get_origin(hint) or hint
    if kind is Callable:
        return callable(value)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _named(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    kind = get_origin(hint) or hint
    return "a function" if kind is Callable else f"a {getattr(kind, '__name__', kind)}"


def _limits(hint: Any, bounds: Bounds) -> str:
    kind = "a whole number" if hint is int else "a number"
    return f"{kind} from {_number(bounds[0])} to {_number(bounds[1])}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    """Return a value as users gave it, in one short piece."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str | int | list | tuple | None):
        return f"a {type(value).__name__}"
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
