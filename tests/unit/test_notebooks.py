"""The course's files: what a notebook declares, its normal form, and the runner's refusals."""

import nbformat
import pytest
from nbformat import v4

from hpml import notebooks, runner
from hpml.env import HpmlError


def book(parameters="tier = 'smoke'\nguess: float = 1.0\nnumbers = [1]\n"):
    meta = {"papermill": {"x": 1}, "hpml": {"minutes": {"cpu": 2}}, "kernelspec": {"name": "conda-env-x", "display_name": "x"}}
    cell = v4.new_code_cell(parameters, metadata={"tags": ["parameters"], "papermill": {"duration": 1}})
    printing = v4.new_code_cell("print(1)", execution_count=2, outputs=[
        v4.new_output("stream", name="stderr", text="a warning"), v4.new_output("stream", name="stdout", text="1\n")])
    return v4.new_notebook(cells=[v4.new_markdown_cell("# 99 · A title\n\n**What is\nasked?** More."), cell, printing],
                           metadata=meta)


def test_a_notebook_describes_itself(tmp_path, monkeypatch):
    nbformat.write(book(), tmp_path / "99_title.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    one = notebooks.course()[0]
    assert (one.number, one.title, one.question) == ("99", "99 · A title", "What is asked?")
    assert one.parameters == ("tier", "guess", "numbers") and one.minutes == {"cpu": 2}
    with pytest.raises(HpmlError, match="no notebook 12: choose from 99"):
        notebooks.chosen(["12"])
    (tmp_path / "98_broken.ipynb").write_text("{")
    with pytest.raises(HpmlError, match="98_broken.ipynb: not a notebook"):
        notebooks.course()


def test_a_notebook_about_one_workload_runs_for_it_alone(tmp_path, monkeypatch):
    about = book()
    about.metadata["hpml"]["workload"] = "resnet50"
    nbformat.write(about, tmp_path / "98_own.ipynb")
    nbformat.write(book(), tmp_path / "99_all.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    own, every = notebooks.course()
    assert runner._about([own, every], None, None, "auto") == [own, every]
    assert runner._about([own, every], ["my_model.py"], None, "auto") == [every]
    assert runner._about([own, every], None, None, "no-such-data") == [every]
    assert runner._own(own, ["my_model.py", "resnet50"]) == ["resnet50"]
    with pytest.raises(HpmlError, match="notebook 98 is about resnet50: name it by --workloads"):
        runner._about([own], ["my_model.py"], ["98"], "auto")


@pytest.mark.parametrize(("cell", "status", "reason"), [
    ("import hpml.env\nraise hpml.env.BudgetSpent('budget: no time was left')", "skipped", "budget: no time was left"),
    ("import hpml.env\nraise hpml.env.Unavailable('x is not installed')", "skipped", "x is not installed"),
    ("{}['records']", "failed", "cell 2: KeyError: 'records'")])
def test_only_the_budget_and_what_is_not_here_excuse_a_notebook(tmp_path, monkeypatch, cell, status, reason):
    cut = book()
    cut.metadata["kernelspec"] = {"name": "python3", "display_name": "x"}
    cut.cells[-1] = v4.new_code_cell(cell)
    nbformat.write(cut, tmp_path / "99_cut.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    outcome = runner.execute(notebooks.course()[0], {}, tmp_path / "run", 240)
    assert outcome["status"] == status and "HPML_DEADLINE" not in runner.os.environ
    assert outcome["reason"] == reason


def test_an_undeclared_parameter_stops_the_run(tmp_path, monkeypatch):
    nbformat.write(book(), tmp_path / "99_title.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    with pytest.raises(HpmlError, match="99_title.ipynb does not declare the parameter teir"):
        runner.check_parameters(notebooks.course()[0], {"teir": "cpu", "guess": 1})


def test_the_normal_form_keeps_what_readers_need(tmp_path, monkeypatch):
    clean = notebooks.normalised(book())
    assert set(clean.metadata) == {"hpml", "kernelspec", "language_info"} and clean.metadata.kernelspec.name == "python3"
    assert clean.cells[1].metadata == {"tags": ["parameters"]}
    assert [o.name for o in clean.cells[2].outputs] == ["stdout"] and clean.cells[2].execution_count == 2
    assert notebooks.normalised(clean) == clean
    nbformat.write(book(), tmp_path / "99_title.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    assert notebooks.not_normalised() == ["99_title.ipynb"]


def test_storing_runs_the_cells_and_a_failure_leaves_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    good, bad = tmp_path / "97_good.ipynb", tmp_path / "98_bad.ipynb"
    nbformat.write(book("tier = 'smoke'\nprint(tier)"), good)
    nbformat.write(book("raise ValueError('no such luck')"), bad)
    before = bad.read_text()
    notebooks.store([good], say=lambda _: None)
    assert nbformat.read(good, as_version=4).cells[1].outputs[0].text == "smoke\n"
    assert notebooks.not_normalised() == ["98_bad.ipynb"]
    with pytest.raises(HpmlError, match=r"98_bad.ipynb: .*no such luck"):
        notebooks.store([bad], say=lambda _: None)
    assert bad.read_text() == before


def test_a_stored_chart_keeps_its_colours_in_fewer_bytes_and_a_photograph_keeps_more_of_them():
    import base64
    import io

    import numpy as np
    from PIL import Image

    def stored(picture) -> tuple[Image.Image, np.ndarray]:
        target = io.BytesIO()
        Image.fromarray(picture).save(target, "png")
        found = Image.open(io.BytesIO(base64.b64decode(notebooks._fewer_colours(base64.b64encode(target.getvalue()).decode()))))
        return found, np.abs(np.asarray(found.convert("RGB"), int) - picture).max(-1)

    chart = np.full((200, 300, 3), 255, np.uint8)
    chart[20:90] = np.linspace(0, 255, 300)[None, :, None]  # greys of many letters
    chart[100:150, :, 2] = 178
    chart[120:140, 150:152] = (170, 0, 0)  # a limit's thin red line
    found, change = stored(chart)
    assert len(found.getcolors()) <= 32 and change.max() <= notebooks.UNSEEN
    found, _ = stored(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    assert len(found.getcolors()) > 32
