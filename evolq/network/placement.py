"""Where quantizers go: the walk that applies the table of operators to a graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from evolq.errors import InputError
from evolq.network.graph import Graph, dependents, follow, identifier, module_path, source
from evolq.network.operators import (
    OPERATORS,
    SELECTIONS,
    VIEWS,
    Kind,
    Operator,
    aten,
    why_refused,
)
from evolq.quantization import Quantization
from evolq.tensor.integer_layer_norm import integer_layer_norm
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import (
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantizer,
    QuantSpec,
)

_FULL: frozenset[Kind] = frozenset(
    {"weight", "product", "softmax", "layer_norm", "activation", "residual"}
)
SCHEMES: dict[str, frozenset[Kind]] = {
    "none": frozenset(),
    "weights": frozenset({"weight"}),
    "linear": frozenset({"weight", "product"}),
    "full": _FULL,
    "published": _FULL | {"output", "operand"},
}

# FQ-ViT (Lin et al. 2022, section 3.3) quantizes attention maps to 4 bits, whatever the other
# activations have: log2 codes cover (0, 1] with 4 bits.
SOFTMAX_BITS = 4


# Views that leave every value where it is.
SAME_PLACES = frozenset({aten.clone.default, aten.contiguous.default, aten.dropout.default})


@dataclass(frozen=True)
class Site:
    """A quantizer in a network.

    Attributes:
        kind: what is quantized.
        spec: the quantizer's constants.
        value: name of the graph's node whose value is quantized.
        channels: axis of the channels, counted from the last (-1), that have a power-of-two factor
            each (PTF: what a LayerNorm reads), and in schemes other than published a zero point
            each; None without factors.
        folded: name of the weight whose input columns hold these factors in a Point, so that the
            result is not multiplied by them; None where it is.
    """

    kind: Kind
    spec: QuantSpec
    value: str
    channels: int | None = None
    folded: str | None = None

    def roles(self) -> tuple[str, ...]:
        """The entries of a Point that belong to this quantizer, by role."""
        zero_point = ("zero_point",) if self.spec.has_zero_point else ()
        factor = ("factor",) if self.channels is not None else ()
        return ("scale", *zero_point, "bits", *factor)


def weight_spec(quantization: Quantization) -> QuantSpec:
    """Return the constants of the quantizers of weights; the axis of channels differs by layer."""
    granularities: dict[str, Granularity] = {
        "channel": PerChannel(0),
        "group": PerGroup(-1, quantization.group_size),
        "tensor": PerTensor(),
    }
    symmetric = quantization.weight_symmetric
    return QuantSpec(
        quantization.weight_bits,
        signed=symmetric,
        symmetric=symmetric,
        granularity=granularities[quantization.weight_granularity],
        published=quantization.scheme == "published",
    )


def activation_spec(quantization: Quantization) -> QuantSpec:
    """Return the constants of the quantizers of activations, but for attention maps."""
    symmetric = quantization.activation_symmetric
    return QuantSpec(
        quantization.activation_bits,
        signed=symmetric,
        symmetric=symmetric,
        published=quantization.scheme == "published",
    )


def softmax_spec(quantization: Quantization) -> QuantSpec:
    """Return the constants of the quantizers of attention maps that have their own."""
    if quantization.softmax == "log2":
        return QuantSpec(SOFTMAX_BITS, kind="log2")
    if quantization.softmax == "log_sqrt2":
        return QuantSpec(quantization.activation_bits, kind="log2", octave_codes=2)
    return activation_spec(quantization)


def place(graph: Graph, quantization: Quantization) -> dict[str, Site]:
    """Put the quantizers of a scheme into `graph` and return them by name, in graph order.

    A value gets one quantizer, at the node that makes it, and a second only where consumers differ.
    A sum that a LayerNorm reads is quantized with a factor per channel for all who read it, but for
    products, which need one scale; what else a LayerNorm reads is so on the edge to it alone.

    Raises:
        InputError: for an unknown scheme, or an operator that cannot be quantized.
    """
    if quantization.scheme not in SCHEMES:
        raise InputError(
            f"unknown `scheme` {quantization.scheme!r}; choose from {', '.join(SCHEMES)}"
        )
    if not SCHEMES[quantization.scheme]:
        return {}
    placement = _Placement(graph, quantization)
    placement.run()
    if quantization.integer_layer_norm:
        placement.compute_layer_norms_in_integers()
    return placement.finish()


class _Placement:
    """The state of one walk over a graph."""

    def __init__(self, graph: Graph, quantization: Quantization) -> None:
        self.graph = graph
        self.kinds = SCHEMES[quantization.scheme]
        if "product" in self.kinds and quantization.softmax != "uniform":
            self.kinds |= {"softmax"}
        self.weight_spec = weight_spec(quantization)
        self.activation_spec = activation_spec(quantization)
        self.moment_matching = bool(quantization.moment_matching)  # resolved
        self.softmax_spec = softmax_spec(quantization)
        self.on_images = dependents(graph.module.graph, [graph.images])
        self.names = _Names(graph)
        self.sites: dict[str, Site] = {}
        self.quantized: dict[tuple[fx.Node, Kind], fx.Node] = {}
        self.results: set[fx.Node] = set()
        self.sums: list[tuple[fx.Node, Operator]] = []  # residual ones
        self.factored: dict[fx.Node, fx.Node] = {}  # results with factors, to what is quantized
        self.copies: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def run(self) -> None:
        nodes = [node for node in self.graph.nodes if node.op == "call_function"]
        on_weights = dependents(self.graph.module.graph, self.graph.entries.values())
        for node in nodes:
            counted = node.name in self.graph.operations
            reason = why_refused(node, self.on_images, on_weights, counted)
            if reason is not None:
                raise InputError(
                    f"{reason} ({node.target}) in module {module_path(node)!r} cannot be quantized "
                    "yet; replace it by linear, convolution or matmul"
                )
        # Outputs first: a product that reads a quantized output needs no quantizer of its own.
        edges: list[tuple[fx.Node, Operator, int, str]] = []
        for node in nodes:
            rule = OPERATORS.get(node.target)
            if rule is None:
                continue
            if not rule.inputs or rule.is_product:
                self.output(node, rule)
            edges += [(node, rule, index, label) for index, label in rule.inputs.items()]
            if rule.weight is not None:
                edges.append((node, rule, rule.weight, "weight"))
        for node, rule, index, label in edges:
            self.input(node, rule, index, label)
        for node, rule in self.sums if "operand" in self.kinds else ():
            for index, label in enumerate(("left", "right")):
                self.operand(node, rule, index, label)

    def finish(self) -> dict[str, Site]:
        self.graph.finish()
        # in graph order, without the outputs that nothing but a LayerNorm reads
        names = {_module_name(name): name for name in self.sites}
        order = [names[str(n.target)] for n in self.graph.nodes if n.op == "call_module"]
        return {name: self.sites[name] for name in order}

    def compute_layer_norms_in_integers(self) -> None:
        """Replace each LayerNorm between two quantizers by `integer_layer_norm`.

        One without weight and bias, over several axes, or whose output has no quantizer stays.
        """
        graph = self.graph.module.graph
        node: Any  # fx types arguments as anything
        for node in self.graph.nodes:
            if node.target is not aten.layer_norm.default:
                continue
            following: Any = self.following(node)
            value, axes, *rest = node.args
            affine = [argument for argument in rest[:2] if argument is not None]
            quantized: Any = source(value)
            if following is None or len(axes) != 1 or len(affine) < 2:
                continue
            if quantized not in self.factored:
                continue
            # the value is the quantizer's result times its factors
            quantizer, factor = quantized.args
            with graph.inserting_before(node):
                factor = graph.call_function(aten.reshape.default, (factor, [-1]))
                scale = graph.call_function(aten.mul.Tensor, (quantizer.args[1], factor))
                result = graph.call_function(
                    integer_layer_norm, (value, scale, *affine, following.args[1])
                )
            result.meta = node.meta
            node.replace_all_uses_with(result)

    def following(self, node: fx.Node) -> fx.Node | None:
        """Return the quantizer of all that is read of what `node` makes, None if there is none."""
        made = self.quantized.get((node, "product"))
        if made is not None or len(node.users) != 1:
            return made
        (user,) = node.users
        return self.following(user) if user.target in VIEWS | SELECTIONS else None

    def output(self, node: fx.Node, rule: Operator) -> None:
        """Quantize the value that `node` makes."""
        kind: Kind = "output" if rule.is_product else rule.kind
        if kind not in self.kinds or node not in self.on_images:
            return
        channels = None
        if kind == "residual":
            channels = channel_axis(node)
            if channels is None and not all(
                isinstance(a, fx.Node) and a in self.on_images for a in node.args[:2]
            ):
                return  # adding a constant, such as an attention mask
            self.sums.append((node, rule))
        readers = [OPERATORS.get(user.target) for user in node.users]
        if kind == "output" and all(r is not None and r.kind == "activation" for r in readers):
            return
        spec = self.softmax_spec if kind == "softmax" else self.activation_spec
        name = self.names.of(node, rule.label, "output")
        folded = (
            self.only_weight(node) if kind == "activation" and "output" not in self.kinds else None
        )
        if folded is not None:
            channels = -1
        self.insert(node, kind, spec, name, channels, folded)

    def only_weight(self, node: fx.Node) -> str | None:
        """Return the name of the one weight that a linear layer multiplies `node` with.

        None if something else reads `node`, or something else the weight.
        """
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if user.target in SAME_PLACES:
            return self.only_weight(user)
        if user.target is not aten.linear.default or user.args[0] is not node:
            return None
        weight: Any = user.args[1]
        return self.graph.name_of(weight) if len(weight.users) == 1 else None

    def operand(self, node: fx.Node, rule: Operator, index: int, label: str) -> None:
        """Quantize a term of a residual sum, an embedding too, unless it is quantized already."""
        value = node.args[index]
        if not isinstance(value, fx.Node) or selected_from(value) in self.results:
            return
        made = self.quantized.get((value, "product"))  # of a product that reads it, too
        if made is None:
            name = self.names.of(node, rule.label, label)
            self.insert(value, "operand", self.activation_spec, name)
            made = self.quantized[value, "operand"]
        node.update_arg(index, made)

    def input(self, node: fx.Node, rule: Operator, index: int, label: str) -> None:
        """Quantize argument `index` of `node`."""
        value = node.args[index]
        if not isinstance(value, fx.Node):
            return
        origin = source(value)
        if origin in self.results and (rule.kind == "layer_norm" or origin not in self.factored):
            return  # a quantized output
        if "output" in self.kinds:
            selected = selected_from(value)
            if selected in self.results and selected not in self.factored:
                return
        kind = rule.kind
        if origin not in self.on_images:
            if kind == "layer_norm":
                return  # a constant
            kind = "weight"
            origin = value  # its axis of output channels is meant as the operator reads it
        elif label == "weight":
            kind = "product"  # a weight that the network computes from the images
        if kind not in self.kinds:
            return
        if kind == "layer_norm":
            if (value, kind) not in self.quantized:
                name = self.names.of(node, rule.label, label)
                self.insert(value, kind, self.activation_spec, name, channels=-1)
            node.update_arg(index, self.quantized[value, kind])
            return
        if not any((origin, made) in self.quantized for made in self.product_kinds(kind)):
            if kind == "weight":
                # the axis that is not summed over
                axis = rule.weight_axis if label == "weight" else -2 if label == "left" else -1
                name = self.names.of_weight(origin, node, rule.label, label)
                spec = replace(self.weight_spec, granularity=self.weight_granularity(axis))
            else:
                name = self.names.of(node, rule.label, label)
                spec = self.activation_spec
            self.insert(origin, kind, spec, name)
        made = next(k for k in self.product_kinds(kind) if (origin, k) in self.quantized)
        node.update_arg(index, self.follow(value, origin, self.quantized[origin, made]))

    def weight_granularity(self, axis: int) -> Granularity:
        """Return the weights' granularity, per channel along `axis` unless it is another kind."""
        granularity = self.weight_spec.granularity
        return PerChannel(axis) if isinstance(granularity, PerChannel) else granularity

    @staticmethod
    def product_kinds(kind: Kind) -> tuple[Kind, ...]:
        """The kinds of quantizer that serve an input of `kind`."""
        return ("weight",) if kind == "weight" else ("softmax", "activation", "residual", "product")

    def follow(self, value: fx.Node, origin: fx.Node, quantized: fx.Node) -> fx.Node:
        """Return `value`, a view of `origin`, as the same view of `quantized`."""
        return follow(value, origin, quantized, self.copies, self.on_images)

    def insert(
        self,
        value: fx.Node,
        kind: Kind,
        spec: QuantSpec,
        name: str,
        channels: int | None = None,
        folded: str | None = None,
    ) -> None:
        """Add a quantizer behind `value`; outputs are rewired, inputs are left to the caller."""
        site = Site(kind, spec, self.factored.get(value, value).name, channels, folded)
        graph = self.graph.module.graph
        entries = {role: self.graph.add_entry(f"{name}.{role}") for role in site.roles()}
        target = _module_name(name)
        matched = kind == "weight" and self.moment_matching
        quantizer = MomentMatchedQuantizer(spec) if matched else Quantizer(spec)
        self.graph.module.add_submodule(target, quantizer)
        users = list(value.users)
        first_user = next(node for node in graph.nodes if node in value.users)
        with graph.inserting_before(first_user):
            operand = value
            if channels is not None:
                entries["factor"].meta["channels"] = channels
                operand = graph.call_function(aten.div.Tensor, (value, entries["factor"]))
            result = graph.call_module(
                target, (operand, entries["scale"], entries.get("zero_point"), entries["bits"])
            )
            if channels is not None and folded is None:
                result = graph.call_function(aten.mul.Tensor, (result, entries["factor"]))
                self.factored[result] = value
        if kind == "output" or (kind == "residual" and channels is not None):
            for user in users:
                user.replace_input_with(value, result)
        elif kind in ("softmax", "activation", "residual"):
            self.rewire(value, result, users)
        if "val" in value.meta:
            result.meta["val"] = value.meta["val"]  # its shape
        self.quantized[value, kind] = result
        self.results.add(result)
        if value in self.on_images:
            self.on_images.add(result)
        self.sites[name] = site

    def rewire(self, value: fx.Node, quantized: fx.Node, users: list[fx.Node]) -> None:
        """Let all consumers of `value` but LayerNorms with their own quantizer read `quantized`.

        A view that feeds both kinds is doubled.
        """
        for user in users:
            if user.target in VIEWS and self.reads_for_layer_norm(user):
                self.rewire(user, self.follow(user, value, quantized), list(user.users))
            elif not self.reads_for_layer_norm(user):
                user.replace_input_with(value, quantized)

    def reads_for_layer_norm(self, node: fx.Node) -> bool:
        """Whether `node` is a LayerNorm with a quantizer of its own, or a view that feeds one."""
        if node.target in VIEWS:
            return any(self.reads_for_layer_norm(user) for user in node.users)
        return node.target is aten.layer_norm.default and "layer_norm" in self.kinds


