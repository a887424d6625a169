"""Evol-Q: evolution of quantization scales, block by block, towards the teacher's predictions.

Frumkin et al. 2023, "Jumping through Local Minima: Quantization in the Loss Landscape of Vision
Transformers". P passes visit the blocks one after the other, the last block first. In a block, a
population of K candidates starts as copies of where the search stands; C times, the fittest of a
sample of S candidates is the parent of a perturbed child, the child joins the population and the
worst candidate leaves it. The fittest of the block is where the search goes on. Fitness is the loss
of an `Objective` on calibration images: a smaller loss is fitter; NaN counts as the worst of all.

A memetic recipe turns the perturbation of each scale against the straight-through gradient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evolq.data.pixels import Images, batches
from evolq.declared import check_seed, check_value
from evolq.errors import InputError
from evolq.files.search_state import load_search_state, save_search_state
from evolq.losses.objective import Objective
from evolq.network.blocks import attention_modules, find_blocks
from evolq.network.quantized import QuantizedNetwork
from evolq.optimizers.recipes import RECIPES, Recipe
from evolq.points import Point, fingerprint, role

# Step factors stay below this: a step of 8 % grows to at most a factor of e. Without a bound, a
# plateau (where every child succeeds) would let the step overflow.
LARGEST_STEP = 12.5

# Costs are sums of shares: a budget may be overdrawn by what such sums round.
ROUNDING = 1e-6


class Iterate(NamedTuple):
    """Where a search stands.

    Attributes:
        evaluations: of the loss so far.
        cost: forward-pass equivalents of the calibration set so far; evaluations on selection
            images count by their number. A visit counts what lies in front of its block, too,
            although a pass computes that once where it fits in memory.
        loss: of `point` on the calibration images.
        point: complete.
        label: what led here, in words.
    """

    evaluations: int
    cost: float
    loss: float
    point: Point
    label: str


class Candidate(NamedTuple):
    """Entries of a Point and their loss; a smaller loss is fitter."""

    entries: Point
    loss: float


def search_scales(
    objective: Objective,
    start: Point,
    recipe: Recipe = RECIPES["default"],
    *,
    seed: int = 0,
    names: Collection[str] | None = None,
    budget: float = math.inf,
    selection: Objective | None = None,
    state_file: Path | None = None,
) -> Iterator[Iterate]:
    """Search from `start` and yield where it stands: at the start, and after each visit of a block.

    The last Iterate is the result. With `selection` that is the Point with the least loss on
    selection images among the start and the ends of passes, yielded once more at the end.

    Deterministic in `seed`. With `state_file` the state is written there after each block, and a
    search that finds the file goes on from there, bit for bit; its first Iterate is the last one
    before the break.

    Args:
        objective: on calibration images.
        start: a complete Point; never changed.
        recipe: how to search; what it says about starting is for whoever made `start`.
        seed: of all that is drawn.
        names: entries that may move (`evolq.points.select` finds them by a glob); None for all.
        budget: forward-pass equivalents of the calibration set, counted as in `Iterate.cost`; a
            visit that would go beyond it is not begun.
        selection: on selection images, for the choice of the result.
        state_file: need not exist yet.

    Raises:
        TypeError: for anything but an `Objective`: test images must not be searched on.
        InputError: if nothing can move, or the state belongs to another search.
    """
    for given in (objective, selection):
        if given is not None and not isinstance(given, Objective):
            raise TypeError(
                f"a search needs an Objective on calibration or selection images, not a "
                f"{type(given).__name__}"
            )
    check_value("recipe", recipe, Recipe)
    check_seed(seed)
    if math.isnan(budget):
        raise InputError("`budget` is NaN; give a number of forward passes")
    objective.forward.network.check(start)
    return _search(objective, start, recipe, seed, names, budget, selection, state_file)


def visits(
    network: QuantizedNetwork, recipe: Recipe, names: Collection[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the names that move in each visit of one pass, by block, in the order of the visits.

    Args:
        network: from `quantize`.
        recipe: says which scales move, and where.
        names: entries that may move; None for all.

    Raises:
        InputError: if nothing can move.
    """
    attention = attention_modules(network) if recipe.attention_only else frozenset()
    found = {}
    for block, entries in find_blocks(network).items():
        moving = tuple(
            name
            for name in entries
            if role(name) == "scale"
            and (names is None or name in names)
            and (network.sites[_site(name)].kind == "weight" or not recipe.weights_only)
        )
        if moving:
            found[block] = moving
    chosen = {block: moving for block, moving in found.items() if block in attention} or found
    if recipe.at_once and chosen:
        chosen = {"all blocks": tuple(name for moving in chosen.values() for name in moving)}
    if not chosen:
        wanted = "scale of a weight" if recipe.weights_only else "scale"
        where = "this network" if names is None else f"the {len(names)} names given"
        raise InputError(f"no {wanted} in {where} can move; choose other names or another recipe")
    return dict(reversed(chosen.items()))


