"""How a network is quantized: declared once, the same for every command and in Python.

Nothing here imports torch, so that command lines can read the fields before they need it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from evolq.declared import check_fields
from evolq.errors import InputError

MIN_BITS, MAX_BITS = 2, 8

# Weights; no layer has so many inputs.
LARGEST_GROUP = 2**20

Scheme = Literal["none", "weights", "linear", "full", "published"]
ObserverName = Literal["minmax", "ema", "percentile", "omse", "mse"]
SoftmaxCodes = Literal["log2", "log_sqrt2", "uniform"]
RoundingName = Literal["nearest", "gptq", "adaround"]
WeightGranularity = Literal["channel", "group", "tensor"]


@dataclass(frozen=True)
class Quantization:
    """Everything that decides how a network is quantized and where its scales start.

    Fields that are None follow a rule, which `resolved` applies: the best start that is known for
    these bits.

    Attributes:
        scheme: What is quantized: weights; linear (weights, and the inputs of linear, convolution
            and matmul); full (also softmax, LayerNorm, activation functions, residual sums);
            published (as the published Evol-Q code: also what each product makes, embeddings and
            logits; its own rules for the fields that are not given); none.
        weight_bits: Bits of a weight, 2 to 8.
        activation_bits: Bits of an activation, 2 to 8.
        weight_observer: How weights' scales start; by default minmax where all has 8 bits or the
            scheme is published, else mse.
        activation_observer: How activations' scales start, by the same default, but for omse in
            scheme published.
        moment_matching: Match mean and standard deviation of each output channel of a quantized
            weight to the original's; by default below 8 bits, and in scheme published; not
            where gptq rounds weights of activations below 8 bits.
        rounding: Which code a weight gets at the start: nearest; gptq (weights make good
            what quantized inputs lose, later columns the errors of earlier ones, and scales are
            chosen for it; takes a few forward passes); adaround (learnt block by block; takes
            hundreds).
        integer_layer_norm: In schemes full and published, compute LayerNorms in integers as the
            published code does; no gradients there. By default in scheme published.
        softmax: Codes of attention maps: uniform and log_sqrt2 (two codes for a factor of two, as
            RepQ-ViT has them) have as many bits as other activations, log2 has 4 (as FQ-ViT has
            them). By default uniform; log_sqrt2 with activations below 8 bits, where uniform codes
            round most of a map to 0.
        fold_layer_norms: Give all channels that a LayerNorm makes one range, folded into its
            parameters and the next layer's (RepQ-ViT; full precision stays the same); by default
            with activations below 8 bits.
        weight_granularity: Weights that share a scale: an output channel, a group of `group_size`
            inputs, or the tensor.
        group_size: Weights in a group, with `weight_granularity` group.
        weight_symmetric: Signed codes of weights, with zero point 0.
        activation_symmetric: Signed codes of activations, with zero point 0.

    Raises:
        InputError: for values of other types, bits outside 2 to 8, unknown choices, or a group of
            no size. Schemes,
            observers and roundings are looked up in their registries when used.
    """

    scheme: Scheme = "linear"
    weight_bits: int = 4
    activation_bits: int = 8
    weight_observer: ObserverName | None = None
    activation_observer: ObserverName | None = None
    moment_matching: bool | None = None
    rounding: RoundingName = "nearest"
    integer_layer_norm: bool | None = None
    softmax: SoftmaxCodes | None = None
    fold_layer_norms: bool | None = None
    weight_granularity: WeightGranularity = "channel"
    group_size: int = 32
    weight_symmetric: bool = False
    activation_symmetric: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        widths = (MIN_BITS, MAX_BITS)
        check_fields(
            self, weight_bits=widths, activation_bits=widths, group_size=(1, LARGEST_GROUP)
        )
        # registries of schemes, observers and roundings are open, these are not
        for name, known in (
            ("softmax", get_args(SoftmaxCodes)),
            ("weight_granularity", get_args(WeightGranularity)),
        ):
            if getattr(self, name) not in (*known, None):
                raise InputError(
                    f"unknown `{name}` {getattr(self, name)!r}; choose from {', '.join(known)}"
                )

    def resolved(self) -> Quantization:
        """Return this with the rule's choice in place of each None."""
        # At W8A8 min-max has the lower test loss on EfficientNet-Lite0, by 0.013 nats, and MSE none
        # that is told apart on DeiT-Tiny and ViT-Tiny; nor has matching moments (1,000 images each,
        # docs/real_networks.md). Below, MSE scales and matched moments win by up to 4.
        eight = min(self.weight_bits, self.activation_bits) == MAX_BITS
        rule: dict[str, Any] = {
            "weight_observer": "minmax" if eight else "mse",
            "activation_observer": "minmax" if eight else "mse",
            # GPTQ shrinks weights where inputs are noisy, which matching would undo: DeiT-Tiny W4A4
            # (linear, 500 test images) has a test loss of 1.54 without and of 1.69 with it.
            "moment_matching": self.weight_bits < MAX_BITS
            and (self.rounding != "gptq" or self.activation_bits == MAX_BITS),
            "integer_layer_norm": False,
            "softmax": "uniform" if self.activation_bits == MAX_BITS else "log_sqrt2",
            "fold_layer_norms": self.activation_bits < MAX_BITS,
        }
        if self.scheme == "published":
            # Whatever the bits: what the published Evol-Q code has (Frumkin et al. 2023).
            rule = {
                "weight_observer": "minmax",
                "activation_observer": "omse",
                "moment_matching": True,
                "integer_layer_norm": True,
                "softmax": "uniform",
                "fold_layer_norms": False,
            }
        return replace(
            self, **{name: value for name, value in rule.items() if getattr(self, name) is None}
        )
