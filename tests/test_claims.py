"""Verdicts on claims: either way on effects that are known, and measures on known surfaces."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evolq.errors import InputError
from figures.claims.__main__ import FOLDER
from figures.claims.claims import CLAIMS, Claim
from figures.claims.measures import (
    MEASURES,
    POINTS,
    RADIUS,
    TEST_IMAGES,
    bends,
    curvature,
    minima,
    picked,
    shared_square,
    signed_root,
    within,
)
from figures.claims.page import DOCS, draw, of_claim, render, verdicts_of, write_page
from figures.claims.verdicts import decide, holm


def test_holm_by_hand() -> None:
    # smallest times 3, the next times 2, and no p value below one before it
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    # Wright 1992, "Adjusted P-values for simultaneous inference", is what R's p.adjust does:
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    np.testing.assert_allclose(holm([0.01, 0.02, 0.03, 0.04, 0.05]), [0.05, 0.08, 0.09, 0.09, 0.09])


def test_verdicts_come_out_either_way() -> None:
    noise = np.random.default_rng(0).normal(size=10)
    found = decide({"up": 5 + noise, "down": noise - 5, "none": noise - noise.mean()})
    assert [found[name].word for name in ("up", "down", "none")] == [
        *("supported", "contradicted", "undecided")
    ]
    one = found["up"]
    t = stats.ttest_1samp(5 + noise, 0)
    assert one.p == pytest.approx(3 * t.pvalue)
    interval = t.confidence_interval()
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    with pytest.raises(InputError, match="few: 3 or more"):
        decide({"few": [1.0, 2.0]})


def test_false_verdicts_are_rare_over_the_family() -> None:
    generator = np.random.default_rng(1)
    wrong = sum(
        any(v.word != "undecided" for v in decide(family).values())
        for family in ({str(k): generator.normal(size=5) for k in range(8)} for _ in range(300))
    )
    # 5 % within three binomial standard errors
    assert wrong / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_what_could_be_seen_is_seen_in_80_percent_of_families() -> None:
    generator = np.random.default_rng(2)
    family = [generator.normal(size=(300, 10)) for _ in range(4)]
    # the known scatter stands for that of each sample: 1 / root 10
    one = decide({str(k): (v[0] - v[0].mean()) / v[0].std(ddof=1) for k, v in enumerate(family)})
    effect = one["0"].seen
    seen = np.mean(
        [
            decide({str(k): v[i] + effect * (k == 0) for k, v in enumerate(family)})["0"].word
            == "supported"
            for i in range(300)
        ]
    )
    assert seen == pytest.approx(0.8, abs=0.07)


def test_roughness_is_free_of_sampling_noise_and_of_bowls() -> None:
    generator = np.random.default_rng(3)
    points = np.arange(101)
    zigzag = 0.3 * (-1.0) ** points  # fourth differences of 16 * 0.3
    noise = generator.normal(size=(4, 101, 200))
    rough = signed_root(shared_square(bends(zigzag[None, :, None] + noise)))
    assert rough == pytest.approx(16 * 0.3 / np.sqrt(70), rel=0.04)
    white = generator.normal(size=(1, 100_000, 1)).repeat(2, axis=-1)  # all images share it
    assert shared_square(bends(white)) == pytest.approx(1, rel=0.05)
    cubic = 0.1 * points - 0.01 * points**2 + 1e-4 * points**3
    alone = [
        signed_root(
            shared_square(bends(cubic[None, :, None] + generator.normal(size=(4, 101, 200))))
        )
        for _ in range(20)
    ]
    # each has noise of about root (1 / 200) per point in the root mean square, less by many points
    assert min(alone) < 0 < max(alone)
    assert np.abs(alone).max() < 0.05


def test_curvature_of_a_known_cubic_with_noise() -> None:
    generator = np.random.default_rng(5)
    x = np.linspace(-RADIUS, RADIUS, POINTS)
    rays = np.stack([2 + x + 3 * x**2 + x**3, 7 * x**2])[..., None]  # 6 and 14
    assert curvature(rays) == pytest.approx(10, rel=1e-9)
    noisy = [curvature(rays + 0.1 * generator.normal(size=(2, POINTS, 200))) for _ in range(200)]
    error = np.std(noisy) / np.sqrt(200)
    assert np.mean(noisy) == pytest.approx(10, abs=4 * error)


def test_minima_are_counted_however_shallow_and_whatever_the_units() -> None:
    x = np.linspace(0, 4 * np.pi, 81)
    for height, count in ((0.0, 1), (1.0, 3)):
        # a bowl with a dip in its middle and at either end, the same along y but for a slope
        bowl = ((x / x.max()) * 2 - 1) ** 2 * 2 - height * np.cos(x)
        surface = bowl + 1e-3 * np.arange(3)[:, None]
        assert minima(surface) == minima(np.exp(surface)) == count
    with pytest.raises(ValueError, match="range"):
        minima(np.zeros((3, 3)))


def test_picking_on_noise_gains_only_where_it_picks() -> None:
    generator = np.random.default_rng(4)
    noise = generator.normal(size=(30, POINTS, 200))
    found = [picked(losses[None]) for losses in noise]
    here, there = (
        np.mean([f[name] for f in found]) for name in ("gain_where_picked", "gain_elsewhere")
    )
    # the largest of 20 differences to one start, each with an error of root (2 / 100): 1.9 and
    # one in 21 that the start itself is best
    assert here == pytest.approx(0.187, abs=0.05)
    assert there == pytest.approx(0, abs=0.05)


# Of each claim, numbers that speak for it; the reverse ones speak against it.
FOR: dict[str, tuple[dict[str, float], ...]] = {
    "The surface is rougher at fewer bits.": ({"roughness": 2.0}, {"roughness": 1.0}),
    "Transformers are rougher than CNNs.": ({"roughness": 2.0}, {"roughness": 1.0}),
    "The roughness comes from code flips of weights.": ({"roughness": 2.0}, {"roughness": 1.0}),
    "Gradients stall where evolution goes on.": ({"adam": 2.0, "evolq": 1.0},),
    "infoNCE makes the surface easier.": ({"info_nce": 3.0, "kl": 4.0, "mse": 6.0},),
    "Small changes of scales change accuracy noticeably.": ({"accuracy_change": 1.0},),
    "Small changes of scales change the test loss by more than the numerical floor.": (
        {"loss_change": 1.5},
        {"floor": 1.0},
    ),
    "Transformers are rougher than CNNs at an equal share of flipped codes.": (
        {"roughness": 1.5, "flips": 0.01},
        {"roughness": 1.4, "flips": 0.01},
    ),
    "qkv and proj are rougher than fc1 and fc2.": ({"roughness": 2.0}, {"roughness": 1.0}),
    f"The roughness that {TEST_IMAGES} images show is mostly the network's.": (
        {"structure": 0.6, "total": 1.0},
    ),
    "Arithmetic is a smaller part of the roughness than the sample.": (
        {"structure": 0.6, "total": 1.0},
        {"floor": 0.6},
    ),
    "Gradients stall where evolution goes on: on calibration images.": (
        {"adam_calibration": 2.0, "evolq_calibration": 1.0},
    ),
    "Gains grow as bits fall.": ({"start": 3.0, "evolq": 1.0}, {"start": 2.0, "evolq": 1.0}),
    "The published population beats (1+1) at equal cost.": ({"evolq": 2.0}, {"evolq": 1.0}),
    "Selecting on test images inflates the gain.": (
        {"gain_where_picked": 0.2, "gain_elsewhere": 0.1},
    ),
    "Stronger starts shrink the gain.": (
        {"start": 3.0, "evolq": 1.0},
        {"start": 2.0, "evolq": 1.0},
    ),
    "It works on CNNs too.": ({"start": 2.0, "evolq": 1.0},),
    "infoNCE overfits less.": ({"info_nce": 1.0, "kl": 1.0, "mse": 2.0},),
    "Block by block beats all scales at once at equal cost.": ({"evolq": 2.0}, {"evolq": 1.0}),
    "Curvature rises as bits fall.": ({"curvature": 2.0}, {"curvature": 1.0}),
    "Separability falls as bits fall.": ({"interaction": 2.0}, {"interaction": 1.0}),
    "It works at extreme bits: 2-bit weights, 4-bit activations.": ({"start": 2.0, "evolq": 1.0},),
}
AGAINST: dict[str, tuple[dict[str, float], ...]] = {
    "The roughness comes from code flips of weights.": ({"roughness": 2.0}, {"roughness": 1.9}),
    "infoNCE makes the surface easier.": ({"info_nce": 6.0, "kl": 4.0, "mse": 6.0},),
    "Small changes of scales change accuracy noticeably.": ({"accuracy_change": 0.1},),
    "Small changes of scales change the test loss by more than the numerical floor.": (
        {"loss_change": 1.0},
        {"floor": 1.0},
    ),
    "Transformers are rougher than CNNs at an equal share of flipped codes.": (
        {"roughness": 1.5, "flips": 0.04},  # rougher, with twice the root of flips
        {"roughness": 1.4, "flips": 0.01},
    ),
    f"The roughness that {TEST_IMAGES} images show is mostly the network's.": (
        {"structure": 0.4, "total": 1.0},
    ),
    "Arithmetic is a smaller part of the roughness than the sample.": (
        {"structure": 0.9, "total": 1.0},
        {"floor": 0.6},
    ),
    "Gradients stall where evolution goes on.": ({"adam": 1.0, "evolq": 2.0},),
    "Gradients stall where evolution goes on: on calibration images.": (
        {"adam_calibration": 1.0, "evolq_calibration": 2.0},
    ),
    "Selecting on test images inflates the gain.": (
        {"gain_where_picked": 0.1, "gain_elsewhere": 0.2},
    ),
    "It works on CNNs too.": ({"start": 1.0, "evolq": 2.0},),
    "infoNCE overfits less.": ({"info_nce": 2.0, "kl": 1.0, "mse": 2.0},),
    "It works at extreme bits: 2-bit weights, 4-bit activations.": ({"start": 1.0, "evolq": 2.0},),
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.number} {claim.says}")
def test_each_claim_comes_out_either_way(claim: Claim) -> None:
    speaking = FOR[claim.says]
    # where nothing else is said, places change roles
    contrary = AGAINST.get(claim.says, speaking[::-1])
    for cell in claim.cells:
        assert len(cell.keys) == len(speaking)
        assert all(measure in MEASURES for measure, _, _ in cell.keys)
        assert cell.effect(*speaking) > 0 > cell.effect(*contrary)


def rows_of(claim: Claim, values: Callable[[int], tuple[dict[str, float], ...]]) -> list[dict]:
    """Return rows of the first cell of a claim, for 4 seeds."""
    return [
        {"measure": m, "network": n, "bits": b, "seed": seed, "values": own, "seconds": 60.0}
        for seed in range(4)
        for (m, n, b), own in zip(claim.cells[0].keys, values(seed), strict=True)
    ]


def test_the_page_says_what_rows_hold() -> None:
    (claim,) = (each for each in CLAIMS if each.number == 4)  # no other reads what it measures
    rows = rows_of(claim, lambda seed: ({"roughness": 2 + 0.1 * seed}, {"roughness": 1.0}))
    verdicts = verdicts_of(rows[:-1])  # the fourth seed has one of two
    assert [(each.number, cell) for each, cell in verdicts] == [(4, "transformer, W3")]
    assert of_claim(verdicts, claim)["transformer, W3"].seeds == 3
    text = render(verdicts, 4.0)
    assert "| 4. qkv and proj are rougher than fc1 and fc2. | supported in 1 of 1 |" in text
    assert "| transformer, W3 | supported | +1.1 (+0.852 to +1.35) |" in text
    (axes,) = draw(verdicts).axes
    assert axes.texts[0].get_text() == "4. qkv and proj are rougher than fc1 and fc2."
    assert [label.get_text() for label in axes.get_yticklabels()] == ["transformer, W3"]


def test_page_and_readme_say_what_the_stored_runs_do(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    write_page(rows, tmp_path)
    page = (tmp_path / "claims.md").read_text()
    assert page == (DOCS / "claims.md").read_text()
    primary = page.split("## Primary claims\n\n")[1].split("\n\n")[0]  # claims and verdicts
    assert primary in (DOCS.parent / "README.md").read_text()


@pytest.mark.slow
def test_a_measure_repeats_on_a_bundled_network() -> None:
    globs = ("*.conv1.weight.scale",)
    one, again = (within(globs, "fashion_resnet", 3, 0) for _ in range(2))
    assert one == again
    assert 0 < abs(one["roughness"]) < 0.1
