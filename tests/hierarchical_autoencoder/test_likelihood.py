"""The log-likelihood of bytes: a probability, made of codes alone, that adds up over context and continuation."""

import itertools
import math

import pytest
import torch
from transformers import DynamicCache

from auto_compressor import HierarchicalAutoencoder, HierarchicalAutoencoderConfig
from auto_compressor.hierarchical_autoencoder.likelihood import (
    log_likelihood,
    nats_by_unit,
    scoring_rows,
    text_log_likelihood,
)
from auto_compressor.hierarchical_autoencoder.outputs import SegmentCompressorOutput


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES["initializer_range"] = 0.5  # so that every code and every byte matters
CONTEXT, TEXT, END = b"In the beginning there was", b" a king in the land.", 256
FSQ = {"quantizer": "fsq", "fsq_levels": [3, 2]}
RESIDUAL = {"quantizer": "residual_vq", "num_quantizers": 2, "codebook_size": 3, "codebook_dim": 4}
CODEBOOK = {"quantizer": "ema_vq", "codebook_size": 5, "codebook_dim": 4}
LEVELS = {
    "one level": [FSQ],
    "cumulative entropy": [CODEBOOK | {"border_rule": "cumulative_entropy", "border_threshold": 12.0}],
    "two codebooks below": [RESIDUAL, CODEBOOK],
    "two codebooks on top": [FSQ, RESIDUAL],
    "three levels": [FSQ, RESIDUAL, CODEBOOK],
}


def make_model(levels: list[dict], max_patch_length: int = 3, **kwargs) -> HierarchicalAutoencoder:
    shared = SIZES | {"max_patch_length": max_patch_length, "border_threshold": 0.0, "window": 4, "memory_window": 3}
    shared["initializer_range"] = 0.2  # so that segments differ
    config = HierarchicalAutoencoderConfig(
        level_configs=[shared | level for level in levels],
        code_sequence_config=SIZES,
        **kwargs,
    )
    return HierarchicalAutoencoder(config).eval()


@pytest.fixture(params=LEVELS.values(), ids=LEVELS)
def model(request):
    return make_model(request.param)


def ids(*texts: bytes, end: bool = False) -> torch.LongTensor:
    return torch.tensor([[*text] + [END] * end for text in texts])


def lengths(*texts: bytes) -> torch.LongTensor:
    return torch.tensor([len(text) for text in texts])


def segments(model, context: bytes, text: bytes) -> list[SegmentCompressorOutput]:
    symbols = ids(context + text)
    return model.compress(symbols, torch.ones_like(symbols, dtype=torch.bool), lengths(context))


def patches(model, text: bytes) -> list[int]:
    """Segments of every level of a text that is read alone."""
    return [codes.shape[2] for codes in model.encode(ids(text)).level_codes]


def test_the_texts_have_several_codes(model):
    """What the other tests are about."""
    for codes in model.encode(ids(CONTEXT + TEXT)).level_codes:
        assert codes.shape[2] >= 3 and len(codes.unique()) >= 2


# A probability


@pytest.mark.parametrize("levels", [[CODEBOOK], [RESIDUAL]], ids=["one codebook", "two codebooks"])
def test_code_sequences_sum_to_one(levels):
    """Those that end within `longest` codes, and the beginnings of those that do not."""
    model, longest = make_model(levels), 2
    size, depth = levels[0]["codebook_size"], levels[0].get("num_quantizers", 1)
    total = 0.0
    for length in range(longest + 1):
        codes = torch.tensor(list(itertools.product(range(size), repeat=length * depth)), dtype=torch.long)
        codes = codes.view(size ** (length * depth), length, depth)
        ends = torch.full((len(codes),), length < longest)
        nats, counted = model.code_nats(codes, ends)
        assert (counted.sum(dim=1) == length * depth + ends).all()
        total += nats.double().sum(dim=1).neg().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


def enumerated(units: torch.LongTensor, length: int) -> torch.LongTensor:
    """All segments of `length` of the units `(number, symbols)`: `(segments, length * symbols)`."""
    index = torch.tensor(list(itertools.product(range(len(units)), repeat=length)))
    return units[index].flatten(1)


SEGMENT_LEVELS = {
    "bytes": ([RESIDUAL], 0),
    "codes": ([FSQ, CODEBOOK], 1),
    "codes of two codebooks": ([RESIDUAL, CODEBOOK], 1),
}


