"""What the bundled byte model is trained on, and how it comes into the package: run/make_bytes_corpus.py and on."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, PackagePath
from pathlib import Path
from types import SimpleNamespace

import make_bytes_corpus
import pytest
import round_bytes
import torch
from modeling_testing import randomize_
from safetensors.torch import load_file
from torch.testing import assert_close

from auto_compressor import GRUByteConfig, GRUByteForCausalLM
from auto_compressor.byte_lm.integer_codec import compress_bytes, decompress_bytes


ROOT = Path(__file__).parents[1]
LINE = "def add(left, right):  # the sum of two numbers\n    return left + right\n\n\n"


class Package:
    """An installed package whose files are those given, by their paths."""

    def __init__(self, folder: Path, files: dict[str, bytes]):
        self.folder, self.metadata = folder, SimpleNamespace(get_payload=lambda: "# A package\n\n" + LINE * 20)
        self.files = [PackagePath(name) for name in files]
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def locate_file(self, path: PackagePath) -> Path:
        return self.folder / path


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder as run/make_corpus.sh leaves it, with two installed packages, of which one is held out."""
    code = {f"part_{number}.py": (LINE * (20 + number)).encode() for number in range(3)}
    packages = {
        "trained": Package(
            tmp_path / "trained", code | {"short.py": b"pass\n", "latin.py": LINE.encode() * 20 + b"\xe9"}
        ),
        "apart": Package(tmp_path / "apart", code | {"_vendor/copy.py": LINE.encode() * 20}),
    }
    monkeypatch.setattr(make_bytes_corpus, "PACKAGES", {"MIT": "trained apart"})
    monkeypatch.setattr(make_bytes_corpus, "HELD_OUT", ("apart",))
    monkeypatch.setattr(make_bytes_corpus, "distribution", packages.__getitem__)
    monkeypatch.setattr(make_bytes_corpus, "BUNDLED_TRAIN_TEXT", tmp_path / "books.txt")
    (tmp_path / "books.txt").write_text("In the beginning.\n\nAnd the earth was without form.")
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [
        {"text": LINE, "source": license, "domain": "systems", "license": license} for license in ("MIT", "GPL-2+")
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_packages_are_held_out_whole(corpus):
    make_bytes_corpus.main(str(corpus))
    trained, held_out = (rows_of(corpus / f"bytes_{name}.jsonl") for name in ("train", "heldout"))
    assert {row["source"] for row in held_out} == {"apart/README.md", *(f"apart/part_{n}.py" for n in range(3))}
    assert not any(row["source"].startswith("apart/") for row in trained)
    assert {f"trained/part_{number}.py" for number in range(3)} < {row["source"] for row in trained}


def test_what_is_left_out(corpus):
    make_bytes_corpus.main(str(corpus))
    sources = {row["source"] for name in ("train", "heldout") for row in rows_of(corpus / f"bytes_{name}.jsonl")}
    # too short, no UTF-8, somebody else's, and a licence that is not permissive
    assert not sources & {"trained/short.py", "trained/latin.py", "apart/_vendor/copy.py", "GPL-2+"}
    assert "MIT" in sources and "bundled/0" in sources


def test_the_same_files_each_time(corpus):
    make_bytes_corpus.main(str(corpus))
    first = (corpus / "bytes_train.jsonl").read_bytes()
    make_bytes_corpus.main(str(corpus))
    assert (corpus / "bytes_train.jsonl").read_bytes() == first


def test_a_package_gives_so_much_code(corpus, monkeypatch):
    monkeypatch.setattr(make_bytes_corpus, "PACKAGE_BYTES", 50 * len(LINE))
    make_bytes_corpus.main(str(corpus))
    code = [row for row in rows_of(corpus / "bytes_heldout.jsonl") if row["domain"] == "code"]
    assert 0 < sum(len(row["text"]) for row in code) <= 50 * len(LINE)


def missing(name: str):
    raise PackageNotFoundError(name)


@pytest.mark.parametrize("fault", ["no corpus", "a damaged corpus", "no package"])
def test_errors_of_one_line(corpus, monkeypatch, fault):
    if fault == "no package":
        monkeypatch.setattr(make_bytes_corpus, "distribution", missing)
    elif fault == "a damaged corpus":
        (corpus / "train.jsonl").write_text("{")
    else:
        (corpus / "train.jsonl").unlink()
    with pytest.raises(SystemExit, match="^make_bytes_corpus.py: error: [^\n]+$"):
        make_bytes_corpus.main(str(corpus))
    assert not list(corpus.glob("bytes_*"))


@pytest.fixture
def trained(tmp_path):
    config = GRUByteConfig(hidden_size=32, num_levels=1, add_special_tokens=True)
    model = GRUByteForCausalLM(config)
    randomize_(model, seed=0)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rounded_weights_have_eight_bits_in_every_row(trained, tmp_path):
    round_bytes.main(str(trained), str(tmp_path / "rounded"))
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "rounded"))
    for name, weight in after.items():
        if weight.ndim == 2:
            step = 2.0 ** (torch.frexp(before[name].abs().amax(dim=1, keepdim=True)).exponent - 7)
            whole = weight.double() / step
            assert_close(whole, whole.round(), rtol=0, atol=0)
            assert whole.abs().max() <= 2**7
            assert ((weight - before[name]).abs() <= step / 2).all()


def test_a_rounded_model_is_a_codec(trained, tmp_path):
    round_bytes.main(str(trained), str(tmp_path / "rounded"))
    model = GRUByteForCausalLM.from_pretrained(tmp_path / "rounded").eval()
    assert model.num_parameters() == GRUByteForCausalLM.from_pretrained(trained).num_effective_parameters
    data = LINE.encode() * 5
    assert decompress_bytes(model, compress_bytes(model, data)) == data


def test_rounding_no_model(tmp_path):
    with pytest.raises(SystemExit, match="^round_bytes.py: error: "):
        round_bytes.main(str(tmp_path / "nothing"), str(tmp_path / "rounded"))
    assert not (tmp_path / "rounded").exists()


def run_script(name: str, *arguments: str, **settings: str):
    """Runs a script of run/ with this Python, where env.sh would make an environment if it found none."""
    env = (ROOT / "run/env.sh").read_text()
    source = 'source "$(dirname "$0")/env.sh"'
    script = (ROOT / "run" / name).read_text().replace(source, env[env.index("# GPUs of this node") :])
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script, name, *arguments], cwd=ROOT, env=os.environ | path | settings, check=True)


def test_from_the_corpus_to_the_package(corpus, tmp_path):
    make_bytes_corpus.main(str(corpus))
    settings = {"HIDDEN_SIZE": "32", "SEQUENCE_LENGTH": "16", "BATCH": "2", "STEPS": "2", "NUM_GPUS": "0"}
    settings |= {"CORPUS": str(corpus), "OUT": str(tmp_path / "run"), "WRITE": str(tmp_path / "written")}
    run_script("pretrain_bytes.sh", "--max_eval_samples", "2", **settings)
    model = GRUByteForCausalLM.from_pretrained(tmp_path / "written").eval()
    data = LINE.encode()
    assert decompress_bytes(model, compress_bytes(model, data)) == data
