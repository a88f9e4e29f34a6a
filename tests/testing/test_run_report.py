"""The page, the sums and the texts of a report; the rest of it is tested where the nasty suite is run."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from interop.report.style import SCRIPT, STYLE
from jaxkit.testing import page, report, results, summary, texts
from jaxkit.testing.run import Outcome

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</pre></script><script>document.title = 'owned'</script> \x1b[31mred\x1b[0m \x00 \ud800 ]]>"
# Clicks on the head of the seconds in the table of all tests, and leaves what is then shown where --dump-dom prints it.
CLICKS = """
<script>
const table = [...document.querySelectorAll("table")].at(-1), head = table.querySelectorAll("th button")[2];
head.click(); head.click();
document.title = JSON.stringify({
  seconds: [...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.value)),
  sorted: head.parentElement.getAttribute("aria-sort"),
  output: document.querySelector("pre").textContent,
  widest: document.documentElement.scrollWidth <= window.innerWidth,
});
</script>
"""


def result(name, word, seconds=0.5, **fields):
    return results.Result(name, word, fields.pop("info", ""), 1000.0, 1000.0 + seconds, **fields)


@pytest.fixture
def outcome():
    tests = [results.Test(f"t.py::{name}", "/t/t.py", models=("org/m",)) for name in ("a", "b", "c", "d")]
    found = [
        result("t.py::a", "passed", 1.5, models=("org/m",), gpu="123 MiB, 143771 MiB, 50 %"),
        result("t.py::b", "failed", 0.25, models=("org/m",), output=EVIL, info=EVIL),
        result("t.py::c", "skipped", 0.0, models=("org/m",)),
        result("t.py::d", "flaky", 3.5, models=("org/m",), info="passed at try 2", output="at first"),
    ]
    return Outcome(found, tests, ["/t/test_empty.py"], None, 1000.0, 1010.0, {"shard": "", "workers": "2"})


@pytest.fixture
def html(outcome, tmp_path):
    path = tmp_path / "tests.html"
    page.write(path, outcome, True, STYLE, SCRIPT)
    return path


class Outline(HTMLParser):
    """Checks that every element is closed, and keeps what is asked for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.requests = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.requests += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(html):
    outline = Outline(html.read_text())
    assert (outline.open, outline.requests) == ([], [])
    assert not re.search(r"https?://|@import|url\(|fetch\(", html.read_text())


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser_output_is_text_and_a_click_on_a_head_sorts(html, tmp_path):
    html.write_text(html.read_text().replace("</body>", CLICKS + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [BROWSER, *flags, "--window-size=700,900", "--dump-dom", html.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dumped, re.S)[1].replace("&lt;", "<").replace("&gt;", ">"))
    assert found["seconds"] == [3.5, 1.5, 0.5 - 0.25, 0.0]
    assert (found["sorted"], found["widest"]) == ("descending", True)
    assert found["output"] == "</pre></script><script>document.title = 'owned'</script> red \ufffd \ufffd ]]>"


def test_the_terminal_shows_use_of_the_gpu_and_hides_skips_and_escapes(outcome):
    text = report.render(outcome, profile=True)
    assert "t.py::a  (GPU after it: 123 MiB, 143771 MiB, 50 %)" in text
    assert "t.py::c" not in text
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "FAILED: 4 collected: 1 failed, 1 flaky, 1 skipped, 1 passed; 10.0 s"
    assert "GPU" not in report.render(outcome, profile=False)


def test_long_output_is_cut_in_its_middle(outcome):
    lines = "\n".join(f"line {i}" for i in range(1000))
    outcome = outcome._replace(results=[result("t.py::b", "failed", output=lines)])
    text = report.render(outcome, profile=False)
    assert "line 0\n" in text
    assert "... 800 lines ..." in text
    assert "line 999\n" in text
    assert text.count("\nline ") == 200


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (["passed", "skipped"], "PASS"),
        (["flaky", "xfailed"], "PASS"),
        (["skipped", "skipped"], "SKIP"),
        (["passed", None], "MISSING"),
        (["missing", "passed"], "MISSING"),
        (["crashed", None], "FAIL"),
        (["stale", "passed"], "PASS"),
        (["stale", "skipped"], "SKIP"),
        (["stale", "failed"], "FAIL"),
        (["xpassed", "passed"], "FAIL"),
    ],
)
def test_a_model_is_as_good_as_the_worst_of_its_tests(words, verdict):
    tests = [results.Test(f"t.py::{i}", "/t/t.py", models=("org/m",)) for i in range(len(words))]
    found = [result(test.id, word, models=test.models) for test, word in zip(tests, words, strict=True) if word]
    assert summary.models(tests, found) == {"org/m": verdict}


def test_a_model_whose_subtest_failed_has_failed():
    tests = [results.Test("t.py::a", "/t/t.py", models=("org/m",))]
    found = [result("t.py::a", "passed", models=("org/m",)), result("t.py::a (i=1)", "failed", models=("org/m",))]
    assert summary.models(tests, found) == {"org/m": "FAIL"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.txt"
    texts.write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        texts.write_whole(path, "second \ud800")
    assert path.read_text() == "first"


def test_moments_are_in_utc():
    assert texts.stamp(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"
