"""Scans over bit-widths, against networks quantized to those bits."""

import numpy as np
import pytest
import synthetic_scans
import torch
from tiny_models import TinyTransformer, images, plain, randomized

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.quantized import quantize
from evolq.optimizers.mixed_precision import calibration_table, weight_values
from evolq.points import role
from evolq.starts.calibration import calibrate
from landscape import store
from landscape.analysis import analyze
from landscape.findings import describe
from landscape.plots import bits_info, draw, interactive
from landscape.probes.bit_widths import sample_bits, sample_layers

MULTIPLIERS = np.array([0.5, 1.0, 1.5])


@pytest.fixture(scope="module")
def losses():
    """A model, its 8-bit network's start, table and losses."""
    model = randomized(TinyTransformer())
    data = LabeledImages(images(6), torch.arange(6) % 3, tuple("abcdef"))
    network = quantize(model, images(), plain(weight_bits=8))
    start = calibrate(network, images())
    objective = Objective.of(network, data, CRITERIA["kl"], predict(model, data.images))
    table = calibration_table(network, weight_values(network, start))
    return model, start, table, objective, TestEvaluation.of(network, data)


@pytest.fixture(scope="module")
def layers(losses):
    return sample_layers(*losses[1:])


def shown(scan):
    return bits_info(scan, analyze(scan))


def described(scan):
    return describe(scan, analyze(scan))


def calibrated_at(model, bits):
    return calibrate(quantize(model, images(), plain(weight_bits=bits)), images())


def test_each_layer_alone_has_its_bits_and_their_calibration(losses, layers) -> None:
    model, start, table, objective, test = losses
    assert layers.layer.values.tolist() == list(table)
    assert layers.bits.values.tolist() == [2, 3, 4, 5, 6, 7, 8]
    for bits in (2, 5):
        narrow = calibrated_at(model, bits)
        for layer in table:
            point = {n: (narrow if n.startswith(f"{layer}.") else start)[n] for n in start}
            cell = layers.sel(layer=layer, bits=bits)
            assert float(cell.loss) == pytest.approx(float(objective(point)), rel=1e-6)
            expected = test.per_image(point)[0]
            np.testing.assert_allclose(cell.test_loss_per_image, expected, rtol=1e-5)
    # at 8 bits nothing changes
    start_losses = layers.start_test_loss_per_image
    assert (layers.test_loss_per_image.sel(bits=8) == start_losses).all()
    assert (layers.test_loss_per_image.sel(bits=2) != start_losses).any("image").all()


def test_all_layers_at_once_with_their_scales_times_a_factor(losses) -> None:
    model, start, table, objective, test = losses
    dataset = sample_bits(start, table, MULTIPLIERS, objective, test)
    assert dataset.loss.dims == ("bits", "multiplier")
    for bits, multiplier in ((8, 1.0), (3, 0.5), (2, 1.5)):
        point = calibrated_at(model, bits)
        for name in point:
            if role(name) == "scale" and name.removesuffix(".scale") in table:
                point[name] = point[name] * multiplier
        cell = dataset.sel(bits=bits, multiplier=multiplier)
        assert float(cell.loss) == pytest.approx(float(objective(point)), rel=1e-5)


def test_what_cannot_be_scanned_is_refused(losses) -> None:
    _, start, table, *both = losses
    with pytest.raises(InputError, match="no weight's bits"):
        sample_layers(start, {}, *both)
    for wrong in ([], [1.0, 0.5], [-1.0, 1.0]):
        with pytest.raises(InputError, match="positive and ascending"):
            sample_bits(start, table, np.array(wrong), *both)


def test_a_file_gives_back_the_names_of_layers(layers, tmp_path) -> None:
    store.save(layers, tmp_path / "scan.nc")
    loaded = store.load(tmp_path / "scan.nc")
    assert loaded.layer.values.tolist() == layers.layer.values.tolist()
    assert shown(loaded).rows == shown(layers).rows


# What is shown: layer a never rises, b by 1 at 3 bits and by 4 at 2, c by 0.5 at 2 bits


def test_a_heat_map_has_the_widest_bits_first_and_each_value_in_its_cell() -> None:
    scan = synthetic_scans.layers()
    info = shown(scan)
    assert (info.rows, info.columns) == (("a", "b", "c"), ("4", "3", "2"))
    turned = shown(scan.transpose("image", "bits", "calibration_image", "layer"))
    np.testing.assert_array_equal(info.shades, turned.shades)
    for row, column in np.ndindex(3, 3):
        here = scan.sel(layer=info.rows[row], bits=int(info.columns[column]))
        assert info.accuracy[row, column] == here.test_accuracy
    assert np.isnan(info.shades[0]).all(), "not told apart from the start"
    np.testing.assert_allclose(info.shades[1, 1:], [1, 2], rtol=0.1)
    assert info.words[1, 0] == ""
    assert float(info.words[1, 2]) == pytest.approx(4, abs=0.1)


def test_boxes_stand_at_the_fewest_bits_without_a_clear_rise() -> None:
    info = shown(synthetic_scans.layers())
    assert info.boxed == ((0, 2), (1, 0), (2, 1))
    plane = synthetic_scans.bits()
    best = {(row, int(plane.loss.values[::-1][row].argmin())) for row in range(3)}
    assert set(shown(plane).boxed) == best


def test_missing_cells_are_not_shaded_and_have_no_words() -> None:
    scan = synthetic_scans.layers()
    synthetic_scans.spoil(scan, layer=1, bits=0)
    synthetic_scans.forget(scan, layer=2, bits=0)
    info = shown(scan)
    assert info.quantity.not_finite[1, 2]
    assert info.quantity.not_computed[2, 2]
    assert info.words[1, 2] == info.words[2, 2] == ""
    assert np.isnan(info.shades[1:, 2]).all()
    draw(scan)
    interactive(scan)


@pytest.mark.parametrize("scan", [synthetic_scans.layers(), synthetic_scans.bits()])
def test_both_figures_show_the_same(scan) -> None:
    info = shown(scan)
    axes = draw(scan).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_array().filled(np.nan), info.shades)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(info.rows)
    assert axes.yaxis_inverted()
    (figure,) = interactive(scan).panels[0].figures
    np.testing.assert_array_equal(figure.data[0].z, info.shades)
    assert figure.layout.yaxis.autorange == "reversed"
    assert len(figure.layout.shapes) == len(info.boxed)
    assert f"Bits of this layer's weights: {info.columns[1]}" in figure.data[0].text[0, 1] or (
        "layer" not in scan.dims
    )


def test_the_table_names_the_layer_that_suffers_most() -> None:
    rows = {row.name: row for row in described(synthetic_scans.layers())}
    assert rows["Layers worse at 2 bits"].value == "2 of 3"
    assert "most with b +3.995, c +0.511" in rows["Layers worse at 2 bits"].meaning
    assert rows["Layers worse at 4 bits"].value == "0 of 3"
    assert any("3 bits" in row.name for row in described(synthetic_scans.bits()))
