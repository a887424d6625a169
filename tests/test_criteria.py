import math

import pytest
import torch
from torch import Tensor

from evolq.errors import InputError
from evolq.losses.criteria import (
    CRITERIA,
    Criterion,
    choose_criterion,
    info_nce,
    words_of,
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
    assert torch.equal(before, after), "students are never coupled, teachers are"


@pytest.mark.parametrize("name", ["kl", "mse", "cosine", "fisher"])
def test_a_perfect_student_has_loss_zero_and_no_other_has_less(name: str) -> None:
    criterion = CRITERIA[name]
    same = criterion.per_image(logits(1), logits(1), LABELS)
    torch.testing.assert_close(same, torch.zeros(IMAGES), atol=1e-6, rtol=0)
    assert (criterion.per_image(logits(0), logits(1), LABELS) > 0).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_readers_know_every_criterion_by_words_of_its_own(name: str) -> None:
    assert CRITERIA[name].name == name
    assert CRITERIA[name].words, f"criterion {name} has no words; give them in its registry"
    assert [words_of(other) for other in CRITERIA].count(words_of(name)) == 1


def test_an_unknown_criterion_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words_of("hinge") == "hinge"
    monkeypatch.setitem(CRITERIA, "hinge", Criterion("hinge", CRITERIA["mse"].per_image))
    assert words_of("hinge") == "hinge"


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


@pytest.mark.parametrize(("count", "accepted"), [(1, False), (2, True), (100, True), (101, False)])
def test_no_image_is_contrasted_with_itself_alone(count: int, accepted: bool) -> None:
    criterion = CRITERIA["info_nce"]
    CRITERIA["kl"].check(count)
    alone = torch.randn(count, 4), torch.randn(count, 4)
    last = criterion.per_image(*alone, torch.zeros(count, dtype=torch.int64))[-1]
    assert (float(last) == 0) is not accepted, "whatever the network does"
    if accepted:
        criterion.check(count)
    else:
        with pytest.raises(InputError, match=f"of {count} images the last one is alone"):
            criterion.check(count)


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
    assert choose_criterion("info_nce") is CRITERIA["info_nce"]


@pytest.mark.parametrize(
    ("name", "temperature", "message"),
    [
        ("nce", None, "unknown criterion 'nce'"),
        ("info_nce", 0.0, "give a number from 0.0001"),
        ("info_nce", float("nan"), "give a number from 0.0001"),
        ("kl", 2.0, "has no temperature"),
    ],
)
def test_bad_choices(name: str, temperature: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_criterion(name, temperature)
