"""Compiled execution: everything between two products becomes one compiled function.

Elementwise passes over activations are bound by memory; `torch.compile` makes one pass of many.
What lies between products repeats from block to block, so that equal regions share one function: a
deep network compiles as few of them as a shallow one. Entries of a Point are inputs of regions, so
that nothing compiles anew from point to point.
"""

from __future__ import annotations

import operator
import warnings
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from evolq.errors import first_line
from evolq.network.attention import attend
from evolq.network.fusion import PARTS
from evolq.network.graph import Graph, dependents, source
from evolq.network.integer_ops import decode, integer_product, row_sums
from evolq.network.kernels import attention, layer_norm, linear, stored
from evolq.network.operators import aten, is_matrix_product, is_product
from evolq.network.records import pack, unpack

# What multiplies beside PyTorch's operators, and what else stands between products and regions: the
# functions of `kernels.cpp`, and the codes that they make.
PRODUCTS = (attend, integer_product, row_sums, attention, layer_norm, linear, stored)


class Region(nn.Module):
    """A compiled function as a node of a graph; several nodes may share it."""

    def __init__(self, part: fx.GraphModule) -> None:
        """Compile `part`, when it is first called."""
        super().__init__()
        self.part = part
        self.compiled = torch.compile(part)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what is compiled; it is compiled anew where it is unpickled."""
        return _unpickled, (pack(self.part),)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the values that leave the region."""
        return self.compiled(*values)


def _unpickled(packed: tuple[Any, ...]) -> Region:
    return Region(unpack(packed))


@cache
def compiler_works() -> bool:
    """Whether `torch.compile` works here; if it does not, a warning says why."""
    try:
        torch.compile(lambda value: value + 1)(torch.zeros(16))
    except Exception as error:  # of whatever the compiler's backends raise
        warnings.warn(
            f"torch.compile does not work here ({first_line(error)}); running without it gives the "
            "same results, more slowly",
            stacklevel=2,
        )
        return False
    return True


def arrange(graph: Graph) -> Graph:
    """Return the graph with less work in its products and more between them, where it is free.

    Biases of linear layers are added after the product, which otherwise begins by copying them into
    all rows of its result. The operands of products of two activations are stored as the product
    reads them, which otherwise copies them. Sums are rounded in another order.
    """
    graph = graph.duplicate()
    fx_graph = graph.module.graph
    on_images = dependents(fx_graph, [graph.images])
    for node in list(fx_graph.nodes):
        if node.target is aten.linear.default and len(node.args) > 2 and node in on_images:
            value, weight, bias = node.args
            node.args = (value, weight)
            with fx_graph.inserting_after(node):
                biased = fx_graph.call_function(aten.add.Tensor, (node, bias))
            _pass_on(node, biased)
    for origin in dict.fromkeys(
        source(operand)
        for node in fx_graph.nodes
        if is_matrix_product(node)
        for operand in node.all_input_nodes
        if operand in on_images
    ):
        with fx_graph.inserting_after(origin):
            stored = fx_graph.call_function(aten.contiguous.default, (origin,))
        _pass_on(origin, stored)
    graph.recompile()
    return graph


def _pass_on(node: fx.Node, made: fx.Node) -> None:
    """Let all but `made` itself, a function of `node` with its shape, read `made` instead."""
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, lambda user: user is not made)


def fuse(graph: Graph) -> Graph:
    """Return a graph of products and compiled regions, a function of the same entries and images.

    The graph itself is returned where no two regions are equal, as compiling takes longer than it
    saves, and, with a warning, without a working compiler.
    """
    arranged = arrange(graph)
    parts = _parts(arranged)
    return _fuse(arranged, parts) if _recur(parts) and compiler_works() else graph


def recurring(graph: Graph) -> bool:
    """Whether any two regions of a graph are equal, so that it is worth compiling."""
    return _recur(_parts(arrange(graph)))


class _Part(NamedTuple):
    """A region as a module, and a text that equals that of regions which compute the same."""

    members: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    module: fx.GraphModule
    key: str