@pytest.mark.parametrize(("levels", "level"), SEGMENT_LEVELS.values(), ids=SEGMENT_LEVELS)
def test_segments_of_a_code_sum_to_one(levels, level):
    """All symbols and both lengths of the second segment, given its code and that of the segment before."""
    model = make_model(levels, max_patch_length=2)
    config, expander = model.config.level_configs[level], model.expanders[level]
    symbols = expander.codebook_size, expander.symbols_per_unit
    units = torch.tensor(list(itertools.product(range(symbols[0]), repeat=symbols[1])))
    units = units + torch.arange(symbols[1]) * symbols[0]
    codes = torch.randint(config.codebook_size, (1, 2, config.num_quantizers))
    vectors = model.compressors[level].quantizer.codes_to_stages(codes)[..., -1, :]
    probs = []
    for length in (1, 2):
        found = enumerated(units, length)
        tokens = torch.cat([units[:1].expand(len(found), -1), found], dim=1)
        places = torch.tensor([[0] + [1] * length, [0, *range(length)]])[:, None].expand(-1, len(found), -1)
        compressed = SegmentCompressorOutput(patch_ids=places[0], positions=places[1])
        stages = vectors.expand(len(found), -1, -1)
        with torch.no_grad():
            output = expander(stages, torch.ones(len(found), 2, dtype=torch.bool), tokens, *places)
            nats = model.unit_nats(level, tokens, compressed, output)
        probs.append(nats[:, 1:].double().sum(dim=1).neg().exp().sum().item())
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert all(0.001 < prob < 0.999 for prob in probs)


@pytest.mark.parametrize("block_size", [8, 2, 1])
def test_texts_sum_to_at_most_one(block_size):
    """The empty one, those of one byte, and many of two bytes; the latter are cut where blocks are short."""
    model = make_model([FSQ], block_size=block_size)
    texts = [b""] + [bytes([first]) for first in range(256)]
    short = text_log_likelihood(model, texts, batch_size=512).total.exp()
    assert 0 < short[0] and 0 < short[1:].sum() and short.sum() < 1
    texts = [bytes([first, second]) for first in range(8) for second in range(256)]
    long = text_log_likelihood(model, texts, batch_size=512).total.exp()
    assert 0 < long.sum() and short.sum() + long.sum() <= 1


# The codes alone, step by step as they are generated


def step_by_step(model, expander, memory: torch.Tensor, symbols: list[int], ends: bool) -> float:
    """Log-probability of one segment given the context of its code, from the steps of `CodeExpander.generate`."""
    previous, cache, total = torch.tensor([expander.config.vocab_size]), DynamicCache(), 0.0
    for step, symbol in enumerate(symbols):
        inputs = expander.embed_symbols(previous) + memory * expander.positions[step]
        hidden_states = expander.norm(expander.decoder.step(inputs[:, None], cache, step))[:, 0]
        logits = expander.symbol_logits(hidden_states, torch.tensor([step]))[0]
        total += logits.log_softmax(dim=-1)[symbol].item()
        previous = torch.tensor([symbol])
        if (step + 1) % expander.symbols_per_unit == 0 and step + 1 < expander.max_symbols:
            sign = 1 if ends and step + 1 == len(symbols) else -1
            total += torch.nn.functional.logsigmoid(sign * expander.end_logits(hidden_states, previous)).item()
    return total


def residual_of_codes(model, level: int, codes: torch.LongTensor, symbols: list[list[int]], start: int) -> float:
    """Of the segments from `start` on, each with the codes `(patches, num_quantizers)` up to its own."""
    expander, total = model.expanders[level], 0.0
    vectors = model.compressors[level].quantizer.codes_to_stages(codes)[:, -1]
    for patch in range(start, len(codes)):
        mask = torch.ones(1, patch + 1, dtype=torch.bool)
        memory = expander.read_codes(vectors[None, : patch + 1], mask)[:, -1]
        total += step_by_step(model, expander, memory, symbols[patch], True)
    return total


def log_prob_of_codes(model, codes: torch.LongTensor, start: int, end: bool) -> float:
    """Of the codes `(patches, num_quantizers)` from `start` on, one token after the other."""
    offsets = torch.arange(codes.shape[1]) * model.code_sequence.config.codebook_size
    last = model.code_sequence.config.eos_token_id
    tokens = [last, *(codes + offsets).flatten().tolist()] + [last] * end
    total = 0.0
    for index in range(1 + start * codes.shape[1], len(tokens)):
        logits = model.code_sequence(torch.tensor([tokens[:index]])).logits[0, -1]
        total += logits.log_softmax(dim=-1)[tokens[index]].item()
    return total


