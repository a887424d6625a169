import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import synthetic_scans
from matplotlib.figure import Figure
from pages import unpacked
from plotly.offline import get_plotlyjs

from landscape.analysis import analyze
from landscape.plots import (
    draw,
    draw_plane,
    draw_rays,
    html,
    interactive,
    plane_info,
    rays_info,
    save_figure,
    write_html,
)
from landscape.statistics.minima import Minima, Minimum
from landscape.words import name_scan

INNER = Minimum({"y": 0.0, "x": 0.05}, 0.5, np.inf, np.nan, 1, False)
ON_EDGE = Minimum({"y": 0.05, "x": -0.1}, 0.6, 0.1, 0.01, 1, True)


def marking(scan, *minima):
    """Return what a scan found, with these minima."""
    return replace(analyze(scan), minima=Minima(minima, 0, 0, 8, None, 4.0))


def first_panel(scan, analysis=None):
    """Return the losses of a scan as a page draws them."""
    return interactive(scan, analysis).panels[0]


def heat_maps(figure: Figure):
    """Return the two losses and the confidence, as drawn: (y, x) values and cell corners."""
    axes = [a for a in figure.axes if a.get_title()]
    return [(a, a.collections[0]) for a in axes]


# What is shown ------------------------------------------------------------------------------------


def test_plane_info_keeps_each_value_in_its_cell():
    scan = synthetic_scans.plane(columns=5, rows=3)
    info = plane_info(scan, marking(scan))
    assert info.test_loss.quantity.values.shape == (3, 5)
    for row, column in np.ndindex(3, 5):
        here = scan.sel(x=info.x.values[column], y=info.y.values[row])
        assert info.loss.quantity.values[row, column] == here.loss
        assert info.test_loss.quantity.values[row, column] == here.test_loss
        assert info.accuracy[row, column] == here.test_accuracy


def test_plane_info_does_not_depend_on_the_order_of_dimensions():
    scan = synthetic_scans.plane(columns=5, rows=3)
    other = scan.transpose("image", "x", "calibration_image", "y")
    turned = plane_info(other, analyze(other))
    straight = plane_info(scan, marking(scan))
    np.testing.assert_array_equal(turned.confidence.values, straight.confidence.values)
    np.testing.assert_array_equal(turned.loss.quantity.values, straight.loss.quantity.values)
    np.testing.assert_array_equal(turned.change_error, straight.change_error)


def test_change_from_the_start_is_paired():
    scan = synthetic_scans.plane()
    info = plane_info(scan, marking(scan))
    losses = scan.test_loss_per_image.isel(x=4, y=1).values
    difference = losses - scan.start_test_loss_per_image.values
    assert info.change[1, 4] == pytest.approx(difference.mean())
    assert info.change_error[1, 4] == pytest.approx(difference.std(ddof=1) / np.sqrt(40))
    unpaired = losses.std(ddof=1) / np.sqrt(40)
    assert info.change_error[1, 4] < unpaired / 5


def test_confidence_says_what_the_images_tell_apart():
    scan = synthetic_scans.plane()
    noise = np.random.default_rng(1).standard_normal((5, 40))
    noise -= noise.mean(axis=1, keepdims=True)
    noise *= np.sqrt(40) / noise.std(axis=1, ddof=1, keepdims=True)  # standard error 1

    def shifted(shifts):
        """Put five points so many standard errors from the start."""
        for column, shift in enumerate(shifts):
            losses = scan.start_test_loss_per_image + shift + noise[column]
            scan["test_loss_per_image"][{"y": 0, "x": column}] = losses
        return analyze(scan)

    critical = shifted(np.zeros(5)).critical.both  # of the noise, wherever the points are
    assert 2 < critical < 4
    between = (2 + critical) / 2
    info = plane_info(scan, shifted((-5.0, -between, 1.0, between, 5.0)))
    np.testing.assert_array_equal(info.confidence.values[0], [0, 1, 2, 3, 4])
    assert info.band_words[0] == f"beyond −{critical:.1f}"
    assert info.band_words[2] == "−2 to 2"


def test_the_floor_is_shown_beside_the_losses():
    scan = synthetic_scans.with_repeats(synthetic_scans.rays())
    found = analyze(scan)
    floor = found.test_loss_floor.mean_loss.estimate
    info = rays_info(scan, found)
    assert info.test_loss.floor == pytest.approx(np.sqrt(2) * floor)
    bar = first_panel(scan, found).figures[1].layout.shapes[0]
    assert (bar.y0, bar.y1) == (-info.test_loss.floor, info.test_loss.floor)
    plane = synthetic_scans.with_repeats(synthetic_scans.plane())
    words = plane_info(plane, analyze(plane)).floor_words
    assert words == f"numerical noise ± {floor:.2g}", "the same repeats in both"