def _fuse(graph: Graph, parts: list[_Part]) -> Graph:
    region_of = {node: index for index, part in enumerate(parts) for node in part.members}
    compiled: dict[str, Region] = {}
    root, fused = nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    done: set[int] = set()

    def copy(node: fx.Node) -> None:
        """Copy a node, or its whole region, after all that it needs."""
        index = region_of.get(node)
        if index is None:
            for needed in node.all_input_nodes:
                if needed not in copies:
                    copy(needed)
            copies[node] = fused.node_copy(node, copies.__getitem__)
            if node.op == "call_module":
                root.add_module(str(node.target), graph.module.get_submodule(str(node.target)))
            elif node.op == "get_attr":
                root.register_buffer(str(node.target), graph.module.get_buffer(str(node.target)))
            return
        if index in done:
            return
        done.add(index)
        _, inputs, outputs, module, key = parts[index]
        for needed in inputs:
            if needed not in copies:
                copy(needed)
        if key not in compiled:
            compiled[key] = Region(module)
        root.add_module(f"region_{index}", compiled[key])
        call = fused.call_module(f"region_{index}", tuple(copies[node] for node in inputs))
        for position, output in enumerate(outputs):
            copies[output] = fused.call_function(operator.getitem, (call, position))
            copies[output].meta = dict(output.meta)

    for node in graph.nodes:
        if node.op == "placeholder":
            copy(node)  # all entries, in the order of the Point
    for node in graph.nodes:
        if node not in copies:
            copy(node)
    names = {node.name: copies[node].name for node in graph.nodes if node.name in graph.operations}
    return Graph(
        fx.GraphModule(root, fused),
        {name: copies[node] for name, node in graph.entries.items()},
        copies[graph.images],
        dict(graph.weights),
        {names[name]: count for name, count in graph.operations.items()},
    )


def regions(graph: Graph) -> list[list[fx.Node]]:
    """Return the nodes between products, connected ones together, each list in running order.

    A node's level is the number of products in front of it. Regions do not reach over levels, so
    that no path leaves one and comes back.
    """
    on_images = dependents(graph.module.graph, [graph.images])
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((level[n] for n in node.all_input_nodes if n in on_images), default=0)
        level[node] = before + multiplies(node)
    for node in graph.nodes:
        if node.target is decode and node.users:
            # codes are smaller than values: dequantize where the value is read
            level[node] = max(level[node], min(level[user] for user in node.users))
    group: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node not in on_images or not _fits(node):
            continue
        group[node] = [node]
        for needed in node.all_input_nodes:
            if (
                needed in group
                and level[needed] == level[node]
                and group[needed] is not group[node]
            ):
                joined = [*group[needed], *group[node]]
                group.update(dict.fromkeys(joined, joined))
    order = {node: index for index, node in enumerate(graph.nodes)}
    distinct = {id(nodes): nodes for nodes in group.values()}
    return [
        sorted(nodes, key=order.__getitem__)
        for nodes in distinct.values()
        if any(node.target not in PARTS for node in nodes)  # else nothing is computed
    ]


def multiplies(node: fx.Node) -> bool:
    """Whether a node is a product, of values or of codes."""
    return is_product(node) or node.target in PRODUCTS


def _fits(node: fx.Node) -> bool:
    """Whether a node is elementwise in the widest sense: tensors in and out, and no product."""
    value = node.meta.get("val")
    return (
        node.op in ("call_function", "call_module")
        and not multiplies(node)
        and (value is None or isinstance(value, Tensor | list | tuple))
    )


def _parts(graph: Graph) -> list[_Part]:
    return [_part(graph.module, members) for members in regions(graph)]


def _recur(parts: list[_Part]) -> bool:
    return len({part.key for part in parts}) < len(parts)


def _part(module: fx.GraphModule, members: list[fx.Node]) -> _Part:
    """Describe a region. Names are numbers, so that equal regions have equal code."""
    inside = set(members)
    inputs = list(dict.fromkeys(n for m in members for n in m.all_input_nodes if n not in inside))
    outputs = [m for m in members if any(user not in inside for user in m.users)]
    part, root = fx.Graph(), nn.Module()
    copies = {node: part.placeholder(f"input_{index}") for index, node in enumerate(inputs)}
    constants = []
    for index, node in enumerate(members):
        copies[node] = part.node_copy(node, copies.__getitem__)
        copies[node]._rename(f"value_{index}")
        if node.op == "call_module":
            submodule = module.get_submodule(str(node.target))
            copies[node].target = f"module_{index}"
            root.add_module(f"module_{index}", submodule)
            constants.append(repr(submodule))
    part.output(tuple(copies[node] for node in outputs))
    result = fx.GraphModule(root, part)
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in inputs]
    key = "\n".join([result.code, *constants, str(shapes)])
    return _Part(members, inputs, outputs, result, key)
