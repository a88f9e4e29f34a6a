"""The page of a cross-check: whole, self-contained, and alive in a browser. What it reports is tested in crosscheck."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from twins import draw, twins

from interop import crosscheck
from interop.tables import table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Clicks on a head of the first table twice, and leaves what the page then shows where --dump-dom prints it.
CLICKS = """
<script>
const head = document.querySelectorAll("table")[0].querySelectorAll("th button")[5];
head.click(); head.click();
const rows = [...document.querySelectorAll("table")[0].tBodies[0].rows];
const circle = document.querySelector("circle.failed").getBoundingClientRect();
document.title = JSON.stringify({
  errors: rows.map(row => Number(row.cells[5].dataset.value)),
  sorted: head.parentElement.getAttribute("aria-sort"),
  drawn: circle.width > 0 && circle.height > 0,
  widest: document.documentElement.scrollWidth <= window.innerWidth,
});
</script>
"""


@pytest.fixture(scope="module")
def broken():
    """The cross-check of a network whose second convolution has its inputs and outputs swapped."""
    net, model, _, variables = twins("lenet_tiny", (20, 20, 3))
    kernel = variables["params"]["conv2"]["kernel"]
    variables["params"]["conv2"]["kernel"] = kernel[::-1]
    images, _ = draw((20, 20, 3), 4)
    return crosscheck(net, model, table("lenet_tiny"), np.asarray(images), variables=variables, steps=1)


@pytest.fixture(scope="module")
def page(broken, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    broken.html(str(path))
    return path.read_text()


class Outline(HTMLParser):
    """Which elements are open, what they ask for, how many cells each row of a table has."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.open, self.requests, self.tables = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.requests += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_element_of_the_page_is_closed_and_every_row_has_as_many_cells_as_its_head(page):
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.tables) >= 5
    assert [set(rows) for rows in outline.tables] == [{rows[0]} for rows in outline.tables]


def test_the_page_asks_for_no_other_file(page):
    assert Outline(page).requests == []
    assert not re.search(r"https?://|@import|url\(|fetch\(", page)


def test_the_page_names_the_layer_that_is_wrong_itself_and_tells_it_from_those_that_inherit(page, broken):
    assert broken.first_local.name == "conv_2"
    assert "conv_2 (conv2) is wrong itself" in page
    verdicts = re.findall(r'<td class="(?:ok|fail|inherited)">(\w+)</td></tr>', page.split("</table>")[0])
    assert verdicts == ["ok", "fail", "inherited", "inherited", "inherited"]


def test_what_is_no_number_is_shown_and_is_null_in_json(broken):
    layers = [layer._replace(output=layer.output._replace(error=np.nan)) for layer in broken.layers]
    report = broken._replace(layers=layers)
    assert "nan" in report.table()
    assert json.loads(report.json())["layers"][0]["output"]["error"] is None


@pytest.mark.parametrize("width", [72, 120])
def test_the_terminal_table_keeps_to_its_width(broken, width):
    # below 80 columns a table is as wide as 80
    assert max(map(len, broken.table(width).splitlines())) <= max(width, 80)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser_plots_are_drawn_and_a_click_on_a_head_sorts(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", CLICKS + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [BROWSER, *flags, "--window-size=700,900", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dumped)[1])
    assert found["errors"] == sorted(found["errors"], reverse=True)
    assert len(found["errors"]) == 5
    assert (found["sorted"], found["drawn"], found["widest"]) == ("descending", True, True)
