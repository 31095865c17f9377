"""A video made ready for labelling by hand in Label Studio: its frames as pictures, a labelling config and a list of tasks.

What is written lies in one folder: `images/<clip>/<number>.jpg`, `labelling.xml`, `tasks_<clip>.json`. Label Studio serves the pictures
itself (its "local files" storage), so that nothing is uploaded. A frame in which nothing is visible is submitted without a point.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hpml.data import points, video
from hpml.data.images import say
from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

JPEG_QUALITY = 95
SAY_EVERY = 500  # frames
CONFIG = f"""<View>
  <Image name="img" value="$img" zoom="true" zoomControl="true"/>
  <KeyPointLabels name="point" toName="img" smart="false">
    <Label value="{points.NAMES[0]}" background="#ff8800" hotkey="1"/>
  </KeyPointLabels>
</View>
"""
START = """Start Label Studio with these two settings, so that it may read the pictures:
  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} label-studio start
Make a project with {root}/labelling.xml as its labelling interface, add the local storage {root}/images (do not sync it), and import
{root}/{tasks}. Export as JSON, JSON-MIN, CSV or TSV, then: hpml data shuttle-prepare EXPORT DST --frames {root}/images"""


def label(source: Path, target: Path, *, start_s: float = 0.0, stop_s: float | None = None, png: bool = False) -> int:
    """Writes what Label Studio needs to label the video `source` below `target`; the number of tasks.

    Frames keep their numbers in the video and its size. Run again, it goes on: a picture that is there is kept. Raises HpmlError, one
    line, for a video that cannot be read, a span without frames, and where another video's or another span's files would be replaced.
    """
    clip, ending = source.stem, "png" if png else "jpg"
    folder, tasks_file, config = target / "images" / clip, target / f"tasks_{clip}.json", target / "labelling.xml"
    expected, tasks, first = video.facts(source).frames, [], True
    for number, time_s, frame in video.frames(source):
        if stop_s is not None and time_s >= stop_s:
            break
        if time_s < start_s:
            continue
        picture = folder / f"{number}.{ending}"
        if first or not picture.exists():
            content = encoded(frame, png)
            if not picture.exists():
                put(picture, content)
            elif picture.read_bytes() != content:
                raise HpmlError(f"{picture} is another picture than frame {number} of {source}; give another folder")
        first = False
        tasks.append({"data": {"img": f"/data/local-files/?d={quote(f'images/{clip}/{picture.name}')}"}})
        if len(tasks) % SAY_EVERY == 0:
            say(f"{source.name}: frame {number}" + (f" of about {expected}" if expected else ""))
    if not tasks:
        raise HpmlError(f"{source}: no frame between {start_s:g} s and {'its end' if stop_s is None else f'{stop_s:g} s'}")
    for file, text in ((config, CONFIG), (tasks_file, json.dumps(tasks, indent=1) + "\n")):
        if not file.exists():
            put(file, text.encode())
        elif file.read_text(encoding="utf-8") != text:
            raise HpmlError(f"{file} is there with other content and is not overwritten; move it away or give another folder")
    return len(tasks)


def encoded(frame: np.ndarray, png: bool = False) -> bytes:
    """A frame uint8 [h, w, 3] as the bytes of a JPEG of JPEG_QUALITY, or of a PNG."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG" if png else "JPEG", **({"compress_level": 3} if png else {"quality": JPEG_QUALITY}))
    return content.getvalue()


def put(file: Path, content: bytes) -> None:
    """Writes a file that has its name only when it is whole. Raises HpmlError where it cannot."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_bytes(content)
        os.replace(part, file)
    except OSError as error:
        raise HpmlError(f"{file}: cannot be written ({error.strerror or error})") from None
