"""A batch run: every notebook by papermill inside a time budget, with a status each and a report after each."""

import json
import os
import time
from datetime import datetime
from pathlib import Path

from hpml import cases, env, notebooks, recommend, records, report, tables
from hpml.compare import is_quality_run
from hpml.env import BudgetSpent, HpmlError, Unavailable
from hpml.notebooks import Notebook
from hpml.records import OUT_OF_TIME
from hpml.results import Results
from hpml.shares import SUMMARIES, Need, in_pieces, pace_of, share
from hpml.workloads import canonical, sources
from hpml.workloads import get as get_workload

GRACE_S = 20  # kernels, papermill and the report need this beyond the cases themselves
LADDER = ["resnet50"]  # who climbs the ladder where nobody is named: one workload fits the default budget with full rounds
KERNEL_START_S = 180  # imports on a busy machine; nbclient's own minute is not always enough
FLOOR_S = 15  # a notebook that would get less than this is left out


def run(*, tier: str, workloads: list[str] | None, only: list[str] | None, run_id: str | None, resume: bool, rounds: int | None,
        budget_s: float | None, data: str, device: str | None, dry_run: bool = False) -> int:
    """Run the chosen notebooks into results/runs/<run_id>; returns the exit code (0, or 1 when a notebook failed).

    Without `workloads` the ladder is climbed by LADDER, and every workload's own notebook runs. Everything is checked before anything
    runs: raises HpmlError for an unknown tier, workload, notebook, device or run. A dry run says what would be done, and does nothing.
    """
    workloads = [canonical(name) for name in workloads or []]  # the kernels have another working folder
    books = _about(notebooks.chosen(only), workloads, only, data)
    workloads = workloads or LADDER
    cases.use(tier=tier, workloads=workloads, data=data, device=device, run_id=run_id or "lab")
    for name in workloads:
        known = sources(get_workload(name))
        if data not in known:
            raise HpmlError(f"data {data!r} is not known to {name}: choose from {', '.join(known)}")
    if rounds is not None and rounds < 1:
        raise HpmlError(f"rounds {rounds}: at least 1")
    run_id = run_id or datetime.now().strftime(f"{tier}-%Y%m%d-%H%M%S")
    folder = env.run_dir(run_id)
    status = _status(folder, run_id, resume, asked={"tier": tier, "workloads": workloads, "data": data, "device": device, "rounds": rounds})
    parameters = {"tier": tier, "workloads": workloads, "device": device, "data": data, "run_id": run_id}
    for book in books:
        check_parameters(book, parameters)
    if dry_run:
        _announce(books, tier, workloads, budget_s, folder, status)
        print("nothing was run")
        return 0
    started = time.time()
    deadline = started + budget_s if budget_s else None
    status |= {"tier": tier, "started": env.now(), "ended": None, "budget_s": budget_s, "machine": env.machine()}
    _announce(books, tier, workloads, budget_s, folder, status)
    os.environ["HPML_RUN_ID"] = run_id
    if rounds:
        os.environ["HPML_ROUNDS"] = str(rounds)
    try:
        _all(books, parameters, status, folder, deadline)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; go on with --resume")
        _write(folder, status)
        report.build(folder)
        return 130
    status["ended"] = env.now()
    _write(folder, status)
    print(f"\n{_count(status)} in {(time.time() - started) / 60:.1f} minutes")
    if left := [book for book in books if _cut(status["notebooks"][book.name])]:
        print(f"not finished: {', '.join(book.number for book in left)}; the same options with --resume --run-id {run_id} go on")
    print(f"report: {report.build(folder)}")
    print(recommend.write(folder)[-1])
    return 1 if any(n["status"] in ("failed", "timeout") for n in status["notebooks"].values()) else 0


def _status(folder: Path, run_id: str, resume: bool, asked: dict) -> dict:
    """The run's status, taken up again by --resume. Raises HpmlError when it does not fit."""
    path = folder / "status.json"
    if resume:
        if not path.exists():
            raise HpmlError(f"nothing to resume: {path} does not exist; give the --run-id of an interrupted run")
        try:
            status = json.loads(path.read_text())
            status = {**status, "notebooks": {one["name"]: one for one in status["notebooks"]}}
            before = dict(status["asked"])
        except (ValueError, TypeError, KeyError):
            raise HpmlError(f"{path}: damaged: start a new run with another --run-id") from None
        if before != asked:
            changed = [name for name in asked if before.get(name) != asked[name]]
            raise HpmlError(f"run {run_id} was started with other settings ({', '.join(changed)}): resume it with the same ones")
        return status
    if (folder / "records.jsonl").exists() or path.exists():
        raise HpmlError(f"run {run_id} is there already: go on with --resume, or choose another --run-id")
    return {"run_id": run_id, "asked": asked, "notebooks": {}}


