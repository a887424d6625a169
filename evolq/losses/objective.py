"""Objectives: where a network meets images and a criterion.

An `Objective` is what optimizers see: a loss on calibration (or selection) images. A
`TestEvaluation` is another type on purpose: it measures cross entropy and top-1 on test images, and
no optimizer accepts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evolq.data.images import LabeledImages
from evolq.data.pixels import Images, batches
from evolq.declared import check_batch_size, check_value
from evolq.errors import InputError
from evolq.losses.criteria import Criterion
from evolq.network.modules import check_images, check_model, logits_of
from evolq.network.quantized import BATCH_SIZE, PartialEvaluation, QuantizedNetwork
from evolq.points import Point


def predict(model: nn.Module, images: Images, batch_size: int = BATCH_SIZE) -> Tensor:
    """Return the logits (n, classes) of a plain module, such as the full-precision teacher."""
    check_model(model)
    check_images(images)
    check_batch_size(batch_size)
    return torch.cat([logits_of(model, batch) for batch in batches(images, batch_size)])


class Spent:
    """Forward-pass equivalents of an image set, shared by an objective and its parts."""

    forward_passes: float = 0.0


@dataclass(frozen=True)
class Forward:
    """A network on fixed images, as a function of some entries of a Point; counts what it costs."""

    network: QuantizedNetwork
    images: Images
    batch_size: int
    function: PartialEvaluation
    spent: Spent

    @classmethod
    def whole(
        cls, network: QuantizedNetwork, images: Images, batch_size: int = BATCH_SIZE
    ) -> Forward:
        """Return the function of all entries."""
        function = network.vary(network.names, {}, images, batch_size)
        return cls(network, images, batch_size, function, Spent())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the function of all entries; its cost is counted anew.

        Raises:
            TypeError: for a function of some entries alone.
        """
        if self.function.entries.keys() != set(self.network.names):
            raise TypeError("a part of an evaluation is made where it runs: pickle the whole")
        return Forward.whole, (self.network, self.images, self.batch_size)

    def differentiable(self) -> Forward:
        """Return this, or what does the same with gradients, if it runs on integers: simulated.

        Preparing that costs the part that it leaves out.
        """
        if self.network.execution != "integer":
            return self
        simulated = replace(self, network=self.network.executed("simulated"))
        return simulated.vary(self.function.entries, self.function.at)

    def vary(self, names: Collection[str], at: Point) -> Forward:
        """Return the function of `names` alone; preparing it costs the part that it leaves out."""
        return self._charged(self.network.vary(names, at, self.images, self.batch_size))

    def vary_in_turn(
        self, turns: Sequence[Collection[str]], at: Point
    ) -> list[Callable[[Point], Forward]]:
        """Return functions that do what `vary` does, see `QuantizedNetwork.vary_in_turn`.

        Each is charged what `vary` is, whatever memory allowed to compute at once.
        """
        functions = self.network.vary_in_turn(turns, at, self.images, self.batch_size)

        def turn(made: Callable[[Point], PartialEvaluation], point: Point) -> Forward:
            return self._charged(made(point))

        return [partial(turn, made) for made in functions]

    def _charged(self, function: PartialEvaluation) -> Forward:
        """Return this with a function of some entries, charged for the part that it leaves out."""
        self.spent.forward_passes += 1 - function.share
        return replace(self, function=function)

    def logits(self, point: Point) -> Tensor:
        """Return the logits (n, classes) without gradients."""
        self.spent.forward_passes += self.function.share
        with torch.no_grad():
            return self.function(point)


