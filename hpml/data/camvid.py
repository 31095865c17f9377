"""CamVid: 480x360 frames of four drives with the time of day of each drive, in one tar with an index.csv.

The published split puts two of the four drives on both sides. Here a drive that is tested is not trained on; val frames of other
drives train. All frames of a drive have one label ("day" or "dusk"), so they say little about a model.
Source: G. Brostow et al., "Semantic Object Classes in Video", 2009; the split of SegNet (Badrinarayanan et al., 2015).
"""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

from hpml.data import drives
from hpml.data.captions import UNKNOWN
from hpml.data.drives import Frame, Listing
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError, Unavailable, data_dir

TITLE = "CamVid"
FOLDERS = ("camvid", "camvid_driving")  # below the data folder
TIMES = {"day": "daytime", "dusk": "dawn/dusk", "night": "night"}
COLUMNS = ("split", "sequence", "file", "timeofday_by_sequence")


def find(source: str = "camvid") -> Path | None:
    """The folder with index.csv and camvid*.tar."""
    places = (data_dir() / known for known in FOLDERS)
    return next((folder for folder in places if (folder / "index.csv").is_file() and any(folder.glob("camvid*.tar"))), None)


def load(source: str = "camvid", path: Path | None = None) -> FileSet:
    """The set at `path` or where `find` sees it, read from the tar without unpacking it.

    Raises Unavailable when nothing is there, HpmlError that names a table of another schema or a damaged tar.
    """
    path = path or find()
    if path is None:
        raise Unavailable(f"CamVid is not on this machine: put index.csv and camvid*.tar into {data_dir() / FOLDERS[0]}")
    return drives.load("camvid", TITLE, path, _stamp(path), _listing)


def check(source: str, path: Path, *, fix: bool = False) -> list[str]:
    """What is wrong with the files at `path`, one line each; empty when nothing is. Every frame is decoded; a tar's members stay."""
    facts, _ = drives.index("camvid", path, _stamp(path), _listing)
    return drives.check(source, path, load(source, path), facts["skipped"], ("PNG",), fix=fix)


def identity(path: Path) -> str:
    """What the files at `path` are right now, without opening them."""
    return _stamp(path)


def _stamp(path: Path) -> str:
    files = [path / "index.csv", *sorted(path.glob("camvid*.tar"))]
    return repr([str(path.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)])


def _listing(path: Path) -> Listing:
    """The frames of index.csv at their places in the tar. Masks lie in folders of their own (trainannot, ...) and are not frames."""
    table, tar = path / "index.csv", sorted(path.glob("camvid*.tar"))[0]
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise HpmlError(f"{table}: columns {', '.join(COLUMNS)} are expected, found {', '.join(rows.fieldnames or ())}")
        listed = list(rows)
    try:
        with tarfile.open(tar, "r:") as archive:
            members = {"/".join(Path(one.name).parts[-2:]): one for one in archive if one.isfile()}
    except (tarfile.TarError, EOFError) as error:
        raise HpmlError(f"{tar} is cut or damaged ({error})") from None
    tested = {row["sequence"] for row in listed if row["split"] == "test"}
    found, skipped = [], []
    for row in listed:
        place = f"{row['split']}/{row['file']}"
        if place not in members:
            skipped.append((place, f"listed in index.csv and not in {tar.name}"))
            continue
        time = TIMES.get(row["timeofday_by_sequence"], row["timeofday_by_sequence"])
        part = "test" if row["split"] == "test" else "train"
        found.append(Frame(members[place].name, part, row["sequence"], {"weather": UNKNOWN, "scene": UNKNOWN, "timeofday": time},
                           0, members[place].offset_data, members[place].size))
    return Listing(found, skipped, f"split by drive, {len(tested)} tested; time of day by drive", (str(tar),))
