"""Any bytes to a file by any causal language model of tokens, and back, bit for bit."""

import copy
import functools

import numpy as np
import pytest
import torch
from damage_testing import damaged_parts, outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokens import TOKENIZERS, make_llama, make_opt
from train_testing import ROOT
from transformers import AutoModelForCausalLM

from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT
from auto_compressor.files.coded_file import CodedFileError, most_symbols
from auto_compressor.lossless import codec, range_coding
from auto_compressor.lossless.codec import compress_bytes, decompress_bytes, read_header
from auto_compressor.lossless.reading import SINKS, Context, InFloat64, WindowLayer, distributions
from auto_compressor.lossless.vocabulary import BYTES, vocabulary_of


TEXT = BUNDLED_VALIDATION_TEXT.read_bytes()
FIXTURES = ROOT / "tests" / "fixtures" / "lossless"
MODELS = {
    "llama": make_llama,
    "llama of 16 positions": functools.partial(make_llama, max_position_embeddings=16),
    "opt": functools.partial(make_opt, max_position_embeddings=64),
}
DATA = {
    "nothing": b"",
    "one byte": b"a",
    "no UTF-8": b"caf\xe9 \xff\xfe\x00",
    "text": TEXT[:400],
    "special": b"<|endoftext|> <s>" * 3,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def byte_level():
    return TOKENIZERS["byte-level"]()


@pytest.fixture(scope="module")
def llama():
    return make_llama()


@pytest.fixture
def one_copy(monkeypatch):
    """Makes the float64 copy of a model and its hash once, which take most of the time of a short text."""
    for name in ("exact_copy", "weights_hash", "vocabulary_of"):
        monkeypatch.setattr(codec, name, functools.cache(getattr(codec, name)))
    monkeypatch.setattr(codec, "check_weights", lambda *args: None)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("name", MODELS)
def test_everything_comes_back(name, tokenizer, data):
    model = MODELS[name]()
    for num_streams, window in ((None, None), (3, 10)):
        blob = compress_bytes(model, data, num_streams, window, tokenizer=tokenizer)
        assert decompress_bytes(model, blob, tokenizer=tokenizer) == data


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_byte_strings(name, llama, one_copy):
    """`bash run/fuzz.sh codecs` has more."""
    tokenizer = TOKENIZERS[name]()
    parts = st.lists(st.sampled_from([b"In the beginning", b"\x00", b"\xff\xfe", b"<s>"]), max_size=3)
    strings = st.one_of(st.binary(max_size=40), parts.map(b"".join), st.text(max_size=12).map(str.encode))

    @settings(max_examples=100, deadline=None, database=None)
    @given(strings, st.integers(1, 20), st.integers(2, 16))
    def restored(data, num_streams, window):
        blob = compress_bytes(llama, data, num_streams, window, tokenizer=tokenizer)
        assert decompress_bytes(llama, blob, tokenizer=tokenizer) == data

    restored()


@torch.no_grad()
def test_ideal_bits_are_the_cross_entropy_of_the_model(llama, byte_level, monkeypatch):
    """Without matches: of all tokens after the start, among those that stand for something, and 130 bytes at most."""
    monkeypatch.setattr(codec, "LARGEST_SHARE", 0.0)
    vocabulary = vocabulary_of(byte_level, llama.config.vocab_size)
    ids = torch.from_numpy(vocabulary.symbols_of(TEXT[:500]))[None]
    with_start = torch.nn.functional.pad(ids, (1, 0), value=vocabulary.start)
    logits = llama(with_start).logits[0, :-1, : len(vocabulary.pieces)]
    logits = logits.masked_fill(~vocabulary.is_coded, -torch.inf)
    bits = torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum") / torch.tensor(2.0).log()
    blob = compress_bytes(llama, TEXT[:500], num_streams=1, tokenizer=byte_level)
    header = read_header(blob)
    assert header.ideal_bits == pytest.approx(float(bits), rel=1e-4)
    assert header.num_symbols == ids.shape[1] and header.num_bytes == 500
    assert header.ideal_bits < 8 * len(blob) < 1.005 * header.ideal_bits + 8 * 130


def test_the_table_alone_decodes(llama, byte_level, monkeypatch):
    """The text path of a tokenizer is not taken."""
    blob = compress_bytes(llama, TEXT[:100] + b"\xff", tokenizer=byte_level)
    for name in ("__call__", "decode", "encode", "batch_decode"):
        monkeypatch.setattr(type(byte_level), name, None)
    assert decompress_bytes(llama, blob, tokenizer=byte_level) == TEXT[:100] + b"\xff"


def test_files_of_version_1_decode():
    """With a window that is read again, and 14 ties; the code of before wrote it."""
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "opt").eval()
    blob = (FIXTURES / "version_1.acz").read_bytes()
    header = read_header(blob)
    assert (header.version, header.num_ties, header.window, header.num_streams) == (1, 14, 32, 3)
    assert decompress_bytes(model, blob) == (FIXTURES / "version_1.txt").read_bytes()


