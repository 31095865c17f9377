"""The command line: what a user types, each command a thin layer over the modules below."""

import errno
import json
import os
import re
import sys
from typing import Annotated

import typer

from hpml import cli_clip, cli_data, cli_serve, cli_train, env
from hpml.env import HpmlError

HELP = """What makes deep learning faster, measured: a study of six workloads.

\b
To begin:
  hpml env                            what this machine is
  hpml run                            the study here, 45 minutes at most
  hpml run --only 23 --tier smoke     one notebook, to see that it works
  hpml lab                            the course in JupyterLab
  hpml report RUN                     the report, and what to run here
  hpml COMMAND --help                 every option of a command
"""
app = typer.Typer(help=HELP,
                  no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_clip.app, name="clip")


def seconds(budget: str) -> float | None:
    """'45m', '90s', '2h' or a number of minutes as seconds; 'none' as None. Raises HpmlError."""
    if budget == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", budget)
    if not found or float(found[1]) <= 0:
        raise HpmlError(f"budget {budget!r}: give minutes (45m), hours (2h), seconds (90s) or none")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[found[2]]


def _list(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


@app.command()
def run(
    tier: Annotated[str | None, typer.Option(help="smoke, cpu, gpu or full; default: gpu where there is one, else cpu")] = None,
    workloads: Annotated[str | None, typer.Option(help="a,b (default: resnet50 on the ladder, all in their own notebooks)")] = None,
    only: Annotated[str | None, typer.Option(help="notebook numbers, as 23,33")] = None,
    run_id: Annotated[str | None, typer.Option(help="name of the run's folder under results/runs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run; nothing recorded is measured again")] = False,
    rounds: Annotated[int | None, typer.Option(help="rounds of each comparison (default: 3, up to 6 while undecided)")] = None,
    budget: Annotated[str, typer.Option(help="the run ends within this time: 45m, 2h or none")] = "45m",
    data: Annotated[str, typer.Option(help="auto, real, standin or one data set by name")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: what the tier says)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say which notebooks would run and how long, and do nothing")] = False,
) -> None:
    """Run the study: every notebook, then a report.

    A budget that is short beside the work is a piece of it: --budget 8m, then --resume --run-id NAME --budget 8m, until all is done."""
    from hpml import runner

    tier = tier or ("cpu" if env.no_gpu() else "gpu")
    code = runner.run(tier=tier, workloads=_list(workloads), only=_list(only), run_id=run_id, resume=resume,
                      rounds=rounds, budget_s=seconds(budget), data=data, device=device, dry_run=dry_run)
    raise typer.Exit(code)


app.command("train")(cli_train.train)


@app.command()
def check(
    workload: Annotated[str, typer.Argument(help="a file of your own (my_model.py), or a workload of the course by name")],
    data: Annotated[str, typer.Option(help="the knob data: auto, real, standin or one data set by name")] = "auto",
    export: Annotated[bool, typer.Option("--export/--no-export", help="also export the graph and compare it")] = True,
) -> None:
    """Ask a workload for what it must hold. One line each; exit code 1 where something is missing or wrong."""
    from hpml import check as contract

    wrong = 0
    for finding in contract.findings(workload, data=data, export=export):
        print(finding, flush=True)
        wrong += finding.ok is False
    if wrong:
        print(f"{workload}: {wrong} line{'s' * (wrong > 1)} to mend (CONTRIBUTING.md, Adding a workload)")
        raise typer.Exit(1)
    print(f"{workload}: nothing is missing or wrong")


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="a run's name")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="write README.md's generated parts and each reference machine's page")] = False,
    bless: Annotated[bool, typer.Option("--bless", help="put this run into its machine's reference (6 rounds, clean commit)")] = False,
) -> None:
    """Build a run's report and recommended.yaml again. Or write README's results (--readme); or bless a run as reference (--bless)."""
    from hpml import recommend, reference, report_readme
    from hpml import report as site

    if readme and (run_id or bless):
        raise HpmlError("--readme writes of the references alone: give it without a run and without --bless")
    if readme:
        print(*report_readme.write(env.root() / "README.md"), sep="\n")
        return
    if not run_id:
        raise HpmlError("give a run's name, or --readme")
    if bless:
        print(reference.bless(run_id))
        return
    folder = env.run_dir(run_id)
    if not folder.is_dir():
        raise HpmlError(f"no run {run_id!r} in {folder.parent}")
    print(site.build(folder))
    print(*recommend.write(folder), sep="\n")


