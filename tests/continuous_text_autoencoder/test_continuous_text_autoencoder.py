"""The continuous text autoencoder: what every model must do, padding, losses, dropout, reconstruction, bad input."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_testing import DOUBLE, EXACT, HubTests, ModelTests, pad_rows, random_ids, randomize_
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer

from auto_compressor import (
    ByteTokenizer,
    ContinuousTextAutoencoder,
    ContinuousTextAutoencoderConfig,
    ContinuousTextAutoencoderOutput,
)
from auto_compressor.continuous_text_autoencoder import modeling_continuous_text_autoencoder as modeling
from auto_compressor.files.bundled import BUNDLED_TOKENIZER


SIZES = {"vocab_size": 60, "embedding_size": 12, "latent_dim": 6, "kl_loss_weight": 1.0}
# name -> fields of a tiny config
MODELS = {
    "conv": SIZES | {"hidden_size": 8, "num_residual_blocks": [2, 1]},
    "conv_tied": SIZES | {"hidden_size": 12, "num_residual_blocks": [0, 1, 1], "tie_word_embeddings": True},
    "chunk": SIZES | {"architecture": "chunk", "hidden_size": 16, "chunk_size": 3},
    "chunk_tied": SIZES
    | {"architecture": "chunk", "hidden_size": 8, "num_chunk_layers": 2, "tie_word_embeddings": True},
}
all_models = pytest.mark.parametrize("name", MODELS)


@torch.no_grad()
def scale_convolutions_(model):
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.weight.mul_((module.in_channels * module.kernel_size[0]) ** -0.5)
    return model


def tiny_model(name: str, dtype=torch.float32, seed: int = 0, **fields) -> ContinuousTextAutoencoder:
    model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(**MODELS[name] | fields))
    return scale_convolutions_(randomize_(model, seed)).to(dtype).eval()


class ContinuousTests(ModelTests):
    name: str
    model_class = ContinuousTextAutoencoder
    output_class = ContinuousTextAutoencoderOutput
    auto_class = AutoModel
    other_fields = {
        "architecture": "chunk",
        "num_residual_blocks": [1],
        "chunk_size": 5,
        "num_chunk_layers": 3,
        "kl_loss_weight": 0.5,
        "kl_clip": 0.25,
        "kl_warmup_steps": 10,
        "token_dropout": 0.1,
        "latent_dropout": 0.2,
    }
    bad_fields = [
        ("architecture", "transformer"),
        ("vocab_size", 0),
        ("embedding_size", 0),
        ("hidden_size", 0),
        ("latent_dim", 0),
        ("latent_dim", 4.0),
        ("chunk_size", 0),
        ("num_chunk_layers", 0),
        ("num_residual_blocks", [2, -1]),
        ("kl_loss_weight", -1.0),
        ("kl_loss_weight", float("inf")),
        ("kl_clip", -0.5),
        ("kl_warmup_steps", -1),
        ("token_dropout", 1.0),
        ("latent_dropout", -0.1),
    ]
    test_eager_equals_sdpa = None  # there is no attention

    @property
    def config_fields(self):
        return MODELS[self.name]

    def make_model(self, dtype=torch.float32, **fields):
        return scale_convolutions_(super().make_model("eager", torch.float32, **fields)).to(dtype)

    def to_training(self, model):
        model.train().latent_norm.eval()
        return model

    def make_inputs(self, model):
        ids, mask = pad_rows([random_ids(1, 11), random_ids(1, 6, seed=1)], "left")
        labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "sample": False}

    def expected_shapes(self, model, inputs):
        latents = (2, -(-11 // model.config.total_stride), 6)
        shapes = dict.fromkeys(("mean", "logvar", "latents"), latents)
        return shapes | {"loss": (), "logits": (2, 11, 60), "latent_attention_mask": latents[:2]}


class TestConv(ContinuousTests, HubTests):
    name = "conv"


class TestConvTied(ContinuousTests):
    name = "conv_tied"


class TestChunk(ContinuousTests):
    name = "chunk"


class TestChunkTied(ContinuousTests):
    name = "chunk_tied"


def test_tied_convolutions_need_equal_widths():
    with pytest.raises(StrictDataclassError, match="(?s)`tie_word_embeddings`.* got\n? *12 and 8"):
        ContinuousTextAutoencoderConfig(**MODELS["conv"] | {"tie_word_embeddings": True})


@all_models
def test_tied_embeddings_are_the_head(name, tmp_path):
    model = tiny_model(name)
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
    loaded.resize_token_embeddings(70)
    assert loaded(random_ids(1, 4, vocab_size=70)).logits.shape == (1, 4, 70)


@all_models
def test_new_models_are_of_even_scale(name):
    """Whatever the widths: latents of size 1, and the loss near that of a guess."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 96, "hidden_size": 96, "latent_dim": 24, "vocab_size": 500}
    model = ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(**MODELS[name] | sizes))
    ids = random_ids(8, 24, vocab_size=500)
    output = model(ids, labels=ids)
    assert 0.3 < output.mean.std() < 3
    assert output.losses["reconstruction"] < 2 * torch.tensor(500.0).log()