def every_tensor(model, run):
    """The dtypes of all floats that the modules of a model return."""
    found = set()

    def hook(module, args, output):
        outputs = output if isinstance(output, tuple) else (output,)
        found.update(t.dtype for t in outputs if isinstance(t, torch.Tensor) and t.is_floating_point())

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    run(model)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def test_all_is_float64(llama):
    """Norms too, which compute in float32 otherwise, and what every module returns."""
    model = copy.deepcopy(llama).double()
    norm, states = model.model.norm, torch.randn(1, 1, 16, dtype=torch.double)
    with InFloat64():
        exact = norm(states)
    by_hand = states / (states.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * norm.weight
    assert (exact - by_hand).abs().max() < 1e-14 < (norm(states) - by_hand).abs().max()
    with InFloat64():
        assert every_tensor(model, lambda m: m(torch.tensor([[1, 2]]))) == {torch.float64}


@torch.no_grad()
def test_probabilities_are_as_precise_as_promised(llama):
    """Read token by token and at once, which compute in other orders: closer than a hundredth of the margin."""
    model, ids = copy.deepcopy(llama).double(), torch.randint(3, 600, (2, 30))
    stepwise = torch.stack(list(distributions(model, BYTES, ids.clamp(max=255), 0, 2))[1:], dim=1)
    with InFloat64():
        logits = model(ids.clamp(max=255)).logits[:, :-1, :256]
    at_once = logits.softmax(-1)
    assert ((stepwise - at_once) / at_once).abs().max() < range_coding.TIE_MARGIN / 100


def test_1_and_2_threads(llama, byte_level):
    blobs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        blobs.append(compress_bytes(llama, TEXT[:500], num_streams=20, tokenizer=byte_level))
    assert decompress_bytes(llama, blobs[0], tokenizer=byte_level) == TEXT[:500]
    torch.set_num_threads(1)
    assert decompress_bytes(llama, blobs[1], tokenizer=byte_level) == TEXT[:500]


def test_other_rounding_makes_no_difference(llama, tokenizer, monkeypatch):
    """Noise a hundred times that of float64, on one side only."""
    blob = compress_bytes(llama, TEXT[:600], num_streams=20, tokenizer=tokenizer)

    def noisy(*args):
        for probs in distributions(*args):
            yield probs * (1 + 1e-12 * torch.randn_like(probs))

    monkeypatch.setattr(codec, "distributions", noisy)
    assert decompress_bytes(llama, blob, tokenizer=tokenizer) == TEXT[:600]


def test_ties_are_coded_too(llama, byte_level, monkeypatch):
    monkeypatch.setattr(range_coding, "TIE_MARGIN", 2e-7)
    blob = compress_bytes(llama, TEXT[:600], num_streams=7, tokenizer=byte_level)
    monkeypatch.undo()
    assert 5 < read_header(blob).num_ties
    assert decompress_bytes(llama, blob, tokenizer=byte_level) == TEXT[:600]


@torch.no_grad()
def test_the_window_slides_over_what_attention_with_a_mask_sees(llama):
    """The first 4 tokens and the last ones, dropped by quarters: as one pass where a mask hides what was dropped."""
    model, ids, window = copy.deepcopy(llama).double(), torch.randint(3, 600, (2, 60)), 16
    context, first, found = Context(model, window, slides=True), SINKS, []
    hidden = torch.zeros(60, 60, dtype=torch.bool)
    for end in range(1, 61):
        if end - first + SINKS > window:
            first += 3
        hidden[end - 1, SINKS:first] = True
        with InFloat64():
            found.append(context.logits(lambda start, stop: ids[:, start:stop], end))
    allowed = torch.ones(60, 60).tril().bool() & ~hidden
    mask = torch.zeros(1, 1, 60, 60, dtype=torch.double).masked_fill(~allowed, -torch.inf)
    with InFloat64():
        expected = model(ids, attention_mask=mask.expand(2, -1, -1, -1)).logits
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=1e-9, atol=1e-11)
    assert all(isinstance(layer, WindowLayer) for layer in context.cache.layers)
    assert max(layer.keys.shape[2] for layer in context.cache.layers) <= window


