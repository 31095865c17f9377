"""Shards from an HTTP server into a folder, over several connections at once, by aria2 (https://aria2.github.io): an interrupted pull
goes on where it stopped, and a shard is there only when its checksum is the index's.

The server needs range requests and nothing else. Bytes arrive in DST/.partial; what is whole and right moves into DST at once. A folder
that holds another set of shards is left as it is.
"""

import errno
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hpml.data import aria2
from hpml.data.shards import INDEX, Index, Shard, fault, locked, parsed, read_index
from hpml.env import HpmlError

PARTIAL = ".partial"
INDEX_MOST_BYTES = 64 * 2**20  # a hundred thousand shards need a quarter of it
MOST_CONNECTIONS = 64
TIMEOUT_S, SAY_S = 20, 2.0
TRIES, PAUSE_S = 5, 1.0  # a server that does not answer is asked so often, with a longer pause each time


@dataclass
class Pulled:
    """What a pull did: shards now there, bytes that came over the line, seconds, and the reason for each shard that is not there."""

    shards: int
    bytes: int
    seconds: float
    failed: dict[str, str] = field(default_factory=dict)


def pull(url: str, dst: Path, *, connections: int = 8, limit_rate: str = "0",
         say: Callable[[str], None] = print) -> Pulled:
    """Pull the folder of shards at `url` into `dst` and check each file; what is there already and right is not pulled again.

    `limit_rate`: bytes a second over all connections, as 500K or 2M; 0 = as fast as it goes.
    Raises HpmlError for a bad address, index or value, for a folder that holds other shards, has no room or into which another process
    pulls or packs, Unavailable without aria2.
    """
    aria2.find()
    if not re.fullmatch(r"\d+[KM]?", limit_rate):
        raise HpmlError(f"limit rate {limit_rate!r}: give bytes a second, as 500K or 2M; 0 means no limit")
    if not 1 <= connections <= MOST_CONNECTIONS:
        raise HpmlError(f"connections {connections}: give 1 to {MOST_CONNECTIONS}")
    base = _base(url)
    text = _fetched(f"{base}/{INDEX}")
    index = parsed(text, f"{base}/{INDEX}")
    with locked(dst, wait=False):
        left = _missing(dst, index, base)
        if len(left) < len(index.shards):
            say(f"{len(index.shards) - len(left)} of {len(index.shards)} shards are here already, with the right checksum")
        partial = dst / PARTIAL
        try:
            partial.mkdir(exist_ok=True)
            _forget_strangers(partial, left)
            _check_room(dst, left, partial)
            (partial / INDEX).write_bytes(text)
            (partial / INDEX).replace(dst / INDEX)
        except OSError as error:
            raise HpmlError(f"{error.filename or dst}: {error.strerror}") from None
        return _pulled(base, dst, index.shards, left, connections=connections, limit_rate=limit_rate, say=say)


def _missing(dst: Path, index: Index, base: str) -> list[Shard]:
    """The shards of the index that are not in `dst` as they should be. Raises HpmlError where `dst` holds shards of something else, which
    would be lost."""
    partial = dst / PARTIAL
    for path in [*(dst / name for name in (INDEX, *(shard.name for shard in index.shards))), *partial.glob("*")]:
        if path.is_dir():
            raise HpmlError(f"{path} is a folder, where a file is to come: move it away")
    known = (dst / INDEX).exists()
    here = read_index(dst) if known else None
    if here and (here.shards, here.classes) != (index.shards, index.classes):
        raise HpmlError(f"{dst}: holds other shards than {base}: name another folder, or delete it")
    left = [shard for shard in index.shards if fault(dst, shard)]
    right = {shard.name for shard in index.shards} - {shard.name for shard in left}
    if not known and (others := sorted(path.name for path in dst.glob("*.tar") if path.name not in right)):
        raise HpmlError(f"{dst}: holds other shards than {base} ({others[0]}): name another folder, or delete it")
    return left


def _pulled(base: str, dst: Path, shards: Sequence[Shard], left: list[Shard], *, connections: int, limit_rate: str,
            say: Callable[[str], None]) -> Pulled:
    """Pull what is left, and again what did not come or came wrong."""
    partial = dst / PARTIAL
    report, failed, twice = _Report(shards, left, partial, say), {}, set()
    for attempt in range(TRIES):
        lost, wrong = _turn(base, dst, left, report, connections=connections, limit_rate=limit_rate)
        final = {name: reason for name, (code, reason) in lost.items() if code in aria2.FINAL}
        final |= {name: f"{reason}, twice" for name, reason in wrong.items() if name in twice}
        reasons = {name: reason for name, (_, reason) in lost.items()} | wrong
        again = {name: reason for name, reason in reasons.items() if name not in final}
        twice |= wrong.keys()
        failed |= final
        if attempt + 1 == TRIES:
            failed |= again
        left = [shard for shard in left if shard.name in again]
        if not left or attempt + 1 == TRIES:
            break
        for reason in dict.fromkeys(again.values()):
            names = [name for name in again if again[name] == reason]
            about = names[0] if len(names) == 1 else f"{len(names)} shards"
            say(f"{about}: {reason}; {'removed, ' if names[0] in wrong else ''}pulled again")
        if lost.keys() & again.keys():
            time.sleep(PAUSE_S * (attempt + 1))
    if not failed:
        shutil.rmtree(partial, ignore_errors=True)
    report.line()
    return Pulled(len(shards) - len(failed), report.came(), time.monotonic() - report.started, failed)


