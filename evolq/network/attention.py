"""Attention without quantizers as one operator: its probabilities do not go through memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from evolq.network.graph import Graph
from evolq.network.operators import aten, is_matrix_product


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return softmax(scale queries keys) values.

    Args:
        queries: (images, heads, tokens, depth).
        keys: (images, heads, depth, tokens), as the product reads them.
        values: (images, heads, tokens, columns).
        scale: of the logits.
    """
    if torch.is_grad_enabled():  # the fused operator has no second derivative
        return ((queries * scale) @ keys).softmax(-1) @ values
    return functional.scaled_dot_product_attention(queries, keys.mT, values, scale=scale)


def fuse_attention(graph: Graph) -> Graph:
    """Return the graph with `attend` for each attention in it; itself if it has none."""
    if not any(_operands(node) for node in graph.nodes):
        return graph
    graph = graph.duplicate()
    for made, products in replace_attention(graph.module.graph).items():
        graph.operations[made] = sum(graph.operations.pop(product) for product in products)
    graph.recompile()
    return graph


def replace_attention(graph: fx.Graph) -> dict[str, tuple[str, str]]:
    """Put `attend` in place of each attention; return its name and those of its products."""
    replaced = {}
    for node in list(graph.nodes):
        found = _operands(node)
        if found is None:
            continue
        logits, *operands = found
        with graph.inserting_before(node):
            made = graph.call_function(attend, tuple(operands))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        replaced[made.name] = (node.name, logits.name)
        for product in (node, node.args[0], logits, logits.args[0]):
            if not product.users:
                graph.erase_node(product)
    return replaced


def _operands(node: fx.Node) -> tuple[Any, ...] | None:
    """Return the logits, and what `attend` takes if it computes `node`, the product with values."""
    softmax: Any
    logits: Any
    queries: Any
    keys: Any
    values: Any
    if not is_matrix_product(node):
        return None
    softmax, values = node.args
    if softmax.target is not aten.softmax.int or softmax.args[1:] not in ((-1,), (3,)):
        return None
    logits = softmax.args[0]
    if not is_matrix_product(logits) or any(len(n.users) > 1 for n in (softmax, logits)):
        return None
    queries, keys = logits.args
    operands = (queries, keys, values)
    # a network from another process has no shapes: it runs as it did there
    shapes = [getattr(operand.meta.get("val"), "shape", ()) for operand in operands]
    if any(len(shape) != 4 for shape in shapes):
        return None
    if queries.target is aten.mul.Tensor and isinstance(queries.args[1], float):
        return (logits, queries.args[0], keys, values, queries.args[1])
    return (logits, *operands, 1.0)
