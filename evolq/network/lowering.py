"""Integer execution: a network's products on integer codes instead of dequantized values.

Between a quantizer and the product that reads it a value is a code q, its scale s and its zero
point z, and sums of (q - z) are integers (Jacob et al. 2018, eq. 4 and 7). `lower` rewrites a graph
so that these sums are computed exactly, whatever the order of their terms:

- Linear layers, and convolutions whose windows tile the image, multiply int8 codes and sum in
  int32. Codes from 0 to 255 are stored as int8 after subtracting `STORED_SHIFT`, and the zero
  points go in afterwards: with x, w the stored codes and K their number,

      sum (x - a)(w - b) = sum x w - b sum x - a (sum w - K b)

- So do products of two activations in attention, matrix by matrix, where neither has a log2
  quantizer and the matrices are large enough:

      sum (x - a)(w - b) = sum x w - b sum (x - a) - a sum w

- From queries to probabilities times values, attention with a uniform quantizer on its softmax is
  one function where the processor has AVX-512 VNNI (`kernels`): what lies between the two products
  does not leave the cache.
- There layers and LayerNorms take in what follows, too (`fusion`). With AMX products with weights
  are made in tiles, if 4 divides the terms and 16 the columns.
- The operands of other products stay floats that hold the integers q - z. Sums of at most 258
  products of two 8-bit codes stay below 2^24, where every integer is a float32.
- A softmax whose output has a log2 quantizer is computed in logarithms: the code is a rounded
  log2, so that no probability is needed. With two codes for a factor of two (log sqrt 2) it is left
  as it is, and so is the product: its terms are no integers.

What remains between the products is elementwise, in float32, as in the simulated path. The codes
equal that path's but where float32 rounding decides a tie. The operators on codes are in
`integer_ops`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from evolq.native import LANES, kernels
from evolq.network.fusion import fuse_layers
from evolq.network.graph import Graph, dependents, follow, source
from evolq.network.integer_ops import (
    LARGEST_SUM,
    STORED_SHIFT,
    WeightCodes,
    code_bounds,
    decode,
    encode,
    integer_product,
    log2_softmax,
    rescale,
    row_sums,
    steps,
    tiles,
    times_scales,
    zero_point_term,
)
from evolq.network.kernels import attention, encode_heads, stored
from evolq.network.operators import aten, is_matrix_product
from evolq.points import Point
from evolq.tensor.quantizers import (
    PerChannel,
    PerTensor,
    Quantizer,
    QuantSpec,
    codes_range,
    quantize,
)

# Multiply-accumulates from which a product of two matrices is faster on codes than as one of many
# float products. Measured with `torch._int_mm`, 2 cores with AVX-512 VNNI: 98 x 64 by 64 x 98 (0.61
# million) took 7.5 against 10.2 microseconds, 64 x 64 by 64 x 64 (0.26 million) 5.4 against 3.7.
# Attention maps times values gain nothing: powers of two down to 2^-15 are two int8 matrices.
CODE_PRODUCT_SIZE = 2**19


# Against the simulated graph ----------------------------------------------------------------------


def differing_codes(graph: Graph, point: Point, images: Tensor) -> dict[str, tuple[int, int]]:
    """Count the codes that are others in the lowered graph than in `graph` itself.

    Each activation of the lowered graph is compared with the simulated one's and goes on as that:
    a difference counts where float32 rounding makes it, and no other follows from it. Nothing is
    compiled here. An activation that stands both in a product on codes and in one on floats is
    compared, and counted, for each.

    Args:
        graph: a simulated graph, as for `lower`.
        point: complete.
        images: (n, channels, height, width), one pass.

    Returns:
        For each activation that the lowered graph encodes, by the quantizer's name: how many codes
        differ, and how many there are.
    """
    simulated = _SimulatedCodes(graph)
    entries = [point[name] for name in graph.entries]
    with torch.no_grad():
        simulated.run(*entries, images)
        comparison = _Comparison(lower(graph), simulated.found)
        comparison.run(*entries, images)
    return comparison.counts


def _quantizer_name(graph: Graph, scale: Any) -> str:
    """Return the name of the quantizer that the entry `scale` belongs to."""
    return str(graph.name_of(scale)).rpartition(".")[0]


class _SimulatedCodes(fx.Interpreter):
    """Runs a simulated graph and keeps codes (int16), zero points and bits of all quantizers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.described = graph
        self.found: dict[str, tuple[Tensor, Tensor | None, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, Quantizer):
            (value, scale, zero_point, bits), _ = self.fetch_args_kwargs_from_env(n)
            codes = quantize(value, scale, zero_point, bits, module.spec).to(torch.int16)
            self.found[_quantizer_name(self.described, n.args[1])] = codes, zero_point, bits
        return super().run_node(n)


class _Comparison(fx.Interpreter):
    """Runs a lowered graph on the codes of the simulated one, and counts where its own differ."""

    def __init__(
        self, graph: Graph, simulated: dict[str, tuple[Tensor, Tensor | None, Tensor]]
    ) -> None:
        super().__init__(graph.module)
        self.described = graph
        self.simulated = simulated
        self.counts: dict[str, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is attention:
            return self.attention(n)
        value = super().run_node(n)
        if n.target not in (encode, stored, steps, log2_softmax):
            return value
        name = _quantizer_name(self.described, n.args[1])
        codes, zero_point, bits = self.simulated[name]
        if n.target in (encode, stored):
            shift: Any = n.args[-1]
            expected = codes - shift
        elif n.target is steps:
            expected = codes if zero_point is None else codes - zero_point.round()
        else:
            _, upper = codes_range(bits, QuantSpec(kind="log2"))
            expected = torch.where(codes < upper, torch.exp2(-codes.to(value.dtype)), 0.0)
        return self.compare(name, value, expected.to(value.dtype))

    def compare(self, name: str, value: Tensor, expected: Tensor) -> Tensor:
        """Count, and return what was expected."""
        differing, count = self.counts.get(name, (0, 0))
        differing += int((value != expected).sum())
        self.counts[name] = differing, count + value.numel()
        return expected

    def attention(self, n: fx.Node) -> Tensor:
        """Compare the probabilities: what attention makes of values that are the identity."""
        (queries, keys, values, scale, zero, lower, upper, *rows), _ = (
            self.fetch_args_kwargs_from_env(n)
        )
        stored, value_scale, value_zero, shift = values
        tokens = stored.shape[-2]
        identity = stored.new_zeros(tokens, math.ceil(tokens / LANES) * LANES).fill_diagonal_(1)
        plain = (identity.expand(*stored.shape[:2], -1, -1), scale.new_ones(()), 0 * scale, 0)
        found = attention(queries, keys, plain, scale, zero, lower, upper)[..., :tokens]
        name = _quantizer_name(self.described, n.args[3])
        codes, zero_point, _ = self.simulated[name]
        expected = codes if zero_point is None else codes - zero_point.round()
        expected = self.compare(name, (found / scale).round(), expected.to(found.dtype))
        product = expected @ (stored.to(scale.dtype) + shift - value_zero)
        result = times_scales(product, scale, value_scale)
        return encode_heads(result, rows[0]) if rows else result


# The rewriting ------------------------------------------------------------------------------------


def lower(graph: Graph) -> Graph:
    """Return a graph with integer products, a function of the same entries and images.

    Left as they are: layers whose weights or inputs have several scales along the sum or a log2
    quantizer, and convolutions with overlapping windows.
    """
    lowering = _Lowering(graph.duplicate())
    lowering.run()
    on_cpu = all(weight.device.type == "cpu" for weight in graph.weights.values())
    if on_cpu and kernels() is not None:
        fuse_layers(lowering.graph)
    return lowering.graph


class _Lowering:
    """The state of one walk over a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fx_graph = graph.module.graph
        self.on_images = dependents(self.fx_graph, [graph.images])
        self.quantizers: dict[fx.Node, Quantizer] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                module = graph.module.get_submodule(str(node.target))
                if isinstance(module, Quantizer):
                    self.quantizers[node] = module
        self.made: dict[tuple[fx.Node, str], Any] = {}
        self.copies: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def run(self) -> None:
        for rewrite in (self.attentions, self.products, self.activations):
            rewrite()
            self.fx_graph.eliminate_dead_code()
        self.graph.recompile()

    def attentions(self) -> None:
        for node in list(self.graph.nodes):
            if is_matrix_product(node):
                self.attention(node)

    def products(self) -> None:
        for node in list(self.graph.nodes):
            if node.target in (aten.linear.default, aten.conv2d.default):
                self.linear(node)
            elif is_matrix_product(node):
                self.product(node)

    def activations(self) -> None:
        # What else reads an activation reads its code, too: a quarter of the memory.
        for node in list(self.graph.nodes):
            if self.has_codes(node):
                for user in list(node.users):
                    codes, scale, zero, shift = self.codes(node)
                    value = self.call(user, decode, (codes, scale, zero, shift), node)
                    user.replace_input_with(node, value)

    def call(
        self,
        before: fx.Node,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        like: fx.Node,
    ) -> fx.Node:
        """Add a node in front of another one; its value has the shape of that of `like`."""
        name = f"{like.name}_{getattr(function, '__name__', '')}".rstrip("_")
        with self.fx_graph.inserting_before(before):
            node = self.fx_graph.create_node("call_function", function, arguments, name=name)
        node.meta = dict(like.meta)
        if like in self.on_images:
            self.on_images.add(node)
        return node

    def items(self, before: fx.Node, values: fx.Node, count: int) -> tuple[fx.Node, ...]:
        """Add a node for each item of a tuple."""
        with self.fx_graph.inserting_before(before):
            return tuple(
                self.fx_graph.call_function(operator.getitem, (values, index))
                for index in range(count)
            )

    def has_codes(self, node: fx.Node) -> bool:
        """Whether `node` is an activation's quantizer with one scale for all values."""
        quantizer = self.quantizers.get(node)
        return (
            quantizer is not None
            and node in self.on_images
            and quantizer.spec.kind == "uniform"
            and isinstance(quantizer.spec.granularity, PerTensor)
        )

    def parameters(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return scale, rounded zero point, lowest and highest code of an activation."""
        if (node, "parameters") not in self.made:
            _, scale, zero_point, bits = node.args
            with self.fx_graph.inserting_before(node):
                bounds = self.fx_graph.call_function(
                    code_bounds, (zero_point, bits, self.quantizers[node].spec.signed)
                )
            self.made[node, "parameters"] = (scale, *self.items(node, bounds, 3))
        return self.made[node, "parameters"]

    def codes(self, node: fx.Node) -> tuple[Any, ...]:
        """Return stored codes of an activation, their scale, zero point and shift."""
        scale, zero, lower, upper = self.parameters(node)
        shift = 0 if self.quantizers[node].spec.signed else STORED_SHIFT
        if (node, "codes") not in self.made:
            arguments = (node.args[0], scale, zero, lower, upper, shift)
            self.made[node, "codes"] = self.call(node, encode, arguments, node)
        return self.made[node, "codes"], scale, zero, shift

    def steps(self, node: fx.Node) -> fx.Node:
        """Return an activation in units of its scale."""
        if (node, "steps") not in self.made:
            if self.has_codes(node):
                arguments = (node.args[0], *self.parameters(node))
                self.made[node, "steps"] = self.call(node, steps, arguments, node)
            else:
                softmax, scale, _, bits = node.args
                logits, axis, *_ = softmax.args  # type: ignore[union-attr]
                self.made[node, "steps"] = self.call(
                    node, log2_softmax, (logits, scale, bits, axis), node
                )
        return self.made[node, "steps"]

    def follow(self, value: fx.Node, origin: fx.Node, new: fx.Node) -> fx.Node:
        """Return `value`, a view of `origin`, as the same view of `new`."""
        return follow(value, origin, new, self.copies, self.on_images)

    def linear(self, node: fx.Node) -> None:
        """Replace a linear layer, or a convolution whose windows tile the image."""
        value, weight, bias, *rest = [*node.args, None][: max(3, len(node.args))]
        assert isinstance(value, fx.Node)
        origin = source(value)
        quantizer = self.quantizers.get(weight)  # type: ignore[arg-type]
        if not (
            self.has_codes(origin)
            and quantizer is not None
            and weight not in self.on_images
            and quantizer.spec.kind == "uniform"
            and quantizer.spec.granularity in (PerTensor(), PerChannel(0))
        ):
            return
        window = None
        if node.target is aten.conv2d.default:
            window = self.tiled_window(weight, rest)
            if window is None:
                return
        stored, scale, zero, shift = self.codes(origin)
        codes = self.follow(value, origin, stored)
        if window is not None:
            codes = self.call(node, tiles, (codes, *window), node)
        name = f"{weight.target}_integer"  # type: ignore[union-attr]
        while hasattr(self.graph.module, name):  # a weight with several layers
            name += "_"
        self.graph.module.add_module(name, WeightCodes(quantizer, shift))
        with self.fx_graph.inserting_before(node):
            prepared = self.fx_graph.call_module(name, (*weight.args, bias, scale, zero))  # type: ignore[union-attr]
        matrix, *constants, needed = self.items(node, prepared, 7)
        rows = self.call(node, row_sums, (codes, needed), node)
        sums = self.call(node, integer_product, (codes, matrix), node)
        result = self.call(node, rescale, (sums, rows, *constants), node)
        if window is not None:
            # in the order of a layer's, which the convolution's is not
            positions = node.meta["val"].permute(0, 2, 3, 1)
            sums.meta["val"] = result.meta["val"] = positions
            terms = self.graph.weights[str(self.graph.name_of(weight.args[0]))][0].numel()  # type: ignore[union-attr, arg-type]
            codes.meta["val"] = positions.new_empty(*positions.shape[:3], terms)
            result = self.call(node, aten.permute.default, (result, [0, 3, 1, 2]), node)
        self.replace(node, sums, result)

    def product(self, node: fx.Node) -> None:
        """Replace a product of two activations."""
        operands = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        origins = [source(operand) for operand in operands]
        if len(origins) < 2 or not all(map(self.has_steps, origins)):
            return
        if self.pays_on_codes(*operands):
            sums, product = self.product_of_codes(node, *operands)
        else:
            factors = [
                self.follow(operand, origin, self.steps(origin))
                for operand, origin in zip(operands, origins, strict=True)
            ]
            sums = product = self.call(node, node.target, tuple(factors), node)  # type: ignore[arg-type]
        scales = [origin.args[1] for origin in origins]
        self.replace(node, sums, self.call(node, times_scales, (product, *scales), node))

    def attention(self, node: fx.Node) -> None:
        """Replace all from queries to probabilities times values by one function, where it can."""
        found = self.attention_operands(node)
        if found is None or kernels() is None:
            return
        logits, probabilities, *operands = found
        codes = []
        for operand in operands:
            origin = source(operand)
            stored, *constants = self.codes(origin)
            codes.append((self.follow(operand, origin, stored), *constants))
        parameters = self.parameters(probabilities)
        result = self.call(node, attention, (*codes, *parameters), node)
        self.replace(node, result, result)
        self.graph.operations[result.name] += self.graph.operations.pop(logits.name)

    def attention_operands(self, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """Return logits, probabilities, queries, keys and values if `attention` computes `node`."""
        probabilities: Any
        probabilities, values, *_ = node.args
        if not self.has_codes(probabilities) or self.quantizers[probabilities].spec.signed:
            return None
        softmax = probabilities.args[0]
        if softmax.target is not aten.softmax.int or softmax.args[1] not in (-1, 3):
            return None
        logits = softmax.args[0]
        between = (logits, softmax, probabilities)
        if not is_matrix_product(logits) or any(len(inner.users) > 1 for inner in between):
            return None
        operands = (*logits.args[:2], values)
        if not all(isinstance(o, fx.Node) and self.has_codes(source(o)) for o in operands):
            return None
        shapes = [tuple(getattr(operand.meta.get("val"), "shape", ())) for operand in operands]
        if any(len(shape) != 4 for shape in shapes):
            return None
        images, heads, tokens, depth = shapes[0]
        columns = shapes[2][-1]
        fits = (
            all(isinstance(size, int) for size in (heads, tokens, depth, columns))
            and shapes[1:] == [(images, heads, depth, tokens), (images, heads, tokens, columns)]
            and depth % 4 == columns % LANES == 0
            and max(tokens, depth) <= LARGEST_SUM
        )
        return (logits, probabilities, *operands) if fits else None

    def pays_on_codes(self, left: fx.Node, right: fx.Node) -> bool:
        """Whether a product can sum stored codes in int32, and is faster so."""
        shapes: list[Any] = [
            getattr(operand.meta.get("val"), "shape", ()) for operand in (left, right)
        ]
        if min(map(len, shapes)) < 3 or shapes[0][:-2] != shapes[1][:-2]:
            return False
        sizes = (*shapes[0][-2:], shapes[1][-1])
        return (
            all(isinstance(size, int) for size in sizes)  # not the number of images
            and self.has_codes(source(left))
            and self.has_codes(source(right))
            and sizes[1] <= LARGEST_SUM
            and math.prod(sizes) >= CODE_PRODUCT_SIZE
        )

    def product_of_codes(
        self, node: fx.Node, left: fx.Node, right: fx.Node
    ) -> tuple[fx.Node, fx.Node]:
        """Return a product of stored codes, and that of codes minus zero points."""
        matrices, zeros = [], []
        for operand in (left, right):
            origin = source(operand)
            codes, _, zero, shift = self.codes(origin)
            if (origin, "matrix") not in self.made:
                # in memory as a product reads it without a copy
                matrix = self.call(origin, aten.contiguous.default, (codes,), origin)
                self.made[origin, "matrix"] = matrix
            matrices.append(self.follow(operand, origin, self.made[origin, "matrix"]))
            zeros.append((zero, shift))
        sums = self.call(node, integer_product, tuple(matrices), node)
        terms = [
            self.call(node, zero_point_term, (matrices[0], -1, *zeros[0], *zeros[1]), node),
            self.call(node, zero_point_term, (matrices[1], -2, None, 0, *zeros[0]), node),
        ]
        product = sums
        for term in terms:
            product = self.call(node, aten.sub.Tensor, (product, term), node)
        return sums, product

    def has_steps(self, node: fx.Node) -> bool:
        """Whether `node` is a quantizer whose steps are known without dequantizing."""
        if self.has_codes(node):
            return True
        quantizer = self.quantizers.get(node)
        return (
            quantizer is not None
            and quantizer.spec.kind == "log2"
            and quantizer.spec.octave_codes == 1  # powers of two, whose sums are exact
            and isinstance(quantizer.spec.granularity, PerTensor)
            and node.args[0].target is aten.softmax.int  # type: ignore[union-attr]
        )

    def replace(self, node: fx.Node, sums: fx.Node, result: fx.Node) -> None:
        """Let all read `result`; `sums` does the work that `node` did."""
        node.replace_all_uses_with(result)
        self.graph.operations[sums.name] = self.graph.operations.pop(node.name)

    def tiled_window(self, weight: Any, rest: list[Any]) -> list[int] | None:
        """Return height and width of a convolution's windows if they tile the image, else None."""
        name = self.graph.name_of(weight.args[0])
        if name is None:
            return None
        window = list(self.graph.weights[name].shape[2:])
        defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = rest + defaults[len(rest) :]
        plain = stride == window and not any(padding) and set(dilation) == {1} and groups == 1
        return window if plain else None
