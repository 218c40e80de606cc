"""`fastconv.buffers`: arrays that share memory are never needed at once."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fastconv.buffers import Life, shared

LIVES = st.lists(
    st.builds(
        lambda first, length, size: Life(first, first + length, size), *(st.integers(0, 12),) * 2, st.integers(0, 99)
    ),
    max_size=12,
)


@given(LIVES)
def test_what_is_needed_at_once_lies_apart_and_fits(lives):
    buffers, sizes = shared(lives)
    assert all(sizes[buffer] >= life.bytes for buffer, life in zip(buffers, lives, strict=True))
    for (one, a), (other, b) in combinations(zip(buffers, lives, strict=True), 2):
        assert one != other or a.last < b.first or b.last < a.first
    assert sum(sizes) <= sum(life.bytes for life in lives)


def test_a_chain_takes_two_buffers_and_a_residual_a_third():
    assert shared([Life(i, i + 1, 10 * i + 10) for i in range(4)]) == ([0, 1, 0, 1], [30, 40])
    buffers, sizes = shared([Life(0, 3, 8), Life(1, 2, 8), Life(2, 3, 8), Life(3, 4, 8)])
    assert len(sizes) == 3 and len(set(buffers[:3])) == 3 and buffers[3] == buffers[1]
