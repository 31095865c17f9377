"""Shuttle frames: where pictures and labels are found, what is wrong with them, and the split by clips.

A clip is a folder of numbered pictures; its labels lie beside it (`<clip>.csv`), in `labels/`, `csv/` or `corrected_csv/` beside `images/`
or `frame/` (TrackNet's folders), or in one Label Studio export (points.py reads all forms). Rallies of one match share their picture
of the court, frames of one rally nearly everything: parts of the split never share a clip.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.data import court, points
from hpml.data.frames import FrameSet, subset
from hpml.data.images import made_once, say
from hpml.data.jpegfiles import NOT_DECODED, decoded
from hpml.env import HpmlError, Unavailable, cache_dir, data_dir

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1  # of what the cache holds; raised when the arrays made from the same files change
TITLE = "shuttle frames"
FOLDERS = ("shuttle", "ball_frames", "label_studio_keypoints")  # below the data folder
BESIDE = ("images", "frame", "frames")  # where a clip's pictures lie beside the folder of its labels
PREPARED = "prepared.json"  # what prepare.py says of a set that it made
NO_LABELS = ("drop_frame.json", PREPARED)  # the first is TrackNetV3's list of frames that its median picture leaves out
LABELS = (".csv", ".tsv", ".json")
ASIDE = "set_aside"
WIDE = 16 / 9  # a frame's width over its height
WIDE_TOLERANCE = 0.01
TEST_EVERY = 5  # of the clips, shuffled
MISSING = "shuttle frames are not on this machine: put clips (folders of numbered pictures, with labels) into {}; see data/README.md"


def find(name: str = "shuttle") -> Path | None:
    """The first of FOLDERS that holds a label file."""
    return next((folder for known in FOLDERS if (folder := data_dir() / known).is_dir() and label_files(folder)), None)


def open_frames(source: str, width: int, n_train: int = 0, n_test: int = 0) -> FrameSet:
    """The set that the knob `data` means here, frames `width` pixels wide: auto, real, shuttle or standin; 0 frames means all.

    auto takes real frames where at least two clips have pictures: one to train on, one to test on. Raises Unavailable where real ones
    are asked for and absent, HpmlError for an unknown name or unusable files.
    """
    if source not in ("auto", "real", "shuttle", "standin"):
        raise HpmlError(f"data source {source!r} is unknown; choose one of: auto, real, shuttle, standin")
    if source != "standin" and (path := find()) and (source != "auto" or _pictured(path)):
        return subset(load(path=path, width=width), n_train, n_test, 0)
    if source in ("real", "shuttle"):
        raise Unavailable(MISSING.format(data_dir() / "shuttle"))
    arrays, checksum = court.load(width, n_train, n_test)
    places = {part: range(len(arrays[f"{part}_labels"])) for part in ("train", "test")}
    names = {f"{part}_clips": tuple(f"{part}_{i // court.CLIP_FRAMES[part]}" for i in count) for part, count in places.items()}
    numbers = {f"{part}_numbers": tuple(i % court.CLIP_FRAMES[part] for i in count) for part, count in places.items()}
    return FrameSet(name="standin", title="rendered badminton", origin="stand-in", classes=["shuttle"], checksum=checksum,
                    note=f"generated, not filmed; {width}x{width * 9 // 16}", **arrays, **names, **numbers)


def table(path: Path) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """(every labelled frame below `path` or in one label file, what was wrong), as points.read gives them.

    Clips are named by their folder and their labels' file, because two matches may hold rallies of one name; `image` is the picture's path
    from `path`, "" where the frame is not here. A picture without a label, a label without its picture in a clip that has pictures, and a
    picture that is none or has another size than its clip are left out. In a folder, files of another schema are listed; alone, refused.
    """
    import pandas as pd

    root = path if path.is_dir() else path.parent
    found, wrong = [], []
    for file in label_files(path) if path.is_dir() else [path]:
        where, stem = file.relative_to(root).as_posix(), file.stem.removesuffix("_ball")
        own = pictures(file, stem)
        try:
            rows, said = points.read(file, clip=stem, size=common(own) or points.SIZE)
        except HpmlError as error:
            if path.is_file():
                raise
            wrong.append((where, str(error).rpartition(f"{file}: ")[2]))
            continue
        wrong += [(where, line) for line in said]
        for clip, part in rows.groupby("clip", sort=False):
            part, said = _with_pictures(part, own if clip == stem else pictures(file, clip), root)
            wrong += said
            folder = file.parent.parent.relative_to(root) if file.parent != root else Path()
            found.append(part.assign(clip=(folder / str(clip)).as_posix()))
    whole = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=points.COLUMNS)
    return whole, wrong


def split(clips: list[str], seed: int = 0) -> dict[str, list[str]]:
    """Clips for training and for testing, every fifth of the shuffled ones. Raises HpmlError for fewer than two."""
    import numpy as np

    clips = sorted(set(clips))
    if len(clips) < 2:
        raise HpmlError(f"{len(clips)} clip{'s' * (len(clips) != 1)} with pictures: at least 2 are needed, one of them to test on")
    mixed = [clips[i] for i in np.random.default_rng(seed).permutation(len(clips))]
    return {"train": sorted(set(mixed) - set(mixed[::TEST_EVERY])), "test": sorted(mixed[::TEST_EVERY])}


def load(name: str = "shuttle", path: Path | None = None, *, width: int = 1280) -> FrameSet:
    """The real frames as memory maps, resized to `width` x `width` * 9 / 16 with their labels; converted on first use.

    Raises Unavailable when nothing is there, HpmlError (one line) when no two clips have usable pictures or the cache cannot be written.
    """
    import numpy as np
    from PIL import Image

    path = path or find(name)
    if path is None:
        raise Unavailable(MISSING.format(data_dir() / "shuttle"))

    def make() -> tuple[dict, dict]:
        rows, wrong = table(path)
        seen = rows[rows["image"] != ""]
        narrow = (seen["width"] / seen["height"] / WIDE - 1).abs() > WIDE_TOLERANCE
        wrong += [(clip, f"frames of {w}x{h} are not 16:9: left out")
                  for (clip, w, h), _ in seen[narrow].groupby(["clip", "width", "height"])]
        seen, arrays, facts = seen[~narrow], {}, {"clips": {}, "numbers": {}}
        for part, clips in split(list(seen["clip"])).items():
            own = seen[seen["clip"].isin(clips)]
            images, kept = np.empty((len(own), width * 9 // 16, width, 3), np.uint8), []
            for i, image in enumerate(own["image"]):
                try:
                    picture = decoded((path / image).read_bytes())
                except NOT_DECODED as error:
                    wrong.append((image, f"cannot be decoded ({error}): left out"))
                    continue
                images[len(kept)] = np.asarray(picture.resize(images.shape[2:0:-1], Image.Resampling.BILINEAR))
                kept.append(i)
            if not kept:
                raise HpmlError(f"{path}: none of the {len(own)} frames of {points.some(clips)} can be decoded")
            own, images = own.iloc[kept], images[:len(kept)]
            scaled = own[["x", "y"]].to_numpy() * (width / own["width"].to_numpy())[:, None]
            arrays[f"{part}_images"] = images
            arrays[f"{part}_labels"] = np.column_stack([np.nan_to_num(scaled), own["visible"]]).astype(np.float32)
            facts["clips"][part], facts["numbers"][part] = list(own["clip"]), [int(n) for n in own["frame"]]
        return arrays, {**facts, "skipped": wrong}

    digest = stamp(path)
    facts, arrays = made_once(cache_dir() / f"shuttle{width}-{digest[:12]}", make, f"converting {TITLE}")
    clips, numbers = facts["clips"], facts["numbers"]
    return FrameSet(name="shuttle", title=TITLE, origin="real", classes=["shuttle"], checksum=digest,
                    note=f"{len(set(clips['train']))} + {len(set(clips['test']))} clips, {len(facts['skipped'])} remarks, resized to "
                         f"{width}x{width * 9 // 16}",
                    train_clips=tuple(clips["train"]), test_clips=tuple(clips["test"]), train_numbers=tuple(numbers["train"]),
                    test_numbers=tuple(numbers["test"]), skipped=tuple(map(tuple, facts["skipped"])), **arrays)


def check(name: str, path: Path, *, fix: bool = False) -> list[str]:
    """What is wrong at `path`, one line each; empty when nothing is. How much of it is here goes to stderr.

    `fix` moves pictures that are none, or of another size than their clip, to the folder `set_aside` and deletes nothing; rows of label
    files stay, `table` decides them each time.
    """
    rows, wrong = table(path)
    pictures = 0
    for image in rows["image"][rows["image"] != ""]:
        try:
            decoded((path / image).read_bytes())
            pictures += 1
        except NOT_DECODED as error:
            wrong.append((image, f"cannot be decoded ({error})"))
    say(f"{name}: {len(rows):,} labelled frames of {rows['clip'].nunique():,} clips, visible in {int(rows['visible'].sum()):,}; "
        f"{pictures:,} pictures are here")
    if fix:
        bad = [(file, why) for file, why in wrong if Path(file).suffix.lower() in points.PICTURES]
        for file, _ in bad:
            target = path / ASIDE / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path / file, target)
        say(f"{name}: {len(bad)} files moved to {path / ASIDE}" if bad else f"{name}: nothing to move")
        wrong = [one for one in wrong if one not in bad]
    return [f"{file}: {why}" for file, why in wrong]


def identity(source: str) -> str:
    """What the knob `data` stands for on this machine right now, without reading a picture."""
    path = None if source == "standin" else find()
    return f"shuttle {stamp(path)[:16]}" if path and (source != "auto" or _pictured(path)) else source


def stamp(path: Path) -> str:
    """What tells, without reading them, that the files are those that were converted: their sizes and times, as a hex digest."""
    digest = hashlib.sha256(f"{FORMAT} {path}".encode())
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in (*LABELS, *points.PICTURES):
            facts = file.stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# ---- where files lie


def label_files(folder: Path) -> list[Path]:
    """Files below a folder that may hold labels."""
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in LABELS and file.name not in NO_LABELS and file.is_file()
            and ASIDE not in file.parts]


def _pictured(path: Path) -> bool:
    """Whether at least two folders hold pictures."""
    return len({file.parent for file in path.rglob("*") if file.suffix.lower() in points.PICTURES and ASIDE not in file.parts}) > 1


def pictures(file: Path, clip: str) -> dict[int, tuple[Path, tuple[int, int] | None]]:
    """The pictures of a clip by frame number, where they are looked for beside its label file; empty where they are not here."""
    places = [file.parent / clip, *(file.parent.parent / kind / clip for kind in BESIDE)]
    return numbered(next((place for place in places if place.is_dir()), None))


def numbered(folder: Path | None) -> dict[int, tuple[Path, tuple[int, int] | None]]:
    """(picture, its size, None for what is no picture) of the numbered pictures in a folder, by number."""
    named = {one: "".join(c if c.isdigit() else " " for c in one.stem).split()
             for one in (sorted(folder.iterdir()) if folder and folder.is_dir() else ())}
    return {int(digits[-1]): (one, _size(one)) for one, digits in named.items() if digits and one.suffix.lower() in points.PICTURES}


def common(pictures: dict[int, tuple[Path, tuple[int, int] | None]]) -> tuple[int, int] | None:
    """The size that most pictures of a clip have."""
    sizes = [size for _, size in pictures.values() if size]
    return max(set(sizes), key=sizes.count) if sizes else None


def _size(picture: Path) -> tuple[int, int] | None:
    """(width, height) from the picture's header; None for what is no picture of the kind that its name says."""
    from PIL import Image

    try:
        with Image.open(picture) as opened:
            right = "PNG" if picture.suffix.lower() == ".png" else "JPEG"
            return opened.size if opened.format in (right, "MPO") else None
    except (*NOT_DECODED, Image.DecompressionBombError):
        return None


