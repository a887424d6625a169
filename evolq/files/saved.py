"""Quantized networks as files: integer codes in safetensors, and back.

A file holds what the deployed network needs: the weights' codes, bit-packed; scales, zero points
and bits; the parameters that are not quantized; and, as JSON, how the network was built. It does
not hold the full-precision weights: whoever wants the Point back (`load_point`) brings them, and
the file knows their hash. Where codes are not the nearest ones to these weights, as GPTQ and
AdaRound choose them, the codes decide: the Point's weights are moved into their cells again.

Tensors have the names that they have in a Point. In place of a quantized weight stand `NAME.codes`
and, with moment matching, `NAME.moments`; `constant_*` are buffers of the model. A tensor whose
values are all small whole numbers is stored as integers.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from evolq.atomic import write_whole
from evolq.data.models import untrained, weights_hash
from evolq.data.weights import FLOATS, INTEGERS
from evolq.declared import check_fields, check_value
from evolq.errors import InputError
from evolq.files.checksum import checksum
from evolq.files.codes import IntegerWeight, integer_weights, pack, unpack
from evolq.network.deployed import deployed, deployed_nodes, weight_nodes
from evolq.network.layer_norms import folded_like
from evolq.network.layers import grid_of, move_into_cells
from evolq.network.modules import check_model
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.quantization import Quantization
from evolq.tensor.quantizers import (
    QuantSpec,
)

FORMAT, FORMAT_1 = "evolq quantized network 2", "evolq quantized network 1"

# Far above any network's; of a weight in values.
MOST_CLASSES, LARGEST_SIDE, LARGEST_WEIGHT = 10**6, 2**16, 2**31

# Of a row's mean and deviation, in deviations: float32 rounding of sums over a row.
MOMENT_ERROR = 1e-5

# What a saved Point says itself, whatever its network started from.
POINTS_OWN = {
    *("weight_bits", "activation_bits"),
    *("weight_observer", "activation_observer", "rounding"),
}


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        model: name of the architecture (see `models.load_model`), None if it has none.
        classes: number of logits.
        image_shape: (channels, height, width).
        quantization: how the network was built.
        weight_shapes: shape of each quantized weight.
        weights_hash: `models.weights_hash` of the full-precision model, None if the Point's weights
            had moved away from it in another way than by rounding.
        provenance: what the caller gave.
    """

    model: str | None
    classes: int
    image_shape: tuple[int, ...]
    quantization: Quantization
    weight_shapes: dict[str, tuple[int, ...]]
    weights_hash: str | None
    provenance: dict[str, Any]

    def to_json(self, tensors: Mapping[str, Tensor]) -> str:
        """Return JSON, with equal text for equal headers and tensors, and a checksum over both."""
        content = asdict(self) | {"format": FORMAT}
        return json.dumps(content | {"checksum": checksum(content, tensors)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor]) -> Header:
        """Return the header that `to_json` wrote. Files of format 1 have no checksum.

        Raises:
            ValueError, KeyError, TypeError or AttributeError: if it is none.
            InputError: if header or tensors are not those that were written, or absurd.
        """
        content = json.loads(text)
        written = content.pop("checksum", None)
        if content["format"] == FORMAT:
            if written != checksum(content, tensors):
                raise InputError("its checksum does not fit its content")
            content["quantization"] = Quantization(**_now(content["quantization"]))
        elif content["format"] == FORMAT_1:
            warnings.warn(
                "a file of format 1 has no checksum; save the network again", stacklevel=4
            )
            content["quantization"] = _quantization_1(**content["quantization"])
        else:
            raise ValueError("another format")
        del content["format"]
        content["image_shape"] = tuple(content["image_shape"])
        content["weight_shapes"] = {k: tuple(v) for k, v in content["weight_shapes"].items()}
        return cls(**content)

    def __post_init__(self) -> None:
        """Check types and sizes: what is absurd would be made before it is compared."""
        check_fields(self, classes=(1, MOST_CLASSES), image_shape=(1, LARGEST_SIDE))
        for name, shape in self.weight_shapes.items():
            check_value(f"shape of {name}", shape, tuple[int, ...], (1, LARGEST_WEIGHT))
        if len(self.image_shape) != 3 or math.prod(self.image_shape) > LARGEST_WEIGHT:
            raise InputError(f"`image_shape` is {self.image_shape}; give channels, height, width")


