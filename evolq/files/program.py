"""Quantized networks as `torch.export` programs, with the quantizers that PT2E backends lower.

Activations pass `quantized_decomposed.quantize_per_tensor` and its inverse, weights are int8 codes
behind `dequantize_per_channel`, with zero point 0: what torchao's X86 inductor backend turns into
integer products of oneDNN. What these cannot say (log2 codes, zero points per channel, scales per
group) becomes plain operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from evolq.files.codes import integer_weights
from evolq.files.onnx_codes import COMPILER, Weight, signed_rows
from evolq.network.deployed import constants, deployed_nodes, quantizer_nodes
from evolq.network.operators import aten
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.quantizers import PerTensor, QuantSpec, codes_range


def to_torch(
    network: QuantizedNetwork, point: Point, images: Tensor
) -> torch.export.ExportedProgram:
    """Return `network` at `point` as a program from images to logits, for any batch size.

    It needs neither evolq nor the model's own code to be saved (`torch.export.save`), loaded and
    run. Codes are rounded as torch does, after a product with 1 / scale, so that ties and what
    is next to them fall into other codes now and then.

    Args:
        network: from `quantize`, of any scheme.
        point: a complete Point.
        images: float32 (n, channels, height, width), an example of what the network sees.

    Raises:
        InputError: for a Point or images that do not belong to the network.
    """
    network.check(point)
    network.check_images(images)
    module = _module(network, point)
    example = (
        images[:1].expand(2, *images.shape[1:]).contiguous()
    )  # 1 would be taken for a constant
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


def _module(network: QuantizedNetwork, point: Point) -> fx.GraphModule:
    """Return the deployed network with quantizers as operators."""
    import torch.ao.quantization.fx._decomposed  # registers the operators

    # a symmetric quantizer's zero point is None
    known: dict[Any, Any] = {None: None} | constants(network, point)
    names = {node: name for name, node in quantizer_nodes(network).items()}
    weights = integer_weights(network, point)
    root, graph = nn.Module(), fx.Graph()
    made: dict[fx.Node, Any] = {}
    shifts: dict[Any, fx.Node] = {}  # of weights' rows

    def stored(name: str, value: Tensor) -> fx.Node:
        name = name.replace(".", "_")
        root.register_buffer(name, value)
        return graph.get_attr(name)

    def copied(node: Any) -> Any:
        if node not in made:
            value = known[node]
            made[node] = stored(node.name, value) if isinstance(value, Tensor) else value
        return made[node]

    def weight(node: fx.Node) -> fx.Node:
        """Write codes of a weight and their inverse; the shift of its rows is left to products."""
        name = names[node]
        integer = weights[name]
        axis = getattr(integer.spec.granularity, "axis", 0) % integer.codes.ndim
        named = Weight(name, integer)
        if not named.has_rows(axis):  # scales per group
            return stored(f"{name}.value", integer.value())
        codes, scale, zero, shift = signed_rows(named, axis, COMPILER)
        parameters = (
            stored(f"{name}.{k}", v) for k, v in (("scale", scale), ("zero", zero.long()))
        )
        ends = torch.iinfo(torch.int8)
        value = _call(
            graph,
            "dequantize_per_channel",
            stored(f"{name}.codes", codes),
            *parameters,
            *(axis, ends.min, ends.max, torch.int8),
        )
        if not shift.any():
            return value
        readers = [user for user in node.users if user in deployed]
        if axis == 0 and all(user.target == aten.linear.default for user in readers):
            shifts[node] = stored(f"{name}.shift", shift)
            return value
        aligned = integer.spec.granularity.align(shift, integer.codes)
        return graph.call_function(aten.add.Tensor, (value, stored(f"{name}.shift", aligned)))

    deployed = deployed_nodes(network)
    for node in deployed:
        spec = network.sites[names[node]].spec if node in names else None
        if node in names and network.sites[names[node]].kind == "weight":
            made[node] = weight(node)
        elif spec is not None and (codes := _codes(spec, *(known[k] for k in node.args[1:]))):
            quantized = _call(graph, "quantize_per_tensor", copied(node.args[0]), *codes)
            made[node] = _call(graph, "dequantize_per_tensor", quantized, *codes)
        elif node not in known:  # others are stored when they are first read
            if node.op == "call_module":
                root.add_module(str(node.target), network.module.get_submodule(str(node.target)))
            made[node] = graph.node_copy(node, copied)
            shift = shifts.get(node.args[1]) if node.target == aten.linear.default else None
            if shift is not None:
                made[node] = _with_shift(graph, made[node], copied(node.args[0]), shift)
    return fx.GraphModule(root, graph, "QuantizedProgram").eval()


def _call(graph: fx.Graph, name: str, *arguments: Any) -> fx.Node:
    operator = getattr(torch.ops.quantized_decomposed, name).default
    return graph.call_function(operator, arguments)


def _with_shift(graph: fx.Graph, product: fx.Node, x: fx.Node, shift: fx.Node) -> fx.Node:
    """Add to a product the sum of its input times the shift of each row of the weight."""
    total = graph.call_function(aten.sum.dim_IntList, (x, [-1], True))
    behind = graph.call_function(aten.mul.Tensor, (total, shift))
    return graph.call_function(aten.add.Tensor, (product, behind))


def _codes(
    spec: QuantSpec, scale: Tensor, zero_point: Tensor | None, bits: Tensor
) -> tuple[float, int, int, int, torch.dtype] | None:
    """Return what the operators call a quantizer of one scale; None if they do not have it."""
    channels = zero_point is not None and zero_point.numel() > 1
    if spec.kind != "uniform" or not isinstance(spec.granularity, PerTensor) or channels:
        return None
    lowest, _ = codes_range(float(bits), spec)
    zero = (0.0 if zero_point is None else float(zero_point.round())) - lowest
    ends = torch.iinfo(torch.uint8)
    if not ends.min <= zero <= ends.max:
        return None
    return float(scale), int(zero), 0, int(2.0 ** float(bits)) - 1, torch.uint8
