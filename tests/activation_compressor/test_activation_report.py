"""The report of activation compression: its statistics, its controls, its pictures and its command."""

import csv
import importlib.util
import io
import json
import math

import pytest
import torch
from activation_testing import SMALL, each_base, tiny_base, tiny_compressor
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.metrics import silhouette_score
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from auto_compressor import ActivationCompressor
from auto_compressor.activation_compressor.cache_policies import POLICIES
from auto_compressor.activation_compressor.figures import (
    cluster_silhouettes,
    draw_attention,
    draw_clusters,
    draw_quality,
    png_bytes,
)
from auto_compressor.activation_compressor.merging_cache import merging_attention
from auto_compressor.activation_compressor.metrics import (
    FULL_CACHE,
    NO_CONTEXT,
    ONE_SHOT,
    OTHER_FULL_CACHE,
    RECURSIVE,
    SHARES,
    STATISTICS,
    Fidelity,
    Setting,
    activation_metrics,
    attention_shares,
    compare_policies,
    compare_recall,
    compress_copy,
    continuation_statistics,
    count_members,
    read_full,
)
from auto_compressor.activation_compressor.page import report_page
from auto_compressor.cache_names import as_cache
from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


CONTEXT, CONTINUATION, SEGMENT = 60, 12, 20


def random_predictions(rows, length, vocab_size=9, ignored=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, full = 2 * torch.randn(2, rows, length, vocab_size, generator=generator)
    targets = torch.randint(vocab_size, (rows, length), generator=generator)
    return logits, full, targets.masked_fill(torch.rand(rows, length, generator=generator) < ignored, -100)


def plain_statistics(logits, full, targets):
    """One target at a time, in float64."""
    sums = dict.fromkeys(STATISTICS, 0.0)
    for scores, full_scores, target in zip(logits.double(), full.double(), targets, strict=True):
        if target == -100:
            continue
        probs, full_probs = scores.softmax(dim=-1), full_scores.softmax(dim=-1)
        sums["targets"] += 1
        sums["nll"] -= math.log(probs[target])
        sums["nll_full"] -= math.log(full_probs[target])
        sums["kl"] += sum(float(p * (p / q).log()) for p, q in zip(full_probs, probs, strict=True))
        sums["top1_agreement"] += float(probs.argmax() == full_probs.argmax())
    return [sums[name] for name in STATISTICS]


@given(rows=st.integers(1, 4), length=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_statistics_are_sums_over_the_targets_of_a_row(rows, length, seed):
    predictions = random_predictions(rows, length, seed=seed)
    expected = torch.tensor([plain_statistics(*row) for row in zip(*predictions, strict=True)])
    torch.testing.assert_close(continuation_statistics(*predictions), expected, rtol=1e-4, atol=1e-4)


def test_rows_and_ignored_positions_do_not_matter_to_each_other():
    logits, full, targets = random_predictions(3, 5)
    together = continuation_statistics(logits, full, targets)
    alone = [continuation_statistics(*(part[row : row + 1] for part in (logits, full, targets))) for row in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    other = torch.where((targets == -100)[..., None], 50.0, logits)
    torch.testing.assert_close(continuation_statistics(other, full, targets), together, rtol=0, atol=0)


def test_metrics_are_means_over_all_targets():
    logits, full, targets = random_predictions(3, 5)
    statistics = continuation_statistics(logits, full, targets)
    metrics = activation_metrics(statistics)
    sums = dict(zip(STATISTICS, statistics.double().sum(dim=0).tolist(), strict=True))
    for name in ("nll", "nll_full", "kl", "top1_agreement"):
        assert metrics[name] == pytest.approx(sums[name] / sums["targets"], abs=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]))
    assert metrics["perplexity_full"] == pytest.approx(math.exp(metrics["nll_full"]))
    assert 0 < sums["targets"] < 15 and metrics["nll"] != pytest.approx(metrics["nll_full"])


def test_metrics_without_targets_are_not_numbers():
    logits, full, targets = random_predictions(2, 3)
    metrics = activation_metrics(continuation_statistics(logits, full, targets.fill_(-100)))
    assert all(math.isnan(value) for value in metrics.values())


def make_texts(count=2, length=CONTEXT + CONTINUATION, seed=0):
    return list(torch.randint(3, 60, (count, 1, length), generator=torch.Generator().manual_seed(seed)))


def make_candidates(base, **fields):
    own = tiny_compressor(base, **fields)
    return {"merging": (own, None), "window": (own, POLICIES["window"]), "random": (own, POLICIES["random"])}


@each_base
def test_ratio_1_is_the_full_cache_and_a_higher_one_is_not(name):
    base = tiny_base(name)
    results = compare_policies(base, make_texts(), make_candidates(base), [1, 3], CONTEXT, SEGMENT)
    assert results[FULL_CACHE].kl == 0 and results[FULL_CACHE].top1_agreement == 1
    assert {setting.mode for setting in results} == {"control", ONE_SHOT, RECURSIVE}
    for setting, fidelity in results.items():
        assert fidelity.nll_full == results[FULL_CACHE].nll
        if setting.ratio == 1:
            assert abs(fidelity.kl) < 1e-6 and fidelity.top1_agreement == 1
            assert fidelity.byte_ratio == 1 and fidelity.slots == CONTEXT
            assert fidelity.mass_entropy == pytest.approx(math.log(CONTEXT))
        elif setting != NO_CONTEXT:
            assert fidelity.kl > 1e-4 and 3 <= fidelity.byte_ratio < 3.5


@pytest.mark.parametrize("segment_length", [None, SEGMENT])
@pytest.mark.parametrize("policy", ["merging", "window"])
def test_fidelity_is_that_of_the_cache_that_compress_makes(policy, segment_length):
    base, texts = tiny_base("llama"), make_texts()
    candidates = make_candidates(base, residual_int8=True)
    fidelity = compare_policies(base, texts, candidates, [4], CONTEXT, segment_length)[
        Setting(RECURSIVE if segment_length else ONE_SHOT, policy, 4)
    ]
    compressor, function = candidates[policy]
    statistics, held, entropies = [], [], []
    for text in texts:
        how = {"segment_length": segment_length, "compression_ratio": 4, "policy": function}
        with torch.no_grad(), compressor.attach(base):
            cache = compressor.compress(base, text[:, :CONTEXT], **how)
            held.append((sum(cache.num_slots) / 2, cache.num_bytes))
            masses = torch.cat([layer.log_mass for layer in cache.layers]).double().exp()
            entropies.append(torch.distributions.Categorical(masses).entropy().mean())
            logits = base(text[:, CONTEXT:], **as_cache(cache)).logits[:, :-1]
            full = base(text).logits[:, CONTEXT:-1]
        statistics.append(continuation_statistics(logits, full, text[:, CONTEXT + 1 :]))
    metrics = activation_metrics(torch.cat(statistics))
    for name, value in metrics.items():
        assert getattr(fidelity, name) == pytest.approx(value, rel=1e-5), name
    assert [(fidelity.slots, fidelity.num_bytes)] * 2 == held
    layers, heads, sides, head_dim = 2, 2, 2, 8
    assert fidelity.full_bytes == layers * heads * sides * head_dim * 4 * CONTEXT
    assert fidelity.byte_ratio == fidelity.full_bytes / fidelity.num_bytes
    assert fidelity.mass_entropy == pytest.approx(float(sum(entropies)) / 2, abs=1e-5)
    if policy == "window":
        assert fidelity.mass_entropy == pytest.approx(math.log(fidelity.slots), abs=1e-6)
    else:
        assert fidelity.mass_entropy < math.log(fidelity.slots) - 0.01


def test_no_context_is_the_continuation_alone():
    base, texts = tiny_base("llama"), make_texts()
    fidelity = compare_policies(base, texts, make_candidates(base), [4], CONTEXT)[NO_CONTEXT]
    with torch.no_grad():
        logits = torch.cat([base(text[:, CONTEXT:]).logits[:, :-1] for text in texts])
        full = torch.cat([base(text).logits[:, CONTEXT:-1] for text in texts])
    targets = torch.cat(texts)[:, CONTEXT + 1 :]
    assert fidelity.kl == pytest.approx(activation_metrics(continuation_statistics(logits, full, targets))["kl"])
    assert fidelity.num_bytes == fidelity.slots == 0 and fidelity.byte_ratio is None


def test_candidates_do_not_matter_to_each_other():
    base, texts = tiny_base("llama"), make_texts()
    candidates = make_candidates(base)
    longer = tiny_compressor(base, observation_window=9)
    state = torch.random.get_rng_state()
    together = compare_policies(base, texts, {"longer": (longer, None)} | candidates, [2, 4], CONTEXT, SEGMENT)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    alone = compare_policies(base, texts, {"random": candidates["random"]}, [4], CONTEXT, SEGMENT)
    alone |= compare_policies(base, texts, {"merging": candidates["merging"]}, [4], CONTEXT, SEGMENT)
    for setting, fidelity in alone.items():
        assert together[setting] == fidelity
    for mode in (ONE_SHOT, RECURSIVE):
        assert together[Setting(mode, "longer", 4)].kl != together[Setting(mode, "merging", 4)].kl


def test_progress_is_of_texts_and_of_settings():
    base, lengths = tiny_base("llama"), []

    def track(items):
        lengths.append(len(items))
        return items

    compare_policies(base, make_texts(), make_candidates(base), [2, 4], CONTEXT, track=track)
    assert lengths == [2, 8, 8]


def test_what_cannot_be_compared():
    base = tiny_base("llama")
    candidates, texts = make_candidates(base), make_texts()
    with pytest.raises(ValueError, match="`texts` must be one or more"):
        compare_policies(base, [], candidates, [4], CONTEXT)
    with pytest.raises(ValueError, match=r"of one length.*\[70, 72\]"):
        compare_policies(base, [texts[0], texts[1][:, :70]], candidates, [4], CONTEXT)
    with pytest.raises(ValueError, match="2 tokens or more above `context_length` = 71"):
        compare_policies(base, texts, candidates, [4], CONTEXT + CONTINUATION - 1)
    with pytest.raises(ValueError, match="128 positions of the base, got 129"):
        compare_policies(base, make_texts(length=129), candidates, [4], CONTEXT)
    with pytest.raises(ValueError, match="`candidates` must name"):
        compare_policies(base, texts, {}, [4], CONTEXT)
    with pytest.raises(ValueError, match="`compression_ratio` must be 1 or more"):
        compare_policies(base, texts, candidates, [4, 0.9], CONTEXT)
    with pytest.raises(ValueError, match="`num_sinks` \\+ `recent_window` = 6 must be fewer"):
        compare_policies(base, texts, candidates, [4, 16], CONTEXT)
    with pytest.raises(ValueError, match="belongs to"):
        compare_policies(tiny_base("llama", seed=1), texts, candidates, [4], CONTEXT)


QUESTION = 8


def recall_rows(base, contexts, answers=3):
    """Rows whose last tokens are what the base itself says after their own contexts."""
    with torch.no_grad():
        rows = base.generate(contexts, max_new_tokens=QUESTION, do_sample=False, eos_token_id=None)
    labels = rows.clone()
    labels[:, :-answers] = -100
    return Dataset.from_dict({"input_ids": rows.tolist(), "labels": labels.tolist()})


@pytest.mark.parametrize("segment_length", [None, SEGMENT])
def test_recall_counts_the_answers_after_each_form_of_the_context(segment_length):
    base = tiny_base("llama")
    dataset = recall_rows(base, torch.cat(make_texts(6, CONTEXT)))
    candidates = make_candidates(base)
    results = compare_recall(base, dataset, QUESTION, candidates, [1, 5], segment_length, batch_size=3)
    modes = [ONE_SHOT] if segment_length is None else [ONE_SHOT, RECURSIVE]
    exact = [FULL_CACHE, *(Setting(mode, policy, 1) for mode in modes for policy in candidates)]
    for setting in exact:
        assert results[setting].exact_match == results[setting].token_accuracy == 1, setting
        assert results[setting].mean_positions == CONTEXT
    assert set(results) == {*exact, NO_CONTEXT, OTHER_FULL_CACHE} | {s._replace(ratio=5) for s in exact[1:]}
    assert all((result.examples, result.tokens) == (6, 18) for result in results.values())

    rows = torch.tensor(dataset["input_ids"])
    contexts, questions, answers = rows[:, :CONTEXT], rows[:, CONTEXT:], rows[:, -3:]
    others = torch.cat([part.roll(1, dims=0) for part in contexts.split(3)])
    with torch.no_grad():
        other = base(torch.cat([others, questions], dim=1)).logits[:, -4:-1].argmax(dim=-1)
        none = base(questions).logits[:, -4:-1].argmax(dim=-1)
        cache = candidates["merging"][0].compress(base, contexts, compression_ratio=5)
        with merging_attention(base):
            merged = base(questions, **as_cache(cache)).logits[:, -4:-1].argmax(dim=-1)
    said = {OTHER_FULL_CACHE: other, NO_CONTEXT: none, Setting(ONE_SHOT, "merging", 5): merged}
    for setting, tokens in said.items():
        assert results[setting].correct == int((tokens == answers).sum())
        assert results[setting].exact == int((tokens == answers).all(dim=1).sum())
    assert results[NO_CONTEXT].correct < 18 and results[OTHER_FULL_CACHE].correct < 18
    assert results[Setting(ONE_SHOT, "merging", 5)].mean_positions == cache.num_slots[0]


def test_what_cannot_be_recalled():
    base = tiny_base("llama")
    dataset, candidates = recall_rows(base, torch.cat(make_texts(4, CONTEXT))), make_candidates(base)
    for batch_size in (1, 3):
        with pytest.raises(ValueError, match="leave no batch of one of 4 rows"):
            compare_recall(base, dataset, QUESTION, candidates, [4], batch_size=batch_size)
    with pytest.raises(ValueError, match="`compression_ratio` 40 leaves"):
        compare_recall(base, dataset, QUESTION, candidates, [40])


@each_base
def test_attention_shares_are_sums_of_the_attention(name):
    base, text = tiny_base(name, "eager"), make_texts(1)[0]
    compressor = tiny_compressor(base, compression_layers=[1])
    context, continuation = text[:, :CONTEXT], text[:, CONTEXT:]
    with torch.no_grad(), merging_attention(base):
        full = read_full(base, context, compressor.config.observation_window)
        cache, compressed = compress_copy(full, (compressor, None), 4)
        again, _ = compress_copy(full, (compressor, None), 4)
        shares = attention_shares(base, compressor, cache, compressed, continuation)
        attentions = base(continuation, **as_cache(again), output_attentions=True).attentions
    ((_, slots),) = compressed
    several = count_members(slots) > 1
    assert several.any() and not several.all()
    heads, count = attentions[1].shape[1], slots.log_mass.shape[-1]
    to_slots = attentions[1][0, :, :, :count].mean(dim=1)  # (heads, slots)
    several = several[0].repeat_interleave(heads // several.shape[1], dim=0)
    parts = [(to_slots * several).sum(), (to_slots * ~several).sum(), attentions[1][0, :, :, count:].mean(1).sum()]
    torch.testing.assert_close(shares[1], torch.stack(parts) / heads, rtol=0, atol=1e-5)
    to_full = attentions[0][0, :, :, :CONTEXT].sum(dim=-1).mean()
    torch.testing.assert_close(shares[0], torch.stack([to_full * 0, to_full, 1 - to_full]), rtol=0, atol=1e-5)
    assert shares.shape == (2, len(SHARES))


def test_members_of_slots_are_counted():
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    with torch.no_grad(), merging_attention(base):
        full = read_full(base, torch.cat(make_texts(2, CONTEXT)), compressor.config.observation_window)
        compressed = {name: compress_copy(full, (compressor, POLICIES.get(name)), 4)[1] for name in ("own", "window")}
    for state, slots in compressed["own"]:
        counts = count_members(slots)
        assert (counts.sum(dim=-1) == CONTEXT).all() and (counts >= 1).all() and (counts > 1).any()
        for token in range(CONTEXT):
            assert (
                counts[1, 0, slots.assignment[1, 0, token]]
                == (slots.assignment[1, 0] == slots.assignment[1, 0, token]).sum()
            )
        assert state.keys.shape[2] == CONTEXT
    assert all((count_members(slots) == 1).all() for _, slots in compressed["window"])


def clusters(sizes=(5, 4, 3), dim=6, seed=0):
    """Vectors near an axis for each slot, and their slots."""
    assignment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = torch.randn(sum(sizes), dim, generator=torch.Generator().manual_seed(seed))
    return torch.eye(dim)[assignment] + 0.05 * noise, assignment


def test_silhouettes_are_high_for_clusters_and_not_for_shuffled_ones():
    vectors, assignment = clusters()
    own, shuffled = cluster_silhouettes(vectors, assignment)
    assert own > 0.9 and shuffled < 0.3
    assert own == pytest.approx(silhouette_score(vectors.numpy(), assignment.numpy(), metric="cosine"))
    # By cosine, lengths do not matter.
    lengths = torch.linspace(0.1, 9, len(vectors))[:, None]
    assert cluster_silhouettes(vectors * lengths, assignment)[0] == pytest.approx(own, abs=1e-5)


def test_silhouettes_are_of_tokens_that_share_a_slot():
    vectors, assignment = clusters()
    single, dropped = torch.randn(1, 6), torch.randn(3, 6)
    with_others = torch.cat([single, vectors, dropped])
    slots = torch.cat([torch.tensor([7]), assignment, torch.tensor([-1, -1, -1])])
    assert cluster_silhouettes(with_others, slots) == cluster_silhouettes(vectors, assignment)
    assert all(map(math.isnan, cluster_silhouettes(torch.cat([single, vectors[:5]]), torch.tensor([1] + [0] * 5))))
    assert all(map(math.isnan, cluster_silhouettes(dropped, torch.tensor([0, 1, 2]))))


def is_drawn(png: bytes) -> bool:
    """Whether a picture has more than its paper."""
    pixels = imread(io.BytesIO(png))
    return pixels.shape[0] > 300 and pixels.shape[1] > 300 and pixels.std() > 0.02


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_curves_have_a_line_for_each_policy_and_a_panel_for_each_mode():
    sizes = {"slots": 1.0, "full_bytes": 100, "byte_ratio": 2.0, "mass_entropy": 1.0, "nll": 1.0, "nll_full": 1.0}
    sizes |= {"perplexity": 1.0, "perplexity_full": 1.0}

    def fidelity(num_bytes, kl, agreement):
        return Fidelity(num_bytes=num_bytes, kl=kl, top1_agreement=agreement, **sizes)

    results = {FULL_CACHE: fidelity(100, 0.0, 1.0), NO_CONTEXT: fidelity(0, 0.8, 0.2)}
    for mode in (ONE_SHOT, RECURSIVE):
        for policy, worse in (("merging", 1), ("window", 2)):
            results[Setting(mode, policy, 2)] = fidelity(50, 0.1 * worse, 0.8 / worse)
            results[Setting(mode, policy, 1)] = fidelity(100, 0.0, 1.0)
            results[Setting(mode, policy, 4)] = fidelity(25, 0.2 * worse, 0.6 / worse)
    figure = draw_quality(results)
    kl, agreement = figure.axes[0], figure.axes[2]
    assert len(figure.axes) == 4 and legend(figure) == ["merging", "window", "no context", "full cache"]
    window = {line.get_label(): line for line in kl.lines}["window"]
    assert window.get_xdata().tolist() == [25, 50, 100] and window.get_ydata().tolist() == [0.4, 0.2, 0.0]
    assert agreement.lines[0].get_ydata().tolist() == [0.6, 0.8, 1.0]
    assert kl.get_xscale() == kl.get_yscale() == "log" and kl.get_title() == "one-shot compression"
    assert is_drawn(png_bytes(figure))


def test_the_clusters_are_drawn_with_their_silhouettes():
    base = tiny_base("llama")
    compressor = tiny_compressor(base)
    with torch.no_grad(), merging_attention(base):
        full = read_full(base, make_texts(1, CONTEXT)[0], compressor.config.observation_window)
        state, slots = compress_copy(full, (compressor, None), 4)[1][1]
    figure = draw_clusters(state, slots, head=1)
    own, shuffled = cluster_silhouettes(state.keys[0, 1], slots.assignment[0, 1])
    title = figure.get_suptitle()
    assert "layer 1, head 1: 60 tokens" in title and f"silhouette {own:.3f}, of shuffled slots {shuffled:.3f}" in title
    alone, joined, pivots = (len(points.get_offsets()) for points in figure.axes[0].collections)
    counts = count_members(slots)[0, 1]
    assert (alone, joined + pivots, pivots) == ((counts == 1).sum(), counts[counts > 1].sum(), (counts > 1).sum())
    assert [axis.get_title() for axis in figure.axes] == ["principal components", "t-SNE, perplexity 20"]
    assert is_drawn(png_bytes(figure))


def test_the_attention_is_drawn_as_bars_that_sum_to_1():
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]])
    figure = draw_attention({"merging": shares, "merging, trained": shares.flip(0)})
    bars = figure.axes[1].patches
    assert [bar.get_height() for bar in bars] == shares.flip(0).T.flatten().tolist()
    assert [bar.get_y() + bar.get_height() for bar in bars[-2:]] == [1, 1]
    assert legend(figure) == list(SHARES) and is_drawn(png_bytes(figure))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved Llama with random weights, its tokenizer, and a compressor of it, in a folder that HTML must escape."""
    path = tmp_path_factory.mktemp("models") / "a<b>&c"
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    base.save_pretrained(path)
    AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER).save_pretrained(path)
    compressor = ActivationCompressor.from_base(base, **SMALL)
    with torch.no_grad():
        for layer in compressor.layers.values():
            layer.importance_weight.normal_(std=0.5)
    compressor.save_pretrained(path / "compressor")
    return path


SIZES = ["--context-length", "160", "--continuation-length", "20", "--segment-length", "60", "--max-texts", "2"]


def test_the_command_writes_a_report(folder, tmp_path, capsys):
    output = tmp_path / "report"
    arguments = ["--model", str(folder), "--compressor", str(folder / "compressor"), "-o", str(output), *SIZES]
    assert main(["report-activation", *arguments, "--ratios", "2", "4", "--recall", "4", "--device", "cpu"]) == 0
    pictures = {"quality.png", "clusters.png", "attention.png"}
    assert {path.name for path in output.iterdir()} == pictures | {"quality.csv", "report.json", "index.html"}
    assert all(is_drawn((output / name).read_bytes()) for name in pictures)

    with (output / "quality.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    policies = ["merging", "merging, trained", "merging, int8 residuals", *POLICIES]
    expected = [("control", "full cache"), ("control", "no context")]
    expected += [(mode, policy) for mode in (ONE_SHOT, RECURSIVE) for _ in range(2) for policy in policies]
    assert [(row["mode"], row["policy"]) for row in rows] == expected
    trained, untrained = (
        next(row for row in rows if row["policy"] == policy) for policy in ("merging, trained", "merging")
    )
    assert trained["kl"] != untrained["kl"] and float(untrained["kl"]) > 0

    report = json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)
    assert [str(row["kl"]) for row in report["quality"]] == [row["kl"] for row in rows]
    assert report["settings"]["context_length"] == 160 and len(report["base"]["fingerprint"]) == 64
    assert set(report["recall"]) == {"passkey", "key_value"}
    assert {row["examples"] for row in report["recall"]["passkey"]} == {4}
    assert len(report["recall"]["key_value"]) == 3 + 2 * len(policies)
    assert report["silhouette"]["layer"] == 1 and -1 <= report["silhouette"]["slots"] <= 1
    shares = report["attention"]["layers"]
    assert set(shares) == {"merging, ratio 2", "merging, trained, ratio 2"}
    for parts in shares.values():
        torch.testing.assert_close(torch.tensor(parts).sum(dim=1), torch.ones(2))

    page = (output / "index.html").read_text()
    assert "a&lt;b&gt;&amp;c" in page and "a<b>" not in page
    assert page.count("<tr>") == len(rows) + 1 + 2 * (len(report["recall"]["passkey"]) + 1)
    assert all(f'src="{name}"' in page for name in pictures) and "http" not in page
    printed = capsys.readouterr().out
    assert "Recall: passkey" in printed and "…" not in printed and f"{float(untrained['kl']):.4f}" in printed


def test_an_old_report_is_replaced_and_one_text_is_enough(folder, tmp_path):
    (tmp_path / "quality.csv").write_text("old")
    assert main(["report-activation", "--model", str(folder), "-o", str(tmp_path), *SIZES, "--ratios", "1", "3"]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "quality.csv").read_text())))
    assert {row["policy"] for row in rows} == {"full cache", "no context", "merging", "merging, int8 residuals"} | set(
        POLICIES
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recall"] == {} and list(report["attention"]["layers"]) == ["merging, ratio 3"]


def test_the_page_escapes_all_text():
    page = report_page("<1>", "<2>", {"<3>": (["<4>"], [["<5>", "a & b"]])}, {"x.png": '<6> "q"'})
    assert page.count("&lt;") == 8 and "a &amp; b" in page and 'alt="&lt;6&gt; &quot;q&quot;"' in page
    assert not any(f"<{number}>" in page for number in range(1, 7))


def test_recall_that_does_not_fit_is_refused_before_the_work(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("auto_compressor.activation_compressor.metrics.compare_policies", pytest.fail)
    arguments = ["--model", folder, "-o", tmp_path / "report", *SIZES, "--ratios", "2", "--recall", "4"]
    assert "got 262" in failure(capsys, *arguments, "--context-length", "230")
    assert "must hold facts of" in failure(capsys, *arguments, "--context-length", "30")


def failure(capsys, *arguments) -> str:
    assert main(["report-activation", *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ratios", "2", "0.5"], "--ratios must be 1 or more"),
        (["--ratios", "1"], "one of them above 1"),
        (["--ratios", "2", "nan"], "--ratios must be 1 or more"),
        (["--ratios", "8"], "`num_sinks` + `recent_window` = 36 must be fewer"),
        (["--max-texts", "0"], "--max-texts must be 1 or more, got 0"),
        (["--segment-length", "0"], "--segment-length must be 1 or more"),
        (["--continuation-length", "1"], "--continuation-length must be 2 or more"),
        (["--recall", "6"], "--recall must be a multiple of 4, got 6"),
        (["--recall", "0"], "--recall must be 4 or more"),
        (["--context-length", "250"], "256 positions of the base, got 270"),
        (["--context-length", "230", "--recall", "4"], "256 positions of the base, got 262"),
        (["--compressor", "{folder}"], "must be of the type activation_compressor, it is of the type llama"),
        (["--compressor", "{folder}/nothing"], "Cannot load the model"),
        (["--text", "{short}"], "must hold 180 tokens, it has 2"),
        (["--output", "{short}"], "must be a folder, it is a file"),
        (["--output", "{folder}/nothing/report"], "there is no folder"),
        (
            ["--model", "{folder}/compressor"],
            "causal language model, it is of the type activation_compressor",
        ),
    ],
)
def test_errors_are_one_line_and_write_nothing(folder, tmp_path, capsys, options, message):
    short, output = tmp_path / "short.txt", tmp_path / "report"
    short.write_text("a king")
    options = [option.format(folder=folder, short=short) for option in options]
    error = failure(capsys, "--model", folder, "-o", output, *SIZES, "--ratios", "2", *options)
    assert message in error and not output.exists()


def test_a_compressor_of_another_base_is_refused(folder, tmp_path, capsys):
    tiny_compressor(tiny_base("llama")).save_pretrained(tmp_path / "other")
    arguments = ["--model", folder, "--compressor", tmp_path / "other", "-o", tmp_path / "report", *SIZES]
    assert "This compressor belongs to" in failure(capsys, *arguments, "--ratios", "2")


@pytest.mark.parametrize("module", ["matplotlib", "sklearn"])
def test_the_extra_is_named_where_it_is_missing(folder, tmp_path, capsys, monkeypatch, module):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name))
    assert 'pip install "auto-compressor[viz]"' in failure(capsys, "--model", folder, "-o", tmp_path / "report")
