"""The evolutionary search, on a vision transformer small enough to search it a hundred times."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_models import plain
from torch import Tensor, nn

from evolq.__main__ import Search, _quantization
from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA, Criterion, info_nce
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.blocks import attention_modules, find_blocks
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.optimizers import evolve
from evolq.optimizers.evolve import (
    Candidate,
    Iterate,
    evolve_block,
    search_scales,
    survivors,
    tournament,
    visits,
)
from evolq.optimizers.recipes import RECIPES, Absolute, Recipe, Relative, choose_recipe
from evolq.points import Point, select
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.starts.calibration import calibrate

PUBLISHED = replace(RECIPES["published"], passes=2)
DEFAULT = replace(RECIPES["default"], passes=2)
MEMETIC = replace(RECIPES["memetic"], passes=6)


def transformer() -> nn.Module:
    """Two blocks of 8 features on images of 8 x 8; weights large enough for losses to move."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=8, depth=2, num_heads=2
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    return model.eval()


def labeled(count: int, seed: int) -> LabeledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    names = tuple(f"{seed}/{number}" for number in range(count))
    return LabeledImages(images, torch.arange(count) % 5, names)


class Problem:
    """A network at 3 bits, its start, and objectives around it."""

    def __init__(self, moment_matching: bool = False) -> None:
        self.model = transformer()
        self.data = labeled(24, seed=1)
        self.network = quantize(
            self.model, self.data.images[:2], plain(weight_bits=3, moment_matching=moment_matching)
        )
        self.start = calibrate(self.network, self.data.images)

    def objective(
        self, criterion: Criterion = CRITERIA["info_nce"], data: LabeledImages | None = None
    ) -> Objective:
        data = data or self.data
        teacher = predict(self.model, data.images)
        return Objective.of(self.network, data, criterion, teacher, batch_size=12)


@cache
def shared_problem() -> Problem:
    return Problem()


@pytest.fixture
def problem() -> Problem:
    return shared_problem()


@pytest.fixture
def network(problem: Problem) -> QuantizedNetwork:
    return problem.network


def same(first: Point, second: Point) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def all_same(first: list[Iterate], second: list[Iterate]) -> bool:
    return len(first) == len(second) and all(
        a[:3] == b[:3] and a.label == b.label and same(a.point, b.point)
        for a, b in zip(first, second, strict=True)
    )


# The published algorithm, written a second time -----------------------------------------------


def naive_search(problem: Problem, passes: int, seed: int) -> list[list[tuple[float, dict]]]:
    """Evol-Q as the paper has it, with whole forward passes; returns every block's population."""
    teacher = problem.model(problem.data.images).detach()
    generator = torch.Generator().manual_seed(seed)

    def fitness(candidate: dict) -> float:
        point = {**current, **candidate}
        logits = [problem.network(point, batch) for batch in problem.data.images.split(12)]
        return info_nce(torch.cat(logits), teacher, problem.data.labels).mean().item()

    current = dict(problem.start)
    populations = []
    for _ in range(passes):
        for block in ("blocks.1.attn", "blocks.0.attn"):
            names = [f"{block}.qkv.weight.scale", f"{block}.proj.weight.scale"]
            candidate = {name: current[name] for name in names}
            population = [(fitness(candidate), candidate)]
            while len(population) < 15:
                population.append(population[0])
            for _ in range(3):
                parent = None
                for index in torch.randint(15, (10,), generator=generator):
                    if parent is None or population[index][0] < parent[0]:
                        parent = population[index]
                child = {}
                for name in names:
                    noise = torch.rand(len(parent[1][name]), generator=generator) * 2 - 1
                    child[name] = torch.abs(parent[1][name] + 0.001 * noise)
                population.append((fitness(child), child))
                worst = 0
                for index in range(16):
                    if population[index][0] >= population[worst][0]:
                        worst = index
                del population[worst]
            populations.append(population)
            best = population[0]
            for member in population:
                if member[0] < best[0]:
                    best = member
            current.update(best[1])
    return populations


