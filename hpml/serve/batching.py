"""Dynamic batching behind admission control: a bounded queue in front of parallel model calls, and a promise about time.

A request is admitted when, by what was measured so far, it will be answered within its deadline; else it is refused at once, which costs
nothing and leaves the time to those that can be served. Admitted requests wait for a free stream, which takes as many as a batch may hold.
"""

import collections
import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpml.serve.settings import Busy

if TYPE_CHECKING:
    import numpy as np

SMOOTHING = 0.1  # share of a new measurement in a running mean
OUTLIER = 3.0  # a measurement counts as at most so many times the mean: one hiccup must not close the door
CAUTION = 2.0  # times the mean lateness, kept clear of the deadline: more refuses the servable, less answers too late when overloaded


@dataclass
class Ticket:
    """One admitted request. Times are perf_counter's; `deadline` too."""

    deadline: float
    arrived: float
    rows: int = 1
    expected_s: float = 0.0
    inputs: "tuple[np.ndarray, ...]" = ()
    queued: float = 0.0
    decode_s: float = 0.0
    future: Future = field(default_factory=Future)


@dataclass(frozen=True)
class Done:
    """What a ticket's future becomes: this request's rows of the outputs, when its model call began, how long that took, its batch."""

    outputs: "tuple[np.ndarray, ...]"
    began: float
    model_s: float
    batch: int


