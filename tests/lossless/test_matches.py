"""What repeats is expected: how likely, how well counted, and the same for an encoder and a decoder."""

import resource

import numpy as np
import pytest
import torch

from auto_compressor.lossless.matches import LARGEST_SHARE, SHARES, Matches


SIZE = 50_000


def uniform(rows=1):
    return torch.full((rows, SIZE), 1 / SIZE, dtype=torch.float64)


def read(matches, *columns):
    """Reads columns of one symbol for each stream."""
    for column in columns:
        matches.read(np.array(column), np.arange(len(column)))


def cost(streams, matches=None):
    """Bits of streams `(num_streams, num_steps)` where nothing but repeats is known."""
    matches, bits = matches or Matches(SIZE, 3), 0.0
    matches.begin(*streams.shape)
    everyone = np.arange(len(streams))
    for column in streams.T:
        probs = matches.mix(uniform(len(streams)), everyone)
        bits -= float(probs[everyone, column].log2().sum())
        matches.learn(probs, column, everyone)
    return bits


def test_the_symbol_behind_the_last_three_is_expected():
    matches = Matches(SIZE, 3)
    matches.begin(1, 9)
    read(matches, [40_000], [2], [300], [7], [5], [40_000], [2])
    assert torch.equal(matches.mix(uniform(), np.array([0])), uniform())
    read(matches, [300])
    probs = matches.mix(uniform(), np.array([0]))[0]
    share = SHARES[0] / 100
    assert probs.argmax() == 7 and probs[7].item() == pytest.approx(share + (1 - share) / SIZE)
    assert probs.sum().item() == pytest.approx(1) and probs[:7].unique().numel() == 1


def test_any_stream_and_any_batch_may_have_it():
    matches = Matches(SIZE, 3)
    matches.begin(2, 8)
    read(matches, [1, 9], [2, 8], [3, 7], [4, 1], [5, 2], [6, 3])
    assert matches.mix(uniform(2), np.arange(2)).argmax(dim=1)[1] == 4
    matches.begin(1, 4)
    read(matches, [8], [7], [1])
    assert matches.mix(uniform(), np.array([0])).argmax() == 2


def test_streams_that_have_ended_are_left_out():
    matches = Matches(SIZE, 3)
    matches.begin(3, 8)
    read(matches, [1, 9, 5], [2, 8, 5], [3, 7, 5], [4, 1, 5])
    for symbols in ([5, 2], [6, 3]):
        matches.read(np.array(symbols), np.array([0, 2]))
    matches.read(np.array([1]), np.array([0]))
    assert matches.mix(uniform(2), np.array([0, 2])).shape == (2, SIZE)
    assert matches.history[9:17].tolist() == [10, 9, 8, 2, 0, 0, 0, 0]  # 1 + symbol


@pytest.mark.parametrize("order", range(1, 8))
def test_order(order):
    """As many symbols must be the same, and no more."""
    matches, symbols = Matches(SIZE, order), list(range(1, order + 1))
    matches.begin(1, 100)
    read(matches, *([symbol] for symbol in [SIZE - 1, *symbols, 77, SIZE - 2, *symbols[:-1]]))
    assert torch.equal(matches.mix(uniform(), np.array([0])), uniform())
    read(matches, symbols[-1:])
    assert matches.mix(uniform(), np.array([0])).argmax() == 77


def test_what_is_claimed_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Matches(SIZE, 3).begin(64, 2**24)  # 4 GiB, of which nothing is written
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_repeats_cost_next_to_nothing():
    streams = np.tile(np.random.default_rng(0).integers(SIZE, size=(1, 200)), (1, 5))
    once, five_times = cost(streams[:, :200]), cost(streams)
    assert once == pytest.approx(200 * np.log2(SIZE), rel=1e-3)
    assert five_times < 1.15 * once


def test_the_expected_symbol_never_costs_nothing():
    repeated = np.ones((1, 5000), np.int64)
    first, second = (cost(repeated[:, :length]) for length in (4000, 5000))
    assert second - first == pytest.approx(-1000 * np.log2(LARGEST_SHARE), rel=0.01)


def test_matches_that_go_wrong_are_given_up():
    """Of 25 symbols, three often stand behind one another by chance, and say nothing about the next."""
    streams = np.random.default_rng(0).integers(25, size=(1, 50_000))
    matches = Matches(SIZE, 3)
    bits = cost(streams, matches)
    assert bits == pytest.approx(streams.size * np.log2(SIZE), rel=0.02)
    assert matches.given[0] / matches.seen[0] < 0.06 < SHARES[0] / 100


def test_rounding_goes_through_as_it_is():
    matches = Matches(SIZE, 3)
    matches.begin(1, 9)
    read(matches, [1], [2], [3], [4], [1], [2], [3])
    probs = torch.rand(1, SIZE, dtype=torch.float64).softmax(dim=1)
    mixed, other = (matches.mix(given, np.array([0])) for given in (probs, probs * (1 + 1e-13)))
    torch.testing.assert_close(other, mixed, rtol=1.01e-13, atol=0)


@pytest.mark.parametrize(("known", "most"), [(0.0, 0.2), (0.98, 1.0)])
def test_what_a_model_knows_is_not_made_worse(known, most):
    """A model that gives every symbol so much of the probability costs no more with matches; one that knows nothing
    gains most of its bits."""
    data, everyone, bits = np.random.default_rng(0).integers(20, size=(1, 400)), np.array([0]), np.zeros(2)
    matches = Matches(SIZE, 3)
    matches.begin(1, 4000)
    for symbol in np.tile(data, 10).T:
        probs = uniform() * (1 - known)
        probs[0, symbol] += known
        mixed = matches.mix(probs, everyone)
        matches.learn(mixed, symbol, everyone)
        bits -= [float(given[0, symbol].log2()) for given in (probs, mixed)]
    assert bits[1] < most * bits[0]


def test_learning_lets_rounding_through_as_it_is():
    """A thousand symbols of a model whose numbers differ by a relative 1e-13."""
    found, streams = [], np.random.default_rng(0).integers(5, size=(1000, 1))
    for error in (0.0, 1e-13):
        matches, generator = Matches(5, 3), torch.Generator().manual_seed(0)
        matches.begin(1, 1000)
        for symbol in streams:
            probs = torch.rand(1, 5, dtype=torch.float64, generator=generator).softmax(dim=1)
            probs *= 1 + error * (2 * torch.rand(1, 5, dtype=torch.float64, generator=generator) - 1)
            matches.learn(matches.mix(probs, np.array([0])), symbol, np.array([0]))
        found.append(matches.given / matches.seen)
    assert 0 < np.abs(found[1] / found[0] - 1).max() < 1e-12


def test_without_a_share_nothing_changes():
    matches = Matches(SIZE, 3, 0.0)
    matches.begin(1, 9)
    read(matches, [1], [2], [3], [4], [1], [2], [3])
    probs = torch.rand(1, SIZE, dtype=torch.float64)
    assert torch.equal(matches.mix(probs.clone(), np.array([0])), probs)


def test_the_largest_byte():
    """It is 255 and one more than 8 bits hold, as NumPy counts."""
    matches = Matches(256, 3)
    matches.begin(1, 9)
    for _ in range(5):
        matches.read(np.array([255], np.uint8), np.array([0]))
    assert matches.mix(torch.full((1, 256), 1 / 256, dtype=torch.float64), np.array([0])).argmax() == 255
