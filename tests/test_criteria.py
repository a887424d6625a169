import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from evolq.errors import InputError
from evolq.losses.criteria import (
    CRITERIA,
    Criterion,
    choose_criterion,
    info_nce,
    info_nce_bound,
    no_bound,
)

IMAGES, CLASSES = 12, 5


def logits(seed: int) -> Tensor:
    return torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(IMAGES) % CLASSES


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_gives_one_value_per_image(name: str) -> None:
    values = CRITERIA[name].per_image(logits(0), logits(1), LABELS)
    assert values.shape == (IMAGES,)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_only_criteria_that_say_so_read_labels(name: str) -> None:
    criterion = CRITERIA[name]
    values = [criterion.per_image(logits(0), logits(1), labels) for labels in (LABELS, 4 - LABELS)]
    assert torch.equal(*values) != criterion.uses_labels


@pytest.mark.parametrize("name", CRITERIA)
def test_only_criteria_that_say_so_couple_images(name: str) -> None:
    criterion = CRITERIA[name]
    student = logits(0)
    changed = student.clone()
    changed[0] += torch.arange(CLASSES)
    teacher = logits(1)
    before, after = (criterion.per_image(x, teacher, LABELS)[1:] for x in (student, changed))
    teacher[0] += torch.arange(CLASSES)
    coupled = not torch.equal(before, criterion.per_image(student, teacher, LABELS)[1:])
    assert coupled == (criterion.batch is not None)
    assert torch.equal(before, after), "a lower bound asks for more: students are never coupled"


@pytest.mark.parametrize("name", ["kl", "mse", "cosine", "fisher"])
def test_a_perfect_student_has_loss_zero_and_no_other_has_less(name: str) -> None:
    criterion = CRITERIA[name]
    same = criterion.per_image(logits(1), logits(1), LABELS)
    torch.testing.assert_close(same, torch.zeros(IMAGES), atol=1e-6, rtol=0)
    assert (criterion.per_image(logits(0), logits(1), LABELS) > 0).all()


BOUNDED = [*CRITERIA.values(), choose_criterion("info_nce", 0.1)]