def _now(quantization: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a quantization, those of a file from before LayerNorms were folded, too.

    Attention maps had codes of their own in schemes full and published only.
    """
    if "fold_layer_norms" in quantization:
        return quantization
    uniform = {"softmax": "uniform"} if quantization["scheme"] == "linear" else {}
    return quantization | uniform | {"fold_layer_norms": False}


def _quantization_1(
    scheme: Any,
    weight_spec: dict[str, Any] | None,
    activation_spec: dict[str, Any] | None,
    moment_matching: bool,
    integers_in_layer_norm: bool,
) -> Quantization:
    """Return how the network in a file of format 1 was built; observers are not recorded there."""
    found: dict[str, Any] = {}
    for kind, spec in (("weight", weight_spec), ("activation", activation_spec)):
        if spec is None:
            continue
        found |= {f"{kind}_bits": spec["bits"], f"{kind}_symmetric": spec["symmetric"]}
        name, arguments = spec["granularity"]
        if kind == "weight":
            found["weight_granularity"] = name.removeprefix("Per").lower()
            found |= {"group_size": arguments["size"]} if "size" in arguments else {}
        if spec["kind"] != "uniform" or spec["signed"] != spec["symmetric"]:
            raise InputError(f"its {kind} quantizers, {spec}, are of a kind that is gone")
    return Quantization(
        scheme=scheme,
        moment_matching=moment_matching,
        integer_layer_norm=integers_in_layer_norm,
        softmax="uniform" if scheme == "linear" else "log2",
        fold_layer_norms=False,
        **found,
    )


def save(
    network: QuantizedNetwork,
    point: Point,
    path: str | Path,
    model: nn.Module,
    images: Tensor,
    model_name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write `network` at `point` to a safetensors file: whole, or not at all.

    Args:
        network: from `quantize`.
        point: a complete Point, float32.
        path: the file; one that exists is replaced.
        model: the full-precision model that the network was made from; its hash is recorded.
        images: (n, channels, height, width), an example of what the network sees; only the shape is
            recorded.
        model_name: the name under which `models.untrained` knows the architecture. Without it,
            `load` needs the module.
        provenance: whatever else is worth knowing; goes through JSON.

    Raises:
        InputError: for a Point that does not belong to the network or is not float32, or a file
            that cannot be written.
    """
    check_value("network", network, QuantizedNetwork)
    network.check(point)
    network.check_images(images)
    check_model(model)
    weights = integer_weights(network, point)
    entries, buffers = _kept(network)
    tensors = {name: point[name] for name in entries}
    tensors |= {name: network.module.get_buffer(name) for name in buffers}
    tensors = {name: _smallest(value) for name, value in tensors.items()}
    for name, weight in weights.items():
        tensors[f"{name}.codes"] = pack(weight.codes, weight.bits)
        if weight.moments is not None:
            tensors[f"{name}.moments"] = weight.moments
    with torch.no_grad():
        classes = network(point, images[:1]).shape[-1]
    restored = _restored(
        network,
        {name: point[name] for name in entries},
        {name: weight.codes for name, weight in weights.items()},
    )
    known = all(
        _equal_to(value, restored[name], weights.get(name))
        for name, value in point.items()
        if name not in entries
    )
    header = Header(
        model=model_name,
        classes=classes,
        image_shape=tuple(images.shape[1:]),
        quantization=network.quantization,
        weight_shapes={name: tuple(weight.codes.shape) for name, weight in weights.items()},
        weights_hash=weights_hash(model) if known else None,
        provenance=dict(provenance or {}),
    )
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    try:
        text = header.to_json(tensors)
    except (TypeError, ValueError) as error:
        raise InputError(f"`provenance` cannot be written as JSON: {error}") from error
    write_whole(path, to_bytes(tensors, {"evolq": text}))


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the deployed network: a module from images (n, channels, height, width) to logits.

    Its predictions equal those of the saved network at the saved Point bit for bit. Weights are
    what their codes stand for; activations are quantized as they pass.

    Args:
        path: a file that `save` wrote.
        model: the architecture with any weights, on the CPU; needed if the file names none.

    Raises:
        InputError: if the file cannot be read or is not from `save`, if it names no architecture
            and none is given, or if the architecture is another one.
    """
    header, tensors = read(path)
    if model is None:
        if header.model is None:
            raise InputError(
                f"{path} names no architecture; load(path, model) with the module it was made from"
            )
        model = untrained(header.model, header.classes)
    network = quantize(model, torch.zeros(2, *header.image_shape), header.quantization)
    _check_fit(path, header, tensors, network)
    entries, buffers = _kept(network)
    nodes = network.graph.entries
    given = {nodes[name]: tensors[name].float() for name in entries}
    for node in network.module.graph.nodes:
        if node.target in buffers:
            given[node] = tensors[node.target].to(network.module.get_buffer(node.target).dtype)
    for name, node in weight_nodes(network).items():
        given[node] = _stored_weight(name, header, tensors, network.sites[name].spec).value()
    return deployed(network, given)


def load_point(path: str | Path, network: QuantizedNetwork, model: nn.Module) -> dict[str, Tensor]:
    """Return the Point that was saved, with full-precision weights.

    Weights whose codes are the nearest ones, and all else, are those of the saved Point bit for
    bit; others have its codes, and its moments but for float32 rounding. A start that was saved as
    it was made comes back bit for bit.

    Args:
        path: a file that `save` wrote.
        network: made from `model` with the quantization of the saved one; the bits and observers it
            starts from do not matter.
        model: the full-precision model, with the weights that the saved network was made from.

    Raises:
        InputError: if the file cannot be read or is not from `save`, or if it was made from other
            weights, another model, or with another scheme or specs.
    """
    check_value("network", network, QuantizedNetwork)
    check_model(model)
    header, tensors = read(path)
    own_hash = weights_hash(model)
    if header.weights_hash != own_hash:
        made_from = (
            f"weights {header.weights_hash[:12]}" if header.weights_hash else "moved weights"
        )
        raise InputError(
            f"{path} was made from {made_from} of {header.model or 'a model without a name'}, and "
            f"the model has weights {own_hash[:12]}; give the model and weights it was made from"
        )
    for field in fields(Quantization):
        saved, own = (getattr(q, field.name) for q in (header.quantization, network.quantization))
        if field.name not in POINTS_OWN and saved != own:
            raise InputError(
                f"{path} was saved with {field.name} {saved}, and the network has {own}; build the "
                "network as the file says"
            )
    _check_fit(path, header, tensors, network)
    device = next(iter(network.weights.values())).device
    kept = {name: tensors[name].float().to(device) for name in _kept(network)[0]}
    codes = {
        name: _stored_weight(name, header, tensors, network.sites[name].spec).codes.to(device)
        for name in weight_nodes(network)
    }
    point = _restored(network, kept, codes)
    network.check(point)
    return point


def _restored(
    network: QuantizedNetwork, kept: Point, codes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the Point of kept entries and the network's own weights, moved to have these codes."""
    own = folded_like(network, kept) if network.quantization.fold_layer_norms else network.weights
    made = {name: kept[name] if name in kept else own[name] for name in network.names}
    for name, site in network.sites.items():
        if site.folded is not None:
            made[site.folded] = made[site.folded] * made[f"{name}.factor"]
    for name, node in weight_nodes(network).items():
        if node.args[0] is network.graph.entries.get(name):  # no view of it, and not computed
            grid, spec = grid_of(network, made, name), network.sites[name].spec
            made[name] = move_into_cells(made[name], codes[name] + grid.lower, grid, spec)
    return made


def _equal_to(value: Tensor, restored: Tensor, weight: IntegerWeight | None) -> bool:
    """Whether a file gives back an entry that it does not hold: bit for bit, or what matters."""
    if weight is None or torch.equal(value, restored):
        return torch.equal(value, restored)
    if weight.moments is None:
        return True  # the codes are all
    rows = weight.spec.granularity.rows
    (deviation, mean), (own_deviation, own_mean) = (
        torch.std_mean(rows(w), dim=1, correction=0) for w in (value, restored)
    )
    error = torch.maximum((mean - own_mean).abs(), (deviation - own_deviation).abs())
    return bool((error <= MOMENT_ERROR * deviation).all())


def read(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """Return what `save` wrote: the header, and tensors as they are stored.

    Raises:
        InputError: if the file cannot be read or is not from `save`.
    """
    check_value("path", path, Path)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; quantized networks are written by evolq")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read {path} ({error}); save the network again") from error
    try:
        return Header.from_json(metadata["evolq"], tensors), tensors
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}; save the network again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a quantized network of this program ({FORMAT!r}); give a file that "
            "evolq saved"
        ) from error


