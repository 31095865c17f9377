"""Label files of a small thing in video frames as one table, and the rules by which bad rows are decided.

Three forms are read, whatever the order of their columns: TrackNetV2's `frame_num,visible,x,y` as shares of the frame (0 to 1),
TrackNetV3's `Frame,Visibility,X,Y` in pixels, and Label Studio's key points (CSV, TSV, JSON-MIN or its full JSON, in percent of the
original size; an annotation without a point is a frame in which nothing is visible; in the full JSON a task that nobody has annotated, or
whose annotation was cancelled, says nothing and is left out). Places become pixels from the left and upper edge of the frame.

Each row is decided by one rule, and everything that is not plain is listed:

- a cell that is no number: the row is left out;
- `visible` is 0 in a whole file that has places: the column was never filled in, a frame with a place is visible;
- visible at 0, 0: TrackNet's mark for "nowhere", not visible;
- the same frame twice with one place: once; with two places: left out, since nobody can tell which is right;
- a visible place outside the frame: left out;
- an original size other than the clip's: left out;
- a frame number that is missing between the first and the last: nothing is filled in, and no window reaches over it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hpml.env import HpmlError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["clip", "frame", "x", "y", "visible", "width", "height", "image"]
SIZE = (1280, 720)  # width, height of TrackNet's videos: of frames that are not here as pictures
PICTURES = (".jpg", ".jpeg", ".png")
NAMES = ("shuttle", "shuttlecock", "ball")  # key points of these labels count where a file has several
FORMS = "frame_num,visible,x,y (TrackNetV2), Frame,Visibility,X,Y (TrackNetV3) or key points of Label Studio"


def read(path: Path, *, clip: str, size: tuple[int, int] = SIZE) -> tuple[pd.DataFrame, list[str]]:
    """(table with COLUMNS in the order of clips and frames, what was wrong, one line each).

    x, y float in pixels, not a number where nothing is visible; `image` is the name of the frame's picture where the file says it.
    `clip` and `size` (width, height) are those of the file's frames; a Label Studio file names its own. Raises HpmlError, one line with
    the file, for another schema or a file that cannot be read.
    """
    import pandas as pd

    wrong: list[str] = []
    if path.suffix == ".json":
        rows = _tasks(path, wrong)
    else:
        try:
            cells = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise HpmlError(f"{path}: not a table ({str(error).splitlines()[0]})") from None
        cells.columns = [str(name).strip() for name in cells.columns]
        for names, share in ((("frame_num", "x", "y", "visible"), True), (("Frame", "X", "Y", "Visibility"), False)):
            if set(names) <= set(cells.columns):
                return _decided(_numbers(cells, names, clip, size, share, wrong), wrong)
        rows = cells.to_dict("records")
    table = _key_points(rows, wrong)
    if table is None:
        kind = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise HpmlError(f"{path}: {FORMS} is expected, found {kind[:80]}")
    return _decided(table, wrong)


def windows(table: pd.DataFrame, length: int) -> list[list[int]]:
    """Rows of `length` consecutive frames of one clip, each window as positions in the table: none crosses a clip or a missing frame."""
    clips, frames = list(table["clip"]), list(table["frame"])
    place = list(zip(clips, frames, strict=True))
    found = [list(range(start, start + length)) for start in range(len(place) - length + 1)]
    return [rows for rows in found if all(place[row] == (clips[rows[0]], frames[rows[0]] + k) for k, row in enumerate(rows))]


def some(values: Iterable) -> str:
    """The first of many: "3, 4, 5 and 7 more"."""
    values = list(values)
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _numbers(cells: pd.DataFrame, names: tuple, clip: str, size: tuple[int, int], share: bool, wrong: list[str]) -> pd.DataFrame:
    """Rows of TrackNet's forms: frame, place in pixels, visible."""
    import pandas as pd

    table = pd.DataFrame({key: pd.to_numeric(cells[name], errors="coerce")
                          for key, name in zip(("frame", "x", "y", "visible"), names, strict=True)})
    whole = table["frame"].mod(1).eq(0) & table["frame"].ge(0) & table["visible"].isin((0, 1))
    bad = ~whole | (table["visible"].eq(1) & table[["x", "y"]].isna().any(axis=1))
    if bad.any():
        wrong.append(f"{bad.sum()} rows are no numbers (lines {some(int(i) + 2 for i in table.index[bad])}): left out")
    table = table[~bad].assign(clip=clip, width=size[0], height=size[1], image="")
    if share:
        table["x"], table["y"] = table["x"] * size[0], table["y"] * size[1]
    placed = table[["x", "y"]].fillna(0).ne(0).any(axis=1)
    if placed.any() and not table["visible"].any():
        wrong.append(f"visible is 0 on all {len(table)} rows, of which {placed.sum()} have a place: these are taken as visible")
        table["visible"] = placed.astype(int)
    nowhere = table["visible"].eq(1) & ~placed
    if nowhere.any():
        wrong.append(f"{nowhere.sum()} frames are visible at 0, 0 (frames {some(table['frame'][nowhere].astype(int))}): "
                     "taken as not visible")
        table.loc[nowhere, "visible"] = 0
    return table


