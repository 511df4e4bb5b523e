"""Rows of bytes for recurrent models: brought to the front whatever side is padded, and what follows each unit."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class ByteRows:
    """
    Rows of tokens without the padding in front of or between them.

    Args:
        tokens (`torch.LongTensor` of shape `(batch_size, length)`): The tokens of every row, 0 behind the last.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): False behind the last token of a row.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Tokens of every row; None if all are full.
        order (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): The columns that they come from.
    """

    tokens: torch.LongTensor
    mask: torch.BoolTensor
    lengths: torch.LongTensor | None = None
    order: torch.LongTensor | None = None

    @classmethod
    def from_input(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> "ByteRows":
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, length)`): Integers; those of padding may be any.
            attention_mask (`torch.Tensor` of shape `(batch_size, length or more)`, *optional*): 0 at padding; its
                last columns are those of `input_ids`.
        """
        input_ids = input_ids.long()
        if attention_mask is None:
            return cls(input_ids, torch.ones_like(input_ids, dtype=torch.bool))
        mask = attention_mask[:, -input_ids.shape[1] :].bool()
        # Stable: tokens keep their order.
        order = mask.long().argsort(dim=1, descending=True, stable=True)
        tokens = input_ids.masked_fill(~mask, 0).gather(1, order)  # (batch, length)
        return cls(tokens, mask.gather(1, order), mask.sum(dim=1), order)

    def to_front(self, values: torch.Tensor) -> torch.Tensor:
        """Brings `(batch_size, length)` values from the columns of the input to where the tokens stand here."""
        return values if self.order is None else values.gather(1, self.order)

    def to_columns(self, values: torch.Tensor) -> torch.Tensor:
        """Brings `(batch_size, length, ...)` values back into the columns of the input."""
        if self.order is None:
            return values
        # (batch, length), and ones
        index = self.order.argsort(dim=1).view(*self.order.shape, *[1] * (values.ndim - 2))
        return values.gather(1, index.expand_as(values))

    def states_in_columns(self, states: torch.Tensor) -> torch.Tensor:
        """`to_columns` of `(batch_size, length, size)` states, with zeros for padding."""
        return self.to_columns(states.masked_fill(~self.mask[..., None], 0.0))


def last_units(mask: torch.BoolTensor) -> torch.BoolTensor:
    """True at the last unit of every row, whose units stand in front: `(batch_size, length)`."""
    return mask & ~F.pad(mask[:, 1:], (0, 1))


def following_units(units: torch.Tensor, mask: torch.BoolTensor, end: torch.Tensor) -> torch.Tensor:
    """
    The unit behind each one, and `end` behind the last of a row.

    Args:
        units (`torch.Tensor` of shape `(batch_size, length, ...)`): Tokens or vectors, those of a row in front.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): False behind the last unit of a row.
        end (`torch.Tensor`): What stands behind the last unit, of a shape that broadcasts with one unit.
    """
    last = last_units(mask).view(*mask.shape, *[1] * (units.ndim - 2))  # (batch, length), and ones
    return torch.where(last, end, units.roll(-1, dims=1))


def next_token_targets(labels: torch.Tensor, mask: torch.BoolTensor, end_token_id: int) -> torch.LongTensor:
    """
    The label of the next token at every position, -100 for padding.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, length)`): Integers, one of every token, -100 to be left out.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): False behind the last token of a row.
        end_token_id (`int`): The target of the last token, unless that one is left out; -100 for none.
    """
    labels = labels.long()
    targets = following_units(labels, mask, labels.masked_fill(labels != -100, end_token_id))
    return targets.masked_fill(~mask, -100)


def check_input(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    num_seen: int,
    cached_rows: int | None,
):
    """
    Raises a `ValueError` for an argument of another shape or dtype than a byte language model takes.

    Args:
        input_ids, attention_mask, labels: As the model gets them.
        num_seen (`int`): Columns that the cache has seen.
        cached_rows (`int`, *optional*): Rows of the cache; None if it is empty.
    """
    for name, ids in (("input_ids", input_ids), ("labels", labels)):
        if ids is not None and (ids.is_floating_point() or ids.dtype == torch.bool):
            raise ValueError(f"`{name}` must be integers, got {ids.dtype}.")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(
            "`input_ids` must have the shape (batch_size, length), with one id at least, got"
            f" {tuple(input_ids.shape)}."
        )
    rows, length = input_ids.shape
    if cached_rows not in (None, rows):
        raise ValueError(f"`cache` must have the {rows} rows of `input_ids`, it has {cached_rows}.")
    shapes = ((rows, length), (rows, num_seen + length))  # of the input alone, or with what the cache has seen
    if attention_mask is not None and attention_mask.shape not in shapes:
        raise ValueError(
            f"`attention_mask` must have the shape {shapes[0]} of `input_ids`, or {shapes[1]} with what the cache has"
            f" seen, got {tuple(attention_mask.shape)}."
        )
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(f"`labels` must have the shape {shapes[0]} of `input_ids`, got {tuple(labels.shape)}.")


__all__ = ["ByteRows", "check_input", "following_units", "last_units", "next_token_targets"]
