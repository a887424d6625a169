"""Criteria: how far the quantized network's predictions are from where they should be.

A criterion takes the logits of all images at once, shape (n, classes), and gives one value per
image, shape (n,), whose mean is the loss. `CRITERIA` lists them. Only `cross_entropy` sees labels;
the others compare with the full-precision network (the teacher) and need no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from evolq.errors import InputError

# Frumkin et al. 2023 (Evol-Q), section 4: temperature and batch of the published code.
INFO_NCE_TEMPERATURE = 3.0
INFO_NCE_BATCH = 100

# Rounds towards the best bound of infoNCE. Any number gives a bound; at the published temperature
# the third no longer moves a float32.
BOUND_ROUNDS = 4


def no_bound(teacher: Tensor) -> Tensor:
    """Minus infinity (n,): nothing is known about how low a value can be."""
    return teacher.new_full((len(teacher),), -torch.inf)


def zero(teacher: Tensor) -> Tensor:
    """Zero (n,): the lower bound of distances, divergences and cross entropies."""
    return teacher.new_zeros(len(teacher))


@dataclass(frozen=True)
class Criterion:
    """A criterion and what it may see.

    Attributes:
        name: its name in `CRITERIA`.
        per_image: (logits, teacher logits, labels) to values (n,) whose mean is the loss.
        uses_labels: whether it reads the labels; the others are label-free.
        batch: images whose values depend on each other (resample whole batches); None if each
            image stands for itself.
        bound: teacher logits to values (n,) that no student's values are below, whatever the
            labels. With it a search drops a candidate before all images have run; what runs later
            must not change earlier values, so no value may depend on another image's student.
    """

    name: str
    per_image: Callable[[Tensor, Tensor, Tensor], Tensor]
    uses_labels: bool = False
    batch: int | None = None
    bound: Callable[[Tensor], Tensor] = no_bound

    def check(self, images: int) -> None:
        """Check a number of images.

        Raises:
            InputError: for a single image, if it is to be contrasted with others.
        """
        if images == 1 and self.batch is not None:
            raise InputError(
                f"criterion {self.name} contrasts images with each other and has 1; give 2 or "
                "more, or another criterion such as kl"
            )


def info_nce(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = INFO_NCE_TEMPERATURE,
    batch: int = INFO_NCE_BATCH,
) -> Tensor:
    """Contrast each image's prediction with the teacher's predictions of its batch-mates.

    van den Oord et al. 2018 (infoNCE) as published with Evol-Q: rows L2-normalized, cosine over
    temperature, cross entropy with the diagonal as the target, times 2 temperature. Images form
    batches of `batch` in their order; a remainder forms a smaller batch of its own, whose values
    lie lower since it has fewer negatives.
    """
    student = functional.normalize(student, dim=1)
    teacher = functional.normalize(teacher, dim=1)
    values = [
        functional.cross_entropy(
            s @ t.T / temperature, torch.arange(len(s), device=s.device), reduction="none"
        )
        for s, t in zip(student.split(batch), teacher.split(batch), strict=True)
    ]
    return torch.cat(values) * (2 * temperature)


def info_nce_bound(
    teacher: Tensor, temperature: float = INFO_NCE_TEMPERATURE, batch: int = INFO_NCE_BATCH
) -> Tensor:
    """Return values (n,) that no student's `info_nce` is below, given the teacher's logits.

    With unit teacher rows t, a student row s of length at most 1, temperature T and any
    probabilities p: logsumexp_j(s.t_j / T) >= sum_j p_j s.t_j / T + H(p) (Gibbs' inequality) and
    s.d >= -|d|, so image i's value is at least 2 (T H(p) - |t_i - sum_j p_j t_j|). The best p is
    the softmax that the best s gives, and that s points along the difference: they are iterated.
    """
    values = []
    for t in functional.normalize(teacher, dim=1).split(batch):
        student = t
        for _ in range(BOUND_ROUNDS):
            chances = (student @ t.T / temperature).softmax(1)
            difference = t - chances @ t
            student = functional.normalize(difference, dim=1)
        entropy = torch.special.entr(chances).sum(1)
        values.append(2 * (temperature * entropy - difference.norm(dim=1)))
    return torch.cat(values)


def kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, nats."""
    return functional.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


def mse(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Mean squared difference of the logits."""
    return (student - teacher).square().mean(1)


def cosine(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """One minus the cosine of the angle between the logits."""
    return 1 - functional.cosine_similarity(student, teacher, dim=1)


def cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with the true labels, nats."""
    return functional.cross_entropy(student, labels, reduction="none")


def fisher(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Squared difference of the logits, weighted by the teacher's Fisher information.

    d^T F d / 2 with d the difference and F = diag(p) - p p^T the Fisher information of a softmax
    with the teacher's probabilities p: the second-order term of `kl` around the teacher (Martens
    2020, section 9.2, "New insights and perspectives on the natural gradient method").
    """
    probabilities = teacher.softmax(1)
    difference = student - teacher
    mean = (probabilities * difference).sum(1, keepdim=True)
    return (probabilities * (difference - mean).square()).sum(1) / 2


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("info_nce", info_nce, batch=INFO_NCE_BATCH, bound=info_nce_bound),
        Criterion("kl", kl, bound=zero),
        Criterion("mse", mse, bound=zero),
        Criterion("cosine", cosine, bound=zero),
        Criterion("cross_entropy", cross_entropy, uses_labels=True, bound=zero),
        Criterion("fisher", fisher, bound=zero),
    )
}


def choose_criterion(name: str, temperature: float | None = None) -> Criterion:
    """Return the criterion `name`, with `temperature` for infoNCE.

    Raises:
        InputError: for an unknown name, a temperature that is not positive, or a temperature for a
            criterion that has none.
    """
    if name not in CRITERIA:
        raise InputError(f"unknown criterion {name!r}; choose from {', '.join(CRITERIA)}")
    criterion = CRITERIA[name]
    if temperature is None:
        return criterion
    if name != "info_nce":
        raise InputError(f"criterion {name} has no temperature; leave it out or use info_nce")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature:g}; give a positive number such as 3")
    return replace(
        criterion,
        per_image=partial(info_nce, temperature=temperature),
        bound=partial(info_nce_bound, temperature=temperature),
    )
