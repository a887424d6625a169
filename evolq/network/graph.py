"""Exported graphs: from a model to a pure function of its weights and images, and parts of it.

A `Graph` is an `fx` graph whose placeholders are the entries of a Point followed by the images.
Nothing here knows what a quantizer is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from evolq.errors import InputError, first_line
from evolq.network.modules import check_outputs, plain_copy
from evolq.network.operators import (
    VIEWS,
    arguments,
    aten,
    counter,
    from_matrices,
    is_random,
    layer_operator,
    multiply_accumulates,
    weight_matrices,
)
from evolq.network.records import pack, unpack
from evolq.points import entry_name


@dataclass
class Graph:
    """A model as a graph. It is edited while a network is built and left alone afterwards.

    Attributes:
        module: its placeholders are `names`, in order, then the images; it returns the logits.
        entries: placeholder of each name of a Point.
        weights: the model's own value of each entry that is one of its parameters.
        operations: multiply-accumulates per image of each node that has some, by its name.
    """

    module: fx.GraphModule
    entries: dict[str, fx.Node]
    images: fx.Node
    weights: dict[str, Tensor]
    operations: dict[str, float]

    @property
    def nodes(self) -> Iterable[fx.Node]:
        """The nodes in the order in which they run."""
        return self.module.graph.nodes

    def add_entry(self, name: str) -> fx.Node:
        """Add a placeholder for the Point's entry `name`, in front of the images."""
        with self.module.graph.inserting_before(self.images):
            node = self.module.graph.placeholder(placeholder_name(name))
        self.entries[name] = node
        return node

    def values(self, point: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
        """Return what a Point holds by the entries' nodes; names that it lacks are left out."""
        return {node: point[name] for name, node in self.entries.items() if name in point}

    def duplicate(self) -> Graph:
        """Return a graph that can be edited apart from this one; the weights are shared."""
        module = copy.deepcopy(self.module)
        nodes = {node.name: node for node in module.graph.nodes}
        entries = {name: nodes[node.name] for name, node in self.entries.items()}
        return Graph(
            module, entries, nodes[self.images.name], dict(self.weights), dict(self.operations)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle nodes as they are; shapes of the trace are left out."""
        entries = {name: node.name for name, node in self.entries.items()}
        rest = (entries, self.images.name, self.weights, self.operations)
        return _unpickled, (pack(self.module), *rest)

    def name_of(self, node: fx.Node) -> str | None:
        """Return the name of the Point's entry that `node` holds, None for any other node."""
        return next((name for name, entry in self.entries.items() if entry is node), None)

    def finish(self) -> None:
        """Drop what is not used (entries too), check the graph and compile its Python code."""
        graph = self.module.graph
        graph.eliminate_dead_code()
        for name, node in list(self.entries.items()):
            if not node.users:
                graph.erase_node(node)
                del self.entries[name]
                self.weights.pop(name, None)
        self.recompile()

    def recompile(self) -> None:
        """Drop unused nodes and modules, but no entry; check the graph and compile its code."""
        self.module.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        self.module.graph.lint()
        self.module.recompile()


def _unpickled(
    packed: tuple[Any, ...],
    entries: dict[str, str],
    images: str,
    weights: dict[str, Tensor],
    operations: dict[str, float],
) -> Graph:
    module = unpack(packed)
    nodes = {node.name: node for node in module.graph.nodes}
    found = {name: nodes[node] for name, node in entries.items()}
    return Graph(module, found, nodes[images], weights, operations)


def placeholder_name(name: str) -> str:
    """Return a Python identifier for the Point's entry `name`."""
    return "entry_" + identifier(name)


def identifier(name: str) -> str:
    """Return `name` as a part of Python identifiers, another one for every name."""
    return "".join(c if c.isalnum() else "__" if c == "_" else "_" for c in name)


def source(node: fx.Node) -> fx.Node:
    """Return the node whose values `node` only rearranges."""
    while node.target in VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def follow(
    value: fx.Node,
    origin: fx.Node,
    new: fx.Node,
    copies: dict[tuple[fx.Node, fx.Node], fx.Node],
    on_images: set[fx.Node],
) -> fx.Node:
    """Return `value`, a view of `origin`, as the same view of `new`, which stands in front of it.

    Views that were made before are found in `copies`; new ones are added there and to `on_images`.
    """
    if value is origin:
        return new
    if (value, new) not in copies:
        inner = follow(value.args[0], origin, new, copies, on_images)  # type: ignore[arg-type]
        with value.graph.inserting_before(value):
            copy = value.graph.node_copy(value)
        copy.update_arg(0, inner)
        copies[value, new] = copy
        on_images.add(copy)
    return copies[value, new]


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose code made `node` (`blocks.3.attn.qkv`), '' if none."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in plain operators, so that its two products and its softmax can be quantized."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
    if is_causal:
        attn_mask = torch.ones(
            query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
        ).tril()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.matmul(query * scale, key.transpose(-2, -1))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, float("-inf"))
        else:
            logits = logits + attn_mask
    return torch.matmul(logits.softmax(-1), value)


def export(model: nn.Module, images: Tensor) -> Graph:
    """Export `model` (a copy, in evaluation mode) for any batch size.

    Args:
        images: float (n, channels, height, width) with n >= 2, an example of what it will see.

    Raises:
        InputError: if torch.export cannot trace the model (the message names the cause), it returns
            no tensor or several, is random, or normalizes over the images of a batch.
    """
    if len(images) < 2:
        # torch.export treats a dimension of size 1 as a constant
        images = images.repeat(2, *[1] * (images.dim() - 1))
    return _as_graph(_trace(plain_copy(model), images[:2]), type(model).__name__, images[:2])


def _trace(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Trace `model` into ATen operators, attention decomposed.

    Raises:
        InputError: as `export` does.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about attributes that the model itself caches
            traced = torch.export.export(
                model,
                (images,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                strict=False,
            )
            _check_traced(traced)
            return traced.run_decompositions(
                {aten.scaled_dot_product_attention.default: scaled_dot_product_attention}
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"torch.export cannot trace {type(model).__name__}: {first_line(error)}; the model's "
            "forward must take one image tensor and be free of branches on its values"
        ) from error


def _check_traced(program: torch.export.ExportedProgram) -> None:
    """Check that a program is a function of each image, as far as operators by themselves tell.

    Raises:
        InputError: for random operators, and batch norms with statistics of the batch.
    """
    graph = program.graph
    user_inputs = program.graph_signature.user_inputs
    placeholders = graph.find_nodes(op="placeholder")
    on_images = dependents(graph, [node for node in placeholders if node.name in user_inputs])
    for node in graph.nodes:
        place = f"{node.target} in module {module_path(node)!r}"
        if is_random(node):
            raise InputError(
                f"{place} is random in evaluation mode, so that the logits are no function of the "
                "images; give nn.Dropout or training=self.training"
            )
        if (
            node.target is aten.batch_norm.default
            and arguments(node)["training"]
            and node in on_images
        ):
            raise InputError(
                f"{place} has no running statistics, so that the logits of an image depend on the "
                "others of its batch; train it with track_running_stats, or use GroupNorm"
            )


def _as_graph(program: torch.export.ExportedProgram, model: str, images: Tensor) -> Graph:
    """Turn an exported program into a Graph: parameters are entries, all else is constant.

    What forward writes to buffers or images is dropped.
    """
    signature = program.graph_signature
    logits = [
        index
        for index, spec in enumerate(signature.output_specs)
        if spec.kind is torch.export.graph_signature.OutputKind.USER_OUTPUT
        and isinstance(spec.arg, torch.export.graph_signature.TensorArgument)
    ]
    check_outputs(model, len(logits))
    constants: dict[str, Any] = {**program.state_dict, **program.constants}
    source = program.graph_module
    root = nn.Module()
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    entries: dict[str, fx.Node] = {}
    weights: dict[str, Tensor] = {}
    placeholders = [node for node in source.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        parameter = signature.inputs_to_parameters.get(node.name)
        if parameter is not None:
            name = entry_name(parameter)
            entries[name] = copies[node] = graph.placeholder(placeholder_name(name))
            weights[name] = program.state_dict[parameter].detach().clone()
    for node in placeholders:
        if node.name in signature.user_inputs:
            image_node = copies[node] = graph.placeholder("images")
            image_node.meta["image_shape"] = tuple(images.shape[1:])
    for node in placeholders:
        if node not in copies:
            key = (
                signature.inputs_to_buffers.get(node.name)
                or signature.inputs_to_lifted_tensor_constants.get(node.name)
                or node.name
            )
            root.register_buffer(f"constant_{node.name}", constants[key].detach().clone())
            copies[node] = graph.get_attr(f"constant_{node.name}")
    for node in source.graph.nodes:
        if node.op == "output":
            graph.output(copies[node.args[0][logits[0]]])
        elif node.op != "placeholder":
            if node.op == "get_attr":
                raise InputError(f"control flow ({node.target}) in the model cannot be quantized")
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.target in (aten.view.default, aten._unsafe_view.default):
                # this and `contiguous` copy where they must: a rewritten operator may store its
                # values another way
                copies[node].target = aten.reshape.default
            elif (
                node.target is aten.clone.default
                and node.kwargs.get("memory_format") is torch.contiguous_format
            ):
                copies[node].target, copies[node].kwargs = aten.contiguous.default, {}
            elif node.target is aten.squeeze.default:
                # never the axis of images, even if there is only one
                shape = node.args[0].meta["val"].shape
                axes = [axis for axis, size in enumerate(shape) if isinstance(size, int)]
                copies[node].target = aten.squeeze.dims
                copies[node].args = (copies[node.args[0]], [a for a in axes if shape[a] == 1])
    result = Graph(fx.GraphModule(root, graph), entries, image_node, weights, {})
    result.finish()
    result.operations = count_operations(result, images)
    return result


def interpret(
    module: fx.GraphModule, inputs: Iterable[Any], read: Callable[[fx.Node, Any], None]
) -> Any:
    """Run a graph node by node and return its result; `read` is called with each node and value."""

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            read(n, value)
            return value

    with torch.no_grad():
        return Reader(module).run(*inputs)


def count_operations(graph: Graph, images: Tensor) -> dict[str, float]:
    """Return the multiply-accumulates per image of each node that has some, by node name.

    Raises:
        InputError: for a product that torch does not count.
    """
    operations: dict[str, float] = {}
    counted = 0
    with counter() as flops:

        def read(node: fx.Node, value: Any) -> None:
            nonlocal counted
            before, counted = counted, flops.get_total_flops()
            count = multiply_accumulates(node, counted - before) / len(images)
            if count:
                operations[node.name] = count

        interpret(graph.module, [*graph.weights.values(), images], read)
    return operations


def fold_batch_norm(graph: Graph) -> None:
    """Fold each batch norm that directly follows a convolution or linear layer into its weights.

    Jacob et al. 2018, eq. 14: W' = W gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var +
    eps) + beta, computed in float64. Folded entries keep the layer's names.
    """
    for norm in list(graph.nodes):
        if norm.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        layer: Any
        epsilon: Any
        layer, gamma, beta, mean, variance, _, epsilon = norm.args
        operator = layer_operator(layer)
        if operator is None or operator.bias is None or len(layer.users) > 1 or layer.kwargs:
            continue
        if operator.label == "linear" and layer.meta["val"].dim() != 2:
            continue  # the norm's channels are not the layer's outputs
        statistics: tuple[Any, ...] = (gamma, beta, mean, variance)
        if any(node is not None and node.op == "call_function" for node in statistics):
            continue  # computed
        arguments: list[Any] = [*layer.args, *[None] * (operator.bias + 1 - len(layer.args))]
        weight, bias = arguments[operator.weight], arguments[operator.bias]  # type: ignore[index]
        name = graph.name_of(weight)
        if name is None or any(node is not None and len(node.users) > 1 for node in (weight, bias)):
            continue  # a computed or shared weight
        factor = _value(graph, gamma, 1.0) / (_value(graph, variance, 1.0) + epsilon).sqrt()
        shift = _value(graph, beta, 0.0)
        folded_bias = (_value(graph, bias, 0.0) - _value(graph, mean, 0.0)) * factor + shift
        if bias is None:
            bias = graph.add_entry(name.removesuffix("weight") + "bias")
        bias_name = graph.name_of(bias)
        if bias_name is None:
            continue  # a computed bias
        original = graph.weights[name]
        matrices = weight_matrices(layer, original.double())
        folded = matrices * factor.reshape(*matrices.shape[:2], 1)
        graph.weights[name] = from_matrices(layer, folded, original).to(original.dtype)
        graph.weights[bias_name] = folded_bias.to(original.dtype)
        arguments[operator.bias] = bias
        layer.args = tuple(arguments)
        for output in list(norm.users):  # the first of three; the others are of training only
            output.replace_all_uses_with(layer)
    graph.finish()


def _value(graph: Graph, node: Any, default: float) -> Tensor:
    """Return what an entry or constant holds, in float64; `default` for no node."""
    if node is None:
        return torch.tensor(default, dtype=torch.float64)
    name = graph.name_of(node)
    value = graph.module.get_buffer(node.target) if name is None else graph.weights[name]
    return value.double()


def dependents(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """Return `sources` and every node whose value depends on one of them."""
    found = set(sources)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def ancestors(
    graph: fx.Graph, nodes: Iterable[fx.Node], given: Collection[fx.Node] = ()
) -> set[fx.Node]:
    """Return `nodes` and every node that they depend on; of `given` nodes, nothing in front."""
    found = set(nodes)
    for node in reversed(graph.nodes):
        if node in found and node not in given:
            found.update(node.all_input_nodes)
    return found


@dataclass(frozen=True)
class Stage:
    """A part of a graph: `module(*inputs)` returns a tuple, the values of `outputs`."""

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    def run(self, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return the values of the outputs, given those of the inputs."""
        results = self.module(*[values[node] for node in self.inputs])
        return dict(zip(self.outputs, results, strict=True))


def extract(module: fx.GraphModule, nodes: set[fx.Node], outputs: Sequence[fx.Node]) -> Stage:
    """Cut the part `nodes` out of a graph; what it needs from elsewhere becomes its inputs."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    ordered = [node for node in module.graph.nodes if node in nodes and node.op != "output"]
    inputs: list[fx.Node] = []
    for node in ordered:
        for source in node.all_input_nodes:
            if source not in nodes and source not in copies:
                copies[source] = part.placeholder(source.name)
                inputs.append(source)
    for node in ordered:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in outputs))
    return Stage(fx.GraphModule(module, part), tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class Stages:
    """A graph cut by what each value depends on, when only some entries of a Point vary.

    `constant` depends on neither the varying entries nor the images; `prefix` on the images only;
    `per_point` on the varying entries only (weights being quantized); `suffix` on both. `share`
    is the suffix's part of all multiply-accumulates.
    """

    constant: Stage
    prefix: Stage
    per_point: Stage
    suffix: Stage
    result: fx.Node
    share: float

    @cached_property
    def cut(self) -> tuple[fx.Node, ...]:
        """What the suffix needs of the prefix, or the result, if it does not depend on entries."""
        needed = dict.fromkeys((*self.suffix.inputs, self.result))
        return tuple(node for node in needed if node in self.prefix.outputs)


def front(graph: Graph, wanted: Sequence[fx.Node]) -> tuple[Stage, Stage]:
    """Cut out what leads to nodes: the part that depends on no image, and the part that does.

    The first one's outputs are what the second one needs of it; the second one's are `wanted`.
    """
    on_images = dependents(graph.module.graph, [graph.images])
    inside = {node for node in ancestors(graph.module.graph, wanted) if node.op != "placeholder"}
    before = [
        node
        for node in graph.module.graph.nodes
        if node in inside - on_images and any(user in inside & on_images for user in node.users)
    ]
    return (
        extract(graph.module, inside - on_images, before),
        extract(graph.module, inside & on_images, wanted),
    )


def share(graph: Graph, varying: Iterable[str]) -> float:
    """Return the part of all multiply-accumulates that depends on the entries and the images."""
    fx_graph = graph.module.graph
    on_point = dependents(fx_graph, [graph.entries[name] for name in varying])
    inside = on_point & dependents(fx_graph, [graph.images])
    return part(graph, inside)


def part(graph: Graph, inside: Collection[fx.Node]) -> float:
    """Return the part of all multiply-accumulates that the nodes `inside` do."""
    names = {node.name for node in inside}
    total = sum(graph.operations.values())
    own = sum(count for name, count in graph.operations.items() if name in names)
    return own / total if total else float(bool(names))


def split(graph: Graph, varying: Iterable[str]) -> Stages:
    """Cut the graph into `Stages` for the case that only the entries `varying` change."""
    fx_graph = graph.module.graph
    on_point = dependents(fx_graph, [graph.entries[name] for name in varying])
    on_images = dependents(fx_graph, [graph.images])
    output = next(node for node in fx_graph.nodes if node.op == "output")
    (result,) = output.all_input_nodes

    def stage(of_point: bool, of_images: bool) -> Stage:
        members = {
            node
            for node in fx_graph.nodes
            if (node in on_point) == of_point
            and (node in on_images) == of_images
            and node.op not in ("placeholder", "output")
        }
        needed = [
            node
            for node in fx_graph.nodes
            if node in members and any(user not in members for user in node.users)
        ]
        return extract(graph.module, members, needed)

    return Stages(
        constant=stage(False, False),
        prefix=stage(False, True),
        per_point=stage(True, False),
        suffix=stage(True, True),
        result=result,
        share=part(graph, on_point & on_images),
    )
