"""Which recipe makes SmolLM2 read summary vectors soonest? Short trainings of equal tokens, a choice away from a base.

    bash run/make_corpus.sh
    python benchmarks/recipes.py --jobs 2          # two CPU threads, hours; killed, it goes on where it was

Every row is a run of `run/pretrain_smollm2.sh`; then it predicts held-out passages, see `passages.py`. Writes
`recipes.csv` to --output_dir; rows that are measured already are not measured again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from measuring import print_table, write_rows


ROOT = Path(__file__).parents[1]
# What the rows have in common; the script's own defaults are those of the recipe that was chosen.
SIX = {"SEGMENTS": "64 64 64 64 64 64", "SUM": "8", "NESTED": "false", "DISTIL": "0", "RANK": "16"}
PLAIN = SIX | {"RESIDUAL": "false"}
PAIR = SIX | {"SEGMENTS": "256 128", "SUM": "32"}
# name of the row -> variables of run/pretrain_smollm2.sh, with further arguments of train.py under ARGUMENTS
RECIPES = {
    "tokens, as they are": PLAIN | {"SOURCE": "tokens", "SCALE": ""},
    "tokens, learned scale": PLAIN | {"SOURCE": "tokens"},
    "means, learned scale": PLAIN,
    "both, learned scale": PLAIN | {"SOURCE": "both"},
    "means, + distillation": PLAIN | {"DISTIL": "1"},
    "means, + reconstruction": PLAIN | {"ARGUMENTS": "--reconstruction_weight 1"},
    "means, short segments": PLAIN | {"SEGMENTS": "32 " * 12, "SUM": "4"},
    "means, long segments": PLAIN | {"SEGMENTS": "128 128 128", "SUM": "16"},
    "means, all weights": PLAIN | {"RANK": "0", "LR": "1e-4"},
    "means, normalized": PLAIN | {"SCALE": "normalized"},
    "means, as they are": PLAIN | {"SCALE": ""},
    "means, rank 4": PLAIN | {"RANK": "4"},
    "means, + all objectives": PLAIN | {"DISTIL": "1", "ARGUMENTS": "--reconstruction_weight 1"},
    "residual means": PAIR,
    "residual tokens": PAIR | {"SOURCE": "tokens"},
    "residual means, + distillation": PAIR | {"DISTIL": "1"},
    "residual means, any ratio": PAIR | {"SUM": "64", "NESTED": "true"},
    "residual means, short segments": SIX,
}


def train(name: str, folder: Path, args: argparse.Namespace):
    """Trains a row, or goes on with it."""
    recipe = dict(RECIPES[name])
    further = recipe.pop("ARGUMENTS", "").split()
    variables = {"CORPUS": str(args.corpus), "TOKENS": str(args.tokens), "NUM_GPUS": "0", "OUT": str(folder)} | recipe
    environment = os.environ | variables | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    command = ["bash", "run/pretrain_smollm2.sh", "--disable_tqdm", "true", *further]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, args: argparse.Namespace) -> list[dict]:
    command = [
        sys.executable,
        str(ROOT / "benchmarks/passages.py"),
        "--model",
        str(folder),
        "--corpus",
        str(args.corpus),
    ]
    command += ["--passages", str(args.passages), "--ratios", "8", "--no-baselines", "--output_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "passages.json").read_text())["rows"]


def row_of(name: str, args: argparse.Namespace) -> dict:
    """The row of a recipe: what it was measured to be, or trained and measured now."""
    folder = args.output_dir / "recipes" / name.replace(",", "").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "all_results.json").exists():
        train(name, folder, args)
    if not (folder / "passages.json").exists():
        measure(folder, args)
    rows = json.loads((folder / "passages.json").read_text())["rows"]
    found = {row["context"]: row for row in rows if row["domain"] == "all"}
    vectors, control = found["summary vectors, 8x"], found["vectors of another text, 8x"]
    trained = json.loads((folder / "all_results.json").read_text())
    return {
        "recipe": name,
        "no context": found["no context"]["nats"],
        "vectors, 8x": vectors["nats"],
        "of another text": control["nats"],
        "last 32 tokens": found["last 32 tokens"]["nats"],
        "full context": found["full context (base)"]["nats"],
        "gap %": vectors["gap %"],
        "gap low": vectors["gap low"],
        "gap high": vectors["gap high"],
        "control %": control["gap %"],
        "train s": trained["train_runtime"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens of each training")
    parser.add_argument("--passages", type=int, default=60, help="passages of each domain")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/benchmarks"))
    args = parser.parse_args()
    args.corpus, args.output_dir = args.corpus.resolve(), args.output_dir.resolve()
    rows = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(row_of, name, args): name for name in args.only}
        for done in as_completed(futures):
            rows[futures[done]] = done.result()
            known = [rows[name] for name in args.only if name in rows]
            print_table(f"{args.tokens:,} tokens each; nats per token of the next 64 after 256", known)
            write_rows(known, args.output_dir / "recipes.csv")


if __name__ == "__main__":
    main()
