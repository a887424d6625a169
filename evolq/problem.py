"""From options to a problem: a calibrated network, the losses around it, and where they come from.

Command lines start at `prepare`, which loads model and images by name; a module and images of one's
own start at `problem_of`. The rest of the way is one: quantize, calibrate, objectives.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evolq.data.images import ROLES, Split, bundled_split, folder_split
from evolq.data.models import (
    BUNDLED,
    check_name,
    class_count,
    load_model,
    preprocessing,
    weights_hash,
)
from evolq.declared import check_value
from evolq.errors import InputError
from evolq.files.saved import load_point, read
from evolq.losses.criteria import choose_criterion
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.modules import plain_copy
from evolq.network.placement import SCHEMES
from evolq.network.quantized import (
    BATCH_SIZE,
    DEFAULT,
    EXECUTIONS,
    QuantizedNetwork,
    fastest,
    quantize,
)
from evolq.points import Point, fingerprint
from evolq.quantization import Quantization
from evolq.settings import CriterionName, ExecutionName, Settings, configuration
from evolq.starts.calibration import calibrate, calibration_cost
from evolq.starts.rounding import ROUNDINGS
from evolq.tensor.observers import OBSERVERS

# Calibration images that observers look at: ranges settle long before searches do, and observed
# values are large. Nagel et al. 2021 ("A White Paper on Neural Network Quantization", section 3.1)
# and FQ-ViT calibrate on about 100 to 1,000 images.
OBSERVED_IMAGES = 100


@dataclass(frozen=True)
class Problem:
    """A calibrated network and the losses around it.

    Attributes:
        settings: what it was prepared from, with every rule resolved.
        model: the untouched full-precision model, the teacher.
        split: calibration, selection and test images, disjoint.
        network: the quantized network.
        start: the Point that calibration found, or that the file `settings.start` holds.
        start_cost: of rounding the weights, in forward passes of the calibration images; 0 for a
            start from a file.
        objective: the criterion on the calibration images.
        selection: the criterion on the selection images, None if there are none.
        test: cross entropy and top-1 on the test images.
        provenance: configuration, versions and hashes, ready for JSON; and options, if a command
            line with these would prepare it again.
    """

    settings: Settings
    model: nn.Module
    split: Split
    network: QuantizedNetwork
    start: Point
    start_cost: float
    objective: Objective
    selection: Objective | None
    test: TestEvaluation
    provenance: dict[str, Any]


def check(settings: Settings) -> None:
    """Check what can be checked without reading a file.

    Raises:
        InputError: for unknown names, or values that do not go together.
    """
    _check_choices(settings)
    check_name(settings.model)
    if (settings.calibration_dir is None) != (settings.test_dir is None):
        raise InputError(
            "`calibration_dir` and `test_dir` go together; for one folder give `images`"
        )
    if settings.images is not None and settings.calibration_dir is not None:
        raise InputError("give either `images`, or `calibration_dir` and `test_dir`, not both")
    if settings.model not in BUNDLED and settings.images is None is settings.calibration_dir:
        raise InputError(
            f"`model` {settings.model} needs images: give a folder as `images`, or two as "
            "`calibration_dir` and `test_dir` (only the bundled networks come with images)"
        )


def _check_choices(settings: Settings) -> None:
    """Check what does not depend on where model and images come from."""
    quantization = settings.quantization
    for name, value, known in (
        ("scheme", quantization.scheme, SCHEMES),
        ("execution", settings.execution or "simulated", EXECUTIONS),
        ("weight_observer", quantization.weight_observer or "mse", OBSERVERS),
        ("activation_observer", quantization.activation_observer or "mse", OBSERVERS),
        ("rounding", quantization.rounding, ROUNDINGS),
    ):
        if value not in known:
            raise InputError(f"unknown `{name}` {value!r}; choose from {', '.join(known)}")
    criterion = choose_criterion(settings.criterion_name, settings.temperature)
    for name in ("calibration_images", "selection_images"):
        try:
            criterion.check(getattr(settings, name))
        except InputError as error:
            raise InputError(f"`{name}`: {error}") from error


def with_start(settings: Settings) -> Settings:
    """Return settings with the quantization that `start` brings, if there is one.

    Raises:
        InputError: if the file cannot be used, or is of another model.
    """
    check_value("settings", settings, Settings)
    if settings.start is None:
        return settings
    header, _ = read(settings.start)
    if header.model not in (settings.model, None):
        raise InputError(
            f"`start` {settings.start} was made from {header.model}, and `model` is "
            f"{settings.model}; give the model it was made from"
        )
    return replace(settings, quantization=header.quantization)


def load_split(
    settings: Settings,
    model: nn.Module,
    progress: Callable[[int, int], None] | None = None,
    explicit: Collection[str] = ROLES,
) -> Split:
    """Return the images that `settings` name, moved to the device.

    Args:
        settings: see `Settings`.
        model: the model that they are for.
        progress: called with the number of images read so far and the number to read.
        explicit: see `prepare`.
    """
    folder = settings.images or settings.calibration_dir
    if folder is None:
        split = bundled_split(
            settings.calibration_images,
            settings.selection_images,
            settings.test_images,
            settings.seed,
        )
    else:
        split = folder_split(
            folder,
            settings.test_dir,
            preprocessing=preprocessing(model),
            class_count=class_count(model),
            calibration=settings.calibration_images,
            selection=settings.selection_images,
            test=settings.test_images,
            seed=settings.seed,
            explicit=explicit,
            skip_unreadable=settings.skip_unreadable,
            progress=progress,
        )
    return Split(*(data.to(settings.device) for data in vars(split).values()))


def prepare(
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
    explicit: Collection[str] = ROLES,
    check_network: Callable[[QuantizedNetwork, nn.Module], None] | None = None,
) -> Problem:
    """Load model and images, quantize and calibrate.

    Args:
        settings: see `Settings`.
        progress: called with how much is done, how much there is to do, and what it is: images that
            are read, parts of the network whose weights are rounded.
        explicit: the sets ("calibration", "selection", "test") whose number of images somebody has
            chosen. The other numbers shrink to what a folder has, with a warning; the settings of
            the Problem have the numbers that were taken.
        check_network: called with the network and the full-precision model before calibration;
            what raises an error there has cost little.

    Raises:
        InputError: for bad settings, models, weights or images; the cheapest checks come first.
    """
    settings = with_start(settings)
    check(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = load_model(settings.model, settings.weights, settings.device)
    split = load_split(settings, model, _part(progress, "Reading images"), explicit)
    problem = _problem(model, split, _counted(settings, split), progress, check_network)
    options = {"options": problem.provenance["configuration"]}
    return replace(problem, provenance=problem.provenance | options)


def problem_of(
    model: nn.Module,
    split: Split,
    quantization: Quantization = DEFAULT,
    *,
    criterion: CriterionName | None = None,
    execution: ExecutionName | None = None,
    start: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Problem:
    """Quantize and calibrate one's own module on one's own images.

    The Problem is the one that `prepare` makes of a network that it knows by name.

    Args:
        model: any module from images to logits (n, classes); it is not changed.
        split: images as the model wants them, such as `tensor_split` gives.
        quantization: scheme, bits, and how scales start.
        criterion: a name in `CRITERIA`: calibration loss; by default info_nce, with scheme none
            cross_entropy.
        execution: simulated, compiled or integer; None for the fastest, see `Settings`.
        start: a file that `SearchResult.save` wrote; it brings its own quantization.
        batch_size: images per forward pass.
        seed: of all that is drawn.

    Raises:
        InputError: for unknown names, a model that cannot be quantized, images or labels that do
            not fit it, or a file of another model.
    """
    check_value("split", split, Split)
    own = plain_copy(model)
    settings = Settings(
        type(own).__name__,
        start=None if start is None else Path(start),
        quantization=quantization,
        execution=execution,
        criterion=criterion,
        batch_size=batch_size,
        seed=seed,
        device=str(split.calibration.labels.device),
    )
    settings = with_start(_counted(settings, split))
    _check_choices(settings)
    return _problem(own, split, settings)


def _counted(settings: Settings, split: Split) -> Settings:
    """Return settings with the numbers of images that a split has."""
    return replace(
        settings,
        calibration_images=len(split.calibration),
        selection_images=len(split.selection),
        test_images=len(split.test),
    )


def _problem(
    model: nn.Module,
    split: Split,
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
    check_network: Callable[[QuantizedNetwork, nn.Module], None] | None = None,
) -> Problem:
    """Quantize and calibrate a model in evaluation mode; see `prepare`."""
    network = quantize(model, split.calibration.images[:2], settings.quantization)
    if check_network is not None:
        check_network(network, model)
    execution = settings.execution or fastest(network)
    network = network.executed(execution)
    start: Point
    start_cost = 0.0
    if settings.start is None:
        observed = split.calibration.images[:OBSERVED_IMAGES]
        start = calibrate(
            network,
            observed,
            settings.batch_size,
            seed=settings.seed,
            on_rounded=_part(progress, "Rounding weights"),
        )
        share = len(observed) / len(split.calibration)
        start_cost = share * calibration_cost(network, observed, settings.batch_size)
    else:
        start = load_point(settings.start, network, model)
    network.check(start)

    settings = replace(
        settings,
        quantization=network.quantization,
        execution=execution,
        criterion=settings.criterion_name,
        threads=torch.get_num_threads(),
    )
    criterion = choose_criterion(settings.criterion_name, settings.temperature)
    objectives = [
        Objective.of(
            network,
            data,
            criterion,
            predict(model, data.images, settings.batch_size),
            settings.batch_size,
        )
        if len(data)
        else None
        for data in (split.calibration, split.selection)
    ]
    assert objectives[0] is not None  # a split has calibration images
    return Problem(
        settings=settings,
        model=model,
        split=split,
        network=network,
        start=start,
        start_cost=start_cost,
        objective=objectives[0],
        selection=objectives[1],
        test=TestEvaluation.of(network, split.test, settings.batch_size),
        provenance=provenance(settings, model, split, start),
    )


def _part(
    progress: Callable[[int, int, str], None] | None, label: str
) -> Callable[[int, int], None] | None:
    """Return what says how far one part of the work is."""
    if progress is None:
        return None
    return lambda done, total: progress(done, total, label)


def provenance(settings: Settings, model: nn.Module, split: Split, start: Point) -> dict[str, Any]:
    """Return what the numbers depend on: configuration, versions, hashes. No time, no host."""
    packages = ("evolq", "torch", "torchvision", "timm", "numpy")
    return {
        "configuration": configuration(settings),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "hashes": {
            "weights": weights_hash(model),
            "start": fingerprint(start),
            "calibration_images": split.calibration.fingerprint,
            "selection_images": split.selection.fingerprint,
            "test_images": split.test.fingerprint,
        },
    }
