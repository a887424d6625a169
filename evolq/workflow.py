"""The whole way in one call: quantize a model, calibrate it, search bits and scales."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evolq.data.images import LabeledImages
from evolq.data.pixels import Images
from evolq.declared import check_batch_size, check_seed, check_value
from evolq.errors import InputError
from evolq.files.saved import save
from evolq.losses.criteria import choose_criterion
from evolq.losses.objective import Objective, predict
from evolq.network.modules import check_images
from evolq.network.quantized import BATCH_SIZE, DEFAULT, QuantizedNetwork, quantize
from evolq.optimizers.evolve import Iterate, search_scales, visits
from evolq.optimizers.mixed_precision import search_bits
from evolq.optimizers.recipes import Recipe, choose_recipe
from evolq.points import Point, select
from evolq.problem import OBSERVED_IMAGES
from evolq.quantization import MAX_BITS, MIN_BITS, Quantization
from evolq.starts.calibration import calibrate

# Children of the search of bits. On the bundled networks the loss hardly falls after that.
BIT_EVALUATIONS = 100


def improve(
    objective: Objective,
    start: Point,
    recipe: Recipe,
    *,
    average_bits: float | None = None,
    names: Collection[str] | None = None,
    selection: Objective | None = None,
    seed: int = 0,
    state_file: Path | None = None,
) -> Iterator[Iterate]:
    """Search the bits of weights, if there is a budget of bits, and then quantization scales.

    Yields as `search_bits` and `search_scales` do, with evaluations and costs counted on; the
    last Iterate is the result. The state covers the search of scales; that of bits is repeated.

    Args:
        objective: on calibration images.
        start: a complete Point.
        recipe: of both searches.
        average_bits: bits of a weight value on average, or None to leave the bits alone.
        names: entries that may move in the search of scales; None for all.
        selection: on selection images; they choose among the ends of passes.
        seed: of all that is drawn.
        state_file: of the search of scales; see `search_scales`.
    """
    evaluations, cost = 0, 0.0
    if average_bits is not None:
        for iterate in search_bits(
            objective,
            start,
            average_bits,
            evaluations=BIT_EVALUATIONS,
            recipe=recipe,
            seed=seed,
        ):
            yield iterate
        evaluations, cost, start = iterate.evaluations, iterate.cost, iterate.point
    for iterate in search_scales(
        objective,
        start,
        recipe,
        seed=seed,
        names=names,
        selection=selection,
        state_file=state_file,
    ):
        yield iterate._replace(
            evaluations=evaluations + iterate.evaluations, cost=cost + iterate.cost
        )


def iterates_at_most(
    network: QuantizedNetwork,
    recipe: Recipe,
    average_bits: float | None,
    names: Collection[str] | None,
) -> int:
    """Return how many Iterates `improve` yields without selection images, for progress bars."""
    bits = 0 if average_bits is None else 1 + BIT_EVALUATIONS
    return bits + 1 + recipe.passes * len(visits(network, recipe, names))


@dataclass(frozen=True)
class SearchResult:
    """A quantized model that was searched; called with images (n, c, h, w) it returns logits.

    Attributes:
        model: the untouched full-precision model.
        network: the quantized network.
        start: the Point that calibration found.
        point: the Point that the search found.
        start_loss: of the criterion on the calibration images.
        loss: likewise, of `point`.
        evaluations: of fitness, in all.
        image_shape: (channels, height, width).
    """

    model: nn.Module
    network: QuantizedNetwork
    start: Point
    point: Point
    start_loss: float
    loss: float
    evaluations: int
    image_shape: tuple[int, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, channels, height, width)."""
        with torch.no_grad():
            return self.network(self.point, images)

    def save(self, path: str | Path) -> None:
        """Write the quantized model as safetensors; `evolq.load(path, model)` reads it."""
        save(self.network, self.point, path, self.model, torch.zeros(1, *self.image_shape))


def search(
    model: nn.Module,
    calibration_images: Images,
    quantization: Quantization = DEFAULT,
    *,
    average_bits: float | None = None,
    recipe: str = "default",
    passes: int | None = None,
    criterion: str = "info_nce",
    within: str | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> SearchResult:
    """Quantize `model`, calibrate it, and search for better scales; no labels are needed.

    Args:
        model: any module from images to logits; it is not changed.
        calibration_images: (n, channels, height, width), preprocessed as the model wants them.
        quantization: scheme, bits, and how scales start.
        average_bits: instead of `quantization.weight_bits`, let each layer have its own, at most
            this many on average.
        recipe: a name in `RECIPES`.
        passes: over all blocks, instead of the recipe's.
        criterion: a name in `CRITERIA`; fitness.
        within: a glob over names of scales; others stay.
        seed: of all that is drawn.
        batch_size: images per forward pass.

    Raises:
        InputError: for unknown names, numbers out of range, a criterion that needs labels, or a
            model that cannot be quantized.
    """
    chosen = choose_recipe(recipe, passes=passes)
    measure = choose_criterion(criterion)
    if measure.uses_labels:
        raise InputError(f"criterion {criterion} needs labels; choose another, such as info_nce")
    check_seed(seed)
    check_batch_size(batch_size)
    check_value("average_bits", average_bits, float | None, (MIN_BITS, MAX_BITS))
    check_value("within", within, str | None)
    check_images(calibration_images)
    if average_bits is not None:
        quantization = replace(quantization, weight_bits=int(average_bits))
    network = quantize(model, calibration_images[:2], quantization)
    start = calibrate(network, calibration_images[:OBSERVED_IMAGES], batch_size, seed=seed)
    count = len(calibration_images)
    data = LabeledImages(
        calibration_images, torch.zeros(count, dtype=torch.int64), tuple(map(str, range(count)))
    )
    teacher = copy.deepcopy(model).eval()
    logits = predict(teacher, calibration_images, batch_size)
    objective = Objective.of(network, data, measure, logits, batch_size)
    start_loss = float(objective(start))
    names = None if within is None else select(start, {"scale"}, within)
    for iterate in improve(
        objective, start, chosen, average_bits=average_bits, names=names, seed=seed
    ):
        last = iterate
    shape = tuple(calibration_images.shape[1:])
    return SearchResult(
        teacher, network, start, last.point, start_loss, last.loss, last.evaluations, shape
    )
