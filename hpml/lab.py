"""`hpml lab`: the course in JupyterLab, in copies that are the reader's own.

Copies lie in `lab/`, which git ignores: what is absent there is copied, nothing there is ever overwritten, and what changed in the course
since it was copied arrives beside the reader's copy as `NAME.new.ipynb`. Which version a copy was made from stands in `lab/.upstream.json`.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hpml import env, notebooks
from hpml.env import HpmlError

STATE = ".upstream.json"
FIRST = "00_start_here.ipynb"


@dataclass(frozen=True)
class Arrival:
    """A file that comes into the lab: from `source` to `target`, which does not exist; `new`: the reader has an older one already."""

    source: Path
    target: Path
    new: bool


def folder() -> Path:
    """Where the copies lie: beside `notebooks/`, so that links to the glossary and to results hold."""
    return env.root() / "lab"


def arrivals(lab: Path) -> list[Arrival]:
    """What `fill` would copy into `lab`."""
    return _compared(lab)[0]


def fill(lab: Path) -> list[Arrival]:
    """Copy what is absent, and beside the reader's copies what changed upstream; returns what came. Overwrites nothing."""
    found, state = _compared(lab)
    for one in found:
        one.target.parent.mkdir(parents=True, exist_ok=True)
        with one.target.open("xb") as file:  # never over something that came in between
            file.write(one.source.read_bytes())
    lab.mkdir(parents=True, exist_ok=True)
    partial = lab / f"{STATE}.part"
    partial.write_text(json.dumps(state, indent=1))
    partial.replace(lab / STATE)
    return found


def _compared(lab: Path) -> tuple[list[Arrival], dict[str, str]]:
    """What is to come, and the upstream checksums to remember afterwards."""
    known = _state(lab)
    found, state = [], dict(known)
    for name, source in _upstream().items():
        now, target = _checksum(source), lab / name
        if not target.exists():
            found.append(Arrival(source, target, new=False))
        elif known.get(name) != now and _checksum(target) != now:
            found.append(Arrival(source, _free(target), new=True))
        state[name] = now
    return found, state


def _upstream() -> dict[str, Path]:
    """The course's files by their place in the lab: notebooks, answers, examples."""
    top = notebooks.folder()
    files = [book.path for book in notebooks.course()] + sorted(top.glob("answers/*.md")) + sorted(top.glob("examples/*.py"))
    return {path.relative_to(top).as_posix(): path for path in files}


def _state(lab: Path) -> dict[str, str]:
    try:
        found = json.loads((lab / STATE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise HpmlError(f"{lab / STATE} cannot be read: remove it, and what differs from the course arrives once more beside your copies"
                        ) from None
    return found if isinstance(found, dict) else {}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _free(target: Path) -> Path:
    """`NAME.new.ipynb`, or with a number where that is taken."""
    numbers = ("", *range(2, 1000))
    tried = (target.with_name(f"{target.stem}.new{number}{target.suffix}") for number in numbers)
    return next(path for path in tried if not path.exists())


def command(lab: Path, *, port: int, browser: bool) -> list[str]:
    """JupyterLab on loopback with a token that it makes itself; nothing asks the network for news, updates or extensions."""
    return [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
            f"--ServerApp.root_dir={lab.parent}", f"--ServerApp.open_browser={browser}",
            f"--LabApp.default_url=/lab/tree/{lab.name}/{FIRST}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None",
            "--LabApp.extension_manager=readonly", *(["--ServerApp.allow_root=True"] if os.geteuid() == 0 else [])]  # as in containers


def open_course(*, port: int, browser: bool, dry_run: bool) -> None:
    """Fill the lab and become JupyterLab in it. `dry_run`: say what would come and be started, and do nothing. Raises HpmlError."""
    if reason := env.missing("jupyterlab"):
        raise HpmlError(f"{reason}: pip install jupyterlab")
    if not 0 <= port < 65_536:
        raise HpmlError(f"port {port}: 0 to 65535")
    notebooks.chosen(None)  # it says so where there are none
    lab = folder()
    came = arrivals(lab) if dry_run else fill(lab)
    fresh, changed = sum(not one.new for one in came), [one for one in came if one.new]
    print(f"{lab}: {fresh} file{'s' * (fresh != 1)} {'would come' if dry_run else 'copied'}" if came else f"{lab}: up to date")
    for one in changed:
        print(f"  {one.source.name} has changed in the course: it {'would come' if dry_run else 'is here'} as {one.target.name}; "
              "your copy stays as it is")
    words = command(lab, port=port, browser=browser)
    if dry_run:
        print(f"{' '.join(words)}\nnothing was copied or started")
        return
    if not shutil.which("jupyter"):  # the kernels' programs stand beside this Python
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.stdout.flush()
    os.chdir(lab)
    os.execv(words[0], words)
