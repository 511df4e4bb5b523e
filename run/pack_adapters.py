"""Puts adapters that run/pretrain_smollm2.sh trained into the package, in half precision.

    python run/pack_adapters.py checkpoints/smollm2_...    # a run, or one of its checkpoints

Names of folders on this machine are left out: `auto_compressor.files.bases` writes those of the one that loads them.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from auto_compressor.files.bundled import BUNDLED_SMOLLM2_ADAPTERS
from auto_compressor.files.whole_files import write_whole


MOST_BYTES = 10_000_000
CONFIGS = {
    "config.json": {"_model_name_or_path": "smollm2", "auto_map": None},
    "adapter_config.json": {"base_model_name_or_path": "smollm2"},
}


def packed_weights(path: Path) -> bytes:
    """The tensors of a file in float16; a `ValueError` if one does not fit its range, or all are too large to ship."""
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
    if not all(tensor.isfinite().all() for tensor in halves.values()):
        raise ValueError(f"{path} must fit the range of float16.")
    packed = save(halves, {"format": "pt"})
    if len(packed) > MOST_BYTES:
        raise ValueError(f"{path} must have {MOST_BYTES:,} bytes at most in float16, it has {len(packed):,}.")
    return packed


def packed_config(path: Path, changes: dict[str, str | None]) -> bytes:
    """A config with other values of some keys, and without those whose value is `None`."""
    config = json.loads(path.read_text()) | changes
    return json.dumps({key: value for key, value in config.items() if value or key not in changes}, indent=2).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, help="what the training wrote")
    parser.add_argument("--output_dir", type=Path, default=BUNDLED_SMOLLM2_ADAPTERS)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    files = {name: packed_config(args.adapters / name, changes) for name, changes in CONFIGS.items()}
    files["adapter_model.safetensors"] = packed_weights(args.adapters / "adapter_model.safetensors")
    for name, data in files.items():
        write_whole(args.output_dir / name, data)
        print(f"{args.output_dir / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
