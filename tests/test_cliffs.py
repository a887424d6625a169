"""Cliffs in closed form, against fine sampling and bisection in float64."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized

from evolq.errors import InputError
from evolq.network.deployed import constants, weight_nodes
from evolq.network.quantized import quantize
from evolq.points import select
from evolq.problem import prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.starts.calibration import calibrate
from evolq.tensor.quantizers import PerTensor
from evolq.tensor.quantizers import quantize as to_codes
from landscape.probes.cliffs import count_cliffs, expected_cliffs, find_cliffs, resolving_step
from landscape.probes.directions import gaussian, normalize
from landscape.probes.slices import Line

SPECS = {
    "per channel": {},
    "per tensor": {"weight_bits": 3, "weight_granularity": "tensor"},
    "per group, symmetric": {
        "weight_granularity": "group",
        "group_size": 2,
        "weight_symmetric": True,
    },
}


def line_through(model, bits=4, spec=None, seed=0, observer="mse"):
    options = {"weight_bits": bits, "weight_observer": observer, **(spec or {})}
    network = quantize(randomized(model), images(), plain(**options))
    point = {
        name: value + 0.3 if name.endswith("zero_point") else value  # rounded before use
        for name, value in calibrate(network, images()).items()
    }
    moving = {
        name: value
        for name, value in select(point, ("scale",)).items()
        if name.rpartition(".")[0] in weight_nodes(network)
    }
    direction = normalize(gaussian(moving, torch.Generator().manual_seed(seed)), point)
    return network, Line(point, direction)


def quantizers(network, line):
    """Of each weight, in float64 and one entry for each element: value, scale, zero point, rate."""
    values = constants(network, line.origin)
    found = {}
    for name, node in weight_nodes(network).items():
        value, scale, zero_point, bits = (
            None if argument is None else values[argument] for argument in node.args
        )
        spec = network.sites[name].spec

        def spread(parameter, value=value, spec=spec):
            aligned = spec.granularity.align(parameter.double(), value)
            return aligned.expand_as(value).flatten()

        zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
        found[name] = (
            value.double().flatten(),
            spread(scale),
            spread(zero_point),
            spread(line.direction[f"{name}.scale"]),
            bits,
            replace(spec, granularity=PerTensor(), symmetric=False),
        )
    return found


def codes_at(quantizer, distance, elements=slice(None)):
    """Codes of a weight, or of some of its elements, at a distance (each at its own)."""
    value, scale, zero_point, rate, bits, spec = quantizer
    moved = scale[elements] * torch.exp(distance * rate[elements])
    return to_codes(value[elements], moved, zero_point[elements], bits, spec)


def brute_force(quantizer, radius):
    """Every (element, code before, after, distance), by sampling and bisection.

    A code is monotone along the line: where it is the same at both ends, nothing happens.
    """
    found = []
    grid = np.linspace(-radius, radius, 101)
    rows = torch.stack([codes_at(quantizer, a) for a in grid])
    for i, element in torch.nonzero(rows[1:] != rows[:-1]).tolist():
        start, end = int(rows[i, element]), int(rows[i + 1, element])
        sign = 1 if end > start else -1
        for before in range(start, end, sign):
            found.append((element, before, before + sign, grid[i], grid[i + 1]))
    element, before, after, low, high = map(torch.tensor, zip(*found, strict=True))
    sign = after - before
    for _ in range(50):
        middle = (low + high) / 2
        passed = sign * codes_at(quantizer, middle, element) >= sign * after
        low, high = torch.where(passed, low, middle), torch.where(passed, middle, high)
    return list(zip(element.tolist(), before.tolist(), after.tolist(), high.tolist(), strict=True))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("model", [TinyTransformer, TinyResidual])
def test_cliffs_are_those_that_sampling_and_bisection_find(model, spec):
    if model is TinyResidual and "group_size" in spec:
        spec = {**spec, "group_size": 3}  # divides a row of a 3x3 kernel
    network, line = line_through(model(), spec=spec)
    radius = 0.3
    found = find_cliffs(network, line, radius)
    total = 0
    for number, name in enumerate(found.layers):
        wanted = sorted(brute_force(quantizers(network, line)[name], radius))
        here = found.layer == number
        listed = sorted(
            zip(
                found.element[here].tolist(),
                found.before[here].tolist(),
                found.after[here].tolist(),
                found.distance[here].tolist(),
                strict=True,
            )
        )
        assert [entry[:3] for entry in listed] == [entry[:3] for entry in wanted]
        # what float64 leaves of u = w / s + z, at codes up to 16
        np.testing.assert_allclose(
            [entry[3] for entry in listed], [entry[3] for entry in wanted], atol=1e-12
        )
        assert count_cliffs(network, line, radius)[name] == len(wanted)
        total += len(wanted)
    assert total > 50
    assert (np.diff(found.distance) >= 0).all()
    assert set(found.layers) == set(weight_nodes(network))


def test_a_jump_is_one_step_of_the_scale_at_the_cliff():
    network, line = line_through(TinyTransformer())
    found = find_cliffs(network, line, 0.5)
    quantizer = quantizers(network, line)
    for index in range(0, len(found), 37):
        _, scale, zero_point, rate, *_ = quantizer[found.layers[found.layer[index]]]
        element = found.element[index]
        values = []
        for distance in found.distance[index] + np.array([-1e-9, 1e-9]):
            codes = codes_at(quantizer[found.layers[found.layer[index]]], distance)
            value = (codes - zero_point.round()) * scale * torch.exp(distance * rate)
            values.append(float(value[element]))
        # all drift with the scale by 2e-9 of their value
        assert values[1] - values[0] == pytest.approx(found.jump[index], abs=1e-7)
        name = found.layers[found.layer[index]]
        assert scale[element] == line.origin[f"{name}.scale"][found.channel[index]].double()


def test_float32_changes_its_codes_within_the_resolution():
    network, line = line_through(TinyTransformer(), bits=6)
    found = find_cliffs(network, line, 1.0)
    assert len(found) > 1000
    values = constants(network, line.origin)
    nodes = weight_nodes(network)
    for index in range(0, len(found), 7):
        name = found.layers[found.layer[index]]
        for side, wanted in ((-1, found.before[index]), (1, found.after[index])):
            point = line.at(float(found.distance[index] + side * found.resolution[index]))
            codes = to_codes(
                values[nodes[name].args[0]],
                point[f"{name}.scale"],
                point[f"{name}.zero_point"],
                point[f"{name}.bits"],
                network.sites[name].spec,
            )
            assert codes.flatten()[found.element[index]] == wanted
    assert found.resolution.max() < 1e-3


@cache
def line_of_fashion(bits):
    problem = prepare(
        Settings(
            quantization=Quantization(weight_bits=bits, moment_matching=False),
            calibration_images=4,
            selection_images=0,
            test_images=2,
        )
    )
    scales = {
        name: value
        for name, value in select(problem.start, ("scale",)).items()
        if name.rpartition(".")[0] in weight_nodes(problem.network)
    }
    direction = gaussian(scales, torch.Generator().manual_seed(0))
    return problem.network, Line(problem.start, normalize(direction, problem.start))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_expected_number_is_about_what_is_counted(bits):
    network, line = line_of_fashion(bits)
    radius = 0.1
    away = Line(line.at(0.3), line.direction)
    counts, rates = (
        count_cliffs(network, away, radius),
        expected_cliffs(network, away),
    )
    assert counts.keys() == rates.keys() == set(weight_nodes(network))
    total = sum(counts.values())
    assert total == len(find_cliffs(network, away, radius))
    # at 3 bits the spread of the weights is only one to two steps of the quantizer
    assert total == pytest.approx(2 * radius * sum(rates.values()), rel=0.1)
    # at 0, where the observer put the scales, the same holds over a radius that leaves the start
    assert sum(count_cliffs(network, line, radius).values()) == pytest.approx(
        2 * radius * sum(expected_cliffs(network, line).values()), rel=0.1
    )


def test_a_start_of_least_squared_error_lies_in_a_gap_between_cliffs():
    network, line = line_of_fashion(3)
    near, wide = (
        sum(count_cliffs(network, line, radius).values()) / radius for radius in (0.001, 0.1)
    )
    assert near < 0.5 * wide


def test_one_more_bit_doubles_the_expected_number():
    rates = []
    for bits in (6, 7):
        network, line = line_through(TinyTransformer(), bits=bits, observer="minmax")
        rates.append(sum(expected_cliffs(network, line).values()))
    # ranges are those of the same weights; the number of steps in them is 2^bits - 1; rounding the
    # zero point puts some of the largest weights in or out
    assert rates[1] / rates[0] == pytest.approx(127 / 63, rel=0.02)


def test_the_resolving_step_isolates_the_stated_share():
    random = np.random.default_rng(0)
    rate, length = 50.0, 400.0
    flips = random.uniform(0, length, random.poisson(rate * length))
    step = resolving_step(rate, 0.9)
    inside = np.bincount((flips // step).astype(int))
    # 20,000 flips: the standard error of a share of 0.9 is 0.002, some more since they are counted
    # in clusters
    assert (inside == 1).sum() / inside.sum() == pytest.approx(0.9, abs=0.015)
    assert resolving_step(2 * rate, 0.9) == step / 2


def test_millions_of_weights_are_counted_in_seconds():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 40000, bias=False))
    model.append(torch.nn.Linear(40000, 2, bias=False))
    network, line = line_through(model)
    begin = time.perf_counter()
    counts = count_cliffs(network, line, 1e-3)
    assert time.perf_counter() - begin < 30  # 0.6 s on an idle core
    assert sum(counts.values()) == len(find_cliffs(network, line, 1e-3))


def test_weights_that_are_zero_or_do_not_move_have_no_cliffs():
    network, line = line_through(TinyTransformer())
    name = "fc1.weight"
    origin = dict(line.origin) | {name: torch.zeros_like(line.origin[name])}
    direction = {k: v.clone() for k, v in line.direction.items()}
    direction["fc2.weight.scale"][:4] = 0
    found = find_cliffs(network, Line(origin, direction), 2.0)
    assert not (found.layer == found.layers.index(name)).any()
    channels = found.channel[found.layer == found.layers.index("fc2.weight")]
    assert set(channels) == {4, 5, 6, 7}


def test_what_has_no_closed_form_is_refused():
    network, line = line_through(TinyTransformer())
    with pytest.raises(InputError, match="radius"):
        find_cliffs(network, line, 0)
    for entry in ("fc1.weight.zero_point", "fc1.weight"):
        moving = Line(line.origin, {**line.direction, entry: torch.ones_like(line.origin[entry])})
        with pytest.raises(InputError, match=entry):
            count_cliffs(network, moving, 0.1)
    activations = Line(line.origin, {"fc1.input.scale": torch.ones(())})
    with pytest.raises(InputError, match="no scale of a quantized weight"):
        find_cliffs(network, activations, 0.1)
    with pytest.raises(InputError, match="rate"):
        resolving_step(0.0)
