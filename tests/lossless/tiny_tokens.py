"""Tokenizers and models of a few hundred tokens, made on the spot."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT


CORPUS = BUNDLED_TRAIN_TEXT.read_text(encoding="utf-8")[:100_000]
VOCAB_SIZE = 600
END = "<|endoftext|>"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCAB_SIZE}


def trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=256,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """As that of GPT-2: every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, [END], sorted(pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def pieces(special: list[str], byte_fallback: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return trained(tokenizer, special, [])


def sentencepiece() -> PreTrainedTokenizerFast:
    """As that of Llama 2: a space in front of every text, and bytes for what is no piece."""
    special = ["<unk>", "<s>", *(f"<0x{value:02X}>" for value in range(256))]
    tokenizer = pieces(special, byte_fallback=True)
    tokenizer = without_added(tokenizer, keep=2)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def without_added(tokenizer: Tokenizer, keep: int) -> Tokenizer:
    """The tokens behind the first ones are no added tokens, but pieces."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:keep]
    return Tokenizer.from_str(json.dumps(state))


def without_bytes() -> PreTrainedTokenizerFast:
    """Lower case, composed characters and no bytes: much of a text does not come back."""
    tokenizer = pieces(["<unk>", "<s>"], byte_fallback=False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), tokenizer.normalizer])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.add_tokens([AddedToken("In the", special=False, lstrip=True)])
    return fast


TOKENIZERS = {"byte-level": byte_level, "SentencePiece": sentencepiece, "without bytes": without_bytes}


def make_llama(seed: int = 0, **kwargs) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = SIZES | {"num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": VOCAB_SIZE + 40}
    return LlamaForCausalLM(LlamaConfig(initializer_range=0.3, **(sizes | kwargs))).eval()


def make_opt(**kwargs) -> OPTForCausalLM:
    torch.manual_seed(0)
    sizes = SIZES | {"ffn_dim": 16, "word_embed_proj_dim": 16, "init_std": 0.3, "vocab_size": VOCAB_SIZE + 40}
    return OPTForCausalLM(OPTConfig(**(sizes | kwargs))).eval()