def selected_from(node: fx.Node) -> fx.Node:
    """Return the node whose values `node` rearranges, selects or multiplies by a number."""
    value: Any = node
    while value.target in VIEWS | SELECTIONS or (
        value.target is aten.mul.Tensor and not isinstance(value.args[1], fx.Node)
    ):
        value = value.args[0]
    found: fx.Node = value
    return found


def channel_axis(node: fx.Node) -> int | None:
    """Return the axis that LayerNorms over one axis read as it, counted from the last (-1).

    None if no LayerNorm reads `node` or a view of it, if they disagree, or if a view mixes axes.
    """
    axes = _channel_axes(node)
    return axes.pop() if len(axes) == 1 else None


def _channel_axes(node: fx.Node) -> set[int | None]:
    found: set[int | None] = set()
    for user in node.users:
        if user.target is aten.layer_norm.default:
            found.add(-1 if len(user.args[1]) == 1 else None)  # type: ignore[arg-type]
        elif user.target in VIEWS:
            found |= {None if a is None else axis_before(user, a) for a in _channel_axes(user)}
    return found


def axis_before(view: fx.Node, axis: int) -> int | None:
    """Return the axis that a view makes its `axis` of, both counted from the last (-1)."""
    arguments: Any = view.args
    before, after = arguments[0].meta["val"].shape, view.meta["val"].shape
    rank = len(after)
    if view.target is aten.permute.default:
        return int(arguments[1][axis]) % rank - rank
    if view.target is aten.transpose.int:
        swapped = [dim % rank - rank for dim in arguments[1:3]]
        return swapped[1 - swapped.index(axis)] if axis in swapped else axis
    if view.target in SAME_PLACES:
        return axis
    if view.target in (aten.roll.default, aten.flip.default):
        moved = [dim % rank - rank for dim in arguments[-1]]
        turned = len(arguments) == (3 if view.target is aten.roll.default else 2)
        return axis if turned and axis not in moved else None
    # otherwise rows of the last axis stay together if they stay as long
    same = isinstance(after[-1], int) and before[-1] == after[-1]
    return -1 if axis == -1 and same else None


