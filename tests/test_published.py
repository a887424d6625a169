"""The published network, step by step, against what the published code computes.

The numbers lie outside of the repository, next to the real data: in `../golden/e2e` as seen from
the folder that EVOLQ_DATA names, with a README that describes them. They are DeiT-Tiny's, on eight
photographs for calibration and others to test.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from evolq.data.decoding import decoder
from evolq.data.models import load_model, preprocessing
from evolq.data.pixels import normalize
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate
from evolq.tensor.quantizers import Quantizer, dequantize
from evolq.tensor.quantizers import quantize as to_codes

pytestmark = pytest.mark.slow

MODEL = "deit_tiny_patch16_224"
RUNS = {"w4a8": 4, "w8a8": 8}

# Share of codes that may be another one, by one: float32 rounding decides their tie.
TIES = 2e-5

# Our name of each quantizer of the published code, in a block and around them.
IN_BLOCK = {
    "norm1": "attn.qkv.input",
    "qkv": "attn.qkv.output",
    "scores": "attn.matmul.output",
    "softmax": "attn.softmax.output",
    "context": "attn.matmul_1.output",
    "proj": "attn.proj.output",
    "residual1": "add.output",
    "norm2": "mlp.fc1.input",
    "gelu": "mlp.act.output",
    "fc2": "mlp.fc2.output",
    "residual2": "add_1.output",
}
AROUND = {
    "input": "patch_embed.proj.input",
    "patch_embed": "patch_embed.proj.output",
    "tokens": "add.left",
    "pos_embed": "add.right",
    "stem_residual": "add.output",
    "final_norm": "head.input",
    "logits": "head.output",
}
WEIGHTS = {"patch_embed": "patch_embed.proj", "head": "head"} | {
    part: f"{'attn' if part in ('qkv', 'proj') else 'mlp'}.{part}"
    for part in ("qkv", "proj", "fc1", "fc2")
}


def our_name(name: str, names: Mapping[str, str]) -> str:
    """Return what we call `block3.qkv` or `stem_residual`."""
    found = re.fullmatch(r"block(\d+)\.(\w+)", name)
    return f"blocks.{found[1]}.{names[found[2]]}" if found else names[name]


class Golden:
    """The published numbers as tensors."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.sites = {
            name: our_name(name, IN_BLOCK | AROUND)
            for name in self.arrays["activation_names"].tolist()
        }
        self.weights = {
            name: our_name(name, WEIGHTS) + ".weight"
            for name in self.arrays["weight_names"].tolist()
        }

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(self.arrays[key])
        return value if value.dtype in (torch.uint8, torch.int64) else value.float()

    def entries(self, run: str) -> dict[str, Tensor]:
        """Scales, zero points and factors of all quantizers, by our names."""
        found = {}
        for name, site in self.sites.items():
            part = f"act/{name}/"
            found[f"{site}.zero_point"] = self[f"{part}zero_point"].reshape(())
            if f"{part}base_scale" in self.arrays:
                found[f"{site}.scale"] = self[f"{part}base_scale"].reshape(())
                found[f"{site}.factor"] = torch.exp2(self[f"{part}ptf_exponent"])
            else:
                found[f"{site}.scale"] = self[f"{part}scale"].reshape(())
        for name, site in self.weights.items():
            for role in ("scale", "zero_point"):
                found[f"{site}.{role}"] = self[f"weight/{run}/{name}/{role}"]
        return found

    def codes(self, run: str) -> dict[str, Tensor]:
        """Codes of activations of the first test images, by our names."""
        found = {}
        for name, site in self.sites.items():
            where = "shared" if name in ("input", "pos_embed") else run
            if f"run/{where}/code/{name}" in self.arrays:
                found[site] = self[f"run/{where}/code/{name}"].float()
        return found


@pytest.fixture(scope="module")
def golden(evolq_data: Path) -> Golden:
    path = evolq_data.parent / "golden" / "e2e" / "golden.npz"
    if not path.is_file():
        pytest.skip("there is no ../golden/e2e/golden.npz next to the folder of real data")
    return Golden(path)


@pytest.fixture(scope="module")
def model(evolq_data: Path) -> nn.Module:
    return load_model(MODEL, evolq_data / f"{MODEL}.safetensors")


@pytest.fixture(scope="module")
def images(golden: Golden, model: nn.Module, evolq_data: Path) -> dict[str, Tensor]:
    config = preprocessing(model)
    decode = decoder(config)
    return {
        part: normalize(
            torch.stack(
                [
                    decode(evolq_data / "imagenet_cc" / "images" / name).pixels
                    for name in golden.arrays[f"file_names_{part}"].tolist()
                ]
            ),
            config["mean"],
            config["std"],
        )
        for part in ("calibration", "test")
    }


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(run: str, model: nn.Module, images: dict[str, Tensor]) -> QuantizedNetwork:
    quantization = Quantization("published", weight_bits=RUNS[run])
    return quantize(model, images["test"][:2], quantization)


