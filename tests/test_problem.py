"""A Problem of one's own module and images is the one that names lead to."""

from pathlib import Path

import pytest
import torch
from tiny_models import TinyResidual
from torch import nn

import evolq
from evolq import Quantization, Settings, bundled_split, load_model, prepare, problem_of
from evolq.data.images import Split, tensor_split
from evolq.errors import InputError
from landscape import PlaneScan
from landscape.words import configuration_of

SEED, COUNTS = 3, {"calibration": 20, "selection": 10, "test": 30}
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(60, 1, 8, 8, generator=GENERATOR)
LABELS = torch.arange(60) % 3


def own_split() -> Split:
    """Return random images for a tiny module."""
    return tensor_split(IMAGES, LABELS, **COUNTS, seed=SEED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantization", "criterion"),
    [
        ("fashion_resnet", Quantization(weight_bits=2), None),
        ("fashion_vit", Quantization("full", 3, 4, rounding="gptq"), "kl"),
    ],
)
def test_a_module_makes_the_same_problem_as_its_name(
    name: str, quantization: Quantization, criterion: str | None
) -> None:
    counts = {f"{role}_images": count for role, count in COUNTS.items()}
    settings = Settings(
        name, quantization=quantization, criterion=criterion, batch_size=16, seed=SEED, **counts
    )
    named = prepare(settings)
    own = problem_of(
        load_model(name),
        bundled_split(**COUNTS, seed=SEED),
        quantization,
        criterion=criterion,
        batch_size=16,
        seed=SEED,
    )
    assert list(named.start) == list(own.start)
    assert all(torch.equal(own.start[entry], value) for entry, value in named.start.items())
    for losses in ("objective", "selection"):
        one, other = getattr(named, losses), getattr(own, losses)
        assert torch.equal(one.per_image(named.start), other.per_image(own.start))
        assert one.criterion == other.criterion
    for one, other in zip(*(each.test.per_image(each.start) for each in (named, own)), strict=True):
        assert torch.equal(one, other)
    assert own.start_cost == named.start_cost
    assert own.provenance["hashes"] == named.provenance["hashes"]
    assert own.provenance["configuration"] == named.provenance["configuration"] | {
        "model": type(own.model).__name__
    }
    assert named.provenance["options"] == named.provenance["configuration"]


def test_a_module_is_scanned_and_stays_as_it_is() -> None:
    model = TinyResidual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    problem = problem_of(nn.DataParallel(model), own_split(), Quantization(weight_bits=4))
    dataset = PlaneScan(points=2, radius=0.1, repeats=0, descents=0, frozen_codes=False).sample(
        problem
    )
    assert dataset.sizes["image"] == COUNTS["test"]
    assert dataset.title.startswith("TinyResidual, ")
    assert configuration_of(dataset)["seed"] == 0
    assert '"options"' not in dataset.attrs["provenance"], "no command can repeat it"
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_module_starts_where_a_search_ended(tmp_path: Path) -> None:
    model, split = TinyResidual().eval(), own_split()
    result = evolq.search(model, split.calibration.images, Quantization(weight_bits=3), passes=1)
    result.save(tmp_path / "mine.safetensors")
    problem = problem_of(model, split, start=tmp_path / "mine.safetensors")
    assert problem.settings.quantization.weight_bits == 3
    with torch.no_grad():
        expected = result(split.test.images)
    assert torch.equal(problem.network(problem.start, split.test.images), expected)


def test_images_in_memory_are_split_by_class() -> None:
    split = own_split()
    for role, data in vars(split).items():
        counts = data.labels.bincount(minlength=3)
        assert len(data) == COUNTS[role]
        assert counts.max() - counts.min() <= 2
        for image, label, name in zip(data.images, data.labels, data.names, strict=True):
            assert torch.equal(image, IMAGES[int(name)])
            assert label == LABELS[int(name)]
    other = tensor_split(IMAGES, LABELS, 5, 0, 30, seed=SEED)
    assert other.test.names == split.test.names, "the test set stays, whatever the others are"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IMAGES, LABELS), r"60 usable images, but 100 calibration"),
        ((IMAGES, LABELS[:50], 10, 10, 10), "do not go together"),
        ((IMAGES.double(), LABELS, 10, 10, 10), "float64"),
        ((IMAGES, LABELS, -1, 10, 10), "-1 calibration images"),
        ((IMAGES.numpy(), LABELS, 10, 10, 10), "`images` is a"),
    ],
)
def test_images_that_do_not_fit_are_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tensor_split(*arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": Quantization("int4")}, "unknown `scheme`"),
        ({"criterion": "l1"}, "criterion"),
        ({"split": IMAGES}, "`split` is a Tensor"),
        ({"model": nn.Flatten}, "`model`"),
        ({"split": tensor_split(IMAGES, LABELS + 1, **COUNTS)}, "3 classes"),
        ({"start": "no.safetensors"}, "no.safetensors"),
    ],
)
def test_bad_input_is_refused(changes: dict, words: str) -> None:
    given = {"model": TinyResidual(), "split": own_split(), "quantization": Quantization()}
    with pytest.raises(InputError, match=words):
        problem_of(**given | changes)
