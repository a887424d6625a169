"""Quantized networks as ONNX: the same graph, with QuantizeLinear and DequantizeLinear.

Activations pass QuantizeLinear to 8-bit integers, a Clip of the codes if they have fewer than 8
bits, and DequantizeLinear in front of each operator that is not computed on codes. What these
cannot say becomes explicit operators: log2 quantizers and zero points beyond 8 bits.

Weights are stored in integers. Beside quantized activations their form depends on the target, see
`onnx_codes`. Else they are uint4 up to 4 bits and uint8 above (always uint8 before opset 21): codes
of 2 or 3 bits take 4 bits in the file, those of 5 to 7 bits take 8.

Where only weights are quantized, ONNX Runtime (1.32, for one) also quantizes the inputs of linear
layers to 8 bits, on its own account; the session option `session.qdq_matmulnbits_accuracy_level`
set to "1" makes it compute what the file says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from evolq.atomic import write_whole
from evolq.errors import InputError, require
from evolq.files.codes import integer_weights, pack
from evolq.files.onnx_codes import (
    FOUR_BIT_OPSET,
    TARGETS,
    Codes,
    Target,
    Weight,
    activation,
    behind_codes,
    dequantized,
    dequantized_weight,
    integer_product,
)
from evolq.files.onnx_operators import OnnxGraph, translate
from evolq.network.deployed import constants, deployed_nodes, quantizer_nodes, weight_nodes
from evolq.network.graph import module_path
from evolq.network.operators import VIEWS
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.integer_layer_norm import integer_layer_norm
from evolq.tensor.quantizers import MAX_BITS, PerChannel, PerTensor

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 20  # Gelu came with it


def export_onnx(
    network: QuantizedNetwork,
    point: Point,
    path: str | Path,
    images: Tensor,
    target: str = "onnxruntime",
    opset: int = FOUR_BIT_OPSET,
    without_vnni: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write `network` at `point` as an ONNX model from `images` to `logits`, for any batch size.

    Args:
        network: from `quantize`, of any scheme.
        point: a complete Point.
        path: the file; one that exists is replaced, once all is written.
        images: float32 (n, channels, height, width), an example of what the network sees.
        target: whom the model is for, a name in `TARGETS`. Logits are the same up to rounding.
        opset: of the model, 20 or newer.
        without_vnni: for `onnxruntime` on x86 processors without VNNI, where the sum of two
            products of 8-bit codes can exceed 16 bits: 8-bit codes are uint8, which is exact there,
            and slower on others.
        preprocessing: what images must go through (`models.preprocessing`); it becomes metadata of
            the model, as JSON under the key `preprocessing`.

    Raises:
        InputError: if onnx is not installed, for an unknown target or one whose rules the network
            breaks, an older opset, a Point that does not belong to the network, LayerNorms in
            integers, an operator without a translation (named with its module), log2 weights, or a
            file that cannot be written.
    """
    require("onnx", "onnx", "ONNX")
    if target not in TARGETS:
        raise InputError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}")
    if opset < OLDEST_OPSET:
        raise InputError(f"opset {opset} has no Gelu; give {OLDEST_OPSET} or newer")
    if any(node.target is integer_layer_norm for node in network.graph.nodes):
        raise InputError(
            "LayerNorms that are computed in integers cannot be written as ONNX; set "
            "`integer_layer_norm` to false, or leave out `onnx`"
        )
    network.check(point)
    network.check_images(images)
    form = replace(TARGETS[target], without_vnni=without_vnni)
    if form.symmetric:
        _check_symmetric(network, point, target)
    graph = _translated(network, point, images, form, opset)
    metadata = {"target": target}
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(dict(preprocessing))
    write_whole(path, _model(graph, images, opset, metadata).SerializeToString())


# The graph ----------------------------------------------------------------------------------------