def check_parameters(book: Notebook, parameters: dict) -> None:
    """papermill only warns of a parameter that a notebook does not declare; here it stops the run. Raises HpmlError."""
    undeclared = [name for name in parameters if name not in book.parameters]
    if undeclared:
        raise HpmlError(f"{book.path.name} does not declare the parameter{'s' * (len(undeclared) > 1)} {', '.join(undeclared)}: "
                        f"it has {', '.join(book.parameters)}")


def _about(books: list[Notebook], workloads: list[str] | None, only: list[str] | None, data: str) -> list[Notebook]:
    """The notebooks that concern these workloads, or all where none is named, as far as their workload knows the data.

    Raises HpmlError for one that was asked for by its number and is about another workload.
    """
    concerned = [book for book in books if not book.workload or (book.workload in workloads if workloads else
                                                                 data in sources(get_workload(book.workload)))]
    left_out = [book for book in books if book not in concerned]
    if only and left_out:
        raise HpmlError(f"notebook {left_out[0].number} is about {left_out[0].workload}: name it by --workloads, with data that it knows")
    return concerned


def _own(book: Notebook, workloads: list[str]) -> list[str]:
    return [book.workload] if book.workload else workloads


def _announce(books: list[Notebook], tier: str, workloads: list[str], budget_s: float | None, folder: Path, status: dict) -> None:
    left = _left(books, status)
    estimate = sum(_minutes(book, tier, workloads) for book in left)
    budget = f"budget {budget_s / 60:.3g} minutes" if budget_s else "no budget"
    where = "one GPU (an estimate)" if tier in ("gpu", "full") else "two cores"
    print(f"run {folder.name}: {len(books)} notebooks, tier {tier}, about {estimate:.3g} minutes on {where}, {budget}")
    pieces, left_s = in_pieces(_needs(left, tier, workloads), budget_s), (budget_s or 0.0) - GRACE_S
    if pieces:
        print(f"in pieces: notebook after notebook until the time is up; the same options with --resume --run-id {folder.name} go on")
    said, ordered = set(), in_order(books, workloads) if pieces else books
    for position, book in enumerate(ordered):
        minutes, fits = _minutes(book, tier, workloads), "" if book in left else "done already"
        if book in left and budget_s:
            needs = _needs([book, *(other for other in ordered[position + 1:] if other in left)], tier, workloads)
            own_s = share(needs, left_s, pieces=pieces)
            fits = "" if own_s >= 60 * minutes else "in part" if own_s >= FLOOR_S else "a later piece"
            left_s -= min(own_s, 60 * minutes)
        said.add(fits)
        print(f"  {book.name:<28} about {minutes:4.1f} min  {book.question}" + (f"  [{fits}]" if fits else ""))
    if "in part" in said and not pieces:
        print("in part: a short look, and what the others leave of the time; at the end, the same options with --resume go on")
    for line in env.warnings():
        print(f"warning: {line}")


def _left(books: list[Notebook], status: dict) -> list[Notebook]:
    return [book for book in books if status["notebooks"].get(book.name, {}).get("status") != "ok"]


def _minutes(book: Notebook, tier: str, workloads: list[str]) -> float:
    return book.minutes.get(tier, 1.0) * len(_own(book, workloads))


def _needs(books: list[Notebook], tier: str, workloads: list[str]) -> list[Need]:
    return [Need(book.number, _minutes(book, tier, workloads), book.workload in (None, *workloads)) for book in books]


def _all(books: list[Notebook], parameters: dict, status: dict, folder: Path, deadline: float | None) -> None:
    """Each notebook within its share; what the shares leave over goes to those that were cut, one after another."""
    pieces = in_pieces(_needs(_left(books, status), parameters["tier"], parameters["workloads"]), status["budget_s"])
    _go_through(in_order(books, parameters["workloads"]) if pieces else books, parameters, status, folder, deadline, pieces)
    cut = [book for book in books if _cut(status["notebooks"][book.name])]
    if cut and deadline and not pieces:
        _go_through([book for book in books if book in cut or book.number in SUMMARIES], parameters, status, folder, deadline, pieces=True)


def in_order(books: list[Notebook], workloads: list[str]) -> list[Notebook]:
    """One after another: the ladder that is climbed, the other workloads' own notebooks, the summaries."""
    return sorted(books, key=lambda book: (book.number in SUMMARIES, book.workload not in (None, *workloads)))


def _cut(entry: dict) -> bool:
    return records.out_of_time(entry["status"], entry["reason"])


