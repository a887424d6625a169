"""A quantized network: the exported graph of a model, a pure function of a Point and images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from evolq.data.models import reparameterize
from evolq.data.pixels import Images, batches
from evolq.declared import check_batch_size, check_value
from evolq.errors import InputError
from evolq.network.attention import fuse_attention
from evolq.network.graph import (
    Graph,
    Stages,
    ancestors,
    export,
    extract,
    fold_batch_norm,
    front,
    interpret,
    share,
    split,
)
from evolq.network.kernels import attention, linear
from evolq.network.lowering import lower
from evolq.network.modules import check_images, logits_of, plain_copy
from evolq.network.placement import Site, place
from evolq.network.records import pack, unpack
from evolq.network.regions import fuse, recurring
from evolq.points import Point, check_entry, role
from evolq.quantization import Quantization
from evolq.tensor.quantizers import PerTensor, check_parameters

DEFAULT = Quantization()

# Images per forward pass. Logits differ in the last bits between batch sizes, so one size is used
# throughout; 50 is near the fastest on a CPU and divides the usual numbers of images.
BATCH_SIZE = 50

# Logits before and after folding, relative to the largest: rounding gives about 1e-6, more in deep
# networks, a wrong fold gives other logits altogether.
FOLDING_TOLERANCE = 1e-2

# What a partial evaluation keeps of all images. The values of images beyond it are computed again
# at every evaluation.
CUT_BYTES = 2 * 2**30


# How a network can be run, slowest first: its graph to that which does the same. `simulated` is the
# reference; `compiled` does the same operations in fewer passes; both have gradients. `integer`
# computes products on codes; what no function of `kernels.cpp` computes is compiled.
EXECUTIONS: dict[str, Callable[[Graph], Graph]] = {
    "simulated": lambda graph: graph,
    "compiled": fuse,
    "integer": lambda graph: fuse(lower(graph)),
}

# The share of a network's products in `kernels.cpp` from which integer execution is faster without
# a compiler: half of them left in floats take longer than the rest.
NATIVE_SHARE = 0.5


def fastest(network: QuantizedNetwork) -> Literal["integer", "simulated"]:
    """Return the execution, a name in `EXECUTIONS`, that is the fastest from the first pass on.

    Integer where the functions of `kernels.cpp` do most of it and nothing has to be compiled, which
    takes longer than many a scan; else simulated.
    """
    lowered = lower(network.graph)
    native = sum(
        lowered.operations.get(node.name, 0)
        for node in lowered.nodes
        if node.target in (attention, linear)
    )
    share = native / max(1, network.operations)
    return "integer" if share > NATIVE_SHARE and not recurring(lowered) else "simulated"


class QuantizedNetwork:
    """The graph of a model with a quantizer on each value that a scheme names.

    Built by `quantize`; nothing in it changes afterwards. `network(point, images)` returns logits
    (n, classes); a Point holds every name in `names`: the weights and, for each quantizer, its
    scale, zero point and bits.

    Attributes:
        weights: the model's own (full-precision, batch norm folded) weights, by name.
        sites: each quantizer by name, in the order in which they run.
        quantization: how it was built, with every rule resolved.
        execution: how it runs, a name in `EXECUTIONS`.
    """

    def __init__(
        self,
        graph: Graph,
        full_precision: fx.GraphModule,
        sites: Mapping[str, Site],
        quantization: Quantization,
        execution: str = "simulated",
        executed: Graph | None = None,
    ) -> None:
        if execution not in EXECUTIONS:
            raise InputError(
                f"unknown execution {execution!r}; choose from {', '.join(EXECUTIONS)}"
            )
        self.graph = graph
        self._executed = executed or EXECUTIONS[execution](fuse_attention(graph))
        self._full_precision = full_precision
        self._sites = dict(sites)
        self.quantization = quantization
        self.execution = execution
        self._came_pickled = executed is not None
        self._split: dict[tuple[str, ...], Stages] = {}
        self._others: dict[str, QuantizedNetwork] = {}  # this one, run another way

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the network with the graph that runs; where it is unpickled, it runs like this."""
        rest = (self._sites, self.quantization, self.execution, self._executed)
        return _unpickled, (self.graph, pack(self._full_precision), *rest)

    def executed(self, execution: str) -> QuantizedNetwork:
        """Return this network, run another way: a name in `EXECUTIONS`.

        Raises:
            InputError: for an unknown name, or a network that came from another process, unless it
                is to be simulated: shapes, which rewriting needs, stayed there.
        """
        if execution == self.execution:
            return self
        executed = self.graph if self._came_pickled and execution == "simulated" else None
        if self._came_pickled and not executed:
            raise InputError(
                f"a network from another process runs as it did there, {self.execution}; choose "
                f"{execution} before it is sent"
            )
        if execution not in self._others:
            rest = (self._sites, self.quantization, execution, executed)
            self._others[execution] = QuantizedNetwork(self.graph, self._full_precision, *rest)
        return self._others[execution]

    def with_weights(self, weights: Point) -> QuantizedNetwork:
        """Return this network with other weights of its own, by the same names."""
        graph = replace(self.graph, weights={name: weights[name] for name in self.weights})
        return QuantizedNetwork(
            graph, self._full_precision, self._sites, self.quantization, self.execution
        )

    def full_precision(self) -> QuantizedNetwork:
        """Return this network without its quantizers: scheme `none`, batch norms stay folded."""
        module = self._full_precision
        *entries, images = (node for node in module.graph.nodes if node.op == "placeholder")
        named = dict(zip(self.weights, entries, strict=True))
        graph = Graph(module, named, images, dict(self.weights), self.graph.operations)
        return QuantizedNetwork(graph, module, {}, replace(self.quantization, scheme="none"))

    @property
    def weights(self) -> Point:
        """The model's own weights, full precision, by name."""
        return MappingProxyType(self.graph.weights)

    @property
    def sites(self) -> Mapping[str, Site]:
        """Each quantizer by name, in the order in which they run."""
        return MappingProxyType(self._sites)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of a complete Point, in the graph's order."""
        return tuple(self.graph.entries)

    @property
    def module(self) -> fx.GraphModule:
        """The simulated graph: called with the Point's values by `names`, then images."""
        return self.graph.module

    @property
    def classes(self) -> int | None:
        """The number of logits; None for a network from another process."""
        (output,) = self.graph.module.graph.find_nodes(op="output")
        made = output.args[0]
        made = made[0] if isinstance(made, tuple | list) else made
        value = made.meta.get("val")
        return None if value is None else int(value.shape[-1])

    @property
    def operations(self) -> float:
        """Multiply-accumulates of one image in linear, convolution and matmul operators."""
        return sum(self.graph.operations.values())

    def share(self, names: Collection[str]) -> float:
        """Return the share of a forward pass that depends on the entries `names`.

        In multiply-accumulates: what one evaluation of `vary(names, ...)` costs. Compiled regions
        run whole, so that this can be more than in the simulated graph.
        """
        self._check_names(names)
        return share(self._executed, names)

    def __call__(self, point: Point, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of `images` (n, channels, height, width), one pass.

        Raises:
            InputError: if the Point lacks an entry, or for images of another shape or type.
        """
        check_value("point", point, Mapping)
        self.check_images(images)
        return self._executed.module(*[self._entry(point, name) for name in self.names], images)

    def check_images(self, images: Any) -> None:
        """Check that images are such as the network was made for, but for their number.

        Raises:
            InputError: for another shape or type.
        """
        check_images(images, self.graph.images.meta.get("image_shape"))

    def _check_names(self, names: Collection[str]) -> None:
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise InputError(f"{unknown[0]!r} is not an entry of this network's Points")

    def _entry(self, point: Point, name: str) -> Tensor:
        if name not in point:
            raise InputError(
                f"the Point has no entry {name!r}; start from calibrate(network, images)"
            )
        return point[name]

    def observe(self, images: Tensor, read: Callable[[str, Tensor], None]) -> Tensor:
        """Run the network without its quantizers and return its logits (n, classes).

        `read(name, value)` is called with what each quantizer would see, weights included; for a
        `layer_norm` site with the value before its power-of-two factors.
        """
        names_of: dict[str, list[str]] = {}
        for name, site in self.sites.items():
            names_of.setdefault(site.value, []).append(name)

        def pass_on(node: fx.Node, value: Any) -> None:
            for name in names_of.get(node.name, ()):
                read(name, value)

        logits: Tensor = interpret(self._full_precision, [*self.weights.values(), images], pass_on)
        return logits

    def record(
        self, nodes: Collection[str], images: Tensor, point: Point | None = None
    ) -> dict[str, Any]:
        """Return the values of graph nodes, by name, for one batch of images; it runs no further.

        Args:
            nodes: names of nodes of `module`'s graph.
            images: (n, channels, height, width).
            point: complete; None for the full-precision network, which has no quantizers.

        Raises:
            InputError: if the Point lacks an entry.
        """
        if point is None:
            module, entries = self._full_precision, list(self.weights.values())
        else:
            module, entries = self.module, [self._entry(point, name) for name in self.names]
        placeholders = module.graph.find_nodes(op="placeholder")
        wanted = [node for node in module.graph.nodes if node.name in nodes]
        given = dict(zip(placeholders, [*entries, images], strict=True))
        missing = ancestors(module.graph, wanted) - given.keys()
        with torch.no_grad():
            made = given | extract(module, missing, [n for n in wanted if n in missing]).run(given)
        return {node.name: made[node] for node in wanted}

    def check(self, point: Point) -> None:
        """Check a whole Point that comes from outside, once.

        Raises:
            InputError: for missing or unknown names, wrong shapes or types, scales that are not
                positive, values that are not finite, bits outside 2 to 8.
        """
        check_value("point", point, Mapping)
        unknown = sorted(set(point) - set(self.names))
        if unknown:
            raise InputError(
                f"the Point has {len(unknown)} entries that the network lacks, {unknown[0]!r} for "
                "one; it belongs to another model or scheme"
            )
        for name in self.names:
            value = self._entry(point, name)
            check_entry(name, value)
            if name in self.weights and value.shape != self.weights[name].shape:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)} in the Point and "
                    f"{tuple(self.weights[name].shape)} in the network"
                )
            if role(name) == "weight" and not bool(torch.isfinite(value).all()):
                raise InputError(f"{name} holds values that are not finite")
        shapes = self._parameter_shapes(point)
        for name, site in self.sites.items():
            check_parameters(
                name,
                point[f"{name}.scale"],
                point.get(f"{name}.zero_point"),
                point[f"{name}.bits"],
                site.spec,
                shapes.get(name, ()),
            )
            factor, zero_point = point.get(f"{name}.factor"), point.get(f"{name}.zero_point")
            known = [tuple(e.shape) for e in (point[f"{name}.scale"], factor) if e is not None]
            if zero_point is not None and tuple(zero_point.shape) not in known:
                raise InputError(
                    f"{name}.zero_point has shape {tuple(zero_point.shape)}; give {known[0]}"
                )
            if factor is not None and not bool((torch.isfinite(factor) & (factor > 0)).all()):
                raise InputError(f"{name}.factor must be positive and finite")

    def _parameter_shapes(self, point: Point) -> dict[str, tuple[int, ...] | None]:
        """Return the shape of scale and zero point of each quantizer that has not one scale.

        None where it depends on the value's shape.
        """
        shapes: dict[str, tuple[int, ...] | None] = {}
        for name, site in self.sites.items():
            if isinstance(site.spec.granularity, PerTensor):
                continue
            weight = point.get(name)
            shapes[name] = (
                None
                if weight is None
                else tuple(site.spec.granularity.parameter_shape(tuple(weight.shape)))
            )
        return shapes

    def vary(
        self, names: Collection[str], at: Point, images: Images, batch_size: int = BATCH_SIZE
    ) -> PartialEvaluation:
        """Return a function of the entries `names` alone; the others stay as they are in `at`.

        Everything that does not depend on `names` is computed now, once, and only the values on the
        cut are kept, for as many images as fit in `CUT_BYTES`. Without gradients, results equal the
        full evaluation's bit for bit.

        Args:
            names: entries that will vary.
            at: a complete Point.
            images: (n, channels, height, width), fixed from now on.
            batch_size: images per pass.

        Raises:
            InputError: for a name that the network lacks, or no images.
        """
        function = self._partial(names, at, images, batch_size)
        room = CUT_BYTES
        with torch.no_grad():
            for index in range(function.batches):
                kept = function.cut(index)
                room -= _bytes(kept)
                if room < 0:
                    break
                function.cuts.append(kept)
        return function

    def vary_in_turn(
        self,
        turns: Sequence[Collection[str]],
        at: Point,
        images: Images,
        batch_size: int = BATCH_SIZE,
    ) -> list[Callable[[Point], PartialEvaluation]]:
        """Return functions of a Point that return `vary(turn, point, images)`, one for each turn.

        A function may be called when only entries of the turns in front of it have changed since
        `at`. What no turn in front of it changes was then computed here, for all turns in one pass
        over the images: that pays where blocks are visited from the last to the first. It is
        computed in each turn, as by `vary`, if all of it takes more than `CUT_BYTES`.

        Args:
            turns: the entries of each.
            at: a complete Point.
            images: (n, channels, height, width), fixed from now on.
            batch_size: images per pass.

        Raises:
            InputError: for a name that the network lacks, or no images.
        """
        graph = self._executed
        fx_graph = graph.module.graph
        wanted: list[tuple[fx.Node, ...]] = []
        changed: set[fx.Node] = set()
        for names in turns:
            self._check_names(names)
            needed = self._stages(names).cut
            wanted.append(() if changed & ancestors(fx_graph, needed) else needed)
            changed |= {graph.entries[name] for name in names}
        together = tuple(dict.fromkeys(node for needed in wanted for node in needed))
        cuts = self._cuts(together, at, images, batch_size) if together else []

        def turn(
            names: Collection[str], cuts: list[dict[fx.Node, Any]], point: Point
        ) -> PartialEvaluation:
            if not cuts:
                return self.vary(names, point, images, batch_size)
            function = self._partial(names, point, images, batch_size)
            function.cuts.extend(cuts)
            return function

        # each turn holds its own values alone: those of a turn that is over go with it
        own = [
            [{node: each[node] for node in needed} for each in cuts] if needed else []
            for needed in wanted
        ]
        return [partial(turn, names, each) for names, each in zip(turns, own, strict=True)]

    def _cuts(
        self, wanted: Sequence[fx.Node], at: Point, images: Images, batch_size: int
    ) -> list[dict[fx.Node, Any]]:
        """Return the values of nodes for each batch; nothing if they take too much memory."""
        self.check_images(images)
        check_batch_size(batch_size)
        constant, before = front(self._executed, wanted)
        entries = {self._executed.entries[name]: self._entry(at, name) for name in self.names}
        cuts: list[dict[fx.Node, Any]] = []
        with torch.no_grad():
            values = entries | constant.run(entries)
            for batch in batches(images, batch_size):
                cuts.append(before.run(values | {self._executed.images: batch}))
                if _bytes(cuts[0]) * math.ceil(len(images) / batch_size) > CUT_BYTES:
                    return []
        return cuts

    def _partial(
        self, names: Collection[str], at: Point, images: Images, batch_size: int
    ) -> PartialEvaluation:
        """Return a function of the entries `names` that keeps no values yet."""
        self._check_names(names)
        self.check_images(images)
        check_batch_size(batch_size)
        graph = self._executed
        stages = self._stages(names)
        values: dict[fx.Node, Any] = {
            graph.entries[name]: self._entry(at, name) for name in self.names if name not in names
        }
        with torch.no_grad():
            values.update(stages.constant.run(values))
        entries = {name: graph.entries[name] for name in names}
        return PartialEvaluation(stages, entries, at, values, graph.images, images, batch_size, [])

    def _stages(self, names: Collection[str]) -> Stages:
        """Return the graph, cut for entries that vary; the same ones come again and again."""
        varying = tuple(name for name in self.names if name in set(names))
        if varying not in self._split:
            self._split[varying] = split(self._executed, varying)
        return self._split[varying]


def _bytes(values: Mapping[fx.Node, Any]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))


def _unpickled(
    graph: Graph,
    full_precision: tuple[Any, ...],
    sites: Mapping[str, Site],
    quantization: Quantization,
    execution: str,
    executed: Graph,
) -> QuantizedNetwork:
    module = unpack(full_precision)
    return QuantizedNetwork(graph, module, sites, quantization, execution, executed)


@dataclass(frozen=True)
class PartialEvaluation:
    """A network as a function of some entries of a Point on fixed images; made by `vary`.

    Attributes:
        stages: the graph, cut by what depends on the entries.
        entries: node of each varying entry.
        at: the Point that the others are of.
        constants: values that depend on neither these entries nor images.
        image_node: what holds the images.
        images: (n, channels, height, width).
        batch_size: images per pass.
        cuts: what the suffix needs of each batch; only of the first ones if memory is short.
    """

    stages: Stages
    entries: Mapping[str, fx.Node]
    at: Point
    constants: Mapping[fx.Node, Any]
    image_node: fx.Node
    images: Images
    batch_size: int
    cuts: list[dict[fx.Node, Any]]

    @property
    def batches(self) -> int:
        """How many batches of images there are."""
        return math.ceil(len(self.images) / self.batch_size)

    @property
    def share(self) -> float:
        """Multiply-accumulates of one evaluation, as a share of a whole forward pass."""
        kept = min(len(self.cuts) * self.batch_size, len(self.images))
        again = 1 - kept / len(self.images)
        return self.stages.share + (1 - self.stages.share) * again

    def cut(self, index: int) -> dict[fx.Node, Any]:
        """Return what the suffix needs of batch `index` but the images; runs all in front of it."""
        made = self.stages.prefix.run({**self.constants, **self._images(index)})
        return {node: made[node] for node in self.stages.cut}

    def _images(self, index: int) -> dict[fx.Node, Tensor]:
        first = index * self.batch_size
        return {self.image_node: self.images[first : first + self.batch_size]}

    def prepare(self, point: Point) -> dict[fx.Node, Any]:
        """Return what is the same for all images: quantized weights and the like."""
        check_value("point", point, Mapping)
        values = dict(self.constants)
        for name, node in self.entries.items():
            if name not in point:
                raise InputError(f"the Point has no entry {name!r}, which was to vary")
            values[node] = point[name]
        values.update(self.stages.per_point.run(values))
        return values

    def batch(self, prepared: Mapping[fx.Node, Any], index: int) -> Tensor:
        """Return the logits of batch `index` of the images, given what `prepare` returned."""
        if index < len(self.cuts):
            cut = self.cuts[index]
        else:
            with torch.no_grad():
                cut = self.cut(index)
        values = {**prepared, **cut}
        if self.stages.result in values:  # the logits do not depend on the entries
            return values[self.stages.result]
        if self.image_node in self.stages.suffix.inputs:
            values |= self._images(index)
        return self.stages.suffix.run(values)[self.stages.result]

    def __call__(self, point: Point) -> Tensor:
        """Return the logits (n, classes) of all images; differentiable in the Point's entries."""
        prepared = self.prepare(point)
        return torch.cat([self.batch(prepared, index) for index in range(self.batches)])


def quantize(
    model: nn.Module, images: Images, quantization: Quantization = DEFAULT
) -> QuantizedNetwork:
    """Export `model`, fold its batch norms and put a quantizer on each value that a scheme names.

    Scheme `none` puts none and folds nothing: the plain network as a function of its weights.

    Args:
        model: any module from an image tensor to logits; it is not changed.
        images: (n, channels, height, width), an example of what it will see.
        quantization: scheme, bits and everything else that decides how the network is built.

    Raises:
        InputError: for a model that cannot be exported, is random or not in float32, holds an
            operator that cannot be quantized (named with its module), gives other logits once its
            batch norms are folded, or logits that depend on what else is in the batch.
    """
    check_value("quantization", quantization, Quantization)
    check_images(images)
    plain = plain_copy(model)
    wanted = logits_of(plain, images[:2])
    merged = reparameterize(plain)
    if _agree(logits_of(merged, images[:2]), wanted):
        plain = merged  # else a method of that name means something else
    network = quantize_graph(export(plain, images[:2]), quantization)
    _check_logits(network, type(plain).__name__, wanted, images[:2])
    return network


def quantize_graph(graph: Graph, quantization: Quantization) -> QuantizedNetwork:
    """Do to an exported graph what `quantize` does to a model; the graph is edited."""
    resolved = quantization.resolved()
    if resolved.scheme != "none":
        fold_batch_norm(graph)
    full_precision = copy.deepcopy(graph.module)
    return QuantizedNetwork(graph, full_precision, place(graph, resolved), resolved)


def _agree(logits: Tensor, wanted: Tensor) -> bool:
    """Whether logits differ by no more than float32 rounding explains."""
    if logits.shape != wanted.shape:
        return False
    return bool((logits - wanted).abs().max() <= FOLDING_TOLERANCE * (1 + wanted.abs().max()))


def _check_logits(network: QuantizedNetwork, model: str, wanted: Tensor, images: Tensor) -> None:
    """Compare the unquantized network with the model: a wrong one must not look like a right one.

    Raises:
        InputError: if its logits are others, for the images together or for the first one alone.
    """

    def observed(images: Tensor) -> Tensor:
        return network.observe(images, lambda name, value: None)

    logits = observed(images)
    if not _agree(logits, wanted):
        difference = (
            f"by up to {float((logits - wanted).abs().max()):.2g}"
            if logits.shape == wanted.shape
            else f"from shape {tuple(wanted.shape)} to {tuple(logits.shape)}"
        )
        raise InputError(
            f"folding the batch norms of {model} changed its logits {difference}; quantize it "
            "without them, or with scheme none"
        )
    if not _agree(observed(images[:1]), logits[:1]):
        raise InputError(
            f"the logits that {model} gives an image depend on the other images of its batch; "
            "wanted a function of each image alone"
        )
