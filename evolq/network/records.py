"""Graphs as plain records, so that another process gets the same graph: pickled and unpickled.

`fx` pickles a graph as Python code and traces it anew, which renames nodes. Here each node stays
what it was; of its `meta` only the module path is kept, since shapes of traces cannot be pickled.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate, map_arg


@dataclass(frozen=True)
class _Reference:
    """A node by its name."""

    name: str


@dataclass(frozen=True)
class _OfTorch:
    """What torch has by a name and cannot pickle: `ops.aten.add.Tensor`, `contiguous_format`."""

    name: str


def pack(module: fx.GraphModule) -> tuple[Any, ...]:
    """Return what `unpack` makes the same graph from, ready to be pickled."""
    nodes = []
    attributes: dict[str, Any] = {}
    for node in module.graph.nodes:
        target: Any = node.target
        if node.op == "call_module":
            attributes[target] = module.get_submodule(target)
        elif node.op == "get_attr":
            attributes[target] = operator.attrgetter(target)(module)
        elif isinstance(target, torch._ops.OpOverload):
            target = _OfTorch(f"ops.{target}")
        arguments = map_arg((node.args, node.kwargs), _reference)
        stack = node.meta.get("nn_module_stack")
        path = stack and {key: (where, None) for key, (where, _) in stack.items()}
        nodes.append((node.op, node.name, target, _plain(arguments), path))
    return nodes, attributes


def _reference(node: fx.Node) -> Any:
    return _Reference(node.name)


def unpack(packed: tuple[Any, ...]) -> fx.GraphModule:
    """Return the graph that was packed: nodes of the same names, in the same order."""
    records, attributes = packed
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def found(value: Any) -> Any:
        if isinstance(value, _OfTorch):
            return operator.attrgetter(value.name)(torch)
        return nodes[value.name] if isinstance(value, _Reference) else value

    for op, name, target, arguments, path in records:
        target = found(target)
        args, kwargs = map_aggregate(arguments, found)
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
        if path:
            nodes[name].meta["nn_module_stack"] = path
    return fx.GraphModule(attributes, graph)


def _plain(value: Any) -> Any:
    """Return arguments without the containers of `fx`, whose pickles are versioned with torch."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        plain = [_plain(inner) for inner in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    if isinstance(value, torch.memory_format):
        return _OfTorch(str(value).removeprefix("torch."))
    return value
