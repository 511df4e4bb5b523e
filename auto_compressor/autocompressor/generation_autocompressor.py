"""Generation after summary vectors: what AutoCompressors add to the `generate` of transformers."""

from collections.abc import Callable

import torch
from transformers import GenerationConfig

from .cache_names import as_cache, cache_in, takes_cache
from .cached_prompts import CachedPromptMixin
from .segments import resolve_segment_lengths
from .softprompt_cache import SoftpromptCache


class AutoCompressorGenerationMixin(CachedPromptMixin):
    """`generate(softprompt=..., segment_lengths=...)`, in front of [`~transformers.GenerationMixin`]."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
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
            max_summary_length (`int`, *optional*):
                Most summary vectors of each compressed segment.
            generation_config, args, kwargs:
                As in transformers. The control tokens `<sum>` and `<eoc>` are never generated. Positions are counted
                from the mask; `position_ids` is ignored.

        Returns:
            As in transformers.

        Raises:
            ValueError: if arguments do not fit, or the model is in a `PeftModel` of learned prompts.
        """
        check_no_prompt_learning(self.prepare_inputs_for_generation)
        # (batch, prompt_length), or embeddings (batch, prompt_length, embedding_dim)
        prompt = inputs if inputs is not None else kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if prompt is not None and softprompt is not None and softprompt.shape[0] == 1:
            softprompt = softprompt.expand(prompt.shape[0], -1, -1)  # (batch, softprompt_length, embedding_dim)
        if prompt is not None and softprompt_attention_mask is not None and softprompt_attention_mask.shape[0] == 1:
            softprompt_attention_mask = softprompt_attention_mask.expand(prompt.shape[0], -1)
        cache = cache_in(kwargs)
        cache = None if cache is None else SoftpromptCache.from_cache(cache)
        if cache is not None:
            cache.check_given(softprompt)
        if segment_lengths is not None and cache is not None and cache.get_seq_length() > 0:
            raise ValueError("`segment_lengths` must be None where `cache` holds text: it cuts a new text.")
        if prompt is not None and segment_lengths is not None:
            segment_lengths = resolve_segment_lengths(segment_lengths, prompt.shape[1])
        if self.config.variable_length:
            config = generation_config or self.generation_config
            suppressed = kwargs.get("suppress_tokens", config.suppress_tokens) or []
            kwargs["suppress_tokens"] = [*suppressed, self.config.sum_token_id, self.config.eoc_token_id]
        return super().generate(
            inputs,
            generation_config,
            *args,
            softprompt=softprompt,
            softprompt_attention_mask=softprompt_attention_mask,
            segment_lengths=segment_lengths,
            **kwargs,
        )

    @takes_cache
    def prepare_inputs_for_generation(self, input_ids, cache=None, inputs_embeds=None, segment_lengths=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(
            input_ids, **as_cache(cache), inputs_embeds=inputs_embeds, **kwargs
        )
        # `generate` counts positions across segments.
        inputs["position_ids"] = None
        if cache is not None and cache.get_seq_length() > 0:
            inputs["softprompt"] = inputs["softprompt_attention_mask"] = None
        if segment_lengths is not None and (cache is None or cache.get_seq_length() == 0):
            text = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            # The last segment takes what the prompt has beyond the others.
            lengths = segment_lengths[:-1] + [text.shape[1] - sum(segment_lengths[:-1])]
            given = inputs.get("input_ids"), inputs.get("attention_mask")
            longer = self.summaries.append_sum_tokens(*given, lengths, include_last=False)
            inputs["input_ids"], inputs["attention_mask"], inputs["segment_lengths"] = longer
        return inputs

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        """Segments are read one by one already: `prefill_chunk_size` cuts them no further."""
        if model_kwargs.get("segment_lengths") is not None:
            generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _get_candidate_generator(self, *args, model_kwargs=None, **kwargs):
        """Assisted decoding: the assistant drafts from the prompt alone, the summary vectors judge its drafts."""
        own = ("softprompt", "softprompt_attention_mask", "segment_lengths", "max_summary_length")
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in own}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)


def check_no_prompt_learning(prepare_inputs: Callable):
    """Raises a `ValueError` within a `PeftModel` of learned prompts, whose `generate` drops or repeats them."""
    config = getattr(getattr(prepare_inputs, "__self__", None), "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"`generate` cannot be used with {type(config).__name__}, whose prompt would be lost or read twice: train"
            " adapters (LoRA), or summary vectors."
        )


__all__ = ["AutoCompressorGenerationMixin"]
