"""A budget that is short beside the work is a piece of it: notebook after notebook, and the next piece goes on."""

import pytest

from hpml import notebooks, runner, shares


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Four notebooks of ten minutes each at the gpu tier; running one notes the seconds that it was given, and takes what `takes` says."""
    books = [notebooks.Notebook(tmp_path / f"2{n}_x.ipynb", f"2{n}", "?", notebooks.PARAMETERS, {"gpu": 10.0}, None) for n in range(4)]
    clock, given, takes = [0.0], [], {}

    def execute(book, parameters, folder, share_s):
        given.append((book.number, share_s))
        spent = min(share_s, takes.get(book.number, 200.0))
        clock[0] += spent
        cut = spent == share_s
        return {"status": "skipped" if cut else "ok", "reason": "budget: stopped when the time was up" if cut else None, "seconds": spent}

    monkeypatch.setattr(runner.time, "time", lambda: clock[0])
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(shares, "RESERVE_S", 45.0)
    monkeypatch.setattr(runner.report, "build", lambda folder: folder)
    return books, clock, given, takes


def run(course, budget_s, status):
    """One piece; returns the status by number, and what each notebook was given."""
    books, clock, given, _ = course
    given.clear()
    status["budget_s"] = budget_s
    parameters = {"tier": "gpu", "workloads": ["resnet50"]}
    runner._all(books, parameters, status, books[0].path.parent / "run", clock[0] + budget_s)
    return {one["name"][:2]: one["status"] for one in status["notebooks"].values()}, dict(given)


def test_a_short_budget_is_spent_on_one_notebook_after_another_and_the_next_piece_goes_on(course):
    status, began = {"notebooks": {}}, course[1][0]
    states, given = run(course, 300.0, status)
    assert given == {"20": 280.0, "21": 80.0}, "each gets all that is left, less what the report needs"
    assert states == {"20": "ok", "21": "skipped", "22": "skipped", "23": "skipped"} and course[1][0] - began <= 300.0
    assert "no time was left" in status["notebooks"]["23_x"]["reason"]
    states, given = run(course, 240.0, status)
    assert given == {"21": 220.0, "22": 20.0} and states["21"] == "ok"
    states, given = run(course, 500.0, status)
    assert set(states.values()) == {"ok"} and set(given) == {"22", "23"}


def test_a_budget_for_most_of_the_work_is_shared(course):
    _, given = run(course, 1400.0, {"notebooks": {}})
    assert set(given) == {"20", "21", "22", "23"}, "every notebook is reached"


def book(like, number, minutes, workload=None):
    return notebooks.Notebook(like.path.with_name(f"{number}_x.ipynb"), number, "?", notebooks.PARAMETERS, {"gpu": minutes}, workload)


def test_what_the_shares_leave_over_goes_to_those_that_were_cut(course):
    """The ladder is finished first; another workload's notebook is reached, goes on in the time that was left, and the summary after it."""
    books, _, given, takes = course
    books[:] = [book(books[0], "11", 10.0, "xlnet"), *books, book(books[0], "40", 0.5)]
    takes |= {"11": 300.0, "40": 10.0}
    states, _ = run(course, 2000.0, {"notebooks": {}})
    assert states == dict.fromkeys(("11", "20", "21", "22", "23", "40"), "ok")
    assert [number for number, _ in given] == ["11", "20", "21", "22", "23", "40", "11", "40"]
    assert given[0][1] == shares.RESERVE_S and given[6][1] > 300


def test_a_piece_begins_with_the_ladder_and_ends_with_the_summaries(course):
    books, _, given, _ = course
    books[:] = [book(books[0], "11", 10.0, "xlnet"), *books, book(books[0], "40", 0.5)]
    run(course, 250.0, {"notebooks": {}})
    assert [number for number, _ in given] == ["20", "40"] and given[0][1] == 250 - runner.GRACE_S - 30
    assert [one.number for one in runner.in_order(books, ["resnet50"])] == ["20", "21", "22", "23", "11", "40"]
    assert [one.number for one in runner.in_order(books, ["xlnet"])] == ["11", "20", "21", "22", "23", "40"]


def test_a_notebook_that_failed_is_not_tried_twice(course, monkeypatch):
    books, _, given, _ = course
    failed = {"status": "failed", "reason": "x", "seconds": 1.0}
    monkeypatch.setattr(runner, "execute", lambda book, *_: given.append((book.number, 0.0)) or failed)
    states, _ = run(course, 1400.0, {"notebooks": {}})
    assert set(states.values()) == {"failed"} and len(given) == len(books)


def needs(*left):
    return [shares.Need(*one) for one in left]


def test_the_ladder_takes_what_it_needs_and_the_others_keep_a_reserve():
    left = needs(("10", 2.0, True), ("11", 4.0, False), ("20", 4.0, True), ("33", 5.0, True), ("40", 0.2, True))
    reserve = shares.RESERVE_S
    assert shares.share(left, 20 * 60) == 1.5 * 120, "what is not decided goes on to more rounds"
    assert shares.share(left, 45 * 60) == pytest.approx(45 * 60 * 2.0 / 15.2) and shares.share(left[-1:], 500) == 500, "time for all"
    assert shares.share(left, 240) == 240 - 3 * reserve - 12, "short of time, each later one keeps its reserve, the summary all"
    assert shares.share(left, 100) == reserve and shares.share(left, 30) == 30
    other = left[1:]
    assert shares.share(other, 575) == reserve, "what the ladder needs is the ladder's"
    assert shares.share(other, 800) == 800 - 540 - 12 and shares.share(other, 1100) == 1.5 * 240
    assert shares.share(other, 600, pieces=True) == 600 - 12 and shares.share(other[3:], 5, pieces=True) == 5


def test_a_slow_machine_gets_whole_results_of_fewer_notebooks():
    left = needs(("20", 4.0, True), ("21", 4.0, True), ("33", 5.0, True))
    assert shares.share(left, 600) == 1.5 * 240 and shares.share(left, 600, pace=2.0) == 600 - 2 * shares.RESERVE_S
    assert shares.share(needs(("01", 2.0, True), ("20", 9.0, True)), 600) == 1.5 * 2.0 * 120, "verdicts rest on the foundations"
    assert shares.pace_of([]) == 1.0 and shares.pace_of([(60, 30, True), (90, 30, True)]) == 2.5
    assert shares.pace_of([(45, 240, False)]) == 1.0, "one that was cut below its estimate tells nothing"
    assert shares.pace_of([(60, 30, False), (1, 60, True)]) == pytest.approx(61 / 90) and shares.pace_of([(1, 60, True)]) == 0.5
