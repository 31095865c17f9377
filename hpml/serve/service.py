"""A workload as a service in this process: bytes in, an answer out, within a deadline or refused at once.

    with open_service("resnet50", precision="int8") as service:
        answer = service.submit(jpeg_bytes).result()
        answer.value, answer.decode_s, answer.wait_s, answer.model_s
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hpml import env, infer, study, workloads
from hpml.env import HpmlError
from hpml.serve import prepare
from hpml.serve.batching import Batcher, Ticket
from hpml.serve.settings import DEADLINE_MS, BadInput, Busy, Settings, settings_of
from hpml.serve.tasks import Task, tasks_of

WARM_CALLS = 3
TEXT_DEADLINE_S = 30.0  # of embedding texts, which a search or a zero-shot question waits for once


@dataclass(frozen=True)
class Answer:
    """`value`: for JSON. Seconds: turning bytes into inputs, waiting (for a decoder, for others), the model call; and its batch's rows."""

    value: dict
    decode_s: float
    wait_s: float
    model_s: float
    batch: int


def open_service(workload: str, *, engine: str = "openvino", precision: str = "fp32", tier: str = "cpu", image: int | None = None,
                 run_id: str | None = None, weights: str = "auto", settings: Settings | dict | None = None, data: str = "auto",
                 device: str = "cpu", knobs: dict | None = None, say: Callable[[str], object] = print) -> "Service":
    """The workload on an engine, ready. What has to be built is built once and kept in the run (default: "serve").

    weights: auto (the run's trained ones, else published ones, else random), random, trained, pretrained or a file. image: another side
    in pixels than the tier's. knobs: further ones of phase infer (quantizer, memory_format, ...). Raises HpmlError or Unavailable, in one
    line.
    """
    run_id = run_id or "serve"
    settings = settings_of(settings)
    one = prepare.plan(workload, engine=engine, precision=precision, tier=tier, image=image, run_id=run_id, weights=weights,
                       settings=settings, data=data, device=device, knobs=knobs)
    job = study.job_of(one, run_id)
    module = workloads.get(one.workload)
    streams = settings.streams or (env.cores() if engine == "openvino" else 1)
    loaded, load_s = prepare.load(job, module, streams=streams, say=say)
    return Service(module, job, loaded, dataclasses.replace(settings, streams=streams), load_s)


class Service:
    """See `open_service`. `facts`: what is served. `classes`: names of the answers. Threads may call `submit` at the same time."""

    def __init__(self, workload, job: dict, engine, settings: Settings, load_s: float) -> None:
        self.workload, self.job, self.knobs, self.engine = workload, job, job["knobs"], engine
        self.image_set = workload.data(self.knobs)
        self.classes = _classes(workload, self.knobs, self.image_set)
        self.lanes = [engine.lane() if hasattr(engine, "lane") else engine.run for _ in range(settings.streams)]
        self.call_s = _warmed(self.lanes, [x.numpy() for x in workload.example_inputs(self.knobs, 1)])
        self.settings = settings = _with_deadline(settings, self.call_s)
        self.tasks = tasks_of(workload, self.knobs, self.image_set, settings, self.classes)
        self.default = next(iter(self.tasks))
        self.batches: list[Callable[[int], object]] = []  # who wants to know of each model call's rows
        self.batchers = {kind: self._batcher(kind) for kind in self.tasks if kind != "text" or kind == self.default}
        if "text" not in self.batchers and "text" in self.tasks:
            self.tower = _text_tower(job, workload, self.image_set)
            self.batchers["text"] = Batcher([self._text_lane], queue=settings.queue + settings.max_labels, call_s=0.05)
        self.decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode", initializer=_single_threaded)
        self.facts = {**prepare.facts_of(job, workload, self.image_set, engine), "settings": dataclasses.asdict(settings),
                      "load_s": load_s, "call_s": self.call_s}
        if hasattr(self, "tower"):
            self.submit(b"loads the text tower", kind="text")  # beside the first requests, not in them

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _batcher(self, kind: str) -> Batcher:
        settings = self.settings
        return Batcher(self.lanes, max_batch=settings.max_batch, max_wait_s=settings.max_wait_ms / 1e3, queue=settings.queue,
                       call_s=self.call_s, seen=lambda rows: [tell(rows) for tell in self.batches])

    def submit(self, payload: bytes, *, kind: str | None = None, deadline_s: float | None = None, rows: int = 1) -> Future:
        """A future of the Answer to a picture's bytes or a text in UTF-8. Raises Busy at once where the deadline cannot be kept.

        The future raises BadInput for what cannot be answered, Busy where the deadline passed after all before the model's turn.
        """
        kind = kind or self.default
        if kind not in self.tasks:
            raise HpmlError(f"kind {kind!r}: {self.workload.TITLE} answers {', '.join(self.tasks)}")
        if deadline_s is None:
            deadline_s = TEXT_DEADLINE_S if kind == "text" and kind != self.default else self.settings.deadline_ms / 1e3
        batcher = self.batchers[kind]
        ticket, answered = batcher.admit(deadline_s, rows), Future()
        self.decoders.submit(self._decode, self.tasks[kind], batcher, ticket, payload, answered)
        return answered

    def _decode(self, task: Task, batcher: Batcher, ticket: Ticket, payload: bytes, answered: Future) -> None:
        began = time.perf_counter()
        try:
            inputs, beside = task.decode(payload)
        except BaseException as error:  # noqa: BLE001 it belongs to this request; the decoder goes on
            batcher.drop(ticket, error)
            _fail(answered, error)
            return
        decode_s, arrived = time.perf_counter() - began, ticket.arrived
        # Without the ticket: its future would lead back to it, and the circle keep its pixels.
        ticket.future.add_done_callback(lambda done: _answer(done, task, arrived, decode_s, beside, answered))
        batcher.put(ticket, inputs, decode_s)

    def _text_lane(self, inputs: tuple) -> tuple:
        """ids [N, length] -> embeddings [N, dim]."""
        import torch

        with torch.inference_mode():
            return (self.tower().embed_text(torch.from_numpy(inputs[0])).numpy(),)

    def shares(self, picture: list[float], texts: list[list[float]]) -> list[float]:
        """CLIP's probability of each text for a picture, from their embeddings, by the model's own temperature."""
        import numpy as np

        scores = np.asarray(texts) @ np.asarray(picture) * min(100.0, float(self.tower().logit_scale.detach().exp()))
        exponent = np.exp(scores - scores.max())
        return [float(value) for value in exponent / exponent.sum()]

    def expected_s(self, kind: str | None = None) -> float:
        """Seconds in which a request that came now would be answered."""
        return self.batchers[kind or self.default].expected_s()

    @property
    def outstanding(self) -> int:
        """Admitted rows that are not answered yet."""
        return sum(batcher.outstanding for batcher in self.batchers.values())

    def sample(self, index: int) -> tuple[bytes, str, str]:
        """(bytes, media type, true answer in words) of a test sample, as a client would send it."""
        from hpml.serve.samples import sample

        return sample(self, index)

    def close(self) -> None:
        """Answers everything that was admitted, then ends."""
        self.decoders.shutdown(wait=True)
        for batcher in self.batchers.values():
            batcher.close()