class _Names:
    """Names of quantizers: block, layer, tensor."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.paths = Counter(module_path(node) for node in graph.nodes if node.target in OPERATORS)
        self.all_paths = {module_path(node) for node in graph.nodes}
        self.labels: dict[tuple[fx.Node, str], str] = {}
        self.used: Counter[str] = Counter()
        self.weights: set[str] = set()

    def of(self, node: fx.Node, operator: str, tensor: str) -> str:
        """Return the name of tensor `input`, `left`, `right` or `output` of `node`."""
        return f"{self.layer(node, operator)}.{tensor}"

    def of_weight(self, origin: fx.Node, node: fx.Node, operator: str, tensor: str) -> str:
        """Return the weight's own name, or one made from the layer if the weight is computed."""
        name = self.graph.name_of(source(origin))
        if name is None or name in self.weights:  # computed, or read a second time as another view
            name = base = self.of(node, operator, tensor)
            count = 0
            while name in self.weights:  # a layer that reads its weight after such a view
                count += 1
                name = f"{base}_{count}"
        self.weights.add(name)
        return name

    def layer(self, node: fx.Node, operator: str) -> str:
        """Return the module path, with the operator's name unless the module is just that."""
        key = (node, operator)
        if key not in self.labels:
            path = module_path(node)
            prefix = path + "." if path else ""
            leaf = path and not any(other.startswith(prefix) for other in self.all_paths)
            if not (leaf and self.paths[path] == 1):
                path = prefix + operator
            count = self.used[path]
            self.used[path] += 1
            self.labels[key] = f"{path}_{count}" if count else path
        return self.labels[key]


def _module_name(name: str) -> str:
    """Return the submodule that holds the quantizer `name`; apart from the model's own modules."""
    return "quantizer_" + identifier(name)
