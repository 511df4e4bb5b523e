"""The page of reconstruction errors: what differs, the HTML of it, the file it is read from, and the served page."""

import html
import json
import os
import re
import socket
import subprocess
import sys
import time
import tracemalloc

import gradio
import httpx
import pytest
from gradio_client import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_compressor.cli.main import main
from auto_compressor.continuous_text_autoencoder.error_viewer import (
    DIFFS,
    LEGEND,
    MAX_PAIRS,
    ErrorCase,
    ErrorCases,
    case_html,
    diff_characters,
    diff_html,
    diff_words,
    error_viewer,
    host_of,
    is_own_host,
    launch_options,
    next_case,
    show_case,
    summary_html,
)


EVIL = "<script>alert('x')</script> & \"<b>\" ${7*7} {{value}}"
ANY_TEXT = st.text(alphabet=st.one_of(st.sampled_from("ab <>&\"'\n\t.,\u4e2d\u0301"), st.characters(codec="utf-8")))


def error_case(original="In the end", generated="In an end", right=2, total=3, **fields):
    texts = {"original_text_full": original, "original_text_decoded": original, "generated_text": generated}
    return texts | {"token_accuracy": right / total, "correct_tokens": right, "total_tokens": total} | fields


@pytest.fixture
def write(tmp_path):
    """Writes cases into a file, and returns its path."""

    def write(*cases, name="error_cases.jsonl"):
        path = tmp_path / name
        lines = (json.dumps(case, ensure_ascii=False) + "\n" for case in cases)
        path.write_bytes("".join(lines).encode())
        return path

    return write


