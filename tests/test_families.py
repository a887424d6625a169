"""Families of vision networks from timm, none of which any line of the package knows about.

Weights are random, but nothing stays at 0 or 1: norms, statistics, layer scales, biases and tokens
are varied, since a mistake in folding or in a residual connection would hide behind them.
`docs/families.md` says what was checked and on what; `python docs/families.py` writes its rows.
"""

import copy
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import timm
import torch
from graph_checks import unquantized_inputs, unquantized_values
from tiny_models import plain
from torch import Tensor, nn
from torch.nn import functional

from evolq.data.models import reparameterize
from evolq.network.blocks import find_blocks
from evolq.network.graph import export
from evolq.network.operators import OPERATORS
from evolq.network.quantized import QuantizedNetwork, quantize_graph
from evolq.points import role
from evolq.starts.calibration import calibrate
from evolq.tensor.quantizers import Quantizer

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

# Rounding of float32 sums in another order, relative to the largest logit.
ROUNDING = 1e-4

# What 8 bits may change, as a share of the norm of the logits. Unrelated logits are at 1.4. Most
# models stay below 0.1; random weights magnify rounding more than trained ones do.
CLOSE = 0.3
# What codes with flipped ties may change, likewise: 0.18 was the largest seen, of many.
REROUNDED = 0.5
SCHEMES = ("linear", "full")


class Plain(nn.Module):
    """A network that nobody has heard of: grouped convolution, gate, attention, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4, bias=False), nn.BatchNorm2d(16))
        self.gate = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])

    def forward(self, images: Tensor) -> Tensor:
        x = functional.silu(self.stem(images))
        x = (x * self.gate(x).sigmoid()).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(x).mean(1)
        return (self.heads[0](x) + self.heads[1](x.square())) / 2


@dataclass(frozen=True)
class Family:
    """A model and the blocks that its linear scheme must have, numbers as `#`, in order."""

    name: str
    blocks: str
    options: dict[str, object] = field(default_factory=dict)
    slow: bool = True

    def model(self) -> nn.Module:
        return Plain() if self.name == "plain" else timm.create_model(self.name, **self.options)

    def __str__(self) -> str:
        return self.name if self.slow else f"small_{self.name}"


VIT = "patch_embed blocks.#.attn blocks.#.mlp head"
SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_classes": 10}
FAMILIES = [
    Family("plain", "stem gate attention heads", slow=False),
    Family("deit_tiny_patch16_224", VIT, SMALL, slow=False),
    Family("deit_tiny_patch16_224", VIT),
    Family("deit_small_patch16_224", VIT),
    Family("vit_base_patch16_224", VIT, {"img_size": 96}),
    Family(
        "swin_tiny_patch4_window7_224",
        "patch_embed layers.#.blocks.#.attn layers.#.blocks.#.mlp layers.#.downsample head",
    ),
    Family(
        "levit_128s",
        "stem stages.#.blocks.#.attn stages.#.blocks.#.mlp stages.#.downsample.attn_downsample "
        "stages.#.downsample.mlp head head_dist",
    ),
    Family(
        "pit_ti_224",
        "patch_embed transformers.#.blocks.#.attn transformers.#.blocks.#.mlp transformers.#.pool "
        "head",
    ),
    Family(
        "cait_xxs24_224",
        "patch_embed blocks.#.attn blocks.#.mlp blocks_token_only.#.attn blocks_token_only.#.mlp "
        "head",
    ),
    Family(
        "xcit_nano_12_p16_224",
        "patch_embed.proj.# pos_embed blocks.#.attn blocks.#.local_mp blocks.#.mlp "
        "cls_attn_blocks.#.attn cls_attn_blocks.#.mlp head",
    ),
    Family(
        "tiny_vit_5m_224",
        "patch_embed stages.#.blocks.# stages.#.downsample stages.#.blocks.#.attn head",
    ),
    Family("eva02_tiny_patch14_224", VIT, {"num_classes": 10}),
    Family(
        "maxvit_pico_rw_256",
        "stem stages.#.blocks.#.conv stages.#.blocks.#.attn_block.attn "
        "stages.#.blocks.#.attn_block.mlp stages.#.blocks.#.attn_grid.attn "
        "stages.#.blocks.#.attn_grid.mlp head",
    ),
    Family(
        "mobilevit_xxs",
        "stem stages.#.#.conv#_#x# stages.#.#.conv#_kxk stages.#.# stages.#.#.transformer.#.attn "
        "stages.#.#.transformer.#.mlp final_conv head",
    ),
    Family(
        "efficientformer_l1",
        "stem stages.#.blocks.#.mlp stages.#.downsample "
        "stages.#.blocks.#.token_mixer head head_dist",
    ),
    Family(
        "fastvit_t8",
        "stem.# stages.#.blocks.#.token_mixer stages.#.blocks.#.mlp "
        "stages.#.downsample.proj.# final_conv head",
    ),
    Family("mixer_s32_224", "stem blocks.#.mlp_tokens blocks.#.mlp_channels head"),
    Family("resnet18", "conv# layer#.# fc"),
    Family("resnet50", "conv# layer#.# fc"),
    Family("regnety_002", "stem s#.b#.conv# s#.b#.se s#.b#.downsample head"),
    Family("tf_efficientnet_lite0", "conv_stem blocks.#.# conv_head classifier"),
    Family("mobilenetv3_small_050", "conv_stem blocks.#.# conv_head classifier"),
    Family("convnext_atto", "stem stages.#.blocks.# stages.#.downsample head"),
    Family("repvit_m0_9", "stem stages.#.blocks.# stages.#.downsample head"),
]


@dataclass
class Case:
    """A model with random weights, its networks by scheme, and their calibrated Points."""

    family: Family
    model: nn.Module
    images: Tensor
    logits: Tensor
    networks: dict[str, QuantizedNetwork]
    points: dict[str, dict[str, Tensor]]


@pytest.fixture(
    scope="module",
    params=[
        # one worker for all tests of a model, which is exported once
        pytest.param(
            f, marks=[pytest.mark.xdist_group(str(f)), *[pytest.mark.slow] * f.slow], id=str(f)
        )
        for f in FAMILIES
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    return prepared(request.param)


def prepared(family: Family) -> Case:
    """Return a model of the family with random weights, quantized and calibrated."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family.model().eval()
    size = (
        32
        if family.name == "plain"
        else timm.data.resolve_model_data_config(model)["input_size"][-1]
    )
    size = family.options.get("img_size", size)
    coarse = functional.interpolate(torch.randn(2, 3, 4, 4, generator=generator), (size, size))
    images = coarse + 0.5 * torch.randn(2, 3, size, size, generator=generator)
    randomize(model, images, generator)
    with torch.no_grad():
        logits = model(images)
    exported = export(reparameterize(model), images)
    networks = {
        scheme: quantize_graph(exported.duplicate(), plain(scheme)) for scheme in ("none", *SCHEMES)
    }
    points = {scheme: calibrate(networks[scheme], images) for scheme in SCHEMES}
    return Case(family, model, images, logits, networks, points)