class _Report:
    """Progress as plain text, one line every SAY_S seconds."""

    def __init__(self, shards: Sequence[Shard], left: list[Shard], partial: Path, say: Callable[[str], None]) -> None:
        self.total, self.partial, self.say = sum(shard.bytes for shard in shards), partial, say
        self.done = self.total - sum(shard.bytes for shard in left)
        self.before, self.started = _arrived(partial), time.monotonic()
        self.moved, self.ready, self.wasted, self.said = 0, 0, 0, self.started

    def came(self) -> int:
        """Bytes that came over the line in this pull."""
        return self.moved + self.wasted + _arrived(self.partial) - self.before

    def line(self) -> None:
        here, came = self.done + self.moved + _arrived(self.partial), self.came()
        rate = came / max(1e-9, time.monotonic() - self.started)
        self.say(f"{_mib(here)} of {_mib(self.total)} MiB ({100 * here // self.total} %), {_mib(rate)} MiB/s, "
                 f"{self.ready} shards pulled and verified")
        self.said = time.monotonic()


def _turn(base: str, dst: Path, left: list[Shard], report: _Report, **how) -> tuple[dict[str, tuple[int, str]], dict[str, str]]:
    """Let aria2 load what is left, and move what is right into `dst`. Returns what did not come (exit code, reason) and what came and was
    not what the index says (reason), which is removed."""
    if not left:
        return {}, {}
    partial, wanted, wrong = dst / PARTIAL, {shard.name: shard for shard in left}, {}

    def step(complete: set[str]) -> None:
        for name in sorted(complete & wanted.keys()):
            path, shard = partial / name, wanted.pop(name)
            if reason := fault(partial, shard):
                wrong[name] = reason
                report.wasted += path.stat().st_size
                path.unlink()
            else:
                path.replace(dst / name)
                report.moved += shard.bytes
                report.ready += 1
        if time.monotonic() - report.said > SAY_S:
            report.line()

    errors = aria2.load(base, list(wanted), partial, step=step, **how)
    lost = {name: error for name, error in errors.items() if name in wanted}
    for name, (code, reason) in list(lost.items()):
        part = partial / name
        if part.exists() and (code in aria2.OTHER_FILE or reason.endswith("status=416")):
            wrong[name] = reason
            report.wasted += part.stat().st_size
            part.unlink()
            aria2.noted(partial, name).unlink(missing_ok=True)
            del lost[name]
    return lost, wrong


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or re.search(r"\s", url):
        raise HpmlError(f"{url}: give the address of a folder, as http://host/shards")
    return url.removesuffix(f"/{INDEX}").rstrip("/")


def _fetched(url: str) -> bytes:
    """The index as it is served. Raises HpmlError with the reason."""
    request = urllib.request.Request(url, headers={"User-Agent": "hpml", "Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.read(INDEX_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise HpmlError(f"{url}: the server answers {error.code} {error.reason}; is this a folder of shards?") from None
    except (OSError, http.client.HTTPException) as error:
        raise HpmlError(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from None


def _forget_strangers(partial: Path, left: list[Shard]) -> None:
    """Remove parts that cannot go on: of other files, and those without aria2's note of which bytes are there."""
    kept = {name for shard in left for name in (shard.name, f"{shard.name}.aria2") if (partial / f"{shard.name}.aria2").exists()}
    for path in partial.iterdir():
        if path.name not in kept:
            path.unlink()


def _check_room(dst: Path, left: list[Shard], partial: Path) -> None:
    needed, free = sum(shard.bytes for shard in left) - _arrived(partial), shutil.disk_usage(dst).free
    if needed > free:
        raise HpmlError(f"{dst}: {os.strerror(errno.ENOSPC)}: {_mib(needed)} MiB are to come and {_mib(free)} MiB are free")


def _arrived(partial: Path) -> int:
    """Bytes on disk of what is under way: aria2 leaves holes for what has not come."""
    total = 0
    for path in partial.glob("*"):
        try:
            facts = path.stat()
        except OSError:
            continue  # moved meanwhile
        if path.suffix not in (".aria2", ".log", ".json"):
            total += min(facts.st_size, 512 * facts.st_blocks)
    return total


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f}"
