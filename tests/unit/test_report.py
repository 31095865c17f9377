"""The report site of a run, from made-up records and small executed notebooks."""

import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_ladder import climbed
from test_tables import fit, make, noise, study, sweep

from hpml import records, report, report_notebook

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def executed(path: Path, title: str, *, markdown: str = "", outputs: list | None = None) -> Path:
    """A tiny executed notebook."""
    import nbformat
    from nbformat import v4

    cells = [
        v4.new_markdown_cell(f"# {title}\n\n{markdown}"),
        v4.new_code_cell("speed = 1.5  # planted\nspeed", execution_count=1, outputs=outputs or [v4.new_output("stream", text="1.5\n")]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def run_folder(path: Path, found=None, *, tier: str = "cpu") -> Path:
    from nbformat import v4

    for record in study() if found is None else found:
        record.notebook = "23_mixed_precision" if record.case["technique"] == "precision" else None
        records.append(path / "records.jsonl", record)
    executed(
        path / "notebooks" / "00_start_here.ipynb",
        "Start here",
        markdown=(
            "Inline $t = \\frac{F}{R}$ and\n\n$$s = \\frac{t_0}{t_1} < 2$$\n\nIt costs $5 and $6. [next](23_mixed_precision.ipynb), "
            "[paper](https://arxiv.org/abs/1512.03385), [gone](../README.md).\n\n| a | b |\n|---|---|\n| `x$y$z` | 2 |\n\n" + EVIL
        ),
    )
    executed(
        path / "notebooks" / "23_mixed_precision.ipynb",
        "Mixed precision",
        outputs=[
            v4.new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
            v4.new_output("display_data", {"text/markdown": f"*Alt text: bf16 is 1.38x \\[1.3, 1.4\\]*\n\n{EVIL}"}),
            v4.new_output(
                "display_data",
                {
                    "text/html": f"<style>p {{background: url(http://evil.example/x.png)}}</style><table><tr><td>7</td></tr></table>{EVIL}"
                    '<a href="http://evil.example" onclick="x()">link</a><img src="http://evil.example/p.png">'
                },
            ),
            v4.new_output("display_data", {"image/png": PNG}),
        ],
    )
    (path / "status.json").write_text(
        json.dumps(
            {
                "run_id": "made-up",
                "tier": tier,
                "started": "2026-01-01T10:00:00",
                "ended": None,
                "budget_s": 2700,
                "notebooks": [
                    {
                        "name": "00_start_here",
                        "title": "Start here",
                        "question": "What can this machine do?",
                        "status": "ok",
                        "reason": None,
                        "seconds": 7.1,
                    },
                    {
                        "name": "23_mixed_precision",
                        "title": "Mixed precision",
                        "question": "What does BF16 give?",
                        "status": "failed",
                        "reason": f"cell 4: {EVIL}",
                        "seconds": 61.0,
                    },
                    {
                        "name": "32_tensorrt",
                        "title": "TensorRT",
                        "question": "What does an engine buy?",
                        "status": "skipped",
                        "reason": "no GPU",
                        "seconds": 0,
                    },
                ],
            }
        )
    )
    return path


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.words, self.stack = [], [], []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in report_notebook.VOID | {"meta", "link", "input"}:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report folder of a whole made-up run."""
    return report.build(run_folder(tmp_path_factory.mktemp("run"))).parent


def pages(site: Path) -> dict[str, Page]:
    return {path.name: Page(path) for path in sorted(site.glob("*.html"))}


def test_there_is_a_page_for_each_executed_notebook(site):
    assert set(pages(site)) == {"index.html", "records.html", "00_start_here.html", "23_mixed_precision.html"}
    for page in pages(site).values():
        assert not page.stack, "every tag is closed"


def test_links_resolve_and_nothing_is_fetched_from_outside(site):
    every = pages(site)
    ids = {name: {attrs["id"] for _, attrs in page.tags if attrs.get("id")} for name, page in every.items()}
    for name, page in every.items():
        for tag, attrs in page.tags:
            for key in ("href", "src"):
                target = attrs.get(key)
                if target is None or target.startswith("data:"):
                    continue
                assert not re.match(r"\w+:|//", target), f"{name}: <{tag} {key}={target}>"
                file, _, anchor = target.partition("#")
                assert (site / file).is_file() if file else anchor, f"{name}: {target}"
                assert not anchor or anchor in ids[file or name], f"{name}: {target}"
            assert not any(key.startswith("on") for key in attrs), f"{name}: {tag} {attrs}"
            assert "style" not in attrs or "url(" not in attrs["style"]
    css = (site / "style.css").read_text()
    assert "url(" not in css and "@import" not in css


def test_every_picture_has_alternative_text(site):
    found = {name: [attrs for tag, attrs in page.tags if tag == "img"] for name, page in pages(site).items()}
    assert all(attrs.get("alt") for pictures in found.values() for attrs in pictures)
    assert found["23_mixed_precision.html"][0]["alt"] == "bf16 is 1.38x [1.3, 1.4]"
    assert len(found["index.html"]) >= 8
    folded = '<details class="alt"><summary>In words</summary>bf16 is 1.38x [1.3, 1.4]</details>'
    assert folded in (site / "23_mixed_precision.html").read_text()


def test_scripts_are_only_our_own(site):
    for name, page in pages(site).items():
        assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"src": "script.js"}], name
        assert not [tag for tag, _ in page.tags if tag in ("iframe", "style", "object")]
        assert "alert(1)" not in "".join(str(attrs) for tag, attrs in page.tags if tag != "img")


def test_the_index_tells_status_machine_verdicts_and_reasons(site):
    text = pages(site)["index.html"].text
    for part in (
        "Xeon Platinum 8480C",
        "tier cpu",
        "0000000000",
        "45.0 min",
        "CIFAR-10 (real)",
        "✓ ok",
        "✗ failed",
        "– skipped",
        "no GPU",
        "not yet",
        "cell 4: <script>alert('x')</script>",
        "What can this machine do?",
        "Faster, quality kept (1)",
        "ResNet-50 training with precision=bf16 is faster than the baseline (precision=fp32): 1.38x",
        "is slower than the baseline (workers=0)",
        "FP16 training on a CPU: no fast FP16 here",
        "no NVIDIA GPU or no driver",
        "int8 torch: bf16 is not in this library",
        "Before you measure",
        "Training ladder",
        "Deployment",
    ):
        assert part in text, part
    assert "smoke" not in text


def test_formulas_are_mathml_and_dollars_in_code_or_prices_are_not(site):
    raw = (site / "00_start_here.html").read_text()
    assert raw.count("<math") == 2 and "<mfrac>" in raw and 'display="block"' in raw
    assert "It costs $5 and $6." in pages(site)["00_start_here.html"].text and "<code>x$y$z</code>" in raw
    assert report_notebook.mathml(r"\frac{").startswith("<code>") or "<math" in report_notebook.mathml(r"\frac{")


def test_code_is_folded_and_links_between_notebooks_work(site):
    page = pages(site)["00_start_here.html"]
    assert ("details", {"class": "code"}) in page.tags
    assert ("a", {"href": "23_mixed_precision.html"}) in page.tags
    assert "https://arxiv.org/abs/1512.03385" in page.text


def test_charts_and_tables_are_files_too(site):
    charts, csvs = (
        {path.name for path in (site.parent / "charts").glob("*.png")},
        {path.name for path in (site.parent / "tables").glob("*.csv")},
    )
    assert {
        "worth.png",
        "resnet50-train-precision.png",
        "resnet50-train-workers.png",
        "resnet50-curves.png",
        "resnet50-phases.png",
        "limits.png",
        "resnet50-latency.png",
        "noise-train.png",
        "xlnet-train-precision.png",
        "resnet50-infer-engine.png",
        "resnet50-infer-engine-2.png",
    } <= charts
    assert {"all.csv", "resnet50-train-precision.csv", "resnet50-infer-engine-3.csv"} <= csvs


def test_the_five_charts_open_the_report_and_what_is_missing_is_said(site):
    page = pages(site)["index.html"]
    places = [page.text.index(f"{number} · {title}") for number, title in enumerate(
        ("What is worth it", "The ladder", "Where a step goes", "Speed against quality", "Load"), 1)]
    assert places == sorted(places) and places[-1] < page.text.index("Faster, quality kept")
    assert "not measured: no stack was climbed step by step (notebook 27)" in page.text
    assert "not measured: no service was put under load (notebook 35)" in page.text
    assert (site.parent / "charts" / "steps.png").is_file()


def test_every_figure_leads_to_its_records_its_notebook_and_its_command(site):
    index, traced = pages(site)["index.html"], Page(site / "records.html")
    text = (site / "index.html").read_text()
    best = re.search(r'<table class="best">.*?</table>', text, re.S)[0]
    figure = re.search(r'<a class="figure" href="records.html#(case-\w+)">1.38x \[[^<]*</a>', best)
    assert figure and "./run_all.sh --tier cpu --only 23 --workloads resnet50" in best and 'href="23_mixed_precision.html"' in best
    place = re.search(rf'<tbody id="{figure[1]}">.*?</tbody>', (site / "records.html").read_text(), re.S)[0]
    assert "Training: precision=bf16" in place and "./run_all.sh --tier cpu --only 23 --workloads resnet50" in place
    lines = [json.loads(line) for line in (site.parent / "records.jsonl").read_text().splitlines()]
    for line, short in re.findall(r"<tr><td>(\d+)</td>.*?<td>(\w+)</td></tr>", place):
        assert lines[int(line) - 1]["record_id"].startswith(short) and lines[int(line) - 1]["knobs"]["precision"] == "bf16"
    numbers = re.findall(r'<td class="number">(.*?)</td>', re.search(r'<table class="results.*?</table>', text, re.S)[0])
    assert len(numbers) > 5 and all(cell == "" or cell.startswith('<a class="figure"') for cell in numbers)
    assert "records.jsonl" in traced.text and "Records" in index.text


def test_nothing_measured_yet(tmp_path):
    page = Page(report.build(tmp_path))
    assert "Nothing measured yet." in page.text and "No notebook has run yet." in page.text and not page.stack


def test_a_run_without_any_ok_record(tmp_path):
    lost = sweep("precision", ["fp32", "bf16"], lost={"fp32": ("oom", "out of memory"), "bf16": ("timeout", EVIL)})
    page = Page(report.build(run_folder(tmp_path, lost)))
    assert "out of memory (oom)" in page.text and f"{EVIL} (timeout)" in page.text
    assert not [attrs for tag, attrs in page.tags if tag == "img" and attrs.get("src") == "x"]


def test_records_without_comparison_and_of_several_protocols(tmp_path):
    old = make(number=0)
    old.protocol_version = 0
    page = Page(report.build(run_folder(tmp_path, [old, make(number=1), fit(0.7), *noise(rounds=2)])))
    assert "No comparison measured yet." in page.text and "top-1 accuracy" in page.text


def test_a_failed_round_is_told_although_the_case_has_figures(tmp_path):
    failed = make(
        changes={"precision": "bf16"}, varying=("precision",), group="precisionNone", number=9, status="failed", reason="worker died"
    )
    page = Page(report.build(run_folder(tmp_path, [*sweep("precision", ["fp32", "bf16"]), failed])))
    assert "round 10: worker died (failed)" in page.text


def test_a_ladder_has_its_chart_and_words_and_what_is_made_once_its_figures(tmp_path):
    quantized = [make(phase="infer", group="made", number=n) for n in range(3)]
    for record in quantized:
        record.case, record.samples, record.stats = {**record.case, "phase": "quantize"}, None, None
        record.cold = {"quantize_s": 12.0 + record.protocol["round"], "bytes": 24 * 2**20, "spawn_s": 1.0}
    folder = run_folder(tmp_path, noise() + climbed() + quantized)
    text = html.unescape(report.build(folder).read_text())
    assert (folder / "charts" / "resnet50-train-ladder.png").is_file() and "as the last one 1.49x" in text
    assert not (folder / "charts" / "resnet50-train-ladder-2.png").exists(), "what opens the report and stands in its section is drawn once"
    assert text.count("resnet50-train-ladder.png</a>") == 2 and "no stack was climbed" not in text
    assert "ResNet-50 quantization, as it is: quantize 13.0 s, 24.0 MiB; 3 rounds" in text


def test_damaged_files_are_told_not_fatal(tmp_path):
    folder = run_folder(tmp_path, [])
    (folder / "records.jsonl").write_text('{"half": 1}\n')
    (folder / "notebooks" / "31_onnxruntime.ipynb").write_text("{")
    index = Page(report.build(folder))
    assert "records cannot be read" in index.text and "31_onnxruntime" in index.text
    assert "31_onnxruntime.ipynb: not a notebook" in Page(folder / "report" / "31_onnxruntime.html").text
    (folder / "status.json").write_text('{"run_id": ')
    assert "no status" in Page(report.build(folder)).text


def test_a_run_that_is_not_whole_says_so_at_its_top(tmp_path):
    folder = run_folder(tmp_path)
    status = json.loads((folder / "status.json").read_text())
    going = Page(report.build(folder)).text
    assert "This run has not ended" in going and "not complete" not in going, "what is not on this machine is no lack of time"
    status["notebooks"][1] |= {"status": "skipped", "reason": "budget: stopped when the time was up"}
    (folder / "status.json").write_text(json.dumps({**status, "ended": "2026-01-01T10:45:00"}))
    cut = Page(report.build(folder)).text
    assert "its time (45.0 min) was up with 1 of 3 notebooks unfinished (23)" in cut and "--resume --run-id made-up go on" in cut
    assert "has not ended" not in cut and cut.index("not complete") < cut.index("What was found")


def test_smoke_is_said_on_every_page(tmp_path):
    folder = run_folder(tmp_path, sweep("precision", ["fp32", "bf16"], rounds=3, tier="smoke"), tier="smoke")
    report.build(folder)
    for name, page in pages(folder / "report").items():
        assert "smoke: not a result" in page.text, name
    assert "Faster, quality" not in Page(folder / "report" / "index.html").text


def test_a_refresh_draws_only_what_changed(tmp_path):
    folder = run_folder(tmp_path, sweep("precision", ["fp32", "bf16"]))
    report.build(folder)
    chart, page = folder / "charts" / "resnet50-train-precision.png", folder / "report" / "00_start_here.html"
    os.utime(chart, (1, 1))
    before = page.read_text()
    report.build(folder)
    assert chart.stat().st_mtime == 1 and page.read_text() == before
    records.append(
        folder / "records.jsonl", make(changes={"precision": "bf16"}, varying=("precision",), group="precisionNone", number=4, per_s=70)
    )
    records.append(folder / "records.jsonl", make(changes={}, varying=("precision",), group="precisionNone", number=4))
    executed(folder / "notebooks" / "00_start_here.ipynb", "Another title")
    report.build(folder)
    assert chart.stat().st_mtime > 1 and "Another title" in page.read_text()


def test_text_of_the_safe_html_is_kept(tmp_path):
    safe = report_notebook.Safe(set(), "picture")
    safe.feed("<p>a &lt; b <b onclick='x'>bold</b></div><unknown>kept</unknown><svg><script>gone</script></svg>")
    assert safe.text() == "<p>a &lt; b <b>bold</b>kept</p>"
    assert html.unescape(safe.text()).startswith("<p>a < b")
