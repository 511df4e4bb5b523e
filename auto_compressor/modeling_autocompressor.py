"""AutoCompressors: language models that compress long context into summary vectors.

Chevalier et al., "Adapting Language Models to Compress Contexts", EMNLP 2023, https://arxiv.org/abs/2305.14788.

- A text is read segment by segment. One pass reads `[softprompt ; segment ; summary embeddings]`; the last hidden
  states at the summary embeddings are the new summary vectors, and the softprompt of the next segment.
- `AutoCompressorMixin` fits any decoder-only model; a base adds only its rule for positions.
- Softprompt, masks, positions and lengths are arguments and output fields; nothing is passed by attribute.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, LlamaForCausalLM, OPTForCausalLM
from transformers import initialization as init
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_autocompressor import LlamaAutoCompressorConfig, OPTAutoCompressorConfig
from .losses import chunked_cross_entropy, mean_over_targets, shift_labels_left, summed_cross_entropy
from .segments import (
    equal_segment_lengths,
    join_attentions,
    join_hidden_states,
    mask_or_ones,
    resolve_segment_lengths,
    split_optional,
)
from .softprompt_cache import SoftpromptCache


@dataclass
class AutoCompressorOutput(ModelOutput):
    r"""
    Output of an AutoCompressor.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` or `shift_labels` are given):
            Mean cross-entropy of the next tokens, in nats, over the text of all segments.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Logits of the text tokens of all segments; `None` with `skip_logits=True`.
        past_key_values (`SoftpromptCache`, *optional*, returned with `use_cache=True`):
            Keys and values of the last segment, its softprompt included.
        softprompt (`torch.FloatTensor` of shape `(batch_size, softprompt_length, embedding_dim)`):
            Summary vectors after the last segment; `softprompt_length` is 0 if there are none.
        softprompt_attention_mask (`torch.LongTensor` of shape `(batch_size, softprompt_length)`):
            1 for the summary vectors that are attended to.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            One `(batch_size, sequence_length, hidden_size)` for the embeddings and one per layer, at the text tokens.
        attentions (`tuple`, *optional*, returned with `output_attentions=True`):
            Attention weights of every layer, as in transformers; for several segments, one such tuple each.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    softprompt: torch.FloatTensor | None = None
    softprompt_attention_mask: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple | None = None


@dataclass
class SegmentOutput:
    """What one segment gives: the hidden states of its text tokens, and the softprompt of the next segment."""

    last_hidden_state: torch.Tensor
    softprompt: torch.Tensor
    softprompt_attention_mask: torch.Tensor | None
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


class AutoCompressorMixin:
    """
    Turns a decoder-only `...ForCausalLM` into an AutoCompressor: `class X(AutoCompressorMixin, XForCausalLM)`.

    The base needs `self.model`, `self.lm_head` and `get_input_embeddings()`; the subclass calls
    `setup_autocompressor()` at the end of its `__init__`.

    Attributes:
        summary_takes_positions (`bool`):
            `True` where summary vectors stand in the row of positions like text (RoPE); `False` where they have the
            position -1, outside of it (OPT).
    """

    summary_takes_positions: bool = True

    def setup_autocompressor(self):
        config, embedding_dim = self.config, self.get_input_embeddings().embedding_dim
        self.embed_summary = nn.Embedding(config.summary_length, embedding_dim) if config.summary_length > 0 else None
        # By this name the Trainer counts the targets of a batch.
        self.loss_type = "ForCausalLM"
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers, from a plain checkpoint of the base model, a published AutoCompressor or one of ours.

        Raises:
            OSError: if the checkpoint is damaged, or its weights do not fit its config.
            ValueError: if it belongs to another kind of model.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, UnpicklingError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None:
                raise
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise OSError(
                f"Cannot load {pretrained_model_name_or_path}: a weight file cannot be read, is damaged or holds more"
                f" than tensors ({reason})."
            ) from error
        except RuntimeError as error:
            reasons = {
                "ignore_mismatched_sizes": "weights and config differ in size",
                "PytorchStreamReader": "a weight file is damaged",
            }
            reason = next((reason for hint, reason in reasons.items() if hint in str(error)), None)
            if reason is None:
                raise
            raise OSError(f"Cannot load {pretrained_model_name_or_path}: {reason}.") from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        eos_token_id = self.config.eos_token_id
        if module is getattr(self, "embed_summary", None) and eos_token_id is not None:
            eos_token_id = eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id
            eos_embedding = self.get_input_embeddings().weight[eos_token_id]
            init.copy_(module.weight, eos_embedding.expand_as(module.weight))

    @property
    def max_segment_length(self) -> int | None:
        """Most text tokens that one segment can hold; `None` if there is no limit."""
        return None if self.summary_takes_positions else self.config.max_position_embeddings

    def default_segment_lengths(self, length: int) -> list[int]:
        """The fewest equal segments that fit the positions; where summary vectors take some, half are left to them."""
        return equal_segment_lengths(length, self.max_segment_length or self.config.max_position_embeddings // 2)

    def _segment_positions(
        self,
        softprompt_mask: torch.LongTensor,
        text_mask: torch.LongTensor,
        position_ids: torch.LongTensor | None,
        num_summary: int,
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """
        Positions of softprompt, text and summary embeddings, as the base model counts them.

        Args:
            softprompt_mask (`(rows, softprompt_length)`): 1 for the summary vectors that are attended to.
            text_mask (`(rows, text_length)`): 1 for the text tokens of the segment, the cached ones included.
            position_ids (`(rows, length)`, *optional*): Positions of text tokens, if not those that the mask gives.
            num_summary (`int`): Summary embeddings after the text.
        """
        text_positions = text_mask.cumsum(dim=1) * text_mask - 1 if position_ids is None else position_ids
        if not self.summary_takes_positions:
            outside = text_positions.new_full((text_positions.shape[0], 1), -1)
            return outside.expand(-1, softprompt_mask.shape[1]), text_positions, outside.expand(-1, num_summary)
        text_start = softprompt_mask.sum(dim=1, keepdim=True)
        text_end = text_start + text_positions.amax(dim=1, keepdim=True) + 1
        rows = text_end.shape[0]
        return (
            (softprompt_mask.cumsum(dim=1) - 1).expand(rows, -1),
            text_start + text_positions,
            text_end + torch.arange(num_summary, device=text_end.device),
        )

    def _summary_embeds(self, inputs_embeds: torch.Tensor, summarize: bool) -> torch.Tensor:
        """The summary embeddings for every row, `(batch, summary_length or 0, embedding_dim)`."""
        if not summarize or self.embed_summary is None:
            return inputs_embeds[:, :0]
        summary_ids = torch.arange(self.config.summary_length, device=inputs_embeds.device)
        return self.embed_summary(summary_ids).to(inputs_embeds.dtype).expand(inputs_embeds.shape[0], -1, -1)

    def _forward_segment(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.LongTensor | None,
        position_ids: torch.LongTensor | None,
        softprompt: torch.Tensor,
        softprompt_attention_mask: torch.LongTensor | None,
        has_text: torch.LongTensor | None,
        summarize: bool,
        cache: SoftpromptCache | None,
        **kwargs,
    ) -> SegmentOutput:
        """
        Reads `[softprompt ; text ; summary embeddings]` in one pass of the base model (paper, section 3.1).

        A cache that holds keys holds the softprompt and the beginning of the segment's text; `attention_mask`
        `(batch, cached_length + length)` covers that text and the new one. `has_text` `(batch, 1)` is 0 for rows of
        padding alone up to here, whose summary vectors nobody may see; `None` if there are none.
        """
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        cached_length = 0 if cache is None else cache.text_length
        prefix = softprompt if cache is None or cache.is_empty else softprompt[:, :0]
        summary = self._summary_embeds(inputs_embeds, summarize)

        softprompt_mask = mask_or_ones(softprompt_attention_mask, softprompt.shape[1], device)
        text_mask = mask_or_ones(attention_mask, cached_length + length, device)
        positions = self._segment_positions(softprompt_mask, text_mask, position_ids, summary.shape[1])
        # The base model sees the positions of its new columns only.
        new_positions = [positions[0][:, : prefix.shape[1]], positions[1][:, -length:], positions[2]]
        full_mask = None
        # Causal attention needs no mask; but a cache hides the softprompt's length from the base model, and it takes
        # jumping positions for packed documents.
        if any(given is not None for given in (attention_mask, position_ids, softprompt_attention_mask, cache)):
            masks = (softprompt_mask, text_mask, mask_or_ones(None, summary.shape[1], device))
            full_mask = torch.cat([mask.expand(inputs_embeds.shape[0], -1) for mask in masks], dim=1)

        outputs = self.model(
            inputs_embeds=torch.cat([prefix, inputs_embeds, summary], dim=1),
            attention_mask=full_mask,
            position_ids=torch.cat(new_positions, dim=1),
            past_key_values=cache,
            use_cache=cache is not None,
            **kwargs,
        )
        if cache is not None and summary.shape[1] > 0:
            cache.crop(-summary.shape[1])

        text = slice(prefix.shape[1], prefix.shape[1] + length)
        new_softprompt = outputs.last_hidden_state[:, text.stop :].to(softprompt.dtype)
        return SegmentOutput(
            outputs.last_hidden_state[:, text],
            *self._carry(softprompt, softprompt_attention_mask, new_softprompt, has_text),
            outputs.hidden_states and tuple(layer[:, text] for layer in outputs.hidden_states),
            outputs.attentions,
        )

    def _carry(
        self,
        softprompt: torch.Tensor,
        mask: torch.LongTensor | None,
        new_softprompt: torch.Tensor,
        has_text: torch.LongTensor | None,
    ) -> tuple[torch.Tensor, torch.LongTensor | None]:
        """Softprompt and mask for the next segment: old and new vectors (section 3.2), or the new ones only (RMT)."""
        (batch_size, num_new, _), device = new_softprompt.shape, new_softprompt.device
        if num_new == 0:
            return softprompt, mask
        new_mask = None if has_text is None else has_text.expand(-1, num_new)
        if not self.config.accumulate_summary:
            return new_softprompt, new_mask
        if mask is not None or new_mask is not None:
            masks = (mask_or_ones(mask, softprompt.shape[1], device), mask_or_ones(new_mask, num_new, device))
            mask = torch.cat([part.expand(batch_size, -1) for part in masks], dim=1)
        return torch.cat([softprompt, new_softprompt], dim=1), mask

    def _forward_segments(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.LongTensor | None,
        position_ids: torch.LongTensor | None,
        softprompt: torch.Tensor,
        softprompt_attention_mask: torch.LongTensor | None,
        segment_lengths: list[int],
        output_softprompt: bool,
        cache: SoftpromptCache | None = None,
        **kwargs,
    ) -> Iterator[SegmentOutput]:
        """Reads the segments in order, each with the summary vectors of those before; the last one fills the cache."""
        last = len(segment_lengths) - 1
        pieces = zip(
            inputs_embeds.split(segment_lengths, dim=1),
            split_optional(attention_mask, segment_lengths),
            split_optional(position_ids, segment_lengths),
            strict=True,
        )
        # A continued segment has one piece, and cached columns in front of its mask.
        ends = list(accumulate(segment_lengths)) if last > 0 else [None]
        recompute = self.config.segment_gradient_checkpointing and self.training
        for index, piece in enumerate(pieces):
            forward_segment = self._forward_segment
            if recompute and index < last:
                forward_segment = partial(checkpoint, self._forward_segment, use_reentrant=False)
            if index == last and cache is not None and cache.is_empty:
                cache.begin(softprompt, softprompt_attention_mask, compressed_length=sum(segment_lengths[:last]))
            has_text = None if attention_mask is None else attention_mask[:, : ends[index]].amax(dim=1, keepdim=True)
            output = forward_segment(
                *piece,
                softprompt,
                softprompt_attention_mask,
                has_text,
                summarize=output_softprompt or index < last,
                cache=cache if index == last else None,
                **kwargs,
            )
            softprompt, softprompt_attention_mask = output.softprompt, output.softprompt_attention_mask
            yield output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        softprompt: torch.FloatTensor | None = None,
        softprompt_attention_mask: torch.LongTensor | None = None,
        segment_lengths: int | list[int] | None = None,
        output_softprompt: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AutoCompressorOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Text tokens; exactly one of `input_ids` and `inputs_embeds` must be given.
            attention_mask (`torch.Tensor` of shape `(batch_size, seen_length + sequence_length)`, *optional*):
                1 for text tokens, 0 for padding: over the text only, the cached text included, never the softprompt.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Position of every text token within the text of its segment, from 0. By default counted from the mask.
            past_key_values (`Cache`, *optional*):
                Cache of an earlier call, to continue its last segment. It remembers the softprompt.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_dim)`, *optional*):
                Embeddings of the text, in place of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Usually `input_ids`; -100 is ignored. They are shifted here, across segments too.
            use_cache (`bool`, *optional*):
                Whether to return keys and values of the last segment. Default: `config.use_cache`.
            softprompt (`torch.Tensor` of shape `(batch_size or 1, softprompt_length, embedding_dim)`, *optional*):
                Summary vectors to start from; ignored where the cache holds one already.
            softprompt_attention_mask (`torch.LongTensor` of shape `(batch_size or 1, softprompt_length)`, *optional*):
                0 for vectors that a row must not see. Default: all are seen.
            segment_lengths (`int` or `list[int]`, *optional*):
                Tokens of each segment: a list that sums to `sequence_length`, or one length for all (the last segment
                takes the rest). By default the text is one segment.
            output_softprompt (`bool`, defaults to `False`):
                Whether to summarise the last segment as well.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0):
                Compute the logits of the last tokens only (0: of all), or of these positions. The loss is over all.
            skip_logits (`bool`, defaults to `False`):
                Return the loss without the logits, which then are never in memory at once.
            kwargs:
                `shift_labels` `(batch_size, sequence_length)`, the target of every position in place of `labels`;
                `num_items_in_batch`, the divisor of the summed loss (default: the number of targets);
                `output_hidden_states`, `output_attentions`, `return_dict`; the rest goes to the base model.

        Raises:
            ValueError: if shapes, dtypes or lengths do not fit; the message names argument, value and rule.

        Example:

        ```python
        >>> model = OPTAutoCompressorModel.from_pretrained("princeton-nlp/AutoCompressor-2.7b-6k")
        >>> softprompt = model(context_ids, output_softprompt=True).softprompt  # (1, 50, 2560)
        >>> model.generate(prompt_ids, softprompt=softprompt, max_new_tokens=12)
        ```"""
        use_cache = self.config.use_cache if use_cache is None else use_cache
        shift_labels, num_items_in_batch = kwargs.pop("shift_labels", None), kwargs.pop("num_items_in_batch", None)
        inputs_embeds = self._text_embeds(input_ids, inputs_embeds)
        self._check_position_ids(position_ids, inputs_embeds)
        cache = self._prepare_cache(past_key_values, use_cache)
        if cache is not None and not cache.is_empty:
            softprompt, softprompt_attention_mask = cache.softprompt, cache.softprompt_attention_mask
        softprompt, softprompt_attention_mask = self._check_softprompt(
            softprompt, softprompt_attention_mask, inputs_embeds
        )
        lengths = self._check_segments(segment_lengths, inputs_embeds, cache)
        attention_mask = self._check_attention_mask(attention_mask, inputs_embeds, cache)

        segments = list(
            self._forward_segments(
                inputs_embeds,
                attention_mask,
                position_ids,
                softprompt,
                softprompt_attention_mask,
                lengths,
                output_softprompt,
                cache,
                **kwargs,
            )
        )
        last_hidden_state = torch.cat([segment.last_hidden_state for segment in segments], dim=1)
        softprompt = segments[-1].softprompt
        softprompt_attention_mask = mask_or_ones(
            segments[-1].softprompt_attention_mask, softprompt.shape[1], softprompt.device
        ).expand(softprompt.shape[0], -1)
        logits = None
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(last_hidden_state[:, kept])
        return AutoCompressorOutput(
            loss=self._loss(last_hidden_state, logits, labels, shift_labels, num_items_in_batch),
            logits=logits,
            past_key_values=cache,
            softprompt=softprompt,
            softprompt_attention_mask=softprompt_attention_mask,
            hidden_states=join_hidden_states([segment.hidden_states for segment in segments]),
            attentions=join_attentions([segment.attentions for segment in segments]),
        )

    def _loss(self, last_hidden_state, logits, labels, shift_labels, num_items_in_batch) -> torch.Tensor | None:
        """Mean cross-entropy of the next tokens; from the logits where all of them are there, else in chunks."""
        if labels is None and shift_labels is None:
            return None
        targets = labels if shift_labels is None else shift_labels
        if targets.shape != last_hidden_state.shape[:2]:
            raise ValueError(
                f"`labels` must have the shape of the text, {tuple(last_hidden_state.shape[:2])},"
                f" got {tuple(targets.shape)}."
            )
        targets = shift_labels_left(labels) if shift_labels is None else shift_labels
        if logits is not None and logits.shape[:2] == targets.shape:
            loss = summed_cross_entropy(logits, targets)
        else:
            loss = chunked_cross_entropy(self.lm_head, last_hidden_state, targets, self.config.vocab_size)
        return mean_over_targets(loss, targets, num_items_in_batch)

    @torch.no_grad()
    def compress(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: torch.FloatTensor | None = None,
        softprompt_attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        r"""
        Compresses a text of any length into summary vectors, one segment at a time and without logits.

        Args:
            input_ids, attention_mask, softprompt, softprompt_attention_mask, inputs_embeds:
                As in [`~AutoCompressorMixin.forward`]. With `softprompt`, the text continues what it summarises.
            segment_lengths (`int` or `list[int]`, *optional*):
                As in [`~AutoCompressorMixin.forward`]. Default: [`~AutoCompressorMixin.default_segment_lengths`].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, softprompt_length, embedding_dim)`.

        Raises:
            ValueError: as `forward`; if the model makes no summary vectors; if a row's first segment is all padding.
        """
        if self.config.summary_length == 0:
            raise ValueError("`compress` needs a model with `summary_length` above 0; this one has 0.")
        inputs_embeds = self._text_embeds(input_ids, inputs_embeds)
        softprompt, mask = self._check_softprompt(softprompt, softprompt_attention_mask, inputs_embeds)
        if segment_lengths is None:
            segment_lengths = self.default_segment_lengths(inputs_embeds.shape[1])
        lengths = self._check_segments(segment_lengths, inputs_embeds, cache=None)
        attention_mask = self._check_attention_mask(attention_mask, inputs_embeds, cache=None)
        for segment in self._forward_segments(
            inputs_embeds, attention_mask, None, softprompt, mask, lengths, output_softprompt=True
        ):
            softprompt, mask = segment.softprompt, segment.softprompt_attention_mask
        if attention_mask is not None and not mask.all():
            raise ValueError(
                "`attention_mask` must leave text in the first segment of every row: compress texts of such different"
                " lengths apart, or call the model with `output_softprompt=True`, which returns a mask."
            )
        return softprompt

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args,
        softprompt: torch.FloatTensor | None = None,
        softprompt_attention_mask: torch.LongTensor | None = None,
        segment_lengths: int | list[int] | None = None,
        **kwargs,
    ):
        r"""
        [`~transformers.GenerationMixin.generate`] after summary vectors.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
                The prompt, as in transformers (`input_ids` and `inputs_embeds` too).
            softprompt (`torch.Tensor` of shape `(batch_size or 1, softprompt_length, embedding_dim)`, *optional*):
                Summary vectors to start from; one row serves the whole batch.
            softprompt_attention_mask (`torch.LongTensor` of shape `(batch_size or 1, softprompt_length)`, *optional*):
                0 for vectors that a row must not see.
            segment_lengths (`int` or `list[int]`, *optional*):
                Cuts the prompt; all segments but the last are compressed, and the new tokens join the last one.
            args, kwargs:
                As in transformers. Positions are counted from the mask; `position_ids` is ignored.

        Returns:
            As in transformers.
        """
        prompt = inputs if inputs is not None else kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if prompt is not None and softprompt is not None and softprompt.shape[0] == 1:
            softprompt = softprompt.expand(prompt.shape[0], -1, -1)
        if prompt is not None and softprompt_attention_mask is not None and softprompt_attention_mask.shape[0] == 1:
            softprompt_attention_mask = softprompt_attention_mask.expand(prompt.shape[0], -1)
        cache = kwargs.get("past_key_values")
        if segment_lengths is not None and cache is not None and cache.get_seq_length() > 0:
            raise ValueError("`segment_lengths` must be None where `past_key_values` holds text: it cuts a new text.")
        if prompt is not None and segment_lengths is not None:
            segment_lengths = resolve_segment_lengths(segment_lengths, prompt.shape[1])
        return super().generate(
            inputs,
            *args,
            softprompt=softprompt,
            softprompt_attention_mask=softprompt_attention_mask,
            segment_lengths=segment_lengths,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, inputs_embeds=None, segment_lengths=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        # `generate` counts positions across segments.
        inputs["position_ids"] = None
        if segment_lengths is not None and (past_key_values is None or past_key_values.get_seq_length() == 0):
            text = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            inputs["segment_lengths"] = segment_lengths[:-1] + [text.shape[1] - sum(segment_lengths[:-1])]
        return inputs

    def _get_candidate_generator(self, *args, model_kwargs=None, **kwargs):
        """Assisted decoding: the assistant drafts from the prompt alone, the summary vectors judge its drafts."""
        own = ("softprompt", "softprompt_attention_mask", "segment_lengths")
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in own}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)

    def _text_embeds(self, input_ids, inputs_embeds) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        given = ("input_ids", input_ids, 2) if inputs_embeds is None else ("inputs_embeds", inputs_embeds, 3)
        name, text, ndim = given
        if text.ndim != ndim or text.shape[0] == 0 or text.shape[1] == 0:
            raise ValueError(f"`{name}` must hold at least one token in {ndim} dimensions, got {tuple(text.shape)}.")
        if input_ids is not None and (input_ids.is_floating_point() or input_ids.dtype == torch.bool):
            raise ValueError(f"`input_ids` must be integers, got {input_ids.dtype}.")
        if inputs_embeds is None:
            return self.get_input_embeddings()(input_ids)
        embedding_dim = self.get_input_embeddings().embedding_dim
        if inputs_embeds.shape[2] != embedding_dim or not inputs_embeds.is_floating_point():
            raise ValueError(
                f"`inputs_embeds` must be floating point vectors of size {embedding_dim}, got {inputs_embeds.dtype}"
                f" {tuple(inputs_embeds.shape)}."
            )
        return inputs_embeds

    def _prepare_cache(self, past_key_values: Cache | None, use_cache: bool) -> SoftpromptCache | None:
        """Returns the cache to continue or to fill, if any; transformers' gradient checkpointing drops caches."""
        if past_key_values is None and not use_cache:
            return None
        cache = SoftpromptCache.from_cache(past_key_values, self.config)
        if not (self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.modules())):
            return cache
        if not cache.is_empty:
            raise ValueError("`past_key_values` cannot be continued in training with gradient checkpointing.")
        return None

    def _check_position_ids(self, position_ids, inputs_embeds):
        batch_size, length, _ = inputs_embeds.shape
        if position_ids is not None and position_ids.shape not in ((batch_size, length), (1, length)):
            raise ValueError(
                f"`position_ids` must have the shape ({batch_size} or 1, {length}), got {tuple(position_ids.shape)}."
            )

    def _check_softprompt(self, softprompt, mask, inputs_embeds) -> tuple[torch.Tensor, torch.LongTensor | None]:
        """Returns softprompt and mask with the rows and dtype of the text; no softprompt becomes an empty one."""
        if softprompt is None:
            if mask is not None:
                raise ValueError("`softprompt_attention_mask` needs a `softprompt`.")
            return inputs_embeds[:, :0], None
        batch_size, _, embedding_dim = inputs_embeds.shape
        if softprompt.ndim != 3 or softprompt.shape[0] not in (1, batch_size) or softprompt.shape[2] != embedding_dim:
            raise ValueError(
                f"`softprompt` must have the shape ({batch_size} or 1, softprompt_length, {embedding_dim}),"
                f" got {tuple(softprompt.shape)}."
            )
        if not softprompt.is_floating_point():
            raise ValueError(f"`softprompt` must be a floating point tensor, got {softprompt.dtype}.")
        if softprompt.device != inputs_embeds.device:
            raise ValueError(f"`softprompt` must be on {inputs_embeds.device} like the text, got {softprompt.device}.")
        if mask is not None:
            if mask.ndim != 2 or mask.shape[0] not in (1, batch_size) or mask.shape[1] != softprompt.shape[1]:
                raise ValueError(
                    f"`softprompt_attention_mask` must have the shape ({batch_size} or 1, {softprompt.shape[1]}),"
                    f" got {tuple(mask.shape)}."
                )
            mask = mask.long().expand(batch_size, -1)
        return softprompt.to(inputs_embeds.dtype).expand(batch_size, -1, -1), mask

    def _check_segments(self, segment_lengths, inputs_embeds, cache) -> list[int]:
        length = inputs_embeds.shape[1]
        past_length = 0 if cache is None else cache.text_length
        if past_length and segment_lengths is not None:
            raise ValueError("`segment_lengths` must be None where `past_key_values` holds text: it cuts a new text.")
        lengths = resolve_segment_lengths(segment_lengths, length)
        limit = self.max_segment_length
        longest = past_length + max(lengths)
        if limit is not None and longest > limit:
            raise ValueError(
                f"A segment can hold `max_position_embeddings` = {limit} text tokens, got {longest};"
                " cut the text with `segment_lengths`."
            )
        return lengths

    def _check_attention_mask(self, attention_mask, inputs_embeds, cache) -> torch.LongTensor | None:
        """Returns the mask over the text of the segment that the cache holds and the new text."""
        if attention_mask is None:
            return None
        batch_size, length, _ = inputs_embeds.shape
        seen, past_length = (0, 0) if cache is None else (cache.get_seq_length(), cache.text_length)
        if attention_mask.shape != (batch_size, seen + length):
            raise ValueError(
                f"`attention_mask` must cover the text, seen and new, without the softprompt:"
                f" {(batch_size, seen + length)}, got {tuple(attention_mask.shape)}."
            )
        return attention_mask[:, seen - past_length :].long()


class OPTPositionalEmbeddingWithPadding(OPTLearnedPositionalEmbedding):
    """OPT's position table with row 1 as padding: zero in a new table and never trained. Position -1 reads it."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.padding_idx = 1


def drop_position_ids(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: flash attention would read the -1 of summary vectors as the border of packed documents."""
    return args, kwargs | {"position_ids": None}


class OPTAutoCompressorModel(AutoCompressorMixin, OPTForCausalLM):
    """OPT that compresses: summary vectors have no position, and the positions of the text restart each segment."""

    config: OPTAutoCompressorConfig
    summary_takes_positions = False

    def __init__(self, config: OPTAutoCompressorConfig):
        super().__init__(config)
        decoder = self.model.decoder
        decoder.embed_positions = OPTPositionalEmbeddingWithPadding(config.max_position_embeddings, config.hidden_size)
        for layer in decoder.layers:
            layer.self_attn.register_forward_pre_hook(drop_position_ids, with_kwargs=True)
        self.setup_autocompressor()

    @torch.no_grad()
    def resize_position_embeddings(self, new_num_position_embeddings: int):
        """Repeats the trained position table until it has `new_num_position_embeddings` rows, or cuts it."""
        old = self.model.decoder.embed_positions
        rows, positions = old.weight.split([old.offset, old.num_embeddings - old.offset])
        repeats = math.ceil(new_num_position_embeddings / positions.shape[0])
        new = OPTPositionalEmbeddingWithPadding(new_num_position_embeddings, old.embedding_dim)
        table = torch.cat([rows, positions.repeat(repeats, 1)[:new_num_position_embeddings]])
        new.weight = nn.Parameter(table, requires_grad=old.weight.requires_grad)
        self.model.decoder.embed_positions = new
        self.config.max_position_embeddings = new_num_position_embeddings


class LlamaAutoCompressorModel(AutoCompressorMixin, LlamaForCausalLM):
    """Llama that compresses: rotary positions run through softprompt, text and summary, and restart each segment."""

    config: LlamaAutoCompressorConfig

    def __init__(self, config: LlamaAutoCompressorConfig):
        super().__init__(config)
        self.setup_autocompressor()

    def resize_position_embeddings(self, new_num_position_embeddings: int):
        """States the longest segment; rotary positions need no table."""
        self.config.max_position_embeddings = new_num_position_embeddings


AutoCompressorModel = OPTAutoCompressorModel


__all__ = [
    "AutoCompressorMixin",
    "AutoCompressorModel",
    "AutoCompressorOutput",
    "LlamaAutoCompressorModel",
    "OPTAutoCompressorModel",
]