@torch.no_grad()
@pytest.mark.parametrize("context", [b"", CONTEXT], ids=["no context", "context"])
@pytest.mark.parametrize("end", [False, True])
def test_scores_are_those_of_the_steps_of_generation(model, context, end):
    compressed = segments(model, context, TEXT)
    starts = [0] * len(compressed) if not context else patches(model, context)
    residual, symbols = 0.0, ids(context + TEXT)
    for level, output in enumerate(compressed):
        expander = model.expanders[level]
        units = symbols[0].view(-1, expander.symbols_per_unit)
        split = [part.flatten().tolist() for part in units.split(output.patch_lengths[0].tolist())]
        residual += residual_of_codes(model, level, output.codes[0], split, starts[level])
        offsets = torch.arange(output.codes.shape[2]) * model.config.level_configs[level].codebook_size
        symbols = (output.codes + offsets).flatten(1)
    found = log_likelihood(model, ids(context + TEXT, end=end), context_lengths=lengths(context))
    assert found.residual.item() == pytest.approx(residual, rel=1e-4)
    codes = log_prob_of_codes(model, compressed[-1].codes[0], starts[-1], end)
    assert found.codes.item() == pytest.approx(codes, rel=1e-4)
    assert found.num_bytes.tolist() == [len(TEXT)]


def test_what_the_expanders_see_tells_nothing_but_codes(model):
    compressed = segments(model, b"", CONTEXT + TEXT)
    for output, compressor in zip(compressed, model.compressors, strict=True):
        torch.testing.assert_close(
            output.stages[..., -1, :], compressor.quantizer.codes_to_stages(output.codes)[..., -1, :], rtol=0, atol=0
        )


# Context and continuation


def test_the_context_is_read_as_a_text_of_its_own(model):
    alone = model.encode(ids(CONTEXT)).level_codes
    together = segments(model, CONTEXT, TEXT)
    start = len(CONTEXT)
    for codes, output in zip(alone, together, strict=True):
        assert output.codes[:, : codes.shape[2]].equal(codes.transpose(1, 2))
        assert output.patch_ids[0, start] == codes.shape[2] and output.positions[0, start] == 0
        start = codes.shape[2]


def test_chain_rule(model):
    rows = nats_by_unit(model, ids(CONTEXT + TEXT, end=True), context_lengths=lengths(CONTEXT))
    joint = -sum(nats.double().sum().item() for nats in [*rows.levels, rows.codes])
    context = log_likelihood(model, ids(CONTEXT))
    text = log_likelihood(model, ids(CONTEXT + TEXT, end=True), context_lengths=lengths(CONTEXT))
    assert context.total.item() + text.total.item() == pytest.approx(joint, rel=1e-5)


def test_nothing_behind_the_context(model):
    found = log_likelihood(model, ids(CONTEXT), context_lengths=lengths(CONTEXT))
    assert found.total.item() == 0 and found.num_bytes.item() == 0 and math.isnan(found.bits_per_byte)
    ended = log_likelihood(model, ids(CONTEXT, end=True), context_lengths=lengths(CONTEXT))
    without = log_likelihood(model, ids(CONTEXT))
    whole = log_likelihood(model, ids(CONTEXT, end=True))
    assert ended.residual.item() == 0
    assert ended.codes.item() == pytest.approx(whole.codes.item() - without.codes.item(), rel=1e-4)


def test_text_behind_changes_no_score(model):
    """A text up to a border of all levels, alone and with something behind it."""
    rows = nats_by_unit(model, ids(CONTEXT + TEXT))
    compressed, count = segments(model, b"", CONTEXT + TEXT), [2]
    for output in reversed(compressed):
        count.append(output.patch_lengths[0, : count[-1]].sum().item())
    *units, num_bytes = count
    alone = log_likelihood(model, ids((CONTEXT + TEXT)[:num_bytes]))
    levels = zip(rows.levels, reversed(count[1:]), strict=True)
    residual = sum(nats[0, :number].double().sum().item() for nats, number in levels)
    codes = rows.codes[0, : count[0] * model.config.level_configs[-1].num_quantizers].double().sum().item()
    assert alone.residual.item() == pytest.approx(-residual, rel=1e-5)
    assert alone.codes.item() == pytest.approx(-codes, rel=1e-5)


