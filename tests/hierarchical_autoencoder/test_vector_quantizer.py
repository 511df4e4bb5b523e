"""`vector_quantizer.py`: codebooks against textbook formulas, naive loops, and one process against two.

Run by torchrun, this file is the worker of `test_two_processes_equal_one`.
"""

import copy
import itertools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from modeling_testing import CLOSE, DOUBLE, EXACT, run_on_two_processes
from torch.testing import assert_close

from auto_compressor.hierarchical_autoencoder.tensors import RunningNorm, masked_mean, warmed_up
from auto_compressor.hierarchical_autoencoder.vector_quantizer import (
    FiniteScalarQuantizer,
    ResidualVectorQuantizer,
    VectorQuantizer,
    draw_rows,
)


SIZE, DIM, DECAY = 8, 3, 0.9
LEVELS = [4, 3, 5]
CODEBOOK = {"codebook_size": SIZE, "codebook_dim": DIM, "ema_decay": DECAY, "dead_code_threshold": 0.1}
PARTS = {
    "vq": lambda **fields: VectorQuantizer(**CODEBOOK | fields),
    "residual": lambda **fields: ResidualVectorQuantizer(num_quantizers=3, **CODEBOOK | fields),
    "fsq": lambda: FiniteScalarQuantizer(LEVELS),
    "norm": lambda: RunningNorm(DIM, DECAY),
}
all_parts = pytest.mark.parametrize("name", PARTS)
with_buffers = pytest.mark.parametrize("name", ["vq", "residual", "norm"])
quantizers = pytest.mark.parametrize("name", ["vq", "residual", "fsq"])


def make_part(name, dtype=torch.float64, cluster_size=1.0, **fields):
    """In training mode; codes of the given count, 0 for those that are fresh."""
    part = PARTS[name](**fields).to(dtype)
    for module in part.modules():
        if isinstance(module, VectorQuantizer):
            module.codebook.normal_()
            module.cluster_size.fill_(cluster_size)
        elif isinstance(module, RunningNorm):
            module.mean.normal_()
            module.variance.uniform_(0.5, 2.0)
        if hasattr(module, "num_batches"):
            module.num_batches.fill_(1000.0)  # warmed up: the decay is the one that is asked for
    return part


def make_batch(*shape, dtype=torch.float64, garbage=0.0):
    """Vectors `(*shape, DIM)` and a mask; where there is no vector, large noise."""
    vectors, mask = torch.randn(*shape, DIM, dtype=dtype), torch.ones(shape, dtype=torch.bool)
    mask.view(-1)[1::4] = False
    noise = garbage * torch.randn(shape + (DIM,), dtype=dtype)
    return torch.where(mask[..., None], vectors, noise), mask


def tensors(output):
    return dict(output) if isinstance(output, dict) else {"normed": output}


def buffers(part):
    return {name: buffer.clone() for name, buffer in part.named_buffers()}


# What all parts share


def test_decay_warms_up():
    """From 0.8 on to what is asked for, and never back."""
    decays = torch.stack([warmed_up(0.97, torch.tensor(float(count))) for count in range(200)])
    assert decays[0] == 0.8 and decays[-1] == pytest.approx(0.97)
    assert (decays.diff() >= 0).all() and warmed_up(0.5, torch.tensor(0.0)) == 0.5


@quantizers
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_quantized_is_what_the_codes_stand_for(name, training, dtype):
    """To the last bit, also far from the codes; in training they move only afterwards."""
    part = make_part(name, dtype).train(training)
    before = copy.deepcopy(part)
    vectors, mask = make_batch(5, 6, dtype=dtype)
    output = part(100 * vectors, mask)
    assert output.codes.shape == (5, 6, part.num_quantizers)
    assert output.codes.min() >= 0 and output.codes.max() < part.codebook_size
    assert_close(output.stages, before.codes_to_stages(output.codes).to(dtype), **EXACT)


