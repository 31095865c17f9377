"""The queue in front of the model: who waits with whom, who is refused, and that nothing accepted is lost."""

import threading
import time

import numpy as np
import pytest

from hpml.env import HpmlError
from hpml.serve.batching import Batcher
from hpml.serve.settings import Busy, Settings, settings_of


class Lane:
    """A model call that doubles its input, when it is let: `gate` holds it, `sizes` are the batches that it saw."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.gate, self.sizes, self.seconds = threading.Event(), [], seconds
        self.gate.set()

    def __call__(self, inputs):
        self.gate.wait(10)
        time.sleep(self.seconds)
        self.sizes.append(len(inputs[0]))
        if (inputs[0] < 0).any():
            raise ValueError("negative")
        return (2 * inputs[0],)


def ask(batcher, value, deadline_s=60.0, rows=1):
    ticket = batcher.admit(deadline_s, rows)
    batcher.put(ticket, (np.full((rows, 1), value, np.float32),))
    return ticket.future


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_each_request_gets_its_own_rows_of_a_batch():
    lane = Lane()
    lane.gate.clear()
    batcher = Batcher([lane], max_batch=4)
    first = ask(batcher, 0)
    wait_for(lambda: not batcher.waiting)  # it holds the lane; the others gather behind it
    others = [ask(batcher, value, rows=rows) for value, rows in ((1, 1), (2, 2), (3, 3))]
    lane.gate.set()
    assert [float(future.result(10).outputs[0][0, 0]) for future in (first, *others)] == [0, 2, 4, 6]
    assert [len(future.result().outputs[0]) for future in others] == [1, 2, 3]
    assert lane.sizes == [1, 3, 3], "1 + 2 fit into a batch of 4, the 3 rows behind them do not"
    assert others[1].result().batch == 3
    batcher.close()


def test_a_batch_waits_for_company_no_longer_than_it_may():
    lane = Lane()
    batcher = Batcher([lane], max_batch=8, max_wait_s=0.05)
    alone = ask(batcher, 1).result(10)
    assert alone.batch == 1
    batcher.max_wait_s = 30.0
    together = [ask(batcher, value) for value in range(8)]  # full: it goes at once
    assert [future.result(10).batch for future in together] == [8] * 8
    batcher.close()


def test_lanes_run_at_the_same_time():
    lanes = [Lane(), Lane()]
    for lane in lanes:
        lane.gate.clear()
    batcher = Batcher(lanes)
    futures = [ask(batcher, 1), ask(batcher, 2)]
    wait_for(lambda: not batcher.waiting)
    for lane in lanes:
        lane.gate.set()
    assert sorted(float(future.result(10).outputs[0][0, 0]) for future in futures) == [2, 4]
    assert [lane.sizes for lane in lanes] == [[1], [1]]
    batcher.close()


def test_a_full_queue_refuses_at_once_and_opens_again():
    lane = Lane()
    lane.gate.clear()
    batcher = Batcher([lane], queue=3, call_s=1e-6)
    futures = [ask(batcher, value) for value in range(3)]
    with pytest.raises(Busy, match="3 requests wait already"):
        batcher.admit(60.0)
    lane.gate.set()
    assert [float(future.result(10).outputs[0][0, 0]) for future in futures] == [0, 2, 4]
    assert ask(batcher, 5).result(10).outputs[0][0, 0] == 10
    batcher.close()


def test_a_deadline_that_cannot_be_kept_is_refused_and_says_when_to_come_again():
    lane = Lane()
    lane.gate.clear()
    batcher = Batcher([lane], call_s=100.0)
    ask(batcher, 1, deadline_s=1.0)  # an idle service always tries
    with pytest.raises(Busy, match="the deadline is 150000 ms") as refused:
        batcher.admit(150.0)
    assert refused.value.retry_after_s == pytest.approx(50, abs=10)
    assert batcher.admit(250.0)
    lane.gate.set()
    batcher.outstanding -= 1  # the ticket that was never put
    batcher.close()


def test_who_comes_while_all_streams_are_busy_waits_for_the_next_free_one_only():
    lanes = [Lane(), Lane()]
    for lane in lanes:
        lane.gate.clear()
    batcher = Batcher(lanes, call_s=100.0)
    futures = [ask(batcher, 1, deadline_s=150.0) for _ in range(2)]  # both streams take one at once
    with pytest.raises(Busy, match=r"an answer would take (19\d|200)\d{3} ms"):
        batcher.admit(150.0)
    futures += [ask(batcher, 1, deadline_s=250.0) for _ in range(2)]
    with pytest.raises(Busy, match=r"an answer would take (29\d|300)\d{3} ms"):
        batcher.admit(250.0)
    for lane in lanes:
        lane.gate.set()
    assert all(future.result(10) for future in futures)
    batcher.close()


def test_what_a_busy_stream_has_done_already_is_not_waited_for():
    lanes = [Lane(), Lane()]
    for lane in lanes:
        lane.gate.clear()
    batcher = Batcher(lanes, call_s=100.0)
    futures = [ask(batcher, 1, deadline_s=150.0), ask(batcher, 1, deadline_s=150.0)]
    wait_for(lambda: all(batcher.calls))
    (began, rows), other = batcher.calls
    batcher.calls = [(began - 80.0, rows), other]
    assert batcher.expected_s() == pytest.approx(120, abs=10)
    batcher.calls = [(began - 500.0, rows), other]  # far longer than expected: it may end any moment
    assert batcher.expected_s() == pytest.approx(100, abs=10)
    for lane in lanes:
        lane.gate.set()
    assert all(future.result(10) for future in futures)
    batcher.close()


def test_a_service_that_was_late_keeps_further_from_the_deadline():
    lane = Lane(seconds=0.03)
    batcher = Batcher([lane], call_s=0.01)
    for future in [ask(batcher, value) for value in range(20)]:
        future.result(10)
    assert batcher.late_s > 1e-3, "the first guess was a third of the truth"
    lane.gate.clear()
    batcher.answer_s, batcher.row_s, batcher.late_s = 100.0, 100.0, 30.0
    ask(batcher, 1)
    with pytest.raises(Busy, match=r"an answer would take 2[56]\d{4} ms"):
        batcher.admit(210.0)
    batcher.late_s = 0.0
    assert batcher.admit(210.0)
    lane.gate.set()
    batcher.outstanding -= 1  # the ticket that was never put
    batcher.close()


def test_what_waited_beyond_its_deadline_is_not_computed():
    lane = Lane()
    lane.gate.clear()
    batcher = Batcher([lane], call_s=1e-6)
    first = ask(batcher, 1)
    wait_for(lambda: not batcher.waiting)
    late = ask(batcher, 2, deadline_s=0.02)
    time.sleep(0.05)
    lane.gate.set()
    assert first.result(10)
    with pytest.raises(Busy, match="passed in the queue"):
        late.result(10)
    assert lane.sizes == [1] and batcher.outstanding == 0
    batcher.close()


def test_a_failing_call_fails_its_own_requests_only():
    batcher = Batcher([Lane()])
    with pytest.raises(ValueError, match="negative"):
        ask(batcher, -1).result(10)
    assert ask(batcher, 1).result(10).outputs[0][0, 0] == 2
    assert batcher.outstanding == 0
    batcher.close()


def test_closing_answers_what_was_admitted_and_refuses_the_rest():
    lane = Lane()
    lane.gate.clear()
    batcher = Batcher([lane])
    futures = [ask(batcher, value) for value in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_for(lambda: batcher.closing)
    with pytest.raises(Busy, match="shutting down"):
        batcher.admit(60.0)
    lane.gate.set()
    assert [float(future.result(10).outputs[0][0, 0]) for future in futures] == [0, 2, 4, 6, 8]
    closing.join(10)
    assert not closing.is_alive() and not any(thread.is_alive() for thread in batcher.threads)


def test_the_expectation_follows_what_is_measured_and_one_hiccup_does_not_close_the_door():
    lane = Lane(seconds=0.002)
    batcher = Batcher([lane], call_s=1.0)
    for _ in range(3):
        for future in [ask(batcher, value) for value in range(30)]:
            future.result(10)
    assert batcher.row_s < 0.1 and batcher.answer_s < 0.1
    before = batcher.expected_s()
    lane.seconds = 0.5
    ask(batcher, 1).result(10)
    assert batcher.expected_s() < 1.5 * before
    batcher.close()


def test_settings_are_checked():
    assert settings_of({"streams": 2, "queue": 3}) == Settings(streams=2, queue=3)
    assert settings_of(None).deadline_ms is None
    with pytest.raises(HpmlError, match="unknown setting stream"):
        settings_of({"stream": 2})
    for wrong in ({"queue": 0}, {"max_batch": -1}, {"deadline_ms": 0}, {"streams": "two"}, {"max_body_mb": float("nan")}):
        with pytest.raises(HpmlError, match=next(iter(wrong))):
            settings_of(wrong)