# Padding, rows and lengths


@torch.no_grad()
@all_models
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_rows(name, side):
    """Every row as alone, in its own columns, whatever stands in the padding."""
    model = tiny_model(name, torch.float64)
    rows = [random_ids(1, length, seed=length) for length in (21, 9, 1)]
    ids, mask = pad_rows(rows, side)
    ids = torch.where(mask.bool(), ids, -100)
    output = model(ids, attention_mask=mask)
    decoded = model.decode(output.mean, output.latent_attention_mask).logits
    for index, row in enumerate(rows):
        alone, where = model(row), mask[index].bool()
        length = alone.mean.shape[1]
        assert output.latent_attention_mask[index].tolist() == [1] * length + [0] * (output.mean.shape[1] - length)
        assert_close(output.mean[index, :length], alone.mean[0], **DOUBLE)
        assert_close(output.logvar[index, :length], alone.logvar[0], **DOUBLE)
        assert_close(output.logits[index, where], alone.logits[0], **DOUBLE)
        assert_close(decoded[index, : row.shape[1]], alone.logits[0], **DOUBLE)


@torch.no_grad()
@all_models
def test_padding_within_a_row(name):
    model, row = tiny_model(name, torch.float64), random_ids(1, 13)
    mask = torch.ones_like(row)
    mask[0, [0, 4, 5, 11]] = 0
    there = mask[0].bool()
    output, alone = model(row, attention_mask=mask), model(row[:, there])
    length = alone.mean.shape[1]
    assert_close(output.mean[:, :length], alone.mean, **DOUBLE)
    assert_close(output.logits[:, there], alone.logits, **DOUBLE)


@torch.no_grad()
@all_models
@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 40))
def test_any_length(name, length):
    model, ids = tiny_model(name, torch.float64), random_ids(2, length)
    encoded = model.encode(ids)
    assert encoded.mean.shape == (2, -(-length // model.config.total_stride), 6)
    decoded = model.decode(encoded.mean)
    assert decoded.logits.shape == (2, encoded.mean.shape[1] * model.config.total_stride, 60)
    assert_close(decoded.logits[:, :length], model(ids).logits, **DOUBLE)
    assert torch.equal(model.reconstruct(ids), decoded.logits[:, :length].argmax(dim=-1))


@torch.no_grad()
@all_models
def test_latents_tell_every_token_from_padding(name):
    """What fills up the last latent is no token; a token alone in its latent counts."""
    model = tiny_model(name)
    for length in range(1, model.config.total_stride):
        ids = random_ids(1, length)
        longer, other = F.pad(ids, (0, 1)), torch.cat([ids[:, :-1], ids[:, -1:] - 1], dim=1)
        means = [model.encode(text).mean for text in (ids, longer, other)]
        assert not torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])


@torch.no_grad()
@all_models
def test_rows_are_independent(name):
    model, ids = tiny_model(name), random_ids(3, 10)
    expected = model(ids)
    ids[1] = random_ids(1, 10, seed=7)
    output = model(ids)
    for field in ("mean", "logits"):
        assert torch.equal(output[field][[0, 2]], expected[field][[0, 2]])
        assert not torch.equal(output[field][1], expected[field][1])


