"""Training activation compressors: the Trainer with a base model beside, every loss by its name, and fidelity."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from ..files.loading import load
from ..training.mixin import StatisticsMixin
from .cache_names import as_cache
from .configuration_activation_compressor import ActivationCompressorConfig
from .merging_cache import merging_attention
from .metrics import activation_metrics, continuation_statistics
from .modeling_activation_compressor import ActivationCompressor, ActivationCompressorOutput
from .tensors import shift_labels_left


BASE_FOLDER = "base"


class CompressorWithBase(nn.Module):
    """
    What a step trains: a compressor, and its base model unless that is frozen.

    Args:
        compressor ([`ActivationCompressor`]): The compressor of this base model; its config says whether the base is
            frozen.
        base_model (`PreTrainedModel`): Without gradients and dropout if it is frozen.
        continuation_length (`int`): The last tokens of a row, which are predicted after what stands before them.
        segment_length (`int`, *optional*): Tokens between two compressions (default: one, after the context).
    """

    def __init__(
        self,
        compressor: ActivationCompressor,
        base_model: PreTrainedModel,
        continuation_length: int,
        segment_length: int | None = None,
    ):
        super().__init__()
        self.compressor, self.base_model = compressor, base_model
        self.continuation_length, self.segment_length = continuation_length, segment_length
        if self.config.freeze_base:
            base_model.requires_grad_(False)

    @property
    def config(self) -> ActivationCompressorConfig:
        return self.compressor.config

    def train(self, mode: bool = True) -> "CompressorWithBase":
        super().train(mode)
        self.base_model.train(mode and not self.config.freeze_base)
        return self

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
    ) -> ActivationCompressorOutput:
        context_length = input_ids.shape[1] - self.continuation_length
        self.compressor.check_ratio(context_length)
        inputs = {"attention_mask": attention_mask, "labels": labels, "segment_length": self.segment_length}
        return self.compressor(self.base_model, input_ids, context_length, **inputs)

    def continuation_logits(self, input_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(batch_size, continuation_length, vocab_size)` after the compressed, and after the full context."""
        context, continuation = input_ids.split(
            [input_ids.shape[1] - self.continuation_length, self.continuation_length], dim=1
        )
        cache = self.compressor.compress(self.base_model, context, segment_length=self.segment_length)
        with merging_attention(self.base_model):
            logits = self.base_model(continuation, **as_cache(cache)).logits
        full = self.base_model(input_ids, logits_to_keep=self.continuation_length, use_cache=False).logits
        return logits, full


class ActivationTrainer(StatisticsMixin, Trainer):
    """
    Trains a [`CompressorWithBase`], and saves the compressor; a base that was trained goes into the folder `base`,
    with its `tokenizer`.

    Rows have one length and no padding. Reports every loss by its name, and in evaluation the metrics of
    [`~metrics.activation_metrics`].
    """

    def __init__(self, *args, tokenizer: PreTrainedTokenizerBase, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokenizer = tokenizer

    def statistics(self, model: CompressorWithBase, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        logits, full = model.continuation_logits(inputs["input_ids"])
        targets = shift_labels_left(inputs["input_ids"][:, -logits.shape[1] :])
        return (continuation_statistics(logits, full, targets),)

    def metrics_of(self, prediction: EvalPrediction) -> dict[str, float]:
        return activation_metrics(torch.as_tensor(prediction.predictions[0]))

    def evaluation_loop(self, *args, **kwargs):
        self.identify()
        return super().evaluation_loop(*args, **kwargs)

    def identify(self) -> CompressorWithBase:
        """What is trained, whose compressor knows the weights that its base now has."""
        model = self.accelerator.unwrap_model(self.model)
        if not model.config.freeze_base:
            model.compressor.identify(model.base_model)
        return model

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder, model = Path(output_dir or self.args.output_dir), self.identify()
        model.compressor.save_pretrained(folder)
        if not model.config.freeze_base:
            model.base_model.save_pretrained(folder / BASE_FOLDER)
            self.tokenizer.save_pretrained(folder / BASE_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, trained = Path(resume_from_checkpoint), self.accelerator.unwrap_model(model or self.model)
        trained.compressor.load_state_dict(load_file(folder / SAFE_WEIGHTS_NAME))
        if not trained.config.freeze_base:
            saved = load(AutoModelForCausalLM, folder / BASE_FOLDER, dtype=trained.base_model.dtype)
            trained.base_model.load_state_dict(saved.state_dict())


__all__ = ["BASE_FOLDER", "ActivationTrainer", "CompressorWithBase"]
