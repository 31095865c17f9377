"""The localizer's two stages as two engines: which weights, which design, stored once and loaded in moments; frames in, places out."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpml import env, records, study, workloads
from hpml.data.frames import mark, normalised
from hpml.env import HpmlError
from hpml.serve import prepare
from hpml.serve.settings import Settings
from hpml.work import SHAPING
from hpml.workloads._designs import crop_side

OWN_RUN = "track"  # keeps the engines where the weights belong to no run


@dataclass(frozen=True)
class Weights:
    """Where the weights lie and what they were trained as: `words` for the summary, `means` whether answers on real video mean much."""

    run_id: str
    knob: str  # random, or the path of a .safetensors file
    sizes: dict
    words: str
    means: bool


def weights_of(asked: str | None) -> Weights:
    """A run's name, a .safetensors file, or None for random weights. A record beside the weights (as `hpml train` leaves it) says their
    design, frame width and training data. Raises HpmlError for a run without trained weights or no such file."""
    if asked is None:
        return Weights(OWN_RUN, "random", {}, "random weights: the answers mean nothing", False)
    run_id, path = (OWN_RUN, Path(asked).expanduser()) if asked.endswith(".safetensors") else (asked, _of_run(asked))
    if not path.is_file():
        raise HpmlError(f"weights {asked!r}: no such file")
    try:
        knobs, data = _record(path)
    except (OSError, ValueError, KeyError, TypeError):
        return Weights(run_id, str(path), {}, f"{path.name}, of which no record says what it was trained on", False)
    more = "" if data["origin"] == "real" else ": answers on real video mean little"
    return Weights(run_id, str(path), {name: knobs[name] for name in SHAPING if name in knobs},
                   f"{path.name}, trained on {data['title']} ({data['origin']}){more}", data["origin"] == "real")


def _of_run(run_id: str) -> Path:
    """The run's trained weights, as notebook 15 leaves them, else those of its last training by `hpml train shuttle`."""
    folder = env.run_dir(run_id)
    fits = [r for r in records.read(folder / "records.jsonl") if r.case["workload"] == "shuttle" and r.actual.get("artefacts")]
    path = folder / "models" / (fits[-1].actual["artefacts"]["weights"] if fits else "shuttle.safetensors")
    kept = folder / "models" / "shuttle.safetensors"
    if not kept.is_file() and not path.is_file():
        raise HpmlError(f"weights {run_id!r}: that run has trained no shuttle localizer; give another (hpml train shuttle --run-id NAME) "
                        "or a .safetensors file")
    return kept if kept.is_file() else path


def _record(path: Path) -> tuple[dict, dict]:
    """(knobs, data) of the training that left these weights, from the file beside them or the records of their run."""
    note = path.with_suffix(".json")
    if note.is_file():
        record = json.loads(note.read_text())
        return record["knobs"], record["actual"]["data"]
    made = [r for r in records.read(path.parent.parent / "records.jsonl") if (r.actual.get("artefacts") or {}).get("weights") == path.name]
    if not made:
        raise KeyError(path.name)
    return made[-1].knobs, made[-1].actual["data"]


class Stages:
    """Both engines, and the frames that they see. `start_up`: seconds to the first results of both, and of these loading the engines, the
    first calls, and making what was not stored yet (0: all was); the rest is importing libraries and checking the files."""

    def __init__(self, weights: Weights, *, engine: str, precision: str, tier: str, image: int | None, variant: str | None, device: str,
                 say: Callable[[str], object]) -> None:
        """Raises HpmlError or Unavailable, one line, for what is unknown, does not fit the weights or cannot run here."""
        plan = prepare.plan("shuttle", engine=engine, precision=precision, tier=tier, image=None, run_id=weights.run_id, weights="random",
                            settings=Settings(max_batch=1), data="auto", device=device)
        sizes = {**weights.sizes, **{name: value for name, value in (("image", image), ("variant", variant)) if value is not None}}
        plan = plan.but(weights=weights.knob, **sizes)
        self.design = workloads.get("shuttle").design(plan.knobs["variant"])
        started, load_s, call_s, made_s, self.engines = time.perf_counter(), 0.0, 0.0, 0.0, {}
        for name in ("find", "refine"):
            one, begun = plan.but(part=name), time.perf_counter()
            view = workloads.part(workloads.get("shuttle"), one.knobs)
            self.engines[name], loaded_s = prepare.load(study.job_of(one, weights.run_id), view, streams=1, say=_noting(say, made := []))
            made_s += (time.perf_counter() - begun - loaded_s) * bool(made)
            inputs, called = tuple(x.numpy() for x in view.example_inputs(one.knobs, 1)), time.perf_counter()
            self.engines[name].run(inputs)
            load_s, call_s = load_s + loaded_s, call_s + time.perf_counter() - called
        self.start_up = {"first_result_s": time.perf_counter() - started, "load_s": load_s, "first_calls_s": call_s, "made_s": made_s}
        self.width, self.height = plan.knobs["image"], plan.knobs["image"] * 9 // 16
        self.side, self.knobs = crop_side(self.width), plan.knobs
        self.before: deque = deque(maxlen=self.design.history)  # normalised frames, the newest first
        self.spent = dict.fromkeys(("prepare", "find", "refine"), 0.0)
        self.calls = dict.fromkeys(("find", "refine"), 0)

    def see(self, frame: np.ndarray, past: list[tuple[float, float, float]]) -> float:
        """Take the next frame, uint8 RGB of any size, and the places (x, y, visible) before it, the newest first, in the model's pixels.

        Returns the scale from the frame's pixels to the model's. A frame of another shape than 16:9 fills what it can from the upper left
        corner; the rest is black.
        """
        from PIL import Image

        started = time.perf_counter()
        high, wide = frame.shape[:2]
        scale = min(self.width / wide, self.height / high)
        size = max(1, round(wide * scale)), max(1, round(high * scale))
        picture = Image.fromarray(frame)
        picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
        if size != (self.width, self.height):
            whole = Image.new("RGB", (self.width, self.height))
            whole.paste(picture)
            picture = whole
        current = normalised(np.asarray(picture))
        if self.design.history:
            earlier = [*self.before] + [self.before[-1] if self.before else current] * (self.design.history - len(self.before))
            places = [np.array(place) for place in past] + [np.zeros(3)] * (self.design.history - len(past))
            self.channels = np.concatenate([current, *earlier, *(mark(place, self.height, self.width) for place in places)])
            self.before.appendleft(current)
        else:
            self.channels = current
        self.spent["prepare"] += time.perf_counter() - started
        return scale

    def find(self) -> np.ndarray:
        """The first stage's place [2] in the frame, in the model's pixels."""
        return self._run("find", self.channels)

    def refine(self, centre: np.ndarray) -> np.ndarray:
        """The second stage's answer [3] in a crop around `centre`: x, y in the model's pixels of the frame, and a logit."""
        left, top = (int(np.clip(np.floor(at - self.side / 2), 0, size - self.side))
                     for at, size in zip(centre, (self.width, self.height), strict=True))
        answer = self._run("refine", self.channels[:, top:top + self.side, left:left + self.side])
        return answer + np.array([left, top, 0])

    def _run(self, name: str, channels: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        answer = self.engines[name].run((np.ascontiguousarray(channels[None]),))[0][0]
        self.spent[name] += time.perf_counter() - started
        self.calls[name] += 1
        return np.asarray(answer, float)


def _noting(say: Callable[[str], object], lines: list[str]) -> Callable[[str], None]:
    """`say`, and the lines kept: nothing is said where an engine was stored."""
    def both(line: str) -> None:
        lines.append(line)
        say(line)

    return both
