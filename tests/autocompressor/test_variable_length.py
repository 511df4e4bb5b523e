"""Variable-length summaries: the formula, its gradients, the gate, and rows that stop by themselves."""

import pytest
import torch
from modeling_testing import (
    CLOSE,
    DOUBLE,
    SUM,
    all_autocompressors,
    both_families,
    gradients,
    opt_and_llama,
    pad_rows,
    plain_path,
    random_ids,
    random_softprompt,
    saved_for_backward,
    segmented_ids,
    select_row,
    tensors_of,
    variable_autocompressor,
)
from torch.nn import functional as F
from torch.testing import assert_close

from auto_compressor.autocompressor.gating import relative_lengths, survival, survives
from auto_compressor.autocompressor.segments import append_sum_tokens


training_or_not = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
positions = pytest.mark.parametrize("ordinary", [False, True], ids=["", "ordinary"])
accumulating_or_not = pytest.mark.parametrize("accumulate_summary", [True, False], ids=["accumulate", "replace"])


# The formula


def test_survival():
    probs = torch.tensor([[0.2, 0.5, 0.1, 0.9], [0.0, 1.0, 0.3, 0.3]], dtype=torch.float64)
    assert_close(survival(probs), torch.tensor([[1, 0.8, 0.4, 0.36], [1, 1, 0, 0]], dtype=torch.float64))
    assert survival(probs, threshold=0.5).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert survival(probs, threshold=0.1).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_survives_keeps_small_probabilities():
    logits = torch.tensor([-100.0, 0.0, 50.0, 80.0], dtype=torch.float32)
    assert_close(survives(logits), torch.tensor([1.0, 0.5, 1.9287e-22, 1.8049e-35]), rtol=1e-4, atol=0)
    assert survives(logits.bfloat16()).dtype == torch.float32
    assert survives(logits.double()).dtype == torch.float64


def test_relative_lengths():
    weights = torch.tensor([[1, 0.5, 0.25], [1, 0, 0], [0, 0, 0]], dtype=torch.float64, requires_grad=True)
    memory = torch.tensor([[1, 0.5], [0, 0], [0, 0]], dtype=torch.float64, requires_grad=True)
    actual = relative_lengths(weights, torch.tensor([4, 0, 0]), memory, alpha=2.0)
    # No text and no memory: the denominator is not 0.
    assert_close(actual, torch.tensor([1.75 / 7, 1, 0], dtype=torch.float64))
    actual.sum().backward()
    assert memory.grad is None


def naive_pass(model, embeds, weights, positions):
    """One row without cache: the score of every key gets the logarithm of its weight."""
    length = embeds.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = weights.log().expand(length, -1).masked_fill(future, -torch.inf)
    positions = torch.tensor([positions[:length]])
    outputs = model.model(
        inputs_embeds=embeds, attention_mask=mask[None, None], position_ids=positions, use_cache=False
    )
    return outputs.last_hidden_state


def naive_summary(model, embeds, weights, positions, threshold):
    """z_0 is the last hidden state; `[softprompt ; segment ; z_0 .. z_{t-1}]` is read as a whole at every step."""
    state = naive_pass(model, embeds, weights, positions)[:, -1:]
    vectors, survivals, probs = [], [embeds.new_ones(1)], []
    for _ in range(model.config.compression_max_len):
        embeds, weights = torch.cat([embeds, state], dim=1), F.pad(weights, (0, 1), value=1)
        state = naive_pass(model, embeds, weights, positions)[:, -1:]
        vectors.append(state)
        probs.append(torch.sigmoid(model.stop_head(state))[0, 0])
        survivals.append(survivals[-1] * (1 - probs[-1]))
        if threshold is not None and probs[-1] > threshold:
            break
    weights = torch.cat(survivals[: len(vectors)])
    return torch.cat(vectors, dim=1), weights if threshold is None else torch.ones_like(weights), torch.cat(probs)


