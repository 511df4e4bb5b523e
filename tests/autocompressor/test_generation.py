"""`generate` after summary vectors: cached or not, in batches, with beams, drafts, streams, saved models and LoRA."""

import pytest
import torch
from modeling_testing import (
    AUTOCOMPRESSORS,
    CLOSE,
    DOUBLE,
    EXACT,
    all_autocompressors,
    both_families,
    gradients,
    opt_and_llama,
    pad_rows,
    random_ids,
    random_softprompt,
    randomize_,
    select_row,
    tensors_of,
    tiny_autocompressor,
    tiny_base,
)
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextStreamer

from auto_compressor import SoftpromptCache
from auto_compressor.cache_names import cache_of
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


# PEFT asks by the name that 5.17 knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")

NEW = 8
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
BEAMS = {"do_sample": False, "max_new_tokens": NEW, "num_beams": 3}


def never_ending(model):
    """No token ends the text or counts as padding: where one came up by chance, it would hide what comes after."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, None
    return model


def generator(name, **fields):
    """A tiny model in float64, whose greedy choice does not hang on rounding."""
    return never_ending(tiny_autocompressor(name, torch.float64, **fields))


def plain_generator(name, like=None, seed=0):
    """A plain base model, with the weights of `like` if given."""
    base = tiny_base(name, seed=seed).to(torch.float64)
    if like is not None:
        base.load_state_dict({key: value for key, value in like.state_dict().items() if "embed_summary" not in key})
    return never_ending(base)


@torch.no_grad()
def greedy_loop(model, ids, attention_mask=None, segment_lengths=None, steps=NEW, **kwargs):
    """The definition of greedy generation: the whole text again at every step."""
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    earlier = [] if segment_lengths is None else segment_lengths[:-1]
    for _ in range(steps):
        segments = {"segment_lengths": earlier + [ids.shape[1] - sum(earlier)]} if earlier else {}
        logits = model(ids, attention_mask=mask, use_cache=False, **segments, **kwargs).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids


def softprompts(model, given, batch_size):
    if given is None:
        return {}
    softprompt = random_softprompt(model, batch_size, 4)
    if given == "plain":
        return {"softprompt": softprompt}
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]])[:batch_size]
    return {"softprompt": softprompt, "softprompt_attention_mask": mask}


def prompts(padded=True):
    """Three prompts of 9 tokens, or of 9, 4 and 6 with padding on the left."""
    lengths = (9, 4, 6) if padded else (9, 9, 9)
    return pad_rows([random_ids(1, length, seed=index) for index, length in enumerate(lengths)], "left")


with_softprompts = pytest.mark.parametrize("given", [None, "plain", "masked"])


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, 4, [3, 2, 4]], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_greedy(name, given, segment_lengths, padded):
    model = generator(name)
    ids, mask = prompts(padded)
    if padded and segment_lengths is not None:
        # Padding in every segment, never a whole one.
        mask = torch.tensor([[1] * 9, [0, 1, 1, 0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1, 1, 1]])
    kwargs = softprompts(model, given, 3) | {"attention_mask": mask}
    resolved = [4, 4, 1] if segment_lengths == 4 else segment_lengths
    expected = greedy_loop(model, ids, segment_lengths=resolved, **kwargs)
    kwargs |= GREEDY | {"segment_lengths": segment_lengths}
    assert torch.equal(model.generate(ids, **kwargs), expected)
    assert torch.equal(model.generate(ids, use_cache=False, **kwargs), expected)
    assert torch.equal(model.generate(input_ids=ids, **kwargs), expected)
    assert not torch.equal(expected[0, 9:], expected[1, 9:])
    if not padded:
        kwargs.pop("attention_mask")
        assert torch.equal(model.generate(ids, **kwargs), expected)


@both_families
def test_softprompt_and_segments_matter(name):
    """What the equalities above rest on: the conditions change the tokens."""
    model, ids = generator(name), random_ids(1, 9)
    softprompt = random_softprompt(model, 1, 4)
    calls = [
        {},
        {"softprompt": softprompt},
        {"softprompt": softprompt, "softprompt_attention_mask": torch.tensor([[1, 0, 0, 1]])},
        {"segment_lengths": 5},
        {"segment_lengths": [4, 5]},
    ]
    outputs = [model.generate(ids, **kwargs, **GREEDY)[0].tolist() for kwargs in calls]
    assert all(first != second for i, first in enumerate(outputs) for second in outputs[:i])


@all_autocompressors
@pytest.mark.parametrize("accumulate_summary", [True, False])
def test_segments_equal_compressing_first(name, accumulate_summary):
    model, ids = generator(name, accumulate_summary=accumulate_summary), random_ids(2, 12)
    for given in (None, "plain"):
        kwargs = softprompts(model, given, 2)
        softprompt = model.compress(ids[:, :8], segment_lengths=[5, 3], **kwargs)
        expected = model.generate(ids[:, 8:], softprompt=softprompt, **GREEDY)
        for use_cache in (True, False):
            actual = model.generate(ids, segment_lengths=[5, 3, 4], use_cache=use_cache, **kwargs, **GREEDY)
            assert torch.equal(actual[:, :8], ids[:, :8])
            assert torch.equal(actual[:, 8:], expected)


@both_families
def test_sampling(name):
    model = generator(name)
    ids, mask = prompts()
    kwargs = softprompts(model, "masked", 3) | {"attention_mask": mask, "do_sample": True, "max_new_tokens": 12}
    kwargs |= {"temperature": 1.3, "top_k": 20, "top_p": 0.9}
    sequences = []
    for seed, use_cache in [(3, True), (3, False), (4, True)]:
        torch.manual_seed(seed)
        sequences.append(model.generate(ids, use_cache=use_cache, **kwargs))
    assert torch.equal(sequences[0], sequences[1])
    assert not torch.equal(sequences[0], sequences[2])


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, [4, 5]], ids=str)
def test_beams(name, given, segment_lengths):
    model, ids = generator(name), random_ids(2, 9)
    kwargs = softprompts(model, given, 2) | {"segment_lengths": segment_lengths, "num_return_sequences": 2} | BEAMS
    kwargs |= {"return_dict_in_generate": True, "output_scores": True}
    cached, uncached = (model.generate(ids, use_cache=use_cache, **kwargs) for use_cache in (True, False))
    assert cached.sequences.shape == (4, 9 + NEW)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(cached.sequences_scores, uncached.sequences_scores, **CLOSE)
    # The scores are what the sequences are worth, read again in one pass.
    repeated = {key: value.repeat_interleave(2, dim=0) for key, value in softprompts(model, given, 2).items()}
    segments = None if segment_lengths is None else [4, 5 + NEW]
    with torch.no_grad():
        logits = model(cached.sequences, segment_lengths=segments, **repeated).logits[:, 8:-1]
    worth = logits.log_softmax(dim=-1).gather(2, cached.sequences[:, 9:, None]).sum(dim=(1, 2)) / NEW
    assert_close(cached.sequences_scores.double(), worth, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "llama_grouped"])
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_llama_softprompt_equals_embeddings_of_the_base_model(name, how):
    model, ids = generator(name), random_ids(3, 6)
    base = plain_generator(name, like=model)
    softprompt = random_softprompt(model, 3, 4)
    embeds = torch.cat([softprompt, base.get_input_embeddings()(ids)], dim=1)
    expected = base.generate(inputs_embeds=embeds, attention_mask=torch.ones(3, 10), **how)
    assert torch.equal(model.generate(ids, softprompt=softprompt, **how)[:, 6:], expected)
    # Padding in the text, not in the softprompt in front of it.
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :2], mask[2, :3] = 0, 0
    full = torch.cat([torch.ones(3, 4, dtype=torch.long), mask], dim=1)
    expected = base.generate(inputs_embeds=embeds, attention_mask=full, **how)
    assert torch.equal(model.generate(ids, softprompt=softprompt, attention_mask=mask, **how)[:, 6:], expected)


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_no_softprompt_equals_the_base_model(name, how):
    model = generator(name)
    base, (ids, mask) = plain_generator(name, like=model), prompts()
    expected = base.generate(ids, attention_mask=mask, **how)
    assert torch.equal(model.generate(ids, attention_mask=mask, **how), expected)
    empty = random_softprompt(model, 3, 0)
    assert torch.equal(model.generate(ids, attention_mask=mask, softprompt=empty, **how), expected)


@all_autocompressors
@with_softprompts
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_padded_batch_equals_rows(name, given, how):
    model = generator(name)
    ids, mask = prompts()
    kwargs = softprompts(model, given, 3)
    batched = model.generate(ids, attention_mask=mask, **kwargs, **how)
    for index in range(3):
        row = ids[index : index + 1, mask[index].bool()]
        alone = model.generate(row, **select_row(kwargs, index), **how)
        assert torch.equal(batched[index, 9:], alone[0, row.shape[1] :])


@both_families
def test_rows_end_by_themselves(name):
    model = generator(name)
    ids, mask = prompts()
    kwargs = softprompts(model, "plain", 3) | {"attention_mask": mask} | GREEDY
    free = model.generate(ids, **kwargs)[:, 9:]
    end = int(free[0, 2])
    ended = model.generate(ids, eos_token_id=end, pad_token_id=1, **kwargs)[:, 9:]
    for index in range(3):
        tokens = free[index].tolist()
        stop = tokens.index(end) + 1 if end in tokens else NEW
        expected = (tokens[:stop] + [1] * NEW)[: ended.shape[1]]
        assert ended[index].tolist() == expected


@both_families
@pytest.mark.parametrize(
    "how",
    [
        GREEDY,
        BEAMS,
        BEAMS | {"num_return_sequences": 2},
        {"do_sample": True, "max_new_tokens": NEW, "num_return_sequences": 2},
    ],
    ids=["greedy", "beams", "beams_returned", "sampled"],
)
@pytest.mark.parametrize("inputs", ["input_ids", "inputs_embeds"])
def test_one_softprompt_for_the_batch(name, how, inputs):
    model = generator(name)
    ids, mask = prompts()
    text = {inputs: ids if inputs == "input_ids" else model.get_input_embeddings()(ids).detach()}
    softprompt, softprompt_mask = random_softprompt(model, 1, 4), torch.tensor([[1, 0, 1, 1]])
    sequences = []
    for batch_size in (1, 3):
        torch.manual_seed(5)
        sequences.append(
            model.generate(
                **text,
                attention_mask=mask,
                softprompt=softprompt.expand(batch_size, -1, -1),
                softprompt_attention_mask=softprompt_mask.expand(batch_size, -1),
                **how,
            )
        )
    assert torch.equal(*sequences)
    assert sequences[0].shape[0] == 3 * how.get("num_return_sequences", 1)


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_inputs_embeds(name, given, how):
    model = generator(name)
    ids, mask = prompts()
    embeds = model.get_input_embeddings()(ids).detach()
    for segments in ({}, {"segment_lengths": [3, 6]}):
        if segments:
            mask = torch.tensor([[1] * 9, [0, 1, 1, 0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1, 1, 1]])
        kwargs = softprompts(model, given, 3) | {"attention_mask": mask} | segments | how
        expected = model.generate(ids, **kwargs)
        for use_cache in (True, False):
            assert torch.equal(model.generate(inputs_embeds=embeds, use_cache=use_cache, **kwargs), expected[:, 9:])


@both_families
def test_softprompt_alone(name):
    model = generator(name)
    softprompt = random_softprompt(model, 2, 4)
    start = torch.full((2, 1), model.generation_config.bos_token_id)
    expected = model.generate(start, softprompt=softprompt, **GREEDY)
    assert torch.equal(model.generate(softprompt=softprompt, **GREEDY), expected)
    assert torch.equal(expected, greedy_loop(model, start, softprompt=softprompt))


@both_families
def test_lengths_count_text_only(name):
    model, ids = generator(name), random_ids(2, 5)
    for kwargs in ({}, softprompts(model, "plain", 2), {"segment_lengths": [2, 3]}):
        assert model.generate(ids, max_length=9, do_sample=False, **kwargs).shape == (2, 9)
        assert model.generate(ids, max_new_tokens=1, do_sample=False, **kwargs).shape == (2, 6)


@both_families
@pytest.mark.parametrize("segment_lengths", [None, [3, 6]], ids=str)
def test_given_cache(name, segment_lengths):
    model, ids = generator(name), random_ids(2, 9)
    kwargs = softprompts(model, "masked", 2) | {"segment_lengths": segment_lengths} | GREEDY
    expected = model.generate(ids, **kwargs)
    for cache in (DynamicCache(), DynamicCache(config=model.config), SoftpromptCache(config=model.config)):
        assert torch.equal(model.generate(ids, cache=cache, **kwargs), expected)


@both_families
def test_prefill_in_chunks(name):
    model = generator(name)
    ids, mask = prompts()
    kwargs = softprompts(model, "masked", 3) | {"attention_mask": mask} | GREEDY
    assert torch.equal(model.generate(ids, prefill_chunk_size=4, **kwargs), model.generate(ids, **kwargs))


def test_streaming(capsys):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    model = generator("opt", vocab_size=len(tokenizer))
    ids = tokenizer("The king went up to the city", return_tensors="pt").input_ids
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    sequences = model.generate(ids, softprompt=random_softprompt(model, 1, 4), streamer=streamer, **GREEDY)
    new_text = tokenizer.decode(sequences[0, ids.shape[1] :])
    assert capsys.readouterr().out.strip() == new_text.strip() != ""


def repetitive_prompt():
    return random_ids(1, 5).repeat(1, 3)


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, [6, 9]], ids=str)
def test_prompt_lookup(name, given, segment_lengths):
    model, ids = generator(name), repetitive_prompt()
    kwargs = softprompts(model, given, 1) | {"segment_lengths": segment_lengths, "do_sample": False}
    expected = model.generate(ids, max_new_tokens=16, **kwargs)
    assert torch.equal(model.generate(ids, max_new_tokens=16, prompt_lookup_num_tokens=3, **kwargs), expected)


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, [6, 9]], ids=str)
def test_assistant(name, given, segment_lengths):
    """The assistant drafts without the summary vectors, so that its drafts are right, wrong and half right."""
    model, ids = generator(name), repetitive_prompt()
    kwargs = softprompts(model, given, 1) | {"segment_lengths": segment_lengths, "do_sample": False}
    expected = model.generate(ids, max_new_tokens=12, **kwargs)
    for assistant in (plain_generator(name, like=model), plain_generator(name, seed=1)):
        assert torch.equal(model.generate(ids, max_new_tokens=12, assistant_model=assistant, **kwargs), expected)


@both_families
def test_drafts_save_passes(name):
    model, ids, lengths = generator(name), repetitive_prompt(), []
    assistant = plain_generator(name, like=model)
    model.lm_head.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=assistant)
    assert len(lengths) <= 6 and max(lengths) > 1


@all_autocompressors
def test_saved_and_eager(name, tmp_path):
    model = never_ending(tiny_autocompressor(name))
    ids, mask = prompts()
    kwargs = softprompts(model, "masked", 3) | {"attention_mask": mask} | GREEDY
    expected = model.generate(ids, **kwargs)
    model.save_pretrained(tmp_path)
    for attn_implementation in ("sdpa", "eager"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attn_implementation)
        assert type(loaded) is AUTOCOMPRESSORS[name][1]
        assert torch.equal(never_ending(loaded).generate(ids, **kwargs), expected)


@all_autocompressors
def test_half_precision(name):
    model, ids = never_ending(tiny_autocompressor(name, torch.bfloat16)), random_ids(2, 9)
    softprompt = model.compress(ids, segment_lengths=5)
    assert softprompt.dtype == torch.bfloat16
    sequences = model.generate(ids, softprompt=softprompt, **BEAMS)
    assert sequences.shape == (2, 9 + NEW)
    # Summary vectors kept in float32 serve as well.
    assert torch.equal(model.generate(ids, softprompt=softprompt.float(), **BEAMS), sequences)


@opt_and_llama
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, [3, 6]], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_continuation(name, given, segment_lengths, padded):
    model, (ids, mask) = generator(name), prompts(padded=False)
    if padded:
        mask[1, :2], mask[2, 3] = 0, 0
    kwargs = softprompts(model, given, 3)
    prompt = {"attention_mask": mask, "segment_lengths": segment_lengths}
    expected = model.generate(ids, **prompt, **kwargs, **GREEDY)
    for again in ({}, kwargs):
        first = model.generate(
            ids, **prompt, **kwargs, **GREEDY | {"max_new_tokens": 3, "return_dict_in_generate": True}
        )
        longer = torch.nn.functional.pad(mask, (0, 3), value=1)
        second = model.generate(
            first.sequences,
            attention_mask=longer,
            cache=cache_of(first),
            **again,
            **GREEDY | {"max_new_tokens": NEW - 3},
        )
        assert torch.equal(second, expected)


@both_families
def test_conversation(name):
    """New text after the answer, read into the same cache: as if it had all been there from the start."""
    model, ids = generator(name), random_ids(2, 9)
    kwargs = softprompts(model, "masked", 2)
    first = model.generate(
        ids, segment_lengths=[4, 5], return_dict_in_generate=True, **kwargs, **GREEDY | {"max_new_tokens": 3}
    )
    longer = torch.cat([first.sequences, random_ids(2, 4, seed=7)], dim=1)
    expected = model.generate(longer, segment_lengths=[4, 12], **kwargs, **GREEDY)
    assert torch.equal(model.generate(longer, cache=cache_of(first), **GREEDY), expected)


@both_families
def test_generate_after_forward(name):
    """A cache from `forward` goes on in `generate`."""
    model, ids = generator(name), random_ids(2, 9)
    kwargs = softprompts(model, "plain", 2)
    cache = model(ids[:, :6], segment_lengths=[4, 2], use_cache=True, **kwargs).cache
    expected = model.generate(ids, segment_lengths=[4, 5], **kwargs, **GREEDY)
    assert torch.equal(model.generate(ids, cache=cache, **GREEDY), expected)


# PEFT


def lora_model(model):
    config = LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], modules_to_save=["embed_summary"]
    )
    peft_model = get_peft_model(model, config)
    trained = torch.nn.ModuleList(
        module for name, module in peft_model.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))
    )
    randomize_(trained, seed=5)
    randomize_(peft_model.base_model.model.embed_summary.modules_to_save, seed=6)
    return peft_model


@all_autocompressors
def test_lora(name, tmp_path):
    generator(name).save_pretrained(tmp_path / "base")
    base = never_ending(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    ids = random_ids(2, 9)
    call = {"segment_lengths": [4, 5], "output_softprompt": True, "softprompt": random_softprompt(base, 2, 3)}
    before = base(ids, **call)
    model = lora_model(base).eval()
    expected = model(ids, **call)
    assert not torch.allclose(expected.logits[:, :4], before.logits[:, :4], atol=1e-2)
    assert not torch.allclose(expected.softprompt[:, 3:], before.softprompt[:, 3:], atol=1e-2)
    tokens = model.generate(input_ids=ids, softprompt=call["softprompt"], **GREEDY)
    assert torch.equal(tokens, greedy_loop(model, ids, softprompt=call["softprompt"]))
    segments = {"segment_lengths": [4, 5], "softprompt": call["softprompt"]}
    assert torch.equal(model.generate(input_ids=ids, **segments, **GREEDY), greedy_loop(model, ids, **segments))

    model.save_pretrained(tmp_path / "adapters")
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    summary = base.embed_summary.modules_to_save["default"].weight
    assert [key for key in saved if "embed_summary" in key] and not torch.equal(
        summary, base.embed_summary.original_module.weight
    )
    assert all("lora_" in key or "embed_summary" in key for key in saved)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for loaded in (
        PeftModel.from_pretrained(fresh, tmp_path / "adapters"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters"),
    ):
        assert_close(tensors_of(loaded(ids, **call)), tensors_of(expected), **EXACT)

    merged = never_ending(model.merge_and_unload())
    assert type(merged) is AUTOCOMPRESSORS[name][1] and type(merged.embed_summary) is torch.nn.Embedding
    assert torch.equal(merged.embed_summary.weight, summary)
    assert_close(tensors_of(merged(ids, **call)), tensors_of(expected), **CLOSE)
    assert torch.equal(merged.generate(ids, softprompt=call["softprompt"], **GREEDY), tokens)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(tensors_of(reloaded(ids, **call)), tensors_of(merged(ids, **call)), **EXACT)


@opt_and_llama
def test_lora_trains_adapters_and_summary_only(name, without_float32):
    model = lora_model(tiny_autocompressor(name, torch.float64)).train()
    ids = random_ids(2, 9)
    call = {"labels": ids, "segment_lengths": [4, 5], "softprompt": random_softprompt(model, 2, 3)}
    model(ids, **call).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {key for key in dict(model.named_parameters()) if "lora_" in key or "to_save" in key}
    assert any("embed_summary" in key for key in trained) and len(trained) == 1 + 2 * 2 * 2
    for key in trained:
        gradient = model.get_parameter(key).grad
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-6, key

    expected = gradients(model, model(ids, **call).loss)
    model.base_model.model.config.segment_gradient_checkpointing = True
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert_close(gradients(model, model(ids, **call).loss), expected, rtol=1e-6, atol=1e-8)


def test_lora_on_a_new_summary_length(tmp_path):
    """Adapters carry their own summary embeddings onto a plain base model."""
    tiny_base("llama").save_pretrained(tmp_path / "base")
    model_class = AUTOCOMPRESSORS["llama"][1]
    model = lora_model(model_class.from_pretrained(tmp_path / "base", summary_length=5)).eval()
    model.save_pretrained(tmp_path / "adapters")
    loaded = PeftModel.from_pretrained(
        model_class.from_pretrained(tmp_path / "base", summary_length=5), tmp_path / "adapters"
    )
    ids = random_ids(1, 9)
    compressed = model.base_model.model.compress(ids, segment_lengths=5)
    assert compressed.shape[1] == 10
    assert_close(loaded.base_model.model.compress(ids, segment_lengths=5), compressed, **DOUBLE)


# Caches of prompts


def filled(model, ids, **kwargs):
    """The cache of a text that is read in one pass."""
    with torch.no_grad():
        return model(ids, use_cache=True, **kwargs).cache


OWN_CACHES = {"dynamic": lambda model: DynamicCache(), "of_config": lambda model: DynamicCache(config=model.config)}
own_caches = pytest.mark.parametrize("make_cache", OWN_CACHES.values(), ids=OWN_CACHES.keys())


@all_autocompressors
@own_caches
@pytest.mark.parametrize("segment_lengths", [None, [3, 6]], ids=str)
@torch.no_grad()
def test_own_cache_in_forward(name, make_cache, segment_lengths):
    """A user's cache remembers the softprompt: three turns, with it and without, give the logits of the whole."""
    model, ids = generator(name), random_ids(2, 17)
    kwargs = softprompts(model, "masked", 2)
    segments = {} if segment_lengths is None else {"segment_lengths": [3, 14]}
    expected = model(ids, **kwargs, **segments).logits
    for again in ({}, kwargs):
        cache = make_cache(model)
        first = model(ids[:, :9], cache=cache, segment_lengths=segment_lengths, **kwargs).logits
        turns = [model(part, cache=cache, **again).logits for part in (ids[:, 9:13], ids[:, 13:])]
        assert_close(torch.cat([first, *turns], dim=1), expected, **CLOSE)
        assert isinstance(cache, SoftpromptCache) and cache.get_seq_length() == 17


