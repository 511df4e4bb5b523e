"""What the trainers of all families add to that of transformers."""

from collections.abc import Iterator

import torch
from torch import nn

from .muon import muon_with_adamw


class TrainerMixin:
    """
    Goes before [`~transformers.Trainer`] among the bases of a trainer whose steps `track` values by name.

    With every loss that the Trainer logs go their means over the optimisation steps since the last report, and over
    processes. A finished run that is resumed takes no further step. With `optim_family` muon in its arguments, the
    optimizer is [`~muon.MuonWithAdamW`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums: dict[str, torch.Tensor] = {}
        self.last_logged_step = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        # The arguments may be those of transformers, which know no `optim_family`.
        if self.optimizer is None and getattr(self.args, "optim_family", "adamw") == "muon":
            self.optimizer = muon_with_adamw(
                self.model if model is None else model,
                muon_heads=self.args.muon_heads,
                muon_scale=self.args.muon_scale,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The batches of one step; none for a finished run that is resumed, where transformers takes one step more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def track(self, name: str, value: torch.Tensor):
        """Adds to what is reported; of several batches in one step, every one adds its share."""
        if not self.sums:
            self.last_logged_step = self.state.global_step
        self.sums[name] = self.sums.get(name, 0) + value

    def track_losses(self, losses: dict[str, torch.Tensor]):
        """Tracks the losses of one batch by their names."""
        for name, value in losses.items():
            self.track(f"{name}_loss", value.detach() / self.current_gradient_accumulation_steps)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.sums:
            steps = self.state.global_step - self.last_logged_step
            means = self.accelerator.reduce(torch.stack([*self.sums.values()]).float() / steps, reduction="mean")
            logs = logs | dict(zip(self.sums, means.tolist(), strict=True))
            self.sums = {}
        super().log(logs, start_time)


__all__ = ["TrainerMixin"]