def test_a_point_equal_to_the_start_is_not_told_apart():
    scan = synthetic_scans.plane()
    scan["test_loss_per_image"][{"y": 1, "x": 2}] = scan.start_test_loss_per_image
    info = plane_info(scan, marking(scan))
    assert info.change_error[1, 2] == 0
    assert info.confidence.values[1, 2] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_without_a_value_are_holes_and_told_apart(bad):
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.spoil(scan, bad, x=0, y=2)
    synthetic_scans.forget(scan, x=4, y=0)
    info = plane_info(scan, marking(scan))
    for quantity in (info.loss.quantity, info.test_loss.quantity, info.confidence):
        assert np.argwhere(quantity.not_finite).tolist() == [[2, 0]]
        assert np.argwhere(quantity.not_computed).tolist() == [[0, 4]]
        assert np.argwhere(np.isnan(quantity.values)).tolist() == [[0, 4], [2, 0]]
    assert info.test_loss.quantity.limits[0] > 0  # not the -1 of the forgotten point


def test_markers_lie_at_the_start_and_the_minima():
    scan = synthetic_scans.plane()
    info = plane_info(scan, marking(scan, INNER, ON_EDGE))
    assert [(m.x, m.y, m.value, m.on_edge) for m in info.test_loss.minima] == [
        (0.05, 0.0, 0.5, False),
        (-0.1, 0.05, 0.6, True),
    ]
    start = info.test_loss.start
    assert (start.x, start.y) == (0, 0)
    assert start.value == pytest.approx(scan.start_test_loss_per_image.mean())
    assert info.loss.start.value == pytest.approx(scan.start_loss_per_image.mean())
    assert info.loss.minima == ()  # they are minima of the test loss


def test_checkpoints_are_marked_where_they_lie():
    scan = synthetic_scans.with_checkpoints(
        synthetic_scans.plane(), on=(0.05, 0.025, 0.0), off=(-0.1, 0.05, 0.3), far=(0.2, 0, 0)
    )
    info = plane_info(scan, marking(scan))
    assert [(c.x, c.y, c.label) for c in info.checkpoints] == [
        (0.05, 0.025, "1: on"),
        (-0.1, 0.05, "2: off (30.0% off the plane)"),
    ]
    assert info.subtitle.endswith("1 of 3 checkpoints outside the map")
    figure = draw_plane(scan, marking(scan))
    for axes, _ in heat_maps(figure):
        marked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
        assert marked == [(0.05, 0.025), (-0.1, 0.05), (0.0, 0.0)]
        assert [text.get_text() for text in axes.texts] == ["1", "2"]
    (legend,) = figure.subfigs[1].legends
    words = [text.get_text() for text in legend.texts]
    assert words == ["start", "1: on", "2: off (30.0% off the plane)"]
    flat, _ = first_panel(scan, marking(scan)).figures
    shown = [trace for trace in flat.data if trace.visible and trace.type == "scatter"]
    assert [(t.name, t.x, t.y, t.text) for t in shown] == [
        ("1: on", (0.05,), (0.025,), ("1",)),
        ("2: off (30.0% off the plane)", (-0.1,), (0.05,), ("2",)),
        ("start", (0.0,), (0.0,), None),
    ]


def test_a_legend_lists_as_many_checkpoints_as_it_has_room_for():
    places = {f"epoch{i}": (0.001 * i, 0.0, 0.0) for i in range(12)}
    scan = synthetic_scans.with_checkpoints(synthetic_scans.plane(), **places)
    figure = draw_plane(scan, marking(scan))
    (legend,) = figure.subfigs[1].legends
    assert len(legend.texts) == 1 + 8 + 1
    assert legend.texts[-1].get_text() == "… and 4 more checkpoints"
    assert len(heat_maps(figure)[0][0].texts) == 12


def test_words_come_from_the_provenance():
    scan = synthetic_scans.plane()
    info = plane_info(scan, analyze(scan))
    assert info.title == "fashion_vit, 4-bit weights, 8-bit activations, scheme linear"
    assert (
        info.subtitle == "around the start in scale space · 40 calibration images · 40 test images"
    )
    assert info.loss.quantity.measure == "infoNCE against full precision (nats × 2τ)"
    assert (info.x.name, info.x.unit) == ("Step along x", "RMS log change of the scales")


