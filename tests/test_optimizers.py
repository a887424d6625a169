"""What every optimizer promises, on a transformer small enough to search it a hundred times."""

import itertools
import math
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import TinyTransformer, images, plain, randomized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA, Criterion
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.optimizers.black_box import GRID
from evolq.optimizers.budgeted import BudgetedLoss, BudgetSpent
from evolq.optimizers.evolve import visits
from evolq.optimizers.gradient import adam, sweep_learning_rate
from evolq.optimizers.recipes import RECIPES
from evolq.optimizers.registry import OPTIMIZERS, choose_optimizer
from evolq.points import select
from evolq.starts.calibration import calibrate

COUNT = 8
BUDGET = 12

ALL = pytest.mark.parametrize("name", OPTIMIZERS)


@cache
def problem() -> SimpleNamespace:
    model = randomized(TinyTransformer())
    data = LabeledImages(images(COUNT), torch.arange(COUNT) % 3, tuple(map(str, range(COUNT))))
    network = quantize(model, data.images, plain(weight_bits=3))
    start = calibrate(network, data.images)
    return SimpleNamespace(
        model=model, data=data, network=network, start=start, names=list(select(start, {"scale"}))
    )


def objective(criterion: Criterion = CRITERIA["kl"]) -> Objective:
    teacher = predict(problem().model, problem().data.images)
    return Objective.of(problem().network, problem().data, criterion, teacher, batch_size=4)


def search(name, criterion=CRITERIA["kl"], seed=0, budget=BUDGET, names=None, measured=None):
    return OPTIMIZERS[name](
        measured or objective(criterion),
        problem().start,
        names=names or problem().names,
        budget=budget,
        generator=torch.Generator().manual_seed(seed),
        **(
            {"learning_rate": 0.003} if OPTIMIZERS[name].gradient else {}
        ),  # so few steps, so few scales
    )


@cache
def path(name: str, seed: int = 0):
    return list(search(name, seed=seed))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@ALL
def test_the_first_iterate_is_the_start_with_its_loss(name):
    first = next(iter(search(name)))
    assert same(first.point, problem().start)
    assert first.loss == float(objective()(problem().start))
    assert first.cost == pytest.approx(1)


@ALL
def test_the_same_seed_gives_the_same_path_bit_for_bit(name):
    again = list(search(name))
    assert len(again) == len(path(name))
    for a, b in zip(again, path(name), strict=True):
        assert (a.evaluations, a.cost, a.loss, a.label) == (
            b.evaluations,
            b.cost,
            b.loss,
            b.label,
        )
        assert same(a.point, b.point)


@ALL
def test_another_seed_matters_to_those_that_draw(name):
    equal = same(path(name)[-1].point, path(name, seed=1)[-1].point)
    assert equal == OPTIMIZERS[name].deterministic


@ALL
def test_neither_start_nor_network_change(name):
    start = {key: value.clone() for key, value in problem().start.items()}
    weights = {key: value.clone() for key, value in problem().network.weights.items()}
    logits = problem().network(problem().start, problem().data.images)
    list(search(name, budget=8))
    assert same(start, problem().start)
    assert same(weights, problem().network.weights)
    assert torch.equal(logits, problem().network(problem().start, problem().data.images))
    assert not any(value.requires_grad for value in path(name)[-1].point.values())


@ALL
def test_losses_belong_to_their_points_and_never_rise(name):
    measured = objective()
    losses = [iterate.loss for iterate in path(name)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0], "so small a network can be improved by all of them"
    for iterate in path(name):
        problem().network.check(iterate.point)
        assert iterate.loss == float(measured(iterate.point))


