"""`patching.py`: every rule equals a loop over one row, no border depends on what follows, ids and lengths agree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_compressor.byte_lm.patching import broadcast_patches, gather_patches
from auto_compressor.hierarchical_autoencoder.patching import (
    BORDER_RULES,
    continued_borders,
    cumulative_borders,
    last_borders,
    limit_patch_lengths,
    patch_ids_from_borders,
    patch_lengths_from_ids,
    positions_in_patch,
)


MAX_LENGTH = 5


def loop_rising(row, threshold):
    return [i == 0 or row[i] - row[i - 1] > threshold for i in range(len(row))]


def loop_threshold(row, threshold):
    return [i == 0 or score > threshold for i, score in enumerate(row)]


def loop_cumulative(row, threshold):
    borders, run = [True], np.float32(0)
    for score in row[1:]:
        run = np.float32(run + score)
        borders.append(run >= threshold)
        run = np.float32(0) if borders[-1] else run
    return borders


def loop_limit(borders, max_length):
    limited, length = [], 0
    for i, border in enumerate(borders):
        limited.append(i == 0 or border or length == max_length)
        length = 1 if limited[-1] else length + 1
    return limited


LOOPS = {
    "entropy_rise": loop_rising,
    "entropy_threshold": loop_threshold,
    "cumulative_entropy": loop_cumulative,
    "target_ratio": loop_rising,
}
rules = pytest.mark.parametrize("rule", BORDER_RULES)
# Few values, so that ties with the threshold and with each other are common, and any others.
VALUES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0]).map(np.float32).map(float) | st.floats(0, 4, width=32)
THRESHOLDS = st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0]) | st.floats(0, 4)


@st.composite
def batches(draw, values=VALUES):
    """Tensors `(batch_size, length)` of 1 to 4 rows and 1 to 40 columns."""
    length = draw(st.integers(1, 40))
    row = st.lists(values, min_size=length, max_size=length)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)))


@rules
@given(scores=batches(), threshold=THRESHOLDS, as_tensor=st.booleans())
@settings(max_examples=60, deadline=None)
def test_rules_equal_loops(rule, scores, threshold, as_tensor):
    expected = [LOOPS[rule](row, np.float32(threshold)) for row in scores.numpy()]
    found = BORDER_RULES[rule](scores, torch.tensor(threshold) if as_tensor else threshold)
    assert found.dtype == torch.bool and found.tolist() == expected


@rules
@given(scores=batches(), noise=batches(), threshold=THRESHOLDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_borders_depend_on_no_later_score(rule, scores, noise, threshold, data):
    changed, start = scores.clone(), data.draw(st.integers(0, scores.shape[1] - 1))
    changed[:, start:] = torch.from_numpy(np.resize(noise, changed[:, start:].shape))
    found, after = (
        limit_patch_lengths(BORDER_RULES[rule](values, threshold), MAX_LENGTH) for values in (scores, changed)
    )
    assert torch.equal(after[:, :start], found[:, :start])


@pytest.mark.parametrize(
    ("scores", "threshold", "expected"),
    [
        ([9.0, 0.5, 0.5, 0.5, 0.5], 1.0, [1, 0, 1, 0, 1]),  # the first score counts for nothing; reaching is enough
        ([0.0, 0.9, 0.9, 0.3, 0.9], 1.0, [1, 0, 1, 0, 1]),  # what is above the threshold is dropped
        ([0.0, 1.5, 0.9995, 0.0005], 1.0, [1, 1, 0, 1]),  # and the sum starts at 0 again
        ([0.0, 0.7, 0.1], 0.7, [1, 1, 0]),  # 0.7 of float32 is less than that of Python
        ([0.0, 2.0**24, 1.0, 1.0], 2.0**24 + 2, [1, 0, 0, 0]),  # float32 does not count on from here
        ([5.0, 0.0, 0.0], 0.0, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_known_cumulative_borders(scores, threshold, expected, dtype):
    scores = torch.tensor([scores], dtype=torch.float32).to(dtype)
    assert cumulative_borders(scores, threshold).long().tolist() == [expected]


@given(scores=batches(), threshold=THRESHOLDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_lengths_mask_cumulative_borders(scores, threshold, data):
    lengths = [data.draw(st.integers(0, scores.shape[1])) for _ in scores]
    found = cumulative_borders(scores, threshold, torch.tensor(lengths))
    whole = cumulative_borders(scores, threshold)
    for row, expected, length in zip(found, whole, lengths, strict=True):
        assert torch.equal(row[:length], expected[:length]) and not row[length:].any()


def test_cumulative_borders_take_two_dimensions():
    with pytest.raises(ValueError, match="`scores` must have the shape"):
        cumulative_borders(torch.zeros(3), 1.0)


@given(borders=batches(st.sampled_from([False, False, False, True])), max_length=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_limited_lengths(borders, max_length):
    limited = limit_patch_lengths(borders, max_length)
    assert limited.tolist() == [loop_limit(row, max_length) for row in borders.tolist()]
    assert limited[borders].all()
    ids = patch_ids_from_borders(limited, torch.ones_like(limited))
    assert 1 <= patch_lengths_from_ids(ids, int(ids.max()) + 1).max() <= max_length


@given(
    rows=st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    more_patches=st.integers(0, 2),
    garbage=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_lengths_to_ids_and_back(rows, padding, more_patches, garbage):
    """Also with borders in the padding, and rows without any patch."""
    width, num_patches = max(map(sum, rows)) + padding, max(map(len, rows)) + more_patches
    borders, mask = torch.full((len(rows), width), garbage), torch.zeros(len(rows), width, dtype=torch.bool)
    expected_ids = torch.full((len(rows), width), -1)
    expected_positions = torch.zeros(len(rows), width, dtype=torch.long)
    for row, lengths in enumerate(rows):
        valid, lengths = slice(sum(lengths)), torch.tensor(lengths, dtype=torch.long)
        mask[row, valid] = True
        expected_ids[row, valid] = torch.arange(len(lengths)).repeat_interleave(lengths)
        expected_positions[row, valid] = torch.cat([torch.arange(n) for n in [0, *lengths.tolist()]])
        borders[row, valid] = expected_positions[row, valid] == 0
    ids, positions = patch_ids_from_borders(borders, mask), positions_in_patch(borders)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(positions[mask], expected_positions[mask])
    assert torch.equal(last_borders(borders), torch.arange(width) - positions)
    found = patch_lengths_from_ids(ids, num_patches)
    assert found.tolist() == [lengths + [0] * (num_patches - len(lengths)) for lengths in rows]
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))


@rules
def test_no_columns(rule):
    borders = limit_patch_lengths(BORDER_RULES[rule](torch.zeros(2, 0), 0.5), MAX_LENGTH)
    assert borders.shape == positions_in_patch(borders).shape == (2, 0) and borders.dtype == torch.bool
    assert patch_lengths_from_ids(patch_ids_from_borders(borders, borders), 0).shape == (2, 0)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(VALUES, min_size=12, max_size=12), min_size=1, max_size=3), data=st.data())
def test_borders_go_on_in_pieces(rows, data):
    """Whatever the pieces, and with rows that end in different ones."""
    scores, threshold = torch.tensor(rows), data.draw(THRESHOLDS)
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 12), min_size=len(rows), max_size=len(rows))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 11))))
    pieces, running_sum, begun = [], None, None
    for start, end in zip([0, *cuts], [*cuts, 12], strict=True):
        inside = (lengths - start).clamp(0, end - start)
        borders, running_sum = continued_borders(scores[:, start:end], threshold, inside, running_sum, begun)
        begun = lengths > 0
        pieces.append(borders)
    assert torch.equal(torch.cat(pieces, dim=1), cumulative_borders(scores, threshold, lengths))


@settings(deadline=None, max_examples=60)
@given(borders=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3), data=st.data())
def test_gather_and_broadcast(borders, data):
    """In one piece and in two, against a loop."""
    border_mask = torch.tensor(borders)
    border_mask[:, 0] = True
    states = torch.arange(1.0, border_mask.numel() * 2 + 1).view(len(borders), 9, 2)
    gathered = gather_patches(states, border_mask)
    patch_states = -gathered
    expected = torch.zeros_like(states)
    for row in range(len(borders)):
        starts = border_mask[row].nonzero()[:, 0].tolist()
        assert (
            torch.equal(gathered[row, : len(starts)], states[row, starts]) and not gathered[row, len(starts) :].any()
        )
        for patch, start in enumerate(starts[1:], start=1):
            end = [*starts, 9][patch + 1]
            expected[row, start + 1 : end] = patch_states[row, patch]
    found, _ = broadcast_patches(patch_states, border_mask)
    assert torch.equal(found, expected)
    cut, pieces, carried, begun = data.draw(st.integers(1, 8)), [], None, None
    for piece in (slice(0, cut), slice(cut, 9)):
        new = gather_patches(-states[:, piece], border_mask[:, piece])
        found, carried = broadcast_patches(new, border_mask[:, piece], carried=carried, begun=begun)
        begun = torch.ones(len(borders), dtype=torch.bool)
        pieces.append(found)
    assert torch.equal(torch.cat(pieces, dim=1), expected)