@torch.no_grad()
def test_reading_starts_again_at_the_last_position():
    """From the last half of the window; positions stay in the context of the model."""
    model, ids = make_opt(max_position_embeddings=40).double(), torch.randint(3, 600, (1, 100))
    context = Context(model, 16, slides=True)
    for end in range(1, 101):
        logits = context.logits(lambda start, stop: ids[:, start:stop], end)
        assert end - context.first <= 40
        if context.first == end - 8 > 0:
            torch.testing.assert_close(logits, model(ids[:, end - 8 : end]).logits[:, -1], rtol=1e-9, atol=1e-11)
    assert context.first > 40


def test_header(llama, byte_level):
    header = read_header(compress_bytes(llama, TEXT[:1000], num_streams=3, window=20, tokenizer=byte_level))
    vocabulary = vocabulary_of(byte_level, llama.config.vocab_size)
    assert (header.version, header.coder, header.model_type) == (3, "float64", "llama")
    assert header.vocabulary_hash == vocabulary.hash[:16] and (header.window, header.num_streams) == (20, 3)
    assert header.num_symbols == len(vocabulary.symbols_of(TEXT[:1000]))


@pytest.mark.parametrize("as_tokens", [True, False])
def test_what_a_model_excludes_comes_back(byte_level, as_tokens):
    """A symbol whose probability is 0 in float64 has a code all the same, and the file says what it cost."""
    model, tokenizer = make_llama() if as_tokens else make_llama(vocab_size=300), byte_level if as_tokens else None
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    data = TEXT[:40]
    blob = compress_bytes(model, data, num_streams=1, tokenizer=tokenizer)
    assert decompress_bytes(model, blob, tokenizer=tokenizer) == data
    assert read_header(blob).ideal_bits < 8 * len(blob)


@pytest.mark.parametrize("num_streams", [1, 3])
def test_what_repeats_costs_little(llama, byte_level, num_streams, monkeypatch):
    """Beyond the window, and from stream to stream, where the model knows nothing of it."""
    data = bytes(np.random.default_rng(0).integers(32, 127, size=200, dtype=np.uint8))
    sizes = lambda: [  # noqa: E731
        len(compress_bytes(llama, text, num_streams=num_streams, window=8, tokenizer=byte_level))
        for text in (data, data * 4)
    ]
    once, repeated = sizes()
    monkeypatch.setattr(codec, "LARGEST_SHARE", 0.0)
    assert repeated < 0.75 * sizes()[1] and once <= 1.02 * sizes()[0]


def test_another_tokenizer_is_refused(llama, byte_level):
    blob = compress_bytes(llama, b"abc", tokenizer=byte_level)
    with pytest.raises(ValueError, match="^The file was made with the vocabulary .*, `tokenizer` has"):
        decompress_bytes(llama, blob, tokenizer=TOKENIZERS["SentencePiece"]())


def test_more_speed_is_more_streams_and_less_context():
    for speeds in (codec.TOKEN_SPEEDS, codec.BYTE_SPEEDS):
        streams = [codec.resolve_num_streams(None, 10**5, speeds[name]) for name in ("fast", "normal", "best")]
        assert streams == sorted(streams, reverse=True) and len(set(streams)) == 3
        windows = [speeds[name].window for name in ("fast", "normal", "best")]
        assert windows == sorted(windows)