def randomize(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Vary all that stands at a constant; give batch norms about the sizes that they meet."""

    def noise(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator)

    def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Mean squares, not variances: what is common to all images is not subtracted, since that
        # would magnify rounding as well, from norm to norm.
        square = inputs[0].square().transpose(0, 1).flatten(1).mean(1)
        norm.running_mean.copy_((noise(square) - 0.5) * square.sqrt())
        norm.running_var.copy_((square + square.mean()) * (0.5 + noise(square)))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            first = parameter.flatten()[0]
            constant = bool((parameter == first).all())
            if constant and (first != 0 or (parameter.dim() == 1 and name.endswith("weight"))):
                parameter.copy_(0.5 + noise(parameter))  # norms and layer scales
            elif constant and parameter.dim() == 1:
                parameter.copy_(0.4 * noise(parameter) - 0.2)  # biases
            elif parameter.dim() > 1:
                # as large as other values: layers keep the size of what goes in, tokens have it
                fan_in = parameter[0].numel() if name.endswith("weight") else 1
                values = noise(parameter) - 0.5 if constant else parameter
                parameter.copy_(values / values.std() * fan_in**-0.5)
        norms = [module for module in model.modules() if hasattr(module, "running_mean")]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        model(images)
        for hook in hooks:
            hook.remove()


def test_the_graph_is_the_model(case: Case) -> None:
    plain = case.networks["none"]
    assert plain.weights.keys() == dict(reparameterize(case.model).named_parameters()).keys()
    largest = case.logits.abs().max()
    with torch.no_grad():
        assert (plain(plain.weights, case.images) - case.logits).abs().max() < ROUNDING * largest
    folded = case.networks["linear"].observe(case.images, lambda *_: None)
    assert (folded - case.logits).abs().max() < ROUNDING * largest


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_and_every_input_of_a_product_has_a_quantizer(case: Case, scheme: str) -> None:
    network = case.networks[scheme]
    assert unquantized_inputs(network) == []
    layers = [
        m for m in reparameterize(case.model).modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    assert sum(site.kind == "weight" for site in network.sites.values()) >= len(layers)


def test_full_quantizes_softmax_layer_norm_activations_and_residuals(case: Case) -> None:
    assert unquantized_values(case.networks["full"]) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_eight_bits_are_close_to_full_precision(case: Case, scheme: str) -> None:
    module = copy.deepcopy(case.networks[scheme].module)
    for name, quantizer in list(module.named_children()):
        # attention maps have 4 bits in powers of two: coarse wherever attention is spread evenly,
        # as that of random weights is
        if isinstance(quantizer, Quantizer) and quantizer.spec.kind == "log2":
            setattr(module, name, Through())
    with torch.no_grad():
        change = module(*case.points[scheme].values(), case.images) - case.logits
    assert 0 < change.norm() < CLOSE * case.logits.norm()


class Through(nn.Module):
    """In the place of a quantizer."""

    def forward(self, value: Tensor, *entries: Tensor) -> Tensor:
        return value


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("execution", ["compiled", "integer"])
def test_other_executions_are_as_close_as_rounding_lets_them(
    case: Case, execution: str, scheme: str
) -> None:
    """Codes whose tie float32 rounding decides set others off; random weights magnify them.

    The graphs are rewritten as always, but what is between products is not compiled.
    """
    network, point = case.networks[scheme], case.points[scheme]
    other = network.executed(execution)
    with torch.no_grad():
        expected = network(point, case.images)
        change = other(point, case.images) - expected
    assert change.norm() < REROUNDED * expected.norm()


def test_blocks_have_the_names_of_modules(case: Case) -> None:
    blocks = find_blocks(case.networks["linear"])
    found = list(dict.fromkeys(re.sub(r"\d+", "#", block) for block in blocks))
    assert found == case.family.blocks.split()
    paths = dict(case.model.named_modules())
    assert all(block in paths for block in blocks)


def test_gradients_reach_every_scale(case: Case) -> None:
    network = case.networks["full"]
    point = case.points["full"]
    # a little is clipped, but not a whole attention map that is nearly constant; each by another
    # factor, as a value that is quantized twice on one grid has no gradient of the second scale
    generator = torch.Generator().manual_seed(0)
    scales = {
        f"{name}.scale": (
            (0.96 + 0.02 * float(torch.rand((), generator=generator))) * point[f"{name}.scale"]
        ).requires_grad_()
        for name in network.sites
    }
    network({**point, **scales}, case.images).square().sum().backward()
    for name, site in network.sites.items():
        gradient = scales[f"{name}.scale"].grad
        assert gradient is not None, name
        # that of a log2 scale is 0 where nothing is clipped
        assert bool(gradient.any()) or site.spec.kind == "log2", name


def test_a_block_alone_gives_what_the_whole_gives(case: Case) -> None:
    network, point = case.networks["full"], case.points["full"]
    blocks = list(find_blocks(network).values())
    names = blocks[len(blocks) // 2]
    moved = {n: 1.1 * point[n] if role(n) == "scale" else point[n] for n in names}
    part = network.vary(names, point, case.images)
    assert part.share < 1
    with torch.no_grad():
        whole = network({**point, **moved}, case.images)
        assert torch.equal(part(moved), whole)
        assert not torch.equal(whole, network(point, case.images))


def row(case: Case) -> str:
    """What the page says about a model; numbers of quantizers are those of both schemes."""
    linear, full = (case.networks[scheme] for scheme in SCHEMES)
    graph = case.networks["none"].module.graph
    operators = sum(node.target in OPERATORS for node in graph.nodes)
    counts = Counter(site.kind for site in full.sites.values())
    kinds = ("softmax", "layer_norm", "activation", "residual")
    cells = [
        case.family.name,
        "×".join(map(str, case.images.shape[1:])),
        f"{sum(p.numel() for p in case.model.parameters()):,}",
        str(operators),
        str(len(linear.sites)),
        str(len(full.sites)),
        *(str(counts[kind]) for kind in kinds),
        str(len(find_blocks(linear))),
        f"`{case.family.blocks}`",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.slow
def test_the_page_says_what_was_tested(case: Case) -> None:
    if case.family.options is SMALL:
        pytest.skip("a small copy of a model that is on the page")
    assert row(case) in PAGE.read_text().splitlines(), "write the page: python docs/families.py"
