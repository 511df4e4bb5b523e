"""What a call of an AutoCompressor must fulfil; every error names the argument, the value and the rule."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)
WARNED_LIMITS: set[int] = set()  # a warning with the numbers of every pass would come again and again


def check_text(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, embedding_dim: int):
    """Raises a `ValueError` unless exactly one is given, of the right shape and dtype, with at least one token."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
    given = ("input_ids", input_ids, 2) if inputs_embeds is None else ("inputs_embeds", inputs_embeds, 3)
    name, text, ndim = given
    if text.ndim != ndim or text.shape[0] == 0 or text.shape[1] == 0:
        raise ValueError(f"`{name}` must hold at least one token in {ndim} dimensions, got {tuple(text.shape)}.")
    if input_ids is not None and (input_ids.is_floating_point() or input_ids.dtype == torch.bool):
        raise ValueError(f"`input_ids` must be integers, got {input_ids.dtype}.")
    if inputs_embeds is not None and (
        inputs_embeds.shape[2] != embedding_dim or not inputs_embeds.is_floating_point()
    ):
        raise ValueError(
            f"`inputs_embeds` must be floating point vectors of size {embedding_dim}, got {inputs_embeds.dtype}"
            f" {tuple(inputs_embeds.shape)}."
        )


def check_position_ids(position_ids: torch.Tensor | None, inputs_embeds: torch.Tensor):
    batch_size, length, _ = inputs_embeds.shape
    if position_ids is not None and position_ids.shape not in ((batch_size, length), (1, length)):
        raise ValueError(
            f"`position_ids` must have the shape ({batch_size} or 1, {length}), got {tuple(position_ids.shape)}."
        )


