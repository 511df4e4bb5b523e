"""Hierarchical byte autoencoder: bytes -> entropy segments -> discrete codes, level by level, and back.

A level is a [`ByteSegmentCompressor`] and a [`CodeExpander`], see `levels`. [`CodeSequenceTransformer`] is a language
model over the top codes. [`HierarchicalAutoencoder`] joins them.

Everything is causal: neither borders nor codes nor what the expander sees depend on later segments.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .cache_names import TakesCacheMixin, as_cache, takes_cache
from .code_tokens import Likeliest, codes_from_tokens, keep_codebook, pack_segments, tokens_from_codes
from .configuration_hierarchical_autoencoder import CodeSequenceConfig, HierarchicalAutoencoderConfig
from .levels import ByteSegmentCompressor, CodeExpander, HierarchicalPreTrainedModel
from .outputs import (
    CodeExpanderOutput,
    HierarchicalAutoencoderOutput,
    HierarchicalDecoderOutput,
    HierarchicalEncoderOutput,
    SegmentCompressorOutput,
)
from .patching import patches_before
from .sliding_window import LearnedQueryAttention, SlidingWindowAttention
from .tensors import NUM_BYTES, at_least_float32, count_for_mean, masked_mean, token_losses
from .vector_quantizer import VectorQuantizer


class CodeSequenceTransformer(TakesCacheMixin, LlamaForCausalLM):
    """
    A language model over codes, for `generate` too: a Llama whose tokens are, in turn, a code of every codebook, with
    one more token in front of and behind a text.
    """

    config: CodeSequenceConfig

    def __init__(self, config: CodeSequenceConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def sequences(self, codes: torch.LongTensor, ends: torch.BoolTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Tokens and labels of texts with their first and last token.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, patches, num_quantizers)`): -1 behind the last.
            ends (`torch.BoolTensor` of shape `(batch_size,)`): Whether the text ends there, or goes on unseen.

        Returns:
            `tuple`: `input_ids` and `labels`, each `(batch_size, patches * num_quantizers + 2)`.
        """
        token = self.config.eos_token_id
        present = F.pad((codes >= 0).flatten(1), (1, 1))  # (batch, 1 + patches * quantizers + 1)
        tokens = F.pad(tokens_from_codes(codes, self.config.codebook_size), (1, 1)).masked_fill(~present, token)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        behind = index == present.sum(dim=1, keepdim=True) + 1
        return tokens, tokens.masked_fill(~(present | (behind & ends[:, None])), -100)

    @torch.no_grad()
    def generate_codes(self, codes: torch.LongTensor, max_new_codes: int, **generate_kwargs) -> torch.LongTensor:
        """
        Goes on with the codes of texts of one length; returns the new ones, -1 behind the end of a text.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, num_quantizers, patches)`): Without padding.
            max_new_codes (`int`): Most codes that are generated.
            generate_kwargs: Those of [`~GenerationMixin.generate`].
        """
        size, depth, end = self.config.codebook_size, self.config.num_quantizers, self.config.eos_token_id
        prompt = F.pad(tokens_from_codes(codes.transpose(1, 2), size), (1, 0), value=end)  # (batch, 1 + codes)
        mask = torch.ones_like(prompt)
        tokens = self.generate(prompt, attention_mask=mask, max_new_tokens=max_new_codes * depth, **generate_kwargs)
        tokens = tokens[:, prompt.shape[1] :]  # (batch, new tokens)
        tokens = F.pad(tokens, (0, -tokens.shape[1] % depth), value=end)  # (batch, new codes * quantizers)
        # The end is due only where a code begins: what stands behind it is no code.
        ended = (tokens == end).unflatten(1, (-1, depth))[..., :1].cummax(dim=1).values
        return codes_from_tokens(tokens, size, depth).masked_fill(ended, -1).transpose(1, 2)

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As [`LlamaForCausalLM.forward`]; tokens of another codebook than the one that is due have no probability."""
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + inputs.shape[1], device=inputs.device)[None]
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **as_cache(cache),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        due = position_ids[:, kept] % self.config.num_quantizers
        outputs.logits = keep_codebook(outputs.logits, due, self.config.codebook_size, self.config.num_quantizers)
        if labels is not None:
            outputs.loss = self.loss_function(outputs.logits, labels, self.config.vocab_size, **kwargs)
        return outputs


def bytes_per_code(compressed: list[SegmentCompressorOutput]) -> torch.LongTensor:
    """Bytes of every top code, `(batch_size, patches)`, 0 behind the last of a row."""
    lengths = compressed[0].patch_lengths  # (batch, patches of level 0), in bytes
    for level in compressed[1:]:
        sums = lengths.new_zeros(lengths.shape[0], level.codes.shape[1] + 1)  # the last column takes the padding, -1
        lengths = sums.scatter_add(1, level.patch_ids % sums.shape[1], lengths)[:, :-1]
    return lengths


class HierarchicalAutoencoder(HierarchicalPreTrainedModel):
    """
    Bytes to discrete codes and back, over any number of levels, with a language model over the top codes.

    Example:

    ```python
    >>> from auto_compressor import HierarchicalAutoencoder

    >>> model = HierarchicalAutoencoder.from_pretrained("checkpoints/hierarchical")
    >>> model.reconstruct("In the beginning")
    'In the beginning'
    ```
    """

    config: HierarchicalAutoencoderConfig
    accepts_loss_kwargs = False  # the Trainer divides the loss by accumulation steps

    def __init__(self, config: HierarchicalAutoencoderConfig):
        super().__init__(config)
        for level in config.level_configs:  # transformers does not see configs in a list
            level._attn_implementation = config._attn_implementation
        self.compressors = nn.ModuleList(ByteSegmentCompressor(level) for level in config.level_configs)
        self.expanders = nn.ModuleList(CodeExpander(level) for level in config.level_configs)
        self.code_sequence = CodeSequenceTransformer(config.code_sequence_config)
        self.num_frozen_levels = 0
        self.post_init()

    def freeze_levels(self, num_levels: int):
        """
        Keeps the first levels as they are, codebooks and thresholds too: training goes on above them. Above all of
        them is the language model over the top codes.

        Raises:
            ValueError: if the model has fewer levels.
        """
        if not 0 <= num_levels <= self.config.num_levels:
            raise ValueError(f"`num_levels` must be from 0 to {self.config.num_levels}, got {num_levels}.")
        self.num_frozen_levels = num_levels
        for level, parts in enumerate(zip(self.compressors, self.expanders, strict=True)):
            for part in parts:
                part.requires_grad_(level >= num_levels)
        self.train(self.training)

    def train(self, mode: bool = True) -> "HierarchicalAutoencoder":
        super().train(mode)
        for part in (*self.compressors[: self.num_frozen_levels], *self.expanders[: self.num_frozen_levels]):
            part.eval()
        return self

    def read_bytes(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.LongTensor, torch.BoolTensor, torch.LongTensor]:
        """Brings the bytes of every row to the front: bytes, their mask, and the columns that they come from."""
        mask = (input_ids >= 0) & (input_ids < NUM_BYTES)
        if attention_mask is not None:
            mask = mask & attention_mask.bool()
        # Stable: the bytes keep their order.
        order = mask.long().argsort(dim=1, descending=True, stable=True)  # (batch, length)
        return input_ids.gather(1, order).clamp(0, NUM_BYTES - 1), mask.gather(1, order), order

    def compress(
        self, symbols: torch.LongTensor, mask: torch.BoolTensor, context_lengths: torch.LongTensor | None = None
    ) -> list[SegmentCompressorOutput]:
        """
        Runs the compressors on bytes `(batch_size, length)`, each on the codes of the one below.

        With `context_lengths` `(batch_size,)`, in bytes, segments of all levels start behind the context, whose codes
        are then those of the context alone.
        """
        outputs, vectors = [], None
        for compressor in self.compressors:
            outputs.append(compressor(symbols, mask, vectors, context_lengths))
            if context_lengths is not None:
                context_lengths = patches_before(outputs[-1].patch_lengths, context_lengths)
            # (batch, patches * quantizers): the symbols of the next level
            symbols = tokens_from_codes(outputs[-1].codes, compressor.config.codebook_size)
            mask = outputs[-1].patch_lengths > 0  # (batch, patches)
            # A level that reshaped the codes below it while they are being learned would keep them from settling.
            vectors = outputs[-1].stages.flatten(1, 2).detach()  # (batch, patches * quantizers, codebook_dim)
        return outputs

    def level_symbols(
        self, symbols: torch.LongTensor, compressed: list[SegmentCompressorOutput]
    ) -> list[torch.LongTensor]:
        """What every expander predicts: the bytes, and the codes of every level but the top one, as tokens."""
        below = zip(compressed[:-1], self.config.level_configs, strict=False)
        return [symbols] + [tokens_from_codes(output.codes, level.codebook_size) for output, level in below]

    def level_labels(
        self, labels: torch.LongTensor, compressed: list[SegmentCompressorOutput]
    ) -> list[torch.LongTensor]:
        """`level_symbols` for a loss: `labels` in place of the bytes, and -100 where there is no code."""
        first, *others = self.level_symbols(labels, compressed)
        below = zip(others, compressed[:-1], strict=True)
        return [first] + [tokens.masked_fill((output.codes < 0).flatten(1), -100) for tokens, output in below]

    def expand(self, symbols: torch.LongTensor, compressed: list[SegmentCompressorOutput]) -> list[CodeExpanderOutput]:
        """Runs the expanders, each on the true codes of its level."""
        levels = zip(self.expanders, self.level_symbols(symbols, compressed), compressed, strict=True)
        return [
            expander(output.stages[..., -1, :], output.patch_lengths > 0, targets, output.patch_ids, output.positions)
            for expander, targets, output in levels
        ]

    def end_nats(self, level: int, compressed: SegmentCompressorOutput, expanded: CodeExpanderOutput) -> torch.Tensor:
        """Nats of the flag that ends segments, `(batch_size, units)`; 0 where a segment has to end."""
        patch_ids = compressed.patch_ids
        end_logits = at_least_float32(expanded.end_logits)
        ends = (patch_ids != F.pad(patch_ids, (0, 1), value=-1)[:, 1:]).to(end_logits.dtype)  # (batch, units)
        nats = F.binary_cross_entropy_with_logits(end_logits, ends, reduction="none")
        longest = self.config.level_configs[level].max_patch_length - 1
        return nats.masked_fill((patch_ids < 0) | (compressed.positions == longest), 0.0)

    def unit_nats(
        self,
        level: int,
        labels: torch.LongTensor,
        compressed: SegmentCompressorOutput,
        expanded: CodeExpanderOutput,
    ) -> torch.Tensor:
        """Nats of every unit given the codes of its level, `(batch_size, units)`: its symbols and the end flag."""
        shape = (compressed.patch_ids.shape[1], self.config.level_configs[level].symbols_per_unit)
        symbol_nats = token_losses(expanded.logits, labels).unflatten(1, shape)  # (batch, units, symbols_per_unit)
        return symbol_nats.sum(dim=-1) + self.end_nats(level, compressed, expanded)

    def code_nats(self, codes: torch.LongTensor, ends: torch.BoolTensor) -> tuple[torch.Tensor, torch.BoolTensor]:
        """Nats of every top code, and which of them count, each `(batch_size, patches * num_quantizers + 1)`."""
        tokens, labels = self.code_sequence.sequences(codes, ends)
        labels = labels[:, 1:]  # (batch, patches * quantizers + 1)
        return token_losses(self.code_sequence(tokens[:, :-1]).logits, labels), labels >= 0

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> HierarchicalAutoencoderOutput:
        """
        Reconstructs bytes from their codes, every symbol with the true ones before it.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Bytes; 256 behind them says that the text
                ends there. Other ids count as padding.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 at padding.
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): The bytes to reconstruct, usually
                `input_ids`; -100 and special tokens are left out of the byte loss.
        """
        check_input_ids(input_ids, attention_mask)
        symbols, mask, order = self.read_bytes(input_ids, attention_mask)
        compressed = self.compress(symbols, mask)
        if self.training and self.num_frozen_levels == self.config.num_levels:
            return self.code_output(compressed, self.text_ends(input_ids, attention_mask))
        expanded = self.expand(symbols, compressed)
        loss, losses = None, None
        if labels is not None:
            labels = labels.gather(1, order).masked_fill(~mask, -100)
            losses = self.losses(labels, compressed, expanded, self.text_ends(input_ids, attention_mask))
            loss = self.weighted_sum(losses)
        logits = expanded[0].logits
        # (batch, length, 256): logits back in the columns of the input
        back = order.argsort(dim=1)[..., None].expand(-1, -1, logits.shape[-1])
        return HierarchicalAutoencoderOutput(
            loss=loss,
            logits=logits.gather(1, back),
            losses=losses,
            codes=tuple(output.codes.transpose(1, 2) for output in compressed),
            patch_ids=self.unit_order(compressed, "patch_ids", order),
            entropies=self.unit_order(compressed, "entropies", order),
        )

    def code_output(
        self, compressed: list[SegmentCompressorOutput], ends: torch.BoolTensor
    ) -> HierarchicalAutoencoderOutput:
        """What trains the language model over the top codes, where all else is frozen: no bytes are reconstructed."""
        losses = {"code": masked_mean(*self.code_nats(compressed[-1].codes, ends), over_processes=True)}
        codes = tuple(output.codes.transpose(1, 2) for output in compressed)
        return HierarchicalAutoencoderOutput(loss=self.weighted_sum(losses), losses=losses, codes=codes)

    def unit_order(self, compressed: list[SegmentCompressorOutput], field: str, order: torch.LongTensor) -> tuple:
        """A field of the outputs of all levels; that of level 0 is brought back into the columns of the input."""
        first, *others = (getattr(output, field) for output in compressed)
        return (first.gather(1, order.argsort(dim=1)), *others)

    def text_ends(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """Rows with an end-of-text token: `(batch_size,)`."""
        ends = input_ids == self.config.eos_token_id
        return (ends if attention_mask is None else ends & attention_mask.bool()).any(dim=1)

    def losses(
        self,
        labels: torch.LongTensor,
        compressed: list[SegmentCompressorOutput],
        expanded: list[CodeExpanderOutput],
        ends: torch.BoolTensor,
    ) -> dict[str, torch.Tensor]:
        """Means by name: per symbol of each level, and per top code (whose gradient stays in its language model)."""
        found = {}
        for level, targets in enumerate(self.level_labels(labels, compressed)):
            nats = self.unit_nats(level, targets, compressed[level], expanded[level])
            found[f"reconstruction_{level}"] = nats.sum() / count_for_mean(targets >= 0, self.training)
            found[f"lm_{level}"] = compressed[level].lm_loss
            found[f"commitment_{level}"] = compressed[level].commitment_loss
        found["code"] = masked_mean(*self.code_nats(compressed[-1].codes, ends), over_processes=self.training)
        return found

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss to train on, a scalar; reconstruction and next-symbol losses enter as means over levels."""
        config = self.config
        weights = {
            "reconstruction": 1 / config.num_levels,
            "lm": config.lm_loss_weight / config.num_levels,
            "commitment": config.commitment_loss_weight,
            "code": config.code_loss_weight,
        }
        return sum(weights[name.split("_")[0]] * loss for name, loss in losses.items())

    def encode(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> HierarchicalEncoderOutput:
        """
        Codes of bytes; arguments as in [`~HierarchicalAutoencoder.forward`].

        Raises:
            ValueError: if `input_ids` or `attention_mask` has another shape or dtype.
        """
        check_input_ids(input_ids, attention_mask)
        symbols, mask, order = self.read_bytes(input_ids, attention_mask)
        compressed = self.compress(symbols, mask)
        codes = tuple(output.codes.transpose(1, 2) for output in compressed)
        return HierarchicalEncoderOutput(
            codes=codes[-1],
            lengths=bytes_per_code(compressed),
            level_codes=codes,
            patch_ids=self.unit_order(compressed, "patch_ids", order),
            patch_lengths=tuple(output.patch_lengths for output in compressed),
            entropies=self.unit_order(compressed, "entropies", order),
        )

    @torch.no_grad()
    def decode(
        self,
        codes: torch.Tensor,
        context_codes: tuple[torch.LongTensor, ...] | None = None,
        choices: Sequence[Likeliest] | None = None,
    ) -> HierarchicalDecoderOutput:
        """
        Bytes of top codes, from nothing else: all segments of a level are generated at once.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, num_quantizers, patches)`): -1 behind the last of a row.
            context_codes (`tuple(torch.LongTensor)` of shape `(batch_size, num_quantizers, patches)`, *optional*): The
                codes of every level, from bytes upwards and without padding, of a text in front, whose bytes are not
                generated.
            choices (`Sequence[Likeliest]`, *optional*): What chooses the symbols of every level, from bytes upwards
                (default: the likeliest).

        Raises:
            ValueError: for codes of another shape, or out of range.
        """
        self.check_codes(codes)
        codes, mask = codes.transpose(1, 2), codes[:, 0] >= 0  # (batch, patches, quantizers), (batch, patches)
        top_codes = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)  # (batch, units), of each unit
        lengths = torch.zeros_like(top_codes)
        for level in reversed(range(self.config.num_levels)):
            expander = self.expanders[level]
            context = codes[:, :0] if context_codes is None else context_codes[level].transpose(1, 2)
            # (batch, context + patches, quantizers); memory sees codes before each one, those of the context too
            start, all_codes = context.shape[1], torch.cat([context, codes], dim=1).clamp(min=0)
            vectors = self.compressors[level].quantizer.codes_to_stages(all_codes)[..., -1, :].to(self.dtype)
            # (batch, patches, hidden)
            memory = expander.read_codes(vectors, F.pad(mask, (start, 0), value=True))[:, start:]
            # (segments, max_symbols), (segments,)
            symbols, segment_lengths = expander.generate(memory[mask], None if choices is None else choices[level])
            # (segments, max_units, symbols_per_unit)
            units = codes_from_tokens(symbols, expander.codebook_size, expander.symbols_per_unit)
            owners = top_codes[mask][:, None, None].expand(-1, units.shape[1], 1)  # (segments, max_units, 1)
            units, mask = pack_segments(torch.cat([units, owners], dim=-1), segment_lengths, mask)
            codes, top_codes = units[..., :-1], units[..., -1]  # (batch, units, symbols_per_unit), (batch, units)
        sequences = codes[..., 0].masked_fill(~mask, self.config.pad_token_id)  # (batch, length)
        return HierarchicalDecoderOutput(sequences=sequences, lengths=lengths.scatter_add(1, top_codes, mask.long()))

    def blocks(self, data: bytes) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Cuts bytes into blocks of `block_size`: `input_ids` and `attention_mask`, each `(blocks, block_size)`."""
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8).long() if data else torch.zeros(0).long()
        length = self.config.block_size * max(1, -(-len(data) // self.config.block_size))
        input_ids = F.pad(values, (0, length - len(data)), value=self.config.pad_token_id)
        input_ids = input_ids.view(-1, self.config.block_size)  # (blocks, block_size)
        return input_ids.to(self.device), (input_ids < NUM_BYTES).long().to(self.device)

    @torch.no_grad()
    def reconstruct(self, text: str | bytes, batch_size: int = 32) -> str | bytes:
        """
        What is left of a text after it went through its codes.

        Args:
            text (`str` or `bytes`): Of any length, cut into blocks of `block_size` bytes.
            batch_size (`int`, defaults to 32): Blocks that are compressed at once.

        Returns:
            `str` or `bytes`: As `text`; in a string, bytes that are no UTF-8 become U+FFFD.
        """
        input_ids, mask = self.blocks(to_bytes(text))
        pieces = [
            self.decode(self.encode(ids, ids_mask).codes).sequences
            for ids, ids_mask in zip(input_ids.split(batch_size), mask.split(batch_size), strict=True)
        ]
        data = b"".join(rows_to_bytes(piece) for piece in pieces)
        return data.decode("utf-8", errors="replace") if isinstance(text, str) else data

    @torch.no_grad()
    def generate_bytes(self, prompt: str | bytes, max_new_codes: int = 128, **generate_kwargs) -> str | bytes:
        """
        Goes on with a text: its codes, the next codes until the end of the text, and their bytes, in one pass.

        Args:
            prompt (`str` or `bytes`): The beginning, empty for none.
            max_new_codes (`int`, defaults to 128): Most top codes that are generated.
            generate_kwargs: Those of [`~GenerationMixin.generate`] of the language model over the codes: `do_sample`,
                `temperature`, `top_k`, `top_p`, `num_beams`, ...

        Returns:
            `str` or `bytes`: The prompt, unchanged, and what follows.
        """
        data = to_bytes(prompt)
        input_ids = torch.tensor([list(data) or [self.config.pad_token_id]], device=self.device)
        encoded = self.encode(input_ids)
        new_codes = self.code_sequence.generate_codes(encoded.codes, max_new_codes, **generate_kwargs)
        data += rows_to_bytes(self.decode(new_codes, encoded.level_codes).sequences)
        return data.decode("utf-8", errors="replace") if isinstance(prompt, str) else data

    def check_codes(self, codes: torch.Tensor):
        top = self.config.level_configs[-1]
        if codes.ndim != 3 or codes.shape[1] != top.num_quantizers or codes.dtype != torch.long:
            raise ValueError(
                f"`codes` must be int64 of the shape (batch_size, {top.num_quantizers}, patches), got {codes.dtype}"
                f" {tuple(codes.shape)}."
            )
        if codes.numel() and (codes.min() < -1 or codes.max() >= top.codebook_size):
            raise ValueError(
                f"`codes` must be from 0 to {top.codebook_size - 1}, or -1 for none, got {int(codes.min())} to"
                f" {int(codes.max())}."
            )


def to_bytes(text: str | bytes) -> bytes:
    """The UTF-8 bytes of a string; those that `surrogateescape` stands for are given back."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def rows_to_bytes(sequences: torch.LongTensor) -> bytes:
    """The bytes of `(batch_size, length)` ids, row by row; special tokens are left out."""
    return bytes(sequences[sequences < NUM_BYTES].tolist())


def check_input_ids(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None):
    if input_ids.ndim != 2 or not input_ids.numel() or input_ids.dtype != torch.long:
        raise ValueError(
            "`input_ids` must be int64 of the shape (batch_size, length), with one id at least (padding for an empty"
            f" text), got {input_ids.dtype} {tuple(input_ids.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}."
        )


__all__ = [
    "ByteSegmentCompressor",
    "CodeExpander",
    "CodeSequenceTransformer",
    "HierarchicalAutoencoder",
    "HierarchicalPreTrainedModel",
    "LearnedQueryAttention",
    "SlidingWindowAttention",
    "VectorQuantizer",
]