@pytest.fixture(scope="module")
def point(network: QuantizedNetwork, golden: Golden, run: str) -> Point:
    bits = {f"{n}.bits": torch.tensor(float(s.spec.bits)) for n, s in network.sites.items()}
    point = {**network.weights, **bits, **golden.entries(run)}
    network.check(point)
    return point


def test_every_quantizer_is_one_of_the_published_network(
    golden: Golden, network: QuantizedNetwork
) -> None:
    assert set(network.sites) == {*golden.sites.values(), *golden.weights.values()}
    factors = {name for name, site in network.sites.items() if site.channels is not None}
    assert factors == {
        golden.sites[name] for name in golden.sites if f"act/{name}/base_scale" in golden.arrays
    }


class Steps(fx.Interpreter):
    """Runs a network; behind each quantizer stored codes replace its own, as far as they go."""

    def __init__(self, network: QuantizedNetwork, stored: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        entries = network.graph.entries
        self.names = {entries[f"{name}.scale"]: name for name in network.sites}
        self.stored = stored
        self.own: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        name = self.names.get(n.args[1]) if isinstance(module, Quantizer) else None
        if name is None:
            return super().run_node(n)
        (value, *parameters), _ = self.fetch_args_kwargs_from_env(n)
        codes = to_codes(value, *parameters, module.spec)
        self.own[name] = codes
        if name not in self.stored:
            return super().run_node(n)
        codes = codes.clone()
        given = in_our_shape(self.stored[name], codes)
        codes[: len(given)] = given
        return dequantize(codes, *parameters, module.spec)


def in_our_shape(codes: Tensor, like: Tensor) -> Tensor:
    """Return codes of joined heads, or of patches in a row, as the operator itself makes them."""
    count = len(codes)
    if codes.shape[1:] == like.shape[1:]:
        return codes
    if like.dim() == 4 and like.shape[1] == codes.shape[2]:  # a convolution's channels
        return codes.transpose(1, 2).reshape(count, *like.shape[1:])
    return codes.unflatten(2, (like.shape[1], -1)).transpose(1, 2)


def test_each_step_gives_the_published_codes(
    golden: Golden,
    network: QuantizedNetwork,
    point: Point,
    images: dict[str, Tensor],
    run: str,
) -> None:
    stored = golden.codes(run)
    steps = Steps(network, stored)
    with torch.no_grad():
        steps.run(*[point[name] for name in network.names], images["test"][:2])
    compared = 0
    for name, codes in stored.items():
        ours, theirs = steps.own[name], in_our_shape(codes, steps.own[name])
        block = re.match(r"blocks\.(\d+)\.", name)
        if block and int(block[1]) not in (0, 11):
            continue  # of these blocks nothing is stored but what they end with
        # block 11 reads codes that are stored for the first image only
        count = 1 if name in ("blocks.11.attn.qkv.input", "blocks.11.add.output") else len(theirs)
        change = (ours[:count] - theirs[:count]).abs()
        assert change.max() <= 1, name
        assert (change > 0).double().mean() <= TIES, name
        compared += 1
    assert compared == 29


def test_weights_are_the_published_ones(
    golden: Golden, network: QuantizedNetwork, point: Point, run: str
) -> None:
    for name in ("block0.proj", "block11.proj"):
        site = golden.weights[name]
        node = next(iter(network.graph.entries[f"{site}.scale"].users))
        spec = network.sites[site].spec
        parameters = [point[f"{site}.{role}"] for role in ("scale", "zero_point", "bits")]
        codes = to_codes(point[site], *parameters, spec)
        assert torch.equal(codes, golden[f"weight/{run}/{name}/codes"].float())
        effective = network.module.get_submodule(str(node.target))(point[site], *parameters)
        # the published gain divides by a standard deviation plus 1e-8, of about 0.05
        torch.testing.assert_close(
            effective, golden[f"weight/{run}/{name}/effective"], rtol=1e-5, atol=1e-6
        )


def test_observers_find_the_published_scales(
    golden: Golden, network: QuantizedNetwork, images: dict[str, Tensor], run: str
) -> None:
    point = calibrate(network, images["calibration"], batch_size=8)
    for name, expected in golden.entries(run).items():
        role = name.rpartition(".")[2]
        found = point[name]
        if role == "scale":
            # extremes of activations are rounded as the order of sums has it
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, msg=name)
        else:
            assert torch.equal(found, expected), name


def test_the_chain_from_pixels(
    golden: Golden,
    network: QuantizedNetwork,
    point: Point,
    images: dict[str, Tensor],
    run: str,
    record_property,
) -> None:
    """Where one code differs all behind it do: the shares are for the report, and prove nothing."""
    steps = Steps(network, {})
    with torch.no_grad():
        logits = steps.run(*[point[name] for name in network.names], images["test"][:2])
    for name, codes in golden.codes(run).items():
        ours = steps.own[name][: len(codes)]
        share = (ours != in_our_shape(codes, ours)).double().mean()
        record_property(f"{run} {name}", float(share))
    agree = logits.argmax(1) == golden[f"run/{run}/logits"][:2].argmax(1)
    record_property(f"{run} top-1", agree.tolist())
