"""What a run's records show, as HTML: tables, charts with their words, sentences, and what was not measured."""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpml import compare, ladder, plot, report_records, tables, tables_serving
from hpml.compare import Row
from hpml.records import Record

PLOTS = ("compare.py", "ladder.py", "tables.py", "wording.py", "plot*.py")  # sources whose change makes an old picture another one


def e(value: object) -> str:
    """Text as itself inside HTML."""
    return html.escape(str(value))


@dataclass
class Chart:
    """A drawn chart: its file under charts/, its alternative text, or why it could not be drawn."""

    name: str
    alt: str
    path: Path | None


def write(path: Path, text: str) -> None:
    """Whole or not at all: somebody may be reading while the run goes on."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def digest(*parts: object) -> str:
    """A short hash of anything: what changes it changes the picture or page made from it."""
    return hashlib.sha256(b"".join(part if isinstance(part, bytes) else repr(part).encode() for part in parts)).hexdigest()[:16]


def sources(*patterns: str) -> bytes:
    """The source text of the library's files that match."""
    package = Path(__file__).parent
    return b"".join(path.read_bytes() for pattern in patterns for path in sorted(package.glob(pattern)) if path.is_file())


class Charts:
    """The run's charts as files, drawn again only where what they show has changed."""

    def __init__(self, run_dir: Path, *, drawing: bool = True) -> None:
        """With `drawing=False` only charts that were drawn before are given, as they are."""
        self.folder, self.drawing = run_dir / "charts", drawing
        self.code = digest(sources(*PLOTS))
        self.made: dict[str, dict] = {}
        try:
            self.known = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def draw(self, name: str, shown: object, function: Callable, *args: object, **options: object) -> Chart:
        """`function(*args)` as charts/<name>.png; `shown` is everything that the chart depends on."""
        identity = digest(self.code, shown, options)
        number, base = 1, name
        while name in self.made and self.made[name].get("digest") != identity:
            number += 1
            name = f"{base}-{number}"
        path, known = self.folder / f"{name}.png", self.known.get(name) or {}
        if not self.drawing:
            self.made[name] = known
            return Chart(name, known.get("alt") or "this chart is not drawn yet", path if known and path.exists() else None)
        if name in self.made:
            return Chart(name, self.made[name]["alt"], path)
        if known.get("digest") != identity or not path.exists():
            try:
                axes = function(*args, **options)
            except Exception as error:  # one chart that fails must not cost the report
                self.made[name] = {}
                return Chart(name, f"this chart could not be drawn: {type(error).__name__}: {error}", None)
            from matplotlib import pyplot
            from PIL import Image

            self.folder.mkdir(parents=True, exist_ok=True)
            partial, drawn = path.with_suffix(".part"), io.BytesIO()
            axes.figure.savefig(drawn, format="png", dpi=150)
            # A palette looks the same and takes a third: every chart stands inside the report's page.
            Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(partial, "png", optimize=True)
            partial.replace(path)
            known = {"digest": identity, "alt": axes.figure.hpml_alt}
            pyplot.close(axes.figure)
        self.made[name] = known
        return Chart(name, known["alt"], path)

    def save(self, *, others: bool = False) -> None:
        """Remember what was drawn; pictures of charts that are no more are removed, except where `others` are to stay."""
        if self.made or self.known:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in () if others else self.known.keys() - self.made.keys():
                (self.folder / f"{Path(name).name}.png").unlink(missing_ok=True)
            write(self.folder / "index.json", json.dumps(self.known | self.made if others else self.made))


def figure(chart: Chart) -> str:
    """A chart inside the page, with its text, or the reason why there is none."""
    if chart.path is None:
        return f'<p class="note">{e(chart.name)}: {e(chart.alt)}</p>'
    data = base64.b64encode(chart.path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{e(chart.alt)}" width="600"><figcaption>'
        '<details class="alt"><summary>In words</summary>'
        f'{e(chart.alt)}</details><a href="../charts/{e(chart.name)}.png">{e(chart.name)}.png</a></figcaption></figure>'
    )


def _gallery(charts: Iterable[Chart]) -> str:
    inner = "".join(map(figure, charts))
    return f'<div class="charts">{inner}</div>' if inner else ""


def workloads(found: Sequence[Record]) -> list[str]:
    """The workloads that have records, in the order of measuring."""
    return list(
        dict.fromkeys(r.case["workload"] for r in found if r.case["phase"] != "limit" and r.case.get("technique") != compare.NOISE)
    )


