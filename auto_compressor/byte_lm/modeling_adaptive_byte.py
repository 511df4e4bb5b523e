"""Byte language model with adaptive borders: recurrent levels, each of which steps only where the one below it could
not predict.

Level 0 reads bytes. Where its entropy has summed up to a threshold, a border passes its state on to level 1, whose
expected errors set the borders of level 2, and so on. Back down, a decoder on every level reads the same units again,
each with what the level above made of the last border. A border is decided from the past alone, so that bytes can be
generated one by one, with levels that step only at borders.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers import initialization as init
from transformers.utils import can_return_tuple, logging

from .byte_rows import ByteRows, following_units, last_units
from .cache_names import takes_cache
from .configuration_adaptive_byte import AdaptiveByteConfig
from .generation_byte_lm import RecurrentByteLM, kept_columns
from .gru_block import GRUBlock
from .outputs import ByteLMOutput
from .patching import broadcast_patches, continued_borders, gather_patches, length_mask, threshold_borders
from .recurrent_cache import RecurrentCache, RecurrentLayer
from .tensors import at_least_float32, masked_mean, sum_over_processes


logger = logging.get_logger(__name__)

RATIO_RATE = 0.1  # power of what a threshold is off by, by which `target_ratios` corrects it at every batch


def clamped_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, in float32 at least, with the logarithms of probabilities below 1e-8 cut off there."""
    probs = at_least_float32(logits).softmax(dim=-1)  # (..., vocab)
    return -(probs * probs.clamp(min=1e-8).log()).sum(dim=-1)


def entropy_penalties(entropies: torch.Tensor, floor: float) -> torch.Tensor:
    """The squares of what entropies lack to the floor, 0 for those above it; any shape."""
    return (floor - entropies).clamp(min=0).square()


@dataclass
class LevelReading:
    """
    What a level made of its units.

    Args:
        units (`torch.Tensor` of shape `(batch_size, units)` or `(batch_size, units, hidden_size)`): Bytes, or the
            states at the borders of the level below; those of a row in front.
        mask (`torch.BoolTensor` of shape `(batch_size, units)`): False behind the last unit of a row.
        hidden_states (`torch.Tensor` of shape `(batch_size, units, hidden_size)`): States of the encoder.
        predictions (`torch.Tensor`): What the next unit is expected to be: `(batch_size, units, vocab_size)` logits or
            `(batch_size, units, hidden_size)` states.
        scores (`torch.Tensor` of shape `(batch_size, units)`): Entropy in nats, or the error that is expected.
        border_mask (`torch.BoolTensor` of shape `(batch_size, units)`): Where patches begin; None on the top level.
    """

    units: torch.Tensor
    mask: torch.BoolTensor
    hidden_states: torch.Tensor
    predictions: torch.Tensor
    scores: torch.Tensor
    border_mask: torch.BoolTensor | None = None


