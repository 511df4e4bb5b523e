#!/usr/bin/env bash
# transformers 5.24.0, gguf 0.19.0: the tokenizer of a GGUF file whose `tokenizer.ggml.pre` is "smollm".
# A good guess: the rule that the file names is used, as it is for "qwen2". SmolLM makes every digit a word.
# Seen: the name is not known, and GPT-2's rule is used without a warning: numbers become other tokens than the model
#     was trained with.
# Ours: digits are split one by one, tests/test_bases.py::test_digits_are_split_one_by_one
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 gguf==0.19.0

python - <<'PYTHON'
import sys

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer


TEXT = "In 1234"
TOKENS = [*sorted(ByteLevel.alphabet()), "12", "34", "1234", "<|endoftext|>"]


def tokenize(rule):
    """By the tokenizer of a whole small file: a Llama of one layer, whose merges make one token of 1234."""
    writer = gguf.GGUFWriter(f"{rule}.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["1 2", "3 4", "12 34"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_tensor("token_embd.weight", np.zeros((len(TOKENS), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(".", gguf_file=f"{rule}.gguf").tokenize(TEXT)


found = {rule: tokenize(rule) for rule in ("qwen2", "smollm", "gpt-2")}
for rule, tokens in found.items():
    print(f"{rule}: {tokens}")
if not (found["qwen2"][-4:] == [*"1234"] and found["smollm"] == found["gpt-2"] and found["smollm"][-1] == "1234"):
    sys.exit("The behaviour changed.")
PYTHON