def _tasks(path: Path, wrong: list[str]) -> list[dict]:
    """The annotations of a JSON-MIN or full JSON export in the form of the first."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise HpmlError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise HpmlError(f"{path}: a list of tasks is expected, as Label Studio exports it")
    if not any(isinstance(task.get("annotations"), list) for task in tasks):
        return tasks
    rows, silent = [], 0
    for task in tasks:
        given = [one for one in task.get("annotations") or () if isinstance(one, dict) and not one.get("was_cancelled")]
        silent += not given
        for one in given:
            results = [part for part in one.get("result") or () if isinstance(part, dict) and isinstance(part.get("value"), dict)]
            sizes = ({key: part.get(key) for key in ("original_width", "original_height")} for part in results)
            found = [{**part["value"], **size} for part, size in zip(results, sizes, strict=True) if "keypointlabels" in part["value"]]
            rows.append({**(task.get("data") or {}), "points": found})
    if silent:
        wrong.append(f"{silent} tasks have no annotation: left out")
    return rows


def _key_points(rows: list[dict], wrong: list[str]) -> pd.DataFrame | None:
    """Rows of Label Studio's forms, one for each point and one for each task without; None where no task has a point."""
    import pandas as pd

    tasks = [(next((name for cell in row.values() if (name := _picture(cell))), ""), [p for cell in row.values() for p in _points(cell)])
             for row in rows]
    labels = {label for _, points in tasks for point in points for label in point.get("keypointlabels") or ()}
    chosen = labels & set(NAMES)
    if not any(points for _, points in tasks):
        return None
    found, unnumbered = [], []
    for name, points in tasks:
        place = PurePosixPath(name)
        number = re.search(r"(\d+)$", place.stem)
        if not number:
            unnumbered.append(name or "a task without a picture")
            continue
        points = [p for p in points if not chosen or chosen & set(p.get("keypointlabels") or ())]
        frame = {"clip": place.parent.name or "clip", "frame": int(number[1]), "image": place.name}
        for p in points:
            width, height = p["original_width"], p["original_height"]
            found.append({**frame, "x": p["x"] / 100 * width, "y": p["y"] / 100 * height, "visible": 1, "width": width, "height": height})
        if not points:
            found.append({**frame, "x": float("nan"), "y": float("nan"), "visible": 0, "width": 0, "height": 0})
    if unnumbered:
        wrong.append(f"{len(unnumbered)} tasks have no frame number in their picture's name ({some(unnumbered)}): left out")
    table = pd.DataFrame(found, columns=COLUMNS)
    common = table[table["width"] > 0].groupby("clip")[["width", "height"]].agg(lambda sizes: sizes.mode()[0])
    for side in ("width", "height"):  # of a frame without a point nothing says the size
        table[side] = table[side].where(table[side] > 0, table["clip"].map(common[side]).fillna(0)).astype(int)
    other = (table["width"] != table["clip"].map(common["width"])) | (table["height"] != table["clip"].map(common["height"]))
    other &= table["clip"].isin(common.index)
    if other.any():
        wrong.append(f"{other.sum()} points belong to another original size than their clip's (frames {some(table['frame'][other])}): "
                     "left out")
    return table[~other]


def _picture(cell: object) -> str:
    """Path of the picture that a cell names (Label Studio writes /data/local-files/?d=clip/img7.png), or ""."""
    text = unquote(str(cell).rpartition("?d=")[2]) if isinstance(cell, str) else ""
    return text if PurePosixPath(text).suffix.lower() in PICTURES else ""


def _points(cell: object) -> list[dict]:
    """The key points that a cell holds."""
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return []
    needed, points = ("x", "y", "original_width", "original_height"), cell if isinstance(cell, list) else []
    return [p for p in points if isinstance(p, dict) and all(isinstance(p.get(key), int | float) for key in needed)]


def _decided(table: pd.DataFrame, wrong: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rules that all forms share."""
    table = table.assign(visible=table["visible"].astype(bool), frame=table["frame"].astype(int))[COLUMNS]
    table[["x", "y"]] = table[["x", "y"]].astype(float).where(table["visible"])
    outside = table["visible"] & ~(table["x"].between(0, table["width"]) & table["y"].between(0, table["height"]))
    if outside.any():
        wrong.append(f"{outside.sum()} places lie outside the frame (frames {some(table['frame'][outside])}): left out")
    table = table[~outside]
    same = table.duplicated(["clip", "frame", "x", "y", "visible"])
    if same.any():
        wrong.append(f"{same.sum()} rows repeat a frame with the same place (frames {some(table['frame'][same])}): taken once")
    table = table[~same]
    two = table.duplicated(["clip", "frame"], keep=False)
    if two.any():
        wrong.append(f"{two.sum()} points share {len(set(table['frame'][two]))} frames (frames {some(sorted(set(table['frame'][two])))}): "
                     "left out, nobody can tell which is right")
    table = table[~two].sort_values(["clip", "frame"]).reset_index(drop=True)
    for clip, frames in table.groupby("clip")["frame"]:
        gone = sorted(set(range(frames.min(), frames.max() + 1)) - set(frames))
        if gone:
            wrong.append(f"{clip}: {len(gone)} frames are missing between {frames.min()} and {frames.max()} ({some(gone)})")
    return table, wrong