@torch.no_grad()
def test_published_gives_the_population_of_a_naive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(moment_matching=True)
    populations = []

    def recording(*arguments):
        result = evolve_block(*arguments)
        populations.append(result[0])
        return result

    monkeypatch.setattr(evolve, "evolve_block", recording)
    last = list(search_scales(problem.objective(), problem.start, PUBLISHED, seed=5))[-1]
    expected = naive_search(problem, passes=2, seed=5)

    assert len(populations) == len(expected) == 4
    for population, naive in zip(populations, expected, strict=True):
        assert [candidate.loss for candidate in population] == [loss for loss, _ in naive]
        for candidate, (_, entries) in zip(population, naive, strict=True):
            assert same(candidate.entries, entries)
    assert last.evaluations == 1 + 4 * 4, "the start, then 1 + C evaluations a block and pass"
    assert any(len({candidate.loss for candidate in population}) > 1 for population in populations)


# What every recipe promises ---------------------------------------------------------------------

RECIPES_IN_TESTS = pytest.mark.parametrize("recipe", [PUBLISHED, DEFAULT, MEMETIC], ids=RECIPES)


@RECIPES_IN_TESTS
def test_the_seed_decides(problem: Problem, recipe: Recipe) -> None:
    runs = [
        list(search_scales(problem.objective(), problem.start, recipe, seed=s)) for s in (0, 0, 1)
    ]
    assert all_same(runs[0], runs[1])
    assert not all_same(runs[0], runs[2])


@RECIPES_IN_TESTS
def test_the_start_is_left_alone_and_the_loss_never_rises(problem: Problem, recipe: Recipe) -> None:
    before = {name: value.clone() for name, value in problem.start.items()}
    objective = problem.objective()
    iterates = list(search_scales(objective, problem.start, recipe))
    assert same(before, problem.start)
    losses = [iterate.loss for iterate in iterates]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert losses[0] == float(objective(problem.start))
    assert losses[-1] == float(objective(iterates[-1].point)), "the loss of the Point, bit for bit"