def stripped(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def texts_of(page: str) -> list[str]:
    return [stripped(text) for text in re.findall(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)]


def tags_of(page: str) -> set[str]:
    return set(re.findall(r"<(\w+)", page))


# What differs


@settings(deadline=None, max_examples=100, database=None)
@given(ANY_TEXT, ANY_TEXT)
def test_both_texts_are_whole(original, generated):
    for diff in DIFFS.values():
        stretches = diff(original, generated)
        assert "".join(before for before, _ in stretches) == original
        assert "".join(after for _, after in stretches) == generated
        assert tuple(map(stripped, diff_html(stretches))) == (original, generated)


@settings(deadline=None, max_examples=100, database=None)
@given(ANY_TEXT, ANY_TEXT)
def test_marks_are_on_what_differs(original, generated):
    for diff in DIFFS.values():
        before, after = diff_html(diff(original, generated))
        kept = [stripped(re.sub(rf"<{tag}>.*?</{tag}>", "", text, flags=re.DOTALL))
                for tag, text in (("del", before), ("ins", after))]  # fmt: skip
        assert kept[0] == kept[1]
        assert ("<del>" in before or "<ins>" in after) == (original != generated)
        assert "<ins>" not in before and "<del>" not in after


def test_equal_texts_are_one_stretch():
    for diff in DIFFS.values():
        assert diff("one two", "one two") == [("one two", "one two")]
        assert diff("", "") == []


def test_words_and_characters():
    assert diff_words("In the garden", "In the gardens") == [("In the", "In the"), (" garden", " gardens")]
    assert diff_characters("In the garden", "In the gardens") == [
        ("In the", "In the"), (" garden", " garden"), ("", "s")
    ]  # fmt: skip
    assert diff_words("one, two", "one; two") == [("one", "one"), (",", ";"), (" two", " two")]
    assert diff_words("a b c", "a c") == [("a", "a"), (" b", ""), (" c", " c")]


def test_a_word_that_is_frequent_is_compared():
    """Those that difflib leaves out by default, of texts of 200 words or more."""
    original = ("so the cat, " * 100).strip()
    generated = original.replace("cat", "dog", 1)
    assert [pair for pair in diff_words(original, generated) if pair[0] != pair[1]] == [(" cat", " dog")]


def test_long_texts_take_seconds_at_most():
    original, generated = (" ".join(f"{letter}{index % 7}" for index in range(20000)) for letter in "ab")
    start = time.perf_counter()
    for diff in DIFFS.values():
        assert "".join(before for before, _ in diff(original, generated)) == original
    assert time.perf_counter() - start < 20
    assert len(original) * len(generated) > MAX_PAIRS


# HTML


def test_line_ends_that_differ_are_shown():
    assert diff_html([("a\n", "a\n"), ("\n", ""), ("", " \nb")]) == (
        'a\n<del><i class="break"></i>\n</del>',
        'a\n<ins> <i class="break"></i>\nb</ins>',
    )


def test_a_case_is_shown():
    page = case_html(ErrorCase(**error_case("In the end", "In an end", 2, 3)), "words")
    assert texts_of(page) == ["In the end", "In an end"]
    assert "<del> the</del>" in page and "<ins> an</ins>" in page
    for name, value in (("tokens that came back", "2 of 3 (66.67%)"), ("differences", "1"), ("characters lost", "4")):
        assert f"{name} <b>{value}</b>" in page
    assert "characters new <b>3</b>" in page and "<details>" not in page


def test_characters_and_words_differ_on_the_page():
    case = ErrorCase(**error_case("garden", "gardens"))
    assert "<ins>s</ins>" in case_html(case, "characters")
    assert "<ins>gardens</ins>" in case_html(case, "words")


def test_the_text_before_tokens_is_shown_where_it_differs():
    page = case_html(ErrorCase(**error_case("<a>", "b", original_text_full="<\u00e5>")), "words")
    assert texts_of(page) == ["<a>", "b", "<\u00e5>"] and "<details>" in page


def test_everything_is_escaped(write):
    case, path = error_case(EVIL, EVIL[::-1], original_text_full=EVIL * 2), write(error_case(), name="<b>&.jsonl")
    allowed = {"div", "span", "b", "h1", "h2", "p", "pre", "del", "ins", "i", "details", "summary"}
    for by in DIFFS:
        page = case_html(ErrorCase(**case), by)
        assert tags_of(page) <= allowed and texts_of(page) == [EVIL, EVIL[::-1], EVIL * 2]
    summary = summary_html(ErrorCases(path))
    assert tags_of(summary) <= allowed and "&lt;b&gt;&amp;.jsonl" in summary


def test_the_legend_names_every_mark():
    assert "<del>" in LEGEND and "<ins>" in LEGEND and "&#x21b5;" in LEGEND
    assert '.break::before { content: "\\21b5"' in launch_options()["css"]


def test_statistics_of_all_cases(write):
    cases = ErrorCases(
        write(error_case(right=3, total=4), error_case(right=1, total=2), error_case(right=9, total=10))
    )
    page = summary_html(cases)
    for fact in ("texts with errors <b>3</b>", "<b>13 of 16 (81.25%)</b>", "<b>71.67%</b>", "<b>50.00% (case 2)</b>"):
        assert fact in page


# Files


def test_cases_are_read_by_their_place(write):
    written = [error_case(f"\u4e2d {index}\n", right=index, total=9) for index in range(9)]
    path = write(*written)
    path.write_text("\n" + path.read_text(encoding="utf-8").replace("\n", "\r\n\n  \n"), encoding="utf-8", newline="")
    cases = ErrorCases(path)
    assert len(cases) == 9 and [vars(case) for case in cases] == written
    assert list(cases.correct_tokens) == list(range(9))


def test_texts_are_not_held_in_memory(write):
    path = write(*(error_case("a " * 2000, "b " * 2000) for _ in range(3000)))
    assert path.stat().st_size > 2**24
    tracemalloc.start()
    cases = ErrorCases(path)
    page = show_case(cases, 2999, "words")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts_of(page) == ["a " * 2000, "b " * 2000]
    assert peak < 2**23


BAD_LINES = {
    "no JSON": ("{", "case 2: "),
    "a list": ("[]", "case 2: it is no JSON object"),
    "missing": ('{"generated_text": "a"}', "case 2: `original_text_full` must be of the type str, got None"),
    "type": (json.dumps(error_case(correct_tokens="a")), "`correct_tokens` must be of the type int, got 'a'"),
    "counts": (json.dumps(error_case(right=4, total=3)), "`correct_tokens` must be from 0 to `total_tokens`"),
    "bytes": (b"\xff\xfe", "case 2: "),
    "huge": (
        json.dumps(error_case(correct_tokens=1, total_tokens=10**30)),
        "`total_tokens` must be from 0 to 10995116",
    ),
    "too long to read": (b'{"total_tokens": ' + b"9" * 5000 + b"}", "case 2: "),
    "huge share": (json.dumps(error_case(token_accuracy=10**400)), "`token_accuracy` must be from 0 to 1"),
    "NaN": (json.dumps(error_case(token_accuracy=float("nan"))), "`token_accuracy` must be from 0 to 1"),
    "true": (json.dumps(error_case(correct_tokens=True)), "`correct_tokens` must be of the type int, got True"),
    "deep": (b"[" * 100_000, "case 2: it is nested too deep"),
    "deep in a field": (
        b'{"original_text_full": ' + b"[" * 900 + b"]" * 900 + b"}",
        "case 2: `original_text_full` must be of the type str, got a list",
    ),
    "half a pair": (json.dumps(error_case("\ud800")), "`original_text_full` must be Unicode, its character 1"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_files(write, line, message, capsys):
    path = write(error_case())
    with path.open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        ErrorCases(path)
    assert main(["view-errors", str(path)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_file_that_changes_is_no_failure(write):
    cases = ErrorCases(write(error_case(), error_case()))
    cases.path.write_text("{}")
    assert "was changed" in show_case(cases, 1, "words") and "was changed" in show_case(cases, 2, "words")
    cases.path.unlink()
    assert "was changed" in show_case(cases, 1, "words")


# Numbers of cases


@pytest.fixture
def cases(write):
    return ErrorCases(write(*(error_case(f"case {index}", "x") for index in range(1, 4))))


NUMBERS = {1: 1, 3: 3, 0: 1, -5: 1, 4: 3, 10**30: 3, 2.4: 2, None: 1, float("inf"): 3, float("nan"): 1}


@pytest.mark.parametrize(("number", "nearest"), NUMBERS.items(), ids=str)
def test_any_number_shows_a_case(cases, number, nearest):
    page = show_case(cases, number, "words")
    assert texts_of(page)[0] == f"case {nearest}"
    assert (f"There is no case {number}: this is case {nearest}." in page) == (number not in (None, nearest))


def test_next_and_previous_stay_within(cases):
    assert [next_case(cases, 1, number) for number in (1, 2, 3, 99, None)] == [2, 3, 3, 3, 2]
    assert [next_case(cases, -1, number) for number in (1, 2, 3, 99, None)] == [1, 1, 2, 2, 1]


def test_no_errors_are_no_failure(write):
    cases = ErrorCases(write())
    for number in (1, 0, None, 7):
        assert "There are no errors" in show_case(cases, number, "characters")
    assert "Reconstruction errors" in summary_html(cases)


# The page


@pytest.fixture
def serve(write):
    """Serves the page of some cases; returns a client."""
    pages = []

    def serve(*cases):
        page = error_viewer(write(*cases))
        pages.append(page)
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
        return Client(url, verbose=False, analytics_enabled=False), httpx.get(url).text

    yield serve
    for page in pages:
        page.close(verbose=False)


@pytest.mark.parametrize("count", [0, 1, 10000])
def test_the_page_is_served(serve, count):
    client, page = serve(*(error_case(f"<case> {index}", "x") for index in range(1, count + 1)))
    assert "Errors of error_cases.jsonl" in page
    sliders = [part for part in client.config["components"] if part["type"] == "slider"]
    assert len(sliders) == 1 and sliders[0]["props"]["maximum"] == max(count, 2)
    for number in (1, 5000, 10**9, -1):
        shown = client.predict(number, "words", api_name="/show_case")
        nearest = min(max(number, 1), count)
        assert "There are no errors" in shown if count == 0 else texts_of(shown)[0] == f"<case> {nearest}"
    rows = [part for part in client.config["components"] if part["type"] == "row"]
    assert [row["props"]["visible"] for row in rows] == [count > 1]


def test_the_page_has_all_its_parts(serve):
    client, page = serve(error_case("In the end", "In an end"), error_case(EVIL, "0"))
    values = [part["props"].get("value") for part in client.config["components"]]
    assert LEGEND in values and any("texts with errors <b>2</b>" in str(value) for value in values)
    assert "<script>alert" not in page
    assert "<ins>0</ins>" in client.predict(2, "words", api_name="/show_case")
    characters, words = (client.predict(1, by, api_name="/show_case") for by in ("characters", "words"))
    assert characters != words and texts_of(characters) == texts_of(words) == ["In the end", "In an end"]


def test_the_page_is_local(write):
    options = launch_options()
    assert options["share"] is False
    theme = options["theme"]
    assert not [font for font in [*theme._font, *theme._font_mono] if isinstance(font, gradio.themes.GoogleFont)]
    assert not error_viewer(write(error_case())).analytics_enabled


HOSTS = {
    ("127.0.0.1", "127.0.0.1:80"): True,
    ("127.0.0.1", "localhost"): True,
    ("127.0.0.1", "[::1]:80"): True,
    ("127.0.0.1", "evil.example"): False,
    ("127.0.0.1", "127.0.0.1.evil.example"): False,
    ("127.0.0.1", "localhost.evil.example:80"): False,
    ("127.0.0.1", "192.0.2.1"): False,
    ("127.0.0.1", "evil.example@127.0.0.1"): False,
    ("127.0.0.1", ""): False,
    ("0.0.0.0", "192.0.2.1:80"): True,
    ("0.0.0.0", "evil.example"): False,
    ("0.0.0.0", socket.gethostname()): True,
    ("name.example", "Name.Example:81"): True,
}


@pytest.mark.parametrize(("served", "header"), HOSTS, ids=str)
def test_hosts_that_are_answered(served, header):
    assert is_own_host(host_of(header), served) == HOSTS[served, header]


def test_foreign_hosts_and_uploads_are_refused(write):
    page = error_viewer(write(error_case()))
    options = launch_options()
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
    try:
        for path in ("", "config", "gradio_api/info", "theme.css"):
            assert httpx.get(url + path).status_code == 200
            assert httpx.get(url + path, headers={"Host": "evil.example"}).status_code == 400
        files = {"files": ("a.txt", b"harmless")}
        for path in ("gradio_api/upload", "upload", "gradio_api/upload/", "gradio_api//upload"):
            assert httpx.post(url + path, files=files).status_code == 403
        for path in ("gradio_api/component_server", "gradio_api/process_recording", "gradio_api/vibe-edit", "login"):
            assert httpx.post(url + path, json={}).status_code == 403
        assert httpx.put(url, content=b"x").status_code == httpx.delete(url).status_code == 403
        asked = httpx.post(url + "gradio_api/call/show_case", json={"data": [1, "words"]})
        assert asked.status_code == 200 and "event_id" in asked.json()
    finally:
        page.close(verbose=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served_address(process: subprocess.Popen) -> str:
    for line in process.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            return found[0].rstrip("/")
    raise AssertionError("no address was printed")


def test_the_command_serves_until_it_is_ended(write, capsys):
    """On the loopback interface; a second one on its port is one line of error."""
    command = [sys.executable, "-u", "-m", "auto_compressor.cli.main", "view-errors", str(write(error_case()))]
    port = free_port()
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    )
    try:
        assert served_address(process) == f"http://127.0.0.1:{port}"
        assert "Errors of error_cases.jsonl" in httpx.get(f"http://127.0.0.1:{port}").text
        assert main([*command[4:], "--port", str(port)]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_defaults_of_the_command(write, monkeypatch):
    launched = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: launched.update(options))
    assert main(["view-errors", str(write(error_case()))]) == 0
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("127.0.0.1", 7860, False)
    assert main(["view-errors", str(write(error_case())), "--host", "0.0.0.0", "--port", "81"]) == 0
    assert (launched["server_name"], launched["server_port"]) == ("0.0.0.0", 81)


def test_bad_commands(write, tmp_path, capsys, monkeypatch):
    assert main(["view-errors", str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["view-errors", str(write(error_case())), "--port", "0"]) == 1
    assert "--port must be from 1 to 65535, got 0" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["view-errors", str(write(error_case()))]) == 1
    assert 'not installed: pip install "auto-compressor[viz]"' in capsys.readouterr().err
