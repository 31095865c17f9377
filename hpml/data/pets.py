"""Oxford-IIIT Pet: where it is found, what is wrong with its files, and its one conversion to memory-mapped arrays.

Trimaps hold 1 pet, 2 background, 3 "not classified", the seam along the pet's outline. Here they are the classes 0 pet,
1 background, 2 boundary; the boundary is a class like the others, trained and scored. The split is the publisher's, by name.
Source: O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012; md5s as in torchvision.datasets.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hpml.data import creatures
from hpml.data.images import ImageSet, balanced, read_stored, say, store
from hpml.env import HpmlError, Unavailable, cache_dir, data_dir

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of what the cache holds; raised when the arrays made from the same files change
TITLE = "Oxford-IIIT Pet"
CLASSES = ("pet", "background", "boundary")
SIDES = (256, 512)  # of the cached pictures: the smallest that an input does not exceed
FOLDERS = ("pets", "oxford-iiit-pet", "oxford_pets_3breeds")  # below the data folder; the second is torchvision's
PARTS = ("images", "annotations")
ARCHIVES = {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}
LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
BREEDS = 37
ASIDE = "set_aside"  # where `check(fix=True)` moves bad files, beside images/ and annotations/
APPLE = "AppleDouble file of a Mac"


@dataclass(frozen=True, eq=False)
class PetSet(ImageSet):
    """An ImageSet whose labels are masks, uint8 [N, side, side] of class numbers."""

    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # (file, reason)


def find(name: str = "pets") -> Path | None:
    """The folder that holds images and annotations (as folders or as the two archives), or one tar of both."""
    for folder in (*(data_dir() / known for known in FOLDERS), data_dir()):
        if all(any(place.exists() for place in _places(folder, part)) for part in PARTS):
            return folder
        for tar in sorted(folder.glob("oxford_pets*.tar")):
            return tar
    return None


def open_pets(source: str, image: int) -> PetSet:
    """The set that the knob `data` means here, large enough for inputs of `image` pixels: auto, real, pets or standin.

    Raises Unavailable where the real one is asked for and absent, HpmlError for an unknown name or damaged files.
    """
    if source not in ("auto", "real", "pets", "standin"):
        raise HpmlError(f"data source {source!r} is unknown; choose one of: auto, real, pets, standin")
    if source == "standin" or (source == "auto" and find() is None):
        arrays, checksum = creatures.load()
        names = {part: tuple(f"{part}_{i}" for i in range(len(arrays[f"{part}_labels"]))) for part in LISTS}
        return PetSet(name="standin", title="rendered animals", origin="stand-in", classes=list(CLASSES), checksum=checksum,
                      note="generated, not photographs", train_names=names["train"], test_names=names["test"], **arrays)
    return load(side=next((side for side in SIDES if image <= side), SIDES[-1]))


def load(name: str = "pets", path: Path | None = None, *, side: int = SIDES[0]) -> PetSet:
    """The set as memory maps, from `path` or where `find` sees it; converted on first use to `side` x `side` pixels.

    Images are resized with antialiasing, masks by the nearest pixel; the aspect ratio is not kept. Bad files are left out, and
    listed with their reason in `skipped`. Raises Unavailable when nothing is there, HpmlError (one line, with the file) when a
    split list is missing or contradicts itself, an archive is damaged, or no image of a split is usable.
    """
    path = path or find(name)
    if path is None:
        raise Unavailable(f"{TITLE} is not on this machine: `hpml data fetch pets`, or put {' and '.join(ARCHIVES)} or the "
                          f"folders images and annotations in {data_dir() / 'pets'}, or name its folder in HPML_DATA")
    try:
        folder = cache_dir() / f"pets{side}-{stamp(path)[:12]}"
        stored = read_stored(folder)
        if stored is None:
            began = time.perf_counter()
            _convert(path, side, folder)
            say(f"converting {TITLE} once: {time.perf_counter() - began:.1f} s")
            stored = read_stored(folder)
    except OSError as error:
        raise HpmlError(f"{error.filename or path}: {error.strerror or error}") from None
    if stored is None:
        raise HpmlError(f"the cache {folder} cannot be read back; delete it and try again")
    facts, arrays = stored
    return PetSet(name="pets", title=TITLE, origin="real", classes=list(CLASSES), checksum=facts["checksum"], note=facts["note"],
                  train_names=tuple(facts["names"]["train"]), test_names=tuple(facts["names"]["test"]),
                  skipped=tuple(map(tuple, facts["skipped"])), **arrays)


def check(name: str, path: Path, *, fix: bool = False) -> list[str]:
    """What is wrong with the set at `path`, one line each; empty when nothing is. How much of it is here goes to stderr.

    `fix` moves bad files, image and trimap together, to the folder `set_aside` beside them and deletes nothing; files inside an
    archive stay, `load` leaves them out by itself.
    """
    wrong = []
    for archive in sorted({place for place in _sources(path).values() if place.name in ARCHIVES}):
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != ARCHIVES[archive.name]:
            wrong.append(f"{archive} has md5 {found}, published is {ARCHIVES[archive.name]}")
    pets = load(name, path)
    say(f"{name}: {pets.note}; {len(pets.train_names):,} trainval + {len(pets.test_names):,} test")
    bad = list(pets.skipped)
    if fix and bad:
        moved = _moved_aside(path, [file for file, _ in bad])
        say(f"{name}: {len(moved)} files moved to {path / ASIDE}" if moved else f"{name}: nothing to move")
        bad = [(file, reason) for file, reason in bad if file not in moved]
    apple = [file for file, reason in bad if reason == APPLE]
    if len(apple) > 1:  # the published archive has one for each trimap
        bad = [(file, reason) for file, reason in bad if reason != APPLE]
        wrong.append(f"{len(apple):,} files are an {APPLE}, the first {apple[0]}")
    return wrong + [f"{file}: {reason}" for file, reason in bad]


def subset(pets: PetSet, n_train: int, n_test: int, seed: int) -> PetSet:
    """A deterministic part of the set in which breeds take turns; n <= 0 or more than there is means all, unchanged."""
    import numpy as np

    changed = {}
    for stream, (part, n) in enumerate((("train", n_train), ("test", n_test))):
        names = getattr(pets, f"{part}_names")
        if not 0 < n < len(names):
            continue
        breeds = [name.rpartition("_")[0] for name in names]
        known = sorted(set(breeds))
        chosen = balanced(np.array([known.index(breed) for breed in breeds]), len(known), n, seed, stream)
        changed |= {f"{part}_names": tuple(names[i] for i in chosen),
                    **{f"{part}_{what}": getattr(pets, f"{part}_{what}")[chosen] for what in ("images", "labels")}}
    return replace(pets, **changed)


def identity(source: str) -> str:
    """What the knob `data` stands for on this machine right now, without reading a picture."""
    path = None if source == "standin" else find()
    return f"pets {stamp(path)[:16]}" if path else source


# ---- where files lie


def _places(folder: Path, part: str) -> tuple[Path, Path]:
    return folder / part / "trimaps" if part == "annotations" else folder / part, folder / f"{part}.tar.gz"


def _sources(path: Path) -> dict[str, Path]:
    """Folder or archive of each part."""
    if path.is_file():
        return dict.fromkeys(PARTS, path)
    return {part: path / part if (path / part).is_dir() else path / f"{part}.tar.gz" for part in PARTS}


def stamp(path: Path) -> str:
    """What tells, without reading them, that the files are those that were converted: their sizes and times, as a hex digest."""
    digest = hashlib.sha256(f"{FORMAT} {path}".encode())
    for place in _sources(path).values():
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            facts = file.stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(place: Path, part: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name from the set's root, reader) of every file of a part, in the order in which they lie there."""
    if place.is_dir():
        for file in sorted(place.rglob("*")):
            if file.is_file():
                yield f"{part}/{file.relative_to(place).as_posix()}", file.read_bytes
        return
    try:
        with tarfile.open(place, "r|*") as archive:  # a stream: compressed archives cannot be read at random
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and name.startswith(f"{part}/"):
                    yield name, partial(_member, archive, member)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise HpmlError(f"{place} cannot be unpacked ({error}); delete it and fetch it again") from None


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return archive.extractfile(member).read()


