"""`hpml track` as a user types it: engines are made once and then loaded, and a mistake is one line."""

import json
import os
import subprocess
import sys

import pytest

from hpml.data import court, video

av = pytest.importorskip("av")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def hpml(*arguments, results):
    environment = {**os.environ, "HPML_RESULTS": str(results), "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from hpml.cli import main; main()", "track", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_the_second_run_loads_what_the_first_one_stored(tmp_path):
    with video.writer(tmp_path / "rally.mp4", fps=25) as add:
        for image in court.render(8, width=128, seed=1)[0]:
            add(image)
    asked = (tmp_path / "rally.mp4", "--tier", "smoke", "--variant", "small", "--engine", "onnxruntime")
    summaries = []
    for name in ("first", "second"):
        done = hpml(*asked, "--out", tmp_path / name, results=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "random weights: the answers mean nothing" in done.stdout
        assert ("making it once" in done.stderr) == (name == "first")
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    assert summaries[0]["start_up"]["made_s"] > 0 == summaries[1]["start_up"]["made_s"]
    first, second = ((tmp_path / name / "positions.csv").read_text() for name in ("first", "second"))
    assert first == second and len(first.splitlines()) == 9
    again = hpml(*asked, "--out", tmp_path / "first", results=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1) and "give another folder with --out" in again.stderr
    (tmp_path / "file").write_text("")
    nowhere = hpml(*asked, "--out", tmp_path / "file", results=tmp_path)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1) and "file is no folder that can be written to" in nowhere.stderr
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "rally.mp4").read_bytes()[:400])
    broken = hpml(tmp_path / "cut.mp4", results=tmp_path)
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1) and "cut.mp4" in broken.stderr and not broken.stdout


def test_a_cut_video_is_tracked_so_far_and_said(tmp_path):
    with video.writer(tmp_path / "rally.mp4", fps=25) as add:
        for image in court.render(20, width=128, seed=1)[0]:
            add(image)
    with av.open(str(tmp_path / "rally.mp4")) as container:
        places = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "rally.mp4").read_bytes()[: sum(places[9])])
    done = hpml(tmp_path / "cut.mp4", "--tier", "smoke", "--variant", "small", "--engine", "eager", "--no-annotate", "--out",
                tmp_path / "out", results=tmp_path)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert done.returncode == 1 and "annotated.mp4" not in done.stdout
    assert summary["incomplete"] in done.stdout and "of 20: cut or damaged" in summary["incomplete"]
    assert len((tmp_path / "out/positions.csv").read_text().splitlines()) == 1 + summary["frames"]
    assert summary["written"] == ["positions.csv", "summary.json"] and not (tmp_path / "out/annotated.mp4").exists()
