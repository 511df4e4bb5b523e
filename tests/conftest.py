"""What every test runs under: one thread, no hub, a fixed seed."""

import os

import pytest


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
pytest.register_assert_rewrite("modeling_testing")

import torch  # noqa: E402


# Small models run several times faster on one thread than on two.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