def test_the_subtitle_says_what_moves():
    scan = synthetic_scans.plane()
    name_scan(scan, synthetic_scans.CONFIGURATION | {"within": "blocks.*", "exclude": "*fc2*"})
    assert (
        "in scale space · within blocks.* · without *fc2* · 40"
        in plane_info(scan, marking(scan)).subtitle
    )


@pytest.mark.parametrize(
    ("scheme", "title"),
    [
        ("weights", "fashion_vit, 4-bit weights, scheme weights"),
        ("none", "fashion_vit, not quantized"),
    ],
)
def test_the_title_names_only_bits_in_use(scheme, title):
    scan = synthetic_scans.plane()
    name_scan(scan, synthetic_scans.CONFIGURATION | {"scheme": scheme})
    assert plane_info(scan, marking(scan)).title == title


@pytest.mark.parametrize(
    ("configuration", "unit"),
    [
        ({"over": "zero_points"}, "RMS shift of the zero points in codes"),
        ({"over": "weights", "normalize": "none"}, "RMS change of the weights"),
        ({"over": "weights", "normalize": "filter"}, "change relative to each filter's norm"),
        ({"over": "scales"}, "RMS log change of the scales"),
        ({"over": "weights", "directions": "pca"}, "in RMS distances of the checkpoints"),
    ],
)
def test_units_of_a_step(configuration, unit):
    scan = synthetic_scans.plane()
    name_scan(scan, synthetic_scans.CONFIGURATION | configuration)
    assert plane_info(scan, marking(scan)).x.unit == unit


def test_rays_info_is_relative_to_the_start():
    scan = synthetic_scans.rays(count=4, points=7)
    info = rays_info(scan, analyze(scan))
    assert info.test_loss.quantity.values.shape == (4, 7)
    start = float(scan.start_test_loss_per_image.mean())
    np.testing.assert_allclose(info.test_loss.quantity.values + start, scan.test_loss.values)
    np.testing.assert_allclose(info.loss.quantity.values[:, 3], 0, atol=1e-12)
    np.testing.assert_allclose(info.loss.mean, info.loss.quantity.values.mean(axis=0))
    assert info.loss.errors is None


def test_error_of_the_mean_ray_is_that_of_the_images_it_shares():
    scan = synthetic_scans.rays(count=4, points=7)
    # Whatever the rays have in common does not shrink by averaging over rays.
    common = 0.5 * np.random.default_rng(2).standard_normal(40)
    scan["test_loss_per_image"] = scan.test_loss_per_image + common
    change = scan.test_loss_per_image.isel(distance=1) - scan.start_test_loss_per_image
    expected = change.mean("ray").std(ddof=1) / np.sqrt(40)
    info = rays_info(scan, analyze(scan))
    assert info.test_loss.mean_errors[1] == pytest.approx(float(expected))
    assert info.test_loss.mean_errors[1] > 0.9 * info.test_loss.errors[0, 1]


def test_a_ray_without_a_value_leaves_the_mean_without_one():
    scan = synthetic_scans.rays(count=4, points=7)
    synthetic_scans.spoil(scan, ray=1, distance=6)
    info = rays_info(scan, analyze(scan))
    for curves in (info.loss, info.test_loss):
        assert np.argwhere(curves.quantity.not_finite).tolist() == [[1, 6]]
        assert np.flatnonzero(np.isnan(curves.mean)).tolist() == [6]


# Static figures -----------------------------------------------------------------------------------


def test_heat_maps_show_raw_cells_centered_on_their_coordinates():
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.spoil(scan, x=0, y=2)
    for (_, mesh), values in zip(
        heat_maps(draw_plane(scan, marking(scan))), (scan.loss, scan.test_loss), strict=False
    ):
        corners = mesh.get_coordinates()
        assert corners.shape == (4, 6, 2)
        centers = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        np.testing.assert_allclose(centers[1, :, 0], scan.x, atol=1e-12)
        np.testing.assert_allclose(centers[:, 1, 1], scan.y, atol=1e-12)
        np.testing.assert_array_equal(mesh.get_array().filled(np.nan), values)