def _moved_aside(path: Path, files: list[str]) -> set[str]:
    """Move files of unpacked parts to the folder ASIDE, an image and its trimap together; the names that were moved."""
    moved = set()
    for name in files:
        partners = [name]
        if name.startswith("images/"):
            partners.append(f"annotations/trimaps/{PurePosixPath(name).stem}.png")
        for partner in partners:
            if (path / partner).is_file():
                target = path / ASIDE / partner
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path / partner, target)
                moved.add(partner)
    return moved


# ---- conversion


@dataclass
class _Annotations:
    split: dict[str, dict[str, int]]  # part -> name -> its place in the official list
    trimaps: dict[str, bytes] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def _convert(path: Path, side: int, folder: Path) -> None:
    import numpy as np

    sources = _sources(path)
    notes = _annotations(sources["annotations"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", suffix=".work", dir=folder.parent) as work:
        arrays = {}
        for part, places in notes.split.items():  # on disk: the whole set does not fit into the memory of a small machine
            for what, shape in (("images", (side, side, 3)), ("labels", (side, side))):
                arrays[f"{part}_{what}"] = np.lib.format.open_memmap(os.path.join(work, f"{part}_{what}"), "w+", np.uint8,
                                                                     (max(1, len(places)), *shape))
        digests: dict[str, dict[str, str]] = {part: {} for part in notes.split}
        grey = 0
        for name, read in _files(sources["images"], "images"):
            stem = PurePosixPath(name).stem
            if reason := _no_image(name):
                notes.skipped.append((name, reason))
                continue
            part = next((part for part, places in notes.split.items() if stem in places), None)
            content = read()
            image, mask, reasons, mode = _pair(content, notes.trimaps.get(stem), side)
            if part is None:
                reasons.insert(0, "in neither trainval.txt nor test.txt")
            if reasons:
                notes.skipped.append((name, "; ".join(reasons)))
                continue
            grey += mode != "RGB"
            at = notes.split[part][stem]
            arrays[f"{part}_images"][at], arrays[f"{part}_labels"][at] = image, mask
            digests[part][stem] = hashlib.sha256(content + notes.trimaps[stem]).hexdigest()
        tested = {digest: stem for stem, digest in digests["test"].items()}
        for stem in [stem for stem, digest in digests["train"].items() if digest in tested]:
            twin = tested[digests["train"].pop(stem)]
            notes.skipped.append((f"images/{stem}.jpg", f"the same picture as {twin} of test.txt"))
        names = {}
        for part, places in notes.split.items():
            names[part] = sorted(digests[part], key=places.get)
            if not names[part]:
                raise HpmlError(f"{path}: no usable image of {LISTS[part]} ({len(notes.skipped)} files skipped, "
                                f"{len(places)} listed)")
            for new, stem in enumerate(names[part]):
                for what in ("images", "labels"):
                    arrays[f"{part}_{what}"][new] = arrays[f"{part}_{what}"][places[stem]]
        checksum = hashlib.sha256("".join(f"{part} {stem} {digests[part][stem]}\n" for part in names for stem in names[part]).encode())
        listed, here = sum(map(len, notes.split.values())), sum(map(len, names.values()))
        note = (f"{here:,} of {listed:,} listed images, {len(notes.skipped):,} files skipped, "
                + (f"{grey} grey or CMYK ones made RGB, " if grey else "") + f"resized to {side}x{side}")
        store(folder, {key: array[: len(names[key.partition("_")[0]])] for key, array in arrays.items()},
              {"checksum": checksum.hexdigest(), "note": note, "names": names, "skipped": sorted(notes.skipped)})


def _annotations(place: Path) -> _Annotations:
    """The official lists and the trimaps. Raises HpmlError for a list that is missing, unreadable or at odds with the other."""
    texts, trimaps, skipped = {}, {}, []
    for name, read in _files(place, "annotations"):
        file = PurePosixPath(name)
        if file.name.startswith("._"):
            skipped.append((name, APPLE))
        elif str(file.parent) == "annotations/trimaps" and file.suffix == ".png":
            trimaps[file.stem] = read()
        elif name in LISTS.values():
            texts[name] = read()
    split = {}
    for part, name in LISTS.items():
        if name not in texts:
            raise HpmlError(f"{place}: {name} is missing: without it there is no official split")
        split[part] = _listed(texts[name], f"{place}: {name}", skipped)
    if both := split["train"].keys() & split["test"].keys():
        raise HpmlError(f"{place}: {min(both)} stands in trainval.txt and in test.txt: the split would leak")
    return _Annotations(split, trimaps, skipped)


def _listed(content: bytes, where: str, skipped: list[tuple[str, str]]) -> dict[str, int]:
    """name -> place of a list's lines "NAME CLASS SPECIES BREED"; class ids are the original's, 1 to 37."""
    places: dict[str, int] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *ids = line.split()
        if len(ids) != 3 or not all(text.isdecimal() for text in ids):
            raise HpmlError(f"{where}, line {number}: NAME CLASS SPECIES BREED is expected, not {line.strip()[:60]!r}")
        if not 1 <= int(ids[0]) <= BREEDS:
            skipped.append((f"{where.rpartition(': ')[2]}, line {number}", f"class id {ids[0]} of {name} is not within 1 to {BREEDS}"))
        else:
            places.setdefault(name, len(places))
    return places


def _no_image(name: str) -> str | None:
    """Why a file of images/ is none of the set's images by its name, or None."""
    file = PurePosixPath(name)
    if file.name.startswith("._"):
        return APPLE
    return None if file.suffix == ".jpg" else f"a {file.suffix or 'nameless'} file, not a .jpg image"


def _pair(content: bytes, trimap: bytes | None, side: int) -> tuple[np.ndarray | None, np.ndarray | None, list[str], str]:
    """(image uint8 [side, side, 3], mask uint8 [side, side], what is wrong with the pair, the image's colour mode)."""
    import numpy as np
    from PIL import Image

    image = mask = size = None
    reasons, mode = [], "RGB"
    try:
        with Image.open(io.BytesIO(content)) as picture:
            mode, size = picture.mode, picture.size
            if picture.format not in ("JPEG", "MPO"):
                reasons.append(f"a {picture.format} ({mode}) named .jpg")
            image = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reasons.append("not an image" if isinstance(error, Image.UnidentifiedImageError) else f"unreadable image ({error})")
    if trimap is None:
        return image, mask, [*reasons, "has no trimap"], mode
    try:
        with Image.open(io.BytesIO(trimap)) as picture:
            values = np.asarray(picture)
            if size and picture.size != size:
                reasons.append(f"its trimap has {picture.width}x{picture.height} pixels, the image {size[0]}x{size[1]}")
            if values.ndim != 2 or not np.isin(values, (1, 2, 3)).all():
                reasons.append("its trimap has other values than 1, 2 and 3")
            elif not (values == 1).any():
                reasons.append("its trimap has no pet")
            else:
                mask = np.asarray(Image.fromarray(values.astype(np.uint8) - 1).resize((side, side), Image.Resampling.NEAREST))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        reasons.append("its trimap is unreadable")
    return image, mask, reasons, mode
