"""Bad input of every kind: one clear line or one InputError, before any work, and nothing is left.

The cases stand in tests/bad_input: command lines and calls, each with words that the error holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from synthetic_scans import plane as scanned
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, nn

import evolq
import landscape
from evolq import problem
from evolq.__main__ import COMMAND as EVOLQ
from evolq.command_line import Command
from evolq.data.images import bundled_split
from evolq.data.models import load_model
from evolq.declared import check_fields
from evolq.errors import InputError
from evolq.files.checksum import checksum
from evolq.files.saved import load, read, save
from evolq.network.quantized import quantize
from evolq.starts.calibration import calibrate
from landscape import store
from landscape.compare import COMMAND as COMPARE
from landscape.scan import COMMAND as SCAN

HERE = Path(__file__).parent / "bad_input"
COMMANDS = {"evolq": EVOLQ, "landscape scan": SCAN, "landscape compare": COMPARE}
ODD = {"{digits}": "9" * 5000, "{byte}": "\udcff", "{bell}": "\a", "{long}": "x" * 5000}


def cases(text: str) -> list[tuple[str, str]]:
    """Return (input, words) of each line that is no heading."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" =>")[0], line.partition(" =>")[2].strip()) for line in lines]


def command_lines() -> list[Any]:
    """Return (command, line, words); what every command has is tried on one after the other."""
    parts = (HERE / "lines.txt").read_text().split("# ")
    by_title = {part.partition("\n")[0]: cases(part.partition("\n")[2]) for part in parts[1:]}
    own = [(name, *case) for name in COMMANDS for case in by_title[name]]
    shared = [
        (list(COMMANDS)[number % 3], *case) for number, case in enumerate(by_title["every command"])
    ]
    return [
        # a tenth of a second each: the quick ones are one in twenty
        pytest.param(*case, marks=[pytest.mark.slow] if number % 20 else [], id=" ".join(case[:2]))
        for number, case in enumerate(own + shared)
    ]


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files that cannot be used, each for another reason."""
    folder = tmp_path_factory.mktemp("files")
    x = bundled_split(20, 0, 1).calibration.images
    made = {"model": ("fashion_vit", "linear"), "none": ("fashion_vit", "none")}
    made |= {"full": ("fashion_vit", "full"), "other_model": ("fashion_resnet", "linear")}
    for name, (of, scheme) in made.items():
        model = load_model(of)
        network = quantize(model, x, plain(scheme, 4))
        path = folder / f"{name}.safetensors"
        save(network, calibrate(network, x), path, model, x, of)
    flipped = bytearray((folder / "model.safetensors").read_bytes())
    flipped[-1000] ^= 4
    (folder / "flipped.safetensors").write_bytes(flipped)
    weights = load_model("fashion_vit").state_dict()
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "fp8": lambda value: value.to(torch.float8_e4m3fn),
        "complex": lambda value: value.to(torch.complex64),
        "nan": lambda value: value * float("nan"),
    }
    for name, change in changes.items():
        content = {key: change(value) for key, value in weights.items()}
        save_file(content, folder / f"{name}.safetensors")
    save_file(load_model("fashion_resnet").state_dict(), folder / "other.safetensors")
    torch.save(print, folder / "code.pt")
    np.save(folder / "array.npy", np.zeros(3))

    os.mkfifo(folder / "pipe.pt")
    (folder / "loop.pt").symlink_to("loop.pt")
    (folder / "dangling").symlink_to("nothing/there")
    (folder / "no_images").mkdir()
    texts = {
        **{"empty.pt": "", "text.pt": "hello", "scan.nc": "CDF\x01rubbish", "empty.yaml": ""},
        **{"list.yaml": "- 5", "unknown.yaml": "bits: 5", "nested.yaml": "weight_bits: {a: 5}"},
        "deep.yaml": "a: " + "[" * 1500,
        "digits.yaml": f"weight_bits: {'9' * 5000}",
        "tag.yaml": "weight_bits: !!python/object/apply:os.system ['true']",
        "a.yaml": "weight_bits: 9",
        "laughs.yaml": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "damaged.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / "latin.yaml").write_bytes("model: café".encode("latin1"))

    write_image(folder / "one/0/a.png", 0)
    for label in range(10):
        write_image(folder / f"twice/{label}/a.png", max(label, 1))  # 0 and 1 are the same
        (folder / f"damaged/{label}").mkdir(parents=True)
        (folder / f"damaged/{label}/a.png").write_bytes(b"rubbish")
    for name, table in {
        "label_too_large": "file,label\na.png,10",
        "no_column": "file\na.png",
    }.items():
        write_image(folder / name / "a.png", 1)
        (folder / name / "labels.csv").write_text(table)
    return folder


def refused(result: tuple[int, str, str], words: str) -> None:
    """Check that a command line ended with code 2 and one line that holds these words."""
    code, out, err = result
    notes = ("warning:", "Criterion")
    lines = [line for line in err.splitlines() if not line.startswith(notes)]
    assert (code, out, len(lines)) == (2, "", 1), (out, err)
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert len(lines[0]) < 900


@pytest.mark.parametrize(("name", "line", "words"), command_lines())
def test_a_bad_command_line_is_one_line(
    name: str,
    line: str,
    words: str,
    files: Path,
    command_line_of: Callable[[Command], Callable[..., tuple[int, str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("work has begun")

    monkeypatch.setattr(problem, "calibrate", work)
    for short, text in {"{files}": str(files), **ODD}.items():
        line, words = line.replace(short, text), words.replace(short, text)
    refused(command_line_of(COMMANDS[name])(*shlex.split(line)), words)
    assert not list(Path.cwd().iterdir()), "something is left behind"


# Calls --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, files: Path) -> dict[str, Any]:
    """Return what the calls in calls.txt name."""
    model, x = randomized(TinyResidual()), images()
    net = quantize(model, x, plain("linear", 4))
    start = calibrate(net, x)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    data = evolq.LabeledImages(x, labels, tuple("abcdef"))
    teacher = evolq.predict(model, x)
    scales = list(evolq.select(start, {"scale"}))
    nanmodel = randomized(TinyResidual())
    nanmodel.conv1.weight.data[0] = float("nan")

    def direction(of: list[str] = scales[:3]) -> dict[str, Tensor]:
        return {name: torch.ones_like(start[name]) for name in of}

    tmp = tmp_path_factory.mktemp("calls")
    save(net, start, tmp / "m.safetensors", model, x)
    return {
        **{name: getattr(evolq, name) for name in evolq.__all__},
        **{"evolq": evolq, "landscape": landscape, "dataclasses": dataclasses, "files": files},
        **{"np": np, "torch": torch, "xr": xr, "nn": nn, "TinyResidual": TinyResidual},
        **{"TinyTransformer": TinyTransformer, "images": images, "plain": plain},
        **{"randomized": randomized, "model": model, "net": net, "start": start, "x": x},
        **{"data": data, "labels": labels, "teacher": teacher, "scales": scales, "tmp": tmp},
        **{"nanmodel": nanmodel, "direction": direction, "plane": scanned()},
        "objective": evolq.Objective.of(net, data, evolq.choose_criterion("kl"), teacher),
        "test": evolq.TestEvaluation.of(net, data),
        "line": landscape.Line(start, direction()),
        "gen": lambda: torch.Generator().manual_seed(0),
        "p": lambda **changes: {**start, **changes},
        "S": scales[0],
        "Z": next(name for name in start if name.endswith("zero_point")),
        "B": next(name for name in start if name.endswith("bits")),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("call", "words"), cases((HERE / "calls.txt").read_text()))
def test_a_bad_call_is_an_input_error(call: str, words: str, names: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        eval(call, names)
    assert words in str(caught.value)


# Files --------------------------------------------------------------------------------------------

WEIGHT, SCALE = "qkv.weight", "qkv.weight.scale"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = randomized(TinyTransformer())
    network = quantize(model, images(), plain("full", 4, 8, moment_matching=True))
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save(network, calibrate(network, images()), path, model, images())
    return path


def edited(saved: Path, path: Path, tensors: dict[str, Any], header: dict[str, Any]) -> None:
    """Write a model file with changes (None takes away) and a checksum that fits them."""
    with safe_open(saved, "pt") as file:
        content = json.loads(file.metadata()["evolq"])
    kept = load_file(saved)
    for name, change in tensors.items():
        value = change(kept.pop(name, None))
        kept |= {} if value is None else {name: value}
    del content["checksum"]
    content |= header
    content = {name: value for name, value in content.items() if value != "taken away"}
    text = json.dumps(content | {"checksum": checksum(content, kept)})
    save_file(kept, path, {"evolq": text})


TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor | None]]] = {
    "scale NaN": (SCALE, lambda value: value * float("nan")),
    "scale 0": (SCALE, lambda value: value * 0),
    "scale negative": (SCALE, lambda value: -value),
    "scale infinite": (SCALE, lambda value: value / 0),
    "scale of another shape": (SCALE, lambda value: value[:5]),
    "scale of two axes": (SCALE, lambda value: value[:, None]),
    "scale gone": (SCALE, lambda value: None),
    "bits 0": (f"{WEIGHT}.bits", lambda value: value * 0),
    "bits 9": (f"{WEIGHT}.bits", lambda value: value * 0 + 9),
    "3 bits over 4-bit codes": (f"{WEIGHT}.bits", lambda value: value * 0 + 3),
    "codes cut": (f"{WEIGHT}.codes", lambda value: value[:-1]),
    "codes too many": (f"{WEIGHT}.codes", lambda value: torch.cat([value, value])),
    "codes in floats": (f"{WEIGHT}.codes", lambda value: value.float()),
    "zero points NaN": (f"{WEIGHT}.zero_point", lambda value: value.float() * float("nan")),
    "zero points too few": (f"{WEIGHT}.zero_point", lambda value: value[:3]),
    "moments NaN": (f"{WEIGHT}.moments", lambda value: value * float("nan")),
    "moments too few": (f"{WEIGHT}.moments", lambda value: value[:2]),
    "bias NaN": ("qkv.bias", lambda value: value * float("nan")),
    "bias complex": ("qkv.bias", lambda value: value.to(torch.complex64)),
    "bias gone": ("qkv.bias", lambda value: None),
    "one more": ("more", lambda value: torch.ones(1)),
}
HEADERS: dict[str, dict[str, Any]] = {
    "unknown key": {"hello": 1},
    "no model": {"model": "taken away"},
    **{f"model {value}": {"model": value} for value in (5, ["a"])},
    **{f"classes {value}": {"classes": value} for value in ("3", 0, 10**12, True, None)},
    **{
        f"images {value}": {"image_shape": value}
        for value in ([1, -8, 8], [1, 10**9, 10**9], [8, 8], "abc", [1, 8.5, 8], None, [3, 8, 8])
    },
    **{
        f"weight {value}": {"weight_shapes": {WEIGHT: value}}
        for value in ([10**12, 8], [12, 16], [-24, -8], "abc", None)
    },
    "no shapes": {"weight_shapes": {}},
    "list of shapes": {"weight_shapes": [1]},
    "no quantization": {"quantization": None},
    "unknown quantization": {"quantization": {"hello": 1}},
    "hash": {"weights_hash": 5},
    "provenance": {"provenance": []},
    **{f"format {value}": {"format": value} for value in ("evolq quantized network 3", None)},
}


@pytest.mark.parametrize("case", [*TENSORS, *HEADERS])
def test_an_edited_model_file_is_refused(case: str, saved: Path, tmp_path: Path) -> None:
    tensors = dict([TENSORS[case]]) if case in TENSORS else {}
    edited(saved, tmp_path / "edited", tensors, HEADERS.get(case, {}))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "edited", TinyTransformer())
    assert "checksum" not in str(caught.value), "it fits; what is wrong must be seen itself"


@pytest.mark.parametrize("change", [{"weight_bits": 9}, {"weight_bits": 4.0}, {"scheme": "linear"}])
def test_an_edited_quantization_is_refused(change: Any, saved: Path, tmp_path: Path) -> None:
    content = dataclasses.asdict(read(saved)[0].quantization)
    edited(saved, tmp_path / "edited", {}, {"quantization": content | change})
    with pytest.raises(InputError) as caught:
        load(tmp_path / "edited", TinyTransformer())
    assert "checksum" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a":' * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5, "[]", "5"])
def test_a_header_that_is_none_is_refused(text: str, saved: Path, tmp_path: Path) -> None:
    save_file(load_file(saved), tmp_path / "edited", {"evolq": text})
    with pytest.raises(InputError, match="is not a quantized network of this program"):
        load(tmp_path / "edited", TinyTransformer())


def test_flipped_bits_of_a_scan_are_found(tmp_path: Path) -> None:
    scan = scanned()
    store.save(scan, tmp_path / "scan.nc")
    whole, right = (tmp_path / "scan.nc").read_bytes(), store.load(tmp_path / "scan.nc")
    generator = np.random.default_rng(0)
    refusals = 0
    for position in generator.integers(8 * len(whole), size=20):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        (tmp_path / "scan.nc").write_bytes(damaged)
        try:
            found = store.load(tmp_path / "scan.nc")
        except InputError:
            refusals += 1
        else:
            assert found.identical(right), "a bit of nothing: the content is that which was written"
    # all but those in the words in front of the checksum
    assert refusals > 15


def test_a_scan_that_another_program_wrote_again_loads_with_a_warning(tmp_path: Path) -> None:
    store.save(scanned(), tmp_path / "scan.nc")
    right = store.load(tmp_path / "scan.nc")
    xr.load_dataset(tmp_path / "scan.nc", engine="h5netcdf").to_netcdf(tmp_path / "again.nc")
    with pytest.warns(UserWarning, match=r"again\.nc has no checksum"):
        assert store.load(tmp_path / "again.nc").identical(right)


# Properties ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Declared:
    whole: int = 1
    number: float = 1.0
    several: tuple[int, ...] = (1,)
    maybe: str | None = None
    yes: bool = True

    def __post_init__(self) -> None:
        check_fields(self, whole=(1, 9), number=(0, 9), several=(1, 9))


@settings(max_examples=40)
@given(
    st.sampled_from(["whole", "number", "several", "maybe", "yes"]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.binary(max_size=3),
        st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    ),
)
def test_a_field_is_what_it_is_declared_to_be(name: str, value: Any) -> None:
    def within(item: Any, low: int, kinds: Any) -> bool:
        return isinstance(item, kinds) and not isinstance(item, bool) and low <= item <= 9

    right = {
        "whole": within(value, 1, int),
        "number": within(value, 0, int | float),
        "several": isinstance(value, list) and all(within(item, 1, int) for item in value),
        "maybe": value is None or (isinstance(value, str) and value != ""),
        "yes": isinstance(value, bool),
    }[name]
    if right:
        Declared(**{name: value})
    else:
        with pytest.raises(InputError, match=f"`{name}` is "):
            Declared(**{name: value})


def test_a_refusal_is_quick(command_line_of: Callable[..., Any]) -> None:
    began = time.monotonic()
    refused(command_line_of(SCAN)("--points", "100000"), "need 14,250 GB")
    assert time.monotonic() - began < 10, sys.argv
