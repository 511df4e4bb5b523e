"""A training step of this build beside the published AutoCompressors code, in an environment of its own.

    git clone https://github.com/princeton-nlp/AutoCompressors published
    python -m venv old && old/bin/pip install torch==2.13.0 "transformers==4.34.*" "numpy<2" rich
    python benchmarks/published.py --published published --python old/bin/python

The model is an OPT with equal weights on both sides, without dropout, the text 4 rows of 2 x 256 tokens. The sides
take turns, on one thread; seconds are those of the CPU. Both environments should have the same torch, so that the code
alone differs.
"""

import argparse
import importlib.util
import inspect
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
import transformers

from measuring import print_table
from speed import OPT, ROOT, SUMMARY_LENGTH, VOCABULARY, Side, serve


SEGMENT_LENGTH = 256
FLASH = ("flash_attn", "flash_attn.bert_padding", "flash_attn.layers", "flash_attn.layers.rotary")


def make_model() -> transformers.PreTrainedModel:
    """The model of the code that PYTHONPATH leads to, with the same weights for either."""
    if importlib.util.find_spec("modeling_flash_llama"):  # the published Llama, which is not asked for here
        sys.modules.update({name: MagicMock() for name in FLASH})
    from auto_compressor import OPTAutoCompressorModel

    fields = {"summary_length": SUMMARY_LENGTH, "accumulate_summary": True, "dropout": 0.0}
    model = OPTAutoCompressorModel(OPTAutoCompressorModel.config_class(**OPT, **fields)).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.normal_(std=0.02)
        model.model.decoder.embed_positions.weight[1] = 0  # where summary vectors stand
    return model


def make_step() -> Callable[[], float]:
    """A forward and a backward pass, which return the loss."""
    model, ids = make_model(), torch.randint(3, VOCABULARY, (4, 2 * SEGMENT_LENGTH))
    options = {"skip_logits": True} if "skip_logits" in inspect.signature(model.forward).parameters else {}

    def step() -> float:
        model.zero_grad()
        loss = model(ids, labels=ids, segment_lengths=SEGMENT_LENGTH, use_cache=False, **options).loss
        loss.backward()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder of a clone")
    parser.add_argument("--python", default=sys.executable, help="that of its environment (default: this one)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(make_step)
    sides = {"today": Side([sys.executable, __file__, "--serve"], ROOT)}
    sides["published"] = Side([args.python, __file__, "--serve"], args.published)
    rounds = [{name: side.ask("run") for name, side in sides.items()} for _ in range(args.repeats + 1)][1:]
    rows = []
    for name, side in sides.items():
        ratios = [times["today"] / times[name] for times in rounds]
        row = {"side": name, "loss": side.ask("value"), "CPU seconds": statistics.median(t[name] for t in rounds)}
        row |= {"today / side": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        rows.append(row | {"peak MB": side.ask("memory") / 1e6})
        side.close()
    print_table("a training step on 4 rows of 2 x 256 tokens, one thread", rows)


if __name__ == "__main__":
    main()
