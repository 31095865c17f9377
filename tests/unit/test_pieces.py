"""A budget that is short beside the work is a piece of it: notebook after notebook, and the next piece goes on."""

import pytest

from hpml import notebooks, runner


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
    states, given = run(course, 480.0, status)
    assert given == {"20": 460.0, "21": 260.0, "22": 60.0}, "each gets all that is left, less what the report needs"
    assert states == {"20": "ok", "21": "ok", "22": "skipped", "23": "skipped"} and course[1][0] - began <= 480.0
    assert "no time was left" in status["notebooks"]["23_x"]["reason"]
    states, given = run(course, 480.0, status)
    assert set(given) == {"22", "23"} and set(states.values()) == {"ok"}


def test_a_budget_for_most_of_the_work_is_shared(course):
    _, given = run(course, 1400.0, {"notebooks": {}})
    assert given["20"] == pytest.approx(1380 / 4) and set(given) == {"20", "21", "22", "23"}, "every notebook is reached"


def test_the_last_piece_is_shared_too(course):
    status = {"notebooks": {f"2{n}_x": {"name": f"2{n}_x", "status": "ok"} for n in range(3)}}
    states, given = run(course, 480.0, status)
    assert given == {"23": pytest.approx(460.0)} and states["23"] == "ok"


def test_the_foundations_come_before_the_shares():
    """The noise floor and the limits of a machine slower than the estimates: without them no verdict would stand in the whole run."""
    rest = {"20": 30.0, "33": 30.0}
    assert runner.share({"01": 2.0, **rest}, 45 * 60, pieces=False) == 3 * 2 * 60  # by its minutes it would be 87 s
    assert runner.share({"01": 2.0, **rest}, 200, pieces=False) == 100  # never more than half
    assert runner.share({"01": 2.0, "20": 1.0}, 45 * 60, pieces=False) == 30 * 60  # its share, where that is more
    assert runner.share({"01": 2.0, **rest}, 480, pieces=True) == 480
    assert runner.share(rest, 1000, pieces=False) == 500
    assert runner.share({"40": 0.0}, 100, pieces=False) == 100
