"""Training objectives beside the next token, for what summary vectors are weakest at: exact recall of the context."""

import torch
from torch import nn

from .losses import chunked_divergence
from .outputs import SegmentSummary


def reconstruction_loss(
    model: nn.Module,
    segments: list[dict[str, torch.Tensor]],
    summaries: tuple[SegmentSummary, ...],
    prompt_token_id: int,
) -> torch.Tensor:
    """
    Mean cross-entropy, in nats, of reading every compressed segment back from its own summary vectors.

    After the vectors stands one token, the autoencoding prompt, and then the text, which is predicted from the prompt
    on (Ge et al., "In-context Autoencoder", ICLR 2024, section 2.2.1).

    Args:
        model (`nn.Module`): An AutoCompressor, wrapped or not.
        segments (`list[dict[str, torch.Tensor]]`): `input_ids` and `attention_mask` `(batch, length)` of each.
        summaries (`tuple(SegmentSummary)`): The summaries of these segments, of as many as there are from the first
            on.
        prompt_token_id (`int`): The autoencoding prompt, a token that no text begins with.
    """
    losses = []
    for segment, summary in zip(segments, summaries, strict=False):
        ids, mask = segment["input_ids"], segment["attention_mask"]
        prompt = torch.full_like(ids[:, :1], prompt_token_id)  # (batch, 1)
        prompted_mask = torch.cat([mask.amax(dim=1, keepdim=True), mask[:, :-1]], dim=1)  # (batch, length)
        outputs = model(
            input_ids=torch.cat([prompt, ids[:, :-1]], dim=1),
            attention_mask=prompted_mask,
            shift_labels=ids.masked_fill(mask * prompted_mask == 0, -100),
            softprompt=summary.vectors,
            softprompt_attention_mask=summary.weights,
            skip_logits=True,
            use_cache=False,
        )
        losses.append(outputs.loss)
    return torch.stack(losses).mean()


def distillation_loss(
    student: nn.Module,
    student_states: torch.Tensor,
    teacher: nn.Module,
    teacher_states: torch.Tensor,
    counted: torch.BoolTensor,
) -> torch.Tensor:
    """
    Mean KL(teacher || student) of the next token, in nats, from a teacher that read the full context.

    Args:
        student, teacher (`nn.Module`): Models with an `lm_head` and a `config`.
        student_states, teacher_states (`torch.Tensor` of shape `(batch, length, hidden_size)`): Last hidden states.
        counted (`torch.BoolTensor` of shape `(batch, length)`): Positions that count.
    """
    heads = (student.lm_head, student_states, teacher.lm_head, teacher_states)
    return chunked_divergence(*heads, counted, student.config.vocab_size) / counted.sum().clamp(min=1)


__all__ = ["distillation_loss", "reconstruction_loss"]
