"""`--bf16` on a CPU, two steps of every family: it trains, and the loss is near that of float32."""

import pytest
from train_testing import losses_in
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from auto_compressor.files.bundled import BUNDLED_TOKENIZER


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "fixed": "--model_name_or_path {base} --segment_lengths 16 16 --summary_length 4",
    "variable": "--model_name_or_path {base} --segment_lengths 16 16 --compression_max_len 3",
    "full attention": "--model_name_or_path {base} --block_size 32 --full_attention",
    "hierarchical": "--model_type hierarchical_autoencoder --hidden_size 16 --intermediate_size 24 --block_size 64",
    "adaptive": "--model_type adaptive_byte --hidden_size 16 --sequence_length 32",
    "gru": "--model_type gru_byte --hidden_size 16 --sequence_length 32",
    "chunk": "--model_type continuous_text_autoencoder --architecture chunk --hidden_size 32 --block_size 32",
    "conv": "--model_type continuous_text_autoencoder --architecture conv --hidden_size 32 --block_size 32",
    "activation": "--model_type activation_compressor --model_name_or_path {base} --max_length 64"
    " --continuation_length 16 --num_sinks 2 --recent_window 4 --compression_ratio 3",
    "activation, base too": "--model_type activation_compressor --model_name_or_path {base} --max_length 64"
    " --continuation_length 16 --num_sinks 2 --recent_window 4 --compression_ratio 3 --freeze_base false",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("base"), AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**SIZES, **special, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_trains_near_float32(family, base, main, tmp_path):
    arguments = [*FAMILIES[family].format(base=base).split(), "--do_train", "--do_eval", "--max_steps", 2]
    exact = losses_in(main(*arguments, output_dir=tmp_path / "float32"))
    half = losses_in(main(*arguments, "--bf16", output_dir=tmp_path / "bf16"))
    assert [row["step"] for row in half] == [1, 2]
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in exact], rel=0.05)
