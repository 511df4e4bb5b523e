"""Rounds a trained GRU byte model to 8 bits a weight, as the package has it: run/pretrain_bytes.sh starts it."""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from auto_compressor import GRUByteConfig, GRUByteForCausalLM
from auto_compressor.files.whole_files import write_whole


ROW_BITS = 7  # and the sign


def round_rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight `(rows, columns)` in multiples of a power of two for each row, which bfloat16 holds as they are."""
    exponents = ROW_BITS - torch.frexp(weight.abs().amax(dim=1, keepdim=True)).exponent  # (rows, 1)
    return torch.ldexp(torch.ldexp(weight, exponents).round(), -exponents).bfloat16()


def write_rounded(source: Path, output: Path):
    """Writes config and weights, without the parameters that do nothing."""
    model = GRUByteForCausalLM.from_pretrained(source)
    fields = model.config.to_dict() | {"num_padding_parameters": 0, "dtype": "float32"}
    fields.pop("auto_map", None)  # its code is that of the package
    config = GRUByteConfig(**fields)
    weights = {name: value for name, value in model.state_dict().items() if name != "padding_parameters"}
    rounded = {name: round_rows(value) if value.ndim == 2 else value for name, value in weights.items()}
    output.mkdir(parents=True, exist_ok=True)
    stored = save(rounded | {"padding_parameters": torch.empty(0)}, {"format": "pt"})
    write_whole(output / "model.safetensors", stored)
    config.to_json_file(output / "config.json")


def main(*arguments: str):
    parser = argparse.ArgumentParser(prog="round_bytes.py", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a trained model")
    parser.add_argument("output", type=Path, help="folder to write config.json and model.safetensors in")
    args = parser.parse_args(arguments)
    try:
        write_rounded(args.source, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"round_bytes.py: error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
