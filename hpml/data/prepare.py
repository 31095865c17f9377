"""A training set of shuttle frames made from labels and the pictures or videos that they belong to.

The set is a folder that shuttle.open_frames reads: `images/<clip>/<number>.jpg`, `labels/<clip>.csv` (Frame,Visibility,X,Y in pixels), and
`prepared.json`, which says where everything came from, what was found wrong and how it was decided (the rules stand in points.py). Labels
are an export of Label Studio or TrackNet's CSV files. Parts of the split never share a clip; windows never reach over a gap.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data import points, shuttle, video
from hpml.data.images import say
from hpml.data.jpegfiles import NOT_DECODED, decoded
from hpml.data.labelling import encoded, put
from hpml.env import HpmlError

if TYPE_CHECKING:
    import pandas as pd

VIDEOS = ("video", "videos")  # where a clip's video lies beside the folder of its labels
WINDOW = 4  # frames: three preceding ones and the one that is asked about


def prepare(export: Path, target: Path, *, frames: Path | None = None, videos: Iterable[Path] = (), png: bool = False) -> dict:
    """Writes the set below `target` and returns what `prepared.json` says: clips (frames, visible, windows, part), remarks, sources.

    `export` is a label file or a folder of them. A clip's pictures are looked for in `frames` (one folder a clip, or the clip itself),
    in `videos` (named as the clip), then beside the labels. Pictures are copied as they are, frames of videos encoded as JPEG or PNG. Run
    again, it goes on; nothing is overwritten. Raises HpmlError where no labelled frame has a picture, or files would be replaced.
    """
    files = [one for one in shuttle.label_files(export) if target not in one.parents] if export.is_dir() else [export]
    if not export.exists() or not files:
        raise HpmlError(f"{export}: no label file (.csv, .tsv or .json) is there")
    root, given = export if export.is_dir() else export.parent, {one.stem: one for one in videos}
    for one in given.values():
        video.facts(one)  # a wrong file is told before anything is written
    used, places, remarks, sources, made = {}, {}, [], {}, {}
    for file in files:
        where, stem = file.relative_to(root).as_posix(), file.stem.removesuffix("_ball")
        source = _source(file, stem, frames, given)
        try:
            rows, wrong = points.read(file, clip=stem, size=_size(source) or points.SIZE)
        except HpmlError as error:
            if export.is_file():
                raise
            remarks.append((where, str(error).rpartition(f"{file}: ")[2]))
            continue
        remarks += [(where, line) for line in wrong]
        sources[where] = hashlib.sha256(file.read_bytes()).hexdigest()
        for clip, part in rows.groupby("clip", sort=False):
            source = source if clip == stem else _source(file, str(clip), frames, given)
            name = "_".join((*file.parent.relative_to(root).parts[:-1], str(clip)))
            if name in used:
                raise HpmlError(f"{file}: the clip {name} is labelled in {used[name]} too; prepare them apart")
            if source is None:
                remarks.append((name, f"{len(part)} labels have neither pictures nor a video: left out"))
                continue
            place = source if isinstance(source, Path) else next(iter(source.values()))[0].parent
            if place in places:
                raise HpmlError(f"{place}: frames of one clip, but the labels name {places[place]} and {clip}; give the folder above")
            places[place] = str(clip)
            used[name] = where
            part, wrong = _clip(part, name, source, target, png)
            remarks += wrong
            if len(part):
                made[name] = part
    return _written(made, remarks, sources, target, export)


def text(found: dict) -> str:
    """The set as two tables: its clips, and everything that was found wrong with the count of it."""
    import pandas as pd

    clips = pd.DataFrame([{"clip": name, **facts} for name, facts in found["clips"].items()])
    whole = clips.groupby("part", sort=False)[["frames", "visible", "windows"]].sum().assign(clips=clips["part"].value_counts())
    lines = [clips.to_string(index=False), "", whole.reset_index().to_string(index=False), ""]
    if found["remarks"]:
        lines.append(f"{len(found['remarks'])} remarks, each decided by the rules of hpml/data/points.py:")
        lines += [f"  {file}: {said}" for file, said in found["remarks"]]
    else:
        lines.append("nothing wrong")
    return "\n".join(lines)


def _source(file: Path, clip: str, frames: Path | None, videos: dict[str, Path]) -> Path | dict | None:
    """A clip's video, or its pictures by number, or None."""
    if frames is not None:
        for folder in (frames / clip, frames / "images" / clip, frames):
            if found := shuttle.numbered(folder):
                return found
    beside = (one for kind in VIDEOS for one in sorted((file.parent.parent / kind).glob("*")))
    return videos.get(clip) or shuttle.pictures(file, clip) or next(
        (one for one in beside if one.stem == clip and one.suffix.lower() in video.ENDINGS), None)


