"""Downloads of the data sets in data/manifest.json: resumed, checked, and complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib
import json
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from hpml.env import HpmlError, data_dir, root

TIMEOUT_S = 30
ATTEMPTS = 4  # of one address; only a broken or stalled transfer is tried again
PAUSE_S = 1.0
BLOCK_BYTES = 1 << 20
PROGRESS_S = 5.0


def manifest(path: Path | None = None) -> dict[str, dict]:
    """The known data sets by name. Raises HpmlError when the manifest cannot be read."""
    path = path or root() / "data" / "manifest.json"
    try:
        return {entry["name"]: entry for entry in json.loads(path.read_text())["datasets"]}
    except FileNotFoundError:
        raise HpmlError(f"{path} is not here: start this in a checkout of the course") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HpmlError(f"{path} cannot be read as the manifest of data sets: {error}") from None


def fetch(name: str, *, into: Path | None = None, progress: Callable[[str], None] = print,
          entries: dict[str, dict] | None = None) -> Path:
    """Download data set `name` into the folder `into` (default: its own in the data folder); returns what is there.

    What is there and right is not downloaded again; an interrupted download goes on where it stopped. Proxies of the
    environment are used. Raises HpmlError, in one line with what to do, for every failure; a file under its own name
    is always whole.
    """
    entry = _entry(name, entries)
    files = entry.get("files") or [entry]  # a set of several archives lists them
    if entry.get("steps"):
        return _gated(name, entry, progress)
    if not files[0]["urls"]:
        raise HpmlError(f"{name}: nothing to fetch: {entry['how']}")
    folder = Path(into) if into else data_dir() / name
    there = [_fetched(name, {**entry, **file}, folder, progress) for file in files]
    return there[0] if len(there) == 1 else folder


def _gated(name: str, entry: dict, progress: Callable[[str], None]) -> Path:
    """Print the steps to a set that its publisher gives out on request, then check what is here."""
    for step in entry["steps"]:
        progress(step)
    found = _found(entry, _module(entry))
    if found is None:
        raise HpmlError(f"{name} is not here yet: follow the steps above, then run it again")
    for line in _module(entry).check(name, found):
        progress(line)
    return found


def _fetched(name: str, entry: dict, folder: Path, progress: Callable[[str], None]) -> Path:
    """One file of a data set in `folder`, whole and right, unpacked where the manifest says so."""
    target = folder / entry["file"]
    unpacked = folder / entry["unpack"] if entry.get("unpack") else None
    part = target.with_name(target.name + ".part")
    try:
        if unpacked and unpacked.is_dir():
            progress(f"{name}: {unpacked} is there")
            return unpacked
        if target.is_file():
            if _fault(target, entry) is None:
                progress(f"{name}: {target} is there and right")
                return _unpack(name, target, unpacked) if unpacked else target
            progress(f"{name}: {target} is damaged; fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(name, file)
            try:
                _fill(name, part, entry, folder, progress)
                os.replace(part, target)
            finally:
                if part.is_file() and part.stat().st_size == 0:
                    part.unlink()
        progress(f"{name}: {target}, {_mib(entry['size_bytes'])}, checksum right")
        return _unpack(name, target, unpacked) if unpacked else target
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HpmlError(f"{name}: no space left in {folder} ({_mib(entry['size_bytes'])} are needed); "
                            "make room, then run it again") from None
        raise HpmlError(f"{name}: cannot write {error.filename or folder}: {error.strerror or error}") from None


def check(name: str, *, fix: bool = False, entries: dict[str, dict] | None = None) -> list[str]:
    """What is wrong with data set `name` on this machine, one line each; empty when it is there and right.

    `fix` moves bad files aside where the set is one of single files (its module has `check`); nothing is deleted. Raises HpmlError
    where there is nothing of the kind to move.
    """
    entry = _entry(name, entries)
    module = _module(entry)
    found = _found(entry, module)
    generated = module is not None and not hasattr(module, "find")
    if found is None and not generated:
        return [f"{name} is not on this machine: {entry['how']}"]
    if hasattr(module, "check"):
        try:
            return module.check(name, found, fix=fix)
        except HpmlError as error:
            return [str(error)]
    if fix:
        raise HpmlError(f"{name}: --fix moves bad files aside; this set has no single files to move, fetch it again instead")
    if hasattr(module, "problems"):
        return module.problems(name, found)
    if module is None:
        fault = _fault(found, entry) if found.is_file() else None
        return [fault] if fault else []
    try:
        module.load()
    except HpmlError as error:
        return [str(error)]
    return []


def status(*, entries: dict[str, dict] | None = None) -> list[dict]:
    """One row per data set: name, title, licence, found (path as text, or None) and how (to get it). Reads no data."""
    rows = []
    for entry in (manifest() if entries is None else entries).values():
        found = _found(entry, _module(entry))
        rows.append({"name": entry["name"], "title": entry["title"], "licence": entry["licence"],
                     "found": str(found) if found else None, "how": entry["how"]})
    return rows


def _entry(name: str, entries: dict[str, dict] | None) -> dict:
    entries = manifest() if entries is None else entries
    if name not in entries:
        raise HpmlError(f"data set {name!r} is unknown; known: {', '.join(entries)}")
    return entries[name]


def _module(entry: dict):
    return importlib.import_module(f"hpml.data.{entry['module']}") if entry.get("module") else None


def _found(entry: dict, module) -> Path | None:
    if hasattr(module, "find"):
        return module.find(entry["name"])
    places = [data_dir() / entry["name"] / entry[key] for key in ("unpack", "file") if entry.get(key)]
    return next((place for place in places if place.exists()), None)


def _fault(path: Path, entry: dict) -> str | None:
    """Why the file is not the published one, or None."""
    size = path.stat().st_size
    if size != entry["size_bytes"]:
        return f"{path} has {size:,} bytes, published are {entry['size_bytes']:,}"
    for kind in ("sha256", "md5"):
        if entry.get(kind):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != entry[kind]:
                return f"{path} has {kind} {found}, published is {entry[kind]}"
    return None


def _lock(name: str, file) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HpmlError(f"{name}: another process is fetching it; wait for that one") from None


def _fill(name: str, part: Path, entry: dict, folder: Path, progress: Callable[[str], None]) -> None:
    """Make `part` the published file, from the first address that gives it."""
    missing = entry["size_bytes"] - part.stat().st_size
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise HpmlError(f"{name}: {folder} has {_mib(free)} free, {_mib(missing)} are needed; "
                        "make room or name another folder")
    reasons = []
    for url in entry["urls"]:
        reason = _download(name, url, part, entry, folder, progress)
        if reason is None:
            return
        reasons.append(reason)
    raise HpmlError("; ".join(reasons))


def _download(name: str, url: str, part: Path, entry: dict, folder: Path,
              progress: Callable[[str], None]) -> str | None:
    """Fill `part` from one address: None when it is whole and right, else the reason. Keeps what can be resumed."""
    host = urlsplit(url).netloc
    size = entry["size_bytes"]
    by_hand = f"download it yourself from {url} and put it in {folder}"
    for attempt in range(ATTEMPTS):
        have = part.stat().st_size
        if have > size:
            os.truncate(part, 0)
            have = 0
        if have < size:
            try:
                trouble = _transfer(name, url, part, have, size, progress)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 416:
                    return f"{name}: {host} answered {error.code} {error.reason} for {url}; {by_hand}"
                os.truncate(part, 0)  # the server has no such range: begin anew
                continue
            except urllib.error.URLError as error:
                if isinstance(error.reason, TimeoutError) and attempt + 1 < ATTEMPTS:
                    continue
                reason = getattr(error.reason, "strerror", None) or error.reason
                return f"{name}: cannot reach {host}: {reason}; {by_hand}"
            if trouble == "other":
                return f"{name}: {host} sends something else than the {size:,} bytes that were published; {by_hand}"
            have_now = part.stat().st_size
            if have_now < size:
                progress(f"{name}: {host} stopped at {_mib(have_now)} of {_mib(size)} ({trouble})")
                time.sleep(PAUSE_S if have_now > have else PAUSE_S * 2**attempt)
                continue
        fault = _fault(part, entry)
        if fault is None:
            return None
        os.truncate(part, 0)
        if have == 0:  # the whole of it came from here and now: trying again would bring the same
            detail = fault.rpartition(" has ")[2]
            return f"{name}: what {host} sent is not the published file ({detail}); it was not kept; {by_hand}"
        progress(f"{name}: the resumed download does not match its checksum; beginning anew")
    return (f"{name}: {host} stopped at {_mib(part.stat().st_size)} of {_mib(size)}; "
            f"run it again to go on from there, or {by_hand}")


def _transfer(name: str, url: str, part: Path, have: int, size: int, progress: Callable[[str], None]) -> str | None:
    """Append to `part` what the server sends: None at its end, "other" when it is another file, else why it stopped."""
    request = urllib.request.Request(url, headers={"User-Agent": "hpml", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        return str(error) or type(error).__name__
    with response, part.open("r+b") as file:
        if response.status == 206 and have:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if start != str(have):
                return "other"
        else:
            have = 0  # the server cannot resume: it sends everything
        length = response.headers.get("Content-Length")
        if length is not None and length.isdecimal() and have + int(length) != size:
            return "other"
        if file.seek(0, os.SEEK_END) != have:
            file.truncate(have)
        file.seek(have)
        began = said = time.monotonic()
        first = have
        progress(f"{name}: {_mib(have)} of {_mib(size)} from {url}")
        while True:
            try:
                block = response.read1(BLOCK_BYTES)
            except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                return str(error) or type(error).__name__
            if not block:
                return "connection closed" if have < size else None
            have += len(block)
            if have > size:
                file.truncate(0)
                return "other"
            file.write(block)
            now = time.monotonic()
            if now - said >= PROGRESS_S:
                said = now
                rate = _mib((have - first) / (now - began))
                progress(f"{name}: {_mib(have)} of {_mib(size)} ({100 * have // size} %), {rate}/s")


def _unpack(name: str, archive: Path, folder: Path) -> Path:
    """Unpack a tar whose one top folder is `folder`'s name; nothing outside it is written, and it appears whole."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            os.replace(Path(temporary) / folder.name, folder)
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            raise HpmlError(f"{name}: {archive} cannot be unpacked to {folder.name}: {error}") from None
    return folder


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
