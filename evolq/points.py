"""Points: dicts of named tensors, the coordinates that everything else moves in.

The last component of a name is its role (`blocks.3.attn.qkv.weight.scale` is a scale); no weight's
name ends like that (`entry_name`). Scales move in log-scale coordinates, so that a step is relative
and a scale can never turn negative; zero points move in codes, weights in their own units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, overload

import torch
from torch import Tensor

from evolq.declared import check_value
from evolq.errors import InputError

Point = Mapping[str, Tensor]
Direction = Mapping[str, Tensor]

# A factor is a constant of the quantizer in front of a LayerNorm (PTF), never a coordinate.
QUANTIZER_ROLES = ("scale", "zero_point", "bits", "factor")
ROLES = (*QUANTIZER_ROLES, "weight")


def role(name: str) -> str:
    """Return the last component of a quantizer's entry (`scale`, ...), `weight` for any other."""
    last = name.rpartition(".")[2]
    return last if last in QUANTIZER_ROLES else "weight"


def check_entry(name: str, value: Any) -> None:
    """Check that an entry of a Point or direction is a dense float32 tensor with values.

    Raises:
        InputError: if it is not.
    """
    if (
        not isinstance(value, Tensor)
        or value.dtype != torch.float32
        or value.layout != torch.strided
        or value.is_meta
    ):
        kind = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            kind = f"{value.layout} {value.dtype} on {value.device}".replace("torch.", "")
        raise InputError(f"{name} is {kind}; give a dense float32 tensor")


def entry_name(parameter: str) -> str:
    """Return the name that a model's parameter has in a Point.

    That is its own; but quantizers alone have names that end in a quantizer's role, so that a
    model's own parameter `act.scale` is called `act.scale.weight`.
    """
    return parameter if role(parameter) == "weight" else f"{parameter}.weight"


@overload
def select(
    point: Point,
    roles: Collection[str] | None = None,
    within: str | None = None,
    exclude: str | None = None,
) -> dict[str, Tensor]: ...
@overload
def select(
    point: Sequence[str],
    roles: Collection[str] | None = None,
    within: str | None = None,
    exclude: str | None = None,
) -> dict[str, None]: ...
def select(
    point: Point | Sequence[str],
    roles: Collection[str] | None = None,
    within: str | None = None,
    exclude: str | None = None,
) -> dict[str, Tensor] | dict[str, None]:
    """Return the entries with one of `roles` whose names match `within` and do not match `exclude`.

    `within` and `exclude` are globs over whole names (`blocks.3.*`, `*.attn.*`), case-sensitive.

    Of names alone (`network.names`) a dict of None is returned.

    Raises:
        InputError: for an unknown role, an empty glob, or if nothing is left.
    """
    if not isinstance(point, Sequence):
        check_value("point", point, Mapping)
    for name, glob in (("within", within), ("exclude", exclude)):
        check_value(name, glob, str | None)
    unknown = sorted(set(roles or ()) - set(ROLES))
    if unknown:
        raise InputError(f"unknown role {unknown[0]!r}; choose from {', '.join(ROLES)}")
    entries: Mapping[str, Any] = point if isinstance(point, Mapping) else dict.fromkeys(point)
    chosen = {
        name: value
        for name, value in entries.items()
        if (roles is None or role(name) in roles)
        and (within is None or fnmatchcase(name, within))
        and (exclude is None or not fnmatchcase(name, exclude))
    }
    if not chosen:
        wanted = " or ".join(roles or ()) or "entry"
        names = [name for name in point if roles is None or role(name) in roles]
        if not names:
            raise InputError(f"the Point of {len(point)} entries has no {wanted}; choose others")
        globs = {"is within": within, "is outside": exclude}
        conditions = " and ".join(f"{words} {glob!r}" for words, glob in globs.items() if glob)
        examples = ", ".join(dict.fromkeys((names[0], names[-1])))
        raise InputError(
            f"no {wanted} of the Point {conditions}; {len(names)} names are there to match, such "
            f"as {examples}"
        )
    return chosen


def fingerprint(point: Point) -> str:
    """Return the SHA-256 (hex) of names, shapes and float32 values, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(point.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def displace(point: Point, direction: Direction, step: float = 1.0) -> dict[str, Tensor]:
    """Move `point` along `direction`: scales to `p * exp(step * d)`, others to `p + step * d`.

    Names that `direction` lacks keep their tensors (not copies of them).

    Raises:
        InputError: if `direction` names an entry that `point` lacks.
    """
    unknown = direction.keys() - point.keys()
    if unknown:
        raise InputError(f"the direction names {min(unknown)!r}, which the Point does not have")
    return {
        name: value
        if name not in direction
        else value * torch.exp(step * direction[name])
        if role(name) == "scale"
        else value + step * direction[name]
        for name, value in point.items()
    }


def displacement(
    start: Point, end: Point, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return the direction that leads from `start` to `end` in one step, the inverse of `displace`.

    Raises:
        InputError: if a name is missing in either Point, or has two shapes.
    """
    names = start.keys() if names is None else names
    for name in names:
        if name not in start or name not in end:
            raise InputError(
                f"{name!r} is missing in one of the two Points; compare equal networks"
            )
    for name in names:
        if start[name].shape != end[name].shape:
            raise InputError(
                f"{name!r} has shape {tuple(start[name].shape)} in one Point and "
                f"{tuple(end[name].shape)} in the other; compare equal networks"
            )
    return {
        name: torch.log(end[name] / start[name])
        if role(name) == "scale"
        else end[name] - start[name]
        for name in names
    }


def combine(*terms: tuple[Direction, float]) -> dict[str, Tensor]:
    """Return the weighted sum of directions, each given with its factor; missing names count 0."""
    total: dict[str, Tensor] = {}
    for direction, factor in terms:
        for name, value in direction.items():
            total[name] = total[name] + factor * value if name in total else factor * value
    return total


def inner(a: Direction, b: Direction) -> float:
    """Return the inner product over the names that both have, summed in float64."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a if name in b)


def norm(a: Direction) -> float:
    """Return the Euclidean norm over all entries, summed in float64."""
    return math.sqrt(inner(a, a))
