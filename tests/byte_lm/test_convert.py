"""`auto-compressor convert`: published checkpoints become models of this package, and nothing in them is run."""

import json
import os
import pathlib
import shutil
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch
from modeling_testing import EXACT
from safetensors.torch import save_file
from test_adaptive_byte_parity import CLOSE, FOLDER, TENSORS, cases, tensors
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from auto_compressor import AdaptiveByteForCausalLM, ByteTokenizer, GRUByteForCausalLM
from auto_compressor.cli import convert as command
from auto_compressor.published import FORMATS, convert_checkpoint, load_published


FILES = {
    "adaptive_byte": FOLDER / "checkpoint_adaptive_d8_l3.pt",
    "gru_byte": FOLDER / "checkpoint_baseline_d8_l2.pt",
}
both_families = pytest.mark.parametrize("family", FILES)


def family_of_case(case) -> str:
    return "gru_byte" if case.get("model_type") == "baseline" or "baseline" in case["kind"] else "adaptive_byte"


@dataclass
class AdaptiveCompressorConfig:
    """As in published files, which name this class by its module."""

    vocab_size: int = 257
    byte_eos_id: int = 256
    hidden_size: int = 8
    num_levels: int = 3
    threshold: float = 0.1
    border_mode: str = "uncertainty"
    level_thresholds: list = field(default_factory=list)


def save_published(path, **changes):
    """A file in the published layout, with the weights of the fixture, and what else is given."""
    package, models = types.ModuleType("adaptive_compressor"), types.ModuleType("adaptive_compressor.models")
    module = types.ModuleType("adaptive_compressor.models.modules")
    module.AdaptiveCompressorConfig = AdaptiveCompressorConfig
    AdaptiveCompressorConfig.__module__ = module.__name__
    with pytest.MonkeyPatch.context() as patch:
        for each in (package, models, module):
            patch.setitem(sys.modules, each.__name__, each)
        state = published_weights("adaptive_byte")
        checkpoint = {"model_state": state, "config": AdaptiveCompressorConfig(), "args": {"output": path}}
        torch.save(checkpoint | changes, path)
    return path


def published_weights(family: str) -> dict[str, torch.Tensor]:
    """Those of the file of the fixture, read by its owner."""
    with torch.serialization.safe_globals(
        [
            (types.SimpleNamespace, "adaptive_compressor.models.modules.AdaptiveCompressorConfig"),
            (pathlib.PurePosixPath, "pathlib.PosixPath"),
        ]
    ):
        return torch.load(FILES[family], weights_only=True)["model_state"]


def published_folder(path, case) -> pathlib.Path:
    """The model of a case as a folder, under the published names."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(case["config"]))
    save_file(
        {name: TENSORS[tensor].clone() for name, tensor in case["state_dict"].items()}, path / "model.safetensors"
    )
    return path


def assert_same_model(folder, case):
    """It loads by its Auto classes, and gives the published numbers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    family = family_of_case(case)
    assert type(model) is (GRUByteForCausalLM if family == "gru_byte" else AdaptiveByteForCausalLM)
    assert type(tokenizer) is ByteTokenizer and tokenizer.eos_token_id == model.config.eos_token_id == 256
    ids, expected = tensors(case["inputs"])["byte_ids"], tensors(case["expected"])
    outputs = model(input_ids=ids, labels=ids)
    assert_close(outputs.loss, torch.tensor(case["expected_scalars"]["loss"]), **CLOSE)
    if family == "adaptive_byte":
        assert_close(outputs.logits, expected["byte_decoder_logits"], **CLOSE)
        assert_close(outputs.encoder_logits, expected["byte_encoder_logits"], **CLOSE)
    else:
        assert_close(outputs.logits, expected["byte_encoder_logits"], **CLOSE)


@cases("checkpoint_file")
def test_published_file(case, tmp_path, capsys):
    """Through the command."""
    arguments = types.SimpleNamespace(
        family=family_of_case(case), source=str(FOLDER / case["file"]), target=str(tmp_path / "target")
    )
    command.run(arguments)
    assert "parameters" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "target").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= files
    assert not [name for name in files if name.endswith((".pt", ".bin"))]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert_same_model(tmp_path / "target", case)


@cases("model_adaptive", "model_baseline")
def test_published_folder(case, tmp_path):
    convert_checkpoint(family_of_case(case), published_folder(tmp_path / "source", case), tmp_path / "target")
    assert_same_model(tmp_path / "target", case)


def test_all_fields_are_taken(tmp_path):
    case = {
        "config": {"hidden_size": 8, "num_levels": 4, "threshold": 0.3, "border_mode": "uncertainty"}
        | {"byte_entropy_threshold": 7.0, "entropy_floor": 0.5, "entropy_reg_weight": 0.25, "dropout": 0.125}
        | {"encoder_loss_weight": 2.0, "decoder_loss_weight": 3.0, "meta_loss_weight": 4.0}
        | {"uncertainty_loss_weight": 5.0, "level_thresholds": [0.5, 0.75], "byte_eos_id": 256, "vocab_size": 257},
        "state_dict": {},
    }
    source = published_folder(tmp_path / "source", case)
    with pytest.raises(ValueError, match="lacks levels.0.embed_tokens.weight"):
        load_published("adaptive_byte", source)
    config = FORMATS["adaptive_byte"].own_config(case["config"])
    expected = {name: value for name, value in case["config"].items() if hasattr(config, name)}
    assert len(expected) == 12 and {name: getattr(config, name) for name in expected} == expected
    assert config.border_error_threshold == 0.3 and config.meta_uncertainty_threshold == [0.5, 0.75]
    assert FORMATS["gru_byte"].own_config(case["config"]).dropout == 0.125


