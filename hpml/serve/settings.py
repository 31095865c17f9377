"""What a service may be told: its parallelism, its queue, its deadline, and the limits of what it accepts."""

import dataclasses
from dataclasses import dataclass

from hpml.env import HpmlError

DEADLINE_MS = 150.0  # the study's goal: P99
MOST_THREADS = 1024  # an engine that is asked for far more ends the process without a word


class Busy(Exception):
    """The request would not be answered within its deadline, or the queue is full. `retry_after_s`: when it might be."""

    def __init__(self, retry_after_s: float, reason: str) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class BadInput(HpmlError):
    """What was sent is not what can be answered; `status` is HTTP's word for it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Settings:
    """How a service runs. Raises HpmlError for a value out of range."""

    streams: int = 0  # model calls at the same time; 0: one for each core on OpenVINO, else one
    threads: int = 0  # compute threads of all streams together; 0: all cores
    max_batch: int = 1  # rows in one model call, at most
    max_wait_ms: float = 0.0  # how long the first request of a batch waits for others
    queue: int = 64  # accepted requests that are not answered yet, at most
    deadline_ms: float | None = None  # None: 150, or four times the model's own time where that alone would fill it
    decoders: int = 2  # threads that turn bytes into inputs
    max_body_mb: float = 20.0
    max_bodies_mb: float = 200.0  # of all requests together: bodies that arrive or are being answered
    max_megapixels: float = 50.0
    max_labels: int = 100
    max_text: int = 10_000  # characters
    body_s: float = 15.0  # a client that sends its body slower than this is given up

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "deadline_ms" and value is None:
                continue
            least = 0 if field.name in ("streams", "threads", "max_wait_ms") else 1e-6
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e9:
                raise HpmlError(f"{field.name}={value!r}: a number {'of at least 0' if least == 0 else 'above 0'} is needed")
            if field.name in ("streams", "threads", "decoders") and value > MOST_THREADS:
                raise HpmlError(f"{field.name}={value!r}: at most {MOST_THREADS} are possible")
        if self.max_bodies_mb < self.max_body_mb:
            raise HpmlError(f"max_bodies_mb={self.max_bodies_mb:g}: a body of {self.max_body_mb:g} MB (max_body_mb) would never fit")


def settings_of(given: "Settings | dict | None") -> Settings:
    """Settings from a dictionary. Raises HpmlError for an unknown name."""
    if isinstance(given, Settings):
        return given
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := set(given or {}) - known:
        raise HpmlError(f"unknown setting {', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}")
    return Settings(**(given or {}))