def _stored_weight(
    name: str, header: Header, tensors: Mapping[str, Tensor], spec: QuantSpec
) -> IntegerWeight:
    shape, bits = header.weight_shapes[name], int(tensors[f"{name}.bits"])
    zero_point = tensors.get(f"{name}.zero_point")
    return IntegerWeight(
        unpack(tensors[f"{name}.codes"], bits, math.prod(shape)).reshape(shape),
        tensors[f"{name}.scale"].float(),
        None if zero_point is None else zero_point.float(),
        bits,
        spec,
        tensors.get(f"{name}.moments"),
    )


def _check_fit(
    path: str | Path, header: Header, tensors: Mapping[str, Tensor], network: QuantizedNetwork
) -> None:
    """Raise InputError unless the file has just the tensors that `network` needs, in its shapes."""
    entries, buffers = _kept(network)
    weights = weight_nodes(network)
    endings = ("codes", "moments") if header.quantization.moment_matching else ("codes",)
    wanted = {*entries, *buffers, *(f"{name}.{ending}" for name in weights for ending in endings)}
    given = {name: tuple(value.shape) for name, value in tensors.items()} | header.weight_shapes
    wanted_shapes = {name: tuple(value.shape) for name, value in network.weights.items()}
    wanted_shapes |= {name: tuple(network.module.get_buffer(name).shape) for name in buffers}
    different = [
        *(f"has {name}, which the model lacks" for name in sorted(tensors.keys() - wanted)),
        *(f"lacks {name}" for name in sorted(wanted - tensors.keys())),
        *(
            f"has a shape of {name}, or none"
            for name in sorted(header.weight_shapes.keys() ^ weights.keys())
        ),
        *(
            f"has {name} of type {value.dtype}"
            for name, value in tensors.items()
            if value.dtype not in FLOATS | INTEGERS
        ),
        *(
            f"has {name} in shape {given[name]} instead of {shape}"
            for name, shape in wanted_shapes.items()
            if given.get(name, shape) != shape
        ),
    ]
    if different:
        raise InputError(
            f"{path} does not fit the model: it {different[0]} ({len(different)} such problems); "
            f"give the architecture that it was made from"
        )
    point = {
        name: tensors[name].float() if name in entries else value
        for name in network.names
        for value in (network.weights.get(name),)
    }
    try:
        network.check(point)  # type: ignore[arg-type]  # weights or entries: None is neither
        for name in weights:
            shape, bits = header.weight_shapes[name], int(point[f"{name}.bits"])  # type: ignore[arg-type]
            _check_codes(name, tensors, shape, bits, network.sites[name].spec)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}; save the network again") from error


