"""Attention as one compiled function against its definition; skipped where it cannot be built."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import plain
from torch import Tensor, nn
from torch.nn import functional

from evolq.network import kernels as module
from evolq.network import lowering
from evolq.network.kernels import LANES, Codes, attention, attention_in_floats, kernels
from evolq.network.lowering import differing_codes, lower
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.starts.calibration import calibrate

needs_kernel = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="the processor lacks AVX-512 VNNI"
)

# One code off is a tie to within float32 rounding: a few in a million.
TIES = 2e-5


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def operand(shape: tuple[int, ...], scale: float, zero: float, shift: int, seed: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    return codes, torch.tensor(scale), torch.tensor(zero), shift


def operands(tokens: int, depth: int, columns: int, shift: int = 128) -> tuple[Codes, Codes, Codes]:
    """Queries, keys and values of 3 images and 2 heads, in memory as a layer of all three left."""
    queries = operand((3, tokens, 2, depth), 0.01, 100.0, shift, 0)
    keys = operand((3, tokens, 2, depth), 0.02, 131.0, 128, 1)
    values = operand((3, tokens, 2, columns), 0.5, 90.0, 128, 2)
    return (
        (queries[0].transpose(1, 2), *queries[1:]),
        (keys[0].permute(0, 2, 3, 1), *keys[1:]),
        (values[0].transpose(1, 2), *values[1:]),
    )


def quantizer(scale: float, zero: float = 0.0, upper: float = 255.0) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value) for value in (scale, zero, 0.0, upper))


@needs_kernel
@pytest.mark.parametrize(
    ("tokens", "depth", "columns"), [(1, 4, 16), (5, 16, 16), (16, 12, 80), (197, 64, 64)]
)
@pytest.mark.parametrize("shift", [0, 128])
@pytest.mark.parametrize("probabilities", [(1 / 255,), (0.001, 7.0), (1 / 15, 0.0, 15.0)])
def test_attention_is_softmax_and_its_codes_times_values(
    tokens: int, depth: int, columns: int, shift: int, probabilities: tuple[float, ...]
) -> None:
    assert kernels() is not None
    queries, keys, values = operands(tokens, depth, columns, shift)
    scale, zero, lower, upper = quantizer(*probabilities)
    width = -(-tokens // LANES) * LANES
    identity = torch.eye(tokens, width, dtype=torch.int8).expand(3, 2, -1, -1)
    one = (identity, torch.tensor(1.0), torch.tensor(0.0), 0)

    found = attention(queries, keys, one, scale, zero, lower, upper)[..., :tokens] / scale
    left, right, factors = (
        codes.double() + shift - zero for codes, _, zero, shift in (queries, keys, values)
    )
    softmax = ((left @ right) * queries[1].double() * keys[1].double()).softmax(-1)
    steps = (softmax / scale.double() + zero).clamp(lower, upper).round() - zero
    off = found.round().double() - steps
    assert float(off.abs().max()) <= 1
    assert int((off != 0).sum()) <= TIES * off.numel()

    # of those codes the sums are exact: rounded twice, by two factors
    product = attention(queries, keys, values, scale, zero, lower, upper)
    exact = (found.round().double() @ factors) * float(scale * values[1])
    torch.testing.assert_close(product.double(), exact, rtol=3e-7, atol=0)


@needs_kernel
def test_logits_far_apart_are_one_probability_of_1() -> None:
    queries, keys, values = operands(40, 16, 16)
    far = (queries[0], torch.tensor(10.0), *queries[2:])
    found = attention(far, keys, values, *quantizer(1 / 255))
    expected = attention_in_floats(far, keys, values, *quantizer(1 / 255))
    torch.testing.assert_close(found, expected)


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_attention_depends_on_neither_threads_nor_batch_size() -> None:
    queries, keys, values = operands(50, 32, 32)
    whole = attention(queries, keys, values, *quantizer(1 / 255))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for image in range(3):
            part = ((codes[image : image + 1], *rest) for codes, *rest in (queries, keys, values))
            alone = attention(*part, *quantizer(1 / 255))  # type: ignore[arg-type]
            assert torch.equal(alone, whole[image : image + 1])


def test_without_the_kernel_attention_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = operands(30, 16, 16)
    found = attention(queries, keys, values, *quantizer(1 / 60))
    monkeypatch.setattr(module, "kernels", lambda: None)
    expected = attention(queries, keys, values, *quantizer(1 / 60))
    # no code of these is a tie to within float32 rounding
    torch.testing.assert_close(found, expected)


@needs_kernel
def test_a_kernel_that_cannot_be_built_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "kernels.cpp"
    broken.write_text("this is no C++\n")
    monkeypatch.setattr(module, "SOURCE", broken)
    kernels.cache_clear()
    with pytest.warns(UserWarning, match="the kernel of attention cannot be built here"):
        assert kernels() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels() is None
    kernels.cache_clear()


# In a network -------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Two heads of 16 on 9 tokens; images (n, 3, 12, 12), 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        qkv = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.head(attended.transpose(1, 2).flatten(2).mean(1))


def network(scheme: str, **options: object) -> tuple[QuantizedNetwork, Point, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(20, 3, 12, 12)
    built = quantize(Attention().eval(), images[:2], plain(scheme, **options))
    return built, calibrate(built, images), images


def attentions(built: QuantizedNetwork) -> int:
    return [node.target for node in lower(built.graph).nodes].count(attention)


@needs_kernel
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_a_network_runs_attention_as_one_function(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, point, images = network(scheme)
    assert attentions(built) == 1
    counts = differing_codes(built.graph, point, images)
    assert counts.keys() == {name for name, site in built.sites.items() if site.kind != "weight"}
    # no code of these is a tie to within float32 rounding
    assert {differing for differing, _ in counts.values()} == {0}
    fused = built.executed("integer")
    assert fused.operations == built.operations
    with torch.no_grad():
        found = fused(point, images)
        torch.testing.assert_close(found, built(point, images), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(lowering, "kernels", lambda: None)
        assert attentions(built) == 0
        products = network(scheme)[0].executed("integer")
        torch.testing.assert_close(found, products(point, images), rtol=1e-4, atol=1e-5)


@needs_kernel
def test_other_attention_stays_two_products() -> None:
    for options in ({"softmax": "log2"}, {"activation_bits": 4}):
        assert attentions(network("full", **options)[0]) == 0
    assert attentions(network("published")[0]) == 0
