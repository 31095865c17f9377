"""The report site as a reader's browser shows it: opened from its files, in narrow and wide windows, light, dark and on paper."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hpml import env, records, report

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("index.html", "23_mixed_precision.html")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report of a machine's reference records of one notebook, with a stored notebook as the executed one."""
    run = tmp_path_factory.mktemp("reported")
    found = records.read(next(env.reference_dir().glob("intel*/records.jsonl")))
    for record in found:
        if record.case["phase"] == "limit" or (record.notebook or "")[:2] == "23":
            records.append(run / "records.jsonl", record)
    (run / "notebooks").mkdir()
    shutil.copyfile(ROOT / "notebooks" / "23_mixed_precision.ipynb", run / "notebooks" / "23_mixed_precision.ipynb")
    return report.build(run).parent


@pytest.fixture
def shown(browser, site):
    """`shown(page, width=..., scheme=...)` opens a page of the report."""
    def show(page: str, *, width: int = 1280, scheme: str = "light"):
        browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open((site / page.partition("#")[0]).as_uri() + page[page.find("#"):] * ("#" in page), width=width,
                     ready="document.readyState === 'complete' && !document.querySelector('#theme').hidden")
        return browser

    yield show
    browser.look("localStorage.clear()")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [400, 768, 1280])
def test_no_page_scrolls_sideways(shown, page, width):
    browser = shown(page, width=width)
    assert browser.look("document.documentElement.scrollWidth <= innerWidth")
    scrolled = "[...document.querySelectorAll('.scroll, pre')].filter((box) => box.scrollWidth > box.clientWidth)"
    assert browser.look(f"{scrolled}.every((box) => box.tabIndex === 0)"), "what is scrolled inside is reached by the keyboard"
    if width == 400:
        assert browser.look(f"{scrolled}.length") > 0
    assert len(set(Image.open(io.BytesIO(browser.picture())).convert("L").tobytes())) > 20


def test_it_asks_nobody_outside_and_says_nothing_on_the_console(shown):
    browser = shown(PAGES[0])
    said, asked = len(browser.said), len(browser.asked)
    for page in PAGES:
        shown(page)
    assert not browser.said[said:]
    names = [address.rpartition("/")[2] for address in browser.asked[asked:] if not address.startswith("data:")]
    assert names == [name for page in PAGES for name in (page, "style.css", "script.js")]
    assert all(address.startswith(("file:///", "data:")) for address in browser.asked[asked:])


def test_the_search_finds_words_of_every_page_and_leads_to_their_section(shown):
    browser = shown("index.html")
    browser.look("document.querySelector('#search').focus()")
    browser.wait("!!window.hpmlPages")
    browser.call("Input.insertText", text="scaler nothing underflows")
    browser.wait("document.querySelectorAll('#found li').length === 1")
    assert browser.look("document.querySelector('#found [role=status]').textContent") == "1 section with “scaler nothing underflows”"
    target = browser.look("document.querySelector('#found a').getAttribute('href')")
    assert target == "23_mixed_precision.html#parity-first"
    assert "underflows" in browser.look("document.querySelector('#found mark').parentElement.parentElement.innerText")
    browser.look("document.querySelector('#search').value = ''")
    browser.call("Input.insertText", text="<img src=x onerror=alert(1)>")
    browser.wait("document.querySelector('#found [role=status]').textContent.startsWith('Nothing has')")
    assert browser.look("document.querySelectorAll('#found img').length") == 0
    shown(target)
    assert browser.look("document.querySelector(':target').textContent").startswith("Parity first")


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(shown):
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(13, 17, 23)'"
    assert shown("index.html", scheme="dark").look(dark)
    browser = shown("index.html", scheme="light")
    assert not browser.look(dark) and browser.look("document.querySelector('#theme').textContent") == "Dark"
    browser.look("document.querySelector('#theme').click()")
    assert browser.look(dark)
    assert shown("23_mixed_precision.html", scheme="light").look(dark)


def test_tables_are_sorted_by_the_keyboard(shown):
    browser = shown("index.html")
    head = "[...document.querySelector('table.results').tHead.rows[0].cells].find((cell) => cell.textContent === 'ratio')"
    ratios = f"[...document.querySelector('table.results').tBodies[0].rows].map((row) => row.cells[{head}.cellIndex].textContent)"
    before = browser.look(ratios)
    browser.look(f"{head}.querySelector('button').focus()")
    for order in ("ascending", "descending"):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
        assert browser.look(f"{head}.getAttribute('aria-sort')") == order
        numbers = [float(text.rstrip("x")) for text in browser.look(ratios) if text]
        assert numbers == sorted(numbers, reverse=order == "descending") and len(numbers) > 2
        assert sorted(browser.look(ratios)) == sorted(before) and browser.look(ratios)[-1] == "", "empty cells stay below"


def test_on_paper_nothing_is_cut_and_no_button_is_left(shown):
    browser = shown("index.html", width=700)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.look("document.documentElement.scrollWidth <= innerWidth")
    assert browser.look("[...document.querySelectorAll('nav, header, .plain, form, .permalink')].every((one) => !one.offsetHeight)")
    wide = "[...document.querySelectorAll('main table, main img')].filter((one) => one.getBoundingClientRect().right > innerWidth)"
    assert browser.look(f"{wide}.length") == 0
    paper = base64.b64decode(browser.call("Page.printToPDF")["data"])
    browser.call("Emulation.setEmulatedMedia", media="")
    assert paper.startswith(b"%PDF") and len(paper) > 20_000


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_fault(shown, page):
    """By axe-core (Deque), the rules of WCAG 2.2 A and AA and its best practices, in both themes and on a phone."""
    axe = Path(os.environ.get("HPML_AXE") or AXE)
    if not axe.is_file():
        pytest.skip("axe-core is not here: npm install --no-save axe-core, or HPML_AXE=path/to/axe.min.js")
    for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light")):
        browser = shown(page, width=width, scheme=scheme)
        browser.look(f"{axe.read_text(encoding='utf-8')};0")
        found = json.loads(browser.look("axe.run().then((result) => JSON.stringify(result.violations))"))
        assert not [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]]) for one in found], (width, scheme)
