"""A scan of cliffs on a tiny network: losses measured anew, and what is said of them."""

import numpy as np
import pytest
import synthetic_scans
from test_cliff_losses import SquaredLogits, prepared
from tiny_models import images

from evolq.errors import InputError
from evolq.optimizers.mixed_precision import calibration_table, weight_values
from landscape import analyze, draw, read_analysis, store, with_analysis
from landscape.cliff_analysis import analyze_cliffs, kind_of, variation_of
from landscape.findings import describe
from landscape.plots import interactive
from landscape.plots.cliffs import cliffs_info
from landscape.probes.cliff_losses import held_losses
from landscape.probes.cliff_scan import sample_cliffs
from landscape.probes.cliffs import expected_cliffs, find_cliffs
from landscape.words import name_scan


class Test(SquaredLogits):
    """The same losses, with whether they are below 1."""

    __test__ = False

    def vary(self, names, at):
        return Test(self.network, self.network.vary(names, at, images()))

    def per_image(self, point):
        losses = super().per_image(point)
        return losses, losses < 1


def scanned(matching=False, cliffs=2, intervals=5, radius=0.05):
    network, line = prepared(matching, "*.weight.scale")
    table = calibration_table(network, weight_values(network, line.origin))
    distances = np.linspace(-radius, radius, 5)
    losses = SquaredLogits(network), Test(network)
    dataset = sample_cliffs(network, line, distances, table, *losses, cliffs, intervals)
    name_scan(dataset, synthetic_scans.CONFIGURATION)
    return network, line, dataset.assign_attrs(provenance="{}")


@pytest.fixture(scope="module")
def scan():
    return scanned()


def test_all_losses_are_those_of_the_network(scan):
    network, line, found = scan
    held = held_losses(network, SquaredLogits(network), line, found.distance.values)
    np.testing.assert_array_equal(found.held_test_loss_per_image[0, 1:], held)
    assert found.held_test_loss_per_image[0, 0].isnull().all()
    variation = variation_of(found)
    steps = np.diff(found.test_loss.values[0])
    np.testing.assert_allclose(variation.drift + variation.jump, steps, atol=1e-6)
    names = found.cliff_weight.values.tolist()
    assert {names.count(name) for name in names} == {2}
    for name, distance, jump in zip(
        names, found.cliff_distance.values, found.cliff_jump_per_image.values, strict=True
    ):
        alone = {f"{name}.scale": line.direction[f"{name}.scale"]}
        one = type(line)(line.origin, alone)
        own = find_cliffs(network, one, 0.05)
        nearest = np.abs(own.distance - distance).argmin()
        assert own.distance[nearest] == pytest.approx(distance, abs=1e-6)
        varied = SquaredLogits(network).vary(tuple(alone), line.origin)
        sides = [
            varied.per_image({n: one.at(distance + step)[n] for n in alone})
            for step in (-1e-5, 1e-5)
        ]
        # the drift over 2e-5
        np.testing.assert_allclose(jump, (sides[1] - sides[0]).numpy(), rtol=0.01, atol=2e-4)


def test_rates_are_those_of_each_number_of_bits(scan):
    network, line, found = scan
    start = expected_cliffs(network, line)
    assert found.weight.values.tolist() == list(start)
    np.testing.assert_allclose(found.start_cliff_rate, list(start.values()))
    # calibrated to 4 bits like the start
    np.testing.assert_allclose(found.cliff_rate.sel(width=4), found.start_cliff_rate, rtol=1e-6)
    assert (found.cliff_rate.sel(width=8) > 8 * found.cliff_rate.sel(width=4)).all()


def test_the_exact_line_is_that_of_the_weight_with_the_fewest_cliffs(scan):
    network, line, found = scan
    start = expected_cliffs(network, line)
    assert found.attrs["interval_weight"] == min(start, key=start.get)
    assert 2 <= found.sizes["interval"] <= 5
    assert (found.interval_low[1:].values > found.interval_high[:-1].values).all()
    exact = analyze_cliffs(found, 0.0).exact
    mean = found.interval_test_loss_per_image.mean("image").values
    lowest = int(mean.argmin())
    assert found.interval_low[lowest] < exact.lowest < found.interval_high[lowest]
    home = (found.interval_low.values < 0) & (found.interval_high.values > 0)
    assert exact.change == pytest.approx(mean.min() - mean[home][0])
    assert not exact.constant
    assert np.isinf(exact.critical), "6 images cannot tell"


@pytest.mark.slow
def test_with_matched_moments_all_ups_and_downs_of_weights_are_flips():
    _, _, found = scanned(matching=True)
    said = analyze_cliffs(found, 0.0)
    assert said.share.estimate == pytest.approx(1, abs=1e-3)
    assert said.exact.constant
    assert said.kinds["fc1.weight"].above == 2
    everything = max(max(kind.jumps) for kind in said.kinds.values())
    assert all(kind.above == 0 for kind in analyze_cliffs(found, everything).kinds.values())


def test_what_was_found_is_said_drawn_and_stored(scan, tmp_path):
    _, _, found = scan
    said = analyze(found)
    rows = {row.name: row for row in describe(found, said)}
    assert rows["Ups and downs made by flips"].value == f"{said.cliffs.share.estimate:.0%}"
    assert rows["Cliffs per unit of distance"].value == f"{said.cliffs.rate:,.0f}"
    assert "numerical noise was not measured" in rows["Jump at a cliff"].meaning
    assert rows["Exact line"].value == f"{found.sizes['interval']} intervals"
    info = cliffs_info(found, said)
    line, flips, held = info.parts.values()
    np.testing.assert_allclose(line, flips + held, atol=1e-12)
    assert line[-1] == pytest.approx(
        float(found.test_loss[0, -1] - found.test_loss[0, 0]), abs=1e-6
    )
    assert len(draw(found, said).axes) == 4
    figures = interactive(found, said).panels[0].figures
    np.testing.assert_allclose(figures[0].data[0].y, line)
    store.save(with_analysis(found, said), tmp_path / "scan.nc")
    again = read_analysis(store.load(tmp_path / "scan.nc"))
    assert repr(again.cliffs) == repr(said.cliffs)


def test_kinds_of_layers_differ_in_numbers_alone():
    assert kind_of("blocks.12.mlp.fc1.weight") == "blocks.*.mlp.fc1.weight"
    assert kind_of("layer1.0.conv2.weight") == "layer1.*.conv2.weight"


def test_a_line_without_cliffs_is_refused_before_anything_is_measured():
    with pytest.raises(InputError, match="larger `radius`"):
        scanned(radius=1e-9)


@pytest.mark.slow
def test_scales_of_activations_alone_have_no_cliffs():
    network, line = prepared(False, "fc1.input.scale", "linear")
    table = calibration_table(network, weight_values(network, line.origin))
    with pytest.raises(InputError, match="scales of weights"):
        sample_cliffs(
            network, line, np.array([-0.1, 0.1]), table, SquaredLogits(network), Test(network), 1, 1
        )
