"""AutoCompressors: language models that compress long context into summary vectors.

Chevalier et al., "Adapting Language Models to Compress Contexts", EMNLP 2023, https://arxiv.org/abs/2305.14788.

- A text is read segment by segment. One pass reads `[softprompt ; segment ; summary embeddings]`; the last hidden
  states at the summary embeddings are the new summary vectors, and the softprompt of the next segment.
- `AutoCompressorMixin` fits any decoder-only model; a base adds only its rule for positions.
- Softprompt, masks, positions and lengths are arguments and output fields; nothing is passed by attribute.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Cache,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers import initialization as init
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .adapters import downloaded, is_adapted_base, is_adapter, load_with_adapters
from .cache_names import as_cache, takes_cache
from .checks import (
    check_attention_mask,
    check_control_tokens,
    check_hard_mask,
    check_position_ids,
    check_position_table,
    check_segments,
    check_servable,
    check_softprompt,
    check_summary_source,
    check_targets,
    check_text,
    check_window,
    drops_caches,
    keeps_keys,
    resolve_num_summary,
    warn_of_positions,
)
from .configuration_autocompressor import (
    GemmaAutoCompressorConfig,
    LlamaAutoCompressorConfig,
    MistralAutoCompressorConfig,
    OPTAutoCompressorConfig,
    Qwen2AutoCompressorConfig,
    Qwen3AutoCompressorConfig,
)
from .generation_autocompressor import AutoCompressorGenerationMixin
from .loading import hinted
from .losses import chunked_cross_entropy, mean_over_targets, summed_cross_entropy
from .outputs import AutoCompressorOutput
from .segments import (
    Prefix,
    Text,
    equal_segment_lengths,
    join_attentions,
    join_hidden_states,
    mask_or_ones,
    resolve_segment_lengths,
)
from .sharding import gathers_parameters
from .softprompt_cache import SegmentCache, SoftpromptCache
from .summaries import FixedSummaries, ReadSegment, SegmentOutput, VariableSummaries
from .summary_norm import SummaryNorm


class AutoCompressorMixin(AutoCompressorGenerationMixin):
    """
    Turns a decoder-only `...ForCausalLM` into an AutoCompressor: `class X(AutoCompressorMixin, XForCausalLM)`.

    The base needs `self.model`, `self.lm_head` and `get_input_embeddings()`.

    Attributes:
        summary_takes_positions (`bool`):
            `True` where summary embeddings stand in the row of positions like text (RoPE); `False` where positions are
            rows of a table and summary embeddings have the position -1, outside of it (OPT). With
            `config.ordinary_summary_positions` they take rows of the table too.
    """

    summary_takes_positions: bool = True

    if TYPE_CHECKING:  # what the base has
        config: Any
        model: Any
        lm_head: Any
        get_input_embeddings: Any
        training: bool

    def __init__(self, config):
        super().__init__(config)
        self.setup_autocompressor()

    def setup_autocompressor(self):
        """Adds the modules of an AutoCompressor to those of the base model."""
        config, embedding_dim = self.config, self.embedding_dim
        num_tokens = config.num_summary_tokens
        self.embed_summary = nn.Embedding(num_tokens, embedding_dim) if num_tokens > 0 else None
        scales = config.summary_scale is not None and config.max_vectors > 0
        self.summary_norm = SummaryNorm(embedding_dim, config.summary_scale == "learned") if scales else None
        adds = config.summary_residual and config.max_vectors > 0
        self.summary_projection = nn.Linear(embedding_dim, embedding_dim, bias=False) if adds else None
        self.stop_head = nn.Linear(embedding_dim, 1) if config.variable_length else None
        for name, module in self.model.named_modules():
            if name.endswith("self_attn"):
                module.register_forward_pre_hook(drop_position_ids, with_kwargs=True)
        # By this name the Trainer counts the targets of a batch.
        self.loss_type = "ForCausalLM"
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers, from a plain checkpoint of the base model, a published AutoCompressor or one of ours.

        Adapters that `train.py --lora` wrote are merged into their base. Code in a folder is never run.

        Raises:
            OSError: if the checkpoint is damaged, or its weights do not fit its config.
            ValueError: if it belongs to another kind of model, or is a GGUF file.
        """
        if kwargs.get("gguf_file") is not None:
            raise ValueError(
                f"`gguf_file` must be None, got {kwargs['gguf_file']!r}: convert it first, by `AutoModelForCausalLM."
                "from_pretrained(folder, gguf_file=...).save_pretrained(new_folder)`, and load the new folder."
            )
        name = str(pretrained_model_name_or_path)
        folder = downloaded(name, **kwargs)
        if is_adapter(folder) or is_adapted_base(folder):
            if folder != name:
                kwargs.pop("revision", None)  # that of the adapters
            return load_with_adapters(cls, name, folder, **kwargs)
        kwargs.setdefault("trust_remote_code", False)
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
            if (meaning := hinted(error)) is None:
                raise
            raise OSError(f"Cannot load {pretrained_model_name_or_path}: {meaning}.") from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        eos_token_id, embeddings = self.config.end_of_text_id, self.get_input_embeddings()
        # Gemma's embeddings are scaled after the look-up.
        scale = getattr(embeddings, "scalar_embed_scale", 1.0)
        if module is getattr(self, "embed_summary", None) and eos_token_id is not None:
            eos_embedding = embeddings.weight[eos_token_id] * scale
            init.copy_(module.weight, eos_embedding.expand_as(module.weight))
        elif module is getattr(self, "summary_norm", None):
            root_mean_square = embeddings.weight.float().square().mean().sqrt() * scale
            init.copy_(module.weight, root_mean_square.expand_as(module.weight))
        elif module is getattr(self, "summary_projection", None):
            init.zeros_(module.weight)
        elif module is getattr(self, "stop_head", None):
            # A new model stops after each vector with the probability 1 / (compression_max_len + 1).
            init.constant_(module.bias, -math.log(self.config.compression_max_len))

    def resize_position_embeddings(self, new_num_position_embeddings: int):
        """States the longest segment; rotary positions need no table."""
        self.config.max_position_embeddings = new_num_position_embeddings

    @property
    def summaries(self) -> FixedSummaries:
        """How segments become summary vectors."""
        return (VariableSummaries if self.config.variable_length else FixedSummaries)(self)

    @property
    def softprompt_takes_positions(self) -> bool:
        """
        Whether the vectors of a softprompt stand in the row of positions, in front of the text.

        Those of a variable-length summary share the position -1, unless the config says otherwise: one whose survival
        goes to 0 would else move the others, and be missed.
        """
        config = self.config
        return config.ordinary_summary_positions or (self.summary_takes_positions and not config.variable_length)

    @property
    def shares_position_table(self) -> bool:
        """Whether softprompt, text and summary take rows of one table of positions, which must hold all of them."""
        return self.config.ordinary_summary_positions and not self.summary_takes_positions

    @property
    def embedding_dim(self) -> int:
        """Size of the embeddings, and so of the summary vectors."""
        return self.config.hidden_size

    @property
    def max_segment_length(self) -> int | None:
        """Most text tokens that one segment can hold, `<sum>` included; `None` if there is no limit."""
        return None if self.summary_takes_positions else self.config.max_position_embeddings

    def default_segment_lengths(self, length: int) -> list[int]:
        """
        Segments of `config.segment_length`, the last one holding the rest; without it the fewest equal segments that
        fit the positions. Where summary vectors take positions too, half are left to them.
        """
        config, has_room = self.config, self.max_segment_length is not None and not self.shares_position_table
        most = config.max_position_embeddings if has_room else config.max_position_embeddings // 2
        most -= self.summaries.num_sum_tokens
        if config.segment_length is None:
            return equal_segment_lengths(length, most)
        return resolve_segment_lengths(min(config.segment_length, most) if has_room else config.segment_length, length)

    @property
    def default_segment_length(self) -> int:
        """Tokens of the first segment of a long text where a caller names none."""
        return self.default_segment_lengths(2**20)[0]

    def _segment_positions(
        self,
        softprompt_mask: torch.Tensor,
        text_mask: torch.LongTensor,
        position_ids: torch.LongTensor | None,
        num_summary: int,
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """
        Positions of softprompt, text and summary, as the base model counts them.

        Args:
            softprompt_mask (`(rows, softprompt_length)`): Above 0 for the summary vectors that are attended to.
            text_mask (`(rows, text_length)`): 1 for the text tokens of the segment, the cached ones included.
            position_ids (`(rows, length)`, *optional*): Positions of text tokens, if not those that the mask gives.
            num_summary (`int`): Summary embeddings, or steps of `compress_context`, after the text.
        """
        text_positions = text_mask.cumsum(dim=1) * text_mask - 1 if position_ids is None else position_ids
        if self.softprompt_takes_positions:
            seen = (softprompt_mask > 0).long()
            text_positions = text_positions + seen.sum(dim=1, keepdim=True)
            softprompt_positions = (seen.cumsum(dim=1) - 1).expand(text_positions.shape[0], -1)
        else:
            softprompt_positions = text_positions.new_full((text_positions.shape[0], softprompt_mask.shape[1]), -1)
        if not (self.summary_takes_positions or self.softprompt_takes_positions):
            outside = text_positions.new_full((text_positions.shape[0], num_summary), -1)
            return softprompt_positions, text_positions, outside
        text_end = text_positions.amax(dim=1, keepdim=True) + 1
        return softprompt_positions, text_positions, text_end + torch.arange(num_summary, device=text_end.device)

    def _segment_cache(
        self, prefix: Prefix, num_summary: int, num_kept: int, cache: SoftpromptCache | None
    ) -> SoftpromptCache | None:
        """The cache that a segment is read into, with the known keys of its prefix; `None` if it needs none."""
        if cache is None and (num_kept > 0 or prefix.keys.length > 0 or self.summaries.needs_cache(num_summary)):
            return SegmentCache(prefix.keys.parts)
        # A quantised cache rounds what it holds, but not what is written to it in the same pass.
        if cache is not None and cache.is_empty and not cache.is_quantized:
            prefix.keys.write_to(cache)
        return cache

    def _forward_segment(
        self, text: Text, prefix: Prefix, num_summary: int, num_kept: int, cache: SoftpromptCache | None, **kwargs
    ) -> SegmentOutput:
        """
        Reads `[softprompt ; text ; summary embeddings]` in one pass of the base model (paper, section 3.1).

        Vectors of the softprompt whose keys are known are not read again; the first `num_kept` leave theirs to the
        next segment. A cache that holds keys holds the softprompt and the beginning of the segment's text. Rows of
        padding alone get no summary vectors.
        """
        summaries, length, device = self.summaries, text.embeds.shape[1], text.embeds.device
        cached_length = 0 if cache is None else cache.text_length
        # Causal attention needs no mask; but a given cache hides the softprompt's length from the base model, and it
        # takes jumping positions for packed documents.
        given = (text.mask, text.position_ids, prefix.weights, cache)
        is_plain = not self.config.variable_length and all(argument is None for argument in given)
        cache = self._segment_cache(prefix, num_summary, num_kept, cache)
        num_read = 0 if cache is None else min(cache.get_query_offset(), prefix.length)
        unread = prefix.vectors[:, num_read:]
        summary = summaries.embeds(text.embeds, num_summary)
        num_columns = num_summary if self.config.variable_length else summary.shape[1]
        self._check_positions(prefix, cached_length + length, num_columns)
        text_mask = mask_or_ones(text.mask, cached_length + length, device)
        positions = self._segment_positions(prefix.mask, text_mask, text.position_ids, num_summary)
        # The base model sees the positions of its new columns only.
        new_positions = (
            positions[0][:, num_read:],
            positions[1][:, -length:],
            positions[2][:, : summary.shape[1]],
        )
        masks = (prefix.mask, text_mask, mask_or_ones(None, summary.shape[1], device))
        key_weights = torch.cat([mask.expand(text.embeds.shape[0], -1) for mask in masks], dim=1)  # (rows, keys)
        embeds = torch.cat([unread, text.embeds, summary], dim=1)  # (rows, unread + length + summary, dim)
        outputs = self.model(
            inputs_embeds=embeds,
            attention_mask=None if is_plain else summaries.attention_mask(key_weights, embeds.shape[1], embeds.dtype),
            position_ids=torch.cat(new_positions, dim=1),
            **as_cache(cache),
            use_cache=cache is not None,
            **kwargs,
        )
        columns = slice(unread.shape[1], unread.shape[1] + length)
        states = outputs.last_hidden_state[:, columns.start :]  # (rows, length + summary, dim)
        has_text = None if text.mask is None else text.mask.amax(dim=1, keepdim=True)
        text_columns = (states, text.embeds, text_mask, has_text, text.is_sum)
        read = ReadSegment(*text_columns, prefix.mask, key_weights, positions[2], cache)
        new, relative_lengths = summaries.summarise(read, num_summary)
        first = cache.first if isinstance(cache, SegmentCache) else []
        prefix = replace(prefix, keys=prefix.keys.followed_by(first, num_kept))
        if new is not None:
            prefix = prefix.followed_by(new.vectors, new.weights, self.config.accumulate_summary)
        return SegmentOutput(
            outputs.last_hidden_state[:, columns],
            prefix,
            new,
            relative_lengths,
            outputs.hidden_states and tuple(layer[:, columns] for layer in outputs.hidden_states),
            outputs.attentions,
        )

    def _check_positions(self, prefix: Prefix, text_length: int, num_summary: int):
        """What a pass over a segment needs of the sliding window, and of the positions."""
        check_window(self.config, prefix.length + text_length + num_summary)
        num_prefix = prefix.length if self.softprompt_takes_positions else 0
        if self.shares_position_table:
            check_position_table(self.config, num_prefix, text_length, num_summary)
        elif self.summary_takes_positions:
            warn_of_positions(self.config, num_prefix, text_length, num_summary)

    def _forward_segments(
        self,
        text: Text,
        prefix: Prefix,
        segment_lengths: list[int],
        num_summary: int,
        output_softprompt: bool,
        cache: SoftpromptCache | None = None,
        **kwargs,
    ) -> Iterator[SegmentOutput]:
        """Reads the segments in order, each with the summary vectors of those before; the last one fills the cache."""
        config, last = self.config, len(segment_lengths) - 1
        widths, num_detached = [prefix.length], 0
        recompute = config.segment_gradient_checkpointing and self.training
        keeps = last > 0 and keeps_keys(self, kwargs.get("output_attentions"))
        truncates = config.variable_length and config.accumulate_summary
        # Keys lead gradients to the vectors that they were made of, and to those before. Where a cut is still to move,
        # only the keys of detached vectors, made after the cut, stay right; the others are made again.
        is_cut = truncates and torch.is_grad_enabled() and last >= config.truncate_bptt_segments
        for index, segment in enumerate(text.split(segment_lengths)):
            forward_segment = self._forward_segment
            if recompute and index < last:
                forward_segment = partial(checkpoint, self._forward_segment, use_reentrant=False)
            if index == last and cache is not None and cache.is_empty:
                compressed_length = sum(segment_lengths[:last])
                compressed_length -= self.summaries.count_sum_tokens(text, segment_lengths[:last])
                cache.begin(prefix.vectors, prefix.weights, cache.compressed_length + compressed_length)
            num_final = num_detached if is_cut else prefix.length
            output = forward_segment(
                segment,
                prefix,
                num_summary=num_summary if output_softprompt or index < last else 0,
                num_kept=num_final if keeps and index < last else 0,
                cache=cache if index == last else None,
                **kwargs,
            )
            prefix = output.prefix
            if truncates and output.summary is not None:
                widths.append(output.summary.vectors.shape[1])
                num_detached = sum(widths[: -config.truncate_bptt_segments])
                prefix = prefix.detach_first(num_detached)
            yield output

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        softprompt: torch.FloatTensor | None = None,
        softprompt_attention_mask: torch.LongTensor | None = None,
        segment_lengths: int | list[int] | None = None,
        output_softprompt: bool = False,
        max_summary_length: int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AutoCompressorOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Text tokens; exactly one of `input_ids` and `inputs_embeds` must be given. With variable-length
                summaries, a segment is compressed in the rows where its last token is `<sum>` (see
                [`~segments.append_sum_tokens`]); other rows keep the softprompt that they have.
            attention_mask (`torch.Tensor` of shape `(batch_size, seen_length + sequence_length)`, *optional*):
                1 for text tokens, 0 for padding: over the text only, the cached text included, never the softprompt.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Position of every text token within the text of its segment, from 0. By default counted from the mask.
            cache (`Cache`, *optional*):
                Cache of an earlier call, to continue its last segment. It remembers the softprompt.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_dim)`, *optional*):
                Embeddings of the text, in place of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Usually `input_ids`; -100 is ignored. They are shifted here, across segments too.
            use_cache (`bool`, *optional*):
                Whether to return keys and values of the last segment. Default: `config.use_cache`.
            softprompt (`torch.Tensor` of shape `(batch_size or 1, softprompt_length, embedding_dim)`, *optional*):
                Summary vectors to start from; where the cache holds text, none or those that it was read after.
            softprompt_attention_mask (`torch.Tensor` of shape `(batch_size or 1, softprompt_length)`, *optional*):
                0 for vectors that a row must not see; floating point weights in [0, 1] bias the attention by their
                logarithm. Default: all are seen.
            segment_lengths (`int` or `list[int]`, *optional*):
                Tokens of each segment: a list that sums to `sequence_length`, or one length for all (the last segment
                takes the rest). By default the text is one segment.
            output_softprompt (`bool`, defaults to `False`):
                Whether to summarise the last segment as well.
            max_summary_length (`int`, *optional*):
                Fewest of this and what the config says is the most summary vectors that a segment gets.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0):
                Compute the logits of the last tokens only (0: of all), or of these positions. The loss is over all.
            skip_logits (`bool`, defaults to `False`):
                Return the loss without the logits, which then are never in memory at once.
            kwargs:
                `shift_labels` `(batch_size, sequence_length)`, the target of every position in place of `labels`;
                `num_items_in_batch`, the divisor of the summed loss (default: the number of targets);
                `use_liger_kernel`, whether liger-kernel makes the loss where the logits are skipped, on a GPU;
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
        use_liger_kernel = kwargs.pop("use_liger_kernel", False)
        check_text(input_ids, inputs_embeds, self.embedding_dim)
        text = input_ids if inputs_embeds is None else inputs_embeds
        lengths = resolve_segment_lengths(segment_lengths, text.shape[1])
        unrolls = self.config.variable_length and (output_softprompt or len(lengths) > 1)
        if unrolls:
            check_control_tokens(self.config, input_ids)
        inputs_embeds = self._text_embeds(input_ids, inputs_embeds)
        check_position_ids(position_ids, inputs_embeds)
        cache = self._prepare_cache(cache, use_cache)
        is_continued = cache is not None and not cache.is_empty
        if is_continued:
            cache.check_given(softprompt, rows=len(inputs_embeds))
            softprompt, softprompt_attention_mask = cache.softprompt, cache.softprompt_attention_mask
        prefix = Prefix(*check_softprompt(softprompt, softprompt_attention_mask, inputs_embeds))
        if cache is not None and not is_continued:
            cache.given = prefix.vectors if prefix.length > 0 else None
        seen, cached = (0, 0) if cache is None else (cache.get_seq_length(), cache.text_length)
        check_segments(segment_lengths, lengths, cached, self.max_segment_length)
        check_summary_source(self.config, cached, output_softprompt)
        attention_mask = check_attention_mask(attention_mask, inputs_embeds, seen, cached)
        if cache is not None:
            cache.remember(None if input_ids is None else input_ids[:, -lengths[-1] :])
        is_sum = self.summaries.sum_mask(input_ids, attention_mask) if unrolls else None
        text = Text(inputs_embeds, attention_mask, position_ids, is_sum)
        num_summary = resolve_num_summary(max_summary_length, self.config)
        segments = list(self._forward_segments(text, prefix, lengths, num_summary, output_softprompt, cache, **kwargs))
        last_hidden_state = torch.cat([segment.last_hidden_state for segment in segments], dim=1)
        prefix = segments[-1].prefix
        logits = None
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(last_hidden_state[:, kept])
        summaries = [segment for segment in segments if segment.summary is not None]
        length_penalty = self.summaries.penalty([(each.summary, each.relative_lengths) for each in summaries])
        loss = None
        if labels is not None or shift_labels is not None:
            check_targets(labels if shift_labels is None else shift_labels, last_hidden_state.shape[:2])
            targets = self.summaries.targets(input_ids, labels, shift_labels)
            loss = self._loss(last_hidden_state, logits, targets, length_penalty, num_items_in_batch, use_liger_kernel)
        return AutoCompressorOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=last_hidden_state,
            cache=cache,
            softprompt=prefix.vectors,
            softprompt_attention_mask=prefix.mask.expand(len(prefix.vectors), -1),
            summaries=tuple(segment.summary for segment in summaries),
            length_penalty=length_penalty,
            hidden_states=join_hidden_states([segment.hidden_states for segment in segments]),
            attentions=join_attentions([segment.attentions for segment in segments]),
        )

    def _loss(
        self, last_hidden_state, logits, targets, length_penalty, num_items_in_batch, use_liger_kernel
    ) -> torch.Tensor:
        """Mean cross-entropy of the next tokens; from the logits where all of them are there, else in chunks."""
        if logits is not None and logits.shape[:2] == targets.shape:
            loss = summed_cross_entropy(logits, targets)
        else:
            head = (self.lm_head, last_hidden_state, targets, self.config.vocab_size)
            loss = chunked_cross_entropy(*head, use_liger_kernel)
        if length_penalty is not None:
            # It weighs as much as the targets of this call among all that the loss is a mean over.
            loss = loss + length_penalty * (targets != -100).sum()
        return mean_over_targets(loss, targets, num_items_in_batch)

    @gathers_parameters
    @torch.no_grad()
    def compress(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_lengths: int | list[int] | None = None,
        softprompt: torch.FloatTensor | None = None,
        softprompt_attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        max_summary_length: int | None = None,
        return_attention_mask: bool = False,
        progress: Callable[[Iterator[SegmentOutput]], Iterable[SegmentOutput]] = iter,
    ) -> torch.FloatTensor | tuple[torch.FloatTensor, torch.LongTensor]:
        r"""
        Compresses a text of any length into summary vectors, one segment at a time and without logits.

        Args:
            input_ids, attention_mask, softprompt, softprompt_attention_mask, inputs_embeds, max_summary_length:
                As in [`~AutoCompressorMixin.forward`]. With `softprompt`, the text continues what it summarises. The
                text is without `<sum>`, which is appended here where the number of vectors is variable.
            segment_lengths (`int` or `list[int]`, *optional*):
                As in [`~AutoCompressorMixin.forward`]. Default: [`~AutoCompressorMixin.default_segment_lengths`].
            return_attention_mask (`bool`, defaults to `False`):
                Whether to return the `softprompt_attention_mask` too, which rows with different numbers of vectors
                need.
            progress (`Callable`, *optional*):
                Takes the iterator over segments and gives it back, as `tqdm` does.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, softprompt_length, embedding_dim)`; with
            `return_attention_mask`, a tuple with the `torch.LongTensor` of shape `(batch_size, softprompt_length)`.

        Raises:
            ValueError: as `forward`; if the model makes no summary vectors, or is in training mode and would make a
                variable number of them; if rows have different numbers of them and the mask is not asked for.
        """
        config = self.config
        if config.max_vectors == 0:
            raise ValueError("`compress` needs a model with `summary_length` above 0; this one has 0.")
        if config.variable_length and self.training:
            raise ValueError(
                "`compress` is for inference: call `model.eval()` before, in training lengths are weights."
            )
        check_text(input_ids, inputs_embeds, self.embedding_dim)
        given, summaries = input_ids if inputs_embeds is None else inputs_embeds, self.summaries
        if segment_lengths is None:
            segment_lengths = self.default_segment_lengths(given.shape[1])
        lengths = resolve_segment_lengths(segment_lengths, given.shape[1])
        mask = check_attention_mask(attention_mask, given, 0, 0)
        input_ids, mask, lengths = summaries.append_sum_tokens(input_ids, mask, lengths)
        check_segments(segment_lengths, lengths, 0, self.max_segment_length)
        inputs_embeds = self._text_embeds(input_ids, inputs_embeds)
        text = Text(inputs_embeds, mask, is_sum=summaries.sum_mask(input_ids, mask))
        prefix = Prefix(*check_softprompt(softprompt, softprompt_attention_mask, inputs_embeds))
        num_summary = resolve_num_summary(max_summary_length, config)
        segments = self._forward_segments(text, prefix, lengths, num_summary, output_softprompt=True)
        for segment in progress(segments):
            prefix = segment.prefix
        softprompt, kept = prefix.vectors, prefix.mask.expand(len(prefix.vectors), -1)
        if return_attention_mask:
            return softprompt, kept
        if (config.variable_length or attention_mask is not None) and not kept.all():
            raise ValueError(
                "The rows have different numbers of summary vectors: `return_attention_mask=True` returns the mask"
                " that they need (`softprompt_attention_mask`)."
            )
        return softprompt

    @torch.no_grad()
    def to_prompt_embeds(
        self,
        input_ids: torch.LongTensor,
        softprompt: torch.FloatTensor,
        softprompt_attention_mask: torch.LongTensor | None = None,
    ) -> list[torch.Tensor]:
        r"""
        What the plain base model, in any engine that takes embeddings, reads in place of summary vectors and prompt.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`): The prompts, without padding.
            softprompt (`torch.Tensor` of shape `(batch_size or 1, softprompt_length, embedding_dim)`):
                The summary vectors in front of them; one row serves all prompts.
            softprompt_attention_mask (`torch.LongTensor` of shape `(batch_size or 1, softprompt_length)`, *optional*):
                0 for vectors that a row must not see, which are left out.

        Returns:
            `list[torch.Tensor]`: One tensor `(tokens, embedding_dim)` for each prompt.

        Raises:
            ValueError: if arguments do not fit, or the summary vectors of the model have no positions of their own.
        """
        check_servable(self)
        check_text(input_ids, None, self.embedding_dim)
        prompts = self._text_embeds(input_ids, None)  # (batch, prompt_length, embedding_dim)
        vectors, mask = check_softprompt(softprompt, softprompt_attention_mask, prompts)
        mask = mask_or_ones(mask, vectors.shape[1], vectors.device).expand(len(prompts), -1)
        check_hard_mask(mask)
        rows = zip(vectors, mask.bool(), prompts, strict=True)
        return [torch.cat([row[seen], prompt]) for row, seen, prompt in rows]

    def _text_embeds(self, input_ids, inputs_embeds) -> torch.Tensor:
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    def _prepare_cache(self, cache: Cache | None, use_cache: bool) -> SoftpromptCache | None:
        """Returns the cache to continue or to fill, if any; transformers' gradient checkpointing drops caches."""
        if cache is None and not use_cache:
            return None
        cache = SoftpromptCache.from_cache(cache)
        if not drops_caches(self):
            return cache
        if not cache.is_empty:
            raise ValueError("`cache` cannot be continued in training with gradient checkpointing.")
        return None


class OPTPositionalEmbeddingWithPadding(OPTLearnedPositionalEmbedding):
    """OPT's position table with row 1 as padding: zero in a new table and never trained. Position -1 reads it."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.padding_idx = 1


def drop_position_ids(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: flash attention would read the -1 of summary vectors as the border of packed documents."""
    return args, kwargs | {"position_ids": None}


class OPTAutoCompressorModel(AutoCompressorMixin, OPTForCausalLM):
    """
    OPT that compresses: the positions of the text restart each segment, and summary vectors have none, unless
    `config.ordinary_summary_positions`.
    """

    config: OPTAutoCompressorConfig
    summary_takes_positions = False

    @property
    def embedding_dim(self) -> int:
        return self.config.word_embed_proj_dim

    def setup_autocompressor(self):
        config = self.config
        positions = OPTPositionalEmbeddingWithPadding(config.max_position_embeddings, config.hidden_size)
        self.model.decoder.embed_positions = positions
        super().setup_autocompressor()

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
        super().resize_position_embeddings(new_num_position_embeddings)


class LlamaAutoCompressorModel(AutoCompressorMixin, LlamaForCausalLM):
    """Llama that compresses: rotary positions run through softprompt, text and summary, and restart each segment."""

    config: LlamaAutoCompressorConfig


class MistralAutoCompressorModel(AutoCompressorMixin, MistralForCausalLM):
    """Mistral that compresses. Softprompt and segment must fit into its sliding window, if it has one."""

    config: MistralAutoCompressorConfig


class Qwen2AutoCompressorModel(AutoCompressorMixin, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 that compress."""

    config: Qwen2AutoCompressorConfig


class Qwen3AutoCompressorModel(AutoCompressorMixin, Qwen3ForCausalLM):
    """Qwen3 that compresses."""

    config: Qwen3AutoCompressorConfig


class GemmaAutoCompressorModel(AutoCompressorMixin, GemmaForCausalLM):
    """Gemma (the first) that compresses."""

    config: GemmaAutoCompressorConfig


AutoCompressorModel = OPTAutoCompressorModel


__all__ = [
    "AutoCompressorMixin",
    "AutoCompressorModel",
    "GemmaAutoCompressorModel",
    "LlamaAutoCompressorModel",
    "MistralAutoCompressorModel",
    "OPTAutoCompressorModel",
    "Qwen2AutoCompressorModel",
    "Qwen3AutoCompressorModel",
]