def certain(rows, doubt):
    """Distributions `(rows, 256)` that give all but `doubt` to the first digit."""
    probs = np.full((rows, 256), doubt / 255)
    probs[:, 0] = 1 - doubt
    return probs


@pytest.mark.parametrize(("doubt", "times"), [(0.0, 150), (5e-5, 100), (1e-3, 25)])
def test_the_least_cost_of_sure_digits_is_what_the_coder_needs(doubt, times):
    """A model that is never in doubt makes the smallest file of so many symbols, which is not refused."""
    encoder, probs, digits, bits = range_coding.Encoder(), certain(20_000, doubt), np.zeros(20_000, np.int32), 0.0
    for _ in range(times):
        encoder.encode(digits, probs)
        bits += range_coding.least_bits(probs, digits)
    written = encoder.words.nbytes * 8
    assert 0.9 * written - 64 < bits <= written
    assert most_symbols(written // 8) >= times * 20_000


@pytest.mark.parametrize("concentration", [0.01, 0.1, 1.0])
def test_the_least_cost_of_random_digits_is_what_the_coder_needs(concentration):
    generator = np.random.default_rng(0)
    counts = np.floor(generator.dirichlet(np.full(256, concentration), 5000) * range_coding.NUM_COUNTS + 0.5)
    digits = np.array([generator.choice(256, p=row / row.sum()) for row in counts], np.int32)
    encoder = range_coding.Encoder()
    encoder.encode(digits, counts)
    assert encoder.words.nbytes * 8 - 64 < range_coding.least_bits(counts, digits) <= encoder.words.nbytes * 8


def test_decoding_stops_when_the_words_are_spent():
    """However likely the digits are that it finds behind them."""
    encoder, probs = range_coding.Encoder(), certain(10_000, 5e-5)
    encoder.encode(np.zeros(10_000, np.int32), probs)
    decoder = range_coding.Decoder(encoder.words, np.zeros(0, np.int64))
    affordable = decoder.left / range_coding.least_bits(probs[:1], np.zeros(1, np.int32))
    with pytest.raises(CodedFileError, match="decodes to other bytes"):
        for _ in range(int(affordable) // 10_000 + 1):
            assert not decoder.decode(probs).any()


def test_damaged_files(llama, tokenizer, one_copy):
    """Refused, or changed in nothing that matters; `bash run/fuzz.sh codecs` has more."""
    data = TEXT[:60] + b"\xff"
    files = damaged_parts(compress_bytes(llama, data, num_streams=4, tokenizer=tokenizer), 90)
    read = functools.partial(decompress_bytes, llama, tokenizer=tokenizer)
    refused, _, slowest = outcomes(read, files, data)
    assert refused > 45 and slowest < 10


BAD_ARGUMENTS = {
    "speed": ({"speed": "slow"}, "`speed` must be one of fast, normal, best, got 'slow'"),
    "text": ({"data": "abc"}, "`data` must be bytes, got str"),
    "streams": ({"num_streams": 0}, "`num_streams` must be an integer from 1 to 65535, got 0"),
    "window": ({"window": 4096}, "`window` must be an integer from 2 to 2048, .* got 4096"),
    "no tokenizer": ({"tokenizer": None}, "Without a tokenizer, `model` must be a language model of bytes"),
    "training": ({"model": make_llama().train()}, "`model` must be in evaluation mode"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(llama, byte_level, arguments, message):
    with pytest.raises(ValueError, match=message):
        compress_bytes(**({"model": llama, "data": b"abc", "tokenizer": byte_level} | arguments))


def test_progress_tells_the_bits(llama, byte_level):
    seen = []

    def track(steps):
        for step in steps:
            yield step
            seen.append((len(steps), steps.num_bytes, steps.bits_per_byte))

    blob = compress_bytes(llama, TEXT[:400], num_streams=2, progress=track, tokenizer=byte_level)
    header = read_header(blob)
    assert len(seen) == header.num_steps and seen[0][:2] == (header.num_steps, 400)
    assert seen[-2][2] == pytest.approx(header.bits_per_byte, rel=0.05)
