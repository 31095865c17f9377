"""Reference records: what may be blessed, and README's block written from them alone."""

import re
import shutil

import pytest
from test_tables import limit, noise, study, sweep

from hpml import compare, env, recommend, records, reference, report_readme
from hpml.env import HpmlError


def run_of(tmp_path, monkeypatch, found, *, dirty=False):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HPML_REFERENCE", str(tmp_path / "results" / "reference"))
    monkeypatch.setattr(env, "root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    for record in found:
        record.machine, record.notebook = {**record.machine, "family_model": "25/17"}, record.notebook or "23"
        record.git = {"commit": "0123456789abcdef", "dirty": dirty}
        records.append(env.run_dir("good") / "records.jsonl", record)


def test_a_blessed_run_writes_readme(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)))
    folder = reference.bless("good")
    assert {path.name for path in folder.iterdir()} == {"records.jsonl", "tables", "charts"}
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report_readme.BEGIN}\nstale\n{report_readme.END}\n{report_readme.LIST_BEGIN}\n{report_readme.LIST_END}\nafter\n")
    text = report_readme.readme(page)
    assert text.startswith("before") and text.endswith("after\n") and "stale" not in text
    assert "| BF16 | FP32 |" in text and "1.80x" in text and "0123456789" in text
    full = report_readme.machine_page(folder, records.read(folder / "records.jsonl"))
    assert "1.80x" in full and "--rounds 6" in full and "](records.jsonl)" in full
    line = int(re.search(r"\[1\.80x [^)]*\]\(records\.jsonl#L(\d+)\)", full)[1])
    assert records.read(folder / "records.jsonl")[line - 1].knobs["precision"] == "bf16", "a ratio leads to the case's record"
    assert f"](results/reference/{folder.name}/records.jsonl#L{line})" in text
    assert "](charts/worth.png)" in full and "](charts/steps.png)" in full and "## Load\n\nNot measured here: " in full
    before = {path: path.read_bytes() for path in (folder / "charts").iterdir()}
    assert {folder / "README.md", page} <= set(report_readme.write(page)) and set(before) <= set((folder / "charts").iterdir())
    page.write_text(text)
    assert report_readme.readme(page) == text, "written again it is the same"


def test_a_reference_grows_run_by_run(tmp_path, monkeypatch):
    def measured(workload, notebook, rate, protocol=records.PROTOCOL_VERSION):
        found = noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, rate))
        for record in found:
            record.notebook, record.protocol_version = notebook, protocol
            record.case = {**record.case, "workload": workload, "group": f"{workload} {notebook} {record.case['group']}"}
        return found

    def blessed(found):
        shutil.rmtree(env.run_dir("good"), ignore_errors=True)
        for record in found:
            record.git = {"commit": "0123456789abcdef", "dirty": False}
            records.append(env.run_dir("good") / "records.jsonl", record)
        folder = reference.bless("good")
        assert {path.name for path in folder.parent.iterdir()} == {folder.name}, "nothing is left beside it"
        rows = compare.rows(records.read(folder / "records.jsonl"))
        return {(row.workload, row.notebook): round(row.ratio, 1) for row in rows if row.ratio and not row.is_baseline
                and row.technique != compare.NOISE}

    run_of(tmp_path, monkeypatch, [])
    assert blessed(measured("resnet50", "23", 60, protocol=records.PROTOCOL_VERSION - 1)) == {("resnet50", "23"): 1.2}
    assert blessed(measured("resnet50", "23", 90)) == {("resnet50", "23"): 1.8}, "another protocol's figures go"
    assert blessed(measured("clip", "23", 80)) == {("resnet50", "23"): 1.8, ("clip", "23"): 1.6}
    assert blessed(measured("clip", "23", 70) + measured("clip", "27", 65)) == {
        ("resnet50", "23"): 1.8, ("clip", "23"): 1.4, ("clip", "27"): 1.3}, "measured again, it is replaced"


def test_of_a_limit_the_higher_of_two_runs_stays(tmp_path, monkeypatch):
    def blessed(fp32, memory, bf16=None):
        shutil.rmtree(env.run_dir("good"), ignore_errors=True)
        for record in (limit("matmul", "fp32", "torch", fp32, "FLOP/s"), limit("matmul", "bf16", "torch", bf16, "FLOP/s"),
                       limit("memory", "any", "torch", memory, "B/s")):
            record.notebook, record.git = "00", {"commit": "0123456789abcdef", "dirty": False}
            records.append(env.run_dir("good") / "records.jsonl", record)
        found = records.read(reference.bless("good") / "records.jsonl")
        return {(r.knobs["kind"], r.knobs["dtype"]): r.actual.get("value") for r in found}

    run_of(tmp_path, monkeypatch, [])
    assert blessed(2e11, 1e10) == {("matmul", "fp32"): 2e11, ("matmul", "bf16"): None, ("memory", "any"): 1e10}
    assert blessed(1e11, 3e10, 4e11) == {("matmul", "fp32"): 2e11, ("matmul", "bf16"): 4e11, ("memory", "any"): 3e10}
    assert blessed(1e11, 1e10) == {("matmul", "fp32"): 2e11, ("matmul", "bf16"): 4e11, ("memory", "any"): 3e10}


def test_what_is_not_solid_is_not_blessed(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, study())
    with pytest.raises(HpmlError, match="6 rounds of everything; fewer here"):
        reference.bless("good")
    with pytest.raises(HpmlError, match="no records"):
        reference.bless("other")


@pytest.mark.parametrize(("notebook", "tier"), [(None, "cpu"), ("23", "smoke")])
def test_what_no_notebook_measured_and_what_is_smoke_is_not_blessed(tmp_path, monkeypatch, notebook, tier):
    run_of(tmp_path, monkeypatch, [])
    (only,) = sweep("precision", ["fp32"], rounds=1, rates=(50,))
    only.notebook, only.case["tier"] = notebook, tier
    records.append(env.run_dir("good") / "records.jsonl", only)
    with pytest.raises(HpmlError, match="what the notebooks measured, at another tier than smoke"):
        reference.bless("good")


def test_a_run_without_a_noise_floor_is_not_blessed(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)))
    with pytest.raises(HpmlError, match="knows its noise floor"):
        reference.bless("good")


def test_a_noisy_machine_is_said_beside_every_verdict(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, noise(spread=0.2) + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)))
    folder = reference.bless("good")
    assert "; machine too noisy" in report_readme.readme_block()
    assert "faster; machine too noisy" in report_readme.machine_page(folder, records.read(folder / "records.jsonl"))


def test_changed_sources_are_not_blessed(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)), dirty=True)
    with pytest.raises(HpmlError, match="clean commit"):
        reference.bless("good")


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(HpmlError, match="marks of the block of results are missing"):
        report_readme.readme(tmp_path / "README.md")


def test_readme_is_what_the_committed_reference_says():
    """The page that most people read may not differ from the records."""
    page = env.root() / "README.md"
    assert report_readme.readme(page) == page.read_text(), "run: hpml report --readme"
    for folder, found in report_readme.references():
        assert report_readme.machine_page(folder, found) == (folder / "README.md").read_text(), "run: hpml report --readme"
        kept = (folder / recommend.NAME).read_text()
        assert kept == recommend.text(recommend.of_reference(folder)), "run: hpml report --readme"