def _size(source: Path | dict | None) -> tuple[int, int] | None:
    if isinstance(source, Path):
        facts = video.facts(source)
        return facts.width, facts.height
    return shuttle.common(source) if source else None


def _clip(rows: pd.DataFrame, name: str, source: Path | dict, target: Path, png: bool) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Puts one clip's pictures below `target`: (the rows whose picture is there, what was wrong)."""
    folder, wrong, size = target / "images" / name, [], _size(source)
    rows = rows.copy()
    for side, pixels in zip(("width", "height"), size, strict=True):  # frames without a point may not say their size
        rows[side] = rows[side].where(rows[side] > 0, pixels)
    other = (rows["width"] != size[0]) | (rows["height"] != size[1])
    if other.any():
        sizes = points.some(sorted({f"{w}x{h}" for w, h in zip(rows["width"][other], rows["height"][other], strict=True)}))
        wrong.append((name, f"{other.sum()} labels are for {sizes} pixels, frames have {size[0]}x{size[1]}: left out"))
        rows = rows[~other]
    if abs(size[0] / size[1] / shuttle.WIDE - 1) > shuttle.WIDE_TOLERANCE:
        return rows[:0], [*wrong, (name, f"frames of {size[0]}x{size[1]} are not 16:9: left out")]
    wanted, there = set(rows["frame"]), set()
    if isinstance(source, Path):
        try:
            for number, _, frame in video.frames(source):
                picture = folder / f"{number}.{'png' if png else 'jpg'}"
                if number in wanted and not picture.exists():
                    put(picture, encoded(frame, png))
                there |= {number}
                if number >= max(wanted, default=-1):
                    break
        except HpmlError as error:
            wrong.append((name, str(error)))
    for number, (picture, shown) in source.items() if isinstance(source, dict) else ():
        if number not in wanted:
            there.add(number)
            continue
        if shown != size:
            wrong.append((f"{name}/{picture.name}", "not the picture that its name says" if shown is None else
                          f"{shown[0]}x{shown[1]} pixels, its clip has {size[0]}x{size[1]}"))
            continue
        content = picture.read_bytes()
        try:
            decoded(content)
        except NOT_DECODED as error:
            wrong.append((f"{name}/{picture.name}", f"cannot be decoded ({error}): left out"))
            continue
        own = folder / f"{number}{picture.suffix.lower()}"
        if not own.exists():
            put(own, content)
        elif own.read_bytes() != content:
            raise HpmlError(f"{own} is another picture than {picture} and is not overwritten; give another folder")
        there.add(number)
    bare, unlabelled = sorted(wanted - there), sorted(there - wanted)
    if bare:
        wrong.append((name, f"{len(bare)} labels have no frame ({points.some(bare)}): left out"))
    if unlabelled:
        wrong.append((name, f"{len(unlabelled)} frames have no label ({points.some(unlabelled)}): left out"))
    return rows[rows["frame"].isin(there)], wrong


def _written(made: dict[str, pd.DataFrame], remarks: list, sources: dict, target: Path, export: Path) -> dict:
    """Writes the labels and `prepared.json`."""
    if not made:
        raise HpmlError(f"{export}: no labelled frame has a picture" + (f" ({'; '.join(': '.join(one) for one in remarks[:3])})" if remarks
                                                                        else ""))
    clips, parts = {}, {}
    if len(made) > 1:
        parts = {clip: part for part, names in shuttle.split(list(made)).items() for clip in names}
    else:
        remarks.append((next(iter(made)), "the only clip: nothing is left to test on"))
    for name, rows in made.items():
        table = io.StringIO()
        table.write("Frame,Visibility,X,Y\n")
        for row in rows.itertuples():
            table.write(f"{row.frame},1,{row.x:.3f},{row.y:.3f}\n" if row.visible else f"{row.frame},0,0,0\n")
        _keep(target / "labels" / f"{name}.csv", table.getvalue())
        windows = len(points.windows(rows.assign(clip=name).reset_index(drop=True), WINDOW))
        clips[name] = {"frames": len(rows), "visible": int(rows["visible"].sum()), "windows": windows, "part": parts.get(name, "train")}
    found = {"clips": clips, "remarks": remarks, "labels": sources, "window": WINDOW}
    _keep(target / shuttle.PREPARED, json.dumps(found, indent=1) + "\n")
    say(f"{target}: {sum(one['frames'] for one in clips.values()):,} frames of {len(clips)} clips")
    return found


def _keep(file: Path, content: str) -> None:
    if not file.exists():
        put(file, content.encode())
    elif file.read_text(encoding="utf-8") != content:
        raise HpmlError(f"{file} is there with other content and is not overwritten; give another folder")