def test_heat_maps_mark_start_and_minima_and_hatch_missing_cells():
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.spoil(scan, x=0, y=2)
    synthetic_scans.forget(scan, x=4, y=0)
    figure = draw_plane(scan, marking(scan, INNER, ON_EDGE))
    marks = [
        {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines}
        for axes, _ in heat_maps(figure)
    ]
    everywhere = {(0.0, 0.0), (0.05, 0.0), (-0.1, 0.05)}
    assert marks == [{(0.0, 0.0)}, everywhere, everywhere]
    for axes, _ in heat_maps(figure):
        centers = [patch.get_center() for patch in axes.patches]
        np.testing.assert_allclose(centers, [(-0.1, 0.05), (0.1, -0.05)])
        assert len({patch.get_hatch() for patch in axes.patches}) == 2
    (legend,) = figure.subfigs[1].legends
    assert [text.get_text() for text in legend.texts] == [
        "start",
        "local minimum of the test loss",
        "local minimum of the test loss, at an edge",
        "loss not finite",
        "not computed",
    ]


def test_legend_names_only_what_is_there():
    scan = synthetic_scans.plane()
    (legend,) = draw_plane(scan, marking(scan)).subfigs[1].legends
    assert [text.get_text() for text in legend.texts] == ["start"]


def test_plane_figure_names_axes_and_units():
    figure = draw(synthetic_scans.plane())
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes, _ in heat_maps(figure)]
    unit = "\n(RMS log change of the scales)"
    assert labels == [(f"Step along x{unit}", f"Step along y{unit}")] * 3
    bars = [axes.get_ylabel() for axes in figure.axes if not axes.get_xlabel()]
    assert bars == [
        "infoNCE against full precision (nats × 2τ)",
        "cross entropy (nats)",
        "in paired standard errors",
    ]
    assert [a.get_zlabel() for a in figure.axes if a.name == "3d"] == bars[:2]
    assert "fashion_vit" in figure.get_suptitle()


def test_map_and_surface_share_one_scale_of_colors():
    scan = synthetic_scans.plane()
    figure = draw_plane(scan, marking(scan))
    surface = next(axes for axes in figure.axes if axes.name == "3d").collections[0]
    limits = (float(scan.loss.min()), float(scan.loss.max()))
    assert heat_maps(figure)[0][1].get_clim() == limits
    assert surface.get_clim() == limits


def test_rays_figure_has_error_bars_and_names():
    scan = synthetic_scans.rays(count=4, points=7)
    synthetic_scans.spoil(scan, ray=1, distance=6)
    figure = draw_rays(scan, analyze(scan))
    left, right = figure.axes
    info = rays_info(scan, analyze(scan))
    bars = right.containers[2].lines[2][0].get_segments()
    values, errors = info.test_loss.quantity.values[2], info.test_loss.errors[2]
    np.testing.assert_allclose([bar[0, 1] for bar in bars], values - errors)
    assert len(left.containers) == len(right.containers) == 4
    for axes in (left, right):
        assert axes.get_xlabel() == "Signed distance along a ray\n(RMS log change of the scales)"
    assert right.get_ylabel() == "Change from the start:\ncross entropy (nats)"
    (legend,) = figure.legends
    assert "loss not finite" in [text.get_text() for text in legend.texts]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_saving_twice_gives_the_same_bytes(tmp_path, suffix):
    for name in "ab":
        save_figure(draw(synthetic_scans.rays()), tmp_path / f"{name}.{suffix}")
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert b"CreationDate" not in first


def test_the_smallest_plane_is_drawn():
    scan = synthetic_scans.plane(columns=2, rows=2)
    draw_plane(scan, marking(scan)).draw_without_rendering()
    interactive(scan)


def test_a_plane_without_any_finite_point_is_drawn():
    scan = synthetic_scans.plane()
    synthetic_scans.spoil(scan)
    draw_plane(scan, marking(scan)).draw_without_rendering()
    interactive(scan)


# Interactive figures ------------------------------------------------------------------------------


def test_interactive_heat_map_and_surface_have_each_value_in_its_cell():
    scan = synthetic_scans.plane(columns=5, rows=3)
    page = first_panel(scan, marking(scan, INNER))
    shown = [trace for figure in page.figures for trace in figure.data if trace.visible]
    (cells,) = (trace for trace in shown if trace.type == "heatmap")
    (surface,) = (trace for trace in shown if trace.type == "surface")
    for trace in (cells, surface):
        np.testing.assert_array_equal(trace.x, scan.x)
        np.testing.assert_array_equal(trace.y, scan.y)
        np.testing.assert_array_equal(trace.z, scan.test_loss)
    marks = {trace.name: (trace.x, trace.y) for trace in shown if trace.type == "scatter"}
    assert marks == {
        "local minimum of the test loss": ((0.05,), (0.0,)),
        "local minimum of the test loss, at an edge": ((), ()),
        "start": ((0.0,), (0.0,)),
    }