@RECIPES_IN_TESTS
def test_what_lies_in_front_of_the_blocks_is_computed_once_a_pass(
    problem: Problem, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = list(search_scales(problem.objective(), problem.start, recipe))
    monkeypatch.setattr("evolq.network.quantized.CUT_BYTES", 0)
    again = list(search_scales(problem.objective(), problem.start, recipe))
    assert [each.loss for each in once] == [each.loss for each in again]
    assert same(once[-1].point, again[-1].point)


@RECIPES_IN_TESTS
def test_the_cost_counts_shares_of_passes(problem: Problem, recipe: Recipe) -> None:
    objective = problem.objective()
    iterates = list(search_scales(objective, problem.start, recipe))
    evaluations = recipe.cycles + recipe.reevaluate
    expected, steps = 1.0, 1
    for _ in range(recipe.passes):
        for names in visits(problem.network, recipe).values():
            share = problem.network.vary(names, problem.start, problem.data.images).share
            gradients = 3 * recipe.cycles * recipe.downhill
            expected += 1 - share + (evaluations + gradients) * share
            steps += evaluations
    assert iterates[-1].cost == pytest.approx(expected)
    assert iterates[-1].cost == pytest.approx(objective.cost)
    assert iterates[-1].evaluations == steps


@RECIPES_IN_TESTS
def test_only_what_the_recipe_names_moves(problem: Problem, recipe: Recipe) -> None:
    names = select(problem.start, within="blocks.1.*")
    last = list(search_scales(problem.objective(), problem.start, recipe, names=names))[-1]
    moved = {name for name in last.point if not torch.equal(last.point[name], problem.start[name])}
    allowed = {name for names in visits(problem.network, recipe).values() for name in names}
    assert moved
    assert moved <= {name for name in allowed if name.startswith("blocks.1.")}


@RECIPES_IN_TESTS
def test_a_budget_is_not_exceeded_and_only_given_names_move(
    problem: Problem, recipe: Recipe
) -> None:
    names = [name for name in problem.start if name.startswith("blocks.1.attn.qkv.weight")]
    objective, selection = problem.objective(), problem.objective(data=labeled(12, seed=2))
    last = list(
        search_scales(
            objective,
            problem.start,
            replace(recipe, passes=99),
            names=names,
            budget=7,
            selection=selection,
        )
    )[-1]
    assert last.cost == pytest.approx(objective.cost + selection.cost / 2)
    share = problem.network.share(["blocks.1.attn.qkv.weight.scale"])
    visit = 1 - share + recipe.cost_of_visit * share
    assert 7 - visit - 0.5 < last.cost <= 7 + 1e-6
    moved = {name for name in last.point if not torch.equal(last.point[name], problem.start[name])}
    assert moved <= set(names)


@RECIPES_IN_TESTS
def test_a_plateau_is_survived(problem: Problem, recipe: Recipe) -> None:
    flat = Criterion("flat", lambda student, teacher, labels: torch.zeros(len(student)))
    iterates = list(
        search_scales(problem.objective(flat), problem.start, replace(recipe, passes=4))
    )
    assert {iterate.loss for iterate in iterates} == {0.0}
    problem.network.check(iterates[-1].point)


@RECIPES_IN_TESTS
def test_a_loss_that_is_not_a_number_is_the_worst(problem: Problem, recipe: Recipe) -> None:
    start_logits = problem.network(problem.start, problem.data.images[:12])

    def trap(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        at_start = torch.equal(student[:12], start_logits)
        return torch.full((len(student),), 1.0 if at_start else float("nan"))

    last = list(search_scales(problem.objective(Criterion("trap", trap)), problem.start, recipe))[
        -1
    ]
    assert last.loss == 1.0
    assert same(last.point, problem.start)


def test_a_search_that_its_budget_stopped_goes_on_bit_for_bit(
    problem: Problem, tmp_path: Path
) -> None:
    whole = list(search_scales(problem.objective(), problem.start, DEFAULT))
    resumed: list[Iterate] = []
    for budget in range(1, 60, 5):
        run = search_scales(
            problem.objective(),
            problem.start,
            DEFAULT,
            budget=budget,
            state_file=tmp_path / "state.safetensors",
        )
        resumed.extend(list(run)[bool(resumed) :])
        assert resumed[-1].cost <= budget + 1e-6
    assert all_same(resumed, whole)


def test_test_images_are_refused_at_once(problem: Problem) -> None:
    test = TestEvaluation.of(problem.network, problem.data)
    with pytest.raises(TypeError, match="TestEvaluation"):
        search_scales(test, problem.start)
    with pytest.raises(TypeError, match="TestEvaluation"):
        search_scales(problem.objective(), problem.start, selection=test)


# Selection images -------------------------------------------------------------------------------


def test_selection_images_choose_among_start_and_passes(problem: Problem) -> None:
    recipe = replace(DEFAULT, passes=4)
    selection = problem.objective(data=labeled(24, seed=2))
    iterates = list(search_scales(problem.objective(), problem.start, recipe, selection=selection))
    per_pass = len(visits(problem.network, recipe))
    ends = iterates[:-1:per_pass]
    assert len(ends) == 5
    best = min(ends, key=lambda iterate: float(selection(iterate.point)))
    assert iterates[-1].label == "selected"
    assert same(iterates[-1].point, best.point)
    assert iterates[-1].loss == best.loss


# The state file -----------------------------------------------------------------------------------


def search_for_resume(state_file: Path | None) -> list[Iterate]:
    problem = shared_problem()
    selection = problem.objective(data=labeled(12, seed=2))
    recipe = replace(DEFAULT, passes=3)
    return list(
        search_scales(
            problem.objective(), problem.start, recipe, selection=selection, state_file=state_file
        )
    )


def search_and_die(state_file: Path, visit: int) -> None:
    """Search, and kill the own process in the middle of a visit."""
    count = 0

    def deadly(*arguments):
        nonlocal count
        count += 1
        result = evolve_block(*arguments)
        if count == visit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    evolve.evolve_block = deadly
    search_for_resume(state_file)


@pytest.mark.slow
def test_a_killed_search_goes_on_bit_for_bit(tmp_path: Path) -> None:
    state_file = tmp_path / "search.safetensors"
    code = (
        f"import sys, torch; torch.set_num_threads({torch.get_num_threads()}); "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_evolve; "
        f"from pathlib import Path; test_evolve.search_and_die(Path({str(state_file)!r}), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr

    resumed = search_for_resume(state_file)
    whole = search_for_resume(None)
    assert all_same(resumed, whole[8:])
    assert all_same(search_for_resume(state_file), whole[-2:]), "nothing is left to do"
    assert list(tmp_path.iterdir()) == [state_file]


def test_the_state_of_another_search_is_refused(problem: Problem, tmp_path: Path) -> None:
    state_file = tmp_path / "search.safetensors"
    recipe = replace(DEFAULT, passes=1)
    arguments = problem.objective(), problem.start
    list(search_scales(*arguments, recipe, state_file=state_file))
    in_blocks = select(problem.start, within="blocks.*")
    other_start = {**problem.start, "head.weight.scale": problem.start["head.weight.scale"] * 2}
    hotter = replace(
        CRITERIA["info_nce"], per_image=lambda s, t, labels: info_nce(s, t, labels, 9.0)
    )
    other_images = problem.objective(data=labeled(24, 3))
    for other, difference in (
        (search_scales(*arguments, replace(recipe, cycles=2), state_file=state_file), "recipe"),
        (search_scales(*arguments, recipe, seed=1, state_file=state_file), "seed"),
        (
            search_scales(*arguments, recipe, names=in_blocks, state_file=state_file),
            "set of names",
        ),
        (
            search_scales(problem.objective(), other_start, recipe, state_file=state_file),
            "start",
        ),
        (
            search_scales(problem.objective(hotter), problem.start, recipe, state_file=state_file),
            "calibration loss of the teacher",
        ),
        (
            search_scales(other_images, problem.start, recipe, state_file=state_file),
            "calibration images",
        ),
    ):
        with pytest.raises(InputError, match=f"a search with another {difference}"):
            next(other)


def test_a_changed_bit_of_a_state_is_found(problem: Problem, tmp_path: Path) -> None:
    state_file = tmp_path / "search.safetensors"
    arguments = problem.objective(), problem.start, replace(DEFAULT, passes=1)
    list(search_scales(*arguments, state_file=state_file))
    content = bytearray(state_file.read_bytes())
    content[-1] ^= 1  # of the last tensor
    state_file.write_bytes(content)
    with pytest.raises(InputError, match="its checksum does not fit its content"):
        next(search_scales(*arguments, state_file=state_file))


@pytest.mark.parametrize("content", [b"", b"no state at all"])
def test_a_broken_state_file_is_refused(problem: Problem, tmp_path: Path, content: bytes) -> None:
    state_file = tmp_path / "search.safetensors"
    state_file.write_bytes(content)
    with pytest.raises(InputError, match="does not hold the state of a search"):
        next(search_scales(problem.objective(), problem.start, state_file=state_file))


# Parts ------------------------------------------------------------------------------------------


def test_blocks_of_a_transformer(network: QuantizedNetwork) -> None:
    found = find_blocks(network)
    assert list(found) == [
        "patch_embed",
        "blocks.0.attn",
        "blocks.0.mlp",
        "blocks.1.attn",
        "blocks.1.mlp",
        "head",
    ]
    assert attention_modules(network) == {"blocks.0.attn", "blocks.1.attn"}
    assert "blocks.0.attn.matmul_1.right.zero_point" in found["blocks.0.attn"]
    everything = [name for names in found.values() for name in names]
    assert sorted(everything) == sorted(set(network.names) - set(network.weights))


class Residual(nn.Module):
    """A residual block with a shortcut, as in ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.downsample = nn.Sequential(nn.Conv2d(2, 4, 1))

    def forward(self, value: Tensor) -> Tensor:
        return self.conv2(self.conv1(value).relu()) + self.downsample(value)


class Convolutions(nn.Module):
    """A stem, a residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.layer = nn.Sequential(Residual())
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(images)).mean((2, 3)))


@pytest.mark.parametrize("scheme", ["weights", "linear", "full"])
def test_blocks_of_a_network_of_convolutions(scheme: str) -> None:
    network = quantize(Convolutions(), torch.zeros(2, 1, 8, 8), plain(scheme))
    found = find_blocks(network)
    assert list(found) == ["stem", "layer.0", "head"]
    assert "layer.0.downsample.0.weight.scale" in found["layer.0"]
    assert list(visits(network, PUBLISHED)) == ["head", "layer.0", "stem"], "it has no attention"


def test_nothing_to_search_is_refused(network: QuantizedNetwork) -> None:
    with pytest.raises(InputError, match="quantizes nothing"):
        find_blocks(quantize(Convolutions(), torch.zeros(2, 1, 8, 8), plain("none")))
    inputs = [name for name in network.names if name.endswith(".input.scale")]
    words = f"no scale of a weight in the {len(inputs)} names given can move; choose other names"
    with pytest.raises(InputError, match=words):
        visits(network, PUBLISHED, inputs)


def test_visits_of_some_names(network: QuantizedNetwork) -> None:
    names = [f"blocks.{b}.mlp.fc{i}.weight.scale" for b in (0, 1) for i in (1, 2)]
    found = visits(network, DEFAULT, names)
    assert found == {"blocks.1.mlp": tuple(names[2:]), "blocks.0.mlp": tuple(names[:2])}
    assert list(found) == ["blocks.1.mlp", "blocks.0.mlp"], "the last block first"


def test_the_visits_of_both_recipes(network: QuantizedNetwork) -> None:
    assert visits(network, PUBLISHED) == {
        f"blocks.{b}.attn": (
            f"blocks.{b}.attn.qkv.weight.scale",
            f"blocks.{b}.attn.proj.weight.scale",
        )
        for b in (0, 1)
    }
    assert list(visits(network, PUBLISHED)) == ["blocks.1.attn", "blocks.0.attn"]


def test_a_memetic_child_goes_downhill_by_random_amounts(problem: Problem) -> None:
    ((_, moving),) = visits(problem.network, MEMETIC).items()
    assert {*moving} == {n for names in visits(problem.network, DEFAULT).values() for n in names}
    objective = problem.objective()
    gradient = objective.vary(moving, at=problem.start).gradient(problem.start)[1]
    *_, end = search_scales(objective, problem.start, MEMETIC)
    assert end.loss < float(objective(problem.start))

    # the first child is better here, so that it stays
    start, end = search_scales(objective, problem.start, replace(MEMETIC, passes=1))
    went = {name: (end.point[name] / problem.start[name]).log() for name in moving}
    assert end.loss < start.loss
    for name, change in went.items():
        assert torch.equal(change.sign(), -gradient[name].sign())
        assert float(change.abs().max()) <= 0.08 + 1e-6
    sizes = went["head.weight.scale"].abs()
    assert len(sizes.unique()) == len(sizes)


def constant_children(losses: list[float]):
    """Return a fitness that gives `losses` one after the other, and a mutation that counts."""
    remaining = iter(losses)
    numbers = iter(range(1, 100))
    steps = []

    def mutate(entries: Point, step: float) -> Point:
        steps.append(step)
        return {"number": torch.tensor(next(numbers))}

    return (lambda entries: next(remaining)), mutate, steps


def test_one_child_at_a_time_joins_and_the_worst_leaves() -> None:
    recipe = Recipe(population=2, sample=20, cycles=4)  # so many that both are drawn
    # 9 leaves at once; 2 replaces the older copy; 1 replaces the other; 1.5 replaces 2
    fitness, mutate, _ = constant_children([9.0, 2.0, 1.0, 1.5])
    start = Candidate({"number": torch.tensor(0)}, 5.0)
    population, _ = evolve_block(fitness, mutate, start, recipe, 1.0, torch.Generator())
    assert [(int(c.entries["number"]), c.loss) for c in population] == [(3, 1.0), (4, 1.5)]


@pytest.mark.parametrize(("newest", "left"), [(True, [0, 1]), (False, [0, 2])])
def test_of_equals_the_newest_or_the_oldest_leaves(newest: bool, left: list[int]) -> None:
    candidates = [Candidate({"number": torch.tensor(n)}, loss) for n, loss in enumerate([1, 2, 2])]
    assert [int(c.entries["number"]) for c in survivors(candidates, newest)] == left
    assert RECIPES["published"].newest_leaves
    assert not RECIPES["default"].newest_leaves


def test_the_step_grows_by_successes_and_ties_and_shrinks_by_failures() -> None:
    recipe = Recipe(population=1, sample=1, cycles=4, adaptation=1.5)
    fitness, mutate, steps = constant_children([4.0, 4.0, 6.0, float("inf")])
    start = Candidate({"number": torch.tensor(0)}, 5.0)
    _, step = evolve_block(fitness, mutate, start, recipe, 1.0, torch.Generator())
    shrink = 1.5**-0.25
    assert [*steps, step] == pytest.approx([1, 1.5, 2.25, 2.25 * shrink, 2.25 * shrink**2])


def test_tournaments_draw_with_replacement() -> None:
    population = [Candidate({}, float(loss)) for loss in range(4)]
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(population=4, sample=4)
    losses = [tournament(population, recipe, generator).loss for _ in range(2000)]
    # the fittest is missed in (3/4)^4 = 0.316 of all samples: 6 standard errors of 2,000
    assert abs(losses.count(0.0) / 2000 - (1 - 0.75**4)) < 6 * math.sqrt(0.316 * 0.684 / 2000)


NOISE = torch.linspace(-1, 1, 101)


@pytest.mark.parametrize(("bits", "amount"), [(3, 1e-3), (7, 1e-3), (8, 1e-4)])
def test_the_published_perturbation(bits: int, amount: float) -> None:
    scale = torch.full((101,), 5e-5)
    moved = Absolute()(scale, NOISE, bits, 1.0)
    assert torch.equal(moved, (scale + amount * NOISE).abs())
    assert bool((moved >= 0).all())
    assert float(moved.max()) == pytest.approx(5e-5 + amount)


def test_the_relative_perturbation() -> None:
    scale = torch.full((101,), 5e-5)
    ratio = Relative(0.02)(scale, NOISE, 3, 2.0) / scale
    assert float(ratio.log().max()) == pytest.approx(0.04, rel=1e-3)
    assert float(ratio.log().min()) == pytest.approx(-0.04, rel=1e-3)


def test_recipes_by_name() -> None:
    assert choose_recipe("published", passes=3, cycles=None) == replace(
        RECIPES["published"], passes=3
    )
    with pytest.raises(InputError, match="unknown recipe 'nonesuch'"):
        choose_recipe("nonesuch")
    for changes in ({"passes": -1}, {"population": 0}, {"sample": 0}, {"cycles": 0}):
        with pytest.raises(InputError, match=next(iter(changes))):
            choose_recipe("published", **changes)


def test_the_published_recipe_chooses_the_published_scheme_unless_another_is_given() -> None:
    published = Search("published")
    assert _quantization(Settings(), published, frozenset()).scheme == "published"
    assert _quantization(Settings(), published, frozenset({"scheme"})).scheme == "linear"
    assert _quantization(Settings(), Search(), frozenset()).scheme == "linear"


@pytest.mark.parametrize("bits", [3, 8])
def test_the_published_scheme_has_rules_of_its_own(bits: int) -> None:
    found = Quantization("published", bits).resolved()
    assert (found.weight_observer, found.activation_observer) == ("minmax", "omse")
    assert found.moment_matching
    assert found.integer_layer_norm
    assert found.softmax == "uniform"
    assert Quantization("published", softmax="log2").resolved().softmax == "log2"