@dataclass(frozen=True)
class Objective:
    """The loss of a Point on images that an optimizer may see.

    Attributes:
        forward: the network on those images.
        labels: int64 (n,), read only by criteria that say so.
        criterion: gives a value per image.
        teacher: logits (n, classes) of the untouched full-precision model on the same images.
    """

    forward: Forward
    labels: Tensor
    criterion: Criterion
    teacher: Tensor

    @classmethod
    def of(
        cls,
        network: QuantizedNetwork,
        data: LabeledImages,
        criterion: Criterion,
        teacher: Tensor,
        batch_size: int = BATCH_SIZE,
    ) -> Objective:
        """Return the objective of all entries on calibration or selection images.

        Raises:
            InputError: if `teacher` is not one finite row of logits per image, or there is a single
                image for a criterion that contrasts images.
        """
        _check_parts(network, data)
        check_value("criterion", criterion, Criterion)
        criterion.check(len(data))
        check_value("teacher", teacher, Tensor)
        if teacher.dim() != 2 or len(teacher) != len(data.images):
            raise InputError(
                f"teacher logits have shape {tuple(teacher.shape)}; wanted one row for each of the "
                f"{len(data.images)} images"
            )
        if not bool(torch.isfinite(teacher).all()):
            raise InputError("the full-precision model's logits are not finite; check its weights")
        forward = Forward.whole(network, data.images, batch_size)
        _check_classes(network, data, teacher.shape[1])
        return cls(forward, data.labels, criterion, teacher)

    @property
    def cost(self) -> float:
        """Forward-pass equivalents of the whole image set spent so far, parts included.

        An evaluation counts its share of the network's multiply-accumulates.
        """
        return self.forward.spent.forward_passes

    def with_own_cost(self) -> Objective:
        """Return the same objective with an account of its own, from 0.

        Differences of a shared account are rounded by what was spent before.
        """
        return replace(self, forward=replace(self.forward, spent=Spent()))

    def __call__(self, point: Point) -> Tensor:
        """Return the loss, a 0-dim tensor."""
        return self.per_image(point).mean()

    def per_image(self, point: Point) -> Tensor:
        """Return each image's value (n,); their mean is the loss."""
        return self.criterion.per_image(self.forward.logits(point), self.teacher, self.labels)

    def vary(self, names: Collection[str], at: Point) -> Objective:
        """Return the same objective as a function of the entries `names` alone."""
        return replace(self, forward=self.forward.vary(names, at))

    def vary_in_turn(
        self, turns: Sequence[Collection[str]], at: Point
    ) -> list[Callable[[Point], Objective]]:
        """Return a function for each turn, which does what `vary` does for its entries.

        It may be called when only entries of the turns in front of it have changed since `at`.
        """

        def turn(made: Callable[[Point], Forward], point: Point) -> Objective:
            return replace(self, forward=made(point))

        return [partial(turn, made) for made in self.forward.vary_in_turn(turns, at)]

    def differentiable(self) -> Objective:
        """Return this, or what does the same with gradients, if it runs on integers: simulated."""
        return replace(self, forward=self.forward.differentiable())

    def gradient(self, point: Point) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its straight-through gradient with respect to the varying entries.

        A forward pass and its backward pass, for one group of compute batches after the other: a
        criterion may couple images, and a group holds all that are coupled with each other. Cost:
        three forward passes of the varying part (the backward pass counts two).

        A network that runs on integers is simulated for it, anew each time: take `differentiable`
        first for many gradients. The loss is the simulated one, too.

        Raises:
            InputError: if the Point lacks an entry.
        """
        if self.forward.network.execution == "integer":
            return self.differentiable().gradient(point)
        function = self.forward.function
        for name in function.entries:
            if name not in point:
                raise InputError(f"the Point has no entry {name!r}, which was to vary")
        entries = {
            name: point[name].detach().requires_grad_()
            for name in function.entries
            if point[name].is_floating_point()
        }
        total = {name: torch.zeros_like(value) for name, value in entries.items()}
        values = []
        size = self.forward.batch_size
        group = math.lcm(self.criterion.batch or size, size)
        count = len(self.labels)
        for first in range(0, count, group):
            # prepared again for each group, since its backward pass frees the weights' graph
            prepared = function.prepare({**point, **entries})
            inside = range(first // size, math.ceil(min(first + group, count) / size))
            logits = torch.cat([function.batch(prepared, index) for index in inside])
            images = slice(first, first + group)
            made = self.criterion.per_image(logits, self.teacher[images], self.labels[images])
            values.append(made.detach())
            if not made.requires_grad:
                continue  # the criterion does not depend on the logits
            gradients = torch.autograd.grad(
                made.sum() / count, list(entries.values()), allow_unused=True
            )
            for name, gradient in zip(entries, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
        self.forward.spent.forward_passes += 3 * function.share
        return torch.cat(values).mean(), total


@dataclass(frozen=True)
class TestEvaluation:
    """Cross entropy and top-1 of a Point on test images. Optimizers refuse it."""

    forward: Forward
    labels: Tensor

    __test__ = False  # for pytest: not a test class

    @classmethod
    def of(
        cls, network: QuantizedNetwork, data: LabeledImages, batch_size: int = BATCH_SIZE
    ) -> TestEvaluation:
        """Return the evaluation of all entries on test images.

        Raises:
            InputError: for labels that are none of the network's classes.
        """
        _check_parts(network, data)
        _check_classes(network, data)
        return cls(Forward.whole(network, data.images, batch_size), data.labels)

    def per_image(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return each image's cross entropy in nats (n,) and whether its top-1 is right (n,)."""
        return score(self.forward.logits(point), self.labels)

    def vary(self, names: Collection[str], at: Point) -> TestEvaluation:
        """Return the same evaluation as a function of the entries `names` alone."""
        return replace(self, forward=self.forward.vary(names, at))


def _check_parts(network: QuantizedNetwork, data: LabeledImages) -> None:
    check_value("network", network, QuantizedNetwork)
    check_value("data", data, LabeledImages)


def _check_classes(
    network: QuantizedNetwork, data: LabeledImages, teachers: int | None = None
) -> None:
    """Check labels, and the number of the teacher's logits, against the network's classes.

    Raises:
        InputError: if they are others.
    """
    classes = network.classes or teachers
    if teachers not in (None, classes):
        raise InputError(f"`teacher` has {teachers} logits per image, and the network {classes}")
    if (
        classes
        and len(data)
        and not 0 <= int(data.labels.min()) <= int(data.labels.max()) < classes
    ):
        raise InputError(
            f"`labels` go from {int(data.labels.min())} to {int(data.labels.max())}, and the "
            f"network has {classes} classes: 0 to {classes - 1}"
        )


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's cross entropy in nats (n,) and whether its top-1 is right (n,).

    An image with a logit that is NaN is not right, whatever its label is.
    """
    correct = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return functional.cross_entropy(logits, labels, reduction="none"), correct
