"""Pictures into an index by a service, and questions to one: what `hpml clip` and the gallery of the page do alike.

Weights: the published ones where the user has a copy, else those of the run, else the small CLIP that the run trains first.
"""

import collections
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpml import env, infer, pretrained, study, workloads
from hpml.apps import clip_index
from hpml.apps.clip_index import Index, Picture
from hpml.data import bpe
from hpml.env import HpmlError
from hpml.serve import prepare
from hpml.serve.service import Service, open_service
from hpml.serve.settings import BadInput, settings_of

AT_ONCE = 16  # pictures under way, so that decoding overlaps the model
SAVED_EVERY_S = 30.0  # an interrupted indexing loses so much at most
SAID_EVERY_S = 5.0
RUN = "clip"  # the run that keeps the weights and engines of these commands, where none is named
ASKED = ("engine", "precision", "tier", "image", "run_id", "weights", "data")  # what makes the same service again


def weights_here(run_id: str, weights: str, *, tier: str, data: str) -> str:
    """`weights` as the knob takes it, "auto" decided: pretrained, else trained. Trained ones are made where the run has none, so that
    every answer means something."""
    if weights == "auto":
        weights = "pretrained" if pretrained.here(workloads.get("clip")) else "trained"
    if weights == "trained":
        study.trained("clip", tier=tier, data=data, run_id=run_id)
    return weights


def made_by(service: Service) -> dict:
    """What an index says of the model that made it; two indexes can be searched by one query where all of it is equal."""
    job = service.job
    return {"weights": service.facts["weights"], "weights_sha256": job["weights_sha256"], **tokenizer_of(service.image_set),
            "engine": job["knobs"]["engine"], "precision": job["knobs"]["precision"], "sizes": service.facts["sizes"]}


def tokenizer_of(frames) -> dict:
    """The tokenizer's name and the digest of its file: other pieces make other queries."""
    return {"tokenizer": frames.tokenizer, "tokenizer_sha256": hashlib.sha256(Path(frames.tokenizer_file).read_bytes()).hexdigest()}


def embedded(service: Service, wanted: Sequence[int], read: Callable[[int], bytes]) -> Iterator[tuple[int, list[float] | str]]:
    """(number, embedding, or why there is none) of each wanted picture, in their order; `read` gives a picture's bytes."""
    waiting = collections.deque()

    def answer(index: int, future) -> tuple[int, list[float] | str]:
        try:
            return index, future if isinstance(future, str) else future.result().value["embeddings"][0]
        except BadInput as error:
            return index, str(error)

    for index in wanted:
        try:
            waiting.append((index, service.submit(read(index), deadline_s=3600.0)))
        except OSError as error:
            waiting.append((index, error.strerror or str(error)))
        if len(waiting) >= min(AT_ONCE, service.settings.queue):
            yield answer(*waiting.popleft())
    while waiting:
        yield answer(*waiting.popleft())


def fill(service: Service, folder: Path, pictures: list[Picture], read: Callable[[int], bytes], out: Path, *, made: dict | None = None,
         say: Callable[[str], object] | None = None) -> Index:
    """The index of these pictures, kept in `out`. What an earlier one of the same model holds is taken over; what is done is saved on the
    way, so an interrupted one goes on. Raises HpmlError where no picture can be read."""
    import numpy as np

    made = made or made_by(service)
    try:
        earlier = clip_index.load(out)
    except HpmlError:
        earlier = None
    rows, reasons = clip_index.known(earlier, made, pictures)
    left = [i for i, picture in enumerate(pictures) if picture not in rows and picture not in reasons]
    if say and len(left) < len(pictures):
        say(f"{len(pictures) - len(left):,} of {len(pictures):,} pictures are in {out} already")

    def index(complete: bool) -> Index:
        dim = len(next(iter(rows.values()))) if rows else 0
        return Index(made, folder, list(rows), np.asarray(list(rows.values()), np.float32).reshape(len(rows), dim), list(reasons.items()),
                     complete)

    began = saved = said = time.monotonic()
    for done, (number, found) in enumerate(embedded(service, left, read), 1):
        if isinstance(found, str):
            reasons[pictures[number]] = found
        else:
            rows[pictures[number]] = found
        now = time.monotonic()
        if now - saved > SAVED_EVERY_S and rows:
            index(False).save(out)
            saved = time.monotonic()
        if say and (now - said > SAID_EVERY_S or done == len(left)):
            rate = done / max(now - began, 1e-9)
            say(f"  {done:,} of {len(left):,} pictures, {rate:.3g} pictures/s, {(len(left) - done) / rate:,.0f} s left")
            said = now
    if not rows:
        raise HpmlError(f"none of the {len(pictures):,} pictures can be read; the first: {next(iter(reasons.values()))}")
    found = clip_index.finished(index(True))
    found.save(out)
    return found


def index_folder(folder: str, out: Path, *, say: Callable[[str], object], run_id: str | None = None, weights: str = "auto",
                 **asked) -> tuple[Index, str]:
    """Index a folder's pictures; returns the index and which model made it. Raises HpmlError or Unavailable, in one line."""
    pictures = clip_index.listed(folder)
    _is_free(out)
    run_id = run_id or RUN
    weights = weights_here(run_id, weights, tier=asked["tier"], data=asked["data"])
    root = Path(folder).expanduser().resolve()
    with open_service("clip", run_id=run_id, weights=weights, say=say, **asked) as service:
        _fits_its_tokenizer(service.job, service.image_set)
        made = {**made_by(service), "asked": {**asked, "run_id": run_id, "weights": weights}}
        found = fill(service, root, pictures, lambda i: (root / pictures[i].name).read_bytes(), out, made=made, say=say)
        return found, described(service.facts, service.image_set)


