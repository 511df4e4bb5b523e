"""The hierarchical byte autoencoder: what every model must do, causality, decoding, its language model of codes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_testing import DOUBLE, EXACT, HubTests, ModelTests, pad_rows, randomize_
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer

from auto_compressor import (
    ByteTokenizer,
    HierarchicalAutoencoder,
    HierarchicalAutoencoderConfig,
    HierarchicalAutoencoderOutput,
    HierarchicalLevelConfig,
    VectorQuantizer,
)
from auto_compressor.files.bundled import BUNDLED_TRAIN_TEXT
from auto_compressor.hierarchical_autoencoder import sliding_window
from auto_compressor.hierarchical_autoencoder.tensors import RunningNorm


LEVEL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "window": 3,
    "memory_window": 2,
    "max_patch_length": 4,
    "codebook_dim": 6,
}
EMA, RESIDUAL, FSQ = (
    LEVEL | {"quantizer": "ema_vq", "codebook_size": 24},
    LEVEL | {"quantizer": "residual_vq", "num_quantizers": 2, "codebook_size": 12},
    LEVEL | {"quantizer": "fsq", "fsq_levels": [4, 3, 3]},
)
SHALLOW = {"num_hidden_layers": 1, "num_expander_layers": 1}
CODE_SEQUENCE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LEVELS = {
    "ema_vq": [EMA],
    "residual_vq": [RESIDUAL | {"num_queries": 2}],
    "fsq": [FSQ | {"border_rule": "cumulative_entropy", "border_threshold": 12.0}],
    "two_levels": [RESIDUAL | SHALLOW, EMA | SHALLOW | {"border_threshold": 0.01, "max_patch_length": 3}],
    "three_levels": [FSQ, RESIDUAL | {"border_rule": "target_ratio"}, EMA | {"border_rule": "entropy_threshold"}],
}
all_levels = pytest.mark.parametrize("name", LEVELS)


def tiny_fields(name: str) -> dict:
    return {"level_configs": LEVELS[name], "code_sequence_config": CODE_SEQUENCE, "block_size": 32}


@torch.no_grad()
def randomize_statistics_(model, seed: int = 0):
    """Codebooks near the vectors that the random model makes, and norms that differ."""
    generator = torch.Generator().manual_seed(300 + seed)
    for module in model.modules():
        if isinstance(module, VectorQuantizer):
            module.codebook.copy_(torch.randn(module.codebook.shape, generator=generator))
            module.cluster_size.fill_(1.0)
        elif isinstance(module, RunningNorm):
            module.mean.copy_(torch.randn(module.mean.shape, generator=generator))
            module.variance.copy_(torch.rand(module.variance.shape, generator=generator) + 0.5)
    return model


def tiny_model(name: str, attn_implementation: str = "sdpa", dtype=torch.float32) -> HierarchicalAutoencoder:
    config = HierarchicalAutoencoderConfig(**tiny_fields(name))
    config._attn_implementation = attn_implementation
    return randomize_statistics_(randomize_(HierarchicalAutoencoder(config))).to(dtype).eval()


def random_bytes(*shape: int, seed: int = 0) -> torch.LongTensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


class HierarchicalTests(ModelTests):
    name: str
    model_class = HierarchicalAutoencoder
    output_class = HierarchicalAutoencoderOutput
    auto_class = AutoModel
    other_fields = {"commitment_loss_weight": 0.5, "lm_loss_weight": 0.7, "code_loss_weight": 0.1, "block_size": 16}
    bad_fields = [("block_size", 0), ("code_loss_weight", -1.0), ("commitment_loss_weight", float("inf"))]

    @property
    def config_fields(self):
        return tiny_fields(self.name)

    def make_model(self, attn_implementation="sdpa", dtype=torch.float32, **fields):
        model = super().make_model(attn_implementation, torch.float32, **fields)
        return randomize_statistics_(model).to(dtype)

    def to_training(self, model):
        for module in model.train().modules():
            if isinstance(module, (VectorQuantizer, RunningNorm)):
                module.eval()
        return model

    def make_inputs(self, model):
        ids, mask = pad_rows([random_bytes(1, 23), random_bytes(1, 17, seed=1)], "left")
        ids[0, -1] = model.config.eos_token_id
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    def expected_shapes(self, model, inputs):
        return {"loss": (), "logits": (2, 23, 256)}


class TestEmaVQ(HierarchicalTests, HubTests):
    name = "ema_vq"


class TestResidualVQ(HierarchicalTests):
    name = "residual_vq"


class TestFSQ(HierarchicalTests):
    name = "fsq"


class TestTwoLevels(HierarchicalTests):
    name = "two_levels"


LEVEL_ERRORS = {
    "quantizer": "vq",
    "border_rule": "entropy",
    "num_quantizers": 2,
    "codebook_size": 0,
    "fsq_levels": [1, 3],
    "ema_decay": 1.0,
    "target_ratio": 0.5,
    "dead_code_threshold": 1.0,
    "window": 0,
    "memory_window": 0,
    "max_patch_length": 0,
}


@pytest.mark.parametrize("field", LEVEL_ERRORS)
def test_level_config_rejects(field):
    with pytest.raises(StrictDataclassError, match=f"`{field}`"):
        HierarchicalLevelConfig(**{field: LEVEL_ERRORS[field]})


def test_config_joins_the_levels():
    config = HierarchicalAutoencoderConfig(**tiny_fields("two_levels"))
    lower, upper = config.level_configs
    assert (lower.vocab_size, lower.symbols_per_unit, lower.input_dim) == (256, 1, None)
    assert (upper.vocab_size, upper.symbols_per_unit, upper.input_dim) == (24, 2, 6)
    assert config.code_sequence_config.vocab_size == 25
    with pytest.raises(StrictDataclassError, match="code_sequence_config"):
        HierarchicalAutoencoderConfig(level_configs=[RESIDUAL], code_sequence_config=config.code_sequence_config)


def test_attention_reaches_every_level():
    model = tiny_model("two_levels", "eager")
    layers = [module for module in model.modules() if hasattr(module, "self_attn")]
    assert {layer.self_attn.config._attn_implementation for layer in layers} == {"eager"}
    model.set_attn_implementation("sdpa")
    assert {layer.self_attn.config._attn_implementation for layer in layers} == {"sdpa"}


def changed_at(ids: torch.LongTensor, row: int, position: int) -> torch.LongTensor:
    changed = ids.clone()
    changed[row, position] = (changed[row, position] + 1 + random_bytes(1, seed=position)[0] % 255) % 256
    return changed


def causality_violations(model, ids, mask) -> int:
    """Bytes that change what comes before them: entropies, borders, or codes of segments that had ended."""
    expected, violations = model.encode(ids, mask), 0
    for position in range(ids.shape[1]):
        found = model.encode(changed_at(ids, 0, position), mask)
        before = expected.patch_ids[0][0, :position]
        same = torch.equal(found.entropies[0][0, :position], expected.entropies[0][0, :position])
        same &= torch.equal(found.patch_ids[0][0, :position], before)
        ended = int(before.max()) if position else 0  # all but the segment that the byte before belongs to
        same &= torch.equal(found.level_codes[0][0, :, :ended], expected.level_codes[0][0, :, :ended])
        violations += not same
    return violations


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
@all_levels
def test_encoding_is_causal(name, padded, attn_implementation):
    model, ids = tiny_model(name, attn_implementation), random_bytes(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    assert causality_violations(model, ids, mask if padded else None) == 0


@torch.no_grad()
def test_the_causality_check_sees_a_leak(monkeypatch):
    """The control: a window that looks ahead."""

    def two_sided(group_ids, window, dtype):
        return torch.zeros_like(causal(group_ids, window, dtype))

    causal = sliding_window.sliding_window_mask
    monkeypatch.setattr(sliding_window, "sliding_window_mask", two_sided)
    assert causality_violations(tiny_model("ema_vq"), random_bytes(1, 20), None) > 10


@torch.no_grad()
@all_levels
def test_expander_sees_codes_and_its_own_earlier_symbols(name):
    """A later symbol, one of another segment, and a later code change nothing."""
    model, ids = tiny_model(name), random_bytes(1, 24)
    symbols, mask, _ = model.read_bytes(ids, None)
    compressed = model.compress(symbols, mask)
    expander, output = model.expanders[0], compressed[0]
    vectors, present = output.stages[..., -1, :], output.patch_lengths > 0

    def expand(vectors, symbols):
        found = expander(vectors, present, symbols, output.patch_ids, output.positions)
        return torch.cat([found.logits[0], found.end_logits[0, :, None]], dim=1)

    expected, patch_ids = expand(vectors, symbols), output.patch_ids[0]
    for position in range(24):
        found = expand(vectors, changed_at(symbols, 0, position))
        differs = (found[:, :-1] != expected[:, :-1]).any(dim=1)
        reached = (patch_ids == patch_ids[position]) & (torch.arange(24) > position)
        assert torch.equal(differs, reached)
    for patch in range(int(patch_ids.max()) + 1):
        changed = vectors.clone()
        changed[0, patch] += torch.randn(vectors.shape[-1])
        differs = (expand(changed, symbols) != expected).any(dim=1)
        assert not differs[patch_ids < patch].any() and differs[patch_ids == patch].all()


@torch.no_grad()
@all_levels
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_rows(name, side):
    model = tiny_model(name, dtype=torch.float64)
    rows = [random_bytes(1, length, seed=length) for length in (21, 9, 1)]
    ids, mask = pad_rows(rows, side)
    output = model(ids, attention_mask=mask)
    encoded = model.encode(ids, mask)
    decoded = model.decode(encoded.codes)
    for index, row in enumerate(rows):
        alone, where = model(row), mask[index].bool()
        assert_close(output.logits[index, where], alone.logits[0], **DOUBLE)
        assert_close(output.entropies[0][index, where], alone.entropies[0][0], **DOUBLE)
        assert torch.equal(output.patch_ids[0][index, where], alone.patch_ids[0][0])
        assert (output.patch_ids[0][index, ~where] == -1).all()
        for ours, theirs in zip(output.codes, alone.codes, strict=True):
            assert torch.equal(ours[index, :, : theirs.shape[2]], theirs[0])
            assert (ours[index, :, theirs.shape[2] :] == -1).all()
        expected = model.decode(model.encode(row).codes).sequences[0]
        assert torch.equal(decoded.sequences[index, : len(expected)], expected)
        assert (decoded.sequences[index, len(expected) :] == model.config.pad_token_id).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["ema_vq", "two_levels", "residual_vq"])
def test_with_all_levels_frozen_only_the_loss_of_the_codes_is_computed(name):
    model, ids = tiny_model(name), random_bytes(2, 19)
    expected = model(ids, labels=ids).losses["code"]
    model.freeze_levels(model.config.num_levels)
    output = model.train()(ids, labels=ids)
    assert output.logits is None and output.losses.keys() == {"code"}
    assert_close(output.losses["code"], expected)
    assert_close(output.loss, model.config.code_loss_weight * expected)


def test_losses_ignore_padding_and_masked_labels():
    model = tiny_model("two_levels", dtype=torch.float64)
    row = random_bytes(1, 21)
    ids, mask = pad_rows([row, random_bytes(1, 30)[:, :0]], "left")
    padded = model(ids, attention_mask=mask, labels=ids).losses
    assert_close(padded, model(row, labels=row).losses, **DOUBLE)
    partly = row.masked_fill(torch.arange(21) < 10, -100)
    assert model(row, labels=partly).losses["reconstruction_0"] != padded["reconstruction_0"]


@torch.no_grad()
@all_levels
def test_losses_by_hand(name):
    """Cross entropy of bytes and end flags over true segments, with a plain loop."""
    model, ids = tiny_model(name, dtype=torch.float64), random_bytes(2, 19)
    output = model(ids, labels=ids)
    symbols, mask, _ = model.read_bytes(ids, None)
    compressed = model.compress(symbols, mask)
    ends = model.expand(symbols, compressed)[0].end_logits
    longest, total = model.config.level_configs[0].max_patch_length, 0.0
    for row in range(2):
        patch_ids = output.patch_ids[0][row].tolist()
        for position in range(19):
            total += F.cross_entropy(output.logits[row, position], ids[row, position]).item()
            place = position - patch_ids.index(patch_ids[position])
            last = position == 18 or patch_ids[position + 1] != patch_ids[position]
            if place < longest - 1:
                total -= F.logsigmoid(ends[row, position] * (1 if last else -1)).item()
    assert output.losses["reconstruction_0"].item() == pytest.approx(total / 38, rel=1e-6)
    assert output.loss.item() == pytest.approx(model.weighted_sum(output.losses).item())


def test_reconstruction_trains_compressor_and_codes():
    """The loss of a level reaches all of its compressor through the codes, and stays in the level."""
    model, ids = tiny_model("two_levels"), random_bytes(2, 24)
    for level in (0, 1):
        model.zero_grad()
        model(ids, labels=ids).losses[f"reconstruction_{level}"].backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        parts = {"embed_symbols", "encoder", "pooler", "code_proj"}
        assert {name.split(".")[2] for name in trained if name.startswith(f"compressors.{level}")} == parts
        assert {name.split(".")[1] for name in trained} == {str(level)}


def test_the_language_model_of_codes_leaves_codes_alone():
    model, ids = tiny_model("two_levels"), random_bytes(2, 24)
    model(ids, labels=ids).losses["code"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("code_sequence."), name


@torch.no_grad()
@all_levels
def test_decoding_equals_recomputation(name):
    """Free-running decoding with a cache gives, symbol by symbol, what the expander finds likeliest without one."""
    model = tiny_model(name, dtype=torch.float64)
    codes = model.encode(random_bytes(2, 24)).codes
    decoded = model.decode(codes)
    assert torch.equal(decoded.lengths.sum(dim=1), (decoded.sequences < 256).sum(dim=1))
    if model.config.num_levels > 1:
        return
    expander, mask = model.expanders[0], codes[:, 0] >= 0
    stages = model.compressors[0].quantizer.codes_to_stages(codes.transpose(1, 2).clamp(min=0))
    patch_ids = torch.full_like(decoded.sequences, -1)
    positions = torch.zeros_like(patch_ids)
    for row, lengths in enumerate(decoded.lengths.tolist()):
        ids = [patch for patch, length in enumerate(lengths) for _ in range(length)]
        patch_ids[row, : len(ids)] = torch.tensor(ids)
        positions[row, : len(ids)] = torch.tensor([i for length in lengths for i in range(length)])
    symbols = decoded.sequences.clamp(max=255)
    found = expander(stages[..., -1, :].double(), mask, symbols, patch_ids, positions)
    present = patch_ids >= 0
    assert torch.equal(found.logits.argmax(dim=-1)[present], symbols[present])
    last = present & (F.pad(patch_ids, (0, 1), value=-1)[:, 1:] != patch_ids)
    free = present & (positions < model.config.level_configs[0].max_patch_length - 1)
    assert torch.equal((found.end_logits > 0)[free], last[free])


@torch.no_grad()
@all_levels
def test_decoding_more_codes_only_appends(name):
    model = tiny_model(name)
    codes = model.encode(random_bytes(1, 40)).codes
    whole = model.decode(codes)
    for count in range(codes.shape[2]):
        part = model.decode(codes[:, :, :count])
        assert torch.equal(part.lengths, whole.lengths[:, :count])
        assert torch.equal(part.sequences, whole.sequences[:, : part.sequences.shape[1]])


@pytest.mark.parametrize(
    "codes",
    [torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, 1, 3)]
    + [torch.full((1, 1, 3), 24), torch.full((1, 1, 3), -2)],
)
def test_decode_rejects(codes):
    with pytest.raises(ValueError, match="`codes` must be"):
        tiny_model("ema_vq").decode(codes)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 3), torch.zeros(1, 0).long()])
def test_encode_rejects(ids):
    with pytest.raises(ValueError, match="`input_ids` must be"):
        tiny_model("ema_vq").encode(ids)


def test_encode_rejects_a_mask_of_another_shape():
    with pytest.raises(ValueError, match="`attention_mask` must have the shape"):
        tiny_model("ema_vq").encode(random_bytes(1, 4), torch.ones(1, 5))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ema_vq", "two_levels", "residual_vq"])
def test_code_sequences(name):
    """Codes in front, the end where the text ends, and no probability for a codebook that is not due."""
    model = tiny_model(name)
    ids, mask = pad_rows([random_bytes(1, 24), random_bytes(1, 9)], "right")
    codes = model.encode(ids, mask).codes.transpose(1, 2)
    tokens, labels = model.code_sequence.sequences(codes, torch.tensor([False, True]))
    end, depth = model.code_sequence.config.eos_token_id, model.code_sequence.config.num_quantizers
    count = int((codes[1] >= 0).sum())
    assert labels[0, 0] == labels[0, -1] == -100 and (labels[0, 1:-1] >= 0).all()
    assert labels[1, count + 1] == end and (labels[1, count + 2 :] == -100).all()
    logits = model.code_sequence(tokens).logits
    possible = logits > torch.finfo(logits.dtype).min
    size = model.code_sequence.config.codebook_size
    for position in range(tokens.shape[1] - 1):
        which = position % depth
        expected = torch.zeros(depth * size + 1, dtype=torch.bool)
        expected[which * size : (which + 1) * size] = True
        expected[-1] = which == 0
        assert torch.equal(possible[0, position], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ema_vq", "residual_vq"])
def test_generate_codes(name):
    model = tiny_model(name, dtype=torch.float64)
    codes = model.encode(random_bytes(2, 24)).codes[:, :, :5]
    cached = model.code_sequence.generate_codes(codes, 6, do_sample=False)
    assert torch.equal(cached, model.code_sequence.generate_codes(codes, 6, do_sample=False, use_cache=False))
    assert cached.shape[1] == codes.shape[1] and 0 < cached.shape[2] <= 6
    torch.manual_seed(0)
    sampled = model.code_sequence.generate_codes(codes, 6, do_sample=True, top_k=5, temperature=3.0)
    beams = model.code_sequence.generate_codes(codes, 6, num_beams=3, do_sample=False)
    assert all((new < model.code_sequence.config.codebook_size).all() for new in (sampled, beams))


@torch.no_grad()
def test_generation_ends_with_the_text():
    model = tiny_model("residual_vq")
    model.code_sequence.lm_head.weight.zero_()
    codes = model.encode(random_bytes(1, 12)).codes
    # All tokens are equally likely now: make the end a little likelier than any code.
    norm = model.code_sequence.model.norm
    norm.weight.copy_(torch.ones_like(norm.weight))
    states = model.code_sequence.model(model.code_sequence.sequences(codes.transpose(1, 2), torch.zeros(1).bool())[0])
    model.code_sequence.lm_head.weight[-1] = states.last_hidden_state[0, -2]
    assert (model.code_sequence.generate_codes(codes, 8, do_sample=False) == -1).all()
    assert model.generate_bytes("abc", max_new_codes=8).startswith("abc")


@pytest.mark.parametrize("name", ["ema_vq", "two_levels"])
def test_generate_bytes(name):
    model = tiny_model(name)
    text = model.generate_bytes(b"In the\xff", max_new_codes=4, do_sample=False)
    assert text.startswith(b"In the\xff") and len(text) > 7
    longer = model.generate_bytes(b"In the\xff", max_new_codes=8, do_sample=False)
    assert longer.startswith(text)
    assert isinstance(model.generate_bytes("", max_new_codes=2), str)
    torch.manual_seed(1)
    sampled = {model.generate_bytes(b"x", max_new_codes=8, do_sample=True) for _ in range(4)}
    assert len(sampled) > 1


TEXTS = {
    "empty": b"",
    "one byte": b"a",
    "every byte": bytes(range(256)),
    "emoji and CJK": "naïve 🙂🙂 文字 café\u0301".encode(),
    "invalid UTF-8": b"\xff\xfe\xc3(\x80abc\xf0\x9f",
    "1 MB": BUNDLED_TRAIN_TEXT.read_bytes()[:1_000_000],
}


@pytest.fixture(scope="module")
def byte_exact_model():
    """A model trained for seconds with one code per byte: it has to give everything back."""
    level = LEVEL | {"max_patch_length": 1, "codebook_size": 512, "codebook_dim": 16, "hidden_size": 32}
    level |= {"num_hidden_layers": 1, "num_expander_layers": 1, "window": 1, "memory_window": 1}
    torch.manual_seed(0)
    config = HierarchicalAutoencoderConfig(
        level_configs=[level | {"initializer_range": 0.2}],
        code_sequence_config=CODE_SEQUENCE,
        code_loss_weight=0.0,
        block_size=256,
    )
    model = HierarchicalAutoencoder(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=120)
    for _ in range(120):
        ids = torch.stack([torch.randperm(256) for _ in range(4)])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_round_trip(byte_exact_model, text):
    assert byte_exact_model.reconstruct(text, batch_size=256) == text


def test_round_trip_of_strings(byte_exact_model):
    text = TEXTS["emoji and CJK"].decode()
    assert byte_exact_model.reconstruct(text) == text
    assert byte_exact_model.reconstruct("") == ""
    surrogates = b"a\xff".decode("utf-8", "surrogateescape")
    assert byte_exact_model.reconstruct(surrogates) == "a\ufffd"


def test_tokenizer_is_registered(tmp_path):
    model = tiny_model("ema_vq")
    model.save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is ByteTokenizer
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, len(tokenizer))
    config = model.config
    assert ids == (config.eos_token_id, config.pad_token_id, config.bos_token_id, config.vocab_size)


def test_target_ratio_is_reached():
    """Training moves the threshold until segments have the length that is asked for; evaluation leaves it."""
    fields = tiny_fields("fsq") | {"level_configs": [FSQ | {"border_rule": "target_ratio", "max_patch_length": 16}]}
    for ratio in (2.0, 3.5):
        fields["level_configs"][0]["target_ratio"] = ratio
        model = randomize_(HierarchicalAutoencoder(HierarchicalAutoencoderConfig(**fields))).train()
        ids = random_bytes(8, 200)
        with torch.no_grad():
            for _ in range(60):
                output = model(ids)
            threshold = model.compressors[0].border_threshold.clone()
            assert ids.numel() / (output.codes[0] >= 0).sum().item() == pytest.approx(ratio, rel=0.1)
            model.eval()(ids)
        assert_close(model.compressors[0].border_threshold, threshold, **EXACT)