@both_families
def test_file_and_folder_agree(family, tmp_path):
    weights = published_weights(family)
    (tmp_path / "source").mkdir()
    levels = 3 if family == "adaptive_byte" else 2
    (tmp_path / "source" / "config.json").write_text(json.dumps({"hidden_size": 8, "num_levels": levels}))
    save_file(weights, tmp_path / "source" / "model.safetensors")
    found, expected = load_published(family, tmp_path / "source"), load_published(family, FILES[family])
    assert_close(found.state_dict(), expected.state_dict(), **EXACT)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_foreign_is_run(tmp_path):
    """Neither by the reader, nor by building what the file names; the error names it."""
    mark = tmp_path / "mark"
    source = save_published(tmp_path / "source.pt", args={"output": Malicious(mark)})
    with pytest.raises(ValueError, match="it names .*getattr|it names pathlib"):
        convert_checkpoint("adaptive_byte", source, tmp_path / "target")
    assert not mark.exists() and not (tmp_path / "target").exists()
    # The control: whoever unpickles it, runs it.
    torch.save(Malicious(mark), source)
    torch.load(source, weights_only=False)
    assert mark.exists()


def test_only_the_known_config(tmp_path):
    source = save_published(tmp_path / "source.pt", args={"config": types.SimpleNamespace(a=1)})
    with pytest.raises(ValueError, match="it names types.SimpleNamespace"):
        load_published("adaptive_byte", source)
    for changes in ({"config": {"hidden_size": 8}}, {"model_state": [1]}, {"model_state": {"a": 1}}):
        with pytest.raises(ValueError, match="`config`, and weights by name"):
            load_published("adaptive_byte", save_published(tmp_path / "source.pt", **changes))
    torch.save([1], tmp_path / "source.pt")
    with pytest.raises(ValueError, match="`config`, and weights by name"):
        load_published("adaptive_byte", tmp_path / "source.pt")


def test_the_layout_is_the_published_one(tmp_path):
    """The control of the tests above: without changes, it is read."""
    found = load_published("adaptive_byte", save_published(tmp_path / "source.pt"))
    assert_close(found.state_dict(), load_published("adaptive_byte", FILES["adaptive_byte"]).state_dict(), **EXACT)


def test_wrong_weights(tmp_path):
    weights = published_weights("adaptive_byte")
    name = "encoder_blocks.1.gru.weight_hh_l1"
    wrong = {
        "lacks levels.1.encoder.layers.1.weight_hh_l0": {key: weights[key] for key in weights if key != name},
        "has an unknown foreign": weights | {"foreign": torch.ones(1)},
        r"levels.1.encoder.layers.1.weight_hh_l0 as torch.float32 \(1,\)": weights | {name: torch.ones(1)},
        "as torch.int64": weights | {name: weights[name].long()},
    }
    for message, state in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_published("adaptive_byte", save_published(tmp_path / "source.pt", model_state=state))
    config = AdaptiveCompressorConfig(num_levels=2)
    with pytest.raises(ValueError, match="has an unknown levels.2"):
        load_published("adaptive_byte", save_published(tmp_path / "source.pt", config=config))
    for changes in ({"border_mode": "other"}, {"num_levels": "3"}, {"level_thresholds": [1.0, 2.0]}):
        config = AdaptiveCompressorConfig(**changes)
        with pytest.raises(ValueError, match="config of the checkpoint"):
            load_published("adaptive_byte", save_published(tmp_path / "source.pt", config=config))


@both_families
def test_another_family(family, tmp_path):
    other = "gru_byte" if family == "adaptive_byte" else "adaptive_byte"
    with pytest.raises(ValueError, match=f"of the family {family}, its weights are those of {other}"):
        convert_checkpoint(family, FILES[other], tmp_path / "target")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [0, 5, 1000, 30_000, 60_000])
def test_damaged_files(end, tmp_path):
    whole = FILES["adaptive_byte"].read_bytes()
    (tmp_path / "source.pt").write_bytes(whole[:end])
    with pytest.raises(OSError, match="damaged"):
        load_published("adaptive_byte", tmp_path / "source.pt")
    (tmp_path / "source.pt").write_bytes(b"x" * end)
    with pytest.raises(OSError, match="damaged"):
        load_published("adaptive_byte", tmp_path / "source.pt")


def test_missing_and_damaged_sources(tmp_path):
    for missing in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError):
            load_published("adaptive_byte", missing)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="Cannot read the checkpoint"):
        load_published("adaptive_byte", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(OSError, match="Cannot read the checkpoint"):
        load_published("adaptive_byte", tmp_path)


def test_target_is_whole_or_not_there(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("mine")
    with pytest.raises(OSError, match="new or an empty folder"):
        convert_checkpoint("adaptive_byte", FILES["adaptive_byte"], target)
    assert [path.name for path in target.iterdir()] == ["file"]
    shutil.rmtree(target)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    # At the last file, and when all are written: the target only ever appears by its name being given to the whole.
    for owner, name in ((ByteTokenizer, "save_pretrained"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="disk full"):
                convert_checkpoint("adaptive_byte", FILES["adaptive_byte"], target)
        assert not list(tmp_path.iterdir())
    target.mkdir()  # empty
    convert_checkpoint("adaptive_byte", FILES["adaptive_byte"], target)
    assert AutoModelForCausalLM.from_pretrained(target).num_parameters() > 0
