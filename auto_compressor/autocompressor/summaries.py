"""How a segment becomes summary vectors: a fixed number of them, or as many as the model finds that it takes.

[`FixedSummaries`] and [`VariableSummaries`] have the same methods. They hold no weights: those are the model's.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional as F

from .cache_names import as_cache
from .checks import check_control_tokens, check_gate, check_layer_checkpointing
from .gating import gated_causal_mask, relative_lengths, survives
from .losses import shift_labels_left
from .outputs import SegmentSummary
from .segments import Prefix, Text, append_sum_tokens
from .sharding import is_sharded
from .softprompt_cache import SoftpromptCache


@dataclass(frozen=True)
class ReadSegment:
    """
    What is known once the base model has read a segment.

    Args:
        states (`torch.Tensor` of shape `(rows, length + summary embeddings, embedding_dim)`): Last hidden states of
            the text tokens that were read now, and of the summary embeddings.
        embeds (`torch.Tensor` of shape `(rows, length, embedding_dim)`): Embeddings of these text tokens.
        text_mask (`torch.LongTensor` of shape `(rows or 1, text_length)`): 1 for the text tokens of the segment.
        has_text (`torch.LongTensor` of shape `(rows, 1)`, *optional*): 0 for rows of padding alone; `None` if there
            are none.
        is_sum (`torch.BoolTensor` of shape `(rows, length)`, *optional*): Where `<sum>` stands.
        prefix_mask (`torch.Tensor` of shape `(rows or 1, prefix_length)`): Weights of the vectors in front.
        key_weights (`torch.Tensor` of shape `(rows, keys)`): The mask of all keys that were read.
        positions (`torch.LongTensor` of shape `(rows, num_summary)`): Where the summary vectors stand.
        cache ([`SoftpromptCache`], *optional*): The keys.
    """

    states: torch.Tensor
    embeds: torch.Tensor
    text_mask: torch.LongTensor
    has_text: torch.LongTensor | None
    is_sum: torch.BoolTensor | None
    prefix_mask: torch.Tensor
    key_weights: torch.Tensor
    positions: torch.LongTensor
    cache: SoftpromptCache | None


@dataclass
class SegmentOutput:
    """
    What one segment gives: the hidden states of its text tokens, and the softprompt of the next segment.

    `summary` are its own vectors, if any; `relative_lengths` `(rows,)` is what the length penalty is the mean of.
    """

    last_hidden_state: torch.Tensor
    prefix: Prefix
    summary: SegmentSummary | None
    relative_lengths: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


def window_means(states: torch.Tensor, mask: torch.Tensor, num_windows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Means of the text's states over windows that follow one another, whose lengths differ by one at most.

    Args:
        states (`torch.Tensor` of shape `(rows, length, dim)`): Last hidden states.
        mask (`torch.LongTensor` of shape `(rows or 1, length)`): 1 for text, which alone is counted.
        num_windows (`int`): Windows of a row; the tokens of a row with fewer have one each.

    Returns:
        The means `(rows, num_windows, dim)`, 0 for empty windows, and the tokens of each, `(rows or 1, num_windows)`.
    """
    ranks, counts = mask.cumsum(dim=1) - 1, mask.sum(dim=1, keepdim=True)  # (rows or 1, length), (rows or 1, 1)
    windows = ranks.clamp(min=0) * num_windows // counts.clamp(min=num_windows)
    members = F.one_hot(windows, num_windows) * mask[..., None]  # (rows or 1, length, num_windows)
    sizes = members.sum(dim=1)
    shares = members.to(states.dtype) / sizes.clamp(min=1)[:, None]
    return shares.transpose(1, 2) @ states, sizes


def last_tokens(embeds: torch.Tensor, mask: torch.LongTensor, number: int) -> torch.Tensor:
    """
    Embeddings of the last tokens of each text, in their order.

    Args:
        embeds (`torch.Tensor` of shape `(rows, length, dim)`): Embeddings of the text.
        mask (`torch.LongTensor` of shape `(rows or 1, length)`): 1 for text, on whichever side the padding is.
        number (`int`): Tokens wanted; behind those of a text with fewer stand zeros.

    Returns:
        `torch.Tensor` of shape `(rows, number, dim)`.
    """
    from_end = mask.flip(1).cumsum(dim=1).flip(1)  # 1 at the last token of a text
    return window_means(embeds, mask * (from_end <= number), number)[0]


