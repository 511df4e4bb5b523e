"""Borders of a text as the models set them, and the web page that shows them."""

import html
import io
import math
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    GRUByteConfig,
    GRUByteForCausalLM,
    HierarchicalAutoencoder,
    HierarchicalAutoencoderConfig,
)
from auto_compressor.cli.main import main
from auto_compressor.evaluation.borders import PatchLevel, TextBorders, text_borders
from auto_compressor.evaluation.borders_page import ROW_BYTES, borders_page, byte_labels


TEXT = b"In the beginning God created the heavens and the earth. " * 3
LEVEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_expander_layers": 1,
    "window": 4,
    "memory_window": 4,
    "max_patch_length": 4,
}
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VOID = {"meta"}
SVG_VOID = {"path", "polyline"}  # closed in their own tag


def make_adaptive(num_levels=3):
    torch.manual_seed(0)
    thresholds = {"byte_entropy_threshold": 12.0, "meta_uncertainty_threshold": 1.5}
    return AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=16, num_levels=num_levels, **thresholds)).eval()


def make_autoencoder():
    torch.manual_seed(0)
    levels = [dict(LEVEL), LEVEL | {"max_patch_length": 3}]
    config = HierarchicalAutoencoderConfig(level_configs=levels, code_sequence_config=SIZES, block_size=50)
    return HierarchicalAutoencoder(config).eval()


@pytest.fixture(scope="module", params=[make_adaptive, make_autoencoder])
def model(request):
    return request.param()


def test_adaptive_borders_are_those_of_the_model():
    model = make_adaptive()
    borders = text_borders(model, TEXT)
    ids = torch.tensor([list(TEXT)])
    with torch.no_grad():
        output = model(ids)
    first, second = (mask[0].tolist() for mask in output.border_masks)
    assert borders.levels[0].starts == list(range(len(TEXT)))
    assert borders.levels[1].starts == [byte for byte, border in enumerate(first) if border]
    assert borders.levels[2].starts == [
        byte for byte, border in zip(borders.levels[1].starts, second, strict=False) if border
    ]
    assert 1 < len(borders.levels[2].starts) < len(borders.levels[1].starts) < len(TEXT)
    assert borders.entropies == pytest.approx((output.entropies[0] / math.log(2)).tolist())
    for level, logits in ((0, output.encoder_logits), (2, output.logits)):
        nats = -logits[0, :-1].log_softmax(-1)[range(len(TEXT) - 1), ids[0, 1:]].mean()
        assert borders.levels[level].bits_per_byte == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    assert borders.levels[1].bits_per_byte is None


def test_hierarchical_borders_are_those_of_the_model():
    model = make_autoencoder()
    borders = text_borders(model, TEXT)
    output = model.encode(*model.blocks(TEXT))
    lengths = output.patch_lengths
    bytes_of_patches = lengths[0][lengths[0] > 0]
    assert borders.levels[1].starts == (bytes_of_patches.cumsum(0) - bytes_of_patches).tolist()
    top = output.lengths[output.lengths > 0]
    assert borders.levels[2].starts == (top.cumsum(0) - top).tolist()
    assert {0, 50, 100, 150} <= set(borders.levels[2].starts)
    assert borders.entropies == pytest.approx(
        (output.entropies[0][model.blocks(TEXT)[1].bool()] / math.log(2)).tolist()
    )
    bits = model.config.level_configs[0].bits_per_code * len(bytes_of_patches) / len(TEXT)
    assert borders.levels[1].bits_per_byte == pytest.approx(bits)
    assert 0 < borders.levels[0].bits_per_byte < 12


@pytest.mark.parametrize("data", [b"\x00", b"ab", bytes(range(256)), b"\xff" * 60], ids=["one", "two", "all", "same"])
def test_any_bytes_have_borders(model, data):
    borders = text_borders(model, data)
    assert len(borders.entropies) == len(data)
    for below, level in zip(borders.levels, borders.levels[1:], strict=False):
        assert level.starts[0] == 0 and set(level.starts) <= set(below.starts) and level.starts == sorted(level.starts)
    assert "nan" not in borders_page(borders, "title")


def test_one_level_has_no_borders():
    borders = text_borders(make_adaptive(num_levels=1), TEXT)
    assert len(borders.levels) == 1
    assert "<i" not in borders_page(borders, "title")


