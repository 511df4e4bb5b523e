"""The tokenizer of raw bytes."""

import copy
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from auto_compressor.hierarchical_autoencoder import tensors
from auto_compressor.tokenization_bytes import NUM_BYTES, SPECIAL_TOKENS, ByteTokenizer


TEXTS = [
    "",
    "  two spaces , on both sides .  ",
    "line\r\nline\rline\n\n\ttab\n",
    "NUL \x00, escape \x1b, no-break space \xa0, byte order mark \ufeff",
    "日本語、中文 and 한국어",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301",
    "a<|endoftext|>b <|pad|> <|bos|>",
]
TOKENIZER = ByteTokenizer()


class ByteConfig(PreTrainedConfig):
    model_type = "bytes_of_the_tokenizer_test"


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_ids():
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, TOKENIZER.bos_token_id) == (256, 257, 258)
    assert TOKENIZER.vocab_size == len(TOKENIZER) == 259
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(259))
    assert TOKENIZER.special_tokens_map == SPECIAL_TOKENS


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_bytes(text):
    assert ids_of(text) == list(text.encode())
    assert TOKENIZER.decode(ids_of(text)) == TOKENIZER.decode(ids_of(text), clean_up_tokenization_spaces=True) == text
    assert TOKENIZER.convert_tokens_to_string(TOKENIZER.tokenize(text)) == text


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_decode_undoes_encode(text):
    assert TOKENIZER.decode(ids_of(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


@given(st.binary())
@settings(max_examples=200, deadline=None)
def test_a_file_that_is_no_text(data):
    ids = ids_of(data.decode("utf-8", "surrogateescape"))
    assert ids == list(data)
    assert TOKENIZER.decode_bytes(ids) == TOKENIZER.decode_bytes(torch.tensor(ids, dtype=torch.long)) == data
    assert TOKENIZER.decode(ids) == data.decode("utf-8", "replace")


@given(st.lists(st.integers(0, 258)))
@settings(max_examples=200, deadline=None)
def test_every_list_of_ids_has_a_text(ids):
    data = bytes(index for index in ids if index < 256)
    assert TOKENIZER.decode_bytes(ids) == data
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == data.decode("utf-8", "replace")
    assert TOKENIZER.decode(ids) == TOKENIZER.convert_tokens_to_string(TOKENIZER.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("surrogate", ["\ud800", "\udc7f", "\udd00", "\udfff"])
def test_a_surrogate_that_is_no_byte_is_refused(surrogate):
    with pytest.raises(ValueError, match=rf"`text` must have no surrogates .*'\\u{ord(surrogate):x}' at position 2"):
        TOKENIZER("ab" + surrogate)


@pytest.mark.parametrize("ids", [[1, 259], [-100], torch.tensor([65, 300]), [[65]], [65.5], [None]])
def test_what_is_no_id_is_refused(ids):
    with pytest.raises(ValueError, match="`ids` must be integers from 0 to 258, got"):
        TOKENIZER.decode_bytes(ids)


def test_special_tokens():
    assert TOKENIZER("ab").input_ids == [97, 98, 256]
    assert TOKENIZER("ab", add_special_tokens=False).input_ids == [97, 98]
    assert TOKENIZER("a", "b").input_ids == [97, 256, 98, 256]
    assert TOKENIZER("abcd", truncation=True, max_length=3).input_ids == [97, 98, 256]
    assert TOKENIZER("ab", return_special_tokens_mask=True).special_tokens_mask == [0, 0, 1]
    assert TOKENIZER("a<|pad|>", split_special_tokens=False).input_ids == [97, 257, 256]
    ids = torch.tensor([258, 97, 256, 257])
    assert TOKENIZER.decode(ids) == "<|bos|>a<|endoftext|><|pad|>"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    tokenizer = ByteTokenizer(padding_side=side)
    batch = tokenizer(["é", "a"], padding=True, return_tensors="pt")
    padded = {"left": [257, 97, 256], "right": [97, 256, 257]}[side]
    assert batch.input_ids.tolist() == [[195, 169, 256], padded]
    assert torch.equal(batch.attention_mask, (batch.input_ids != 257).long())
    assert list(batch) == ["input_ids", "attention_mask"]
    assert tokenizer.decode(batch.input_ids, skip_special_tokens=True) == ["é", "a"]


def test_added_tokens_come_after_the_special_ones():
    tokenizer = ByteTokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<sum>"]})
    assert (tokenizer.convert_tokens_to_ids("<sum>"), len(tokenizer), tokenizer.vocab_size) == (259, 260, 259)
    assert tokenizer("<sum>").input_ids == [*b"<sum>", 256]
    assert (tokenizer.decode([97, 259]), tokenizer.decode_bytes([97, 259])) == ("a<sum>", b"a")
    assert tokenizer.decode([97, 259], skip_special_tokens=True) == "a"


def saved_and_loaded(tokenizer, path):
    tokenizer.save_pretrained(path)
    # Its code lies beside it as soon as a model that it belongs to is registered.
    assert {"tokenizer_config.json"} <= set(os.listdir(path)) <= {"tokenizer_config.json", "tokenization_bytes.py"}
    return ByteTokenizer.from_pretrained(path)


def loaded_by_its_config(tokenizer, path):
    AutoConfig.register(ByteConfig.model_type, ByteConfig, exist_ok=True)
    AutoTokenizer.register(ByteConfig, tokenizer_class=ByteTokenizer, exist_ok=True)
    ByteConfig().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def pickled(tokenizer, path):
    return pickle.loads(pickle.dumps(tokenizer))


def copied(tokenizer, path):
    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize("again", [saved_and_loaded, loaded_by_its_config, pickled, copied])
def test_round_trip(again, tmp_path):
    tokenizer = again(ByteTokenizer(eos_token="</s>", padding_side="left"), tmp_path)
    assert type(tokenizer) is ByteTokenizer and len(tokenizer) == 259
    assert tokenizer.special_tokens_map == SPECIAL_TOKENS | {"eos_token": "</s>"}
    assert tokenizer(["a</s>", "b"], padding=True).input_ids == [[*b"a</s>", 256], [257] * 4 + [98, 256]]
    assert tokenizer.decode([97, 256]) == "a</s>"


def test_the_autoencoder_knows_as_many_bytes():
    """Its files are pushed to the hub without the tokenizer's, and have the number themselves."""
    assert tensors.NUM_BYTES == NUM_BYTES
