"""Quantized networks as ONNX: the same graph, with QuantizeLinear and DequantizeLinear.

Weights are stored in integers, as uint4 up to 4 bits and as uint8 above (always uint8 before opset
21): codes of 2 or 3 bits take 4 bits in the file, those of 5 to 7 bits take 8. Signed codes are
shifted to unsigned ones along with their zero points, which changes nothing: on processors without
VNNI, ONNX Runtime saturates products of unsigned with signed codes.

Activations pass QuantizeLinear to uint8, a Clip of the codes if they have fewer than 8 bits, and
DequantizeLinear. What these cannot say becomes explicit operators: log2 quantizers, zero points
beyond uint8, and the shift of each row that moment matching makes (its factor goes into the scale).

Where only weights are quantized, ONNX Runtime (1.32, for one) also quantizes the inputs of linear
layers to 8 bits, on its own account; the session option `session.qdq_matmulnbits_accuracy_level`
set to "1" makes it compute what the file says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from evolq.atomic import write_whole
from evolq.errors import InputError, require
from evolq.files.codes import IntegerWeight, integer_weights, pack
from evolq.files.onnx_operators import OnnxGraph, translate
from evolq.network.deployed import constants, deployed_nodes, quantizer_nodes, weight_nodes
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point
from evolq.tensor.quantizers import PerChannel, PerGroup, QuantSpec, codes_range

if TYPE_CHECKING:
    import onnx

# Gelu came with opset 20, four bits and scales per group with 21.
OLDEST_OPSET, FOUR_BIT_OPSET = 20, 21


def export_onnx(
    network: QuantizedNetwork,
    point: Point,
    path: str | Path,
    images: Tensor,
    opset: int = FOUR_BIT_OPSET,
) -> None:
    """Write `network` at `point` as an ONNX model from `images` to `logits`, for any batch size.

    Args:
        network: from `quantize`, of any scheme.
        point: a complete Point.
        path: the file; one that exists is replaced, once all is written.
        images: float32 (n, channels, height, width), an example of what the network sees.
        opset: of the model, 20 or newer.

    Raises:
        InputError: if onnx is not installed, for an older opset, a Point that does not belong to
            the network, an operator without a translation (named with its module), log2 weights, or
            a file that cannot be written.
    """
    require("onnx", "onnx", "ONNX")
    if opset < OLDEST_OPSET:
        raise InputError(f"opset {opset} has no Gelu; give {OLDEST_OPSET} or newer")
    network.check(point)
    graph = _translated(network, point, images, opset)
    write_whole(path, _model(graph, images, opset).SerializeToString())


def top1_agreement(
    path: str | Path,
    network: QuantizedNetwork,
    point: Point,
    images: Tensor,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Return the share of `images` on which ONNX Runtime and `network` agree in top-1, 0 to 1.

    Quantized activations put a limit to it, whatever the runtime: sums that are rounded in another
    order fall into another code here and there, and each such code moves others behind it. In a
    deep network two correct runs then differ by the noise of activation quantization.

    Args:
        path: a file that `export_onnx` wrote.
        network: from `quantize`.
        point: a complete Point.
        images: (n, channels, height, width).
        batch_size: images per pass.

    Raises:
        InputError: if onnxruntime is not installed, or cannot run the file.
    """
    require("onnxruntime", "onnx", "ONNX")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base but this
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"ONNX Runtime cannot run {path}: {reason}; export the network") from error
    agree = 0
    for batch in images.split(batch_size):
        (logits,) = session.run(["logits"], {"images": batch.cpu().numpy()})
        with torch.no_grad():
            expected = network(point, batch).cpu()
        agree += int((torch.from_numpy(logits).argmax(1) == expected.argmax(1)).sum())
    return agree / len(images)


# The graph ----------------------------------------------------------------------------------------


def _translated(network: QuantizedNetwork, point: Point, images: Tensor, opset: int) -> OnnxGraph:
    """Return the graph from `images` to `logits`."""
    # a symmetric quantizer's zero point is None
    known: dict[Any, Any] = {None: None} | constants(network, point)
    entries = {node: name for name, node in network.graph.entries.items()}
    quantizers = {node: name for name, node in quantizer_nodes(network).items()}
    weights = integer_weights(network, point)
    of_weights = {node: name for name, node in weight_nodes(network).items()}
    onnx = OnnxGraph(_shapes(network, point, images))
    made: dict[fx.Node, Any] = {}

    def value(node: Any) -> Any:
        """Return what ONNX calls `node`; constants are written when they are first read."""
        if node not in made:
            if node in of_weights:
                made[node] = _weight(onnx, of_weights[node], weights[of_weights[node]], opset)
            else:
                constant = known[node]
                is_tensor = isinstance(constant, Tensor)
                name = entries.get(node, node.name)
                made[node] = onnx.constant(constant, name) if is_tensor else constant
        return made[node]

    for node in deployed_nodes(network):
        onnx.scope = node.name
        if node in known:
            continue
        if node.op == "placeholder":
            made[node] = "images"
        elif node.op == "output":
            onnx.nodes.append(("Identity", (value(node.args[0]),), ["logits"], {}))
        elif node in quantizers:
            name = quantizers[node]
            x, *parameters = node.args
            made[node] = _activation(
                onnx,
                name,
                value(x),
                len(onnx.shapes[node]),
                network.sites[name].spec,
                *(known[parameter] for parameter in parameters),
            )
        else:
            arguments, options = fx.map_arg((node.args, node.kwargs), value)
            made[node] = translate(onnx, node, arguments, options)
    return onnx


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


