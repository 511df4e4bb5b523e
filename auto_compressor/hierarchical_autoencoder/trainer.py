"""Training hierarchical autoencoders: the Trainer with every loss by its name, reconstruction metrics and samples."""

import html
import json
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import EvalPrediction, Trainer
from transformers.integrations import TensorBoardCallback

from ..tokenization_bytes import NUM_BYTES
from ..training.mixin import StatisticsMixin
from .metrics import reconstruction_metrics, reconstruction_statistics


SAMPLES_FILE = "reconstructions.jsonl"


class HierarchicalTrainer(StatisticsMixin, Trainer):
    """
    Trains a [`HierarchicalAutoencoder`].

    Reports every loss by its name. Evaluation decodes from the codes alone, with the metrics of
    [`~metrics.reconstruction_metrics`], and appends what became of the first `num_samples` texts to
    `reconstructions.jsonl` in the output folder.
    """

    def __init__(self, *args, num_samples: int = 4, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_samples = num_samples

    def statistics(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The statistics, and the codes of every level."""
        statistics, codes = reconstruction_statistics(
            model, inputs["input_ids"], inputs["attention_mask"], self.generator
        )
        return statistics, *codes

    def metrics_of(self, prediction: EvalPrediction) -> dict[str, float]:
        statistics, *codes = (torch.as_tensor(array) for array in prediction.predictions)
        return reconstruction_metrics(self.model.config, statistics, codes)

    def evaluation_loop(self, dataloader, description: str, *args, metric_key_prefix: str = "eval", **kwargs):
        self.generator = torch.Generator().manual_seed(self.args.seed)
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.is_world_process_zero():
            self.write_samples(dataloader.dataset, metric_key_prefix)
        return output

    def write_samples(self, dataset: Dataset, name: str):
        """Appends the first texts and their reconstructions to the file, and shows them to the trackers."""
        model = self.accelerator.unwrap_model(self.model)
        rows = dataset.select(range(min(self.num_samples, len(dataset))))["input_ids"]
        lines = []
        for row in rows:
            text = bytes(value for value in row if value < NUM_BYTES)
            pair = {"text": text, "reconstruction": model.reconstruct(text)}
            sample = {key: data.decode(errors="replace") for key, data in pair.items()}
            lines.append(json.dumps({"step": self.state.global_step, "set": name} | sample, ensure_ascii=False) + "\n")
        with (Path(self.args.output_dir) / SAMPLES_FILE).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.show_text(f"{name}_reconstructions", "".join(lines))

    def show_text(self, name: str, text: str):
        """Hands a text to the trackers of `report_to`, which `log` gives numbers only."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(name, f"<pre>{html.escape(text)}</pre>", self.state.global_step)
        if "mlflow" in self.args.report_to:
            import mlflow

            mlflow.log_text(text, f"{name}_{self.state.global_step}.jsonl")
        if "wandb" in self.args.report_to:
            import wandb

            wandb.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")})


__all__ = ["SAMPLES_FILE", "HierarchicalTrainer"]
