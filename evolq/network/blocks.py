"""Blocks: the parts of a network that are searched one after the other, found from its graph."""

from __future__ import annotations

from evolq.errors import InputError
from evolq.network.graph import dependents, module_path
from evolq.network.operators import is_matrix_product
from evolq.network.quantized import QuantizedNetwork


def find_blocks(network: QuantizedNetwork) -> dict[str, tuple[str, ...]]:
    """Return the names of all quantizers' entries by block, both in the order in which they run.

    A block is an attention module with everything in it; else the module that a weight's layer
    belongs to, together with such modules inside it: an MLP (`blocks.3.mlp`), a residual block with
    its shortcut (`layer2.0`), a patch embedding. A layer at the top (`head`) is a block of its own.

    Raises:
        InputError: if the network has no quantizers.
    """
    if not network.sites:
        raise InputError(
            f"scheme {network.quantization.scheme!r} quantizes nothing, so there is nothing to "
            "search; use weights, linear or full"
        )
    attention = attention_modules(network)
    layers = {name: name.rpartition(".")[0] for name in network.sites}
    homes = {
        _parent(layers[name]) or layers[name]
        for name, site in network.sites.items()
        if site.kind == "weight" and _innermost(layers[name], attention) is None
    }
    outermost = {home for home in homes if _parent(home) not in homes}
    known = attention | outermost
    found: dict[str, list[str]] = {}
    for name, site in network.sites.items():
        layer = layers[name]
        block = _innermost(layer, known) or _parent(layer) or layer
        found.setdefault(block, []).extend(f"{name}.{role}" for role in site.roles())
    return {block: tuple(entries) for block, entries in found.items()}


def attention_modules(network: QuantizedNetwork) -> frozenset[str]:
    """Return the paths of the modules that multiply two activations (`blocks.3.attn`)."""
    graph = network.graph
    on_images = dependents(graph.module.graph, [graph.images])
    paths = {
        module_path(node)
        for node in graph.nodes
        if is_matrix_product(node) and all(a in on_images for a in node.all_input_nodes)
    }
    return frozenset(paths - {""})


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _innermost(path: str, modules: frozenset[str] | set[str]) -> str | None:
    """Return the longest of `modules` that `path` is or lies in."""
    while path and path not in modules:
        path = _parent(path)
    return path or None
