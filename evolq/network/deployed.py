"""A network as it is deployed: without what its quantized weights are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from evolq.network.attention import replace_attention
from evolq.network.graph import ancestors, dependents, extract
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point


def quantizer_nodes(network: QuantizedNetwork) -> dict[str, fx.Node]:
    """Return the node of each quantizer."""
    entries = network.graph.entries
    return {
        name: next(node for node in entries[f"{name}.scale"].users if node.op == "call_module")
        for name in network.sites
    }


def weight_nodes(network: QuantizedNetwork) -> dict[str, fx.Node]:
    """Return the nodes of the quantizers of weights."""
    nodes = quantizer_nodes(network)
    return {name: node for name, node in nodes.items() if network.sites[name].kind == "weight"}


def constants(network: QuantizedNetwork, point: Point) -> dict[fx.Node, Any]:
    """Return the value at `point` of every node that does not depend on the images."""
    graph = network.graph
    on_images = dependents(graph.module.graph, [graph.images])
    given = graph.values(point)
    nodes = [
        node
        for node in graph.nodes
        if node not in on_images and node not in given and node.op != "output"
    ]
    with torch.no_grad():
        return given | extract(graph.module, set(nodes), nodes).run(given)


def deployed_nodes(network: QuantizedNetwork) -> list[fx.Node]:
    """Return the nodes that run, in order, once the quantized weights are given."""
    (output,) = network.graph.module.graph.find_nodes(op="output")
    needed = ancestors(output.graph, [output], set(weight_nodes(network).values()))
    return [node for node in network.graph.nodes if node in needed]


def deployed(network: QuantizedNetwork, given: Mapping[fx.Node, Tensor]) -> fx.GraphModule:
    """Return `network` as a module from images (n, channels, height, width) to logits (n, classes).

    Args:
        network: from `quantize`.
        given: values of nodes, which become buffers: those of `weight_nodes`, and all entries of a
            Point among the `deployed_nodes`.
    """
    root, graph = nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in deployed_nodes(network):
        if node in given:
            root.register_buffer(node.name, given[node])
            copies[node] = graph.get_attr(node.name)
            continue
        target = str(node.target)
        if node.op == "call_module":
            root.add_module(target, network.module.get_submodule(target))
        elif node.op == "get_attr":
            root.register_buffer(target, network.module.get_buffer(target))
        copies[node] = graph.node_copy(node, copies.__getitem__)
    replace_attention(graph)  # as in every network that runs: with the same bits
    return fx.GraphModule(root, graph, "DeployedNetwork").eval()