def check_softprompt(
    softprompt: torch.Tensor | None, mask: torch.Tensor | None, inputs_embeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        mask = (mask if mask.is_floating_point() else mask.long()).expand(batch_size, -1)
    return softprompt.to(inputs_embeds.dtype).expand(batch_size, -1, -1), mask


def check_segments(asked: int | list[int] | None, lengths: list[int], cached_length: int, limit: int | None):
    """Raises a `ValueError` for a segment of more than `limit` tokens, or lengths asked for where a cache goes on."""
    if cached_length and asked is not None:
        raise ValueError("`segment_lengths` must be None where `cache` holds text: it cuts a new text.")
    longest = cached_length + max(lengths)
    if limit is not None and longest > limit:
        raise ValueError(
            f"A segment can hold `max_position_embeddings` = {limit} text tokens, got {longest};"
            " cut the text with `segment_lengths`."
        )


def check_summary_source(config: PreTrainedConfig, cached_length: int, output_softprompt: bool):
    """Raises a `ValueError` where means would be over a part of the segment: a cache holds no last hidden states."""
    reads_text = config.summary_source != "tokens" or config.summary_residual
    if reads_text and output_softprompt and cached_length:
        raise ValueError(
            f"`output_softprompt` must be False where `cache` holds text: embeddings and last hidden states of its"
            f" {cached_length} tokens, of which `summary_source` {config.summary_source!r} and `summary_residual`"
            f" {config.summary_residual} make the vectors, are gone."
        )


def check_attention_mask(
    attention_mask: torch.Tensor | None, text: torch.Tensor, seen_length: int, cached_length: int
) -> torch.LongTensor | None:
    """
    Returns the mask over the text of the segment that the cache holds and the new text.

    Args:
        attention_mask (`(batch, seen_length + length)`, *optional*): Over all text so far, and the new text.
        text (`(batch, length)` or `(batch, length, embedding_dim)`): The new text.
        seen_length, cached_length (`int`): Tokens before it, in all and those whose keys a cache holds.
    """
    if attention_mask is None:
        return None
    batch_size, length = text.shape[:2]
    if attention_mask.shape != (batch_size, seen_length + length):
        raise ValueError(
            f"`attention_mask` must cover the text, seen and new, without the softprompt:"
            f" {(batch_size, seen_length + length)}, got {tuple(attention_mask.shape)}."
        )
    return attention_mask[:, seen_length - cached_length :].long()


def check_targets(targets: torch.Tensor, text_shape: torch.Size):
    if targets.shape != text_shape:
        raise ValueError(f"`labels` must have the shape of the text, {tuple(text_shape)}, got {tuple(targets.shape)}.")


def resolve_num_summary(max_summary_length: int | None, config: PreTrainedConfig) -> int:
    """Returns the most summary vectors that a segment may get: those of the config, or fewer if so asked."""
    if max_summary_length is None:
        return config.max_vectors
    if not isinstance(max_summary_length, int) or isinstance(max_summary_length, bool) or max_summary_length < 0:
        raise ValueError(f"`max_summary_length` must be an integer of 0 or more, got {max_summary_length!r}.")
    return min(max_summary_length, config.max_vectors)


def check_control_tokens(config: PreTrainedConfig, input_ids: torch.Tensor | None):
    """Raises a `ValueError` where segments cannot be compressed for want of `<sum>`."""
    if input_ids is None:
        raise ValueError(
            "Variable-length summaries need `input_ids`: `inputs_embeds` cannot say where `<sum>` stands."
        )
    if max(config.sum_token_id, config.eoc_token_id) >= config.vocab_size:
        raise ValueError(
            f"`sum_token_id` {config.sum_token_id} and `eoc_token_id` {config.eoc_token_id} must have rows in the"
            f" embeddings, which have {config.vocab_size}: call `resize_token_embeddings(len(tokenizer))`."
        )


def check_window(config: PreTrainedConfig, num_positions: int):
    """Raises a `ValueError` where sliding window attention would lose the softprompt out of sight."""
    window = getattr(config, "sliding_window", None)
    if window is not None and num_positions > window:
        raise ValueError(
            f"Softprompt, segment and summary must fit into `sliding_window` = {window} positions, got"
            f" {num_positions}; cut the text with `segment_lengths`."
        )


def check_position_table(config: PreTrainedConfig, num_softprompt: int, num_text: int, num_summary: int):
    """Raises a `ValueError` for a pass that a table of positions, which summary vectors take rows of, cannot hold."""
    if num_softprompt + num_text + num_summary > config.max_position_embeddings:
        raise ValueError(
            f"Softprompt, text and summary must fit into `max_position_embeddings` = {config.max_position_embeddings}"
            f" positions, got {num_softprompt} + {num_text} + {num_summary}; cut the text with `segment_lengths`, or"
            " use fewer vectors."
        )


def check_hard_mask(mask: torch.Tensor):
    """Raises a `ValueError` for weights between 0 and 1, which only a bias on attention scores can express."""
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("`softprompt_attention_mask` must be 0 or 1 for every vector, got weights between them.")


def check_servable(model: PreTrainedModel):
    """Raises a `ValueError` for a model whose plain base would give summary vectors other positions."""
    if not model.softprompt_takes_positions:
        kind = "a variable number of" if model.config.variable_length else f"{model.config.base_model_type}'s"
        raise ValueError(
            f"The model must be trained with `ordinary_summary_positions`, got False: {kind} summary vectors have no"
            " position of their own here, and another engine would count them like tokens."
        )


def warn_of_positions(config: PreTrainedConfig, num_softprompt: int, num_text: int, num_summary: int):
    """Warns once of a pass with more positions than `max_position_embeddings`, on which the base was not trained."""
    limit, total = config.max_position_embeddings, num_softprompt + num_text + num_summary
    rescales = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    if total <= limit or rescales or limit in WARNED_LIMITS:
        return
    WARNED_LIMITS.add(limit)
    logger.warning(
        f"A pass reads {num_softprompt} summary vectors, {num_text} text tokens and makes up to {num_summary} new"
        f" vectors: {total} positions, more than `max_position_embeddings` = {limit}. What it gives may be poor; use"
        " shorter `segment_lengths`, fewer vectors or `accumulate_summary` False."
    )


def drops_caches(model: nn.Module) -> bool:
    """Whether the layers of `model` drop a cache, as transformers' gradient checkpointing does in training."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def keeps_keys(model: PreTrainedModel, output_attentions: bool | None) -> bool:
    """
    Whether the keys of summary vectors are the same in all segments, so that later ones need not read them again.

    They are not where vectors are replaced (RMT), attention sees what follows, or the angles of positions depend on
    the length of the pass; nor are they there where layers are skipped or drop caches. Attention weights are returned
    for the vectors too, which then must be read. Dropout is drawn once for a vector, as for the tokens of a context.
    """
    config = model.config
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    return (
        config.accumulate_summary
        and getattr(config, "is_causal", True)
        and rope_type not in ("dynamic", "longrope")
        and not (config.output_attentions if output_attentions is None else output_attentions)
        and not (model.training and getattr(config, "layerdrop", 0))
        and not drops_caches(model)
    )


def check_layer_checkpointing(model: nn.Module):
    """Raises a `ValueError` where variable-length summaries, which are unrolled on a cache, would lose it."""
    if drops_caches(model):
        raise ValueError(
            "`gradient_checkpointing` drops the cache on which variable-length summaries are unrolled;"
            " `segment_gradient_checkpointing` saves as much memory and keeps it."
        )


def check_gate(attn_implementation: str):
    """Raises a `ValueError` for attention that cannot add the logarithm of a weight to its scores."""
    if "flash" in attn_implementation or "flex" in attn_implementation:
        raise ValueError(
            "Weights of summary vectors, which the training of variable-length summaries needs, go through"
            f" `attn_implementation` 'eager' or 'sdpa', got {attn_implementation!r}."
        )


__all__ = [
    "check_attention_mask",
    "check_control_tokens",
    "check_gate",
    "check_hard_mask",
    "check_layer_checkpointing",
    "check_position_ids",
    "check_position_table",
    "check_segments",
    "check_servable",
    "check_softprompt",
    "check_summary_source",
    "check_targets",
    "check_text",
    "check_window",
    "drops_caches",
    "keeps_keys",
    "resolve_num_summary",
    "warn_of_positions",
]
