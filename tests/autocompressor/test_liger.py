"""`use_liger_kernel`: one clear error where it can do nothing. tests/with_liger has what it does."""

import importlib.util

import pytest

from args import ByteLMTrainingArguments, HierarchicalTrainingArguments, TrainingArguments


@pytest.mark.parametrize("arguments_class", [ByteLMTrainingArguments, HierarchicalTrainingArguments])
def test_families_without_it(arguments_class, tmp_path):
    with pytest.raises(ValueError, match="`use_liger_kernel` must be False: .* AutoCompressors alone"):
        arguments_class(tmp_path, use_liger_kernel=True)


def test_it_must_be_installed_and_have_a_gpu(tmp_path, monkeypatch):
    for spec, message in ((None, "needs liger-kernel: pip install"), (object(), "needs a GPU with CUDA")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(ValueError, match=f"`use_liger_kernel` {message}"):
            TrainingArguments(tmp_path, use_liger_kernel=True, use_cpu=True)