def _unsigned(zero_point: Tensor | None, scale: Tensor, bits: float, spec: QuantSpec) -> Tensor:
    """Return the zero point that goes with codes from 0 up, of the scale's shape."""
    lowest, _ = codes_range(bits, spec)
    rounded = torch.zeros_like(scale) if zero_point is None else zero_point.round()
    return rounded - lowest


def _weight(onnx: OnnxGraph, name: str, weight: IntegerWeight, opset: int) -> str:
    """Write a weight in integers and return the name of its values."""
    spec, granularity = weight.spec, weight.spec.granularity
    shape = granularity.parameter_shape(tuple(weight.codes.shape))
    scale, zero = (
        parameter.reshape(()).expand(shape) if parameter.numel() == 1 else parameter
        for parameter in (
            weight.scale,
            _unsigned(weight.zero_point, weight.scale, weight.bits, spec),
        )
    )
    shift = torch.zeros_like(scale)
    if weight.moments is not None:
        own_mean, ratio, mean = (moment.reshape(shape) for moment in weight.moments)
        scale, shift = scale * ratio, mean - own_mean * ratio
    in_four_bits = weight.bits <= 4 and opset >= FOUR_BIT_OPSET
    if zero.min() < 0 or zero.max() > (15 if in_four_bits else 255):
        shift, zero = shift - zero * scale, torch.zeros_like(zero)
    attributes = {}
    if isinstance(granularity, PerChannel):
        attributes = {"axis": granularity.axis}
    elif isinstance(granularity, PerGroup):
        if opset < FOUR_BIT_OPSET:
            raise InputError(f"{name}: scales per group need opset {FOUR_BIT_OPSET}, not {opset}")
        attributes = {"axis": granularity.axis, "block_size": granularity.size}
    codes = onnx.constant(weight.codes, f"{name}.codes")
    zero_name = onnx.constant(zero.to(torch.uint8), f"{name}.zero_point")
    if in_four_bits:
        onnx.four_bits |= {codes, zero_name}
    value = onnx(
        "DequantizeLinear", codes, onnx.constant(scale, f"{name}.scale"), zero_name, **attributes
    )
    if not shift.any():
        return value
    return onnx("Add", value, onnx.constant(granularity.align(shift, weight.codes)))


def _activation(
    onnx: OnnxGraph,
    name: str,
    x: str,
    rank: int,
    spec: QuantSpec,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor,
) -> str:
    """Write the quantizer of a value with `rank` dimensions, and return the name of its result."""
    top = 2.0 ** float(bits) - 1
    shared = scale.numel() == 1
    zero = _unsigned(zero_point, scale, float(bits), spec)
    in_range = bool(zero.min() >= 0) and bool(zero.max() <= 255)
    if spec.kind == "uniform" and in_range and (shared or isinstance(spec.granularity, PerChannel)):
        attributes = {}
        if shared:
            scale, zero = scale.reshape(()), zero.reshape(())
        elif isinstance(spec.granularity, PerChannel):
            attributes = {"axis": spec.granularity.axis}
        parameters = (
            onnx.constant(scale, f"{name}.scale"),
            onnx.constant(zero.to(torch.uint8), f"{name}.zero_point"),
        )
        codes = onnx("QuantizeLinear", x, *parameters, **attributes)
        if bits < 8:
            bounds = (torch.tensor(bound, dtype=torch.uint8) for bound in (0, top))
            codes = onnx("Clip", codes, *(onnx.constant(bound) for bound in bounds))
        return onnx("DequantizeLinear", codes, *parameters, **attributes)
    example = scale.new_empty((1,) * rank)
    scale = spec.granularity.align(scale, example)
    if spec.kind == "log2":
        return _log2(onnx, x, scale, top + 1)
    scale_name = onnx.constant(scale)
    zero_name = onnx.constant(spec.granularity.align(zero, example))
    codes = onnx("Add", onnx("Div", x, scale_name), zero_name)
    codes = onnx("Round", onnx("Clip", codes, onnx.constant(0.0), onnx.constant(top)))
    return onnx("Mul", onnx("Sub", codes, zero_name), scale_name)


def _log2(onnx: OnnxGraph, x: str, scale: Tensor, highest: float) -> str:
    """Write `quantizers.quantize` and `dequantize` of kind log2; `highest` stands for zero."""
    zero, half, one = (onnx.constant(number) for number in (0.0, 0.5, 1.0))
    positive = onnx("Greater", x, zero)
    logarithm = onnx(
        "Div", onnx("Log", onnx("Where", positive, x, one)), onnx.constant(math.log(2))
    )
    codes = onnx("Sub", onnx.constant(scale.log2()), logarithm)
    codes = onnx("Round", onnx("Clip", codes, zero, onnx.constant(highest)))
    kept = onnx("And", positive, onnx("Less", codes, onnx.constant(highest)))
    value = onnx("Mul", onnx("Pow", half, codes), onnx.constant(scale))
    return onnx("Where", kept, value, zero)


# The file -----------------------------------------------------------------------------------------


def _model(graph: OnnxGraph, images: Tensor, opset: int) -> onnx.ModelProto:
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
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "quantized",
            [interface("images", images.shape)],
            [interface("logits", logits)],
            [initializer(name, value) for name, value in graph.constants.items()],
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="evolq",
    )
