"""Directions that something leads: saved checkpoints, or the curvature of the loss.

Unlike the directions that are drawn (`probes.directions`), these have lengths of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from evolq.data.models import load_model, reparameterize
from evolq.errors import InputError
from evolq.files.saved import load_point
from evolq.losses.objective import Objective
from evolq.points import Direction, Point, displacement, entry_name
from evolq.problem import Problem
from landscape.probes.directions import normalize, principal_directions

# Of Hessian eigenvalues, relative: eigenvectors need not be more exact than a picture.
EIGENVALUE_TOLERANCE = 1e-3

# Squared lengths of principal components below this share of the first are rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Guide:
    """What leads directions: Points to go to, and the loss around the start."""

    checkpoints: Sequence[Point]
    objective: Objective


def load_checkpoints(problem: Problem, paths: Sequence[Path]) -> list[Point]:
    """Read the Points that `towards` and `pca` are led by.

    With scheme `none`, a checkpoint is a file of weights of the same model; its buffers (running
    statistics) are not read: along a direction, buffers stay those of the start. With any other
    scheme it is a saved quantized network.

    Raises:
        InputError: if a file cannot be read or belongs to another model or scheme.
    """
    if problem.network.quantization.scheme != "none":
        return [load_point(path, problem.network, problem.model) for path in paths]
    settings = problem.settings
    models = [reparameterize(load_model(settings.model, path, settings.device)) for path in paths]
    return [{entry_name(n): p.detach() for n, p in model.named_parameters()} for model in models]


def towards(moving: Point, origin: Point, count: int, guide: Guide) -> list[Direction]:
    """Return the directions to the first `count` checkpoints: coordinate 1 is the checkpoint.

    Two of them span the plane through the start and both (Garipov et al. 2018, "Loss Surfaces,
    Mode Connectivity, and Fast Ensembling of DNNs", section 3); one is linear interpolation
    (Goodfellow et al. 2015, "Qualitatively Characterizing Neural Network Optimization Problems").
    """
    return [displacement(origin, end, moving.keys()) for end in guide.checkpoints[:count]]


def pca(moving: Point, origin: Point, count: int, guide: Guide) -> list[Direction]:
    """Return principal components of the checkpoints' displacements from the start.

    As Li et al. (2018, section 7) write it: the singular vectors of the matrix whose rows are the
    displacements, not centered. The length of each is the root mean square of the checkpoints'
    coordinates along it, so that trajectories stay within a few units.
    """
    rows = towards(moving, origin, len(guide.checkpoints), guide)
    if not rows:
        return []
    found = principal_directions(rows, [1 / len(rows)] * len(rows), count)
    return [direction for square, direction in found if square > _ROUNDING * found[0][0]]


def hessian(moving: Point, origin: Point, count: int, guide: Guide) -> list[Direction]:
    """Return the eigenvectors of the loss's Hessian with the largest eigenvalues, at RMS 1.

    Lanczos iteration (ARPACK) on Hessian-vector products by double backpropagation. All images go
    through one graph, since a criterion may couple them: memory grows with their number. Not by
    curvlinops (3.0.1), whose products go forward through a backward pass: with torch 2.14 that is
    wrong by 2 % for a network with LayerNorms, and not implemented for SiLU or GroupNorm.

    Raises:
        InputError: if fewer than `count + 1` values move.
    """
    sizes = [value.numel() for value in moving.values()]
    if sum(sizes) <= count:
        raise InputError(
            f"{count} eigenvectors need more than {count} values that move, not {sum(sizes)}"
        )
    objective = guide.objective.vary(list(moving), at=origin)
    values = [value.detach().clone().requires_grad_() for value in moving.values()]
    logits = objective.forward.function(dict(zip(moving, values, strict=True)))
    loss = objective.criterion.per_image(logits, objective.teacher, objective.labels).mean()
    gradient = torch.autograd.grad(loss, values, create_graph=True)

    def direction(flat: np.ndarray) -> dict[str, Tensor]:
        parts = torch.from_numpy(np.ascontiguousarray(flat)).split(sizes)
        return {
            name: part.reshape(value.shape).to(value)
            for part, (name, value) in zip(parts, moving.items(), strict=True)
        }

    def product(flat: np.ndarray) -> np.ndarray:
        vector = list(direction(flat.ravel()).values())
        rows = torch.autograd.grad(
            gradient, values, vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([row.flatten() for row in rows]).cpu().numpy()

    start = np.random.default_rng(0).standard_normal(sum(sizes), dtype=np.float32)
    operator = LinearOperator((sum(sizes),) * 2, matvec=product, dtype=np.float32)
    _, vectors = eigsh(operator, count, which="LA", v0=start, tol=EIGENVALUE_TOLERANCE)
    return [normalize(direction(vector), moving) for vector in vectors.T[::-1]]


GUIDED: dict[str, Callable[[Point, Point, int, Guide], list[Direction]]] = {
    "towards": towards,
    "pca": pca,
    "hessian": hessian,
}