@all_autocompressors
@own_caches
@pytest.mark.parametrize("segment_lengths", [None, [3, 6]], ids=str)
def test_own_cache_in_turns(name, make_cache, segment_lengths):
    """A conversation on a user's cache, left-padded: every turn is that of the whole text without one."""
    model, (text, mask), cache = generator(name), prompts(padded=False), make_cache(generator(name))
    mask[1, :2] = 0
    kwargs = softprompts(model, "masked", 3)
    segments = segment_lengths
    for turn in range(3):
        how = {"attention_mask": mask, **kwargs, **GREEDY}
        earlier = {} if segment_lengths is None else {"segment_lengths": [3, text.shape[1] - 3]}
        expected = model.generate(text, use_cache=False, **earlier, **how)
        text = model.generate(text, cache=cache, segment_lengths=segments, **how)
        assert torch.equal(text, expected)
        text, segments = torch.cat([text, random_ids(3, 4, seed=turn)], dim=1), None
        mask = torch.nn.functional.pad(mask, (0, NEW + 4), value=1)


def test_own_kind_of_cache():
    """A cache that cannot become one that remembers is refused."""

    class OwnCache(DynamicCache):
        pass

    with pytest.raises(ValueError, match="`cache` must .* SoftpromptCache"):
        generator("opt")(random_ids(1, 4), cache=OwnCache())