def _with_pictures(rows: pd.DataFrame, pictures: dict[int, tuple[Path, tuple[int, int] | None]],
                   root: Path) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """One clip's rows with their pictures' paths, without those that cannot be used, and what was wrong."""
    if not pictures:
        return rows.assign(image=""), []
    wrong, good, usual = [], {}, common(pictures)
    for number, (file, size) in pictures.items():
        name = file.relative_to(root).as_posix()
        if size is None:
            wrong.append((name, "not the picture that its name says"))
        elif size != usual:
            wrong.append((name, f"{size[0]}x{size[1]} pixels, its clip has {usual[0]}x{usual[1]}"))
        else:
            good[number] = name
    where = next(iter(pictures.values()))[0].parent.relative_to(root).as_posix()
    other = sorted({(w, h) for w, h in zip(rows["width"], rows["height"], strict=True) if w and (w, h) != usual})
    if good and other:
        wrong.append((where, f"labels for {points.some(f'{w}x{h}' for w, h in other)} pixels, pictures of {usual[0]}x{usual[1]}: "
                             "left out"))
        good = {}
    unlabelled = sorted(set(good) - set(rows["frame"]))
    if unlabelled:
        wrong.append((where, f"{len(unlabelled)} pictures have no label ({points.some(unlabelled)}): left out"))
    bare = sorted(set(rows["frame"]) - set(pictures))
    if bare:
        wrong.append((where, f"{len(bare)} labels have no picture ({points.some(bare)}): left out"))
    rows = rows[rows["frame"].isin(good)]
    return rows.assign(image=rows["frame"].map(good)), wrong