BAD_ARGUMENTS = {
    "empty": (make_adaptive, b"", "`data` must have one byte at least"),
    "no borders": (lambda: GRUByteForCausalLM(GRUByteConfig(hidden_size=8)).eval(), b"a", "got GRUByteForCausalLM"),
    "training": (lambda: make_adaptive().train(), b"a", "`model` must be in evaluation mode"),
}


@pytest.mark.parametrize(("make", "data", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(make, data, message):
    with pytest.raises(ValueError, match=message):
        text_borders(make(), data)


class Page(HTMLParser):
    """Checks that elements are closed in order, and takes out what the page shows."""

    def __init__(self, page):
        super().__init__()
        self.open, self.counts, self.text, self.bytes, self.patches = [], {}, {}, [], {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "b":
            position, value, bits = re.match(r"byte ([\d,]+): (..), ([\d.]+) bits", attributes["title"]).groups()
            shade = int(re.match(r"e(\d+)", attributes["class"])[1])
            self.bytes.append((int(position.replace(",", "")), int(value, 16), float(bits), shade))
        if tag == "i":
            self.patches.setdefault(attributes["class"], []).append(len(self.bytes))

    def handle_startendtag(self, tag, attributes):
        assert tag in SVG_VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


def make_borders(data=TEXT, starts=((0, 5, 9), (0, 9)), entropies=None):
    levels = [PatchLevel(list(range(len(data))), 2.5), *(PatchLevel(list(level), None) for level in starts)]
    entropies = entropies or [index % 9 for index in range(len(data))]
    return TextBorders("adaptive_byte", data, entropies, levels, "A note.")


def test_the_page_shows_every_byte_and_every_patch():
    page = Page(borders_page(make_borders(), "title"))
    assert [(position, value) for position, value, _, _ in page.bytes] == list(enumerate(TEXT))
    assert [bits for *_, bits, _ in page.bytes] == [index % 9 for index in range(len(TEXT))]
    shades = {bits: shade for *_, bits, shade in page.bytes}
    assert [shades[bits] for bits in range(9)] == [0, 4, 8, 12, 16, 20, 24, 24, 24]
    assert page.patches == {"p1": [0, 5, 9], "p2": [0, 9]}
    assert page.text["b"] == TEXT.decode()


def test_the_page_of_a_model_is_whole(model):
    borders = text_borders(model, TEXT)
    page = Page(borders_page(borders, "title"))
    assert bytes(value for _, value, *_ in page.bytes) == TEXT
    assert page.patches == {f"p{level}": borders.levels[level].starts for level in (1, 2)}
    assert page.counts["svg"] == -(-len(TEXT) // ROW_BYTES)


def test_brackets_stand_at_their_bytes():
    """In the rows of the curve: of 96 bytes each, 11 wide, from 26 on; a patch goes on in the next row."""
    page = borders_page(make_borders(TEXT[:100], starts=((0, 4, 98), (0, 98))), "title")
    first, second = re.findall(r"<svg.*?</svg>", page)
    brackets = [re.findall(r'class="bracket p1" d="M(\d+) \d+(?:V\d+)?H(\d+)', row) for row in (first, second)]
    assert brackets == [[("26", "68"), ("70", "1080")], [("26", "46"), ("48", "68")]]
    lines = [re.findall(r'class="border p(\d)" d="M(\d+) ', row) for row in (first, second)]
    assert [sorted(found) for found in lines] == [[("1", "70"), ("2", "26")], [("2", "48")]]


def test_the_curve_is_that_of_the_entropies():
    page = borders_page(make_borders(b"abc", starts=((0,),), entropies=[0.0, 4.0, 8.0]), "title")
    assert 'class="curve" points="31.5,78.0 42.5,42.0 53.5,6.0"' in page


def test_the_table():
    borders = make_borders(TEXT[:20], starts=((0, 5, 9, 12), (0, 12)))
    rows = re.findall(r"<tr>(.*?)</tr>", borders_page(borders, "title"))
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert cells[1] == ["0: bytes", "20", "", "1", "1.00", "2.500"]
    assert cells[2] == ["1: patches of level 0", "4", "5.00", "8", "5.00", ""]
    assert cells[3] == ["2: patches of level 1", "2", "2.00", "12", "10.00", ""]
    assert "A note." in borders_page(borders, "title")


def test_labels_of_bytes():
    data = "a\u00e9\u4e2d\n\t\x00".encode() + b"\xff\xc3" + "\u202e".encode()
    expected = [("a", False), ("\u00e9", False), ("", False), ("\u4e2d", False), ("", False), ("", False)]
    expected += [("\u21b5", True), ("\u21e5", True), ("00", True), ("FF", True), ("C3", True)]
    expected += [("E2", True), ("80", True), ("AE", True)]
    assert list(byte_labels(data)) == expected


def test_borders_within_a_character():
    data = "\u4e2d\u6587".encode()
    page = Page(borders_page(make_borders(data, starts=((0, 1, 4),)), "title"))
    assert page.patches == {"p1": [0, 1, 4]} and len(page.bytes) == 6


def test_text_and_title_are_escaped():
    text = "<script>alert('x')</script> & \"<b>\""
    page = borders_page(make_borders(text.encode(), starts=((0,),)), f"{text}.txt")
    assert "<script" not in page and "alert" not in re.sub(r"<title>.*?</title>|<h1>.*?</h1>", "", page)
    assert page.count("&lt;</b>") == page.count(">&lt;</text>") == text.count("<")
    assert Page(page).text["h1"] == f"{text}.txt"
    assert html.unescape(page).count(f"{text}.txt") == 2


def test_nothing_comes_from_elsewhere():
    page = borders_page(make_borders(), "title")
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img|<iframe", page)


def test_any_bytes_make_a_page():
    @settings(max_examples=100, deadline=None, database=None)
    @given(st.binary(min_size=1, max_size=300), st.randoms(use_true_random=False))
    def shown(data, random):
        starts, below = [], list(range(len(data)))
        for _ in range(3):
            below = [0, *(start for start in below[1:] if random.random() < 0.4)]
            starts.append(below)
        entropies = [random.uniform(0, 8.1) for _ in data]
        page = Page(borders_page(make_borders(data, starts, entropies), "title"))
        assert bytes(value for _, value, *_ in page.bytes) == data
        assert page.patches == {f"p{level}": level_starts for level, level_starts in enumerate(starts, start=1)}

    shown()


def test_no_borders_twice():
    """The line of a byte that begins patches on several levels is that of the highest."""
    page = borders_page(make_borders(TEXT[:20], starts=((0, 5, 9), (0, 5), (0,))), "title")
    assert sorted(re.findall(r'class="border p(\d)" d="M(\d+) ', page)) == [("1", "125"), ("2", "81"), ("3", "26")]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def test_the_command(model, folder, tmp_path, monkeypatch):
    file, output = tmp_path / "a & b.txt", tmp_path / "page.html"
    file.write_bytes(TEXT + b"\xff")
    command = ["show-borders", "--model", str(folder), "-o", str(output), "--text"]
    assert main([*command, str(file)]) == 0
    assert output.read_text(encoding="utf-8") == borders_page(
        text_borders(model, TEXT + b"\xff"), "Borders of a & b.txt"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    assert main([*command, "-", "--max-bytes", "30"]) == 0
    expected = borders_page(text_borders(model, TEXT[:30]), "Borders of standard input")
    assert output.read_text(encoding="utf-8") == expected


def test_a_name_that_is_no_text(folder, tmp_path):
    file, output = tmp_path / "\udcff.txt", tmp_path / "page.html"
    file.write_bytes(TEXT)
    assert main(["show-borders", "--model", str(folder), "-o", str(output), "--text", str(file)]) == 0
    assert "Borders of ?.txt" in output.read_text(encoding="utf-8")


BAD_INPUT = {
    "no file": (["--text", "{tmp}/none"], "No such file"),
    "empty": (["--text", "{tmp}/empty"], "must hold text, it is empty"),
    "over the text": (["--text", "{tmp}/text", "-o", "{tmp}/text"], "must be another file than the one"),
    "no bytes": (["--text", "{tmp}/text", "--max-bytes", "0"], "--max-bytes must be 1 or more, got 0"),
    "no borders": (
        ["--text", "{tmp}/text", "--model", "{tmp}/llama"],
        "must be of the type adaptive_byte or hierarchical_autoencoder, it is of the type llama",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "empty").touch()
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **SIZES)).save_pretrained(tmp_path / "llama")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    for option, value in (("-o", str(tmp_path / "o")), ("--model", str(folder))):
        arguments += [] if option in arguments else [option, value]
    capsys.readouterr()
    assert main(["show-borders", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists() and (tmp_path / "text").read_bytes() == TEXT