def naive_row(model, ids, segment_lengths, threshold=None):
    """
    One row without padding, segment by segment; with `threshold` by the hard rule.

    Returns the logits, the softprompt and its weights, the stop probabilities and relative length of every segment.
    """
    config, embed = model.config, model.get_input_embeddings()
    memory, logits, all_probs, lengths = [], [], [], []
    for segment in ids.split(segment_lengths, dim=1):
        softprompt = torch.cat([embed(segment)[:, :0], *(vectors for vectors, _ in memory)], dim=1)
        memory_weights = torch.cat([softprompt.new_zeros(0), *(weights for _, weights in memory)])
        num_old, length, most = softprompt.shape[1], segment.shape[1], config.compression_max_len
        ordinary = config.ordinary_summary_positions
        seen = (memory_weights > 0).long()
        before = (seen.cumsum(dim=0) - 1).tolist() if ordinary else [-1] * num_old
        start = int(seen.sum()) if ordinary else 0
        counted = [start + index for index in range(length + most)]
        after = counted[length:] if ordinary or model.summary_takes_positions else [-1] * most
        positions = before + counted[:length] + after
        embeds = torch.cat([softprompt, embed(segment)], dim=1)
        weights = F.pad(memory_weights, (0, length), value=1)
        logits.append(model.lm_head(naive_pass(model, embeds, weights, positions)[:, num_old:]))
        new = (softprompt[:, :0], memory_weights[:0])
        if segment[0, -1] == SUM:
            *new, probs = naive_summary(model, embeds, weights, positions, threshold)
            lengths.append(new[1].sum() / (length - 1 + config.compression_alpha * memory_weights.sum().detach()))
            all_probs.append(probs)
        if config.accumulate_summary:
            old = config.truncate_bptt_segments - 1
            memory = (
                [[part.detach() for part in pair] for pair in memory[: len(memory) - old]]
                + memory[len(memory) - old :]
                + [new]
            )
        elif segment[0, -1] == SUM:
            memory = [new]
    softprompt, weights = (torch.cat(parts, dim) for parts, dim in zip(zip(*memory, strict=True), (1, 0), strict=True))
    return torch.cat(logits, dim=1), softprompt, weights, all_probs, lengths


def text_loss(logits, ids):
    """Summed cross-entropy of one row without its control tokens: text predicts the next text."""
    text = [position for position, token in enumerate(ids[0].tolist()) if token != SUM]
    return F.cross_entropy(logits[0, text[:-1]], ids[0, text[1:]], reduction="sum")


LENGTHS = [5, 3, 6, 3]


@opt_and_llama
@accumulating_or_not
@pytest.mark.parametrize("truncate_bptt_segments", [1, 2, 3])
@positions
def test_training_equals_a_loop_over_rows(name, accumulate_summary, truncate_bptt_segments, ordinary, without_float32):
    fields = {"accumulate_summary": accumulate_summary, "truncate_bptt_segments": truncate_bptt_segments}
    model = variable_autocompressor(name, ordinary_summary_positions=ordinary, **fields).train()
    ids = segmented_ids(3, LENGTHS)
    # Two rows lack a `<sum>`, one of them the last.
    ids[1, 7], ids[2, -1] = 9, 9
    outputs = model(ids, labels=ids, segment_lengths=LENGTHS, output_softprompt=True)
    loss, lengths = 0, []
    for index in range(3):
        row = ids[index : index + 1]
        logits, softprompt, weights, probs, row_lengths = naive_row(model, row, LENGTHS)
        assert_close(outputs.logits[index], logits[0], **DOUBLE)
        seen = outputs.softprompt_attention_mask[index] > 0
        assert_close(outputs.softprompt[index, seen], softprompt[0], **DOUBLE)
        assert_close(outputs.softprompt_attention_mask[index, seen], weights, **DOUBLE)
        ended = [summary.stop_probs[index] for summary in outputs.summaries if summary.weights[index, 0] > 0]
        assert_close(ended, probs, **DOUBLE)
        loss = loss + text_loss(logits, row)
        lengths += row_lengths
    num_targets = int((ids != SUM).sum()) - 3
    penalty = model.config.compression_lambda * torch.stack(lengths).mean()
    assert len(lengths) == 10
    assert_close(outputs.length_penalty, penalty, **DOUBLE)
    loss = loss / num_targets + penalty
    assert_close(outputs.loss, loss, **DOUBLE)
    assert_close(gradients(model, outputs.loss), gradients(model, loss), **DOUBLE)


