"""What is measured for the claims: named numbers of one network at some bits, for one seed.

A seed draws calibration images, test images, directions and whatever a search draws. The start is
the one that every command has: `linear`, MSE scales, matched moments, unless a measure says so.

A measure evaluates, and returns a function from test images (an index of their axis) to numbers:
with some of them left out these say what the images alone make of a number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from evolq import Quantization, prepare, select
from evolq.data.models import BUNDLED
from evolq.losses.criteria import CRITERIA
from evolq.losses.jitter import jittered
from evolq.losses.objective import Forward, Objective
from evolq.optimizers.evolve import Iterate, search_scales
from evolq.optimizers.gradient import sweep_learning_rate
from evolq.optimizers.recipes import RECIPES
from evolq.optimizers.registry import OPTIMIZERS
from evolq.points import Direction, Point
from evolq.problem import Problem
from figures.claims.networks import settings_of
from landscape.probes.cliff_losses import frozen, held_names
from landscape.probes.cliffs import count_cliffs
from landscape.probes.directions import DIRECTIONS, normalize
from landscape.probes.sampling import axis
from landscape.probes.slices import Line, Plane
from landscape.statistics.merge_tree import merge_tree
from landscape.statistics.numerical_noise import noise_floor

# Relative change of a typical scale at the ends of a ray, and its points: steps of 1 %.
RADIUS, POINTS, RAYS = 0.1, 21, 2
# Of real networks, whose evaluations take seconds.
REAL_RAYS = 1
PAIRS = 10
# Calibration images with which criteria are compared; infoNCE takes 50 at a time.
FEW_AND_MANY = (50, 200)
# Points along each axis of a plane.
SIDE = 11
# Forward passes of the calibration images that a search may take.
BUDGET = 30.0
# About a thousand evaluations: one in a block takes half of the network, on average.
LONG_BUDGET = 500.0
# Of each gradient method, the better on the calibration images counts; the smallest of the
# toolkit's three rates moves a scale by 3 % in so few steps.
RATES = (0.01, 0.03)
REPEATS = 8
# The recipes and starts that are followed, and where they are looked at, in forward passes: at the
# start, and up to about the end of the default recipe on a transformer of 12 blocks.
COSTS = (1, 10, 30, 100, 370)
CURVES = (
    *(("default", "nearest"), ("default", "gptq"), ("published", "nearest")),
    *(("memetic", "nearest"), ("memetic", "gptq")),
)
# Where a search of a real network goes on after a break. Only a cache: the same search gives the
# same Points without it.
STATES = Path(gettempdir()) / "evolq-claims"

Values = dict[str, float]
Images = slice | NDArray[np.bool_]
"""Which test images count."""
Summary = Callable[[Images], Values]
ALL = slice(None)


@lru_cache(maxsize=8)
def problem_of(model: str, bits: int, seed: int, **changes: object) -> Problem:
    """Return the start that a user has, with images of its own for each seed.

    Args:
        model: one that `networks` knows.
        bits: of its weights; activations have 8.
        seed: of all that is drawn.
        changes: of the settings and the quantization.
    """
    settings = settings_of(model, seed)
    quantization = Quantization(weight_bits=bits)
    own: dict[str, Any] = {k: v for k, v in changes.items() if hasattr(quantization, k)}
    others: dict[str, Any] = {k: v for k, v in changes.items() if k not in own}
    return prepare(replace(settings, quantization=replace(quantization, **own), **others))


def scales(problem: Problem, within: Collection[str] = ("*",)) -> Point:
    """Return the scales at the start whose names match one of the globs."""
    return {k: v for glob in within for k, v in select(problem.start, {"scale"}, glob).items()}


def draw(moving: Point, count: int, seed: int) -> list[Direction]:
    """Draw directions of length 1: a distance of 0.1 is 10 % of a typical scale."""
    generator = torch.Generator().manual_seed(seed)
    return [normalize(DIRECTIONS["gaussian"](moving, generator), moving) for _ in range(count)]


def shared_square(values: ArrayLike) -> float:
    """Return the mean square of the mean over images, free of sampling noise.

    The mean over images squared is what all images share plus noise of those that were drawn.
    Products of two different images have no noise in the mean: all of these are averaged. Where
    noise is all there is, the result scatters around 0 and may be negative.

    Args:
        values: (..., images), of independent images.
    """
    given = np.asarray(values, dtype=np.float64)
    images = given.shape[-1]
    square = (given.sum(-1) ** 2 - (given**2).sum(-1)) / (images * (images - 1))
    return float(square.mean())


def signed_root(square: float) -> float:
    """Return the root of |square| with its sign: noise around 0 stays around 0."""
    return float(np.sign(square) * np.sqrt(abs(square)))


def curvature(losses: ArrayLike) -> float:
    """Return the second derivative at the start of cubics fitted to rays, nats per distance^2.

    The mean over rays. It is linear in the losses, so that noise of the sample cancels in the mean.

    Args:
        losses: (rays, points, images), evenly from -RADIUS to RADIUS.
    """
    means = np.asarray(losses, dtype=np.float64).mean(-1)
    fitted = np.polyfit(axis(RADIUS, means.shape[1]), means.T, 3)  # highest degree first
    return float(2 * fitted[1].mean())


def bends(losses: ArrayLike) -> NDArray[np.float64]:
    """Return fourth differences along rays over root 70: of white noise, its own size.

    They are 0 for polynomials up to the third degree: a slope or a bowl is not rough.

    Args:
        losses: (rays, points, images), of equal steps.
    """
    # 70 = 1 + 16 + 36 + 16 + 1, the squares of the coefficients
    return np.diff(np.asarray(losses, dtype=np.float64), 4, axis=1) / np.sqrt(70)


def along_rays(
    problem: Problem, lines: Collection[Line], held: bool = False
) -> tuple[NDArray, NDArray]:
    """Return test losses and whether images are right, (rays, points, images) each.

    Args:
        problem: whose test images.
        lines: from the start.
        held: keep the codes that weights have at the start.
    """
    found = []
    for line in lines:
        names = held_names(problem.network, line.direction) if held else tuple(line.direction)
        test = problem.test.vary(names, at=problem.start)
        for distance in axis(RADIUS, POINTS):
            point = line.at(float(distance))
            if held:
                point = frozen(problem.network, problem.start, point)
            found.append(torch.stack(test.per_image({name: point[name] for name in names})))
    together = torch.stack(found).reshape(len(lines), POINTS, 2, -1).numpy()
    return together[:, :, 0], together[:, :, 1]


def picked(losses: NDArray) -> Values:
    """Pick the point with the least loss on half of the images: its gain there, and on the others.

    Each half picks once; the means of both.

    Args:
        losses: (rays, points, images); the start is the middle of each ray.
    """
    start = losses[:1, POINTS // 2]
    gains = (start - losses).reshape(-1, losses.shape[-1])
    halves = [gains[:, 0::2].mean(1), gains[:, 1::2].mean(1)]
    pairs = [(one.max(), other[one.argmax()]) for one, other in (halves, halves[::-1])]
    return {
        "gain_where_picked": float(np.mean([here for here, _ in pairs])),
        "gain_elsewhere": float(np.mean([there for _, there in pairs])),
    }


def _lines(problem: Problem, seed: int, within: Collection[str] = ("*",)) -> list[Line]:
    """Return rays from the start over scales whose names match."""
    count = RAYS if problem.settings.model in BUNDLED else REAL_RAYS
    return [Line(problem.start, way) for way in draw(scales(problem, within), count, seed)]


def rays(model: str, bits: int, seed: int) -> Summary:
    """Return how rough the test loss is around the start, and how far it moves.

    `roughness` (nats), `structure` and `total` (its square, and that with the noise of the images,
    nats^2), `curvature` (nats per distance^2), root mean squares of the changes from the start
    `loss_change` (nats) and `accuracy_change` (points), `flips` (share of all codes of weights,
    from point to point), and what `picked` says.
    """
    problem = problem_of(model, bits, seed)
    lines = _lines(problem, seed)
    losses, correct = along_rays(problem, lines)
    flips = sum(sum(count_cliffs(problem.network, line, RADIUS).values()) for line in lines)
    weights = sum(
        problem.start[name].numel()
        for name, site in problem.network.sites.items()
        if site.kind == "weight"
    )
    share = flips / weights / (POINTS - 1) / len(lines)
    return lambda images: around(losses[..., images], correct[..., images]) | {"flips": share}


def around(losses: NDArray, correct: NDArray) -> Values:
    """Return what `rays` says of losses and whether images are right, (rays, points, images)."""
    middle = POINTS // 2
    changes = [
        shared_square(np.delete(values - values[:, middle, None], middle, axis=1))
        for values in (losses, 100 * correct)
    ]
    structure = shared_square(bends(losses))
    return {
        "roughness": signed_root(structure),
        "structure": structure,
        "total": float((bends(losses).mean(-1) ** 2).mean()),
        "curvature": curvature(losses),
        "loss_change": signed_root(changes[0]),
        "accuracy_change": signed_root(changes[1]),
        **picked(losses),
    }


def _roughness(losses: NDArray) -> Summary:
    """Return the roughness along rays, of losses (rays, points, images)."""
    return lambda images: {"roughness": signed_root(shared_square(bends(losses[..., images])))}


def held(model: str, bits: int, seed: int) -> Summary:
    """Return the roughness along the same rays with the codes that weights have at the start."""
    problem = problem_of(model, bits, seed)
    losses, _ = along_rays(problem, _lines(problem, seed), held=True)
    return _roughness(losses)


def within(globs: Collection[str], model: str, bits: int, seed: int) -> Summary:
    """Return the roughness along rays that move the scales of some weights alone."""
    problem = problem_of(model, bits, seed)
    losses, _ = along_rays(problem, _lines(problem, seed, globs))
    return _roughness(losses)


def together(model: str, bits: int, seed: int) -> Summary:
    """Return how far from additive the test loss is in two halves of the scales (nats).

    Halves move by RADIUS alone and together: what they do together beyond the sum of what each does
    alone, root mean square over PAIRS draws of halves and directions, free of sampling noise.
    LAPQ calls a loss separable where this is 0 (Nahshan et al. 2021, "Loss aware post-training
    quantization", section 3).
    """
    problem = problem_of(model, bits, seed)
    moving = scales(problem)
    generator = torch.Generator().manual_seed(seed)
    test = problem.test.vary(tuple(moving), at=problem.start)
    at_start = test.per_image(problem.start)[0]
    found = []
    for direction in draw(moving, PAIRS, seed):
        shuffled = [list(moving)[k] for k in torch.randperm(len(moving), generator=generator)]
        half = set(shuffled[: len(moving) // 2])
        end = Line(problem.start, direction).at(RADIUS)
        one, other = (
            {k: end[k] if (k in half) is moves else problem.start[k] for k in moving}
            for moves in (True, False)
        )
        both, *alone = (
            test.per_image(point)[0] - at_start
            for point in ({k: end[k] for k in moving}, one, other)
        )
        found.append(both - sum(alone))
    beyond = torch.stack(found).numpy()
    return lambda images: {"interaction": signed_root(shared_square(beyond[..., images]))}


def repeats(model: str, bits: int, seed: int) -> Summary:
    """Return the numerical floor: how far the test loss scatters when nothing changes (nats)."""
    problem = problem_of(model, bits, seed)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(REPEATS):
        test, point = jittered(problem.test, problem.start, generator)
        losses.append(test.per_image(point)[0].numpy())
    repeated = np.stack(losses)
    return lambda images: {"floor": noise_floor(repeated[:, images]).mean_loss.estimate}


def _outcome(problem: Problem, name: str, point: Point, calibrated: float) -> Summary:
    """Return what a Point gives, by a name for it.

    `NAME` (test loss, nats), `NAME_accuracy` (points), `NAME_calibration` (calibration loss).
    """
    losses, right = (each.double() for each in problem.test.per_image(point))
    return lambda images: {
        name: float(losses[images].mean()),
        f"{name}_accuracy": 100 * float(right[images].mean()),
        f"{name}_calibration": calibrated,
    }


def _outcomes(problem: Problem, points: Mapping[str, Point]) -> Summary:
    """Return what several Points give, by name."""
    found = [
        _outcome(problem, name, point, float(problem.objective(point)))
        for name, point in points.items()
    ]
    return lambda images: {k: v for summary in found for k, v in summary(images).items()}


def with_gradients(problem: Problem) -> Objective:
    """Return the objective, compiled if it runs on integers, which have no gradients."""
    objective = problem.objective
    if problem.network.execution != "integer":
        return objective
    network = problem.network.executed("compiled")
    forward = Forward.whole(network, objective.forward.images, objective.forward.batch_size)
    return replace(objective, forward=forward)


def _objective(problem: Problem, recipe: str) -> Objective:
    return with_gradients(problem) if RECIPES[recipe].downhill else problem.objective


def _evolved(problem: Problem, seed: int, recipe: str = "default", budget: float = BUDGET) -> Point:
    """Return what Evol-Q finds within a budget of forward passes."""
    *_, last = OPTIMIZERS["evol-q"](
        _objective(problem, recipe),
        problem.start,
        names=list(scales(problem)),
        budget=budget,
        generator=torch.Generator().manual_seed(seed),
        recipe=recipe,
    )
    return last.point


def _descended(problem: Problem, seed: int, method: str) -> Point:
    """Return what a gradient method finds within the budget, the better of its learning rates."""
    sweep = sweep_learning_rate(
        OPTIMIZERS[method],
        with_gradients(problem),
        problem.start,
        names=list(scales(problem)),
        budget=BUDGET,
        generator=torch.Generator().manual_seed(seed),
        learning_rates=RATES,
    )
    return sweep.iterates[-1].point


def _from_start(problem: Problem, seed: int) -> Summary:
    """Return the outcomes at the start and after Evol-Q."""
    return _outcomes(problem, {"start": problem.start, "evolq": _evolved(problem, seed)})


def searches(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes at the start, after Adam and after Evol-Q, at equal cost."""
    problem = problem_of(model, bits, seed)
    points = {
        "start": problem.start,
        "evolq": _evolved(problem, seed),
        "adam": _descended(problem, seed, "adam"),
    }
    return _outcomes(problem, points)


def descents(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes after the other gradient methods, tuned like Adam, at equal cost."""
    problem = problem_of(model, bits, seed)
    return _outcomes(problem, {k: _descended(problem, seed, k) for k in ("sgd", "adamw")})


def published_start(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes from the published start, at equal cost.

    Scheme `published` but for LayerNorms in floating point: integer ones have no gradients.
    """
    problem = problem_of(model, bits, seed, scheme="published", integer_layer_norm=False)
    points = {"start": problem.start, "evolq": _evolved(problem, seed)}
    points |= {name: _descended(problem, seed, name) for name in ("adam", "sgd", "adamw")}
    return _outcomes(problem, points)


def at_once(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes after an evolution of all scales at once, at the same cost."""
    problem = problem_of(model, bits, seed)
    *_, last = OPTIMIZERS["one-plus-one-es"](
        problem.objective,
        problem.start,
        names=list(scales(problem)),
        budget=BUDGET,
        generator=torch.Generator().manual_seed(seed),
    )
    return _outcomes(problem, {"evolq": last.point})


def transfer(calibration_images: int, model: str, bits: int, seed: int) -> Summary:
    """Return the test loss (nats) after Evol-Q under each label-free criterion."""
    found: dict[str, Summary] = {}
    for name in (name for name, each in CRITERIA.items() if not each.uses_labels):
        changes = {"criterion": name, "calibration_images": calibration_images}
        problem = problem_of(model, bits, seed, **changes)
        found[name] = _outcomes(problem, {name: _evolved(problem, seed)})
    return lambda images: {name: summary(images)[name] for name, summary in found.items()}


def extreme(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes at the start with 4-bit activations, and after Evol-Q."""
    return _from_start(problem_of(model, bits, seed, activation_bits=4), seed)


def with_recipe(recipe: str, model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes after another recipe, at the same cost."""
    problem = problem_of(model, bits, seed)
    return _outcomes(problem, {"evolq": _evolved(problem, seed, recipe)})


def long_searches(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes of the default and the published recipe after a long search."""
    problem = problem_of(model, bits, seed)
    points = {
        name: _evolved(problem, seed, recipe, LONG_BUDGET)
        for name, recipe in (("evolq", "default"), ("published", "published"))
    }
    return _outcomes(problem, points)


def plain_start(model: str, bits: int, seed: int) -> Summary:
    """Return the outcomes at a weak start (min-max, moments not matched) and after Evol-Q."""
    problem = problem_of(
        model,
        bits,
        seed,
        weight_observer="minmax",
        activation_observer="minmax",
        moment_matching=False,
    )
    return _from_start(problem, seed)


def at_cost(budget: int, recipe: str, rounding: str, model: str, bits: int, seed: int) -> Summary:
    """Return what Evol-Q has within a budget of forward passes, and its `cost`; 1 is the start.

    Costs of one search are measured one after the other: each goes on where the last one ended.
    """
    problem = problem_of(model, bits, seed, rounding=rounding)
    STATES.mkdir(exist_ok=True)
    state = STATES / f"{recipe}-{rounding}-{model}-{bits}-{seed}.search"
    last = _searched(problem, budget, recipe, seed, state)
    if last.cost > budget:
        state.unlink()  # of a search that went further: begin again
        last = _searched(problem, budget, recipe, seed, state)
    summary = _outcome(problem, "evolq", last.point, last.loss)
    return lambda images: summary(images) | {"cost": last.cost}


def _searched(problem: Problem, budget: int, recipe: str, seed: int, state_file: Path) -> Iterate:
    *_, last = search_scales(
        _objective(problem, recipe),
        problem.start,
        replace(RECIPES[recipe], passes=sys.maxsize),
        seed=seed,
        names=list(scales(problem)),
        budget=budget,
        state_file=state_file,
    )
    return last


def minima(surface: NDArray) -> int:
    """Count the local minima of a surface (y, x), however shallow.

    No increasing function of the loss changes the number, so that criteria in different units,
    with steep walls or flat ones, are compared as a search meets them.

    Raises:
        ValueError: for a surface that is not finite, or constant.
    """
    if not np.isfinite(surface).all() or np.ptp(surface) == 0:
        raise ValueError("a surface without a range has no count")
    return len(merge_tree(surface[None]).minima)


def plane(model: str, bits: int, seed: int) -> Summary:
    """Return the number of local minima of each label-free criterion on one plane.

    All see the same logits of the same calibration images.
    """
    problem = problem_of(model, bits, seed)
    where = Plane(problem.start, *draw(scales(problem), 2, seed))
    along = axis(RADIUS, SIDE)
    names = tuple(where.x)
    objective: Objective = problem.objective.vary(names, at=problem.start)
    criteria = {k: each.per_image for k, each in CRITERIA.items() if not each.uses_labels}
    losses: dict[str, list[float]] = {name: [] for name in criteria}
    for a in along:
        for b in along:
            point = where.at(float(a), float(b))
            logits = objective.forward.logits({name: point[name] for name in names})
            for name, per_image in criteria.items():
                values = per_image(logits, objective.teacher, objective.labels)
                losses[name].append(float(values.double().mean()))
    counts = {k: float(minima(np.reshape(v, (SIDE, SIDE)))) for k, v in losses.items()}
    return lambda images: counts


MEASURES: dict[str, Callable[[str, int, int], Summary]] = {
    "rays": rays,
    "held": held,
    "searches": searches,
    "plane": plane,
    "repeats": repeats,
    "attention": partial(within, ("*.attn.qkv.weight.scale", "*.attn.proj.weight.scale")),
    "mlp": partial(within, ("*.mlp.fc1.weight.scale", "*.mlp.fc2.weight.scale")),
    "plain start": plain_start,
    "published": partial(with_recipe, "published"),
    "memetic": partial(with_recipe, "memetic"),
    "at once": at_once,
    "together": together,
    "extreme": extreme,
    "descents": descents,
    "published start": published_start,
    "long searches": long_searches,
    **{f"transfer {images}": partial(transfer, images) for images in FEW_AND_MANY},
    **{
        f"{recipe} from {rounding}, cost {cost}": partial(at_cost, cost, recipe, rounding)
        for recipe, rounding in CURVES
        for cost in COSTS
    },
}