def _translated(
    network: QuantizedNetwork, point: Point, images: Tensor, target: Target, opset: int
) -> OnnxGraph:
    """Return the graph from `images` to `logits`."""
    # a symmetric quantizer's zero point is None
    known: dict[Any, Any] = {None: None} | constants(network, point)
    entries = {node: name for name, node in network.graph.entries.items()}
    quantizers = {node: name for name, node in quantizer_nodes(network).items()}
    weights = integer_weights(network, point)
    of_weights = {node: name for name, node in weight_nodes(network).items()}
    behind = {node: behind_codes(node, network.sites[quantizers[node]].spec) for node in quantizers}
    moved = {step for steps in behind.values() for step in steps}
    in_front = {node: [*steps, node][0].args[0] for node, steps in behind.items()}
    requantized = {x for x in in_front.values() if isinstance(x, fx.Node) and len(x.users) == 1}
    onnx = OnnxGraph(_shapes(network, point, images), requantized)
    made: dict[fx.Node, Any] = {}

    def value(node: Any) -> Any:
        """Return what has been made of `node`; constants are written when they are first read."""
        if node not in made:
            if node in of_weights:
                made[node] = Weight(of_weights[node], weights[of_weights[node]])
            else:
                constant = known[node]
                is_tensor = isinstance(constant, Tensor)
                name = entries.get(node, node.name)
                made[node] = onnx.constant(constant, name) if is_tensor else constant
        return made[node]

    def plain(node: Any) -> Any:
        """Return what ONNX calls `node`: no codes, but what they stand for."""
        quantized = value(node)
        if isinstance(quantized, Codes):
            return dequantized(onnx, quantized)
        if isinstance(quantized, Weight):
            return dequantized_weight(onnx, quantized, opset)
        return quantized

    for node in deployed_nodes(network):
        onnx.scope = module_path(node) or node.name
        if node in known or node in moved:
            continue
        if node.op == "placeholder":
            made[node] = "images"
        elif node.op == "output":
            onnx.nodes.append(("Identity", (plain(node.args[0]),), ["logits"], {}))
        elif node in quantizers:
            name = quantizers[node]
            made[node] = activation(
                onnx,
                name,
                plain(in_front[node]),
                behind[node],
                network.sites[name].spec,
                target.signed_activations(node),
                *(known[parameter] for parameter in node.args[1:]),
            )
        elif node.target in VIEWS and isinstance(codes := value(node.args[0]), Codes):
            arguments, options = fx.map_arg((node.args[1:], node.kwargs), value)
            view = translate(onnx, node, (codes.name, *arguments), options)
            made[node] = replace(codes, name=view)
        else:
            product = integer_product(
                onnx, node, target, *fx.map_arg((node.args, node.kwargs), value)
            )
            made[node] = product or translate(
                onnx, node, *fx.map_arg((node.args, node.kwargs), plain)
            )
    return onnx


def _check_symmetric(network: QuantizedNetwork, point: Point, target: str) -> None:
    """Check that all codes are int8 with zero point 0, the only ones that TensorRT documents.

    Raises:
        InputError: for the first quantizer that has others.
    """
    for name, site in network.sites.items():
        spec, is_weight = site.spec, site.kind == "weight"
        granularities = (PerTensor, PerChannel) if is_weight else PerTensor
        if not (
            (spec.kind, spec.signed, spec.symmetric) == ("uniform", True, True)
            and isinstance(spec.granularity, granularities)
            and (is_weight or point[f"{name}.bits"] == MAX_BITS)
        ):
            raise InputError(
                f"{target} wants signed 8-bit codes with zero point 0 and one scale per tensor "
                f"(weights: or channel), but {name} has others; quantize with scheme "
                "linear, 8 activation bits, weight_symmetric and activation_symmetric, or choose "
                "another target"
            )


def _shapes(network: QuantizedNetwork, point: Point, images: Tensor) -> dict[fx.Node, torch.Size]:
    """Return the shape of each tensor, for two images."""
    shapes = {}

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = value.shape
            return value

    example = images.new_zeros(2, *images.shape[1:])  # one image would hide which 1 is the batch
    with torch.no_grad():
        Reader(network.module).run(*[point[name] for name in network.names], example)
    return shapes


# The file -----------------------------------------------------------------------------------------


def _model(
    graph: OnnxGraph, images: Tensor, opset: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph as a protocol buffer."""
    from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

    def initializer(name: str, value: Tensor) -> TensorProto:
        value = value.cpu().contiguous()
        if name not in graph.four_bits:
            return numpy_helper.from_array(value.numpy(), name)
        content = pack(value, 4).numpy().tobytes()
        return TensorProto(
            name=name, data_type=TensorProto.UINT4, dims=value.shape, raw_data=content
        )

    def interface(name: str, shape: Sequence[int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]])

    *_, logits = graph.shapes.values()  # the last one is the output's
    nodes = [
        helper.make_node(kind, inputs, outputs, outputs[0], **attributes)
        for kind, inputs, outputs, attributes in graph.nodes
    ]
    read = {name for _, inputs, _, _ in graph.nodes for name in inputs}
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "quantized",
            [interface("images", images.shape)],
            [interface("logits", logits)],
            [initializer(name, value) for name, value in graph.constants.items() if name in read],
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="evolq",
    )
    helper.set_model_props(model, dict(metadata))
    return model