def test_hovering_says_place_losses_error_and_accuracy():
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.spoil(scan, x=0, y=2)
    page = first_panel(scan)
    point, info = scan.isel(x=3, y=1), plane_info(scan, marking(scan))
    losses = [float(point.loss), float(point.test_loss)]
    rest = [info.change[1, 3], info.change_error[1, 3], 100 * float(point.test_accuracy)]
    for figure, kind in zip(page.figures, ("heatmap", "surface"), strict=True):
        views = [trace for trace in figure.data if trace.type == kind]
        assert len(views) == 3
        for trace in views:
            said = trace.customdata[1, 3]
            np.testing.assert_allclose(said, [*losses, *rest], rtol=1e-6)  # float32
            assert trace.hovertemplate.split("<br>") == [
                "x = %{x:.4g}, y = %{y:.4g}",
                "Calibration loss (infoNCE against full precision (nats × 2τ)): "
                "%{customdata[0]:.4f}",
                "Test loss (cross entropy (nats)): %{customdata[1]:.4f}",
                "from the start %{customdata[2]:+.4f} ± %{customdata[3]:.4f} "
                "(paired standard error)",
                "Test accuracy: %{customdata[4]:.1f} %<extra></extra>",
            ]
            assert np.isnan(trace.customdata[2, 0, 1])


def test_each_trace_belongs_to_one_view():
    page = first_panel(synthetic_scans.plane())
    assert page.views == ("Calibration loss", "Test loss", "Test loss against the start")
    flat, solid = page.figures
    assert solid.data[-1].meta is None, "the pointer belongs to all"
    for trace in (*flat.data, *solid.data[:-1]):
        assert trace.meta["view"] in range(3)
        seen = trace.meta["view"] == page.shown and "contours" not in trace.meta
        assert trace.visible == seen
    assert len(solid.layout.meta) == 3


def test_interactive_rays_have_error_bars():
    scan = synthetic_scans.rays(count=4, points=7)
    info = rays_info(scan, analyze(scan))
    left, right = first_panel(scan).figures
    rays = [
        trace
        for figure in (left, right)
        for trace in figure.data
        if trace.name.startswith("one ray")
    ]
    assert len(rays) == 8
    np.testing.assert_array_equal(rays[6].y, info.test_loss.quantity.values[2])
    np.testing.assert_array_equal(rays[6].error_y.array, info.test_loss.errors[2])
    assert not rays[0].error_y.visible  # the calibration loss has no sampling error
    assert right.layout.xaxis.title.text.startswith("Signed distance along a ray (RMS")


def test_a_notebook_shows_a_page_in_a_frame_of_its_own():
    page = interactive(synthetic_scans.plane())
    frame = re.fullmatch(r'<iframe [^>]*srcdoc="([^"]*)"></iframe>', page._repr_html_())
    assert frame is not None
    assert unescape(frame.group(1)) == html([page])


def test_html_needs_no_network_and_is_the_same_each_time(tmp_path):
    scan = synthetic_scans.plane()
    for name in ("a.html", "b.html"):
        write_html([interactive(scan)], tmp_path / name)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|iframe)\b[^>]*\bsrc\s*=", page)
    assert "<link" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "Plotly.newPlot" in page
    assert unpacked(page, "plotly") == get_plotlyjs()
    assert "<title>fashion_vit, 4-bit weights" in page


# Walks --------------------------------------------------------------------------------------------


def test_walks_are_drawn_step_by_step_with_their_autocorrelation():
    scan = synthetic_scans.walks()
    found = analyze(scan)
    figure = draw(scan, found)
    left, middle, right = figure.axes
    assert middle.get_xlabel() == "Step of a walk"
    np.testing.assert_allclose(right.lines[-1].get_ydata(), found.correlogram.value)
    ends = [line.get_ydata()[-1] for line in left.lines if len(line.get_xdata()) == 9]
    assert ends[:3] == pytest.approx([8, 12, 16])
    page = first_panel(scan, found)
    np.testing.assert_allclose(page.figures[2].data[0].y, found.correlogram.value)
    assert page.figures[1].data[0].text[3].startswith("walk 0, step of a walk 3")


def test_a_single_walk_of_one_image_is_drawn():
    scan = synthetic_scans.walks(count=1, steps=2, images=1)
    assert len(draw(scan).axes) == 3
    assert len(first_panel(scan).figures) == 2