def slug(*words: str) -> str:
    """Words as the name of a file or anchor: lower case, 80 characters at most."""
    return re.sub(r"[^a-z0-9_]+", "-", "-".join(Path(word).stem if word.endswith(".py") else word for word in words).lower()).strip("-")[
        :80
    ]


BEST = ("The highest ratio that is faster than its baseline beyond the noise and keeps the quality; where no such case is, the highest "
        "whose quality was not measured. Where it was shown on a smaller variant or input than the one that was timed, the cell names it.")


def best_of(rows: Sequence[Row]) -> Row | None:
    """The highest ratio that holds: faster than the baseline beyond the noise, its quality kept; without such a case, not measured."""
    held = [row for row in rows if row.verdict == "faster" and not row.quality_text.startswith("lost")]
    kept = [row for row in held if row.quality == "kept"]
    return max(kept or held, key=lambda row: row.ratio, default=None)


def _table(rows: Sequence[Row], pages: set[str]) -> str:
    """The rows as a table; each figure leads to its records, the last column to its notebook."""
    cells = tables.columns(rows)
    if "quality" in cells:
        cells["quality"] = [tables.short_quality(item) for item in cells["quality"]]
    shown = {name: [report_records.number(text, row) if name in tables.NUMBERS else e(text) for text, row in zip(texts, rows, strict=True)]
             for name, texts in cells.items()}
    shown["notebook"] = [report_records.notebook(row.notebook, pages) for row in rows]
    head = "".join(f'<th scope="col"{_number(name)}>{e(name)}</th>' for name in shown)
    body = "".join("<tr>" + "".join(f"<td{_number(name)}>{texts[i]}</td>" for name, texts in shown.items()) + "</tr>"
                   for i in range(len(rows)))
    return f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(name: str) -> str:
    return ' class="number"' if name in tables.NUMBERS else ' class="words"' if name in ("verdict", "quality") else ""


def workload(run_dir: Path, name: str, found: Sequence[Record], rows: Sequence[Row], charts: Charts, pages: set[str]) -> str:
    """One workload: its table, charts, sentences, and what was not measured, with the reason. `pages`: the notebooks' in the report."""
    own, raw = [row for row in rows if row.workload == name], [r for r in found if r.case["workload"] == name]
    text = [f'<h2 id="{e(slug("workload", name))}">{e(tables.title(name))}</h2>']
    smoke = any(row.tier == "smoke" for row in own)
    text.append(f'<p class="banner">{tables.SMOKE}</p>' if smoke else "")
    files, drawn = [], []
    for group in dict.fromkeys(row.group for row in own):
        case = [row for row in own if row.group == group]
        techniques = list(dict.fromkeys(row.technique for row in case if not row.is_baseline)) or [case[0].technique]
        file = slug(name, case[0].phase, *techniques[:3])
        measured = [row for row in case if row.status == "ok"]
        if len(case) > 1 and not (measured and all(map(tables.unrated, measured))):
            chart = charts.draw(file, repr(case), plot.comparison, case)
            drawn.append(chart)
            file = chart.name
        number, base = 1, file
        while file in files:
            number += 1
            file = f"{base}-{number}"
        files.append(file)
        tables.csv(case, run_dir / "tables" / f"{file}.csv")
    if own:
        phases = list(dict.fromkeys(row.phase for row in own))
        for phase in phases:
            heading = f"<h3>{e(tables.PHASES.get(phase, phase).capitalize())}</h3>" if len(phases) > 1 else ""
            text.append(heading + _table([row for row in own if row.phase == phase], pages))
        text.append('<p class="note">As CSV: ' + ", ".join(f'<a href="../tables/{e(file)}.csv">{e(file)}</a>' for file in files) + "</p>")
    ladders = ladder.read(own, raw)
    drawn += [charts.draw(slug(name, one.base.phase, "ladder"), repr(one), plot.ladder, one) for one in ladders]
    drawn += _more_charts(name, own, raw, charts)
    text.append(_gallery(drawn))
    said = [
        f"{e(tables.sentence(row, tables.baseline_of(row, own)))} {report_records.sources(row, pages)}"
        for row in own
        if not row.is_baseline and (row.verdict != "not measured here" or row.status == "ok") and not tables.unrated(row)
    ]
    said += [e(line) for one in ladders for line in ladder.sentences(one)]
    if said:
        text.append("<h3>In words</h3><ul>" + "".join(f"<li>{line}</li>" for line in said) + "</ul>")
    made = tables.made(raw)
    if made:
        text.append("<h3>Made once</h3><ul>" + "".join(f"<li>{e(line)}</li>" for line in made) + "</ul>")
    lost = _lost(own, raw)
    if lost:
        text.append("<h3>Not measured here</h3><ul>" + "".join(f"<li>{e(line)}</li>" for line in lost) + "</ul>")
    return "".join(text)