def _go_through(books: list[Notebook], parameters: dict, status: dict, folder: Path, deadline: float | None, pieces: bool) -> None:
    tier, workloads = parameters["tier"], parameters["workloads"]
    shown: set[str] = set()
    ran = False
    for position, book in enumerate(books):
        before = status["notebooks"].get(book.name, {})
        if before.get("status") == "ok" and not (ran and book.number in SUMMARIES):
            print(f"{book.name}: ok already")
            continue
        share_s = None
        if deadline:
            later = [other for other in books[position + 1:] if other.number in SUMMARIES or other in _left(books, status)]
            needs = _needs([book, *later], tier, workloads)
            share_s = share(needs, deadline - time.time() - GRACE_S, pace=_pace(books[:position], status, tier, workloads), pieces=pieces)
        entry = {"name": book.name, "title": book.title, "question": book.question, "reason": None, "seconds": 0.0}
        if share_s is not None and share_s < min(FLOOR_S, 60 * _minutes(book, tier, workloads)):
            status["notebooks"][book.name] = before or {**entry, "status": "skipped", "reason": f"{OUT_OF_TIME}: no time was left"}
        else:
            print(f"{book.name} ...", flush=True)
            status["notebooks"][book.name] = {**entry, "status": "running"}
            _write(folder, status)
            outcome = execute(book, {**parameters, "workloads": _own(book, parameters["workloads"])}, folder, share_s)
            status["notebooks"][book.name], ran = {**entry, **outcome}, True
        done = status["notebooks"][book.name]
        print(f"{book.name}: {done['status']} in {done['seconds']:.0f} s" + (f" ({done['reason']})" if done["reason"] else ""))
        _say_verdicts(folder, book.name, shown)
        _write(folder, status)
        report.build(folder)


def _pace(books: list[Notebook], status: dict, tier: str, workloads: list[str]) -> float:
    """How many times the estimate this machine needs, from those of `books` that ran."""
    done = [(book, status["notebooks"][book.name]) for book in books]
    return pace_of((one["seconds"], 60 * _minutes(book, tier, workloads), one["status"] == "ok") for book, one in done
                if one["status"] == "ok" or _cut(one))


def execute(book: Notebook, parameters: dict, folder: Path, share_s: float | None) -> dict:
    """Run one notebook into <folder>/notebooks; returns its status (ok, failed, timeout, skipped), reason and seconds.

    A source is never written."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target = folder / "notebooks" / book.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    if share_s is not None:
        os.environ["HPML_DEADLINE"] = str(started + share_s)
    outcome = {"status": "ok", "reason": None}
    try:
        papermill.execute_notebook(str(book.path), str(target), parameters=parameters, kernel_name="python3", cwd=str(env.root()),
                                   progress_bar=False, extra_arguments=notebooks.QUIET_KERNEL, start_timeout=KERNEL_START_S,
                                   execution_timeout=None if share_s is None else int(share_s) + 60)
    except PapermillExecutionError as error:
        # A spent budget, or something that the notebook cannot do without and that is not on this machine: nothing went wrong.
        excused = error.ename in (BudgetSpent.__name__, Unavailable.__name__)
        outcome = {"status": "skipped" if excused else "failed",
                   "reason": (error.evalue if excused else f"cell {error.exec_count}: {error.ename}: {error.evalue}")[:300]}
    except (CellTimeoutError, TimeoutError):
        outcome = {"status": "timeout", "reason": f"a cell took longer than the notebook's share of the budget ({share_s:.0f} s)"}
    except DeadKernelError:
        outcome = {"status": "failed", "reason": "the kernel died (most often: out of memory)"}
    except RuntimeError as error:  # all that nbclient says of a kernel that does not come up
        outcome = {"status": "failed", "reason": f"the kernel did not start: {error}"[:300]}
    finally:
        os.environ.pop("HPML_DEADLINE", None)
    return {**outcome, "seconds": time.time() - started}


def _say_verdicts(folder: Path, name: str, shown: set[str]) -> None:
    """The new verdicts as sentences, so that somebody who waits has something to read."""
    found = records.read(folder / "records.jsonl")
    own = [r for r in found if r.notebook == name and not is_quality_run(r)]
    for line in tables.sentences([row for row in Results(own, found).rows() if row.rounds]):
        if line not in shown:
            shown.add(line)
            print(f"    {line}")


def _write(folder: Path, status: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "status.json.part"
    partial.write_text(json.dumps({**status, "notebooks": list(status["notebooks"].values())}, indent=1))
    partial.replace(folder / "status.json")


def _count(status: dict) -> str:
    states = [n["status"] for n in status["notebooks"].values()]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