@app.command("compare")
def compare_runs(
    run_a: Annotated[str, typer.Argument(help="a run's id, reference, reference/<machine>, or a folder with records.jsonl")],
    run_b: Annotated[str, typer.Argument(help="the run that is judged, named likewise")],
    unlike_machines: Annotated[bool, typer.Option("--unlike-machines", help="compare although the machines differ")] = False,
    unlike_protocols: Annotated[bool, typer.Option("--unlike-protocols", help="compare although the ways of measuring differ")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="leave out the cases without a difference")] = False,
) -> None:
    """What became faster, slower or worse in RUN_B. Exit code 1 where something is worse than in RUN_A beyond the noise."""
    from hpml import agreement, sittings, tables_runs

    found = agreement.between(sittings.open_run(run_a), sittings.open_run(run_b), unlike_machines=unlike_machines,
                              unlike_protocols=unlike_protocols)
    print(tables_runs.text(found, every=not changed))
    if found.regressions:
        raise typer.Exit(1)


app.command("load-test")(cli_serve.load_test)


@app.command("weights")
def fetch_weights(workload: str) -> None:
    """Download a workload's published weights. By checksum; `--weights pretrained` and weights="pretrained" use them."""
    from hpml import pretrained
    from hpml import workloads as known

    print(f"{workload}: {pretrained.fetch(known.get(workload))}")


@app.command()
def notebooks(
    store: Annotated[str | None, typer.Option(help="run at the smoke tier and keep the outputs: numbers as 23,30, or all")] = None,
    check: Annotated[bool, typer.Option("--check", help="fail when a stored notebook is not in normal form")] = False,
) -> None:
    """List the notebooks, store or check them. Stored are the outputs of the smoke tier, in normal form."""
    from hpml import notebooks as course

    if store:
        course.store([n.path for n in course.chosen(None if store == "all" else _list(store))])
    elif check:
        wrong = course.not_normalised()
        if wrong:
            raise HpmlError(f"not in normal form: {', '.join(wrong)}; run hpml notebooks --store NUMBER")
    else:
        for book in course.chosen(None):
            print(f"{book.name:<28} {book.question}")


app.command("serve")(cli_serve.serve)
app.command("export-triton")(cli_serve.export_triton)
app.command("track")(cli_serve.track)


@app.command("lab")
def open_lab(
    port: Annotated[int, typer.Option(help="0 = any free one; a busy one: the next free one")] = 8888,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open a browser at the first notebook")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be copied and started, and do nothing")] = False,
) -> None:
    """Open the course in JupyterLab. In copies of your own under lab/, of which none is overwritten; loopback only, with a token."""
    from hpml import lab

    lab.open_course(port=port, browser=browser, dry_run=dry_run)


@app.command("env")
def show_env() -> None:
    """This machine, what is installed, which engines. Printed as JSON."""
    from hpml import engines

    reasons = engines.availability("cpu")
    print(json.dumps({"machine": env.machine(), "versions": env.versions(), "git": env.git(),
                      "engines": {name: reason or "available" for name, reason in reasons.items()}}, indent=1))


def main() -> None:
    """Entry point. What a user can mend is one line and exit code 2; a run in which something failed ends with 1."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except HpmlError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise  # no file that a user could mend: a fault of ours
        _refuse(f"{error.filename or 'the output'}: {error.strerror}")


def _refuse(line: str) -> None:
    print(f"hpml: {line}", file=sys.stderr)
    with open(os.devnull, "w") as nothing:  # what a full disk or a closed pipe did not take is not tried again on the way out
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    sys.exit(2)