class AdaptiveLevel(nn.Module):
    """
    One level. Subclasses embed the units, predict the next one, and measure the error of that.

    Args:
        config (`AdaptiveByteConfig`): The config of the model.
        index (`int`): 0 for bytes. The top level, `num_levels - 1`, has no borders and no decoder.
    """

    def __init__(self, config: AdaptiveByteConfig, index: int):
        super().__init__()
        self.config, self.index = config, index
        size = config.hidden_size
        self.encoder = GRUBlock(size, config.dropout)
        self.is_top = index == config.num_levels - 1
        if not self.is_top:
            self.patch_proj = nn.Linear(size, size)
            self.decoder = GRUBlock(size, config.dropout)
            if config.target_ratios is not None:
                self.border_threshold = nn.Buffer(torch.empty(()))

    def read(
        self, units: torch.Tensor, inputs: torch.Tensor, lengths: torch.LongTensor | None, layer: RecurrentLayer
    ) -> LevelReading:
        """Encodes units, predicts what follows each, and sets borders."""
        # (batch, units, hidden), and the state of both layers (batch, 2, hidden)
        hidden_states, state = self.encoder(inputs, layer.states.get("encoder"), lengths)
        layer.remember(encoder=state)
        mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool)  # (batch, units)
        mask = mask if lengths is None else length_mask(lengths, inputs.shape[1])
        reading = LevelReading(units, mask, hidden_states, *self.predict(hidden_states))
        if not self.is_top:
            reading.border_mask = self.borders(reading, lengths, layer)
        return reading

    def borders(
        self, reading: LevelReading, lengths: torch.LongTensor | None, layer: RecurrentLayer
    ) -> torch.BoolTensor:
        if self.config.border_mode == "teacher_forced":
            return threshold_borders(self.errors(reading), self.error_threshold) & reading.mask
        begun, running_sum = layer.states.get("begun"), layer.states.get("running_sum")
        border_mask, running_sum = continued_borders(reading.scores, self.threshold, lengths, running_sum, begun)
        layer.remember(running_sum=running_sum)
        if self.training and self.config.target_ratios is not None:
            self.follow_target_ratio(border_mask, reading.mask)
        return border_mask

    @property
    def threshold(self) -> float | torch.Tensor:
        if self.config.target_ratios is not None:
            return self.border_threshold
        return self.config.border_thresholds[self.index]

    @torch.no_grad()
    def follow_target_ratio(self, border_mask: torch.BoolTensor, mask: torch.BoolTensor):
        """Moves the threshold, to which the units per patch are about proportional, towards the ratio aimed at."""
        counts = torch.stack([border_mask.sum(), mask.sum()]).to(self.border_threshold.dtype)  # (2,)
        # Counts of all processes, so that all move their thresholds alike.
        num_patches, num_units = sum_over_processes(counts).unbind()
        off = self.config.target_ratios[self.index] * num_patches.clamp(min=1) / num_units
        self.border_threshold.mul_(torch.where(num_units > 0, off.clamp(0.5, 2) ** RATIO_RATE, 1.0)).clamp_(max=1e6)

    def decode(
        self,
        inputs: torch.Tensor,
        lengths: torch.LongTensor | None,
        patch_states: torch.Tensor,
        border_mask: torch.BoolTensor,
        layer: RecurrentLayer,
    ) -> torch.Tensor:
        """Reads the inputs again, each with the state of the patch that it is in."""
        begun, carried = layer.states.get("begun"), layer.states.get("patch")
        # (batch, units, hidden), (batch, hidden)
        context, carried = broadcast_patches(patch_states, border_mask, lengths, carried, begun)
        outputs, state = self.decoder(inputs + self.patch_proj(context), layer.states.get("decoder"), lengths)
        layer.remember(decoder=state, patch=carried)
        return outputs