def _lost(rows: Sequence[Row], raw: Sequence[Record]) -> list[str]:
    """Cases without a figure and their reasons, then rounds and quality runs that failed although the case has figures."""
    said = [line.removeprefix("not measured here: ") for line in tables.notes(rows) if line.startswith("not measured here")]
    shown = {(row.group, row.label) for row in rows if row.status != "ok"}
    for r in raw:
        if r.status != "ok" and (r.case.get("group"), r.case.get("label")) not in shown:
            said.append(f"{r.case.get('label')}, {r.case['phase']}, round {(r.protocol.get('round') or 0) + 1}: {r.reason} ({r.status})")
    return list(dict.fromkeys(said))


def _more_charts(name: str, rows: Sequence[Row], raw: Sequence[Record], charts: Charts) -> list[Chart]:
    """Where a step goes, curves, speed against quality, latency: those for which there is something to show."""
    ids = [r.record_id for r in raw]
    drawn = []
    timed = [
        r
        for r in raw
        if r.status == "ok"
        and r.samples
        and r.samples.get("phases")
        and not compare.is_quality_run(r)
        and r.case.get("technique") != compare.NOISE
    ]
    if timed:
        last = timed[-1].case["group"]
        best = [r for r in timed if r.case["group"] == last]
        drawn.append(charts.draw(slug(name, "phases"), [r.record_id for r in best], plot.phases, best))
    fits = [r for r in raw if r.quality and r.quality.get("curve")]
    if fits:  # what was tried on fewer samples (a subset learnt by heart, a training stopped and resumed) is not the same quality
        fits = [r for r in fits if r.quality["n"] == max(one.quality["n"] for one in fits)]
        drawn.append(charts.draw(slug(name, "curves"), [r.record_id for r in fits], plot.curves, fits))
    infer = [row for row in rows if row.phase == "infer"]
    if any(row.quality_value is not None for row in infer):
        margin = next((r.quality["margin"] for r in raw if r.quality), None)
        drawn.append(charts.draw(slug(name, "speed-quality"), repr(infer), plot.speed_quality, infer, margin=margin))
    if len({row.knobs.get("batch") for row in infer if row.latency_ms}) > 1:
        drawn.append(charts.draw(slug(name, "latency"), repr(infer), plot.latency, infer))
    under_load = [load for load in tables_serving.loads(raw) if load.confirmed()]
    if under_load:
        drawn.append(charts.draw(slug(name, "load"), ids, plot.load, under_load))
    if sum("accuracy" in load.by_scenario for load in tables_serving.loads(raw)) > 1:
        sizes = [load for load in tables_serving.loads(raw) if "accuracy" in load.by_scenario]
        drawn.append(charts.draw(slug(name, "resolution"), ids, plot.resolution, sizes))
    return drawn


def machine(found: Sequence[Record], charts: Charts) -> str:
    """The machine's limits and noise."""
    drawn = []
    limits = [r for r in found if r.case["phase"] == "limit"]
    if limits:
        drawn.append(charts.draw("limits", [r.record_id for r in limits], plot.limits, limits))
    for phase in ("train", "infer", "data"):
        own = [r for r in found if r.case["phase"] == phase]
        logs = compare.noise_logs(own, phase)
        if logs:
            drawn.append(charts.draw(f"noise-{phase}", logs, plot.noise, logs))
    lost = list(
        dict.fromkeys(
            f"{r.knobs.get('kind')} {r.knobs.get('dtype')} {r.knobs.get('engine')}: {r.reason}" for r in limits if r.status != "ok"
        )
    )
    skipped = "<h3>Limits not measured here</h3><ul>" + "".join(f"<li>{e(line)}</li>" for line in lost) + "</ul>" if lost else ""
    return f'<h2 id="machine">The machine</h2>{_gallery(drawn)}{skipped}' if drawn else ""