class Batcher:
    """Threads, one for each of `lanes` (inputs -> outputs, tuples of arrays), that take batches from one queue in order of arrival."""

    def __init__(self, lanes: list[Callable], *, max_batch: int = 1, max_wait_s: float = 0.0, queue: int = 64, call_s: float = 0.01,
                 seen: Callable[[int], object] | None = None) -> None:
        """`call_s`: first guess of the seconds of a model call while all lanes are busy. `seen` is told the rows of each batch."""
        self.max_batch, self.max_wait_s, self.queue = max_batch, max_wait_s, queue
        self.answer_s = self.row_s = call_s  # of an answer without its wait, and of each row in its call, while all lanes are busy
        self.late_s = 0.0  # mean lateness of answers behind what was expected
        self.waiting: collections.deque[Ticket] = collections.deque()
        self.outstanding = 0  # rows that were admitted and are not answered
        self.seen = seen or (lambda rows: None)
        self.change, self.closing = threading.Condition(), False
        self.calls: list[tuple[float, int] | None] = [None] * len(lanes)  # (when it began, its rows) of each lane that is busy
        self.threads = [threading.Thread(target=self._work, args=(i, lane), daemon=True, name=f"lane-{i}") for i, lane in enumerate(lanes)]
        for thread in self.threads:
            thread.start()

    def expected_s(self, rows: int = 1) -> float:
        """Seconds until a request that came now would be answered: each lane takes what waits in order as it becomes free."""
        now = time.perf_counter()
        free = [max(now, call[0] + call[1] * self.row_s) if call else now for call in self.calls]
        heapq.heapify(free)
        for _ in range(self.outstanding - sum(call[1] for call in self.calls if call) + rows - 1):
            heapq.heapreplace(free, free[0] + self.row_s)
        gathering_s = self.max_wait_s if self.max_batch > 1 else 0.0
        return free[0] - now + self.answer_s + gathering_s

    def admit(self, deadline_s: float, rows: int = 1) -> Ticket:
        """A place in the queue. Raises Busy at once where the deadline cannot be kept or the queue is full; an idle one always tries."""
        now = time.perf_counter()
        with self.change:
            if self.closing:
                raise Busy(1.0, "shutting down")
            expected_s = self.expected_s(rows)
            careful_s = expected_s + CAUTION * self.late_s
            if self.outstanding and careful_s > deadline_s:
                raise Busy(max(0.05, careful_s - deadline_s), f"busy: an answer would take {1e3 * careful_s:.0f} ms, "
                                                              f"the deadline is {1e3 * deadline_s:.0f} ms")
            if self.outstanding >= self.queue:
                raise Busy(max(0.05, self.row_s), f"busy: {self.outstanding} requests wait already")
            self.outstanding += rows
        return Ticket(deadline=now + deadline_s, arrived=now, rows=rows, expected_s=expected_s)

    def put(self, ticket: Ticket, inputs: "tuple[np.ndarray, ...]", decode_s: float = 0.0) -> None:
        """The admitted request's inputs, each [rows, ...], are ready; making them took so many seconds."""
        ticket.inputs, ticket.queued, ticket.decode_s = inputs, time.perf_counter(), decode_s
        with self.change:
            self.waiting.append(ticket)
            self.change.notify()

    def drop(self, ticket: Ticket, error: BaseException) -> None:
        """The admitted request, which has no inputs, ends with this error."""
        with self.change:
            self.outstanding -= ticket.rows
            self.change.notify_all()
        ticket.future.set_exception(error)

    def close(self) -> None:
        """Answers what was admitted, then ends the threads."""
        with self.change:
            self.closing = True
            self.change.notify_all()
        for thread in self.threads:
            thread.join()

    def _work(self, place: int, lane: Callable) -> None:
        while batch := self._gather(place):
            began, rows = self.calls[place]
            self.seen(rows)
            try:
                outputs = lane(_joined([ticket.inputs for ticket in batch]))
            except BaseException as error:  # noqa: BLE001 whatever it is belongs to these requests, and the lane goes on
                self._leave(place, rows)
                for ticket in batch:
                    ticket.future.set_exception(error)
                continue
            ended = time.perf_counter()
            self._learn(batch, rows, began, ended)
            self._leave(place, rows)
            start = 0
            for ticket in batch:
                mine = tuple(array[start:start + ticket.rows] for array in outputs)
                start += ticket.rows
                ticket.future.set_result(Done(mine, began, ended - began, rows))

    def _gather(self, place: int) -> list[Ticket]:
        """The next batch for a lane, which is busy from now on; waits for it. Empty when the service closes and nothing is left."""
        with self.change:
            while True:
                while not self.waiting:
                    if self.closing and not self.outstanding:
                        return []
                    self.change.wait()
                until = self.waiting[0].queued + self.max_wait_s
                while self._ready() < self.max_batch and not self.closing and (left := until - time.perf_counter()) > 0:
                    self.change.wait(left)
                batch, rows = [], 0
                while self.waiting and (not batch or rows + self.waiting[0].rows <= self.max_batch):
                    ticket = self.waiting.popleft()
                    if time.perf_counter() > ticket.deadline and not self.closing:  # nobody waits for it any more
                        self.outstanding -= ticket.rows
                        ticket.future.set_exception(Busy(max(0.05, self.row_s), "busy: the deadline passed in the queue"))
                        continue
                    batch.append(ticket)
                    rows += ticket.rows
                if batch:
                    self.calls[place] = time.perf_counter(), rows
                    return batch

    def _ready(self) -> int:
        return sum(ticket.rows for ticket in self.waiting)

    def _learn(self, batch: list[Ticket], rows: int, began: float, ended: float) -> None:
        """Running means: of a call's seconds while every lane had one, and of how late an answer was."""
        with self.change:
            if all(self.calls):
                self.row_s += SMOOTHING * (min((ended - began) / rows, OUTLIER * self.row_s) - self.row_s)
                own_s = min(batch[-1].decode_s + ended - began, OUTLIER * self.answer_s)
                self.answer_s += SMOOTHING * (own_s - self.answer_s)
            for ticket in batch:
                late_s = min(max(0.0, ended - ticket.arrived - ticket.expected_s), OUTLIER * self.answer_s)
                self.late_s += SMOOTHING * (late_s - self.late_s)

    def _leave(self, place: int, rows: int) -> None:
        """A lane is free again, its rows are answered."""
        with self.change:
            self.calls[place] = None
            self.outstanding -= rows
            self.change.notify_all()


def _joined(parts: "list[tuple[np.ndarray, ...]]") -> "tuple[np.ndarray, ...]":
    """One batch of the requests' inputs."""
    if len(parts) == 1:
        return parts[0]
    import numpy as np

    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