def _check_codes(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...], bits: int, spec: QuantSpec
) -> None:
    """Raise InputError unless codes fill their bytes, and each row has its moments."""
    codes, moments = tensors[f"{name}.codes"], tensors.get(f"{name}.moments")
    wanted = -(-math.prod(shape) * bits // 8)
    if codes.dtype != torch.uint8 or tuple(codes.shape) != (wanted,):
        raise InputError(
            f"{name}.codes are {codes.dtype} {tuple(codes.shape)}; {bits} bits of {shape} need "
            f"uint8 {(wanted,)}"
        )
    rows = math.prod(spec.granularity.parameter_shape(shape))
    if moments is not None and not (
        tuple(moments.shape) == (3, rows) and bool(torch.isfinite(moments).all())
    ):
        raise InputError(f"{name}.moments have shape {tuple(moments.shape)}, or are not finite")


def _kept(network: QuantizedNetwork) -> tuple[list[str], list[str]]:
    """Return the names of the Point's entries and of the buffers that a file holds."""
    nodes = deployed_nodes(network)
    weights = {
        f"{name}.{role}" for name in weight_nodes(network) for role in network.sites[name].roles()
    }
    entries = [
        name for name, node in network.graph.entries.items() if node in nodes or name in weights
    ]
    return entries, [str(node.target) for node in nodes if node.op == "get_attr"]


def _smallest(value: Tensor) -> Tensor:
    """Return `value` as integers of one or two bytes, if they hold it exactly."""
    for dtype in (torch.uint8, torch.int8, torch.int16):
        if torch.equal(value.to(dtype).to(value.dtype), value):
            return value.to(dtype)
    return value