@all_autocompressors
@with_softprompts
@pytest.mark.parametrize("segment_lengths", [None, [3, 6]], ids=str)
@pytest.mark.parametrize("how", [GREEDY, BEAMS, GREEDY | {"use_embeds": True}], ids=["greedy", "beams", "embeds"])
def test_cache_of_the_whole_prompt(name, given, segment_lengths, how):
    model, ids, how = generator(name), random_ids(2, 9), dict(how)
    text = {"input_ids": ids}
    if how.pop("use_embeds", False):
        text = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
    kwargs = softprompts(model, given, 2)
    expected = model.generate(**text, segment_lengths=segment_lengths, **kwargs, **how)
    cache = filled(model, ids, segment_lengths=segment_lengths, **kwargs)
    assert torch.equal(model.generate(**text, cache=cache, **how), expected)


@all_autocompressors
@pytest.mark.parametrize("how", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("num_new", [3, 12])
def test_new_ids_alone(name, how, num_new):
    """With a mask over all text they go on; without one they would be cut, and are refused."""
    model, ids, new = generator(name), random_ids(2, 9), random_ids(2, num_new, seed=4)
    kwargs, joined = softprompts(model, "plain", 2), torch.cat([ids, new], dim=1)
    expected = model.generate(joined, **kwargs, **how)[:, 9:]
    alone = model.generate(new, attention_mask=torch.ones_like(joined), cache=filled(model, ids, **kwargs), **how)
    assert torch.equal(alone, expected)
    cache = filled(model, ids, **kwargs)
    with pytest.raises(ValueError, match=r"`input_ids` must begin with the 9 tokens .* `attention_mask`"):
        model.generate(new, cache=cache, **how)
    assert torch.equal(model.generate(joined, cache=cache, **how)[:, 9:], expected)  # as it was


@both_families
def test_prompts_that_do_not_fit_a_cache(name):
    model, ids = generator(name), random_ids(2, 9)
    with pytest.raises(ValueError, match="`cache` must have the 3 rows"):
        model.generate(random_ids(3, 12), cache=filled(model, ids), **GREEDY)
    with pytest.raises(ValueError, match="`input_ids` must be given"):
        model.generate(cache=filled(model, ids), **GREEDY)
    embeds = model.get_input_embeddings()(ids).detach()
    with pytest.raises(ValueError, match="`inputs_embeds` must begin"):
        model.generate(inputs_embeds=embeds[:, :5], cache=filled(model, ids), **GREEDY)


@both_families
def test_drafts_and_what_they_do_not_know(name):
    """Drafts are made from ids: embeddings beside them, and a cache, are refused."""
    model, ids = generator(name), repetitive_prompt()
    embeds = model.get_input_embeddings()(ids).detach()
    for drafts in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": plain_generator(name)}):
        with pytest.raises(ValueError, match="`inputs_embeds` must be None"):
            model.generate(ids, inputs_embeds=embeds, **drafts, **GREEDY)
        with pytest.raises(ValueError, match="`cache` must be empty"):
            model.generate(ids, cache=filled(model, ids[:, :6]), **drafts, **GREEDY)


@all_autocompressors
@pytest.mark.parametrize("segment_lengths", [4, [3, 6]], ids=str)
@pytest.mark.parametrize("chunk", [2, 5, 20])
def test_segments_and_prefill_in_chunks(name, segment_lengths, chunk):
    model, (ids, mask) = generator(name), prompts(padded=False)
    kwargs = softprompts(model, "masked", 3) | {"attention_mask": mask, "segment_lengths": segment_lengths}
    for how in (GREEDY, BEAMS):
        expected = model.generate(ids, **kwargs, **how)
        assert torch.equal(model.generate(ids, prefill_chunk_size=chunk, **kwargs, **how), expected)


@pytest.mark.parametrize("config_class", [PrefixTuningConfig, PromptTuningConfig])
def test_learned_prompts_of_peft_are_refused(config_class):
    """PEFT's own `generate` loses a prefix and reads a prompt twice: the tokens would be others, without a word."""
    model = generator("llama", summary_length=2)
    adapted = get_peft_model(model, config_class(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match=f"cannot be used with {config_class.__name__}"):
        adapted.generate(input_ids=random_ids(1, 5), **GREEDY)
    assert model.generate(random_ids(1, 5), **GREEDY).shape == (1, 13)


@opt_and_llama
def test_a_cache_takes_no_softprompt_but_its_own(name):
    """Keys of another one are not in it: it would be passed over in silence."""
    model = never_ending(generator(name))
    text = random_ids(1, 6)
    own, other = (random_softprompt(model, 1, 4, seed) for seed in (1, 2))
    for softprompt in (None, other):
        cache = DynamicCache()
        model(text, softprompt=softprompt, cache=cache)
        for ask in (model, model.generate):
            with pytest.raises(ValueError, match="`softprompt` must be None where `cache` holds text"):
                ask(text, softprompt=own, cache=cache)
        model(text[:, :2], softprompt=softprompt, cache=cache)


@opt_and_llama
def test_summary_vectors_are_not_cropped(name):
    model, text = generator(name), random_ids(1, 6)
    softprompt = random_softprompt(model, 1, 4)
    cache = model(text, softprompt=softprompt, use_cache=True).cache
    with pytest.raises(ValueError, match="between -6, the text of the last segment, and 0, got -7"):
        cache.crop(-7)
    cache.crop(-6)
    assert_close(model(text, cache=cache).logits, model(text, softprompt=softprompt).logits, **CLOSE)
    cache.reset()
    assert_close(model(text, cache=cache).logits, model(text).logits, **EXACT)


@opt_and_llama
@pytest.mark.parametrize("segment_lengths", [None, 4])
def test_prompts_that_are_padded_on_the_right_are_refused(name, segment_lengths):
    """The first new token would be drawn at the padding; a row of padding alone takes nothing from the others."""
    model, ids = never_ending(generator(name, summary_length=2)), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with pytest.raises(ValueError, match=r"rows \[1\] end with padding: pad on the left"):
        model.generate(ids, attention_mask=mask, segment_lengths=segment_lengths, **GREEDY)
    mask[1] = 0
    found = model.generate(ids, attention_mask=mask, segment_lengths=segment_lengths, **GREEDY)
    assert torch.equal(found[:1], model.generate(ids[:1], segment_lengths=segment_lengths, **GREEDY))


@opt_and_llama
@pytest.mark.parametrize("rows", [1, 3])
def test_a_cache_of_other_rows_is_refused(name, rows):
    model = generator(name)
    cache = model(random_ids(2, 6), use_cache=True).cache
    with pytest.raises(ValueError, match=f"`cache` must have the {rows} rows of the text, it has 2"):
        model(random_ids(rows, 2), cache=cache)
