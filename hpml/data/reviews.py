"""Amazon reviews with their polarity: the published CSV and its malformed form, split so that no product stands on both sides.

Source: X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text Classification", 2015: 3,600,000 + 400,000 reviews,
label 1 (one or two stars) or 2 (four or five). The Kaggle copies are the same files, whole or their head.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data.images import balanced, read_stored, say, store
from hpml.data.texts import CLASSES, ReviewSet, Texts
from hpml.env import HpmlError, Unavailable, cache_dir, data_dir

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of what the cache holds; raised when other arrays are made from the same files
LABELS = {"1": 0, "2": 1}
HEADER = (("polarity", "label", "class index", "class", "sentiment"), ("title",), ("text", "review", "content"))
MALFORMED = "review,sentiment"  # the header of the form without quotes and without the header's line end
END = re.compile(r"\n,(.)", re.DOTALL)  # there a record ends with its label; the next title follows at once
# One file has no product ids, but the reviews of one product stand together in it. So it is split by blocks: every fifth block of 400
# reviews is the test part, and 50 reviews on either side of it belong to neither part. A product would have to have more than 50
# reviews in a row to stand on both sides.
BLOCK, EVERY, GAP = 400, 5, 50
LISTED = 1000  # unusable rows that are kept with their reason; all are counted


def open_reviews(source: str = "auto") -> ReviewSet:
    """auto: the real reviews where they are on disk, else the stand-in; real or amazon: the real ones. Raises Unavailable with what to do,
    HpmlError for an unknown name or files of another schema."""
    from hpml.data import templates

    if source not in ("auto", "real", "amazon", "standin"):
        raise HpmlError(f"data source {source!r} is unknown; choose one of: auto, real, amazon, standin")
    if source == "standin" or source == "auto" and find() is None:
        return templates.load()
    return load()


def find(name: str = "amazon") -> Path | None:
    """The folder with train.csv and test.csv, or the one CSV file: in the data folder or its `amazon`, `amazon_polarity`."""
    places = [data_dir() / "amazon", data_dir() / "amazon_polarity", data_dir()]
    for folder in (part for place in places for part in (place / "amazon_review_polarity_csv", place)):
        if folder != data_dir() and any((folder / f"{part}.csv").is_file() for part in ("train", "test")):
            return folder
        if files := sorted(folder.glob("amazon*.csv")):
            return files[0]
    return None


def load(path: Path | None = None) -> ReviewSet:
    """The reviews at `path`, or where `find` sees them, as memory maps; converted on first use.

    A folder keeps the published split; one file is split by blocks (`split`). A review that stands in the training part is left out of
    the test part. Raises Unavailable when nothing is there, HpmlError that names file and reason for another schema.
    """
    path = path or find()
    if path is None:
        raise Unavailable(f"Amazon reviews are not on this machine: `hpml data fetch amazon` prints the steps; put train.csv and test.csv "
                          f"into {data_dir() / 'amazon'}, or name their folder's parent in HPML_DATA")
    try:
        files = _files(path)
        stamp = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        facts, arrays = _cached(stamp) or _converted(path, files, stamp)
    except OSError as error:
        raise HpmlError(f"{error.filename or path}: {error.strerror or error}") from None
    return ReviewSet(name="amazon", title="Amazon reviews", origin="real", checksum=facts["checksum"], note=facts["note"],
                     skipped=tuple(facts["skipped"]),
                     **{f"{part}_texts": Texts(arrays[f"{part}_bytes"], arrays[f"{part}_offsets"]) for part in ("train", "test")},
                     **{f"{part}_labels": arrays[f"{part}_labels"] for part in ("train", "test")})


def subset(reviews: ReviewSet, n_train: int, n_test: int, seed: int) -> ReviewSet:
    """A deterministic, class-balanced part; n <= 0 or more than there is means all, unchanged."""
    parts = {}
    for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
        texts, labels = getattr(reviews, f"{part}_texts"), getattr(reviews, f"{part}_labels")
        if 0 < n < len(labels):
            index = balanced(labels, len(CLASSES), n, seed, stream)
            parts |= {f"{part}_texts": texts.at(index), f"{part}_labels": labels[index]}
    return replace(reviews, **parts)


def problems(name: str, path: Path) -> list[str]:
    """What is wrong with the files at `path`, one line each: rows that are skipped, or why a file is refused."""
    skipped: list[str] = []
    try:
        for file in _files(path):
            for _ in read(file, skipped):
                pass
    except HpmlError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or path}: {error.strerror or error}"]
    return skipped


# ---- reading


def read(path: Path, skipped: list[str]) -> Iterator[tuple[int, str, str]]:
    """(label 0 or 1, title, text) of each usable review of a CSV file in file order; unusable ones are added to `skipped`.

    Raises HpmlError in one line where the file has another schema: the first row says so, or most rows cannot be used.
    """
    good, bad, first = 0, 0, ""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        head = file.read(len(MALFORMED) + 1)
        file.seek(0)
        malformed = head.startswith(MALFORMED) and head[len(MALFORMED):] not in ("\n", "\r")
        for where, label, title, text in _records(path, file.read()) if malformed else _rows(path, file):
            title, text = (part.replace("\\n", "\n").strip() for part in (title, text))
            if label not in LABELS or not title + text:
                reason = "an empty review" if label in LABELS else f"label {label!r} is neither 1 nor 2"
                first = first or f"{path}: {where}: {reason}"
                skipped.append(f"{path}: {where}: {reason}")
                bad += 1
                continue
            good += 1
            yield LABELS[label], title, text
    if bad > good or not good:
        raise HpmlError(f"{first or f'{path}: no reviews'} ({bad:,} of {good + bad:,} rows are unusable): label,title,text is expected")


def _rows(path: Path, file) -> Iterator[tuple[str, str, str, str]]:
    """(where, label, title, text) of the proper form, with or without a header."""
    rows = csv.reader(file, strict=True)
    try:
        for number, row in enumerate(rows):
            if number == 0:
                if len(row) != 3 or not (row[0].strip().isdigit() or _is_header(row)):
                    shown = ",".join(row)[:60]
                    raise HpmlError(f"{path}: another schema: line 1 is {shown!r}, label,title,text is expected")
                if _is_header(row):
                    continue
            if len(row) == 3:
                yield f"line {rows.line_num}", row[0].strip(), row[1], row[2]
            elif row:
                yield f"line {rows.line_num}", f"{len(row)} columns", "", ""
    except csv.Error as error:
        raise HpmlError(f"{path}: line {rows.line_num}: broken quotes ({error}); take the file from its source again") from None


def _is_header(row: list[str]) -> bool:
    return len(row) == 3 and all(cell.strip().lower() in names for cell, names in zip(row, HEADER, strict=True))


def _records(path: Path, content: str) -> Iterator[tuple[str, str, str, str]]:
    """(where, label, title, text) of the malformed form: 'Title: text' and a line end, then ',<label>', then the next title at once."""
    start = len(MALFORMED)
    for number, found in enumerate(END.finditer(content), 1):
        title, _, text = content[start : found.start()].partition(": ")
        yield f"record {number}", found[1], title, text
        start = found.end()
    if content[start:].strip():
        yield "its end", "", "", ""  # a record without a label: the file was cut


# ---- splitting and the cache


def split(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training and of the test part of `n` reviews in file order: by blocks, with a gap between the parts."""
    import numpy as np

    block = min(BLOCK, max(1, n // EVERY))
    rows = np.arange(n)
    test = (rows // block) % EVERY == EVERY - 1
    near = np.convolve(test, np.ones(2 * min(GAP, block // 2) + 1), mode="same") > 0 if n else test
    return rows[~near], rows[test]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / "train.csv", path / "test.csv"]
    for file in files:
        if not file.is_file():
            raise HpmlError(f"{file} is missing: put both files of the published split there")
    return files


def _cached(stamp: list) -> tuple[dict, dict[str, np.ndarray]] | None:
    for folder in sorted(cache_dir().glob("amazon-*")):
        stored = read_stored(folder)
        if stored and stored[0].get("format") == FORMAT and stored[0].get("source") == stamp:
            return stored
    return None


def _converted(path: Path, files: list[Path], stamp: list) -> tuple[dict, dict[str, np.ndarray]]:
    import numpy as np

    began, skipped = time.perf_counter(), []
    digest = hashlib.sha256()
    parts = []
    for file in files:
        data, lengths, labels = bytearray(), [], []
        for label, title, text in read(file, skipped):
            line = f"{title}: {text}" if title else text
            raw = line.encode()
            data += raw
            lengths.append(len(raw))
            labels.append(label)
            digest.update(b"%d%s\0" % (label, raw))
        parts.append((Texts(np.frombuffer(data, np.uint8), np.cumsum([0, *lengths], dtype=np.int64)), np.asarray(labels, np.int64)))
    if len(parts) == 1:
        (texts, labels), = parts
        rows = split(len(labels))
        parts = [(texts.at(index), labels[index]) for index in rows]
        unused = len(labels) - sum(map(len, rows))
        note = f"split by blocks of {min(BLOCK, max(1, len(labels) // EVERY))} in file order, {unused} reviews between the parts unused"
    else:
        note = "published split"
    seen = {hash(text) for text in parts[0][0]}
    fresh = np.array([i for i, text in enumerate(parts[1][0]) if hash(text) not in seen], dtype=np.int64)
    if repeated := len(parts[1][0]) - len(fresh):
        note += f", {repeated} test reviews that repeat a training review left out"
        parts[1] = (parts[1][0].at(fresh), parts[1][1][fresh])
    note += f", {len(skipped)} unusable rows skipped" if skipped else ""
    arrays = {}
    for part, (texts, labels) in zip(("train", "test"), parts, strict=True):
        packed = texts if texts.index is None else Texts.of(texts)
        arrays |= {f"{part}_bytes": packed.data, f"{part}_offsets": packed.offsets, f"{part}_labels": labels}
    facts = {"format": FORMAT, "checksum": digest.hexdigest(), "note": note, "source": stamp, "skipped": skipped[:LISTED]}
    where = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:12]
    folder = cache_dir() / f"amazon-{where}"
    store(folder, arrays, facts)
    say(f"reading the reviews of {path.name} once: {time.perf_counter() - began:.1f} s")
    return read_stored(folder) or (facts, arrays)
