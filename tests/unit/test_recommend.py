"""What is recommended follows the rule alone, rests on records that exist, and is what `hpml train` and `hpml serve` take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_tables import MACHINE, fit, make, noise, sweep

from hpml import compare, configfile, env, recommend, records, workloads
from hpml.env import HpmlError

TINY = str(Path(__file__).parent.parent / "tiny.py")
BF16 = {"precision": "bf16"}


def hpml(*words: str, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", *words], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **settings})


def qualities(value: float, *, base: float = 0.9) -> list:
    return [fit(base), fit(value, changes=BF16)]


def training(found) -> dict:
    return recommend.choose(found, source="here")["resnet50"]["train"]


def test_the_fastest_case_that_is_faster_and_kept_is_chosen_with_what_it_rests_on():
    found = noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)) + qualities(0.9)
    found += sweep("script", ["none", "compile"], rounds=6, rates=(50, 120))  # faster still, but nobody looked at its quality
    entry = training(found)
    row = next(row for row in compare.rows(found) if row.label == "precision=bf16" and row.verdict == "faster")
    assert entry["knobs"] == BF16 and entry["instead_of"] == {"precision": "fp32"}
    assert entry["ratio"] == round(row.ratio, 3) and entry["interval"] == [round(row.low, 3), round(row.high, 3)] and row.low > 1
    assert "1.8" in entry["reason"] and entry["trade_off"]["quality"].startswith("kept")
    assert entry["trade_off"]["memory_mib"] == {"here": 1234, "instead_of": 1234} and entry["trade_off"]["first_call_s"]["here"] > 0
    rested = [r for r in found if r.record_id in entry["records"]]
    assert len(rested) == len(entry["records"]) == 6 + 6 + 2, "six rounds of both, and the two trainings that show the quality"
    assert {r.knobs["precision"] for r in rested} == {"fp32", "bf16"}


def test_of_several_the_one_with_the_highest_rate_is_taken_at_the_sizes_that_most_were_measured_at():
    rates = {("eager", "fp32"): 20, ("onnxruntime", "fp32"): 40, ("openvino", "bf16"): 160}
    found = noise("infer")
    for number in range(4):
        for order, ((engine, precision), per_s) in enumerate(rates.items()):
            changes = {name: value for name, value in {"engine": engine, "precision": precision}.items() if value not in ("eager", "fp32")}
            passed = {"metric": "top-1 accuracy", "value": 0.9, "n": 1000, "chance": 0.1, "margin": 0.01, "informative": True}
            found += [make(phase="infer", changes=changes, varying=("engine", "precision"), number=number, order=order, per_s=per_s),
                      make(phase="infer", changes={**changes, "measure": "quality"}, varying=("engine", "precision"), number=number,
                           order=order, group="quality", quality=passed)]
    found += sweep("engine", ["eager", "openvino"], phase="infer", rounds=4, rates=(100, 900), base={"batch": 64})  # other sizes
    entry = recommend.choose(found, source="here")["resnet50"]["infer"]
    assert entry["knobs"] == {"engine": "openvino", "precision": "bf16"} and entry["samples_per_s"] == pytest.approx(160, rel=0.03)
    assert entry["measured_at"]["batch"] == 1


@pytest.mark.parametrize(("found", "why"), [
    ([], "not measured"),
    (noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90), tier="smoke") + qualities(0.9), "not measured"),
    (sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)) + qualities(0.9), "1 too few rounds"),  # no noise floor
    (noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 50)) + qualities(0.9), "1 no difference"),
    (noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 30)) + qualities(0.9), "1 slower"),
    (noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)) + qualities(0.5), "1 faster"),
    (noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)), "1 faster")])
def test_without_a_gain_that_is_kept_nothing_is_recommended_and_the_reason_is_said(found, why):
    entry = training(found)
    assert why in entry["none"] and "knobs" not in entry
    assert ("faster_only" in entry) == (why == "1 faster"), "what is worth one more measurement"


def test_every_workload_of_the_course_stands_in_the_file():
    chosen = recommend.choose([], source="here")
    assert set(chosen) == set(workloads.names()) and all(set(phases) == {"train", "infer"} for phases in chosen.values())


def test_the_page_says_what_is_recommended_what_it_costs_and_what_is_missing(run):
    page = recommend.markdown(recommend.of_run(run))
    rows = [line for line in page.splitlines() if "| precision=bf16 | precision=fp32 |" in line]
    assert len(rows) == 2, "this machine and the reference"
    assert "1,234 / 1,234" in rows[0] and "kept (+0.0 points" in rows[0] and "14 records" in rows[0]
    assert page.count("not measured here: CLIP training") == 2
    assert MACHINE["id"] not in recommend.markdown(recommend.of_run(run, references=False))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on this machine whose training has a recommendation, beside a reference of another machine."""
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HPML_REFERENCE", str(tmp_path / "reference"))
    kept = noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)) + qualities(0.9)
    for record in kept:
        records.append(tmp_path / "reference" / MACHINE["id"] / "records.jsonl", record)
        record.machine = {**MACHINE, "id": env.machine()["id"]}
        records.append(env.run_dir("mine") / "records.jsonl", record)
    return env.run_dir("mine")


