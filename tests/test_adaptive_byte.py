"""The byte language models: what every model must do, rows and causality, losses, and each option by itself."""

import pytest
import torch
from modeling_testing import CausalLMTests, HubTests, pad_rows, random_ids
from torch.testing import assert_close

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ByteLMOutput,
    GRUByteConfig,
    GRUByteForCausalLM,
)


# Thresholds under which every level of a random model has several patches within a few bytes.
LEVELS = {
    1: {"num_levels": 1},
    2: {"num_levels": 2, "byte_entropy_threshold": 9.6},
    3: {"num_levels": 3, "byte_entropy_threshold": 9.6, "meta_uncertainty_threshold": 1.2},
    4: {"num_levels": 4, "byte_entropy_threshold": 9.6, "meta_uncertainty_threshold": [1.2, 0.9]},
}


class ByteLMTests(CausalLMTests):
    output_class = ByteLMOutput
    # There is no attention, and there are no layers to checkpoint.
    test_eager_equals_sdpa = test_gradient_checkpointing = None

    def make_model(self, attn_implementation="eager", dtype=torch.float32, **fields):
        return super().make_model(attn_implementation, dtype, **fields)

    def make_inputs(self, model):
        ids, mask = pad_rows([random_ids(1, 23), random_ids(1, 17, seed=1)], "left")
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class AdaptiveTests(ByteLMTests):
    model_class = AdaptiveByteForCausalLM
    num_levels: int
    other_fields = {
        "border_error_threshold": 0.2,
        "entropy_floor": 1.0,
        "meta_uncertainty_threshold": 2,
        "add_encoder_states": True,
        "detach_meta_targets": True,
        "window_end_target": False,
        "carry_state": True,
    }
    bad_fields = [
        ("border_mode", "entropy"),
        ("hidden_size", 0),
        ("num_levels", 0),
        ("dropout", 1.0),
        ("meta_loss_weight", -1.0),
        ("entropy_reg_weight", float("inf")),
        ("meta_uncertainty_threshold", [1.0] * 7),
        ("target_ratios", [3.0] * 7),
    ]

    @property
    def config_fields(self):
        return LEVELS[self.num_levels] | {"hidden_size": 16, "entropy_floor": 3.0}

    def expected_shapes(self, model, inputs):
        logits = (2, 23, 257)
        return {"loss": (), "logits": logits, "encoder_logits": logits, "entropies": (2, 23)}


class TestOneLevel(AdaptiveTests):
    num_levels = 1


class TestTwoLevels(AdaptiveTests):
    num_levels = 2


class TestThreeLevels(AdaptiveTests, HubTests):
    num_levels = 3


class TestFourLevels(AdaptiveTests):
    num_levels = 4


class TestTargetRatios(AdaptiveTests):
    num_levels = 3

    @property
    def config_fields(self):
        return super().config_fields | {"target_ratios": [3.0, 2.0]}


class TestGRU(ByteLMTests, HubTests):
    model_class = GRUByteForCausalLM
    config_fields = {"hidden_size": 16, "num_blocks": 2, "num_padding_parameters": 5}
    other_fields = {"num_levels": 2, "window_end_target": False, "carry_state": True}
    bad_fields = [
        ("hidden_size", 0),
        ("num_levels", 0),
        ("num_blocks", 0),
        ("num_padding_parameters", -1),
        ("dropout", 1.0),
    ]
    without_gradient = "padding_parameters"

    def expected_shapes(self, model, inputs):
        return {"loss": (), "logits": (2, 23, 257)}