@torch.no_grad()
def test_chunks_are_independent():
    model, ids = tiny_model("chunk"), random_ids(1, 12)
    expected = model(ids)
    ids[0, 4] = (ids[0, 4] + 1) % 60
    output = model(ids)
    assert (output.mean != expected.mean).any(dim=-1)[0].tolist() == [False, True, False, False]
    assert (output.logits != expected.logits).any(dim=-1)[0].tolist() == [3 <= column < 6 for column in range(12)]


@torch.no_grad()
def test_convolutions_see_their_neighbourhood():
    model, ids = tiny_model("conv", torch.float64), random_ids(1, 120)
    expected = model.encode(ids).mean
    ids[0, 60] = (ids[0, 60] + 1) % 60
    changed = (model.encode(ids).mean != expected).any(dim=-1)[0].nonzero()[:, 0]
    assert changed.tolist() == list(range(10, 20))


@torch.no_grad()
@all_models
def test_an_empty_row_between_others(name):
    model, ids = tiny_model(name), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0] = 0
    output = model(ids, attention_mask=mask, labels=ids)
    assert output.latent_attention_mask[0].sum() == 0
    assert_close(output.loss, model(ids[1:], labels=ids[1:]).loss)
    nothing = model(ids[:1], attention_mask=mask[:1], labels=ids[:1])
    assert nothing.loss == 0 and nothing.logits.isfinite().all()


# Losses


@torch.no_grad()
@all_models
def test_losses_by_hand(name):
    model = tiny_model(name, torch.float64, kl_loss_weight=0.3)
    ids, mask = pad_rows([random_ids(1, 13), random_ids(1, 5, seed=1)], "right")
    labels = ids.clone()
    labels[0, 2:4] = -100
    output = model(ids, attention_mask=mask, labels=labels)
    counted = mask.bool() & (labels != -100)
    nats = F.cross_entropy(output.logits[counted].float(), ids[counted])
    there = output.latent_attention_mask.bool()
    mean, std = output.mean[there], (output.logvar[there] / 2).exp()
    divergence = kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    assert output.losses["reconstruction"].item() == pytest.approx(nats.item(), rel=1e-5)
    assert output.losses["kl"].item() == pytest.approx(divergence.mean().item(), rel=1e-5)
    assert output.loss.item() == pytest.approx((nats + 0.3 * divergence.mean()).item(), rel=1e-5)
    model.config.kl_clip = float(divergence.quantile(0.5))
    clipped = model(ids, attention_mask=mask, labels=labels).losses["kl"]
    assert clipped.item() == pytest.approx(divergence.clamp(min=model.config.kl_clip).mean().item(), rel=1e-5)


def test_divergence_of_a_standard_normal_is_zero():
    zeros = torch.zeros(3, 4)
    assert (modeling.kl_from_standard_normal(zeros, zeros) == 0).all()


def test_clipped_dimensions_have_no_gradient():
    model, ids = tiny_model("chunk", kl_clip=1e6), random_ids(1, 9)
    model(ids, labels=ids).losses["kl"].backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_parts_of_a_batch_add_up():
    """With `num_items_in_batch`, as the Trainer gives it, the gradients of parts are those of the whole."""
    model = tiny_model("conv", torch.float64, kl_loss_weight=0.3)
    ids = random_ids(4, 8)
    model(ids, labels=ids).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for part in (ids[:1], ids[1:]):
        model(part, labels=part, num_items_in_batch=torch.tensor(32)).loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


# Training only


@torch.no_grad()
def test_samples_follow_the_posterior():
    model, ids = tiny_model("chunk", torch.float64).train(), random_ids(1, 6)
    encoded = model.encode(ids)
    samples = model(ids.expand(4000, -1)).latents
    std = (encoded.logvar[0] / 2).exp()
    assert_close(samples.mean(dim=0) / std, encoded.mean[0] / std, rtol=0, atol=0.1)
    assert_close(samples.std(dim=0) / std, torch.ones_like(std), rtol=0, atol=0.1)
    assert torch.equal(model(ids, sample=False).latents, encoded.mean)
    model.eval()
    assert torch.equal(model(ids).latents, encoded.mean)
    assert not torch.equal(model(ids, sample=True).latents, encoded.mean)
    assert torch.equal(model.reconstruct(ids), model.reconstruct(ids))


