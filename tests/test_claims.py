"""Verdicts on claims: either way on effects that are known, and measures on known surfaces."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from evolq.errors import InputError
from figures.claims.claims import CLAIMS
from figures.claims.measures import DEPTH, jaggedness, minima
from figures.claims.page import draw, render, verdicts_of
from figures.claims.verdicts import decide, holm


def test_holm_by_hand() -> None:
    # smallest times 3, the next times 2, and no p value below one before it
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])


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
        for family in ({str(k): generator.normal(size=5) for k in range(8)} for _ in range(1000))
    )
    # 5 % within three binomial standard errors
    assert wrong / 1000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_jaggedness_is_free_of_sampling_noise() -> None:
    generator = np.random.default_rng(2)
    points = np.arange(101)
    zigzag = 0.3 * (-1.0) ** points  # second differences of 4 * 0.3
    noise = generator.normal(size=(4, 101, 200))
    assert jaggedness(zigzag[None, :, None] + noise) == pytest.approx(1.2, rel=0.02)
    line = 0.1 * points[None, :, None]
    alone = [jaggedness(line + generator.normal(size=(4, 101, 200))) for _ in range(20)]
    # each has noise of about root 6 / 200 per point in the mean square
    assert min(alone) < 0 < max(alone)
    assert np.abs(alone).max() < 0.1


def test_minima_are_those_deeper_than_a_share_of_the_range() -> None:
    x = np.linspace(0, 4 * np.pi, 81)
    for height, count in ((0.01 * DEPTH, 1), (1.0, 3)):
        # a bowl of range 2 with a dip in its middle and at either end
        values = np.broadcast_to(((x / x.max()) * 2 - 1) ** 2 * 2 - height * np.cos(x), (3, 81))
        surface = xr.Dataset(
            {
                "loss": (("y", "x"), values),
                "loss_per_image": (
                    ("y", "x", "calibration_image"),
                    np.repeat(values[..., None], 2, -1),
                ),
            },
            {"y": np.arange(3.0), "x": x},
        )
        assert minima(surface) == count


def test_the_page_says_what_rows_hold() -> None:
    claim = CLAIMS[0]
    rows = [
        {
            "claim": claim.number,
            "cell": claim.cells[0].name,
            "seed": seed,
            "values": {"more": 2 + 0.1 * seed, "less": 1.0},
            "seconds": 60.0,
        }
        for seed in range(4)
    ]
    verdicts = verdicts_of([*rows, {**rows[0], "cell": claim.cells[1].name}])
    assert [cell for _, cell in verdicts] == [claim.cells[0].name]  # the other has one seed
    text = render(verdicts, 4.0)
    assert "| transformer, W3 against W4 | 4 | +1.15 (+0.945 to +1.36) |" in text
    assert "supported |" in text
    (axes,) = draw(verdicts).axes
    assert axes.get_title(loc="left").startswith("2. ")