class FixedSummaries:
    """
    As many vectors as the config says: the last hidden states at the summary embeddings (paper, section 3.1), the
    means of the text's, or the sum of both; see `summary_source`. They may be differences, see `summary_residual`.
    """

    num_sum_tokens = 0  # tokens at the end of a segment that are no text

    def __init__(self, model: Any):
        self.model, self.config = model, model.config

    def sum_mask(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.LongTensor | None
    ) -> torch.BoolTensor | None:
        """Where `<sum>` stands, `(batch, length)`; here nowhere."""
        return None

    def append_sum_tokens(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.LongTensor | None,
        segment_lengths: list[int],
        include_last: bool = True,
    ) -> tuple[torch.LongTensor | None, torch.LongTensor | None, list[int]]:
        """Ids, mask and lengths of the segments with what makes the model compress them."""
        return input_ids, attention_mask, segment_lengths

    def embeds(self, text_embeds: torch.Tensor, num_summary: int) -> torch.Tensor:
        """What is read after the text: the first summary embeddings, `(batch, num_summary or 0, embedding_dim)`."""
        if self.model.embed_summary is None:
            return text_embeds[:, :0]
        ids = torch.arange(num_summary, device=text_embeds.device)
        return self.model.embed_summary(ids).to(text_embeds.dtype).expand(text_embeds.shape[0], -1, -1)

    def count_sum_tokens(self, text: Text, segment_lengths: list[int]) -> int:
        """How many of the first segments end with `<sum>`, which is no text."""
        return 0

    def needs_cache(self, num_summary: int) -> bool:
        """Whether the vectors are made on the keys of the segment."""
        return False

    def attention_mask(self, key_weights: torch.Tensor, num_queries: int, dtype: torch.dtype) -> torch.Tensor:
        """A mask for the base model: of 0 and 1 as they are, `(rows, keys)`, of weights as a bias on the scores."""
        if not key_weights.is_floating_point():
            return key_weights
        check_gate(self.config._attn_implementation)
        return gated_causal_mask(key_weights, num_queries, dtype)  # (rows, 1, num_queries, keys)

    def summarise(self, read: ReadSegment, num_summary: int) -> tuple[SegmentSummary | None, torch.Tensor | None]:
        """The new vectors of a segment, and what the length penalty is the mean of, `(rows,)`; `None` if none."""
        if num_summary == 0:
            return None, None
        length = read.states.shape[1] - min(num_summary, self.config.num_summary_tokens)
        text_states, vectors = read.states[:, :length], read.states[:, length:]
        weights = None if read.has_text is None else read.has_text.expand(-1, num_summary)
        if read.cache is not None and vectors.shape[1] > 0:
            read.cache.crop(-vectors.shape[1])
        if self.config.summary_source != "tokens":
            means, sizes = window_means(text_states, read.text_mask, min(num_summary, length))
            if self.config.summary_source == "means":
                vectors, weights = means, None if weights is None else (sizes > 0).long()
            else:
                vectors = vectors + F.pad(means, (0, 0, 0, vectors.shape[1] - means.shape[1]))
        vectors = self.scaled(vectors)
        if self.config.summary_residual:
            recent = last_tokens(read.embeds, read.text_mask, vectors.shape[1])
            vectors = recent + self.model.summary_projection(vectors)
        return SegmentSummary(vectors, weights), None

    def scaled(self, states: torch.Tensor) -> torch.Tensor:
        """Last hidden states as large as the base model reads them, see `summary_scale`; same shape."""
        return states if self.model.summary_norm is None else self.model.summary_norm(states)

    def targets(
        self,
        input_ids: torch.LongTensor | None,
        labels: torch.LongTensor | None,
        shift_labels: torch.LongTensor | None,
    ) -> torch.LongTensor:
        """The target of every position, `(batch, length)`."""
        return shift_labels_left(labels) if shift_labels is None else shift_labels

    def penalty(self, compressed: list[tuple[SegmentSummary, torch.Tensor]]) -> torch.Tensor | None:
        """What is added to the mean loss for the number of vectors; here nothing."""
        return None


