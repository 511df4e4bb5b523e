"""Puts what was trained for SmolLM2 into the package, in half precision: adapters, or a compressor of its cache.

    python run/pack_bundled.py checkpoints/smollm2_...          # a run of run/pretrain_smollm2.sh, or its checkpoint
    python run/pack_bundled.py checkpoints/cache_smollm2_...    # a run of run/train_activation.sh

Names of folders on this machine are left out: `auto_compressor.files.bases` writes those that adapters need.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from auto_compressor.autocompressor.adapters import base_name, is_adapter
from auto_compressor.files.bundled import BUNDLED_SMOLLM2_ADAPTERS, BUNDLED_SMOLLM2_CACHE
from auto_compressor.files.loading import config_in
from auto_compressor.files.whole_files import write_whole


MOST_BYTES = 10_000_000
BASE_KEYS = {"_model_name_or_path", "base_model_name_or_path", "base_name_or_path"}
DESTINATIONS = {"adapter_model.safetensors": BUNDLED_SMOLLM2_ADAPTERS, "model.safetensors": BUNDLED_SMOLLM2_CACHE}


def packed_weights(path: Path) -> bytes:
    """The tensors of a file in float16; a `ValueError` if one does not fit its range, or all are too large to ship."""
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
    if not all(tensor.isfinite().all() for tensor in halves.values()):
        raise ValueError(f"{path} must fit the range of float16.")
    packed = save(halves, {"format": "pt"})
    if len(packed) > MOST_BYTES:
        raise ValueError(f"{path} must have {MOST_BYTES:,} bytes at most in float16, it has {len(packed):,}.")
    return packed


def packed_config(path: Path) -> bytes:
    """A config with `smollm2` as its base, and without the classes of code beside it."""
    config = {key: "smollm2" if key in BASE_KEYS else value for key, value in json.loads(path.read_text()).items()}
    config.pop("auto_map", None)
    return json.dumps(config, indent=2).encode()


def base_of(folder: Path) -> str | None:
    """The name of the model that adapters, or a compressor of caches, in a folder were trained for; None of others."""
    if is_adapter(str(folder)):
        return base_name(str(folder))
    config = config_in(folder)
    return config.get("base_name_or_path") if config.get("model_type") == "activation_compressor" else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="folder that the training wrote")
    parser.add_argument("--output_dir", type=Path, help="default: the folder of the package for what it is")
    args = parser.parse_args()
    weights = next((name for name in DESTINATIONS if (args.trained / name).exists()), None)
    if weights is None:
        parser.error(f"{args.trained} must have one of {', '.join(DESTINATIONS)}.")
    if Path(base_of(args.trained) or "").name != "smollm2":
        parser.error(f"{args.trained} must have adapters or an activation_compressor that were trained for smollm2.")
    output_dir = args.output_dir or DESTINATIONS[weights]
    output_dir.mkdir(parents=True, exist_ok=True)
    configs = [name for name in ("config.json", "adapter_config.json") if (args.trained / name).exists()]
    files = {name: packed_config(args.trained / name) for name in configs}
    files[weights] = packed_weights(args.trained / weights)
    for name, data in files.items():
        write_whole(output_dir / name, data)
        print(f"{output_dir / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
