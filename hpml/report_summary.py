"""The opening of the report: the findings, the facts of machine and run, and the list of the notebooks."""

from collections.abc import Sequence

from hpml import compare, report_charts, report_records, report_results, tables
from hpml.compare import Row
from hpml.records import Record, out_of_time
from hpml.report_results import Charts, e

MARKS = {"ok": "✓", "failed": "✗", "timeout": "✗", "skipped": "–", "running": "…"}
SHOWN = 12  # sentences in a list; the workloads' sections have all


def _facts(pairs: dict[str, object]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in pairs.items() if value not in (None, "", []))
        + "</dl>"
    )


def seconds(value: object) -> str:
    """A time in seconds or minutes, as a reader says it."""
    if not isinstance(value, int | float):
        return ""
    return f"{value / 60:.1f} min" if value >= 120 else f"{tables.figure(value)} s"


def status_mark(one: dict) -> str:
    """A notebook's status with its mark, as HTML."""
    word = str(one.get("status") or "no status")
    known = word if word in MARKS else ""
    return f'<span class="status {known}">{MARKS.get(word, "")} {e(word)}</span>'


def summary(
    run: str,
    status: dict,
    notebooks: Sequence[dict],
    found: Sequence[Record],
    rows: Sequence[Row],
    charts: Charts,
    problems: Sequence[str],
) -> str:
    """The opening of the report: what was found, on which machine, and how."""
    pages = {one["page"] for one in notebooks if one["page"]}
    tier = status.get("tier") or next((r.case.get("tier") for r in found), None)
    text = [f"<h1>{e(run)}</h1>"]
    if tier == "smoke":
        text.append(f'<p class="banner">{tables.SMOKE}. This tier shows that everything works; its figures rest on a few iterations.</p>')
    text += [f'<p class="banner">{line}</p>' for line in _unfinished(status, notebooks)]
    text += [f'<p class="banner bad">{e(problem)}</p>' for problem in problems]
    text += ['<h2 id="findings">What was found</h2>', _findings(found, rows, charts, pages), '<h2 id="facts">How it was measured</h2>',
             '<div class="facts">']
    text += [
        f"<section><h3>{e(title)}</h3>{_facts(facts)}</section>"
        for title, facts in (
            ("Machine", _machine_facts(found)),
            ("Run", _run_facts(status, notebooks, found, tier)),
            ("Results", _result_facts(found, rows)),
        )
    ]
    return "".join([*text, "</div>"])


def _unfinished(status: dict, notebooks: Sequence[dict]) -> list[str]:
    """What is not here yet, as HTML: a run that goes on or was broken off, and the notebooks that its time did not reach to the end."""
    if status.get("started") and not status.get("ended"):
        return ["This run has not ended: the report shows what it has measured so far."]
    cut = [one["name"] for one in notebooks if out_of_time(one.get("status"), one.get("reason"))]
    if not cut:
        return []
    numbers = ", ".join(name.split("_")[0] for name in cut)
    return [f"This run is not complete: its time ({e(seconds(status.get('budget_s')))}) was up with {len(cut)} of {len(notebooks)} "
            f"notebooks unfinished ({e(numbers)}). What they measured until then is here; the same options with "
            f"<code>--resume --run-id {e(status.get('run_id'))}</code> go on from there."]


def _findings(found: Sequence[Record], rows: Sequence[Row], charts: Charts, pages: set[str]) -> str:
    """The best stack of each workload, the five charts, then the verdicts as sentences, the largest differences first."""
    rows = compare.techniques(rows)
    others = [row for row in rows if not row.is_baseline]
    text = [_best(rows, pages), _five(found, rows, charts)]
    if not others:
        text.insert(0, "<p>Nothing measured yet.</p>" if not found else "<p>No comparison measured yet.</p>")
    verdicts = [row for row in others if row.tier != "smoke"]
    lists = {
        "Faster, quality kept": [r for r in verdicts if r.verdict == "faster" and r.quality == "kept"],
        "Faster, quality not shown to be kept": [r for r in verdicts if r.verdict == "faster" and r.quality != "kept"],
        "Slower": [r for r in verdicts if r.verdict == "slower"],
        "No difference": [r for r in verdicts if r.verdict == "no difference"],
    }
    for title, own in lists.items():
        if own:
            own = sorted(own, key=lambda row: abs(row.ratio - 1), reverse=True)
            more = f"<li>and {len(own) - SHOWN} more, in the workloads' sections</li>" if len(own) > SHOWN else ""
            text.append(
                f"<h3>{e(title)} ({len(own)})</h3><ul>"
                + "".join(f"<li>{e(tables.sentence(row, tables.baseline_of(row, rows)))} {report_records.sources(row, pages)}</li>"
                          for row in own[:SHOWN])
                + more
                + "</ul>"
            )
    return "".join(text)