class ByteLevel(AdaptiveLevel):
    """Level 0, whose units are bytes and whose scores are entropies."""

    error_threshold = 0.0

    def __init__(self, config: AdaptiveByteConfig):
        super().__init__(config, 0)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def embed(self, units: torch.LongTensor) -> torch.Tensor:
        return self.embed_tokens(units)

    def predict(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(hidden_states)  # (batch, units, vocab)
        return logits, clamped_entropy(logits)

    def errors(self, reading: LevelReading) -> torch.Tensor:
        """1 where the likeliest byte is not the next one: `(batch_size, units)`."""
        end = reading.units.new_tensor(self.config.eos_token_id)
        return (reading.predictions.argmax(dim=-1) != following_units(reading.units, reading.mask, end)).float()


class MetaLevel(AdaptiveLevel):
    """A level above bytes, whose units are states of the level below and whose scores are the errors it expects."""

    def __init__(self, config: AdaptiveByteConfig, index: int):
        super().__init__(config, index)
        self.predictor = nn.Linear(config.hidden_size, config.hidden_size)
        self.uncertainty_head = nn.Linear(config.hidden_size, 1)
        self.end_state = nn.Parameter(torch.empty(config.hidden_size))

    @property
    def error_threshold(self) -> float:
        return self.config.border_error_threshold

    def embed(self, units: torch.Tensor) -> torch.Tensor:
        return units

    def predict(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        uncertainty = at_least_float32(self.uncertainty_head(hidden_states))[..., 0]  # (batch, units)
        return self.predictor(hidden_states), F.softplus(uncertainty)

    def errors(self, reading: LevelReading) -> torch.Tensor:
        """Mean squared error of every predicted state: `(batch_size, units)`."""
        units = reading.units.detach() if self.config.detach_meta_targets else reading.units
        targets = following_units(units, reading.mask, self.end_state)  # (batch, units, hidden)
        return (at_least_float32(reading.predictions) - targets).square().mean(dim=-1)


class AdaptiveByteForCausalLM(RecurrentByteLM):
    """
    Causal language model over bytes, with borders where it could not predict.

    Example:

    ```python
    >>> from auto_compressor import AdaptiveByteForCausalLM, ByteTokenizer

    >>> model = AdaptiveByteForCausalLM.from_pretrained("checkpoints/adaptive")
    >>> prompt = ByteTokenizer()("In the beginning ", add_special_tokens=False, return_tensors="pt")
    >>> model.generate(**prompt, max_new_tokens=64)
    ```
    """

    config: AdaptiveByteConfig
    _keep_in_fp32_modules_strict = ["border_threshold"]

    def __init__(self, config: AdaptiveByteConfig):
        super().__init__(config)
        metas = (MetaLevel(config, index) for index in range(1, config.num_levels))
        self.levels = nn.ModuleList([ByteLevel(config), *metas])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MetaLevel):
            init.normal_(module.end_state, std=0.02)
        if isinstance(module, AdaptiveLevel) and hasattr(module, "border_threshold"):
            init.constant_(module.border_threshold, self.config.border_thresholds[module.index])

    def get_input_embeddings(self) -> nn.Embedding:
        return self.levels[0].embed_tokens

    def set_input_embeddings(self, value: nn.Embedding):
        self.levels[0].embed_tokens = value

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict:
        if self.config.border_mode == "teacher_forced":
            raise ValueError("`border_mode` teacher_forced cannot generate: borders depend on bytes that follow.")
        return super().prepare_inputs_for_generation(*args, **kwargs)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> ByteLMOutput:
        """
        Predicts the byte behind every byte, one or many after those that a cache has seen.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Bytes; 256 is the end of a text.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 at padding, on any side. It
                may also cover all that the cache has seen in front.
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): Usually `input_ids`; shifted here.
                -100 is left out of the next-byte losses.
            cache (`RecurrentCache`, *optional*): From an earlier call; it is changed. No gradient passes it.
            use_cache (`bool`, *optional*): Whether to return it (default: as in the config).
            logits_to_keep (`int` or `torch.LongTensor`, defaults to 0): Only the last columns of all logits, or those
                of an index; 0 for all.
            output_hidden_states (`bool`, *optional*): Whether to return the states of every level.

        Raises:
            ValueError: if an argument has another shape or dtype, `cache` is another kind of cache or has
                other rows, or a cache is used with the border mode `"teacher_forced"`.
        """
        use_cache = self.check_cache(cache, use_cache)
        cache = self.open_cache(cache, len(self.levels), input_ids, attention_mask, labels)
        rows = ByteRows.from_input(input_ids, attention_mask)
        readings: list[LevelReading] = []
        decoded = self.run_level(0, rows.tokens, rows.lengths, cache, readings)  # (batch, length, hidden)
        cache.count_tokens(input_ids.shape[1], rows)
        lowest = readings[0]
        # (batch, length, vocab), the tokens of a row in front
        logits = self.lm_head(decoded + lowest.hidden_states if self.config.add_encoder_states else decoded)
        losses = None if labels is None else self.losses(logits, labels, rows, readings)
        show_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        return ByteLMOutput(
            loss=None if losses is None else self.weighted_sum(losses),
            logits=kept_columns(rows.to_columns(logits), logits_to_keep),
            encoder_logits=kept_columns(rows.to_columns(lowest.predictions), logits_to_keep),
            losses=losses,
            border_masks=self.border_masks(rows, readings),
            entropies=rows.to_columns(lowest.scores.detach().masked_fill(~lowest.mask, 0.0)),
            hidden_states=self.hidden_states(rows, readings) if show_states else None,
            cache=cache if use_cache else None,
        )

    def check_cache(self, cache: Cache | None, use_cache: bool | None) -> bool:
        """Whether to return a cache; a `ValueError` where the border mode has none."""
        if self.config.border_mode != "teacher_forced":
            return self.config.use_cache if use_cache is None else use_cache
        logger.warning_once("`border_mode` teacher_forced leaks the future: borders depend on bytes that follow.")
        if cache is not None or use_cache:
            raise ValueError(
                "`border_mode` teacher_forced works without `cache` and `use_cache` only: borders depend on"
                " bytes that follow."
            )
        return False

    def run_level(
        self,
        index: int,
        units: torch.Tensor,
        lengths: torch.LongTensor | None,
        cache: RecurrentCache,
        readings: list[LevelReading],
    ) -> torch.Tensor:
        """
        Runs a level and those above it, where patches begin.

        Args:
            index (`int`): Index of the level.
            units, lengths: What it reads; see [`LevelReading`] and [`GRUBlock.forward`].
            cache (`RecurrentCache`): States of all levels, which are replaced.
            readings (`list[LevelReading]`): Is extended by those of this level and those above.

        Returns:
            `torch.Tensor` of shape `(batch_size, units, hidden_size)`: Decoded states; of the top level, encoded ones.
        """
        level, layer = self.levels[index], cache.layers[index]
        inputs = level.embed(units)  # (batch, units, hidden)
        reading = level.read(units, inputs, lengths, layer)
        readings.append(reading)
        if level.is_top:
            return reading.hidden_states
        num_patches = reading.border_mask.sum(dim=1)  # (batch,)
        # Read back, as shapes depend on it. In training every level runs, for gradients on every process.
        most = max(int(num_patches.max()), int(self.training))
        patches = reading.hidden_states[:, :0]  # (batch, 0, hidden)
        if most:
            patches = gather_patches(reading.hidden_states, reading.border_mask, most)  # (batch, most, hidden)
            patches = self.run_level(index + 1, patches, num_patches, cache, readings)
        decoded = level.decode(inputs, lengths, patches, reading.border_mask, layer)
        # (batch,): a row with a unit here is no longer at its beginning
        begun = layer.states.get("begun")
        layer.remember(begun=reading.mask[:, 0] if begun is None else begun | reading.mask[:, 0])
        return decoded

    def border_masks(self, rows: ByteRows, readings: list[LevelReading]) -> tuple[torch.BoolTensor, ...]:
        masks = [reading.border_mask for reading in readings[: self.config.num_levels - 1]]
        masks += [rows.mask[:, :0]] * (self.config.num_levels - 1 - len(masks))  # levels that did not step
        return tuple(rows.to_columns(mask) if level == 0 else mask for level, mask in enumerate(masks))

    def hidden_states(self, rows: ByteRows, readings: list[LevelReading]) -> tuple[torch.Tensor, ...]:
        lowest = rows.states_in_columns(readings[0].hidden_states)
        above = [reading.hidden_states.masked_fill(~reading.mask[..., None], 0.0) for reading in readings[1:]]
        above += [lowest[:, :0]] * (self.config.num_levels - 1 - len(above))
        return (lowest, *above)

    def losses(
        self, logits: torch.Tensor, labels: torch.LongTensor, rows: ByteRows, readings: list[LevelReading]
    ) -> dict[str, torch.Tensor]:
        """Means by name; those of the levels above 0 are averaged over these."""
        penalties = entropy_penalties(readings[0].scores, self.config.entropy_floor)  # (batch, length)
        errors, misjudged = [logits.new_zeros((), dtype=torch.float32)], [logits.new_zeros((), dtype=torch.float32)]
        for level, reading in list(zip(self.levels, readings, strict=False))[1:]:
            found, counted = level.errors(reading), self.with_target(rows, reading.mask)  # (batch, units) each
            errors.append(masked_mean(found, counted, self.training))
            misjudged.append(masked_mean((reading.scores - found.detach()).square(), counted, self.training))
        num_metas = max(self.config.num_levels - 1, 1)
        return {
            "byte_encoder": self.byte_loss(readings[0].predictions, labels, rows),
            "byte_decoder": self.byte_loss(logits, labels, rows),
            "meta": sum(errors) / num_metas,
            "uncertainty": sum(misjudged) / num_metas,
            "entropy_reg": masked_mean(penalties, rows.mask, self.training),
        }

    def with_target(self, rows: ByteRows, mask: torch.BoolTensor) -> torch.BoolTensor:
        """Units of a level with a known next one: the last of a row only if the text ends there."""
        if self.config.window_end_target:
            return mask
        ends = (last_units(rows.mask) & (rows.tokens == self.config.eos_token_id)).any(dim=1)
        return mask & (~last_units(mask) | ends[:, None])

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss to train on, a scalar."""
        config = self.config
        weights = {
            "byte_encoder": config.encoder_loss_weight,
            "byte_decoder": config.decoder_loss_weight,
            "meta": config.meta_loss_weight,
            "uncertainty": config.uncertainty_loss_weight,
            "entropy_reg": config.entropy_reg_weight,
        }
        return sum(weight * losses[name] for name, weight in weights.items())


__all__ = ["AdaptiveByteForCausalLM", "ByteLevel", "MetaLevel"]
