"""aria2 (https://aria2.github.io), the download tool: one process that loads many files over many connections, and what it says of each."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hpml.env import Unavailable

PER_FILE = 16  # aria2's most connections to one server for one file
TRIES, PAUSE_S, TIMEOUT_S = 5, 1, 20  # how often aria2 asks a server that answers badly; how long it waits for one that says nothing
POLL_S = 0.05
# Exit codes of its manual: what asking again cannot mend (no such file, disk full, no such folder, a refusal), and what says that
# the part that is here belongs to another file (another length, no such range).
FINAL, OTHER_FILE = {3, 9, 15, 16, 17, 18, 22, 24}, {8}


def find() -> str:
    """The program. Raises Unavailable with the packages that hold it."""
    if path := shutil.which("aria2c"):
        return path
    raise Unavailable("aria2c is not installed: take the package aria2 (Debian and Ubuntu: apt install aria2; conda: conda install "
                      "-c conda-forge aria2; macOS: brew install aria2)")


def load(base: str, names: list[str], folder: Path, *, connections: int, limit_rate: str,
         step: Callable[[set[str]], None]) -> dict[str, tuple[int, str]]:
    """Load `base`/name into `folder` for all names; `step` gets the names of the files that are complete, again and again to the end.

    A file that is partly there goes on where its note (name.aria2) says. Returns (exit code, reason) of each file that did not come.
    """
    # So many files at once that files x connections for each is what was asked for.
    files = max(n for n in range(1, min(len(names), connections) + 1) if connections % n == 0)
    each = min(PER_FILE, connections // files)
    words = [find(), "--no-conf", "--no-netrc", f"--dir={folder}", "--input-file=-", f"-j{files}", f"-x{each}", f"-s{each}",
             "-k1M", "--continue", "--auto-file-renaming=false", "--allow-overwrite=false", "--file-allocation=none", "--disk-cache=0",
             "--auto-save-interval=1", f"--max-overall-download-limit={limit_rate}", f"--max-tries={TRIES}", f"--retry-wait={PAUSE_S}",
             f"--timeout={TIMEOUT_S}", f"--connect-timeout={TIMEOUT_S}", "--user-agent=hpml", "--enable-color=false",
             "--summary-interval=0", "--show-console-readout=false", "--download-result=hide", "--console-log-level=notice",
             f"--stop-with-process={os.getpid()}"]
    log = folder / "aria2.log"
    with log.open("w") as said:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            with contextlib.suppress(BrokenPipeError):  # it refused its options: its log says why
                process.stdin.write("".join(f"{base}/{name}\n  out={name}\n" for name in names))
                process.stdin.close()
            ended = False
            while not ended:
                ended = process.poll() is not None
                step(_complete(log.read_text(errors="replace"), folder, ended=ended))
                if not ended:
                    time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()  # it notes down what it has
                process.wait()
    text = log.read_text(errors="replace")
    errors, last = _errors(text, base), (text.strip().splitlines() or ["nothing said"])[-1]
    otherwise = (process.returncode, f"aria2 ended with code {process.returncode}: {last}")
    return {name: errors.get(name, otherwise) for name in names if not (folder / name).exists() or noted(folder, name).exists()}


def noted(folder: Path, name: str) -> Path:
    """Where aria2 notes which bytes of a file are there."""
    return folder / f"{name}.aria2"


def _complete(log: str, folder: Path, *, ended: bool) -> set[str]:
    """Files that aria2 has finished with: it says so, and takes its note away."""
    said = {Path(path).name for path in re.findall(r"Download complete: (.+)", log)}
    if ended:
        said |= {path.name for path in folder.iterdir() if path.is_file()}
    return {name for name in said if (folder / name).exists() and not noted(folder, name).exists()}


def _errors(log: str, base: str) -> dict[str, tuple[int, str]]:
    """The last reason for each file, with its code."""
    found, name = {}, ""
    for line in log.splitlines():
        if asked := re.search(r"URI=(\S+)", line):
            name = asked[1].removeprefix(f"{base}/")
        if reason := re.search(r"(?:->|Exception:) \[\S+\](?: errNum=\d+)?(?: errorCode=(\d+))?(?: URI=\S+)? (\S.*)", line):
            found[name] = int(reason[1] or 1), reason[2].rstrip(".")
    return found