def text_targets(ids):
    """What the text predicts of itself, `<sum>` passed over: `(batch, length)`, for `F.cross_entropy`."""
    targets = torch.full_like(ids, -100)
    for row, target in zip(ids, targets, strict=True):
        where = (row != SUM).nonzero()[:, 0]
        target[where[:-1]] = row[where[1:]]
    return targets


def mean_text_loss(outputs, ids):
    return F.cross_entropy(outputs.logits.flatten(0, 1), text_targets(ids).flatten())


@all_autocompressors
@accumulating_or_not
@positions
@torch.no_grad()
def test_evaluation_equals_a_loop_over_rows(name, accumulate_summary, ordinary, without_float32):
    fields = {"accumulate_summary": accumulate_summary, "ordinary_summary_positions": ordinary}
    threshold = 0.55 if ordinary else 0.45  # rows then differ in their number of vectors
    model = variable_autocompressor(name, compress_stop_threshold=threshold, **fields)
    ids = segmented_ids(4, LENGTHS, seed=2)
    ids[1, 7], ids[2, -1] = 9, 9
    outputs = model(ids, labels=ids, segment_lengths=LENGTHS, output_softprompt=True)
    numbers, lengths, losses = [], [], []
    for index in range(4):
        row = ids[index : index + 1]
        logits, softprompt, weights, probs, row_lengths = naive_row(model, row, LENGTHS, threshold)
        assert_close(outputs.logits[index], logits[0], **DOUBLE)
        seen = outputs.softprompt_attention_mask[index].bool()
        assert_close(outputs.softprompt[index, seen], softprompt[0], **DOUBLE)
        numbers += [len(segment) for segment in probs]
        lengths += row_lengths
        losses.append(text_loss(logits, row))
    # Rows and segments differ in their number of vectors.
    assert len(set(numbers)) > 1
    penalty = model.config.compression_lambda * torch.stack(lengths).mean()
    assert_close(outputs.length_penalty.double(), penalty, **CLOSE)
    assert_close(outputs.loss.double(), torch.stack(losses).sum() / (text_targets(ids) >= 0).sum() + penalty, **CLOSE)
    compressed = model.compress(
        torch.cat([segment[:1, :-1] for segment in ids.split(LENGTHS, dim=1)], dim=1),
        segment_lengths=[length - 1 for length in LENGTHS],
        return_attention_mask=True,
    )
    alone = model(ids[:1], segment_lengths=LENGTHS, output_softprompt=True)
    assert_close(compressed, (alone.softprompt, alone.softprompt_attention_mask), **DOUBLE)


@both_families
@training_or_not
def test_loss_of_a_batch_is_the_sum_of_its_parts(name, training, without_float32):
    """With the targets of all as the divisor, as the Trainer gives it under gradient accumulation."""
    model, ids = variable_autocompressor(name).train(training), segmented_ids(4, LENGTHS)
    call, num_items = {"segment_lengths": LENGTHS, "output_softprompt": True}, torch.tensor(4 * 12)
    whole = model(ids, labels=ids, num_items_in_batch=num_items, **call)
    assert_close(whole.loss, model(ids, labels=ids, **call).loss)
    parts = [model(row, labels=row, num_items_in_batch=num_items, **call).loss for row in ids.split(1)]
    assert_close(torch.stack(parts).sum().double(), whole.loss.double(), **CLOSE)
    expected = gradients(model, whole.loss)
    parts = [model(row, labels=row, num_items_in_batch=num_items, **call).loss for row in ids.split(1)]
    assert_close(gradients(model, torch.stack(parts).sum()), expected, **CLOSE)


@both_families
def test_penalty_alone_shortens(name):
    """Its gradient raises every stop probability that counts."""
    model, ids = variable_autocompressor(name).train(), segmented_ids(2, LENGTHS)
    outputs = model(ids, segment_lengths=LENGTHS)
    assert outputs.loss is None
    found = gradients(model, outputs.length_penalty)
    assert found["stop_head.bias"] < -1e-3
    model.config.compression_lambda = 0.0
    assert model(ids, segment_lengths=LENGTHS).length_penalty == 0
    assert model(ids).length_penalty is None


@both_families
def test_loss_without_targets_is_zero(name):
    model, ids = variable_autocompressor(name).train(), segmented_ids(2, LENGTHS)
    loss = model(ids, labels=torch.full_like(ids, -100), segment_lengths=LENGTHS).loss
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(model, loss).values())