def evolve_block(
    fitness: Callable[[Point], float],
    mutate: Callable[[Point, float], Point],
    start: Candidate,
    recipe: Recipe,
    step: float,
    generator: torch.Generator,
) -> tuple[list[Candidate], float]:
    """Return the population of K candidates after C cycles, and the adapted step factor."""
    population = [start] * recipe.population
    for _ in range(recipe.cycles):
        parent = tournament(population, recipe, generator)
        entries = mutate(parent.entries, step)
        child = Candidate(entries, fitness(entries))
        # A tie is a success: the step was too small to change anything.
        success = child.loss <= parent.loss and math.isfinite(child.loss)
        step = min(step * recipe.adaptation ** (1 if success else -1 / 4), LARGEST_STEP)
        population = survivors([*population, child], recipe.newest_leaves)
    return population, step


def tournament(
    population: Sequence[Candidate], recipe: Recipe, generator: torch.Generator
) -> Candidate:
    """Return the fittest of a sample of S candidates, the first one drawn if several are."""
    drawn = torch.randint(len(population), (recipe.sample,), generator=generator)
    return fittest([population[index] for index in drawn.tolist()])


def fittest(population: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the least loss, the first if several have it."""
    return min(population, key=lambda candidate: candidate.loss)


def survivors(population: Sequence[Candidate], newest_leaves: bool) -> list[Candidate]:
    """Return all but the worst; of several worst, all but the newest (the last) or the oldest."""
    places = range(len(population))
    worst = max(
        reversed(places) if newest_leaves else places, key=lambda index: population[index].loss
    )
    return [*population[:worst], *population[worst + 1 :]]


# The search ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """All that a search has to remember between two blocks.

    Attributes:
        entries: where it stands, entries that move.
        loss: of that, on the calibration images.
        best: entries with the least selection loss at the end of a pass.
        best_loss: that loss; infinite without selection images.
        best_calibration_loss: of `best`, on the calibration images.
        step_factors: of each block.
        visited: number of visits so far.
        evaluations: of fitness.
        cost: in forward-pass equivalents of the calibration set.
        label: of the last Iterate.
    """

    entries: Mapping[str, Tensor]
    loss: float
    best: Mapping[str, Tensor]
    best_loss: float
    best_calibration_loss: float
    step_factors: Mapping[str, float] = field(default_factory=dict)
    visited: int = 0
    evaluations: int = 1
    cost: float = 0.0
    label: str = "start"


def _search(
    objective: Objective,
    start: Point,
    recipe: Recipe,
    seed: int,
    names: Collection[str] | None,
    budget: float,
    selection: Objective | None,
    state_file: Path | None,
) -> Iterator[Iterate]:
    if recipe.downhill:
        objective = objective.differentiable()
    network = objective.forward.network
    order = visits(network, recipe, names)
    generator = torch.Generator().manual_seed(seed)
    cost = _Meter(objective, selection)
    moving = [name for entries in order.values() for name in entries]
    identity: dict[str, str] = {}
    if state_file is not None:
        identity = _identity(objective, start, recipe, seed, moving, selection)
    if state_file is not None and state_file.exists():
        state = _load(state_file, identity, generator, objective.labels.device)
    else:
        entries = {name: start[name] for name in moving}
        loss, chosen = comparable(objective(start)), math.inf
        if selection is not None:
            chosen = comparable(selection(start))
        state = _State(entries, loss, entries, chosen, loss, cost=cost.spent())
    yield _iterate(state, start)

    parts: list[Callable[[Point], Objective]] = []
    while state.visited < recipe.passes * len(order):
        block = list(order)[state.visited % len(order)]
        share = network.share(order[block]) if budget < math.inf else 0.0
        ends_pass = state.visited % len(order) == len(order) - 1
        visit = 1 - share + recipe.cost_of_visit * share
        if state.cost + visit + ends_pass * cost.ratio > budget + ROUNDING:
            break
        spent_before = cost.spent()
        point = {**start, **state.entries}
        if not parts:  # of the rest of the pass: no visit changes what lies in front of the next
            turns = list(order.values())[state.visited % len(order) :]
            parts = objective.vary_in_turn(turns, point)
        state = _visit(
            state, block, order[block], len(order), parts.pop(0)(point), start, recipe, generator
        )
        if selection is not None and state.visited % len(order) == 0:
            state = _select(state, selection({**start, **state.entries}))
        # Rounded, since a search that was resumed has summed up less and rounds differently.
        state = replace(state, cost=round(state.cost + cost.spent() - spent_before, 9))
        if state_file is not None:
            _save(state_file, state, identity, generator)
        yield _iterate(state, start)

    if selection is not None:
        state = replace(
            state, entries=state.best, loss=state.best_calibration_loss, label="selected"
        )
        yield _iterate(state, start)


def _visit(
    state: _State,
    block: str,
    names: tuple[str, ...],
    blocks_in_pass: int,
    part: Objective,
    start: Point,
    recipe: Recipe,
    generator: torch.Generator,
) -> _State:
    """Evolve the entries `names` of one block, of which `part` is a function."""
    evaluations = state.evaluations

    def fitness(entries: Point) -> float:
        nonlocal evaluations
        evaluations += 1
        return comparable(part(entries))

    def mutate(entries: Point, step: float) -> dict[str, Tensor]:
        child = {}
        gradient = part.gradient(entries)[1] if recipe.downhill else {}
        for name, value in entries.items():
            noise = torch.rand(value.shape, generator=generator) * 2 - 1
            if recipe.downhill:
                noise = -noise.abs() * gradient[name].sign().to(noise)
            bits = float(start[f"{_site(name)}.bits"])
            child[name] = recipe.perturbation(value, noise.to(value), bits, step)
        return child

    entries = {name: state.entries[name] for name in names}
    loss = fitness(entries) if recipe.reevaluate else state.loss
    population, step = evolve_block(
        fitness,
        mutate,
        Candidate(entries, loss),
        recipe,
        state.step_factors.get(block, 1.0),
        generator,
    )
    best = fittest(population)
    return replace(
        state,
        entries={**state.entries, **best.entries},
        loss=best.loss,
        step_factors={**state.step_factors, block: step},
        visited=state.visited + 1,
        evaluations=evaluations,
        label=f"pass {state.visited // blocks_in_pass + 1}, {block}",
    )


def _select(state: _State, loss: Tensor) -> _State:
    """Remember where a pass ended, if its selection loss is the least."""
    if not comparable(loss) < state.best_loss:
        return state
    return replace(
        state,
        best=state.entries,
        best_loss=comparable(loss),
        best_calibration_loss=state.loss,
    )


def _site(name: str) -> str:
    return name.rpartition(".")[0]


def comparable(loss: Tensor) -> float:
    """Return the loss as a number, NaN as infinity: the worst, and comparable."""
    value = float(loss)
    return math.inf if math.isnan(value) else value


def _iterate(state: _State, start: Point) -> Iterate:
    point = {**start, **state.entries}
    return Iterate(state.evaluations, state.cost, state.loss, point, state.label)


class _Meter:
    """Forward-pass equivalents of the calibration set spent on two objectives from now on."""

    def __init__(self, objective: Objective, selection: Objective | None) -> None:
        self.objective = objective
        self.selection = selection
        self.ratio = 0.0  # what an evaluation on selection images costs
        if selection is not None:
            self.ratio = len(selection.labels) / len(objective.labels)
        self.before = self.total()

    def total(self) -> float:
        if self.selection is None:
            return self.objective.cost
        return self.objective.cost + self.ratio * self.selection.cost

    def spent(self) -> float:
        return self.total() - self.before


# The state file -----------------------------------------------------------------------------------


def _save(
    path: Path, state: _State, identity: Mapping[str, str], generator: torch.Generator
) -> None:
    tensors = {f"entries/{name}": value for name, value in state.entries.items()}
    tensors |= {f"best/{name}": value.clone() for name, value in state.best.items()}
    tensors["generator"] = generator.get_state()
    values = {name: value for name, value in vars(state).items() if name not in ("entries", "best")}
    save_search_state(path, tensors, {"identity": identity, **values})


def _load(
    path: Path, identity: Mapping[str, str], generator: torch.Generator, device: torch.device
) -> _State:
    """Return the state in a file and set the generator to where it was."""
    tensors, values = load_search_state(path)
    begun = values.pop("identity")
    different = [name for name, value in identity.items() if begun.get(name) != value]
    if different:
        raise InputError(
            f"{path} belongs to a search with another {', another '.join(different)}; remove it to "
            "start again, or choose another folder"
        )
    generator.set_state(tensors.pop("generator"))
    parts: dict[str, dict[str, Tensor]] = {"entries": {}, "best": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value.to(device)
    return _State(entries=parts["entries"], best=parts["best"], **values)


def _identity(
    objective: Objective,
    start: Point,
    recipe: Recipe,
    seed: int,
    moving: Collection[str],
    selection: Objective | None,
) -> dict[str, str]:
    """Return everything that a search depends on, by name; as hashes where it is long."""
    found = {
        "recipe": str(recipe),
        "seed": str(seed),
        "set of names": hashlib.sha256(" ".join(moving).encode()).hexdigest(),
        "start": fingerprint(start),
        "version of torch": str(torch.__version__),
    }
    for part, given in (("calibration", objective), ("selection", selection)):
        if given is None:
            found[f"{part} images"] = "none"
            continue
        found[f"{part} criterion"] = given.criterion.name
        found[f"{part} batch size"] = str(given.forward.batch_size)
        # the teacher against itself also tells temperatures apart
        ideal = given.criterion.per_image(given.teacher, given.teacher, given.labels)
        hashed: dict[str, Images] = {"images": given.forward.images, "labels": given.labels}
        hashed |= {"teacher": given.teacher, "loss of the teacher": ideal}
        for name, values in hashed.items():
            digest = hashlib.sha256()
            for batch in batches(values, given.forward.batch_size):
                digest.update(batch.cpu().contiguous().numpy().data)
            found[f"{part} {name}"] = digest.hexdigest()
    return found
