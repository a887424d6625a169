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

from evolq.declared import check_value
from evolq.errors import InputError

# Frumkin et al. 2023 (Evol-Q), section 4: temperature and batch of the published code.
INFO_NCE_TEMPERATURE = 3.0
INFO_NCE_BATCH = 100
# Beyond these, cosines over the temperature differ by less than float32 keeps, or by so much that
# only the largest counts.
TEMPERATURES = (1e-4, 1e4)


@dataclass(frozen=True)
class Criterion:
    """A criterion and what it may see.

    Attributes:
        name: its name in `CRITERIA`.
        per_image: (logits, teacher logits, labels) to values (n,) whose mean is the loss.
        uses_labels: whether it reads the labels; the others are label-free.
        batch: images whose values depend on each other (resample whole batches); None if each
            image stands for itself.
        words: what readers of figures call it, with its unit in brackets; the name by default.
    """

    name: str
    per_image: Callable[[Tensor, Tensor, Tensor], Tensor]
    uses_labels: bool = False
    batch: int | None = None
    words: str = ""

    def check(self, images: int) -> None:
        """Check a number of images.

        Raises:
            InputError: for a single image, or one that remains behind the last whole batch, if it
                is to be contrasted with others: it would score 0 whatever the network does.
        """
        if self.batch is not None and images % self.batch == 1:
            raise InputError(
                f"criterion {self.name} contrasts the images of a batch of {self.batch} with each "
                f"other, and of {images} images the last one is alone; give one more or less, or "
                "another criterion such as kl"
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
    are smaller since it has fewer negatives.
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
        Criterion(
            "info_nce",
            info_nce,
            batch=INFO_NCE_BATCH,
            # cross entropy of matching each image to its teacher's prediction, times 2 temperature
            words="infoNCE against full precision (nats × 2τ)",
        ),
        Criterion("kl", kl, words="KL divergence (nats)"),
        Criterion("mse", mse, words="mean squared error of the logits"),
        Criterion("cosine", cosine, words="cosine distance"),
        Criterion("cross_entropy", cross_entropy, uses_labels=True, words="cross entropy (nats)"),
        Criterion("fisher", fisher, words="Fisher-weighted error (nats)"),
    )
}


def choose_criterion(name: str, temperature: float | None = None) -> Criterion:
    """Return the criterion `name`, with `temperature` for infoNCE.

    Raises:
        InputError: for an unknown name, a temperature outside `TEMPERATURES`, or one for a
            criterion that has none.
    """
    check_value("criterion", name, str)
    if name not in CRITERIA:
        raise InputError(f"unknown criterion {name!r}; choose from {', '.join(CRITERIA)}")
    criterion = CRITERIA[name]
    if temperature is None:
        return criterion
    if name != "info_nce":
        raise InputError(f"criterion {name} has no temperature; leave it out or use info_nce")
    check_value("temperature", temperature, float, TEMPERATURES)
    return replace(criterion, per_image=partial(info_nce, temperature=temperature))


def words_of(name: str) -> str:
    """Return what readers call the criterion `name`, which need not be known (of an old file)."""
    return (CRITERIA[name].words if name in CRITERIA else "") or name