# Gradients


def finite_difference(value, parameter, index, step=1e-5):
    """Central difference of a scalar function by one element of `parameter`."""
    results = []
    with torch.no_grad():
        for sign in (1, -1):
            parameter[index] += sign * step
            results.append(value())
            parameter[index] -= sign * step
    return (results[0] - results[1]) / (2 * step)


@opt_and_llama
@accumulating_or_not
def test_gradients_equal_finite_differences(name, accumulate_summary, without_float32):
    model = variable_autocompressor(name, accumulate_summary=accumulate_summary, truncate_bptt_segments=3).train()
    ids, lengths = segmented_ids(2, [4, 3, 5]), [4, 3, 5]
    ids[:, 7:] = ids[:, 7:].clamp(max=49)
    # The first token stands nowhere else, and has labels only behind the vectors.
    ids[0, 0] = 55
    ids[ids == 55] = torch.where(torch.arange((ids == 55).sum()) == 0, 55, 54)
    targets = text_targets(ids)
    targets[:, :7] = -100

    def loss():
        logits = model(ids, segment_lengths=lengths).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    found = gradients(model, loss())
    parameters = dict(model.named_parameters())
    embeddings = next(key for key in parameters if "embed_tokens" in key)
    checked = {"stop_head.weight": [(0, 0), (0, 5)], "stop_head.bias": [(0,)], embeddings: [(SUM, 1), (55, 2)]}
    for key, indices in checked.items():
        for index in indices:
            assert abs(found[key][index]) > 1e-5, key
            difference = finite_difference(loss, parameters[key], index)
            assert_close(found[key][index], difference, rtol=1e-6, atol=1e-9)


@both_families
@pytest.mark.parametrize("truncate_bptt_segments", [1, 2, 3])
def test_old_memory_is_detached(name, truncate_bptt_segments):
    """A segment sees the vectors of the last segments with their gradient, older ones without.

    (Through the vectors in between, which were made from them, a gradient reaches older ones all the same.)
    """
    model, read = variable_autocompressor(name, truncate_bptt_segments=truncate_bptt_segments).train(), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    lengths = [4] * 5
    with plain_path():  # with keys, no vector is read that often
        summaries = model(segmented_ids(2, lengths), segment_lengths=lengths).summaries
    segments = [embeds for embeds in read if embeds.shape[1] > 1]
    assert [embeds.shape[1] for embeds in segments] == [4, 8, 12, 16, 20]
    for later, embeds in enumerate(segments):
        for earlier in range(later):
            seen, vectors = embeds[:, 4 * earlier : 4 * earlier + 4], summaries[earlier].vectors
            assert torch.equal(seen, vectors)
            (reached,) = torch.autograd.grad(seen.sum(), vectors, retain_graph=True)
            assert (reached == (later - earlier <= truncate_bptt_segments)).all()


@all_autocompressors
@accumulating_or_not
def test_segment_gradient_checkpointing(name, accumulate_summary):
    dropout = {"dropout": 0.2} if name.startswith("opt") else {"attention_dropout": 0.2}
    model = variable_autocompressor(name, accumulate_summary=accumulate_summary, **dropout).train()
    ids, lengths = segmented_ids(2, [4, 4, 4, 4]), [4, 4, 4, 4]
    call = {"labels": ids, "segment_lengths": lengths, "output_softprompt": True}
    results, saved = [], {False: [], True: []}
    for checkpointing in (False, True):
        model.config.segment_gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        with saved_for_backward(saved[checkpointing]):
            outputs = model(ids, softprompt=random_softprompt(model, 2, 2), **call)
        results.append((tensors_of(outputs), gradients(model, outputs.loss)))
    assert_close(results[0], results[1], **DOUBLE)
    assert sum(saved[True]) < 0.6 * sum(saved[False])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@both_families
def test_layer_gradient_checkpointing(name):
    model, ids = variable_autocompressor(name).train(), segmented_ids(2, LENGTHS)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="segment_gradient_checkpointing"):
        model(ids, labels=ids, segment_lengths=LENGTHS)
    # Nothing is unrolled in one segment that is not summarised, nor lost in evaluation.
    assert model(ids, labels=ids).loss.isfinite()
    assert model.eval()(ids, labels=ids, segment_lengths=LENGTHS).loss.isfinite()


