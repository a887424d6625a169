"""Layers on codes with all that follows as one function: `kernels.cpp` makes codes from codes.

In a lowered graph a layer makes floats, and residuals, GELU, LayerNorms and quantizers read them.
All of these are bound by memory. Here a linear layer takes in what follows until values are codes
again: GELU, a residual, and quantizers, also of parts that views make of it (queries, keys and
values). A LayerNorm and attention take in their quantizer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from evolq.native import LANES
from evolq.network.graph import Graph, dependents
from evolq.network.integer_ops import decode, encode, rescale
from evolq.network.kernels import (
    attention,
    column_steps,
    layer_norm,
    linear,
    quantizer_rows,
    stored,
)
from evolq.network.operators import VIEWS, aten

# Operators that rearrange values or pick some.
PARTS = VIEWS | {operator.getitem, aten.unbind.int, aten.select.int, aten.split.Tensor}


def fuse_layers(graph: Graph) -> None:
    """Edit a lowered graph so that `kernels.cpp` computes as much of it as it can."""
    _Fusion(graph).run()


class _Encode(NamedTuple):
    """A quantizer, the part of a value that it reads, and what that is multiplied by first."""

    node: fx.Node
    part: fx.Node
    times: float


class _Quantizers(NamedTuple):
    """What quantizes a value, and nothing else reads it.

    Attributes:
        end: the value, divided by a factor of each column if there is one.
        factor: that.
        views: nodes between the value and quantizers, in running order.
        encodes: the quantizers, in the order of their columns.
        counts: how many columns each has.
    """

    end: fx.Node
    factor: fx.Node | None
    views: list[fx.Node]
    encodes: list[_Encode]
    counts: list[int]


class _Fusion:
    """The state of one walk over a lowered graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fx_graph = graph.module.graph
        self.on_images = dependents(self.fx_graph, [graph.images])
        self.made: dict[str, fx.Node] = {}
        self.first = next(
            n for n in graph.nodes if n in self.on_images and n.op not in ("placeholder", "output")
        )

    def run(self) -> None:
        # what does not depend on images goes in front, where any function may read it
        for node in list(self.graph.nodes):
            if node.op not in ("placeholder", "output") and node not in self.on_images:
                self.first.prepend(node)
        for node in list(self.graph.nodes):
            if node.target is rescale:
                self.linear(node)
            elif node.target is aten.layer_norm.default:
                self.layer_norm(node)
            elif node.target is attention:
                self.attention(node)
        self.graph.recompile()

    def linear(self, node: fx.Node) -> None:
        """Let one function compute a linear layer and what follows."""
        sums: Any
        rows: Any
        sums, rows, *constants = node.args
        codes, matrix = sums.args
        terms, columns = _columns(codes), _columns(node)
        if not terms or not columns or terms % 4 or columns % LANES:
            return
        end, with_gelu, added = node, False, None
        following = _only_user(end)
        if following is not None and _is_gelu(following):
            end, with_gelu = following, True
            following = _only_user(end)
        other = None if following is None else _other_term(following, end)
        if following is not None and other in self.on_images:
            end, added = following, self.values(other, columns)
        constants.append(rows.args[1])  # whether they are needed
        made = self.replace(
            end, linear, (codes, matrix, tuple(constants), with_gelu, added), self.quantizers(end)
        )
        self.graph.operations[made.name] = self.graph.operations.pop(sums.name)

    def layer_norm(self, node: fx.Node) -> None:
        """Let one function compute a LayerNorm and its codes."""
        value, shape, *rest = node.args
        columns = _columns(node)
        quantizers = self.quantizers(node)
        if (
            quantizers is not None
            and len(rest) >= 3
            and all(isinstance(n, fx.Node) and n not in self.on_images for n in rest[:2])
            and shape == [columns]
            and columns % LANES == 0
            and _is_float(value)
        ):
            self.replace(node, layer_norm, (self.values(value, columns), *rest[:3]), quantizers)

    def attention(self, node: fx.Node) -> None:
        """Let attention make codes."""
        quantizer = _only_user(node)
        if quantizer is not None and quantizer.target is encode:
            _, heads, _, columns = _shape(node)  # `lowering` has read them
            made = self.replace(
                node,
                attention,
                node.args,
                _Quantizers(node, None, [], [_Encode(quantizer, node, 1.0)], [heads * columns]),
            )
            self.graph.operations[made.name] = self.graph.operations.pop(node.name)

    def quantizers(self, node: fx.Node) -> _Quantizers | None:
        """Return what quantizes a value, None if anything else reads it."""
        divided: Any
        by: Any
        end, factor = node, None
        following = _only_user(node)
        if following is not None and following.target is aten.div.Tensor:
            divided, by = following.args
            if divided is node and _is_row(by):
                end, factor = following, by
        views: list[fx.Node] = []
        encodes: list[_Encode] = []

        def only_codes(value: fx.Node) -> bool:
            for user in value.users:
                if user.args[0] is not value:
                    return False
                following = _only_user(user)
                if user.target is encode:
                    encodes.append(_Encode(user, value, 1.0))
                elif _is_multiple(user) and following is not None and following.target is encode:
                    encodes.append(_Encode(following, value, user.args[1]))  # type: ignore[arg-type]
                elif user.target in PARTS:
                    views.append(user)
                    if not only_codes(user):
                        return False
                else:
                    return False
            return bool(value.users)

        if not only_codes(end):
            return None
        counted = self.count_columns(end, _shape(node), views, encodes)
        return None if counted is None else _Quantizers(end, factor, views, *counted)

    def count_columns(
        self,
        end: fx.Node,
        shape: tuple[Any, ...],
        views: list[fx.Node],
        encodes: list[_Encode],
    ) -> tuple[list[_Encode], list[int]] | None:
        """Return quantizers in the order of their columns, and how many each has.

        None where columns have several, or none. Views are followed by what they make of indices.
        """
        columns = shape[-1] if shape else 0
        if not views:
            return (encodes, [columns]) if len(encodes) == 1 else None
        if not self.starts_with_images(shape):
            return None
        found: dict[fx.Node, Any] = {end: torch.arange(columns).expand(2, *shape[1:])}
        for node in views:
            found |= dict.fromkeys(filter(self.is_count, node.all_input_nodes), 2)
            if not all(needed in found for needed in node.all_input_nodes):
                return None
            args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
            found[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        own = {encode: found[encode.part].unique() for encode in encodes}
        ordered = sorted(encodes, key=lambda encode: int(own[encode][0]))
        together = torch.cat([own[encode] for encode in ordered])
        if not torch.equal(together, torch.arange(columns)):
            return None
        return ordered, [len(own[encode]) for encode in ordered]

    def replace(
        self,
        node: fx.Node,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        quantizers: _Quantizers | None,
    ) -> fx.Node:
        """Let `function` compute a value, or its codes; its last argument are the quantizers."""
        rows = None
        if quantizers is not None:
            given = tuple((each.times, *each.node.args[1:]) for each in quantizers.encodes)
            rows = self.constant(quantizer_rows, quantizers.counts, given, quantizers.factor)
        with self.fx_graph.inserting_before(node):
            made = self.fx_graph.call_function(function, (*arguments, rows))
        made.meta = dict(node.meta)
        self.on_images.add(made)
        if quantizers is None:
            node.replace_all_uses_with(made)
            return made
        copies = {quantizers.end: made}
        for view in quantizers.views:
            with self.fx_graph.inserting_before(view):
                copies[view] = self.fx_graph.node_copy(view, lambda n: copies.get(n, n))
        for encoded, part, _ in quantizers.encodes:
            _, scale, *_, shift = encoded.args
            with self.fx_graph.inserting_before(encoded):
                codes = self.fx_graph.call_function(stored, (copies[part], scale, shift))
            codes.meta = dict(encoded.meta)
            encoded.replace_all_uses_with(codes)
        return made

    def is_count(self, node: fx.Node) -> bool:
        """Whether a node is the number of images."""
        return node.target is aten.sym_size.int and node.args == (self.graph.images, 0)

    def starts_with_images(self, shape: tuple[Any, ...]) -> bool:
        """Whether the first axis of a shape is that of images, and the others have fixed lengths.

        Rows of several images that are one axis are taken apart by views in ways unknown here.
        """
        counts = [node.meta.get("val") for node in self.graph.nodes if self.is_count(node)]
        fixed = all(isinstance(size, int) for size in shape[1:])
        return fixed and str(shape[0]) in {str(count) for count in counts}

    def values(self, node: Any, columns: int) -> Any:
        """Return a value as the functions take it: as codes where it is decoded from them."""
        decoded, factor = node, None
        if node.target is aten.mul.Tensor and _is_row(node.args[1]):
            decoded, factor = node.args
        if decoded.target is not decode:
            return node
        codes, scale, zero, shift = decoded.args
        return codes, self.constant(column_steps, columns, scale, zero, shift, factor)

    def constant(self, function: Callable[..., Any], *arguments: Any) -> fx.Node:
        """Add a node that does not depend on images."""
        key = repr((function, arguments))
        if key not in self.made:
            with self.fx_graph.inserting_before(self.first):
                self.made[key] = self.fx_graph.call_function(function, arguments)
        return self.made[key]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_gelu(node: fx.Node) -> bool:
    return node.target is aten.gelu.default and len(node.args) == 1 and not node.kwargs


def _is_multiple(node: fx.Node) -> bool:
    return node.target is aten.mul.Tensor and isinstance(node.args[1], float)


def _other_term(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """Return what a sum adds to `term`, None if it is no such sum or of another shape."""
    if node.target is not aten.add.Tensor or node.kwargs or term not in node.args:
        return None
    (other,) = [argument for argument in node.args if argument is not term] or [None]
    if not isinstance(other, fx.Node):
        return None
    shape = _shape(term)
    return other if shape and shape == _shape(other) and _is_float(other) else None


def _is_row(node: Any) -> bool:
    """Whether a node is the entry of a factor for each value along the last axis."""
    return isinstance(node, fx.Node) and node.meta.get("channels") == -1


def _is_float(node: Any) -> bool:
    """Whether a node is known to hold float32."""
    return getattr(node.meta.get("val"), "dtype", None) == torch.float32


def _shape(node: Any) -> tuple[Any, ...]:
    """Return the shape of a node, () where it is not known: of placeholders and constants."""
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _columns(node: Any) -> int:
    """Return the length of a value's last axis, 0 where it is not known."""
    shape = _shape(node)
    return shape[-1] if shape and isinstance(shape[-1], int) else 0