class VariableSummaries(FixedSummaries):
    """
    Vectors that are unrolled one from the other behind `<sum>`, until the model would rather say `<eoc>`.

    In training every vector has a weight, the probability that it is still made; see `gating`.
    """

    num_sum_tokens = 1

    def sum_mask(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.LongTensor | None
    ) -> torch.BoolTensor | None:
        check_layer_checkpointing(self.model)
        is_sum = input_ids == self.config.sum_token_id
        return is_sum if attention_mask is None else is_sum & attention_mask[:, -is_sum.shape[1] :].bool()

    def append_sum_tokens(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.LongTensor | None,
        segment_lengths: list[int],
        include_last: bool = True,
    ) -> tuple[torch.LongTensor | None, torch.LongTensor | None, list[int]]:
        check_control_tokens(self.config, input_ids)
        given = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        longer, lengths = append_sum_tokens(given, segment_lengths, self.config.sum_token_id, include_last)
        return longer["input_ids"], longer.get("attention_mask"), lengths

    def embeds(self, text_embeds: torch.Tensor, num_summary: int) -> torch.Tensor:
        return text_embeds[:, :0]

    def count_sum_tokens(self, text: Text, segment_lengths: list[int]) -> int:
        ends = [end - 1 for end in accumulate(segment_lengths)]
        return int(text.is_sum[:, ends].any(dim=0).sum()) if ends else 0

    def needs_cache(self, num_summary: int) -> bool:
        return num_summary > 0

    def summarise(self, read: ReadSegment, num_summary: int) -> tuple[SegmentSummary | None, torch.Tensor | None]:
        if num_summary == 0:
            return None, None
        new = self.compress_context(read)
        num_tokens = read.text_mask.sum(dim=1) - read.is_sum.sum(dim=1)  # (rows,)
        alpha = self.config.compression_alpha
        return new, relative_lengths(new.weights, num_tokens, read.prefix_mask, alpha)

    def compress_context(self, read: ReadSegment) -> SegmentSummary:
        """
        Unrolls the summary vectors of a segment that was just read, each from the one before.

        z_0 is the last hidden state at `<sum>`, scaled as all vectors are; step t reads z_{t-1} after the keys of the
        segment and gives vector z_t with p_t, the probability of `<eoc>`. Vector t survives with s_1 = 1,
        s_{t+1} = s_t (1 - p_t). In training all steps are made and s_t is a weight; at inference a row ends with its
        first vector whose p_t is above `compress_stop_threshold`, and the steps end when all rows have (which, as
        `generate`, waits for the device); where parameters are sharded, all processes make all steps.

        Rows that do not end with `<sum>` get no vectors. The cache is after the call as it was before.

        Returns:
            [`SegmentSummary`] with as many columns as steps were made.
        """
        training, key_weights = self.model.training, read.key_weights
        may_end = not training and not is_sharded(self.model)
        state = self.scaled(read.states[:, -1:])  # (rows, 1, dim)
        weight = read.is_sum[:, -1:].long()  # (rows, 1)
        if training:
            weight = weight.to(torch.promote_types(state.dtype, torch.float32))
        vectors, weights, stop_probs = [state[:, :0]], [weight[:, :0]], [weight[:, :0].float()]
        for position in read.positions.split(1, dim=1):
            if may_end and not weight.any():
                break
            key_weights = F.pad(key_weights, (0, 1), value=1)  # (rows, keys + steps)
            state = self.model.model(
                inputs_embeds=state,
                attention_mask=self.attention_mask(key_weights, 1, state.dtype),
                position_ids=position,
                **as_cache(read.cache),
                use_cache=True,
            ).last_hidden_state
            goes_on = survives(self.model.stop_head(state)[:, 0])  # (rows, 1)
            state = self.scaled(state)
            vectors.append(state)
            weights.append(weight)
            stop_probs.append(1 - goes_on)
            weight = weight * (goes_on if training else (1 - goes_on <= self.config.stop_threshold))
        read.cache.crop(1 - len(vectors))
        vectors, weights, stop_probs = (torch.cat(parts, dim=1) for parts in (vectors, weights, stop_probs))
        return SegmentSummary(vectors, weights, stop_probs)  # (rows, steps, dim), (rows, steps) twice

    def targets(
        self,
        input_ids: torch.LongTensor | None,
        labels: torch.LongTensor | None,
        shift_labels: torch.LongTensor | None,
    ) -> torch.LongTensor:
        """Control tokens are no targets, and are passed over."""
        if shift_labels is not None:
            return shift_labels.masked_fill(self.is_control(shift_labels), -100)
        control = self.is_control(labels)
        return shift_labels_left(labels, control if input_ids is None else control | self.is_control(input_ids))

    def is_control(self, ids: torch.LongTensor) -> torch.BoolTensor:
        return (ids == self.config.sum_token_id) | (ids == self.config.eoc_token_id)

    def penalty(self, compressed: list[tuple[SegmentSummary, torch.Tensor]]) -> torch.Tensor | None:
        """`compression_lambda` times the mean of E[L] / size over the rows and segments that were compressed."""
        if not compressed:
            return None
        # s_1 is 1 where a row was compressed.
        count = sum(summary.weights[:, :1].detach().sum() for summary, _ in compressed)
        total = sum(lengths.sum() for _, lengths in compressed)
        return self.config.compression_lambda * total / count.clamp_min(1)


__all__ = ["FixedSummaries", "ReadSegment", "SegmentOutput", "VariableSummaries"]