def _answer(done: Future, task: Task, arrived: float, decode_s: float, beside: Any, answered: Future) -> None:
    """The model's rows become the request's answer."""
    try:
        found = done.result()
        value = task.answer(found.outputs[0], beside)
        result = Answer(value, decode_s, max(0.0, found.began - arrived - decode_s), found.model_s, found.batch)
    except BaseException as error:  # noqa: BLE001 it belongs to this request; the lane goes on
        _fail(answered, error)
        return
    if answered.set_running_or_notify_cancel():
        answered.set_result(result)


def _fail(answered: Future, error: BaseException) -> None:
    if isinstance(error, BadInput | Busy):  # said in one line; its frames would lead back to the request, and the circle keep its bytes
        error.__traceback__ = error.__context__ = error.__cause__ = None
    if answered.set_running_or_notify_cancel():
        answered.set_exception(error)


def _with_deadline(settings: Settings, call_s: float) -> Settings:
    if settings.deadline_ms is not None:
        return settings
    own_ms = 1e3 * call_s
    return dataclasses.replace(settings, deadline_ms=DEADLINE_MS if 2 * own_ms <= DEADLINE_MS else float(round(4 * own_ms)))


def _classes(workload, knobs: dict, image_set) -> list[str]:
    """Names of the answers. Published ImageNet weights mean ImageNet's classes, whatever stands in for its pictures."""
    if knobs["weights"] == "pretrained" and len(image_set.classes) == 1000:
        from hpml.data import imagenet

        return list(imagenet.classes()[1])
    return list(image_set.classes)


def _warmed(lanes: list[Callable], example: list) -> float:
    """Seconds of one call when all lanes are busy, after a first call of each."""
    def several(lane: Callable, count: int) -> None:
        for _ in range(count):
            lane(tuple(example))

    for lane in lanes:
        several(lane, 1)
    started = time.perf_counter()
    threads = [threading.Thread(target=several, args=(lane, WARM_CALLS)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / WARM_CALLS


def _single_threaded() -> None:
    """Keep a decoder's own operations on its thread. Helpers of torch would wait for cores on which the model computes, and spin there."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # a thread takes over the process's number at its first call; what is set afterwards is its own
    threadpool_limits(1, user_api="openmp")


def _text_tower(job: dict, workload, image_set) -> Callable:
    """Gives CLIP's text tower, FP32 as it is; it is loaded when it is first asked."""
    @functools.cache
    def tower():
        model = infer.fp32_model(job, workload, image_set)
        model.vision_model = None  # the engine has the frames' tower
        return model

    return tower


__all__ = ["Answer", "BadInput", "Busy", "Service", "Settings", "open_service"]
