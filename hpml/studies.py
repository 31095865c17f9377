"""Long studies of `benchmarks/`: each leaves one JSON file, which notebooks read where there is one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

from hpml import env
from hpml.env import HpmlError


@contextlib.contextmanager
def trainings_aside() -> Iterator[None]:
    """A study's own trainings go into HPML_RESULTS where that is set; else into a folder that is gone afterwards: the figures are kept."""
    if os.environ.get("HPML_RESULTS"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="hpml-study-") as folder:
        os.environ["HPML_RESULTS"] = folder
        try:
            yield
        finally:
            del os.environ["HPML_RESULTS"]


def write(name: str, facts: dict) -> str:
    """Keep a study's figures as results/studies/<name>.json, with machine, versions and commit; returns the path."""
    path = env.results_dir() / "studies" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"study": name, "at": env.now(), "machine": env.machine(), "versions": env.versions(), "git": env.git()}
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps({**about, **facts}, indent=1))
    partial.replace(path)
    return str(path)


def read(name: str) -> dict | None:
    """A study's figures, or None where it was not made: those of this machine's results first, else the course's. Raises HpmlError for a
    damaged file."""
    for folder in dict.fromkeys((env.results_dir(), env.root() / "results")):
        path = folder / "studies" / f"{name}.json"
        if path.is_file():
            try:
                return json.loads(path.read_text())
            except ValueError:
                raise HpmlError(f"{path}: damaged; delete it or make the study again") from None
    return None


def described(facts: dict | None, command: str) -> str:
    """Where a study's figures come from, in one line; without any, how to make them."""
    if facts is None:
        return f"not measured yet: `{command}` makes this study"
    busy = " (busy with other work at the time)" if facts.get("disturbance", {}).get("busy") else ""
    made_by = facts.get("command", command)
    return f"made {facts['at'][:10]} on {facts['machine']['id']}{busy} at commit {facts['git']['commit'][:10]} by `{made_by}`"


def text(name: str, command: str) -> str:
    """A study as its notebook prints it: where it comes from, on which data, its table (`rows`) and what it says (`says`)."""
    facts = read(name)
    if facts is None:
        return described(None, command)
    import pandas as pd

    knobs = ", ".join(f"{knob}={value}" for knob, value in facts.get("knobs", {}).items())
    lines = [described(facts, command), f"{facts['data']}, n={facts['n']:,}, tier {facts['tier']}; {knobs}"
             + (" (smoke: not a result)" if facts["tier"] == "smoke" else "")]
    return "\n".join([*lines, pd.DataFrame(facts["rows"]).to_string(index=False), *facts["says"]])
