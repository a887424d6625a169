"""What must hold in the graph of any quantized network, read from the graph alone."""

from torch import fx

from evolq.network.graph import dependents, source
from evolq.network.operators import OPERATORS, VIEWS
from evolq.network.quantized import QuantizedNetwork


def unquantized_inputs(network: QuantizedNetwork) -> list[str]:
    """Inputs and weights of products that no quantizer stands before."""
    found = []
    for node in network.module.graph.nodes:
        rule = OPERATORS.get(node.target)
        if rule is None or rule.kind != "product":
            continue
        for index in [*rule.inputs, *([] if rule.weight is None else [rule.weight])]:
            source = node.args[index]
            while source.target in VIEWS:
                source = source.args[0]
            if source.op != "call_module":
                found.append(f"{node}: {source}")
    return found


def unquantized_values(network: QuantizedNetwork) -> list[str]:
    """Softmax, activation and residual values, and inputs of LayerNorms, read unquantized.

    LayerNorms read values through quantizers with factors: divided before, multiplied after.
    """
    graph = network.module.graph
    on_images = dependents(graph, graph.find_nodes(op="placeholder")[-1:])
    found = []
    for node in graph.nodes:
        rule = OPERATORS.get(node.target)
        if rule is None or node not in on_images or rule.kind == "product":
            continue
        if rule.kind == "layer_norm":
            multiplied = source(node.args[0])
            if multiplied.args[0].op != "call_module":
                found.append(f"{node}: {multiplied}")
        elif rule.kind != "residual" or all(
            isinstance(term, fx.Node) and term in on_images for term in node.args[:2]
        ):
            found += [f"{node}: read by {reader}" for reader in readers(node)]
    return found


def readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read `node` or a view of it, but quantizers and the division in front of one."""
    found = []
    for user in node.users:
        if user.target in VIEWS:
            found += readers(user)
        elif user.op != "call_module" and not (
            str(user.target) == "aten.div.Tensor" and all(u.op == "call_module" for u in user.users)
        ):
            found.append(user)
    return found
