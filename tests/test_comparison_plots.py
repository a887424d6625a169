"""Figures of comparisons: what they show, and that both libraries draw it."""

import numpy as np
import pytest
import xarray
from scipy import stats
from synthetic_comparisons import IMAGES, comparison

from evolq.losses.criteria import CRITERIA, Criterion
from evolq.optimizers.registry import OPTIMIZERS
from landscape.paths.comparison import outcomes
from landscape.plots import (
    comparison_info,
    draw_comparison,
    draw_transfer,
    interactive_comparison,
    save_figure,
)
from landscape.plots.comparison_html import FRAMES
from landscape.plots.comparison_info import at_costs
from landscape.plots.palette import LOOKS, looks
from landscape.statistics.intervals import crossed_interval


def test_values_are_those_reached_within_a_cost():
    cost, values = np.array([1.0, 2.0, 4.0, np.nan]), np.array([9.0, np.nan, 5.0, np.nan])
    found = at_costs(cost, values, np.array([0.5, 1.0, 3.9, 4.0, 100.0]))
    np.testing.assert_array_equal(found, [np.nan, 9, 9, 5, 5])


def test_bands_go_from_the_least_to_the_largest_of_the_seeds():
    evolution, gradient = comparison_info(comparison(seeds=3)).optimizers
    assert evolution.loss.low[-1] == pytest.approx(2 - 5 * 0.12)
    assert evolution.loss.high[-1] == pytest.approx(2 - 5 * 0.10)
    assert evolution.loss.mean[-1] == pytest.approx(2 - 5 * 0.11)
    np.testing.assert_allclose(gradient.loss.low, gradient.loss.high)
    assert len(evolution.routes) == 1, "the same way for all seeds"
    assert gradient.routes[0].x[-1] == pytest.approx(0.06)
    assert len(gradient.routes[0].x) == 4, "no Iterates after the last"


def test_outcomes_have_intervals_over_seeds_and_images():
    dataset = comparison()
    evolution, gradient = outcomes(dataset)
    final = dataset.final_test_loss_per_image.values
    change = final - dataset.start_test_loss_per_image.values
    for row, values in zip((evolution, gradient), change, strict=True):
        expected = crossed_interval(values)
        assert row.test_loss_change == (expected.estimate, expected.low, expected.high)
        assert expected.over == ("seeds", "images")
    assert evolution.against_first is None
    assert gradient.against_first is not None
    assert gradient.sweep_cost == 30
    assert (evolution.cost, gradient.cost) == (6, 7)
    assert gradient.loss == pytest.approx(1.4)


def test_one_seed_speaks_of_its_run_only():
    dataset = comparison(seeds=1)
    evolution, _ = outcomes(dataset)
    change = dataset.final_test_loss_per_image - dataset.start_test_loss_per_image
    low, high = stats.t.interval(
        0.95,
        IMAGES - 1,
        *(float(value) for value in (change[0, 0].mean(), stats.sem(change[0, 0]))),
    )
    assert evolution.test_loss_change[1:] == pytest.approx((low, high))
    assert "speak of these runs only" in comparison_info(dataset).subtitle
    assert "over 3 seeds" in comparison_info(comparison(seeds=3)).subtitle


def test_the_figure_shows_curves_maps_and_a_table(tmp_path):
    figure = draw_comparison(comparison())
    titles = [axes.get_title() for axes in figure.axes]
    assert "Calibration loss, searched on" in titles
    assert "Test loss, looked at afterwards" in titles
    assert "Distance off the plane of the maps" in titles
    (left,) = (a for a in figure.axes if a.get_title() == "Calibration loss, searched on")
    styles = {(line.get_linestyle(), line.get_marker()) for line in left.lines[1:]}
    assert len(styles) == 2, "told apart without color"
    (table,) = (axes.tables[0] for axes in figure.axes if axes.tables)
    words = {cell.get_text().get_text() for cell in table.get_celld().values()}
    assert {"evol-q", "adam", "7 (30)"} <= words
    save_figure(figure, tmp_path / "compare.png")