# The gate


@opt_and_llama
@torch.no_grad()
def test_weight_to_zero_equals_absence(name, without_float32):
    model, ids = variable_autocompressor(name), segmented_ids(2, [4, 5])
    softprompt = random_softprompt(model, 2, 3)

    def logits(softprompt, weights):
        return model(ids, softprompt=softprompt, softprompt_attention_mask=weights, segment_lengths=[4, 5]).logits

    def distance(first, second):
        return float((first - second).abs().max())

    absent, present = logits(softprompt[:, [0, 2]], None), logits(softprompt, None)
    for weight in (0.0, 1e-30):
        assert distance(logits(softprompt, torch.tensor([[1, weight, 1]])), absent) < 1e-6
    assert distance(logits(softprompt, torch.tensor([[1, 0, 1]])), absent) < 1e-12
    assert distance(logits(softprompt, torch.tensor([[1.0, 1.0, 1.0]])), present) < 1e-12

    far = distance(present, absent)
    # The norms behind its layers leave high scores.
    small = 1e-13 if name == "opt_projected" else 1e-8
    distances = [distance(logits(softprompt, torch.tensor([[1, w, 1]]).double()), absent) for w in (small, small / 10)]
    assert 1e-12 < distances[0] < 1e-2 * far
    assert_close(distances[0] / distances[1], 10.0, rtol=1e-2, atol=0)
    # A vector that is scaled is restored by the next norm, and seen.
    scaled = softprompt * torch.tensor([1, 1e-8, 1]).double()[None, :, None]
    assert distance(logits(scaled, None), absent) > 100 * distances[0]


@all_autocompressors
@training_or_not
@torch.no_grad()
def test_eager_equals_sdpa(name, training):
    results = []
    for attn_implementation in ("eager", "sdpa"):
        model = variable_autocompressor(name, attn_implementation=attn_implementation).train(training)
        ids = segmented_ids(2, LENGTHS)
        mask = torch.tensor([[1, 0.3, 1e-9], [0, 1, 0.7]])
        kwargs = {"softprompt": random_softprompt(model, 2, 3), "softprompt_attention_mask": mask}
        results.append(tensors_of(model(ids, segment_lengths=LENGTHS, output_softprompt=True, **kwargs)))
    # Eager attention takes its softmax in float32.
    assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_gradient_of_the_weights(name, without_float32):
    model, ids = variable_autocompressor(name), segmented_ids(2, [4, 5])
    softprompt = random_softprompt(model, 2, 3)
    weights = torch.tensor([[0.9, 0.3, 0.5], [0.2, 1.0, 0.01]], dtype=torch.float64, requires_grad=True)

    def loss():
        return mean_text_loss(model(ids, softprompt=softprompt, softprompt_attention_mask=weights), ids)

    (found,) = torch.autograd.grad(loss(), weights)
    for index in [(0, 0), (0, 1), (1, 0), (1, 2)]:
        assert abs(found[index]) > 1e-5
        assert_close(found[index], finite_difference(loss, weights, index), rtol=1e-6, atol=1e-9)


# Soft and hard rule


@all_autocompressors
@accumulating_or_not
@torch.no_grad()
def test_soft_equals_hard_where_stops_are_certain(name, accumulate_summary):
    model = variable_autocompressor(name, sharpness=1e6, accumulate_summary=accumulate_summary)
    ids = segmented_ids(6, LENGTHS)
    hard = model(ids, segment_lengths=LENGTHS, output_softprompt=True)
    soft = model.train()(ids, segment_lengths=LENGTHS, output_softprompt=True)
    numbers = {int(number) for summary in hard.summaries for number in summary.weights.sum(dim=1)}
    assert len(numbers) > 2
    assert_close(soft.logits, hard.logits, **DOUBLE)
    assert_close(soft.length_penalty.double(), hard.length_penalty.double(), **CLOSE)
    for index in range(6):
        kept = [out.softprompt[index, out.softprompt_attention_mask[index] > 0] for out in (soft, hard)]
        assert_close(*kept, **DOUBLE)
    assert not hard.softprompt_attention_mask.is_floating_point()


