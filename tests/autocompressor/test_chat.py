"""Conversations in a chat template: as plain generation while they fit, then behind summary vectors of older turns."""

import copy
import io
import json
import re

import pytest
import torch
from modeling_testing import tiny_autocompressor, variable_autocompressor
from torch.testing import assert_close
from transformers import AutoTokenizer, GenerationConfig

from auto_compressor.autocompressor.chat import Chat
from auto_compressor.autocompressor.control_tokens import add_control_tokens
from auto_compressor.cli.main import main
from auto_compressor.files.bundled import BUNDLED_TOKENIZER
from auto_compressor.files.chat_template import render
from auto_compressor.training.arguments import DataTrainingArguments
from auto_compressor.training.data import load_datasets


TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}</{{ message['role'] }}>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPTIONS = {"max_new_tokens": 6, "do_sample": False}
TURNS = ["Who was king in the land?", "And who was his son?", "Tell me more of him.", "Where did they live?"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_autocompressor("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.config.segment_length = 8
    return model


def ids_of(tokenizer, text: str) -> torch.LongTensor:
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def plain_answer(model, tokenizer, ids: torch.LongTensor, **given) -> str:
    generated = model.generate(ids, pad_token_id=tokenizer.eos_token_id, **OPTIONS, **given)[0, ids.shape[1] :]
    return tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_a_conversation_that_fits_is_plain_generation(model, tokenizer):
    chat, messages = Chat(model, tokenizer, system="Be kind.", max_tokens=10**4), []
    messages.append({"role": "system", "content": "Be kind."})
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        pieces = [chat.ids, ids_of(tokenizer, render(tokenizer, messages, asks=True)[len(chat.text) :])]
        expected = plain_answer(model, tokenizer, torch.cat(pieces, dim=1))
        assert chat.answer(turn, **OPTIONS) == expected
        messages.append({"role": "assistant", "content": expected})
    assert chat.messages == messages and chat.softprompt is None
    assert tokenizer.decode(chat.ids[0]) + "</assistant>\n" == render(tokenizer, messages)


THOUGHT = "<think>Hm. Let me see.</think>"
REWRITING = {
    "thoughts of the last message alone": "{{ content if loop.last else content.split('</think>')[-1] }}",
    "thoughts of the last message, empty ones too": (
        "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}{{ content }}"
    ),
    "the number of messages": "{{ messages | length }} {{ content }}",
    "the messages with a time": "{{ strftime_now('%f') }} {{ content }}",
}


@pytest.mark.parametrize("kind", REWRITING)
def test_a_template_that_writes_earlier_messages_otherwise(kind, model, monkeypatch):
    """Each turn is read whole, behind what was read."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    tokenizer.chat_template = TEMPLATE.replace(
        "{{ message['content'] | trim }}", "{% set content = message['content'] %}" + REWRITING[kind]
    )
    monkeypatch.setattr(type(tokenizer), "decode", lambda *args, **kwargs: f"{THOUGHT}Saul.")
    chat = Chat(model, tokenizer, system="Be kind.", max_tokens=10**4)
    for turn in [*TURNS, THOUGHT]:
        before = chat.text
        chat.answer(turn, **OPTIONS)
        assert chat.text.startswith(before) and chat.text.endswith(f"<assistant>{THOUGHT}Saul.")
        said = chat.text[len(before) :].removeprefix("</assistant>\n")
        assert re.search(f"<user>([0-9]+ )?{re.escape(turn)}</user>\n<assistant>{THOUGHT}Saul.$", said)
        assert not before or said.startswith("<user>")


def test_older_turns_become_summary_vectors(model, tokenizer):
    """Whole segments of them, behind the vectors that there are; the last turn is read as it is."""
    chat = Chat(model, tokenizer, max_tokens=40)
    compressed, tokens = torch.empty(1, 0, dtype=torch.long), torch.empty(1, 0, dtype=torch.long)
    for turn in TURNS * 2:
        before = tokens.shape[1]
        messages = [*chat.messages, {"role": "user", "content": turn}]
        new = ids_of(tokenizer, render(tokenizer, messages, asks=True)[len(chat.text) :])
        tokens = torch.cat([tokens, new], dim=1)
        if tokens.shape[1] > 40:
            cut = before // 8 * 8
            compressed, tokens = torch.cat([compressed, tokens[:, :cut]], dim=1), tokens[:, cut:]
        given = {"softprompt": model.compress(compressed)} if compressed.shape[1] else {}
        assert chat.answer(turn, **OPTIONS) == plain_answer(model, tokenizer, tokens, **given)
        tokens = chat.ids
    assert chat.softprompt.shape[1] == 3 * compressed.shape[1] // 8 > 20
    assert chat.ids.shape[1] < 80


PASSES = {
    "llama": {},
    "a window": {"sliding_window": 96},
    "one table": {"base": "opt", "ordinary_summary_positions": True},
    "variable": {},
    "the last vectors": {"accumulate_summary": False},
    "no vectors": {"summary_length": 0},
}


def small(kind: str, tokenizer, positions: int = 96):
    """A model with a context of 96 positions."""
    fields = dict(PASSES[kind], vocab_size=len(tokenizer), max_position_embeddings=positions)
    if kind == "variable":
        tokens = add_control_tokens(tokenizer)
        model = variable_autocompressor("llama", torch.float32, **fields | tokens | {"vocab_size": len(tokenizer)})
    else:
        base = "mistral" if kind == "a window" else fields.pop("base", "llama")
        model = tiny_autocompressor(base, **fields | ({"max_position_embeddings": 512} if base == "mistral" else {}))
    model.config.segment_length = 8
    return model


@pytest.mark.parametrize("kind", PASSES)
def test_a_conversation_without_end(kind, tokenizer, monkeypatch, caplog):
    """No pass is longer than the context, whatever is said, however long; that the oldest is dropped is said once."""
    if kind == "variable":
        tokenizer = copy.deepcopy(tokenizer)
    model, passes = small(kind, tokenizer), []
    chat, whole = Chat(model, tokenizer, system="Be kind."), type(model.model).forward

    def forward(base, *args, **kwargs):
        outputs = whole(base, *args, **kwargs)
        cache = outputs.past_key_values
        passes.append(kwargs["inputs_embeds"].shape[1] if cache is None else cache.get_query_offset())
        return outputs

    monkeypatch.setattr(type(model.model), "forward", forward)
    for turn in [*TURNS, " ".join(TURNS * 4), *TURNS * 3]:
        chat.answer(turn, **OPTIONS)
    accumulates = kind not in ("the last vectors", "no vectors")
    assert max(passes) <= 96 and (max(passes) > 80) == accumulates
    told = [record for record in caplog.records if "the oldest is dropped" in record.getMessage()]
    assert len(told) == (kind != "the last vectors")


def test_the_oldest_is_dropped_and_what_it_is_about_last(tokenizer):
    model = small("llama", tokenizer)
    text = torch.randn(1, 20, model.embedding_dim)
    chat = Chat(model, tokenizer, softprompt=text)
    chat.softprompt = torch.cat([text, turns := torch.randn(1, 30, model.embedding_dim)], dim=1)
    for room, expected in [(60, (20, 30)), (45, (20, 25)), (21, (20, 1)), (20, (20, 0)), (5, (5, 0)), (-1, (0, 0))]:
        chat.keep(room)
        parts = [part[:, part.shape[1] - count :] for part, count in zip((text, turns), expected, strict=True)]
        assert_close(chat.softprompt, torch.cat(parts, dim=1))


def test_the_system_prompt_can_be_compressed(model, tokenizer):
    chat = Chat(model, tokenizer, system=" Be kind and short. ", compress_system=True)
    assert chat.text == "<system>Be kind and short." and chat.ids.shape[1] == 0
    assert_close(chat.softprompt, model.compress(ids_of(tokenizer, chat.text)))
    vectors, text = chat.softprompt, ids_of(tokenizer, "</system>\n<user>Hi</user>\n<assistant>")
    assert chat.answer("Hi", **OPTIONS) == plain_answer(model, tokenizer, text, softprompt=vectors)


def test_a_conversation_about_a_text(model, tokenizer):
    softprompt = model.compress(ids_of(tokenizer, "In the beginning there was a king in the land."))
    text = ids_of(tokenizer, "<user>Who?</user>\n<assistant>")
    answer = Chat(model, tokenizer, softprompt=softprompt).answer("Who?", **OPTIONS)
    assert answer == plain_answer(model, tokenizer, text, softprompt=softprompt)
    assert answer != Chat(model, tokenizer).answer("Who?", **OPTIONS)


@pytest.mark.parametrize(("beyond", "num_new"), [(30, 30), (200, 48), (-5, 20)])
def test_the_length_of_text_and_answer(beyond, num_new, tokenizer):
    """`max_length` counts the text too; the answer gets 20 tokens at least, and half of the context at most."""
    model = small("llama", tokenizer)
    expected = Chat(model, tokenizer).answer(TURNS[0], max_new_tokens=num_new, do_sample=False)
    length = beyond + ids_of(tokenizer, f"<user>{TURNS[0]}</user>\n<assistant>").shape[1]
    assert Chat(model, tokenizer).answer(TURNS[0], max_length=length, do_sample=False) == expected
    options = {"generation_config": GenerationConfig(max_length=length, do_sample=False)}
    assert Chat(model, tokenizer).answer(TURNS[0], **options) == expected
    model.generation_config.max_length = length
    chat = Chat(model, tokenizer)
    assert chat.answer(TURNS[0], do_sample=False, return_dict_in_generate=True) == expected
    for turn in TURNS:
        chat.answer(turn, do_sample=False)


def test_bad_input(model, tokenizer):
    plain = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        Chat(model, plain).answer("Hi")
    with pytest.raises(ValueError, match="`max_tokens` must be 1 or more, got 0"):
        Chat(model, tokenizer, max_tokens=0)
    for system in (None, "", "  "):
        with pytest.raises(ValueError, match=f"`compress_system` needs a `system` prompt, got {system!r}"):
            Chat(model, tokenizer, system=system, compress_system=True)
    with pytest.raises(ValueError, match="`compress_system` needs a model that makes summary vectors"):
        Chat(small("no vectors", tokenizer), tokenizer, system="Be kind.", compress_system=True)
    with pytest.raises(ValueError, match="`max_new_tokens` must be half of the model's context of 512 .* got 257"):
        Chat(model, tokenizer).answer("Hi", max_new_tokens=257)
    plain.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(ValueError, match="does not take these messages: no users here"):
        Chat(model, plain).answer("Hi")
    every = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    plain.chat_template = "{{ messages[1]['content'] }}" + every
    with pytest.raises(ValueError, match="write the system prompt the same whatever follows"):
        Chat(model, plain, system="Be kind.", compress_system=True).answer("Hi")
    plain.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="must write the last answer as it is"):
        Chat(model, plain)
    plain.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="writes the system prompt as it is"):
        Chat(model, plain, system="Be kind.", compress_system=True)


def test_a_failure_leaves_the_conversation_as_it_was(model, tokenizer):
    chat = Chat(model, tokenizer, max_tokens=40)
    for turn in TURNS:
        chat.answer(turn, **OPTIONS)
    state = (list(chat.messages), chat.text, chat.ids.tolist(), chat.softprompt)
    with pytest.raises(ValueError):
        chat.answer("Hi", max_new_tokens=0)
    assert (chat.messages, chat.text, chat.ids.tolist(), chat.softprompt) == state
    assert chat.answer("Hi", **OPTIONS) is not None


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_generate(model, tokenizer, folder, capsys, monkeypatch):
    command = ["generate", "--model", folder, "--chat", "--max-new-tokens", "6", "--system", "Be kind."]
    chat = Chat(model, tokenizer, system="Be kind.")
    answers = [chat.answer(turn, **OPTIONS) for turn in TURNS]
    assert main([*command, "--prompt", TURNS[0]]) == 0
    assert capsys.readouterr().out == answers[0] + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TURNS).encode())))
    assert main([*command, "--prompt", "-"]) == 0
    assert capsys.readouterr().out == "\n".join(answers) + "\n"
    assert main(["generate", "--model", folder, "--prompt", "Hi", "--system", "x"]) == 1
    assert "--system needs --chat" in capsys.readouterr().err


# Training


def conversation(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": "In the beginning. " * 5}]


def load(path, tokenizer, **options):
    """Blocks of one token: a stream comes in another order."""
    data_args = DataTrainingArguments(train_file=[str(path)], validation_split_percentage=0, **options)
    return load_datasets(data_args, tokenizer, 1, cache_dir=str(path.parent / "cache"))


@pytest.mark.parametrize("add_special_tokens", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_are_trained_on_in_the_template(tokenizer, streaming, add_special_tokens, tmp_path):
    """And with no special tokens but those of the template."""
    path, messages = tmp_path / "chat.jsonl", [conversation(index) for index in range(6)]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    rows, _ = load(path, tokenizer, text_column="messages", streaming=streaming, add_special_tokens=add_special_tokens)
    found = [token for row in rows for token in row["input_ids"]]
    expected = [token for each in messages for token in ids_of(tokenizer, render(tokenizer, each))[0].tolist()]
    assert sorted(found) == sorted(expected)
    if not streaming:
        assert found == expected


def test_conversations_without_a_template(tokenizer, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": conversation(0)}) + "\n")
    with pytest.raises(ValueError, match="holds conversations, the tokenizer has no chat template"):
        load(path, AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER), text_column="messages")
    path.write_text(json.dumps({"messages": [1, 2]}) + "\n")
    with pytest.raises(ValueError, match="must hold strings or conversations"):
        load(path, tokenizer, text_column="messages")