@quantizers
def test_gradient_is_straight_through(name):
    part, (vectors, mask) = make_part(name), make_batch(4, 5)
    vectors.requires_grad_()
    stages = part(vectors, mask).stages
    weights = torch.randn_like(stages)
    (found,) = torch.autograd.grad((stages * weights).sum(), vectors)
    expected = weights.sum(dim=-2)
    if name == "fsq":  # the rounding is passed by, the bending is not
        (slope,) = torch.autograd.grad(part.bound(vectors).sum(), vectors)
        expected = expected * slope / torch.tensor([level // 2 for level in LEVELS])
    assert_close(found, expected, **EXACT if name != "fsq" else CLOSE)


@all_parts
@pytest.mark.parametrize("cluster_size", [0.0, 1.0])
def test_masked_vectors_count_for_nothing(name, cluster_size):
    """As if they were not there; in training the first batch, which may fill the codebook, and the next."""
    first = make_part(name, cluster_size=cluster_size)
    without = copy.deepcopy(first)
    for _ in range(2):
        vectors, mask = make_batch(4, 5, garbage=1e6)
        output = tensors(first(vectors, mask))
        expected = tensors(without(vectors[mask], mask[mask]))
        for key, value in output.items():
            assert_close(value[mask] if value.ndim else value, expected[key], **DOUBLE)
        assert_close(buffers(first), buffers(without), **DOUBLE)


@all_parts
def test_evaluation_changes_no_buffer(name):
    part, (vectors, mask) = make_part(name), make_batch(4, 5)
    before = buffers(part)
    part.eval()(vectors, mask)
    assert_close(buffers(part), before, **EXACT)
    part.train()(vectors, mask)
    assert not any(torch.equal(buffer, before[key]) for key, buffer in buffers(part).items())


@all_parts
@pytest.mark.parametrize("shape", [(2, 0), (2, 3)])
def test_no_vectors(name, shape):
    part = make_part(name, cluster_size=0.0)
    before = buffers(part)
    output = tensors(part(torch.randn(*shape, DIM).double(), torch.zeros(shape, dtype=torch.bool)))
    assert output.get("commitment_loss", 0) == 0
    assert all(value.isfinite().all() for value in output.values())
    assert_close(buffers(part), before, **EXACT)


@with_buffers
def test_saved_and_loaded(name, tmp_path):
    part, (vectors, mask) = make_part(name), make_batch(4, 5)
    part(vectors, mask)
    torch.save(part.state_dict(), tmp_path / "part.pt")
    loaded = make_part(name)
    loaded.load_state_dict(torch.load(tmp_path / "part.pt"))
    assert set(part.state_dict()) == set(buffers(part))
    for _ in range(2):
        assert_close(tensors(loaded(vectors, mask)), tensors(part(vectors, mask)), **EXACT)
        assert_close(buffers(loaded), buffers(part), **EXACT)


@quantizers
@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_vectors(name, training):
    """The codes and, for a codebook, its statistics are those of the same values in float32."""
    part = make_part(name, torch.float32).train(training)
    wide = copy.deepcopy(part)
    vectors, mask = make_batch(4, 5, dtype=torch.bfloat16)
    output, expected = part(vectors, mask), wide(vectors.float(), mask)
    assert output.stages.dtype == output.commitment_loss.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in part.buffers()} <= {torch.float32}
    if name != "residual":  # whose later stages are of rounded differences
        assert torch.equal(output.codes, expected.codes)
        assert_close(output.stages, expected.stages.bfloat16(), **EXACT)
        assert_close(buffers(part), buffers(wide), **EXACT)
    assert_close(output.commitment_loss.float(), expected.commitment_loss, rtol=0.02, atol=0.02)


# Codebooks


def test_nearest_code():
    part = make_part("vq")
    vectors = torch.randn(50, 2, DIM).double()
    expected = torch.cdist(vectors.flatten(0, 1), part.codebook).argmin(dim=-1).view(50, 2)
    assert torch.equal(part.nearest(vectors), expected)
    part.codebook[SIZE // 2 :] = part.codebook[: SIZE // 2]
    assert part.nearest(vectors).max() < SIZE // 2


def test_codebook_follows_the_textbook():
    """Counts and sums each with its own moving average; the code is their quotient."""
    part = make_part("vq", dead_code_threshold=0.0)
    part.cluster_size.uniform_(0.5, 2.0)
    counts, sums = part.cluster_size.clone(), part.cluster_size[:, None] * part.codebook
    for _ in range(6):
        vectors, mask = make_batch(3, 4)
        codes = torch.cdist(vectors[mask], sums / counts[:, None]).argmin(dim=1).tolist()
        counts, sums = DECAY * counts, DECAY * sums
        for vector, code in zip(vectors[mask], codes, strict=True):
            counts[code] += 1 - DECAY
            sums[code] += (1 - DECAY) * vector
        part(vectors, mask)
        assert_close(part.cluster_size, counts, **DOUBLE)
        assert_close(part.codebook, sums / counts[:, None], **DOUBLE)


def test_autocast_finds_the_same_codes():
    """Codes nearer to each other than bfloat16 can tell."""
    part = make_part("vq", torch.float32).eval()
    part.codebook.copy_(1 + 0.01 * torch.randn_like(part.codebook))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = part(part.codebook.clone(), torch.ones(SIZE, dtype=torch.bool)).codes[:, 0]
    assert torch.equal(found, torch.arange(SIZE))


def is_one_of(rows, others):
    return (rows[:, None] == others).all(dim=-1).any(dim=1)


@pytest.mark.parametrize("count", [3, SIZE, 40])
def test_first_batch_fills_a_fresh_codebook(count):
    part, vectors = make_part("vq", cluster_size=0.0), torch.randn(count, DIM).double()
    mask = torch.arange(count) % 3 > 0
    filled = copy.deepcopy(part)
    filled.reset_dead_codes(vectors, mask)
    assert is_one_of(filled.codebook, vectors[mask]).all()
    assert len(filled.codebook.unique(dim=0)) == min(SIZE, mask.sum())
    assert_close(filled.cluster_size, (mask.sum() / SIZE).double().expand(SIZE), **CLOSE)
    assert is_one_of(part(vectors, mask).stages[:, 0], vectors[mask]).all()


def test_only_dead_codes_start_anew():
    part, (vectors, mask) = make_part("vq"), make_batch(4, 5)
    part.cluster_size.copy_(torch.tensor([1.0, 0.0, 2.0, 0.05, 0.0, 1.0, 3.0, 0.95]))  # mean 1, so 0.1 is the limit
    before, dead = buffers(part), torch.tensor([0, 1, 0, 1, 1, 0, 0, 0]).bool()
    part.reset_dead_codes(vectors.flatten(0, 1), mask.flatten())
    assert is_one_of(part.codebook[dead], vectors[mask]).all() and len(part.codebook[dead].unique(dim=0)) == 3
    assert_close(part.cluster_size[dead], torch.full((3,), mask.sum() / SIZE).double(), **CLOSE)
    for key in ("codebook", "cluster_size"):
        assert torch.equal(buffers(part)[key][~dead], before[key][~dead])


def test_what_has_a_code_gets_no_second_one():
    part = make_part("vq")
    part.cluster_size.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    new = 10 + torch.randn(2, DIM).double()
    vectors = torch.cat([part.codebook[[0, 1] * 20], new, part.codebook[[4] * 20]])
    part.reset_dead_codes(vectors, torch.ones(len(vectors), dtype=torch.bool))
    assert_close(part.codebook[2:4].sort(dim=0).values, new.sort(dim=0).values, **EXACT)


def test_draws_are_in_proportion_to_the_weights():
    rows, weights = torch.arange(4)[:, None], torch.tensor([0.0, 3.0, 0.0, 1.0])
    drawn = draw_rows(rows, weights, torch.tensor([1, 0, 1, 1, 0, 1]).bool())[:, 0]
    assert drawn[[0, 2, 3, 5]].tolist() == [1, 1, 1, 3]


@pytest.mark.parametrize(("dead_code_threshold", "collapses"), [(0.1, False), (0.0, True)])
def test_codes_do_not_collapse(dead_code_threshold, collapses):
    """From a bad start, all codes far away on one side; without the reset one code gets all vectors."""
    part = make_part("vq", dead_code_threshold=dead_code_threshold)
    part.codebook.div_(100).add_(50)
    centres = 3 * torch.randn(2 * SIZE, DIM).double()
    for _ in range(80):
        vectors = centres[torch.randint(2 * SIZE, (64,))] + 0.1 * torch.randn(64, DIM)
        codes = part(vectors, torch.ones(64, dtype=torch.bool)).codes
    shares = codes.flatten().bincount(minlength=SIZE) / codes.numel()
    perplexity = torch.special.entr(shares).sum().exp()
    assert perplexity < 1.5 if collapses else perplexity > SIZE / 2


@pytest.mark.parametrize("name", ["vq", "residual"])
def test_commitment_loss(name):
    """The mean over vectors, dimensions and codebooks, each of which sees what is left over; its gradient too."""
    part, (vectors, mask) = make_part(name).eval(), make_batch(4, 5, garbage=1e3)
    vectors.requires_grad_()
    loss, stages = part(vectors, mask).commitment_loss, part.codes_to_stages(part(vectors, mask).codes)
    expected = sum(
        (vector - stage).square().mean()
        for vector, row in zip(vectors[mask], stages[mask], strict=True)
        for stage in row
    )
    expected = expected / (mask.sum() * part.num_quantizers)
    assert_close(loss, expected, **DOUBLE)
    assert_close(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors), **DOUBLE)


def test_residual_equals_a_loop():
    part, (vectors, mask) = make_part("residual"), make_batch(4, 5)
    alone = copy.deepcopy(part.quantizers)
    for _ in range(3):
        output, residual, total = part(vectors, mask), vectors, 0
        for stage, quantizer in enumerate(alone):
            found = quantizer(residual, mask)
            residual, total = residual - found.stages[..., 0, :], total + found.stages[..., 0, :]
            assert torch.equal(output.codes[..., stage], found.codes[..., 0])
            assert_close(output.stages[..., stage, :], total, **DOUBLE)
        assert_close(buffers(part.quantizers), buffers(alone), **DOUBLE)


# Finite scalars


def bounds(level):
    """Of a dimension before rounding: half its range, and how far even levels are moved to be as many as they are."""
    return (level - 1) * 1.001 / 2, 0.0 if level % 2 else 0.5


def naive_index(x, level):
    """The level that a number falls to, from 0 on."""
    half, offset = bounds(level)
    return round(math.tanh(x + math.atanh(offset / half)) * half - offset) + level // 2


def middle(index, level):
    """A number that falls to the middle of a level."""
    half, offset = bounds(level)
    return math.atanh((index - level // 2 + offset) / half) - math.atanh(offset / half)


@pytest.mark.parametrize("levels", [[2], [3], [4, 3, 5], [2, 2, 7], [8, 5, 5]], ids=str)
def test_grid(levels):
    """All codes are exactly the grid, and each is reached from its place there."""
    part = FiniteScalarQuantizer(levels)
    # In a code the first dimension counts on fastest.
    grid = [index[::-1] for index in itertools.product(*map(range, reversed(levels)))]
    values = [[(i - level // 2) / (level // 2) for i, level in zip(index, levels, strict=True)] for index in grid]
    codes = torch.arange(part.codebook_size)[:, None]
    stages = part.codes_to_stages(codes)[:, 0]
    assert_close(stages, torch.tensor(values))
    assert len(stages.unique(dim=0)) == len(grid) == part.codebook_size and stages.abs().max() <= 1
    vectors = torch.tensor([[middle(i, level) for i, level in zip(index, levels, strict=True)] for index in grid])
    output = part(vectors, torch.ones(len(grid), dtype=torch.bool))
    assert torch.equal(output.codes, codes) and torch.equal(output.stages[:, 0], stages)
    assert output.commitment_loss == 0


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 16])
def test_every_level_in_order(level):
    """As defined, from far below to far above, with finite gradients."""
    sweep = torch.cat([torch.tensor([-1e4]), torch.linspace(-8, 8, 2000), torch.tensor([1e4])])[:, None]
    output = FiniteScalarQuantizer([level])(sweep.requires_grad_(), torch.ones(len(sweep), dtype=torch.bool))
    codes = output.codes[:, 0]
    assert codes.tolist() == [naive_index(x, level) for x in sweep[:, 0].tolist()]
    assert codes.unique_consecutive().tolist() == list(range(level))
    assert (output.stages.diff(dim=0) >= 0).all() and output.stages.abs().max() <= 1
    (gradient,) = torch.autograd.grad(output.stages.sum(), sweep)
    assert gradient.isfinite().all() and (gradient >= 0).all() and gradient.max() > 0.1


# Norms and means


def test_norm_follows_the_batches():
    """And normalises by what it holds after the batch, each row by itself."""
    part = make_part("norm")
    mean, variance = part.mean.clone(), part.variance.clone()
    for scale in (1.0, 5.0, 0.2):
        vectors, mask = make_batch(4, 5)
        vectors = scale * vectors + 2 * scale
        output, rows = part(vectors, mask), vectors[mask]
        mean = DECAY * mean + (1 - DECAY) * sum(rows) / len(rows)
        variance = DECAY * variance + (1 - DECAY) * rows.var(dim=0, correction=0)
        assert_close((part.mean, part.variance), (mean, variance), **DOUBLE)
        assert_close(output, (vectors - mean) / (variance + 1e-6).sqrt(), **DOUBLE)
    assert_close(part.eval()(vectors, mask), output, **EXACT)


def test_norm_of_constant_vectors_is_finite():
    part = make_part("norm", torch.float32)
    vectors, mask = torch.tensor([100.3, 117.4, -104.0]).expand(37, DIM), torch.ones(37, dtype=torch.bool)
    for _ in range(200):
        output = part(vectors, mask)
    assert output.isfinite().all() and (part.variance >= 0).all()


def test_masked_mean():
    values, mask = torch.tensor([[1.0, torch.inf], [5.0, torch.nan]]), torch.tensor([[True, False], [True, False]])
    assert masked_mean(values, mask) == 3
    assert masked_mean(values, torch.zeros_like(mask)) == 0


# Processes


def train_parts(rank=0, world_size=1):
    """Batches of which process 0 gets more rows than 1, as many, and all. Returns buffers and outputs by part."""
    torch.manual_seed(0)
    results = {}
    for name in ("vq", "residual", "norm"):
        part, outputs = make_part(name, cluster_size=0.0), []
        for count in (5, 4, 7):
            vectors, mask = make_batch(8 if count == 4 else 7, 2)
            share = slice(None) if world_size == 1 else (slice(count), slice(count, None))[rank]
            outputs.append(tensors(part(vectors[share], mask[share])))
        results[name] = {"buffers": buffers(part), "outputs": outputs}
    return results


def test_two_processes_equal_one(tmp_path):
    run_on_two_processes(__file__, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, expected in train_parts().items():
        for rank in ranks:
            assert_close(rank[name]["buffers"], expected["buffers"], **DOUBLE)
        for *parts, whole in zip(*(rank[name]["outputs"] for rank in ranks), expected["outputs"], strict=True):
            for key in set(whole) - {"commitment_loss"}:
                assert_close(torch.cat([part[key] for part in parts]), whole[key], **DOUBLE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = train_parts(int(os.environ["RANK"]), 2)
    torch.save(results, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
