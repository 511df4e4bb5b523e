"""How well a language model continues a text whose key/value cache was compressed.

What counts is what the model would have said with the full cache: KL and agreement of the next token, over the same
positions. The likelihood of the text itself barely tells policies apart. Nothing that is predicted is known when the
context is compressed, questions included.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..evaluation.recall import OTHER_CONTEXT, RecallResult
from .cache_names import as_cache
from .cache_policies import LayerState, Slots, importance
from .merging_cache import MergingCache, MergingLayer, merging_attention
from .modeling_activation_compressor import ActivationCompressor, Policy


STATISTICS = ("targets", "nll", "nll_full", "kl", "top1_agreement")
SHARES = ("slots of several tokens", "slots of one token", "tokens after the slots")
ONE_SHOT, RECURSIVE, CONTROL = "one-shot", "recursive", "control"

# A compressor, and the policy that takes the place of its own.
Candidate = tuple[ActivationCompressor, Policy | None]


class Setting(NamedTuple):
    """
    How a context is held.

    Args:
        mode (`str`): `"one-shot"`, compressed after all of it was read; `"recursive"`, while it was; or `"control"`.
        policy (`str`): Name of the candidate, or of the control.
        ratio (`float`, *optional*): Compression ratio that was asked for; `None` without a context.
    """

    mode: str
    policy: str
    ratio: float | None


FULL_CACHE, NO_CONTEXT = Setting(CONTROL, "full cache", 1), Setting(CONTROL, "no context", None)
OTHER_FULL_CACHE = Setting(CONTROL, OTHER_CONTEXT, 1)


@dataclass(frozen=True)
class Fidelity:
    """
    What a cache costs, and how close the model stays to what it says with the full one; means over texts.

    Args:
        slots (`float`): Slots of a head, mean over layers.
        num_bytes, full_bytes (`float`): Bytes of all tensors held, and of those of the full cache.
        byte_ratio (`float`, *optional*): `full_bytes` divided by `num_bytes`; `None` if nothing is held.
        mass_entropy (`float`): Entropy of the slots' shares of the mass in nats, mean over layers, rows and heads.
        nll, nll_full, kl, top1_agreement, perplexity, perplexity_full (`float`): See [`activation_metrics`].
    """

    slots: float
    num_bytes: float
    full_bytes: float
    byte_ratio: float | None
    mass_entropy: float
    nll: float
    nll_full: float
    kl: float
    top1_agreement: float
    perplexity: float
    perplexity_full: float


def continuation_statistics(
    logits: torch.Tensor, full_logits: torch.Tensor, targets: torch.LongTensor
) -> torch.Tensor:
    """
    Sums over the targets of every row, so that neither batches nor padding change what comes of them.

    Args:
        logits, full_logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`):
            Logits of the next token, with the compressed and with the full cache.
        targets (`torch.LongTensor` of shape `(batch_size, length)`): The next tokens; -100 is ignored.

    Returns:
        `torch.Tensor` of shape `(batch_size, len(STATISTICS))`, float32: The columns [`STATISTICS`] are the counted
        targets, and sums over them of -log P(target) with the compressed and with the full cache, of
        KL(full || compressed), all in nats, and of whether both predict the same token.
    """
    counted = targets != -100
    log_probs, full = logits.float().log_softmax(dim=-1), full_logits.float().log_softmax(dim=-1)
    index = targets.where(counted, 0)[..., None]
    columns = (
        torch.ones_like(log_probs[..., 0]),
        -log_probs.gather(-1, index)[..., 0],
        -full.gather(-1, index)[..., 0],
        F.kl_div(log_probs, full, reduction="none", log_target=True).sum(dim=-1),
        (log_probs.argmax(dim=-1) == full.argmax(dim=-1)).float(),
    )
    return torch.stack([column.where(counted, 0).sum(dim=1) for column in columns], dim=-1)


def activation_metrics(statistics: torch.Tensor) -> dict[str, float]:
    """
    Means over all targets.

    Args:
        statistics (`torch.Tensor` of shape `(rows, len(STATISTICS))`): From [`continuation_statistics`].

    Returns:
        `dict[str, float]`: `nll`, `nll_full` and `kl` in nats, `top1_agreement`, `perplexity` and `perplexity_full`;
        NaN without targets.
    """
    sums = dict(zip(STATISTICS, statistics.detach().cpu().double().sum(dim=0), strict=True))
    targets = sums.pop("targets")
    means = {name: total / targets for name, total in sums.items()}
    means |= {"perplexity": means["nll"].exp(), "perplexity_full": means["nll_full"].exp()}
    return {name: float(mean) for name, mean in means.items()}


@torch.no_grad()
def read_full(base_model: PreTrainedModel, input_ids: torch.LongTensor, num_queries: int) -> MergingCache:
    """The full cache of texts `(batch_size, length)`, with their last queries; within `merging_attention`."""
    cache = MergingCache(base_model.config)
    cache.observe(num_queries)
    base_model.base_model(input_ids=input_ids, **as_cache(cache), use_cache=True)
    return cache


def fork_cache(cache: MergingCache, num_queries: int = 0) -> MergingCache:
    """A cache that goes its own way, with fewer of the queries."""
    fork = cache.fork()
    for layer in fork.layers:
        layer.queries = layer.queries[:, :, -num_queries:]
    fork.observe(num_queries)
    return fork


def compress_copy(
    full: MergingCache, candidate: Candidate, ratio: float
) -> tuple[MergingCache, list[tuple[LayerState, Slots]]]:
    """A compressed copy of a full cache, and what every layer held and was compressed to."""
    compressor, policy = candidate
    cache = fork_cache(full, compressor.config.observation_window)
    compressed = compressor.compress_cache(cache, compression_ratio=ratio, policy=policy)
    cache.observe(0)
    return cache, compressed


def count_slots(layer: MergingLayer) -> int:
    """Slots of a head; a token that was never compressed is one."""
    return layer.num_slots + layer.recent_length


def mass_entropy(layer: MergingLayer) -> float:
    """Entropy of the shares that slots have of the mass, in nats, mean over rows and heads."""
    log_mass = layer.keys.new_zeros(1, 1, 0) if layer.log_mass is None else layer.log_mass
    log_shares = F.pad(log_mass, (0, layer.recent_length)).float().log_softmax(dim=-1)
    return float(torch.special.entr(log_shares.exp()).sum(dim=-1).mean())


def cache_size(cache: MergingCache | None) -> dict[str, float]:
    """Slots, bytes and entropy of the masses, see [`Fidelity`]."""
    if cache is None:
        return {"slots": 0.0, "num_bytes": 0, "mass_entropy": 0.0}
    return {
        "slots": fmean(map(count_slots, cache.layers)),
        "num_bytes": cache.num_bytes,
        "mass_entropy": fmean(map(mass_entropy, cache.layers)),
    }


def settings_of(candidates: Iterable[str], ratios: Iterable[float], segment_length: int | None) -> list[Setting]:
    """Every candidate at every ratio; recursive too if there is a segment length."""
    modes = [ONE_SHOT] if segment_length is None else [ONE_SHOT, RECURSIVE]
    return [Setting(mode, policy, ratio) for mode in modes for ratio in ratios for policy in candidates]


def check_candidates(
    base_model: PreTrainedModel, candidates: dict[str, Candidate], ratios: Sequence[float], context_length: int
):
    """Raises a `ValueError` for a compressor of another base, and for a ratio that it cannot reach."""
    for compressor, _ in candidates.values():
        compressor.check_identity(base_model)
        for ratio in ratios:
            compressor.check_ratio(context_length, ratio)


def hold_context(
    base_model: PreTrainedModel,
    context: torch.LongTensor,
    full: MergingCache,
    setting: Setting,
    candidates: dict[str, Candidate],
    segment_length: int | None,
) -> MergingCache | None:
    """The cache of a context `(batch_size, length)` in one setting; random policies draw the same in every one."""
    if setting == NO_CONTEXT:
        return None
    if setting == FULL_CACHE:
        return fork_cache(full)
    torch.manual_seed(0)
    compressor, policy = candidates[setting.policy]
    if setting.mode == ONE_SHOT:
        return compress_copy(full, (compressor, policy), setting.ratio)[0]
    how = {"segment_length": segment_length, "compression_ratio": setting.ratio, "policy": policy}
    return compressor.compress(base_model, context, **how)


def most_queries(candidates: dict[str, Candidate]) -> int:
    return max(compressor.config.observation_window for compressor, _ in candidates.values())


def continue_after(base_model: PreTrainedModel, cache: MergingCache | None, text: torch.LongTensor) -> torch.Tensor:
    """Logits of every token of `text` `(batch_size, length)` but the first, which none of the contexts predicts."""
    return base_model(input_ids=text, **as_cache(cache), use_cache=cache is not None).logits[:, :-1]


@torch.no_grad()
def compare_policies(
    base_model: PreTrainedModel,
    texts: Sequence[torch.LongTensor],
    candidates: dict[str, Candidate],
    ratios: Sequence[float],
    context_length: int,
    segment_length: int | None = None,
    track: Callable[[Sequence], Iterable] = iter,
) -> dict[Setting, Fidelity]:
    """
    Continues texts after their contexts were compressed, by every candidate to every ratio.

    Beside them stand the full cache, and no context at all: the level of a cache that holds nothing.

    Args:
        base_model (`PreTrainedModel`): In evaluation mode.
        texts (`Sequence[torch.LongTensor]` of shape `(1, length)`): On the model's device, of one length.
        candidates (`dict[str, Candidate]`): By name, a compressor and the policy that replaces its own, or `None`.
        ratios (`Sequence[float]`): Bytes of the full cache by those that may be held, 1 or more.
        context_length (`int`): The first tokens of a text, which are compressed; the others are predicted.
        segment_length (`int`, *optional*): Tokens between two compressions, for the recursive mode.
        track (`Callable`, *optional*): Wraps the texts, and within each of them the settings, to show progress.

    Returns:
        `dict[Setting, Fidelity]`: The controls, and then every mode, ratio and candidate.

    Raises:
        ValueError: without texts, candidates or a continuation of 2 tokens; for texts that the base has no positions
            for; and as [`ActivationCompressor.compress`].
    """
    check_texts(base_model, texts, context_length)
    if not candidates:
        raise ValueError("`candidates` must name at least one compressor, it is empty.")
    check_candidates(base_model, candidates, ratios, context_length)
    settings = [FULL_CACHE, NO_CONTEXT, *settings_of(candidates, ratios, segment_length)]
    measured: dict[Setting, list[tuple[dict[str, float], torch.Tensor]]] = {setting: [] for setting in settings}
    with merging_attention(base_model), torch.random.fork_rng():
        for text in track(texts):
            context, continuation = text[:, :context_length], text[:, context_length:]
            full = read_full(base_model, context, most_queries(candidates))
            expected = continue_after(base_model, fork_cache(full), continuation)
            for setting in track(settings):
                cache = hold_context(base_model, context, full, setting, candidates, segment_length)
                size = cache_size(cache)
                logits = continue_after(base_model, cache, continuation)
                measured[setting].append((size, continuation_statistics(logits, expected, continuation[:, 1:])))
    full_bytes = fmean(size["num_bytes"] for size, _ in measured[FULL_CACHE])
    return {setting: mean_fidelity(pairs, full_bytes) for setting, pairs in measured.items()}


def check_texts(base_model: PreTrainedModel, texts: Sequence[torch.LongTensor], context_length: int):
    lengths = {text.shape[1] for text in texts}
    if len(lengths) != 1 or not 0 < context_length < min(lengths) - 1:
        raise ValueError(
            f"`texts` must be one or more of one length, 2 tokens or more above `context_length` = {context_length},"
            f" got lengths {sorted(lengths)}."
        )
    check_length(base_model, min(lengths))


def check_length(base_model: PreTrainedModel, length: int):
    """Raises a `ValueError` for texts that the base has no positions for."""
    positions = getattr(base_model.config, "max_position_embeddings", math.inf)
    if length > positions:
        raise ValueError(f"Context and continuation must fit the {positions} positions of the base, got {length}.")


def mean_fidelity(pairs: Sequence[tuple[dict[str, float], torch.Tensor]], full_bytes: float) -> Fidelity:
    """The fidelity of a setting, from the sizes and the statistics of every text."""
    size = {name: fmean(size[name] for size, _ in pairs) for name in pairs[0][0]}
    byte_ratio = full_bytes / size["num_bytes"] if size["num_bytes"] else None
    metrics = activation_metrics(torch.cat([statistics for _, statistics in pairs]))
    return Fidelity(**size, full_bytes=full_bytes, byte_ratio=byte_ratio, **metrics)


@torch.no_grad()
def compare_recall(
    base_model: PreTrainedModel,
    dataset: Dataset,
    question_length: int,
    candidates: dict[str, Candidate],
    ratios: Sequence[float],
    segment_length: int | None = None,
    batch_size: int = 4,
    track: Callable[[Sequence], Iterable] = iter,
) -> dict[Setting, RecallResult]:
    """
    Counts the answers that a model still gives when it is asked after the compression.

    Controls are the full cache; no context, the level of guessing; and the full cache of the neighbour in the batch.

    Args:
        dataset (`Dataset`): From [`~evaluation.recall.recall_dataset`] with `answers_only`.
        question_length (`int`): Tokens of the last segment, which is not compressed.
        batch_size (`int`, defaults to 4): Rows at a time, 2 or more.
        base_model, candidates, ratios, segment_length, track: As in [`compare_policies`].

    Returns:
        `dict[Setting, RecallResult]`: The controls, and then every mode, ratio and candidate.

    Raises:
        ValueError: where a batch would hold a single row, and as [`compare_policies`].
    """
    if batch_size < 2 or len(dataset) % batch_size == 1:
        raise ValueError(
            f"`batch_size` must be 2 or more and leave no batch of one of {len(dataset)} rows, got {batch_size}."
        )
    length = len(dataset[0]["input_ids"])
    context_length = length - question_length
    check_length(base_model, length)
    check_candidates(base_model, candidates, ratios, context_length)
    settings = settings_of(candidates, ratios, segment_length)
    settings = [FULL_CACHE, NO_CONTEXT, OTHER_FULL_CACHE, *settings]
    results = {setting: RecallResult(setting.policy) for setting in settings}
    with merging_attention(base_model), torch.random.fork_rng():
        for rows in track(list(dataset.with_format("torch").iter(batch_size))):
            input_ids, labels = rows["input_ids"].to(base_model.device), rows["labels"].to(base_model.device)
            context, question = input_ids[:, :context_length], input_ids[:, context_length:]
            full = read_full(base_model, context, most_queries(candidates))
            for setting in track(settings):
                own = FULL_CACHE if setting == OTHER_FULL_CACHE else setting
                cache = hold_context(base_model, context, full, own, candidates, segment_length)
                if setting == OTHER_FULL_CACHE:
                    cache.batch_select_indices(torch.arange(len(question)).roll(1))
                slots = round(cache_size(cache)["slots"] * len(question))
                logits = continue_after(base_model, cache, question)
                results[setting].add(logits, labels[:, context_length + 1 :], slots)
    return results


@torch.no_grad()
def attention_shares(
    base_model: PreTrainedModel,
    compressor: ActivationCompressor,
    cache: MergingCache,
    compressed: Sequence[tuple[LayerState, Slots]],
    continuation: torch.LongTensor,
) -> torch.Tensor:
    """
    What a continuation looks at in each layer, after a context was compressed at once.

    Args:
        cache, compressed: From [`compress_copy`]; the cache reads the continuation.
        continuation (`torch.LongTensor` of shape `(batch_size, length)`): The tokens after the context.
        base_model, compressor: Within `merging_attention`.

    Returns:
        `torch.Tensor` of shape `(num_hidden_layers, len(SHARES))`: Shares of the attention, mean over queries, heads
        and rows, that go to [`SHARES`]: slots that stand for several tokens, for one, and tokens after the slots.
    """
    several = {state.layer_idx: count_members(slots) > 1 for state, slots in compressed}
    cache.observe(continuation.shape[1])
    base_model.base_model(input_ids=continuation, **as_cache(cache), use_cache=True)
    mask = continuation.new_ones(continuation.shape[0], cache.get_seq_length())
    shares = []
    for index, layer in enumerate(cache.layers):
        attention = importance(compressor.layer_state(layer, mask, index))
        to_slots, to_recent = attention[..., : layer.num_slots], attention[..., layer.num_slots :]
        to_several = to_slots[several[index]].sum() if index in several else to_slots.sum() * 0
        parts = (to_several, to_slots.sum() - to_several, to_recent.sum())
        shares.append(torch.stack(parts) / attention[..., 0].numel())
    return torch.stack(shares)


def count_members(slots: Slots) -> torch.LongTensor:
    """Tokens that each slot stands for, `(batch_size, num_kv_heads, slots)`."""
    counts = torch.zeros_like(slots.log_mass, dtype=torch.long)
    return counts.scatter_add(2, slots.assignment.clamp_min(0), (slots.assignment >= 0).long())


__all__ = [
    "FULL_CACHE",
    "NO_CONTEXT",
    "ONE_SHOT",
    "OTHER_FULL_CACHE",
    "RECURSIVE",
    "SHARES",
    "STATISTICS",
    "Candidate",
    "Fidelity",
    "Setting",
    "activation_metrics",
    "attention_shares",
    "check_length",
    "compare_policies",
    "compare_recall",
    "compress_copy",
    "continuation_statistics",
    "count_members",
    "read_full",
]