def test_the_animation_ends_with_what_stands_still():
    (page,) = interactive_comparison(comparison()).panels
    assert len(page.steps) == FRAMES
    for figure in page.figures:
        assert len(figure.frames) == FRAMES
        last = figure.frames[-1]
        for number, trace in zip(last.traces, last.data, strict=True):
            np.testing.assert_array_equal(figure.data[number].x, trace.x)
            np.testing.assert_array_equal(figure.data[number].y, trace.y)
    first = page.figures[0].frames[0].data[0]
    assert np.isfinite(np.array(first.x, dtype=float)).sum() == 1, "only the start"


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_animation_follows_cost_on_fixed_axes(share):
    dataset = comparison()
    dataset["cost"] = 1 + share * (dataset.cost - 1)
    (page,) = interactive_comparison(dataset).panels
    routes, *curves = page.figures
    for figure in page.figures:
        names = [frame.name for frame in figure.frames]
        assert len(set(names)) == FRAMES, "of frames with one name, plotly keeps one"
        assert all(frame.layout.to_plotly_json() == {} for frame in figure.frames), "no axis moves"
    costs = np.linspace(1, float(dataset.cost.max()), FRAMES)
    assert page.steps == tuple(f"{cost:.1f}" for cost in costs)
    lengths = []
    for number, cost in enumerate(costs):
        frame = routes.frames[number]
        lengths.append([int(np.isfinite(trace.x).sum()) for trace in frame.data])
        taken = (dataset.cost.isel(seed=0) <= cost + 1e-9).sum("iterate")
        assert lengths[-1] == taken.values.tolist(), "one route for both seeds"
        for figure in curves:
            assert all(trace.x.max() <= cost + 1e-9 for trace in figure.frames[number].data)
    assert (np.diff(lengths, axis=0) >= 0).all()
    assert lengths[0] == [1, 1]
    assert lengths[-1] == [6, 4]
    axes = [figure.layout[f"{axis}axis"] for figure in page.figures for axis in "xy"]
    assert all(axis.range is not None for axis in axes)


def test_a_hole_in_the_surface_is_a_hole():
    dataset = comparison()
    dataset["surface_loss"][1, 2] = np.inf
    dataset["surface_status"][1, 2] = 2
    info = comparison_info(dataset)
    assert np.isnan(info.loss.values[1, 2])
    assert np.isfinite(info.loss.values).sum() == info.loss.values.size - 1
    assert np.isfinite(info.test_loss.values).all(), "each loss is judged by itself"


@pytest.mark.parametrize("registry", [OPTIMIZERS, CRITERIA], ids=["optimizers", "criteria"])
def test_every_member_of_a_registry_has_its_own_look(registry):
    found = looks(list(registry), registry)
    assert len(registry) <= len(LOOKS), "told apart without color up to here"
    for part in ("color", "dashes", "marker", "symbol"):
        assert len({getattr(look, part) for look in found.values()}) == len(registry), part
    for name in registry:
        assert looks([name], registry)[name] == found[name], f"{name} looks alike in every figure"


def test_looks_beyond_the_list_differ_from_all_others():
    names = [f"optimizer {number}" for number in range(100)]
    assert len(set(looks(names, []).values())) == 100
    assert looks(names[:30], names) == looks(names[:30], [])


def test_what_is_in_no_registry_looks_like_nothing_that_is():
    known = looks(list(OPTIMIZERS), OPTIMIZERS)
    found = looks(["theirs", "evol-q", "another"], OPTIMIZERS)
    assert found["evol-q"] == known["evol-q"]
    assert len({*known.values(), *found.values()}) == len(OPTIMIZERS) + 2


def transfer_of(criteria: list[str]) -> xarray.Dataset:
    """Return what `transfer` does, for one optimizer, on two calibration sets."""
    generator = np.random.default_rng(0)
    final = generator.random((len(criteria), 2, 1, 2, 20))
    over = ("criterion", "size", "optimizer", "seed")
    return xarray.Dataset(
        {
            "loss": (over, np.full(final.shape[:-1], 2.0)),
            "start_loss": (over[:2], np.full((len(criteria), 2), 3.0)),
            "ideal_loss": (over[:1], np.ones(len(criteria))),
            "final_test_loss_per_image": ((*over, "image"), final),
            "start_test_loss_per_image": ("image", np.full(20, 0.5)),
        },
        {"criterion": criteria, "size": [8, 32], "optimizer": ["adam"], "seed": [0, 1]},
    )


def test_a_new_criterion_is_drawn_by_its_words_in_a_look_of_its_own(monkeypatch):
    hinge = Criterion("hinge", CRITERIA["mse"].per_image, words="hinge loss (nats)")
    monkeypatch.setitem(CRITERIA, "hinge", hinge)
    figure = draw_transfer(transfer_of([*CRITERIA, "forgotten"]))
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[-2:] == ["hinge loss", "forgotten"]
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(CRITERIA) + 1
    np.testing.assert_allclose(lines[0].get_ydata(), 0.5)  # half of the gap from 3 to 1