def _best(rows: Sequence[Row], pages: set[str]) -> str:
    """The highest ratio that holds for each workload in training and inference; every figure with its records, notebook and command."""
    lines = []
    for workload, phase in dict.fromkeys((row.workload, row.phase) for row in rows if row.phase in ("train", "infer")):
        mine = [row for row in rows if (row.workload, row.phase) == (workload, phase)]
        if all(row.is_baseline or row.tier == "smoke" for row in mine):
            continue
        row, name = report_results.best_of(mine), f"{tables.title(workload)} {tables.PHASES.get(phase, phase)}"
        if row is None:
            lines.append(f'<tr><td>{e(name)}</td><td colspan="6">the baseline: no case is faster beyond the noise</td></tr>')
            continue
        base = tables.baseline_of(row, rows)
        interval = f" [{row.low:.2f}, {row.high:.2f}]" if row.low is not None else ""
        limit = f"{tables.figure(row.limit_percent)} % ({row.limit_bound})" if row.limit_percent else ""
        cells = [e(name), report_records.number(f"{tables.ratio(row.ratio)}{interval}", row),
                 e(tables.settings(row, row.differs_in, ", ") or row.label), e(tables.settings(base, row.differs_in, ", ")) if base else "",
                 report_records.number(tables.short_quality(tables.quality(row)), row), report_records.number(limit, row),
                 report_records.notebook(row.notebook, pages)]
        lines.append('<tr class="found">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
                     f'<tr><td colspan="7"><code>{e(report_records.command(row.notebook, row.workload, row.tier))}</code></td></tr>')
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in
                   ("workload", "ratio", "best stack", "instead of", "quality", "% of limit", "notebook"))
    body = "".join(lines)
    return (f"<p>{report_results.BEST} Each figure leads to its records; the command below measures it again.</p>"
            f'<div class="scroll"><table class="best"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _five(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> str:
    text = []
    for number, one in enumerate(report_charts.five(found, rows, charts), 1):
        text.append(f"<h3>{number} · {e(one.title)}</h3>" + "".join(map(report_results.figure, one.charts)))
        if not one.charts:
            text.append(f'<p class="unmeasured"><span>not measured: {e(one.missing)}</span></p>')
    return "".join(text)


def _machine_facts(found: Sequence[Record]) -> dict:
    machines = {r.machine.get("id"): r.machine for r in found if r.machine}
    if not machines:
        return {"machine": "none recorded yet"}
    if len(machines) > 1:
        return {"machines": ", ".join(map(str, machines))}
    m = next(iter(machines.values()))
    return {
        "id": m.get("id"),
        "CPU": m.get("cpu"),
        "cores": m.get("cores"),
        "instructions": ", ".join(m.get("isa") or []),
        "memory": f"{m['ram_gib']} GiB" if m.get("ram_gib") else "",
        "GPU": f"{m['gpus']} x {m['gpu']}" if m.get("gpu") else "none",
        "GPU driver": m.get("gpu_driver"),
        "system": m.get("os"),
    }


def _when(moment: str | None) -> str | None:
    return f"{moment[:16].replace('T', ' ')} UTC" if moment else None


def _run_facts(status: dict, notebooks: Sequence[dict], found: Sequence[Record], tier: str | None) -> dict:
    counts: dict[str, int] = {}
    for one in notebooks:
        counts[str(one.get("status"))] = counts.get(str(one.get("status")), 0) + 1
    commits = dict.fromkeys(
        f"{r.git['commit'][:10]}{' with changes' if r.git.get('dirty') else ''}" for r in found if r.git.get("commit")
    )
    versions = dict(pair for r in found for pair in r.versions.items())
    return {
        "tier": tier,
        "data": "; ".join(dict.fromkeys(compare.data_text(r) for r in found if r.actual.get("data"))),
        "commit": ", ".join(commits),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "started": _when(status.get("started")),
        "ended": _when(status.get("ended")) or ("not yet" if status.get("started") else None),
        "budget": seconds(status.get("budget_s")),
        "notebooks": ", ".join(f"{n} {word}" for word, n in counts.items()),
    }


def _result_facts(found: Sequence[Record], rows: Sequence[Row]) -> dict:
    states: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    for record in found:
        states[record.status] = states.get(record.status, 0) + 1
    for row in rows:
        if not row.is_baseline:
            verdicts[row.verdict] = verdicts.get(row.verdict, 0) + 1
    floors = sorted({compare.percent(row.floor) for row in rows if row.floor is not None})
    busy = sum(bool(r.protocol.get("busy")) for r in found)
    return {
        "records": ", ".join(f"{n} {word}" for word, n in states.items()) or "none yet",
        **{word: f"{n} case{'s' * (n != 1)}" for word, n in verdicts.items()},
        "noise floor": ", ".join(floors),
        "busy machine": f"{busy} records" if busy else "",
    }


def notebook_list(notebooks: Sequence[dict]) -> str:
    """The run's notebooks with question, status and time, as HTML."""
    if not notebooks:
        return '<h2 id="notebooks">Notebooks</h2><p>No notebook has run yet.</p>'
    lines = []
    for one in notebooks:
        title = f'<a href="{e(one["page"])}">{e(one["title"])}</a>' if one["page"] else e(one["title"])
        question = f'<br><span class="soft">{e(one["question"])}</span>' if one.get("question") else ""
        lines.append(
            f"<tr><td>{e(one['name'])}</td><td>{title}{question}</td><td>{status_mark(one)}</td>"
            f'<td class="number">{e(seconds(one.get("seconds")))}</td><td>{e(one.get("reason") or "")}</td></tr>'
        )
    return (
        '<h2 id="notebooks">Notebooks</h2>'
        '<div class="scroll"><table class="notebooks"><thead><tr>'
        "<th>name</th><th>question</th><th>status</th><th>time</th><th>reason</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
