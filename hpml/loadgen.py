"""MLPerf LoadGen (MLCommons) as the client: one window of queries against a target, with its logs read back.

LoadGen decides when a query is due and takes the time: in the Server scenario a latency counts from the scheduled moment, so a client or a
server that falls behind cannot hide it (no coordinated omission). What it does not know is a refusal: those are told apart here.
"""

import json
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpml.env import HpmlError, missing

SCENARIOS = {"singlestream": "SingleStream", "offline": "Offline", "server": "Server"}
OK, REFUSED, FAILED = "ok", "refused", "failed"
Done = Callable[[str, Any], None]  # called once for each query, from any thread: the outcome, and the answer or the error
_BEGIN = re.compile(r'^\{"name":"Sample",.*"ph":"b".*\}', re.MULTILINE)


class Target(Protocol):
    """What answers queries. `send` returns at once and calls `done` exactly once, later or now."""

    def send(self, index: int, done: Done) -> None:
        """Answer the sample at `index`, now or later, by calling `done`."""


@dataclass
class Window:
    """What one LoadGen run saw: for each query when it was due (from the first one on), how long it took from then, and what came of it."""

    scenario: str
    asked_per_s: float | None
    due_s: list[float]
    took_s: list[float]
    outcomes: list[str]
    summary: dict = field(default_factory=dict)  # LoadGen's own
    answers: dict[int, list] = field(default_factory=dict)  # by sample index; kept by an accuracy run
    cpu_s: dict[str, float] = field(default_factory=dict)  # CPU seconds that server and client used meanwhile
    again: bool = False  # the machine stood still in a first one, which this one replaces

    @property
    def seconds(self) -> float:
        """From the first query that was due to the last answer."""
        return max(due + took for due, took in zip(self.due_s, self.took_s, strict=True))

    def of(self, outcome: str) -> list[float]:
        """Seconds of the queries with this outcome."""
        return [took for took, own in zip(self.took_s, self.outcomes, strict=True) if own == outcome]

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.outcomes.count(OK) / self.seconds

    def missed(self, limit_s: float) -> list[float]:
        """When those queries were due that were not answered within limit_s: too late, refused or failed."""
        return [due for due, took, own in zip(self.due_s, self.took_s, self.outcomes, strict=True) if own != OK or took > limit_s]

    def within(self, limit_s: float) -> bool:
        """Whether 99 of 100 queries were answered within limit_s; a refusal is a miss. Of fewer than 100 one may be: it says nothing."""
        return len(self.missed(limit_s)) <= max(1, len(self.outcomes) / 100)

    def goodput(self, limit_s: float) -> float:
        """Answers within limit_s, per second."""
        return (len(self.outcomes) - len(self.missed(limit_s))) / self.seconds


def unavailable() -> str | None:
    """Why MLPerf LoadGen cannot be used, or None."""
    return missing("mlperf_loadgen") and "MLPerf LoadGen is not installed: pip install -e '.[serve]' brings it"


def drive(target: Target, *, scenario: str, samples: int, seconds: float, rate: float | None = None, limit_s: float = 0.150,
          in_flight: int | None = None, accuracy: bool = False, seed: int = 0) -> Window:
    """Run LoadGen once: `seconds` of queries for `samples` different payloads. `rate` is the target's expected (Offline) or the offered
    (Server) queries per second. `in_flight`: send no more at once, however many are due. `accuracy`: every sample once, answers kept.

    Raises HpmlError where LoadGen is absent or every query failed.
    """
    if reason := unavailable():
        raise HpmlError(reason)
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, SCENARIOS[scenario])
    settings.mode = lg.TestMode.AccuracyOnly if accuracy else lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = max(1, round(1e3 * seconds)), 1
    settings.schedule_rng_seed, settings.sample_index_rng_seed, settings.qsl_rng_seed = seed + 1, seed + 2, seed + 3
    if scenario == "server":
        settings.server_target_qps, settings.server_target_latency_ns = rate, round(1e9 * limit_s)
        settings.server_target_latency_percentile = 0.99
    elif scenario == "offline":
        settings.offline_expected_qps = rate or 1.0

    outcomes: list[str | None] = []
    answers: dict[int, list] = {}
    room = threading.Semaphore(in_flight) if in_flight else None

    def issue(queries: list) -> None:
        for query in queries:
            if room:
                room.acquire()
            place = len(outcomes)
            outcomes.append(None)
            done = _finisher(lg, query, place, outcomes, answers if accuracy else None, room)
            try:
                target.send(query.index, done)
            except Exception as error:  # noqa: BLE001 an exception would cross LoadGen's C++ frames and end the process
                done(FAILED, error)

    with tempfile.TemporaryDirectory(prefix="hpml-loadgen-") as folder:
        logs = lg.LogSettings()
        output = logs.log_output
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs.log_output, logs.enable_trace = output, True
        sut, qsl = lg.ConstructSUT(issue, _nothing), lg.ConstructQSL(samples, samples, _nothing_of, _nothing_of)
        try:
            lg.StartTestWithLogSettings(sut, qsl, settings, logs)
        finally:
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        window = read_logs(Path(folder), outcomes, scenario=scenario, rate=rate)
    window.answers = answers
    if set(window.outcomes) == {FAILED}:
        raise HpmlError(f"load test: every one of {len(window.outcomes)} queries failed")
    return window


def _finisher(lg, query, place: int, outcomes: list, answers: dict | None, room: threading.Semaphore | None) -> Done:
    """What ends one query. It must be called exactly once."""
    identity, index = query.id, query.index

    def done(outcome: str, answer: Any) -> None:
        outcomes[place] = outcome
        if answers is not None:
            answers.setdefault(index, []).append(answer if outcome == OK else None)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(identity, 0, 0)])
        if room:
            room.release()

    return done


def _nothing() -> None:
    """LoadGen asks to flush: nothing is held back."""


def _nothing_of(indices: list) -> None:
    """LoadGen asks to load or unload samples: all are in memory."""


def read_logs(folder: Path, outcomes: list, *, scenario: str, rate: float | None) -> Window:
    """A window from LoadGen's trace (each query: when it was due, how long it took) and summary. `outcomes` stand in the order of issue."""
    samples = [json.loads(line) for line in _BEGIN.findall((folder / "mlperf_log_trace.json").read_text())]
    samples = {sample["args"]["sample_seq"]: (sample["ts"] / 1e6, sample["args"]["complete_ns"] / 1e9) for sample in samples}
    if not samples or len(samples) != len(outcomes):
        raise HpmlError(f"load test: LoadGen's trace holds {len(samples)} of {len(outcomes)} queries")
    due, took = zip(*(samples[place] for place in sorted(samples)), strict=True)
    return Window(scenario=scenario, asked_per_s=rate, due_s=[moment - due[0] for moment in due], took_s=list(took),
                  outcomes=[outcome or FAILED for outcome in outcomes], summary=summary((folder / "mlperf_log_summary.txt").read_text()))


def summary(text: str) -> dict:
    """LoadGen's summary as {name: number or text}, names as it writes them."""
    found: dict[str, Any] = {}
    for name, value in re.findall(r"^\s*([^:\n]+?)\s*: (\S.*)$", text, re.MULTILINE):
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value.strip()
    return found

