import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evolq.errors import InputError
from landscape.statistics.merge_tree import kept_basins, merge_tree


def neighbors(index, shape, connectivity):
    for step in np.ndindex(*(3,) * len(shape)):
        offset = np.array(step) - 1
        if 0 < np.abs(offset).sum() <= (1 if connectivity == 4 else len(shape)):
            other = np.array(index) + offset
            if ((other >= 0) & (other < shape)).all():
                yield tuple(int(i) for i in other)


def lakes_joined(values, connectivity):
    """Return {minimum: (saddle, minima of the lake that it joins)}, by raising the water.

    Points are ordered by value, then place, as the docstring says.
    """
    lake, members, joined = {}, {}, {}
    finite = [i for i in np.ndindex(values.shape) if np.isfinite(values[i])]
    order = {i: rank for rank, i in enumerate(sorted(finite, key=lambda i: (values[i], i)))}
    for i in order:
        around = {lake[j] for j in neighbors(i, values.shape, connectivity) if j in lake}
        if not around:
            lake[i], members[i], joined[i] = i, {i}, None
            continue
        eldest, *others = sorted(around, key=order.get)
        lake[i] = eldest
        reached = set(members[eldest])
        for other in others:
            reached |= members[other]
        for other in others:
            joined[other] = (i, reached - members[other])
            for j in lake:
                if lake[j] == other:
                    lake[j] = eldest
        members[eldest] = reached
    return joined


LEVELS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0, 9.0, np.nan, np.inf])


@settings(max_examples=150, deadline=None)
@given(
    arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=LEVELS),
    st.sampled_from([4, 8]),
)
def test_minima_saddles_and_parents_are_those_of_rising_water(values, connectivity):
    expected = lakes_joined(values, connectivity)
    tree = merge_tree(values[None], connectivity)
    places = [tuple(int(i) for i in np.unravel_index(m, values.shape)) for m in tree.minima]
    assert set(places) == set(expected)
    assert places == sorted(places, key=lambda i: (values[i], i))  # lowest first
    for number, place in enumerate(places):
        if expected[place] is None:
            assert tree.saddles[number] == -1
            assert tree.parents[number] == number
        else:
            saddle, lake = expected[place]
            assert tuple(np.unravel_index(tree.saddles[number], values.shape)) == saddle
            assert places[tree.parents[number]] in lake
            at_saddle = [saddle, *neighbors(saddle, values.shape, connectivity)]
            assert tree.parents[number] in {tree.basins[0][i] for i in at_saddle}


@pytest.mark.parametrize("connectivity", [4, 8])
def test_basins_are_reached_by_steepest_descent(connectivity):
    values = np.random.default_rng(0).normal(size=(9, 12))
    values[2, 3:6] = np.inf
    tree = merge_tree(values[None], connectivity)
    for start in np.ndindex(values.shape):
        if not np.isfinite(values[start]):
            assert tree.basins[0][start] == -1
            continue
        at = start
        while True:
            lowest = min([at, *neighbors(at, values.shape, connectivity)], key=lambda i: values[i])
            if lowest == at:
                break
            at = lowest
        minimum = tree.minima[tree.basins[0][start]]
        assert np.unravel_index(minimum, values.shape) == at


def test_surfaces_do_not_touch_each_other():
    random = np.random.default_rng(1)
    for shape in ((7, 6, 5), (7, 11)):
        values = random.normal(size=shape)
        together = merge_tree(values)
        size = values[0].size
        for piece, surface in enumerate(values):
            alone = merge_tree(surface[None])
            own = together.minima // size == piece
            assert (together.minima[own] - piece * size).tolist() == alone.minima.tolist()
            saddles = together.saddles[own]
            assert np.where(saddles < 0, -1, saddles - piece * size).tolist() == (
                alone.saddles.tolist()
            )
            numbers = np.flatnonzero(own)
            assert together.parents[own].tolist() == numbers[alone.parents].tolist()
            assert together.basins[piece].tolist() == numbers[alone.basins[0]].tolist()


def test_minima_that_are_dropped_give_their_basins_to_those_that_stay():
    line = np.array([[0.0, 5.0, 3.0, 4.0, 1.0, 9.0, 2.0]])
    tree = merge_tree(line)
    assert tree.minima.tolist() == [0, 4, 6, 2]  # 0, 1, 2, 3 in height
    assert tree.saddles.tolist() == [-1, 1, 5, 3]
    assert kept_basins(tree, np.array([True] * 4)).tolist() == [[0, 0, 3, 1, 1, 1, 2]]
    # Number 3 (height 3) flows into number 1 over the saddle of height 4.
    without = kept_basins(tree, np.array([True, True, True, False]))
    assert without.tolist() == [[0, 0, 1, 1, 1, 1, 2]]
    assert kept_basins(tree, np.array([True, False, True, False])).tolist() == [
        [0, 0, 0, 0, 0, 0, 2]
    ]
    assert kept_basins(tree, np.array([False] * 4)).tolist() == [[0] * 7]


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="4 or 8, not 6"):
        merge_tree(np.zeros((1, 3, 3)), connectivity=6)
    empty = merge_tree(np.full((2, 3), np.nan))
    assert len(empty.minima) == 0
    assert (empty.basins == -1).all()
