"""A file of the reader's own: an edit counts at once, a fault has its line, its data sets reach worker processes, its name travels."""

from pathlib import Path

import pytest

import hpml
from hpml import reader, study, workloads
from hpml.env import HpmlError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.py"


def test_an_edit_counts_at_once_and_makes_another_case(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TINY.read_text())
    before, code = workloads.get(str(path)), study._code(str(path))
    assert workloads.get(str(path)) is before
    path.write_text(TINY.read_text().replace("Tiny net", "Tony net"))  # of the same length, within the same second
    assert workloads.get(str(path)).TITLE == "Tony net" and before.TITLE == "Tiny net"
    assert study._code(str(path)) != code
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(("text", "said"), [
    ("\n\n1 / 0", "ZeroDivisionError: division by zero (mine.py, line 3)"),
    ("x = (\n", "SyntaxError: '(' was never closed (mine.py, line 1)"),
    ("import nothing_there", "No module named 'nothing_there' (mine.py, line 1)")])
def test_a_fault_has_its_line(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(HpmlError) as caught:
        reader.load(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_its_data_set_reaches_a_loader_worker(smoke_session):
    records = hpml.run(hpml.case(str(TINY), phase="data", workers=1), rounds=1).records
    assert [(record.status, record.reason) for record in records] == [("ok", None)]


def test_its_name_is_the_same_in_every_checkout_and_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = hpml.case(str(TINY)).workload
    assert name == "tests/tiny.py" and workloads.get(name).TITLE == "Tiny net"
    (tmp_path / "own.py").write_text(TINY.read_text())
    assert hpml.case("own.py").workload == str(tmp_path.resolve() / "own.py")
    with pytest.raises(HpmlError, match="no such workload file: nowhere.py"):
        hpml.case("nowhere.py")