@pytest.mark.parametrize("criterion", BOUNDED, ids=[*CRITERIA, "cold info_nce"])
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(2, 120),
    classes=st.integers(2, 8),
    teacher_scale=st.sampled_from([1e-3, 1.0, 30.0]),
    student_scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    noise=st.sampled_from([0.0, 0.1, 3.0]),
    offset=st.sampled_from([-5.0, 0.0, 5.0]),
)
@example(0, 100, 5, 1.0, 1.0, 0.0, 0.0)
def test_no_student_gets_below_the_bound(
    criterion: Criterion,
    seed: int,
    count: int,
    classes: int,
    teacher_scale: float,
    student_scale: float,
    noise: float,
    offset: float,
) -> None:
    """Students around the teacher, and around the teacher without the mean, which infoNCE likes."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(count, classes, generator=generator) * teacher_scale + offset
    bound = criterion.bound(teacher)
    assert bound.shape == (count,)
    labels = torch.arange(count) % classes
    unit = functional.normalize(teacher, dim=1)
    for center in (unit, unit - unit.mean(0)):
        student = center + noise * torch.randn(count, classes, generator=generator)
        values = criterion.per_image(student_scale * student, teacher, labels)
        assert (values >= bound - 1e-5 * (1 + values.abs())).all()


@pytest.mark.parametrize("name", ["kl", "mse", "cosine", "fisher"])
def test_the_teacher_itself_reaches_the_bound(name: str) -> None:
    criterion, teacher = CRITERIA[name], logits(1)
    reached = criterion.per_image(teacher, teacher, LABELS)
    torch.testing.assert_close(criterion.bound(teacher), reached, atol=1e-6, rtol=0)


def test_nothing_is_known_about_other_criteria() -> None:
    criterion = Criterion("mine", lambda student, teacher, labels: student.sum(1))
    assert criterion.bound is no_bound
    assert (criterion.bound(logits(0)) == -math.inf).all()


@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("count", [2, 5, 100])
def test_the_bound_of_info_nce_for_orthogonal_teachers(count: int, temperature: float) -> None:
    """The best student leans away from the others: cosines a and b with a - b = sqrt(n / (n-1))."""
    gap = math.sqrt(count / (count - 1)) / temperature
    least = 2 * temperature * math.log1p((count - 1) * math.exp(-gap))
    bound = info_nce_bound(torch.eye(count), temperature)
    torch.testing.assert_close(bound, torch.full((count,), least), rtol=1e-5, atol=0)


def test_the_bound_of_info_nce_for_equal_teachers() -> None:
    bound = info_nce_bound(torch.ones(7, 3), temperature=2.0)
    torch.testing.assert_close(bound, torch.full((7,), 4 * math.log(7)))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_bound_of_info_nce_is_what_gradient_descent_finds(temperature: float) -> None:
    teacher = logits(3) + 0.5
    student = teacher.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = info_nce(student, teacher, LABELS, temperature).sum()
        loss.backward()
        optimizer.step()
    found = info_nce(student.detach(), teacher, LABELS, temperature)
    torch.testing.assert_close(info_nce_bound(teacher, temperature), found, rtol=1e-3, atol=0)
    assert (found < info_nce(teacher, teacher, LABELS, temperature) * 0.996).all(), "it moved"


def test_the_bound_of_info_nce_goes_by_batches() -> None:
    teacher = logits(2)
    parts = [info_nce_bound(part) for part in teacher.split(5)]
    torch.testing.assert_close(info_nce_bound(teacher, batch=5), torch.cat(parts))


def test_closed_forms() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    label = torch.tensor([1])
    p = math.exp(2) / (1 + math.exp(2))
    expected = {
        "cross_entropy": -math.log(1 - p),
        "kl": math.log(0.5) - 0.5 * (math.log(p) + math.log(1 - p)),
        "mse": 2.0,
        "fisher": 0.5,  # variance of (2, 0) under (1/2, 1/2), halved
    }
    for name, value in expected.items():
        assert CRITERIA[name].per_image(student, teacher, label).item() == pytest.approx(value)
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert CRITERIA["cosine"].per_image(one, other, label).item() == pytest.approx(1)


def test_fisher_is_the_second_order_of_kl() -> None:
    teacher = logits(1).double()
    student = teacher + 1e-3 * logits(0).double()
    kl, fisher = (CRITERIA[name].per_image(student, teacher, LABELS) for name in ("kl", "fisher"))
    # the third order is a thousandth of the second at this distance
    torch.testing.assert_close(kl, fisher, rtol=5e-3, atol=0)


def test_info_nce_by_hand() -> None:
    student, teacher = torch.eye(2), torch.eye(2)
    # cosines 1 and 0, temperature 1: -log(e / (e + 1)), times 2
    expected = 2 * math.log(1 + math.exp(-1))
    values = info_nce(student, teacher, LABELS[:2], temperature=1.0)
    torch.testing.assert_close(values, torch.full((2,), expected))


def test_info_nce_batches_stand_for_themselves_and_the_remainder_too() -> None:
    student, teacher = logits(0), logits(1)
    values = info_nce(student, teacher, LABELS, batch=5)
    parts = [
        info_nce(s, t, LABELS[: len(s)], batch=5)
        for s, t in zip(student.split(5), teacher.split(5), strict=True)
    ]
    assert [len(part) for part in parts] == [5, 5, 2]
    assert torch.equal(values, torch.cat(parts))


def test_temperature() -> None:
    warm = choose_criterion("info_nce", 1.0).per_image(logits(0), logits(1), LABELS)
    assert torch.equal(warm, info_nce(logits(0), logits(1), LABELS, temperature=1.0))
    bound = choose_criterion("info_nce", 1.0).bound(logits(1))
    assert torch.equal(bound, info_nce_bound(logits(1), temperature=1.0))
    assert choose_criterion("info_nce") is CRITERIA["info_nce"]


@pytest.mark.parametrize(
    ("name", "temperature", "message"),
    [
        ("nce", None, "unknown criterion 'nce'"),
        ("info_nce", 0.0, "positive"),
        ("info_nce", float("nan"), "positive"),
        ("kl", 2.0, "has no temperature"),
    ],
)
def test_bad_choices(name: str, temperature: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_criterion(name, temperature)