def test_report_writes_the_file_of_a_run_with_the_reference_machines_in_it(run):
    done = hpml("report", "mine")
    assert done.returncode == 0, done.stderr
    assert "ResNet-50 training: precision=bf16" in done.stdout and "no recommendation, not measured: CLIP training" in done.stdout
    content = yaml.safe_load((run / "recommended.yaml").read_text())
    assert content["machine"] == env.machine()["id"] and set(content["machines"]) == {env.machine()["id"], MACHINE["id"]}
    assert content["machines"][MACHINE["id"]]["workloads"]["resnet50"]["train"]["source"] == f"results/reference/{MACHINE['id']}"
    found = configfile.read(run / "recommended.yaml", phase="train", workload="resnet50")
    assert found.knobs == BF16 and "another machine" not in found.note


def test_train_takes_the_file_and_a_flag_overrides_it(run):
    recommend.write(run)
    file = str(run / "recommended.yaml")
    done = hpml("train", "--config", file, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert '"precision": "bf16"' in done.stdout and "ResNet-50" in done.stdout and "as recommended for" in done.stderr
    done = hpml("train", "--config", file, "resnet50", "--precision", "fp32", "--dry-run")
    assert done.returncode == 0 and '"precision": "fp32"' in done.stdout


def handwritten(knobs: dict, *, phase: str = "train", workload: str = "resnet50", **more) -> str:
    entry = {"knobs": knobs} if isinstance(knobs, dict) else knobs
    return json.dumps({"format": 1, "machine": "m", "machines": {"m": {"workloads": {workload: {phase: entry}}}}, **more})  # JSON is YAML


@pytest.mark.parametrize(("text", "said"), [
    (None, "cannot be read"), ("[", "not YAML"), ("- a", "a mapping of names is needed, not list"), ("", "not nothing"),
    (handwritten({}, colour="red"), "unknown key colour"), (handwritten({}, format=2), "format: 2"),
    (handwritten({"precision": 16}), "precision=16: choose from"), (handwritten({"workers": "two"}), "workers='two': expected int"),
    (handwritten({"warp": 9}), "unknown knob 'warp'"), (handwritten(["bf16"]), "a mapping of names is needed, not list"),
    (handwritten({}, workload="clip"), "no workload 'resnet50'"), (handwritten({}, machine="elsewhere"), "no `machine` that names one"),
    (handwritten({}, phase="tune"), "unknown key tune"), (handwritten({}, phase="infer"), "no workload 'resnet50' for train"),
    (json.dumps({"format": 1, "machine": "m", "machines": {"m": {"workloads": {"resnet50": {"train": {"none": "not measured"}}}}}}),
     "no recommendation for resnet50 train on m: not measured")])
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HpmlError) as refused:
        configfile.read(path, phase="train", workload="resnet50")
    assert said in str(refused.value) and str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [["train", "resnet50"], ["serve", "--workload", "resnet50"]])
def test_a_wrong_file_ends_the_command_with_2(tmp_path, words):
    (tmp_path / "mine.yaml").write_text(handwritten({"warp": 9}, workload="resnet50", phase="train" if words[0] == "train" else "infer"))
    done = hpml(*words, "--config", str(tmp_path / "mine.yaml"), HPML_RESULTS=str(tmp_path / "results"))
    assert done.returncode == 2 and done.stderr.startswith("hpml: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert "unknown knob 'warp'" in done.stderr and not (tmp_path / "results").exists()


def test_train_without_a_workload_or_a_file_asks_for_one():
    done = hpml("train")
    assert done.returncode == 2 and "name a workload" in done.stderr