class OperationCounter(TorchDispatchMode):
    """Counts the floating-point operations of every product that PyTorch runs."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result


def each_by_itself(network, turns, at, images, batch_size):
    """Do what `vary_in_turn` does where memory is short: run the images in each turn."""
    return [partial(network.vary, names, images=images, batch_size=batch_size) for names in turns]


def test_a_search_runs_what_lies_in_front_of_its_blocks_once_a_pass():
    measured = objective()
    with OperationCounter() as counter:
        iterates = list(search("evol-q", measured=measured))
    run = counter.operations / (2 * problem().network.operations * COUNT)
    turns = visits(problem().network, RECIPES["default"]).values()
    in_front = [1 - problem().network.share(names) for names in turns]
    visited = list(itertools.islice(itertools.cycle(in_front), len(iterates) - 1))
    passes = math.ceil(len(visited) / len(in_front))
    assert len(set(in_front)) > 1
    # the last block comes first: what lies in front of it has all the rest in it
    assert run == pytest.approx(iterates[-1].cost - sum(visited) + passes * in_front[0], rel=1e-6)


@ALL
def test_the_claimed_cost_is_what_a_counter_inside_the_network_sees(name, monkeypatch):
    monkeypatch.setattr(QuantizedNetwork, "vary_in_turn", each_by_itself)
    measured = objective()
    one_pass = 2 * problem().network.operations * COUNT  # a multiply-accumulate is two operations
    costs = []
    with OperationCounter() as counter:
        for iterate in search(name, measured=measured):
            costs.append(iterate.cost)
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(counter.operations / one_pass, rel=1e-6)
    assert costs[-1] == pytest.approx(measured.cost)


@ALL
@pytest.mark.parametrize("budget", [1, 3.5, 7])
def test_the_budget_is_never_exceeded(name, budget):
    measured = objective()
    last = list(search(name, budget=budget, measured=measured))[-1]
    assert last.cost <= budget + 1e-6
    assert measured.cost <= budget + 1e-6
    if budget == 1:
        assert same(last.point, problem().start)
    if name in {"random-search", "one-plus-one-es", "cma", "spsa"}:
        assert measured.cost > budget - 1, "another evaluation would have fitted"


FLAT = Criterion("flat", lambda student, teacher, labels: torch.zeros(len(student)))
LEVEL = Criterion("level", lambda student, teacher, labels: 0 * student.sum(1) + 1)


@ALL
@pytest.mark.parametrize("criterion", [FLAT, LEVEL], ids=["no gradient", "zero gradient"])
def test_plateaus_are_survived(name, criterion):
    iterates = list(search(name, criterion))
    assert len({iterate.loss for iterate in iterates}) == 1
    problem().network.check(iterates[-1].point)


@ALL
def test_ties_are_survived(name):
    rounded = Criterion(
        "rounded",
        lambda student, teacher, labels: (
            CRITERIA["kl"].per_image(student, teacher, labels) * 0
            + (CRITERIA["kl"].per_image(student, teacher, labels).mean() * 20).round()
        ),
    )
    losses = [iterate.loss for iterate in search(name, rounded)]
    assert losses == sorted(losses, reverse=True)


@ALL
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_the_worst(name, value):
    start = problem().network(problem().start, problem().data.images[:4])

    def trap(student, teacher, labels):
        at_start = torch.equal(student[:4], start)
        return student.sum(1) * 0 + (1.0 if at_start else value)

    last = list(search(name, Criterion("trap", trap)))[-1]
    assert last.loss == 1
    assert same(last.point, problem().start)


@ALL
def test_only_the_given_names_move(name):
    moving = [n for n in problem().names if n.startswith(("fc1.", "fc2."))]
    last = list(search(name, names=moving))[-1]
    moved = {n for n in last.point if not torch.equal(last.point[n], problem().start[n])}
    assert moved
    assert moved <= set(moving)


@ALL
def test_what_no_optimizer_accepts(name):
    test = TestEvaluation.of(problem().network, problem().data)
    with pytest.raises(TypeError, match="TestEvaluation"):
        search(name, measured=test)
    with pytest.raises(InputError, match=r"fc1\.weight"):
        search(name, names=["fc1.weight"])
    with pytest.raises(InputError, match="no name"):
        OPTIMIZERS[name](objective(), problem().start, names=[], budget=9, generator=None)
    with pytest.raises(InputError, match="`budget` is 0; give a number from 1"):
        search(name, budget=0)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match="'annealing'; choose from evol-q, adam"):
        choose_optimizer("annealing")


# What each does, where it can be told in closed form ---------------------------------------------


def budgeted(budget: float = 50) -> BudgetedLoss:
    return BudgetedLoss(objective(), problem().start, problem().names, budget)


def test_gradients_are_those_of_the_logarithms():
    loss = budgeted()
    value, gradient = loss.gradient(loss.best, "here")
    expected_value, raw = objective().gradient(problem().start)
    expected = torch.cat([(problem().start[n] * raw[n]).flatten() for n in problem().names])
    assert value == pytest.approx(float(expected_value))
    torch.testing.assert_close(gradient, expected.double(), rtol=1e-4, atol=1e-7)


def test_coordinates_are_changes_of_logarithms():
    loss = budgeted()
    coordinates = torch.linspace(-0.1, 0.1, loss.dimension, dtype=torch.float64)
    loss.best_loss = math.inf  # so that the next one is the best
    loss(coordinates, "there")
    point = loss.take_iterates()[-1].point
    ratios = [(point[n] / problem().start[n]).log().flatten() for n in problem().names]
    torch.testing.assert_close(torch.cat(ratios).double(), coordinates, rtol=0, atol=1e-6)


def test_a_focused_loss_costs_less_and_is_the_same():
    loss = budgeted()
    before = loss.spent
    names = ["head.weight.scale"]
    share = problem().network.share(names)
    loss.focus(names)
    assert loss.spent - before == pytest.approx(1 - share)
    assert loss(loss.best, "again") == loss.best_loss
    assert loss.spent - before == pytest.approx(1)
    assert share == problem().network.vary(names, problem().start, problem().data.images).share
    loss.budget = loss.spent + 0.9
    with pytest.raises(BudgetSpent):
        loss.focus(problem().names)


def first_step(name: str, **options) -> torch.Tensor:
    """Return the coordinates where the second evaluation is."""
    seen = []
    method = OPTIMIZERS[name].search.__wrapped__
    loss = budgeted()
    original = loss.gradient
    loss.gradient = lambda at, label: (seen.append(at.clone()), original(at, label))[1]
    for _ in itertools.islice(method(loss, torch.Generator(), **options), 2):
        pass
    return seen[1]


def test_the_learning_rate_is_the_length_of_the_first_step():
    loss = budgeted()
    _, gradient = loss.gradient(loss.best, "here")
    step = first_step("sgd", learning_rate=0.01)
    assert float(step.square().mean().sqrt()) == pytest.approx(0.01)
    torch.testing.assert_close(step / step.norm(), -gradient / gradient.norm())
    moved = gradient.abs() > 1e-6  # far above Adam's epsilon
    step = first_step("adam", learning_rate=0.01)
    torch.testing.assert_close(step[moved], -0.01 * gradient[moved].sign(), rtol=0.02, atol=0)


def test_weight_decay_pulls_to_the_start():
    """With a flat loss nothing else moves, and at the start there is nothing to pull."""
    assert torch.equal(
        first_step("adamw", learning_rate=0.01, weight_decay=0.5),
        first_step("adam", learning_rate=0.01),
    )


def test_the_sweep_takes_the_least_calibration_loss_and_reports_all_costs():
    found = sweep_learning_rate(
        adam,
        objective(),
        problem().start,
        names=problem().names,
        budget=10,
        generator=torch.Generator(),
        learning_rates=(10.0, 0.003, 1e-9),
    )
    assert found.learning_rate == 0.003
    assert found.losses[0.003] == min(found.losses.values())
    assert found.iterates[-1].loss == found.losses[0.003]
    assert found.cost == pytest.approx(3 * (1 + 3 * 3))


def test_coordinate_descent_keeps_the_best_of_the_grid():
    name = problem().names[-1]
    (last,) = list(search("coordinate-descent", budget=1 + 1 + len(GRID), names=[name]))[-1:]
    measured = objective()
    losses = {
        shift: float(measured({**problem().start, name: problem().start[name] * math.exp(shift)}))
        for shift in (0.0, *GRID)
    }
    assert last.loss <= min(losses.values()) + 1e-6


def test_powell_moves_all_scales_of_equally_named_tensors_alike():
    point = path("powell")[-1].point
    for tensor in ("weight", "input"):
        ratios = torch.cat(
            [
                (point[n] / problem().start[n]).log().flatten()
                for n in problem().names
                if n.split(".")[-2] == tensor
            ]
        )
        assert float(ratios.max() - ratios.min()) < 1e-6


def test_cma_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(search("cma", seed=5))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@ALL
def test_only_those_that_say_so_need_gradients(name, monkeypatch):
    """`landscape.compare` sweeps the learning rate of these."""

    def count(self, point):
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(Objective, "gradient", count)
    if OPTIMIZERS[name].gradient:
        with pytest.raises(AssertionError, match="a gradient"):
            list(search(name, budget=8))
    else:
        list(search(name, budget=8))