def _is_free(out: Path) -> None:
    """Raises HpmlError, before minutes of work, where something else than an index of pictures would be overwritten."""
    if out.is_dir():
        raise HpmlError(f"{out}: is a folder: name the file of the index")
    if out.exists():
        try:
            clip_index.load(out)
        except HpmlError as error:
            raise HpmlError(f"{error}; it is not overwritten: move it away, or name another file") from None


def described(facts: dict, frames) -> str:
    """Which model answers, in one line."""
    return f"{facts['title']}, {facts['weights']}, {facts['engine']} {facts['precision']}; {frames.tokenizer}"


def _fits_its_tokenizer(job: dict, frames) -> None:
    """Raises HpmlError where a text would be cut into other pieces than the weights know: every answer would be noise."""
    if job["knobs"]["weights"] == "pretrained" and bpe.published() is None:
        raise HpmlError(f"published weights need the published tokenizer: put {bpe.FILE} below {pretrained.folder()}")
    if job["knobs"]["weights"] == "trained":
        with contextlib.suppress(OSError, ValueError, KeyError):
            then = json.loads(Path(job["weights"]).with_suffix(".json").read_text())["actual"]["data"]["tokenizer"]
            if then != frames.tokenizer:
                raise HpmlError(f"{job['weights']}: trained with another tokenizer ({then}) than is here ({frames.tokenizer})")


def search(path: Path, *, text: str | None = None, image: Path | None = None, k: int = 5, folder: str | None = None,
           say: Callable[[str], object] = print) -> tuple[list[tuple[str, float]], str]:
    """The k pictures of an index that are nearest to a text or to a picture, (name, cosine) best first, and which model says so.

    A picture that is itself in the index is no answer to itself. Raises HpmlError, in one line, where the index is unfinished, was made by
    other weights or another tokenizer, or its pictures are no longer those that were indexed.
    """
    import numpy as np

    index = clip_index.load(path)
    root = Path(folder).expanduser().resolve() if folder else index.folder
    if not index.complete:
        raise HpmlError(f"{path}: not finished: `hpml clip index {root} --out {path}` goes on")
    if difference := clip_index.stale(index, clip_index.listed(root)):
        raise HpmlError(f"{path}: {root.name} is no longer what was indexed: {difference}; `hpml clip index {root} --out {path}` embeds "
                        "what is new")
    try:
        asked = {name: index.made["asked"][name] for name in ASKED}
    except (KeyError, TypeError):
        raise HpmlError(f"{path}: does not say which model made it: make it again") from None
    job, module, frames = _same_model(path, index, asked)
    if image is None:
        query = _text_embedding(job, module, frames, text)
        return _named(index, clip_index.nearest(index.embeddings, query, k)), described(index.made | {"title": module.TITLE}, frames)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise HpmlError(f"{image}: {error.strerror}") from None
    with open_service("clip", say=say, **asked) as service:
        ((_, found),) = embedded(service, [0], lambda _: content)
        if isinstance(found, str):
            raise HpmlError(f"{image}: {found}")
        own = next((i for i, one in enumerate(index.pictures) if (root / one.name) == image.resolve()), None)
        near = clip_index.nearest(index.embeddings, np.asarray(found), k, without=own)
        return _named(index, near), described(service.facts, service.image_set)


def _named(index: Index, near: list[tuple[int, float]]) -> list[tuple[str, float]]:
    return [(index.pictures[row].name, score) for row, score in near]


def _same_model(path: Path, index: Index, asked: dict) -> tuple:
    """(job, workload, its frames) of the model that made an index. Raises HpmlError where it is no longer here, or is another one now."""
    again = f"`hpml clip index {index.folder} --out {path}` makes it again"
    if asked["weights"] == "trained" and not (env.run_dir(asked["run_id"]) / "models" / "clip.safetensors").is_file():
        raise HpmlError(f"{path}: made by the weights of run {asked['run_id']}, which are not here; {again}")
    module, one = workloads.get("clip"), prepare.plan("clip", settings=settings_of(None), **asked)
    job = study.job_of(one, asked["run_id"])
    if job["weights_sha256"] != index.made.get("weights_sha256"):
        raise HpmlError(f"{path}: made by other weights ({str(index.made.get('weights_sha256'))[:8]}) than are here "
                        f"({job['weights_sha256'][:8]}); {again}")
    frames = module.data(job["knobs"])
    if any(index.made.get(name) != value for name, value in tokenizer_of(frames).items()):
        raise HpmlError(f"{path}: made with another tokenizer ({index.made.get('tokenizer')}) than is here ({frames.tokenizer}); {again}")
    return job, module, frames


def _text_embedding(job: dict, module, frames, text: str):
    """A text's embedding [dim] by the FP32 text tower, as it is; more tokens than there are positions are cut."""
    if not text or not text.strip():
        raise HpmlError("the text is empty: say what to look for")
    return module.lines_embedded(infer.fp32_model(job, module, frames), job["knobs"], frames, [text])[0]
