"""What a reader calls the quantities of a scan: names and units, kept in the Dataset itself.

They stand where the CF conventions (section 2.6.2 and 3, cfconventions.org) put them: `title` and
`comment` of the Dataset, `long_name` and `units` of a variable. Figures read them there, so that a
Dataset of any objective draws with names of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from evolq.losses.criteria import words_of

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

# What is scanned -> how a reader knows it, and what a step of 1 along a direction does there
# (the normalizations of probes.directions).
OVER_WORDS = {
    "scales": ("scale space", "RMS log change of the scales"),
    "zero_points": ("zero-point space", "RMS shift of the zero points in codes"),
    "weights": ("weight space", "RMS change of the weights"),
}
NORMALIZED_WEIGHTS_WORDS = {
    "layer": "change relative to each layer's norm",
    "filter": "change relative to each filter's norm",
}
# What a step of 1 is along directions with lengths of their own (probes.guided).
GUIDED_WORDS = {
    "towards": "1: the checkpoint",
    "pca": "in RMS distances of the checkpoints",
}
TEST_LOSS_WORDS = words_of("cross_entropy")
UNTITLED = "Losses around the start"


class Row(NamedTuple):
    """One line of the table: what was measured, its value, and what that means."""

    name: str
    value: str
    meaning: str


def name_scan(dataset: Dataset, configuration: Mapping[str, Any]) -> None:
    """Write title, comment, and the names and units of what was measured into a scan, in place.

    Args:
        dataset: the result of a scan.
        configuration: of the problem and of the scan.
    """
    if "bits" in dataset.dims:
        dataset.attrs["title"] = str(configuration["model"])
        dataset.attrs["comment"] = "Start: " + ", ".join(_quantization(configuration))
    else:
        dataset.attrs["title"] = title_of(configuration)
        space, unit = OVER_WORDS[configuration["over"]]
        where = f"around the start in {space}"
        if "walk" in dataset.dims:
            where = f"random walks in {space}, steps of {configuration['length']:g} ({unit})"
        dataset.attrs["comment"] = " · ".join([where, *_choice(configuration)])
        for axis in {"x", "y", "distance"} & set(dataset.dims):
            dataset[axis].attrs["units"] = _step(configuration)
    name_loss(dataset["loss"], configuration["criterion"])


def name_loss(loss: DataArray, criterion: str) -> None:
    """Write name and unit of a calibration loss into its array, in place."""
    name, _, unit = words_of(criterion).removesuffix(")").partition(" (")
    loss.attrs["long_name"] = name
    if unit:
        loss.attrs["units"] = unit


def measure_of(array: DataArray, otherwise: str) -> str:
    """Return the name of an array with its unit, as on an axis.

    Args:
        array: of a scan.
        otherwise: its name if it has none.
    """
    return with_unit(array.attrs.get("long_name", otherwise), array.attrs.get("units", ""))


def with_unit(name: str, unit: str, between: str = " ") -> str:
    """Return a name, and its unit in parentheses if it has one."""
    return f"{name}{between}({unit})" if unit else name


def configuration_of(dataset: Dataset) -> dict[str, Any]:
    """Return the configuration in a Dataset's provenance, empty if there is none."""
    return json.loads(dataset.attrs.get("provenance", "{}")).get("configuration", {})


def criterion_words(configuration: Mapping[str, Any]) -> str:
    """Return how a reader knows the criterion, with its unit."""
    return words_of(configuration.get("criterion", "calibration loss"))


def title_of(configuration: Mapping[str, Any]) -> str:
    """Return which network was measured, in words."""
    if "model" not in configuration:
        return UNTITLED
    return ", ".join([str(configuration["model"]), *_quantization(configuration)])


def _quantization(configuration: Mapping[str, Any]) -> list[str]:
    scheme = configuration["scheme"]
    if scheme == "none":
        return ["not quantized"]
    parts = [f"{configuration['weight_bits']}-bit weights"]
    if scheme != "weights":  # that scheme leaves activations alone
        parts.append(f"{configuration['activation_bits']}-bit activations")
    return [*parts, f"scheme {scheme}"]


def _choice(configuration: Mapping[str, Any]) -> list[str]:
    words = {"within": "within", "exclude": "without"}
    return [f"{word} {configuration[key]}" for key, word in words.items() if configuration.get(key)]


def _step(configuration: Mapping[str, Any]) -> str:
    """Return what a step of 1 along an axis is."""
    unit = OVER_WORDS[configuration["over"]][1]
    if configuration["over"] == "weights":
        unit = NORMALIZED_WEIGHTS_WORDS.get(configuration["normalize"], unit)
    return GUIDED_WORDS.get(configuration["directions"], unit)
