"""Following a flight: prediction, false alarms, drop-outs, hits, loss and re-acquisition, on trajectories whose truth is known."""

import numpy as np
import pytest

from hpml.apps.tracker import Motion, Settings, Tracker, probability

WIDTH, HEIGHT, CROP = 1280, 720, 224


def flight(frames=60, start=(200.0, 500.0), speed=(16.0, -28.0), gravity=1.0):
    t = np.arange(frames)[:, None]
    return np.array(start) + np.array(speed) * t + np.array([0, gravity / 2]) * t**2


def follow(truth, *, hidden=(), alarms=None, noise=1.0, seed=0, settings=None):
    """The tracker over places [N, 2]: stage 1 finds what is there or an alarm's place, stage 2 sees what lies in its crop."""
    rng, alarms, tracker = np.random.default_rng(seed), alarms or {}, Tracker(WIDTH, HEIGHT, settings)
    searches = 0
    for i, place in enumerate(truth):
        things = [alarms[i]] if i in alarms else []
        if i not in hidden:
            things.append(place + rng.normal(0, noise, 2))

        def search(things=things):
            nonlocal searches
            searches += 1
            return things[0] if things else np.array([640.0, 360.0])

        def refine(centre, things=things):
            inside = [thing for thing in things if np.abs(thing - centre).max() < CROP / 2]
            nearest = min(inside, key=lambda thing: np.hypot(*(thing - centre)), default=None)
            return np.array([*centre, -3.0]) if nearest is None else np.array([*nearest, 3.0])

        tracker.step(search, refine)
    return tracker, searches


def seen(tracker):
    return np.array([row.visible for row in tracker.rows])


def errors(tracker, truth):
    return np.array([np.hypot(row.x - x, row.y - y) for row, (x, y) in zip(tracker.rows, truth, strict=True)])


def test_the_filter_learns_a_constant_acceleration():
    motion = Motion.at(Settings(), np.array([0.1, 0.2]), 0)
    for t in range(1, 12):
        motion.predict()
        motion.correct(np.array([0.1 + 0.02 * t, 0.2 - 0.03 * t + 0.001 * t**2]), t)
    assert motion.predict() == pytest.approx([0.34, 0.2 - 0.36 + 0.144], abs=1e-3)
    assert motion.state[1:, 1] == pytest.approx([-0.03 + 2 * 0.012, 0.002], abs=2e-3)
    assert motion.fits(motion.state[0]) and not motion.fits(motion.state[0] + 0.1)
    before = motion.covariance[0, 0]
    for _ in range(3):
        motion.predict()
    assert motion.covariance[0, 0] > 2 * before  # the gate widens while nothing is seen


def test_a_smooth_flight_is_followed_and_searched_only_at_its_start():
    truth = flight(50)
    tracker, searches = follow(truth)
    assert seen(tracker).all() and searches <= 2 and errors(tracker, truth).max() < 6
    assert tracker.rows[0].visible and tracker.rows[0].searched  # confirmed by the next frame, afterwards
    assert not any(row.searched for row in tracker.rows[3:])


def test_a_short_drop_out_is_bridged_and_not_called_visible():
    truth, hidden = flight(50), range(20, 24)
    tracker, _ = follow(truth, hidden=hidden)
    assert seen(tracker)[:20].all() and not seen(tracker)[20:24].any() and seen(tracker)[24:].all()
    assert not tracker.rows[24].searched  # the prediction was still near enough for the second stage alone


def test_a_lost_shuttle_is_found_again_by_search():
    truth = np.concatenate([flight(20), flight(20, start=(900, 200), speed=(-14, 3))])
    hidden = range(20, 30)  # longer than the patience, and it comes back elsewhere
    tracker, searches = follow(truth, hidden=hidden)
    assert not seen(tracker)[20:30].any() and seen(tracker)[30:].all() and searches >= 10
    assert tracker.rows[30].searched and errors(tracker, truth)[30:].max() < 6


def test_single_false_alarms_are_not_believed():
    truth, hidden = flight(40), {15, 16, 30}
    alarms = {15: np.array([1200.0, 40.0]), 30: np.array([30.0, 700.0])}
    tracker, _ = follow(truth, hidden=hidden, alarms=alarms)
    assert not seen(tracker)[[15, 16, 30]].any() and seen(tracker)[17:30].all() and seen(tracker)[31:].all()
    nothing, _ = follow(truth[:6], hidden=range(6), alarms={2: np.array([100.0, 100.0]), 4: np.array([900.0, 600.0])})
    assert not seen(nothing).any()


def test_a_hit_is_believed_when_the_next_frame_confirms_it():
    there = flight(20, start=(200, 300), speed=(40, -4))
    back = there[-1] + np.array([-45.0, 6.0]) * np.arange(1, 16)[:, None]
    truth = np.concatenate([there, back])
    tracker, _ = follow(truth)
    assert seen(tracker).mean() > 0.97 and errors(tracker, truth)[seen(tracker)].max() < 6


def test_what_is_followed_is_kept_with_less_certainty_than_a_new_thing_needs():
    assert Settings().kept < 0.5 < Settings().found
    doubtful = Settings(confirm=1)
    tracker = Tracker(WIDTH, HEIGHT, doubtful)
    for i, logit in enumerate([0.1, 0.1, 2.0, -0.2, -0.2, -3.0]):
        place = np.array([300.0 + 10 * i, 300.0])
        tracker.step(lambda place=place: place, lambda _, place=place, logit=logit: np.array([*place, logit]))
    assert seen(tracker).tolist() == [False, False, True, True, True, False]
    assert [round(probability(logit), 2) for logit in (0.1, -0.2)] == [0.52, 0.45]


def test_what_leaves_the_frame_is_let_go():
    truth = flight(12, start=(900, 300), speed=(60, 0), gravity=0)
    tracker, _ = follow(truth, hidden=[i for i, (x, _) in enumerate(truth) if x >= WIDTH])
    assert tracker.track is None and not seen(tracker)[-4:].any()
