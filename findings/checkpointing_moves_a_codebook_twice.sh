#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0 under the activation checkpointing of torch 2.13.0.
# A good guess: checkpointing saves memory and changes no number.
# Seen: the backward pass runs the quantiser again, and that moves the codebook a second time. Its counts and codes
#     are not those of a plain step, and the gradients belong to codes that had moved, not to the loss that was
#     returned.
# Ours: outputs and gradients stay the same, tests/modeling_testing.py::test_gradient_checkpointing
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 vector-quantize-pytorch==1.32.0

python - <<'PYTHON'
import sys

import torch
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import VectorQuantize


def step(checkpointing):
    torch.manual_seed(0)
    encoder, quantizer = torch.nn.Linear(8, 8), VectorQuantize(dim=8, codebook_size=4, decay=0.9)
    vectors = torch.randn(2, 16, 8)

    def forward(vectors):
        return quantizer(encoder(vectors))

    quantized, _, commitment = checkpoint(forward, vectors, use_reentrant=False) if checkpointing else forward(vectors)
    loss = quantized.square().mean() + commitment.sum()
    loss.backward()
    return loss.detach(), quantizer._codebook.cluster_size, quantizer.codebook, encoder.weight.grad


names = ("loss", "counts", "codes", "gradient")
pairs = zip(names, step(False), step(True), strict=True)
off = {name: (plain - again).abs().max().item() for name, plain, again in pairs}
print("with and without checkpointing differ by", {name: float(f"{value:.2g}") for name, value in off.items()})
if not (off["loss"] == 0 and all(off[name] > 1e-3 for name in names[1:])):
    sys.exit("The behaviour changed.")
PYTHON
