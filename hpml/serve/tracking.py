"""`hpml track`: where the shuttle is in a video, as a table, an annotated video and a summary of what was found and how fast."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpml import env
from hpml.apps.tracker import Row, Tracker
from hpml.data import video
from hpml.env import HpmlError
from hpml.serve.stages import Stages, weights_of

FILES = {"positions": "positions.csv", "video": "annotated.mp4", "summary": "summary.json"}
COLUMNS = ("Frame", "Visibility", "X", "Y", "Confidence")  # TrackNetV3's, and one more
TRAIL = 12  # frames behind the newest place that the annotated video shows
FRESH, OLD = (255, 196, 0), (0, 158, 255)  # of the ring and its trail


def track(path: Path, *, out: Path | None = None, weights: str | None = None, engine: str = "openvino", precision: str = "fp32",
          tier: str = "cpu", image: int | None = None, variant: str | None = None, device: str = "cpu", annotate: bool = True,
          say: Callable[[str], object] = print) -> dict:
    """Track one video; writes FILES into `out` (default: results/track/<name>) and returns the summary; `written` names the files.

    A video that ends before it should is tracked as far as it goes, and `incomplete` says so.

    weights: a run, a .safetensors file, or None for random ones. image, variant: the model's frame width and design, where no record
    beside the weights says them. Raises HpmlError, one line: no video, one damaged from its first frame on, files that would be
    overwritten, a folder that cannot be written to, an engine or a precision that cannot be here.
    """
    path, out = Path(path), Path(out) if out else env.results_dir() / "track" / Path(path).stem
    seen = video.facts(path)
    if there := [name for name in FILES.values() if (out / name).exists()]:
        raise HpmlError(f"{out} holds {there[0]} already; give another folder with --out")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):  # engines may take minutes: said before
        raise HpmlError(f"{out}: {above} is no folder that can be written to; give another one with --out")
    taken = weights_of(weights)
    stages = Stages(taken, engine=engine, precision=precision, tier=tier, image=image, variant=variant, device=device, say=say)
    out.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(stages.width, stages.height)
    decode_s, write_s, began, incomplete = _follow(path, seen, stages, tracker, out / FILES["video"] if annotate else None)
    whole_s, scale = time.perf_counter() - began, min(stages.width / seen.width, stages.height / seen.height)
    write_positions(out / FILES["positions"], tracker.rows, scale)
    count = len(tracker.rows)
    steps = {"decode": decode_s, **stages.spent, "tracker": tracker.spent_s - stages.spent["find"] - stages.spent["refine"],
             "write": write_s}
    summary = {
        "video": str(path), "width": seen.width, "height": seen.height, "fps": seen.fps, "frames": count,
        "incomplete": incomplete, "written": [name for kind, name in FILES.items() if annotate or kind != "video"],
        "visible": sum(row.visible for row in tracker.rows), "searched": sum(row.searched for row in tracker.rows),
        "weights": taken.words, "answers_mean_something": taken.means, "engine": engine, "precision": precision,
        "design": stages.knobs["variant"], "model_width": stages.width, "machine": env.machine()["id"], "start_up": stages.start_up,
        "seconds": {**steps, "end to end": whole_s}, "calls": {"decode": count, **stages.calls},
        "frames_per_second": {name: (stages.calls.get(name, count) / spent if spent > 0 else None)
                              for name, spent in {**steps, "end to end": whole_s}.items()},
    }
    (out / FILES["summary"]).write_text(json.dumps(summary, indent=1))
    return summary


def _follow(path: Path, seen: video.Facts, stages: Stages, tracker: Tracker,
            annotated: Path | None) -> tuple[float, float, float, str | None]:
    """Every frame through the tracker, and into the annotated video once its answer is final: (seconds of decoding, of writing, start,
    why the video ended early)."""
    from tqdm import tqdm

    decode_s = write_s = 0.0
    incomplete = None
    late, waiting, began = tracker.settings.confirm - 1, [], time.perf_counter()
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(video.writer(annotated, fps=seen.fps or 25.0)) if annotated else None
        bar = stack.enter_context(tqdm(total=seen.frames, unit="frame", desc=path.name, file=sys.stderr, disable=None, leave=False))
        source = video.frames(path)
        while True:
            started = time.perf_counter()
            try:
                item = next(source, None)
            except video.Cut as error:  # what was found so far is kept
                item, incomplete = None, str(error)
            decode_s += time.perf_counter() - started
            if item is not None:
                number, at_s, frame = item
                scale = stages.see(frame, [(row.x, row.y, float(row.visible)) for row in tracker.rows[:-stages.design.history - 1:-1]])
                tracker.step(stages.find, stages.refine)
                bar.update()
                waiting.append((number, at_s, frame))
            started = time.perf_counter()
            while waiting and (item is None or len(waiting) > late):
                number, at_s, frame = waiting.pop(0)
                if add:
                    add(drawn(frame, tracker.rows[max(0, number - TRAIL):number + 1], scale), at_s)
            write_s += time.perf_counter() - started
            if item is None:
                return decode_s, write_s, began, incomplete


def drawn(frame: np.ndarray, rows: list[Row], scale: float) -> np.ndarray:
    """The frame with a ring around the newest row's place, if it is visible, and a line through the ones before. `scale`: from the
    frame's pixels to the rows'."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(frame)
    draw, radius = ImageDraw.Draw(picture), max(4, frame.shape[1] // 100)
    for first, second in zip(rows, rows[1:], strict=False):
        if first.visible and second.visible:
            draw.line([first.x / scale, first.y / scale, second.x / scale, second.y / scale], fill=OLD, width=max(1, radius // 5))
    if rows and rows[-1].visible:
        x, y = rows[-1].x / scale, rows[-1].y / scale
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=FRESH, width=max(2, radius // 4))
    return np.asarray(picture)


def write_positions(path: Path, rows: list[Row], scale: float) -> None:
    """TrackNetV3's table in the video's own pixels, 0, 0 where nothing is visible, with the confidence that something is."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, row in enumerate(rows):
            place = (round(row.x / scale, 2), round(row.y / scale, 2)) if row.visible else (0, 0)
            table.writerow((number, int(row.visible), *place, round(row.confidence, 4)))


def text(summary: dict) -> str:
    """The summary for a terminal."""
    rates, start = summary["frames_per_second"], summary["start_up"]
    how = f"{start['made_s']:.1f} s of them making engines" if start["made_s"] else "nothing had to be made"
    shown = [f"{name} {rate:,.1f}" for name, rate in rates.items() if rate and name != "end to end"]
    return "\n".join([
        f"{summary['video']}: {summary['frames']} frames of {summary['width']}x{summary['height']}, the shuttle visible in "
        f"{summary['visible']}, the whole frame searched in {summary['searched']}",
        f"weights: {summary['weights']}",
        f"{summary['engine']} {summary['precision']}, {summary['design']} at {summary['model_width']} pixels: first result after "
        f"{start['first_result_s']:.2f} s ({how}; loading {start['load_s']:.2f} s, first calls {start['first_calls_s']:.2f} s)",
        f"frames per second: {', '.join(shown)}; end to end {rates['end to end']:,.1f}",
        *([summary["incomplete"]] if summary["incomplete"] else [])])
