"""LayerNorms folded: channels of one range, at the cost of the next layer's weight (RepQ-ViT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from evolq.data.pixels import Images, batches
from evolq.network.layers import weighted_layers
from evolq.network.operators import VIEWS, aten
from evolq.network.placement import axis_before
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point

# A channel narrower than the widest by more than this stays narrow: the columns of the weights
# that read it would become as small, and no code would be left to them.
LARGEST_RATIO = 2.0**8


@dataclass(frozen=True)
class _Fold:
    """A LayerNorm that only linear layers read."""

    node: str
    weight: str
    bias: str
    layers: tuple[tuple[str, str], ...]  # weight and bias of each


def fold_layer_norms(
    network: QuantizedNetwork, images: Images, batch_size: int = BATCH_SIZE
) -> QuantizedNetwork:
    """Return a network of the same function, whose LayerNorms make channels of one range.

    Channel c of what a LayerNorm makes covers [l, h], widened to contain zero. With r = h - l over
    its geometric mean and m = (l + h) / 2, the LayerNorm makes (x - m) / r instead, and what reads
    it, W x + b, becomes (W r) x + (b + W m): RepQ-ViT's reparameterization (Li et al. 2023,
    section 3.2), with the middle of the range in the place of its zero point. In full precision
    nothing changes but float32 rounding.

    A LayerNorm is left as it is without weight and bias, where anything but linear layers with a
    bias reads its output, or where one of these entries serves others, too.

    Args:
        network: from `quantize`.
        images: (n, channels, height, width), on which ranges are observed.
        batch_size: images per pass.
    """
    folds = _folds(network)
    extremes: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in batches(images, batch_size) if folds else ():
        for name, value in network.record([fold.node for fold in folds], batch).items():
            rows = value.flatten(0, -2)
            low, high = extremes.get(name, (rows[0].clamp(max=0), rows[0].clamp(min=0)))
            extremes[name] = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
    weights = dict(network.weights)
    for fold in folds:
        weights |= _folded(weights, fold, *extremes[fold.node])
    return network.with_weights(weights)


def folded_like(network: QuantizedNetwork, norms: Point) -> dict[str, Tensor]:
    """Return the network's weights, folded as its LayerNorms in `norms` say.

    Args:
        network: with the model's own weights.
        norms: weights and biases of LayerNorms, as `fold_layer_norms` left them.
    """
    weights = dict(network.weights)
    for fold in _folds(network):
        weights |= _behind(weights, fold, norms)
    return weights


def _folded(weights: Point, fold: _Fold, low: Tensor, high: Tensor) -> dict[str, Tensor]:
    """Return the weights that one fold changes."""
    low, high = low.double(), high.double()
    width = high - low
    width = width.clamp_min(float(width.amax()) / LARGEST_RATIO)
    if not bool((width > 0).all()):
        return {}  # it makes nothing but zeros
    ratio, middle = width / width.log().mean().exp(), (low + high) / 2
    norm = {
        fold.weight: (weights[fold.weight] / ratio).to(weights[fold.weight].dtype),
        fold.bias: ((weights[fold.bias] - middle) / ratio).to(weights[fold.bias].dtype),
    }
    return norm | _behind(weights, fold, norm)


def _behind(weights: Point, fold: _Fold, norm: Point) -> dict[str, Tensor]:
    """Return weights and biases of the layers behind a LayerNorm of other parameters.

    They follow from the parameters as they are rounded, so that what is made and what is read from
    a file are equal bit for bit.
    """
    new, old = norm[fold.weight].double(), weights[fold.weight].double()
    ratio = torch.where(new != 0, old / new, 1.0)
    middle = weights[fold.bias].double() - norm[fold.bias].double() * ratio
    found = {}
    for weight, bias in fold.layers:
        matrix = weights[weight].double()
        found[weight] = (matrix * ratio).to(weights[weight].dtype)
        found[bias] = (weights[bias] + matrix @ middle).to(weights[bias].dtype)
    return found


def _folds(network: QuantizedNetwork) -> list[_Fold]:
    """Return the LayerNorms that can be folded."""
    layers = {layer.node: layer for layer in weighted_layers(network)}
    folds = []
    for node in network.graph.nodes:
        if node.target is not aten.layer_norm.default or len(node.args[1]) != 1:  # type: ignore[arg-type]
            continue
        weight, bias = (_entry(network, node, index) for index in (2, 3))
        read = [
            (layers[reader].name, _entry(network, reader, 2))
            for reader, axis in _readers(node)
            if axis == -1 and reader in layers and reader.target is aten.linear.default
        ]
        behind = tuple((name, own) for name, own in read if own is not None)
        if weight and bias and behind and len(behind) == len(_readers(node)):
            folds.append(_Fold(node.name, weight, bias, behind))
    return folds


def _readers(node: fx.Node) -> list[tuple[fx.Node, int | None]]:
    """Return what reads the last axis of `node` through quantizers and views, and as which axis."""
    found: list[tuple[fx.Node, int | None]] = []
    for user in node.users:
        if user.op == "call_module":
            found += _readers(user)
        elif user.target in VIEWS:
            found += [
                (reader, None if axis is None else axis_before(user, axis))
                for reader, axis in _readers(user)
            ]
        else:
            found.append((user, -1))
    return found


def _entry(network: QuantizedNetwork, node: fx.Node, index: int) -> str | None:
    """Return the name of the weight that only `node` reads, as this argument; None without."""
    argument = node.args[index] if index < len(node.args) else None
    if not isinstance(argument, fx.Node) or len(argument.users) > 1:
        return None
    name = network.graph.name_of(argument)
    return name if name in network.weights else None
