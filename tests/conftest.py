"""What every test runs under: one thread, no hub, a fixed seed."""

import gc
import os
import sys
from pathlib import Path

import pytest


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
pytest.register_assert_rewrite("modeling_testing", "train_testing")

import torch  # noqa: E402
from train_testing import common_arguments  # noqa: E402
from transformers.utils import logging  # noqa: E402

import train  # noqa: E402


# Small models run several times faster on one thread than on two.
torch.set_num_threads(1)
# What a command prints is read: bars of what a test saves itself are none of it, whichever test ran before.
logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def imported():
    """
    What has been imported stays: a collection of garbage, which every run of the trainer asks for twice, then takes
    milliseconds in place of a third of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def commands():
    """What commands that tests start find first, and the tests themselves do not: tests/commands/sitecustomize.py."""
    folders = [str(Path(__file__).with_name("commands")), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def main(cache_dir, monkeypatch, tmp_path):
    """`train.main()` with these arguments; returns the output folder."""

    def main(*arguments, output_dir=tmp_path / "out"):
        monkeypatch.setattr(sys, "argv", ["train.py", *common_arguments(cache_dir, output_dir), *map(str, arguments)])
        train.main()
        return output_dir

    return main