def test_generation_reads_the_codes_of_the_prompt(model, monkeypatch):
    """Those of every level, not what would be generated from the top ones; the new ones follow."""
    prompt, text = (model.encode(ids(part)).level_codes for part in (CONTEXT, TEXT))
    read = {}
    for level, expander in enumerate(model.expanders):
        original = expander.read_codes
        monkeypatch.setattr(
            expander, "read_codes", lambda *args, f=original, at=level: f(*(read.setdefault(at, args)))
        )
    decoded = model.decode(text[-1], prompt)
    for level, (vectors, mask) in read.items():
        expected = model.compressors[level].quantizer.codes_to_stages(prompt[level].transpose(1, 2))[..., -1, :]
        assert vectors[:, : expected.shape[1]].equal(expected) and mask.all()
    assert decoded.lengths.shape[1] == text[-1].shape[2] and decoded.lengths.sum() == decoded.sequences.shape[1]
    if len(prompt) == 1:
        both = model.decode(torch.cat([prompt[0], text[0]], dim=2))
        assert both.sequences[:, -decoded.sequences.shape[1] :].equal(decoded.sequences)


# Batches, long texts, bad input


def test_batches_of_texts(model):
    texts, contexts = [TEXT, b"", b"a", CONTEXT + TEXT], [CONTEXT, CONTEXT, b"", b"b"]
    for ends in (False, True):
        found = text_log_likelihood(model, texts, contexts, ends, batch_size=3)
        for row, (text, context) in enumerate(zip(texts, contexts, strict=True)):
            alone = log_likelihood(model, ids(context + text, end=ends), context_lengths=lengths(context))
            assert found.codes[row].item() == pytest.approx(alone.codes.item(), rel=1e-4, abs=1e-4)
            assert found.residual[row].item() == pytest.approx(alone.residual.item(), rel=1e-4, abs=1e-4)
            assert found.num_bytes[row] == len(text)
    bits = -found.total.sum().item() / math.log(2) / sum(map(len, texts))
    assert found.bits_per_byte == pytest.approx(bits)


def test_padding_in_front_and_special_tokens_do_not_count(model):
    expected = log_likelihood(model, ids(CONTEXT + TEXT), context_lengths=lengths(CONTEXT))
    padded = torch.cat([torch.tensor([[258, 7, 257]]), ids(CONTEXT + TEXT)], dim=1)
    mask = torch.ones_like(padded)
    mask[0, 1] = 0
    found = log_likelihood(model, padded, mask, lengths(CONTEXT))
    torch.testing.assert_close(found.total, expected.total)
    assert found.num_bytes.equal(expected.num_bytes)


def test_long_texts_are_blocks_of_their_own(model):
    model.config.block_size = 8
    text = CONTEXT[:16]
    found = text_log_likelihood(model, [text, b"ab"], [b"left out", b"the end of this"])
    blocks = [log_likelihood(model, ids(part)) for part in (text[:8], text[8:])]
    end = log_likelihood(model, torch.tensor([[END]]))
    total = sum(part.total.item() for part in [*blocks, end])
    assert found.total[0].item() == pytest.approx(total, rel=1e-4)
    context = b" this"
    second = log_likelihood(model, ids(context + b"ab", end=True), context_lengths=lengths(context))
    assert found.total[1].item() == pytest.approx(second.total.item(), rel=1e-4)


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9, 16])
def test_rows_of_a_text(num_bytes):
    config = HierarchicalAutoencoderConfig(block_size=8)
    text = bytes(range(num_bytes))
    for ends in (False, True):
        rows = scoring_rows(config, text, b"context", ends)
        assert sum((row[length:] for row, length in rows), []) == [*text] + [END] * ends
        assert all(len(row) <= 8 for row, _ in rows) and not any(length for _, length in rows[1:])
        row, length = rows[0]
        assert bytes(row[:length]) == b"context"[7 - length :]
        assert length == max(0, min(7, 8 - num_bytes - ends))


BAD_INPUT = {
    "context too long": ({"context_lengths": torch.tensor([27])}, "`context_lengths` must be from 0"),
    "context below 0": ({"context_lengths": torch.tensor([-1])}, "`context_lengths` must be from 0"),
    "context of another shape": ({"context_lengths": torch.tensor(3)}, "`context_lengths` must be int64 of the shape"),
    "context of another dtype": ({"context_lengths": torch.tensor([1.0])}, "`context_lengths` must be int64"),
    "mask of another shape": ({"attention_mask": torch.ones(1, 3)}, "`attention_mask` must have the shape"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(make_model([FSQ]), ids(CONTEXT), **arguments)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        log_likelihood(make_model([FSQ]).train(), ids(TEXT))
