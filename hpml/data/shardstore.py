"""Where shards are read from: a folder, also while they still arrive in it, or a web server, through a cache on this machine.

Whoever asks for a shard gets a file that is whole and has the checksum of the index, or an error that names shard and reason. Nothing is
skipped. A file is hashed once: a stamp in the cache remembers its size, time and number.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from hpml.data import fetch
from hpml.data.shards import INDEX, Index, Shard, fault, parsed, read_index
from hpml.env import HpmlError, cache_dir

WAIT_S = 60.0  # without a new byte in the folder: then a shard that is not there is missing
POLL_S = 0.1
ATTEMPTS = 6  # of one shard, each of which goes on where the last one stopped: half a minute without a server
PAUSE_S = 1.0  # before the second attempt; twice as long before each further one
TIMEOUT_S = 30
INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class Store:
    """Shards at one place. `folder` holds the files: the place itself, or the cache of what `url` gives."""

    index: Index
    folder: Path
    url: str | None = None
    wait_s: float = WAIT_S

    def path(self, shard: Shard) -> Path:
        """The shard's file, whole and right; waits for one that is still arriving, downloads one of a server. Raises HpmlError."""
        path = self.folder / shard.name
        for attempt in range(2):
            if self.url:
                self._download(shard)
            else:
                self._wait(shard)
            reason = _checked(self.folder, shard)
            if reason is None:
                return path
            if not self.url or attempt:
                break
            path.unlink(missing_ok=True)  # what lies in the cache was changed: fetched again once
        raise HpmlError(f"{path}: {reason}; pack or pull it again (hpml data check {self.folder} lists all that is wrong)")

    def discard(self, shard: Shard) -> None:
        """Forget a downloaded shard; it is fetched again when it is needed again."""
        if self.url:
            (self.folder / shard.name).unlink(missing_ok=True)

    def _wait(self, shard: Shard) -> None:
        """Until the shard has its size and no tool is at work on it (aria2 keeps a note beside the file). Raises HpmlError."""
        path, seen, since = self.folder / shard.name, -1, time.monotonic()
        while True:
            size = path.stat().st_size if path.exists() else -1
            if size >= shard.bytes and not path.with_name(f"{path.name}.aria2").exists():
                return
            arrived = _bytes_in(self.folder)
            if arrived != seen:
                seen, since = arrived, time.monotonic()
            if time.monotonic() - since > self.wait_s:
                what = "is missing" if size < 0 else f"is truncated or still arriving: {size:,} of {shard.bytes:,} bytes"
                raise HpmlError(f"{path} {what}; nothing came in {self.wait_s:g} s")
            time.sleep(POLL_S)

    def _download(self, shard: Shard) -> None:
        """Bring the shard into the cache, if it is not there; one process at a time, the others wait for it. Raises HpmlError."""
        if (self.folder / shard.name).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"name": shard.name, "urls": [f"{self.url}/{shard.name}"], "file": shard.name, "size_bytes": shard.bytes,
                 "sha256": shard.sha256}
        with (self.folder / f".{shard.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for attempt in range(ATTEMPTS):
                try:
                    fetch.fetch(shard.name, into=self.folder, progress=_quiet, entries={shard.name: entry})
                    _remember(self.folder / shard.name, shard)
                    return
                except HpmlError as error:
                    if attempt + 1 == ATTEMPTS or re.search(r"answered 4\d\d|no space left|free, .* are needed", str(error)):
                        raise
                    time.sleep(PAUSE_S * 2**attempt)


def _quiet(line: str) -> None:
    """Progress that nobody reads: a training has lines of its own."""


def open_store(place: str | Path, *, cache: Path | None = None, wait_s: float = WAIT_S) -> Store:
    """The shards at a folder or an http(s) address. `cache`: the folder for what is downloaded (default: one below the cache folder).

    Raises HpmlError where there is no index, or one that cannot be used.
    """
    if not str(place).startswith(("http://", "https://")):
        folder = Path(place).expanduser()
        return Store(read_index(folder), folder, wait_s=wait_s)
    url = str(place).rstrip("/")
    text = _fetched_index(f"{url}/{INDEX}")
    index = parsed(text, f"{url}/{INDEX}")
    folder = Path(cache) if cache else cache_dir() / f"shards-of-{hashlib.sha256(text).hexdigest()[:12]}"
    return Store(index, folder, url, wait_s)


def _fetched_index(url: str) -> bytes:
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "hpml"}), timeout=TIMEOUT_S) as answer:
                text = answer.read(INDEX_BYTES + 1)
            if len(text) > INDEX_BYTES:
                raise HpmlError(f"{url}: more than {INDEX_BYTES:,} bytes, not an index of shards")
            return text
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                break
        except (OSError, ValueError) as error:  # also what urllib and http.client raise
            reason = str(getattr(error, "reason", None) or error)
    raise HpmlError(f"{url}: {reason}")


def _checked(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file. One that was right is not read again until it changes."""
    try:
        stamp = _stamp(folder / shard.name, shard)
    except OSError as error:
        return error.strerror
    if stamp.exists():
        return None
    reason = fault(folder, shard)
    if reason is None:
        _remember(folder / shard.name, shard)
    return reason


def _stamp(path: Path, shard: Shard) -> Path:
    facts = path.stat()
    words = f"{shard.sha256} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino} {facts.st_dev}"
    return cache_dir() / "shards-right" / hashlib.sha256(words.encode()).hexdigest()[:32]


def _remember(path: Path, shard: Shard) -> None:
    """Write down that the file is right as it is now; without that it is hashed again next time."""
    with contextlib.suppress(OSError):
        stamp = _stamp(path, shard)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _bytes_in(folder: Path) -> int:
    """Bytes of all files of a folder, also of the parts that a pull keeps below it; blocks as they are allocated: what a tool writes ahead
    of time does not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            total += facts.st_blocks * 512 + facts.st_size
    return total