@both_families
@pytest.mark.parametrize("bias, number", [(-1e4, 4), (1e4, 1)])
@torch.no_grad()
def test_never_and_always(name, bias, number):
    model, ids = variable_autocompressor(name), segmented_ids(2, LENGTHS)
    model.stop_head.weight.zero_()
    model.stop_head.bias.fill_(bias)
    for outputs in (f(ids, segment_lengths=LENGTHS, output_softprompt=True) for f in (model, model.train())):
        assert (outputs.softprompt_attention_mask.sum(dim=1) == 4 * number).all()
        assert_close(outputs.length_penalty.double(), torch.tensor(expected_penalty(number)).double(), **CLOSE)
    assert model.eval().compress(ids[:, :4]).shape[1] == number


def expected_penalty(number):
    sizes = [length - 1 + 0.5 * index * number for index, length in enumerate(LENGTHS)]
    return 2.0 * sum(number / size for size in sizes) / len(LENGTHS)


@opt_and_llama
@pytest.mark.parametrize("threshold", [None, 0.05, 0.4, 0.6, 1.0])
@torch.no_grad()
def test_threshold(name, threshold):
    model, ids = variable_autocompressor(name, compress_stop_threshold=threshold), segmented_ids(8, [5])
    steps = model.train()(ids, output_softprompt=True).summaries[0].stop_probs
    outputs = model.eval()(ids, output_softprompt=True)
    for probs, mask in zip(steps, outputs.softprompt_attention_mask, strict=True):
        stops = [step for step, prob in enumerate(probs, start=1) if prob > (threshold or 0.5)]
        assert mask.sum() == min([*stops, 4])
    assert outputs.softprompt.shape[1] == outputs.softprompt_attention_mask.sum(dim=1).max()
    if threshold == 1.0:
        assert outputs.softprompt_attention_mask.sum() == 8 * 4


@torch.no_grad()
def test_steps_end_with_the_last_row():
    model, ids = variable_autocompressor("llama"), segmented_ids(2, [5])
    model.stop_head.bias.fill_(1e4)
    passes = []
    model.model.register_forward_hook(lambda module, args, output: passes.append(1))
    model(ids, output_softprompt=True)
    assert len(passes) == 1 + 1


# Rows


def padded_segments(rows, side):
    """Rows of segments of their own lengths, `<sum>` appended to each; a segment of no tokens is padding alone."""
    columns = []
    for column in zip(*rows, strict=True):
        width = max(1, *(piece.shape[1] for piece in column))
        columns.append(pad_rows([*column, torch.zeros(1, width).long()], side))
    ids, mask = (torch.cat([column[i][:-1] for column in columns], dim=1) for i in (0, 1))
    lengths = [column[0].shape[1] for column in columns]
    inputs, lengths = append_sum_tokens({"input_ids": ids, "attention_mask": mask}, lengths, SUM)
    return inputs, lengths


@opt_and_llama
@accumulating_or_not
@training_or_not
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_stop_by_themselves(name, accumulate_summary, training, side):
    """Each row has its own lengths of segments and numbers of vectors; some have no text in a segment."""
    model = variable_autocompressor(name, accumulate_summary=accumulate_summary).train(training)
    lengths = [[5, 6, 3], [2, 6, 4], [5, 0, 4], [0, 3, 4], [4, 2, 1]]
    rows = [[random_ids(1, n, seed=10 * i + j) for j, n in enumerate(row)] for i, row in enumerate(lengths)]
    inputs, segment_lengths = padded_segments(rows, side)
    softprompt, softprompt_mask = (
        random_softprompt(model, 5, 2),
        torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0], [1, 1]]),
    )
    given = {"softprompt": softprompt, "softprompt_attention_mask": softprompt_mask}
    call = {"segment_lengths": segment_lengths, "output_softprompt": True}
    batched = model(**inputs, **given, **call)
    if not training:
        assert len(batched.softprompt_attention_mask.sum(dim=1).unique()) > 1
    for index, row in enumerate(rows):
        row = [piece for piece in row if piece.shape[1]]
        alone_inputs, alone_lengths = append_sum_tokens(
            {"input_ids": torch.cat(row, dim=1)}, [piece.shape[1] for piece in row], SUM
        )
        alone = model(
            **alone_inputs, **select_row(given, index), segment_lengths=alone_lengths, output_softprompt=True
        )
        assert_close(batched.logits[index, inputs["attention_mask"][index].bool()], alone.logits[0], **DOUBLE)
        for field in ("softprompt", "softprompt_attention_mask"):
            kept = [
                getattr(out, field)[i, out.softprompt_attention_mask[i] > 0]
                for out, i in ((batched, index), (alone, 0))
            ]
            assert_close(*kept, **DOUBLE)