@torch.no_grad()
def test_token_dropout():
    """The share of latents that change, when each is of one token, is that of the tokens that are hidden."""
    model = tiny_model("chunk", chunk_size=1, token_dropout=0.3)
    ids = random_ids(50, 100)
    expected = model.encode(ids).mean
    dropped = (model.train().encode(ids).mean != expected).any(dim=-1)
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.03)
    model.embed_tokens.weight.zero_()
    assert torch.equal(model.encode(ids).mean[0, 0], model.encode(ids).mean[0, 1])


@torch.no_grad()
def test_latent_dropout():
    model = tiny_model("chunk", latent_dropout=0.3).train()
    latents = model(random_ids(50, 100), sample=False).latents
    assert (latents == 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (model.eval()(random_ids(50, 100)).latents != 0).all()


@torch.no_grad()
def test_kl_annealing(tmp_path):
    """The weight grows with the batches of training, goes on after loading, and is whole in evaluation."""
    model, ids = tiny_model("conv", kl_loss_weight=2.0, kl_warmup_steps=4).train(), random_ids(1, 8)

    def weight():
        output = model(ids, labels=ids)
        return ((output.loss - output.losses["reconstruction"]) / output.losses["kl"]).item()

    assert [weight(), weight()] == pytest.approx([0.5, 1.0], rel=1e-4)
    model.save_pretrained(tmp_path)
    model = ContinuousTextAutoencoder.from_pretrained(tmp_path).train()
    assert [weight() for _ in range(4)] == pytest.approx([1.5, 2.0, 2.0, 2.0], rel=1e-4)
    model = ContinuousTextAutoencoder.from_pretrained(tmp_path)
    assert weight() == pytest.approx(2.0, rel=1e-4)


@torch.no_grad()
def test_latent_statistics():
    """Those of the means of real latents; evaluation leaves them."""
    model = tiny_model("chunk").train()
    for seed in range(100):
        ids, mask = pad_rows([random_ids(1, 30, seed=seed), random_ids(1, 12, seed=1000 + seed)], "right")
        model(ids, attention_mask=mask)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.latent_norm.state_dict().items()}
    latents = model(random_ids(200, 30, seed=5000)).mean
    assert_close(model.latent_norm.state_dict(), before, **EXACT)
    normal = model.normalize_latents(latents)
    assert_close(normal.mean(dim=(0, 1)), torch.zeros(6), rtol=0, atol=0.1)
    assert_close(normal.std(dim=(0, 1)), torch.ones(6), rtol=0, atol=0.1)
    assert_close(model.denormalize_latents(normal), latents, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision(tmp_path):
    """Statistics stay in float32; latents come back in the dtype that they were given in, and any is decoded."""
    tiny_model("conv").save_pretrained(tmp_path)
    model, ids = ContinuousTextAutoencoder.from_pretrained(tmp_path, dtype=torch.bfloat16), random_ids(1, 8)
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    latents = model.encode(ids).mean
    assert model.normalize_latents(latents).dtype == model.denormalize_latents(latents).dtype == torch.bfloat16
    assert torch.equal(model.decode(latents.float()).logits, model.decode(latents).logits)


# Reconstruction


@pytest.fixture(scope="module")
def exact_model():
    """A model that is trained for seconds on bytes; it has to give every text back."""
    torch.manual_seed(0)
    fields = {"architecture": "chunk", "chunk_size": 2, "embedding_size": 32, "hidden_size": 64, "latent_dim": 32}
    config = ContinuousTextAutoencoderConfig(vocab_size=259, tie_word_embeddings=True, **fields)
    model = ContinuousTextAutoencoder(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
    for _ in range(200):
        ids = torch.randint(0, 259, (8, 64))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.eval()


TEXTS = {
    "ascii": "In the beginning",
    "one": "a",
    "emoji": "naïve 🙂🙂 文字",
    "spaces": "  a , b .\n\n'",
    "long": "xyz" * 30_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_round_trip(exact_model, text):
    assert exact_model.reconstruct(text, tokenizer=ByteTokenizer()) == text


def test_round_trip_of_an_empty_text(exact_model):
    assert exact_model.reconstruct("", tokenizer=ByteTokenizer()) == ""


def test_round_trip_with_the_tokenizer_of_the_checkpoint(exact_model, tmp_path):
    exact_model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="No tokenizer beside the model"):
        AutoModel.from_pretrained(tmp_path).reconstruct("abc")
    ByteTokenizer().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).reconstruct("abcd") == "abcd"


def test_round_trip_of_padded_ids(exact_model):
    ids, mask = pad_rows([random_ids(1, 9, vocab_size=250), random_ids(1, 4, vocab_size=250)], "left")
    assert torch.equal(exact_model.reconstruct(ids, attention_mask=mask), ids)


def test_reconstruction_holds_few_logits(exact_model, monkeypatch):
    ids = random_ids(3, 50, vocab_size=250)
    expected, sizes = exact_model.reconstruct(ids), []
    monkeypatch.setattr(modeling, "MAX_LOGITS_IN_MEMORY", 259 * 7)
    hook = exact_model.lm_head.register_forward_hook(lambda module, args, logits: sizes.append(logits.numel()))
    assert torch.equal(exact_model.reconstruct(ids), expected)
    hook.remove()
    assert max(sizes) == 259 * 7 and sum(sizes) == 259 * 150


def test_samples_are_reconstructed_on_request(exact_model):
    ids = random_ids(4, 100, vocab_size=250)
    with torch.no_grad():
        exact_model.logvar_head.bias += 20
    try:
        assert torch.equal(exact_model.reconstruct(ids), ids)
        assert not torch.equal(exact_model.reconstruct(ids, sample=True), ids)
    finally:
        with torch.no_grad():
            exact_model.logvar_head.bias -= 20


# Bad input


def calls(model):
    return (model.encode, model, model.reconstruct)


@pytest.mark.parametrize("ids", [torch.zeros(3).long(), torch.zeros(1, 3), torch.zeros(1, 0).long()], ids=str)
def test_rejects_ids_of_another_shape_or_dtype(ids):
    for call in calls(tiny_model("conv")):
        with pytest.raises(ValueError, match="`input_ids` must be int64"):
            call(ids)


@pytest.mark.parametrize("bad", [-1, 60, 10**9])
def test_rejects_ids_outside_the_vocabulary(bad):
    ids = random_ids(2, 5)
    ids[1, 2] = bad
    for call in calls(tiny_model("conv")):
        with pytest.raises(ValueError, match=f"`input_ids` must be from 0 to 59, got .*{bad}"):
            call(ids)


def test_rejects_a_mask_or_labels_of_another_shape():
    model, ids = tiny_model("conv"), random_ids(2, 5)
    for call in calls(model):
        with pytest.raises(ValueError, match=r"`attention_mask` must have the shape \(2, 5\), got \(2, 4\)"):
            call(ids, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"`labels` must have the shape \(2, 5\), got \(2, 4\)"):
        model(ids, labels=ids[:, :4])


@pytest.mark.parametrize("shape", [(1, 3, 7), (3, 6), (1, 6, 3), (1, 0, 6)])
def test_rejects_latents_of_another_width(shape):
    with pytest.raises(
        ValueError, match=r"`latents` must have the shape \(batch_size, latent_length, 6\), with .* got"
    ):
        tiny_model("conv").decode(torch.zeros(shape))


def test_rejects_a_latent_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"`latent_attention_mask` must have the shape \(1, 3\), got \(1, 4\)"):
        tiny_model("conv").decode(torch.zeros(1, 3, 6), torch.ones(1, 4))


def test_rejects_another_tokenizer(exact_model):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    with pytest.raises(ValueError, match="`tokenizer` must be .* of 259 tokens .* it has 2048"):
        exact_model.reconstruct("abc", tokenizer=tokenizer)
