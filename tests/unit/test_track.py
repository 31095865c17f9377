"""`hpml track` from a rendered video to its three files, and what it says of what it cannot use."""

import json

import numpy as np
import pytest

from hpml.apps.tracker import Row
from hpml.data import court, points, video
from hpml.env import HpmlError
from hpml.serve import stages, tracking

pytest.importorskip("av")
WIDTH = 128


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A video of two clips of the rendered court, at 25 frames a second."""
    images, _ = court.render(12, width=WIDTH, seed=3)
    return written(tmp_path_factory.mktemp("video") / "rally.mp4", images)


def written(path, images):
    with video.writer(path, fps=25) as add:
        for image in images:
            add(image)
    return path


class Brightest:
    """In the place of a trained network: the middle of what is bright, and whether anything is."""

    def __init__(self, outputs):
        self.outputs = outputs

    def run(self, inputs):
        bright = np.clip(inputs[0][0].mean(0) - 1, 0, None)
        total = max(bright.sum(), 1e-6)
        x = (bright.sum(0) * (np.arange(bright.shape[1]) + 0.5)).sum() / total
        y = (bright.sum(1) * (np.arange(bright.shape[0]) + 0.5)).sum() / total
        return (np.array([[x, y, 4.0 if total > 1 else -4.0][: self.outputs]]),)


def test_from_a_video_to_a_table_a_video_and_a_summary(tmp_path, monkeypatch):
    places = np.array([(40.0 + 12 * i, 120.0 - 14 * i + i * i) for i in range(12)])
    down, across = np.mgrid[0:144, 0:256] + 0.5
    images = [np.repeat((255 * (np.hypot(across - x, down - y) < 4) * (i != 6)).astype(np.uint8)[..., None], 3, 2)
              for i, (x, y) in enumerate(places)]
    clip = written(tmp_path / "flight.mp4", images)
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    monkeypatch.setattr(stages.prepare, "load", lambda job, view, **_: (Brightest(2 if job["knobs"]["part"] == "find" else 3), 0.01))
    done = tracking.track(clip, out=tmp_path / "out", tier="smoke", variant="small", image=WIDTH)
    assert (done["frames"], done["width"], done["height"], done["model_width"]) == (12, 256, 144, WIDTH)
    assert done["fps"] == pytest.approx(25)
    assert not done["answers_mean_something"] and "mean nothing" in done["weights"] and done["start_up"]["made_s"] == 0
    rates = done["frames_per_second"]
    assert set(rates) == {"decode", "prepare", "find", "refine", "tracker", "write", "end to end"} and all(rates.values())
    assert sum(done["seconds"][name] for name in rates if name != "end to end") <= done["seconds"]["end to end"] * 1.01
    rows, wrong = points.read(tmp_path / "out/positions.csv", clip="rally", size=(256, 144))
    assert not wrong and list(rows["frame"]) == list(range(12)) and list(rows["visible"]) == [i != 6 for i in range(12)]
    assert done["visible"] == 11 and done["searched"] <= 4 and done["calls"]["find"] == done["searched"]
    seen = rows["visible"].to_numpy()
    assert np.abs(rows[["x", "y"]].to_numpy() - places)[seen].max() < 1
    assert (tmp_path / "out/positions.csv").read_text().splitlines()[0] == "Frame,Visibility,X,Y,Confidence"
    pictures, plain = ([frame for _, _, frame in video.frames(path)] for path in (tmp_path / "out/annotated.mp4", clip))
    assert len(pictures) == 12 and pictures[0].shape == plain[0].shape
    changed = np.abs(pictures[0].astype(int) - plain[0]).sum(2) > 150  # confirmed by the second frame, and drawn all the same
    assert changed.any() and np.argwhere(changed).mean(0) == pytest.approx(places[0][::-1], abs=2)
    assert not (np.abs(pictures[6].astype(int) - plain[6])[int(places[6][1]), int(places[6][0]) + 4] > 100).any()
    assert json.loads((tmp_path / "out/summary.json").read_text()) == done
    assert "the shuttle visible in 11" in tracking.text(done)
    with pytest.raises(HpmlError, match="holds positions.csv already; give another folder with --out"):
        tracking.track(clip, out=tmp_path / "out")


def test_a_real_model_with_history_answers_every_frame(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    done = tracking.track(rendered, out=tmp_path / "out", tier="smoke", variant="small+history", image=WIDTH, engine="eager",
                          annotate=False)
    assert done["frames"] == 12 and done["calls"]["refine"] >= 12 and done["design"] == "small+history"
    rows = (tmp_path / "out/positions.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(12)) and all(0 <= float(row.split(",")[4]) <= 1 for row in rows)
    assert not (tmp_path / "out/annotated.mp4").exists() and done["written"] == ["positions.csv", "summary.json"]


def test_other_shapes_fill_what_they_can_of_the_frame():
    seen = object.__new__(stages.Stages)
    seen.width, seen.height, seen.design, seen.spent = 128, 72, stages.workloads.get("shuttle").design("small"), {"prepare": 0.0}
    white = np.full((100, 100, 3), 255, np.uint8)
    assert seen.see(white, []) == pytest.approx(0.72) and seen.channels.shape == (3, 72, 128)
    assert seen.channels[0, :, :72].min() > 2 and seen.channels[0, :, 72:].max() < -2
    assert seen.see(white[:, :50], []) == pytest.approx(0.72) and seen.see(white[:50], []) == pytest.approx(1.28)


def test_places_are_the_videos_own_pixels(tmp_path):
    tracking.write_positions(tmp_path / "p.csv", [Row(64, 32, 0.91, True, True), Row(1, 1, 0.2, False, False)], scale=0.5)
    assert (tmp_path / "p.csv").read_text().splitlines()[1:] == ["0,1,128.0,64.0,0.91", "1,0,0,0,0.2"]


def test_what_cannot_be_used_is_one_line(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    (tmp_path / "text.mp4").write_text("no video")
    for asked, message in (({"path": tmp_path / "no.mp4"}, "no.mp4: no such file"), ({"path": tmp_path / "text.mp4"}, "not a video file"),
                           ({"weights": "nowhere"}, "weights 'nowhere': that run has trained no shuttle localizer"),
                           ({"weights": "gone.safetensors"}, "weights 'gone.safetensors': no such file"),
                           ({"engine": "none"}, "engine 'none'"), ({"variant": "huge"}, "variant='huge'"),
                           ({"precision": "fp8"}, "fp8")):
        with pytest.raises(HpmlError, match=message) as caught:
            tracking.track(**{"path": rendered, "out": tmp_path / "out", "tier": "smoke", **asked})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(video, "_av", lambda: (_ for _ in ()).throw(video.Unavailable("needs PyAV: pip install 'hpml[video]'")))
    with pytest.raises(HpmlError, match="pip install 'hpml\\[video\\]'"):
        tracking.track(rendered, out=tmp_path / "out")


def test_weights_say_what_they_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    models = tmp_path / "runs/mine/models"
    models.mkdir(parents=True)
    (models / "shuttle.safetensors").write_bytes(b"x")
    bare = stages.weights_of("mine")
    assert not bare.means and "no record says" in bare.words and bare.run_id == "mine"
    for origin, means in (("stand-in", False), ("real", True)):
        record = {"knobs": {"variant": "small+bifpn", "image": 320, "batch": 8}, "actual": {"data": {"title": "frames", "origin": origin}}}
        (models / "shuttle.json").write_text(json.dumps(record))
        found = stages.weights_of("mine")
        assert found.sizes == {"variant": "small+bifpn", "image": 320} and found.means == means
        assert ("mean little" in found.words) != means
        assert stages.weights_of(str(models / "shuttle.safetensors")).words == found.words


def test_a_video_that_ends_early_is_tracked_so_far_and_said(rendered, tmp_path, monkeypatch):
    import av

    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    monkeypatch.setattr(stages.prepare, "load", lambda job, view, **_: (Brightest(2 if job["knobs"]["part"] == "find" else 3), 0.01))
    with av.open(str(rendered)) as container:
        places = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(rendered.read_bytes()[: sum(places[4])])
    done = tracking.track(cut, out=tmp_path / "out", tier="smoke", variant="small", image=WIDTH)
    assert 0 < done["frames"] < 12 and done["incomplete"] == f"{cut}: ends after frame {done['frames'] - 1} of 12: cut or damaged"
    assert done["incomplete"] in tracking.text(done).splitlines()
    assert done["written"] == list(tracking.FILES.values()) and all((tmp_path / "out" / name).exists() for name in done["written"])
    assert json.loads((tmp_path / "out/summary.json").read_text()) == done
    assert len(list(video.frames(tmp_path / "out/annotated.mp4"))) == done["frames"]


def test_a_place_that_cannot_be_written_to_is_said_before_engines_are_made(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "Stages", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(HpmlError, match="file is no folder that can be written to; give another one with --out"):
            tracking.track(rendered, out=out)