@opt_and_llama
@accumulating_or_not
@training_or_not
@torch.no_grad()
def test_rows_without_sum_keep_their_memory(name, accumulate_summary, training):
    model = variable_autocompressor(name, accumulate_summary=accumulate_summary).train(training)
    ids, softprompt = segmented_ids(3, [5]), random_softprompt(model, 3, 6)
    ids[1, -1] = 9
    outputs = model(ids, softprompt=softprompt, output_softprompt=True)
    kept = outputs.softprompt[1, outputs.softprompt_attention_mask[1] > 0]
    assert torch.equal(kept, softprompt[1])
    for index in (0, 2):
        old = (outputs.softprompt[index, :6] == softprompt[index]).all()
        assert old == accumulate_summary
    # `<sum>` under the mask is none.
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    masked = model(ids, attention_mask=mask, softprompt=softprompt, output_softprompt=True)
    assert torch.equal(masked.softprompt[0, masked.softprompt_attention_mask[0] > 0], softprompt[0])


@opt_and_llama
@accumulating_or_not
@torch.no_grad()
def test_no_row_has_sum(name, accumulate_summary):
    model, ids = variable_autocompressor(name, accumulate_summary=accumulate_summary), random_ids(2, 9)
    call = {"segment_lengths": [4, 5], "output_softprompt": True}
    outputs = model(ids, labels=ids, **call)
    dim = model.get_input_embeddings().embedding_dim
    assert outputs.softprompt.shape == (2, 0, dim) and outputs.softprompt_attention_mask.shape == (2, 0)
    assert outputs.length_penalty == 0 and outputs.loss.isfinite()
    assert_close(outputs.logits, torch.cat([model(ids[:, :4]).logits, model(ids[:, 4:]).logits], dim=1), **DOUBLE)
    trained = model.train()(ids, labels=ids, **call)
    assert (trained.softprompt_attention_mask == 0).all() and trained.length_penalty == 0
    assert_close(trained.logits, outputs.logits, **DOUBLE)


@opt_and_llama
@training_or_not
@torch.no_grad()
def test_causality(name, training):
    model, ids = variable_autocompressor(name).train(training), segmented_ids(2, LENGTHS)
    expected = model(ids, segment_lengths=LENGTHS).logits
    for position in (ids[0] != SUM).nonzero()[:, 0].tolist():
        changed = ids.clone()
        changed[0, position] = 5 + (changed[0, position] - 4) % 50
        logits = model(changed, segment_lengths=LENGTHS).logits
        assert torch.equal(logits[0, :position], expected[0, :position])
        assert not logits[0, position:].isclose(expected[0, position:], atol=1e-6).all(dim=1).any()
        assert_close(logits[1], expected[1], **DOUBLE)


@both_families
def test_evaluation_is_deterministic(name):
    model, ids = variable_autocompressor(name), segmented_ids(2, LENGTHS)
    torch.manual_seed(1)
    first = tensors_of(model(ids, segment_lengths=LENGTHS, output_softprompt=True))
    torch.manual_seed(2)
    second = tensors_of(model(ids, segment_lengths=LENGTHS, output_softprompt=True))
    assert all(torch.equal(first[key], second[key]) for key in first)


@opt_and_llama
@training_or_not
def test_autocast(name, training):
    model, ids = variable_autocompressor(name, torch.float32).train(training), segmented_ids(2, LENGTHS)
    call = {"labels": ids, "segment_lengths": LENGTHS, "output_softprompt": True}
    expected = model(ids, **call)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(ids, **call)
    assert_close(outputs.loss, expected.loss, rtol=0.1, atol=0.1)
    assert outputs.loss.dtype == outputs.softprompt.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(model, outputs.loss).values())
