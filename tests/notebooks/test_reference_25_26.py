"""What notebooks 25 and 26 say of reference machines: of one with CPUs, one with a GPU and one with two, from made-up records."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hpml import records
from hpml.knobs import validate
from hpml.records import Record

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
P = 25_000_000  # parameters of the made-up model


def made(folder: Path, *, notebook: str, machine: str, phase: str, cases: list[tuple[dict, float | str]], **fields) -> None:
    """Three rounds of a comparison and of an A/A pair. A case: its knobs and its seconds a step, or the reason why it is not here."""
    base = cases[0][0]
    arms = [(base, cases[0][1], "A"), (base, cases[0][1], "A again")]
    for group, members in ((f"{machine}-{phase}", [(*case, "") for case in cases]), (f"{machine}-{phase}-aa", arms)):
        for number in range(3):
            for order, (knobs, seconds, arm) in enumerate(members):
                differs = [name for name, value in knobs.items() if validate(phase, base)[name] != value]
                label = ", ".join(f"{k}={v}" for k, v in knobs.items()) or "plain"
                case = {"workload": "resnet50", "phase": phase, "tier": "cpu", "label": label, "order": order, "differs_in": differs,
                        "technique": "noise_floor" if arm else "+".join(differs) or "none", "key": f"{group}{order}", "group": group,
                        "baseline": f"{group}0", "arm": arm}
                shared = {"run_id": "test", "notebook": notebook, "machine": {"id": machine}, "case": case, "protocol": {"round": number},
                          "knobs": validate(phase, {**knobs, "batch": 32})}
                if isinstance(seconds, str):
                    status = "skipped" if "compiling" in seconds else "unsupported"
                    one = Record(status=status, reason=seconds, **shared)
                else:
                    items = 32 * knobs.get("replicas", 1)
                    values = [seconds * (1 + 0.001 * (number - 1) * (1 + order))] * 3
                    cold = fields.get("cold", {}).get(order, (1.0, 1.0))[min(number, 1)]
                    one = Record(
                        status="ok", samples={"unit": "s", "items": items, "values": values}, memory={"peak_rss_mib": 900.0 * (1 + order)},
                        stats=records.stats(values, items=items, center="median"), cold={"load_s": 0.0, "first_call_s": cold},
                        actual={"parameters": P, "losses": [2.3]} | ({"compiled": "here" if not number else "from the cache"}
                                                                     if "compile" in knobs.values() else {}), **shared)
                records.append(folder / machine / "records.jsonl", one)


def said(name: str, reference: Path, monkeypatch) -> str:
    """Everything that the notebook's cells about the reference print, without measuring."""
    book = nbformat.read(next(FOLDER.glob(f"{name}_*.ipynb")), as_version=4)
    imports, *others = (cell for cell in book.cells if cell.cell_type == "code")
    book.cells = [imports, *(cell for cell in others if {"parameters", "reference"} & set(cell.metadata.get("tags", [])))]
    monkeypatch.setitem(os.environ, "HPML_REFERENCE", str(reference))
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_26_on_two_cores_and_on_one_and_two_gpus(tmp_path, monkeypatch):
    notebook, cuda = "26_dp_vs_ddp", {"device": "cuda"}
    made(tmp_path, notebook=notebook, machine="two-cores", phase="train", cases=[
        ({}, 0.30), ({"parallel": "dp"}, "DataParallel splits a batch over GPUs: no GPU here"), ({"parallel": "ddp"}, 0.31),
        ({"parallel": "ddp", "ranks": 2}, 0.25), ({"threads": 1}, 0.45)])
    made(tmp_path, notebook=notebook, machine="two-cores", phase="infer", cases=[
        ({}, 0.06), ({"replicas": 2}, 0.08), ({"threads": 1}, 0.08)])
    made(tmp_path, notebook=notebook, machine="one-gpu", phase="train", cases=[
        (cuda, 0.1), (cuda | {"parallel": "dp"}, 0.1), (cuda | {"parallel": "ddp"}, 0.105),
        (cuda | {"parallel": "ddp", "ranks": 2}, "2 ranks need 2 GPUs, here is 1: NCCL forbids two ranks on one")])
    made(tmp_path, notebook=notebook, machine="slow-gpu", phase="train", cases=[(cuda, 0.3), (cuda | {"parallel": "dp"}, 0.3)])
    study = tmp_path / "own" / "studies" / "scaling.json"
    study.parent.mkdir(parents=True)
    study.write_text(json.dumps({"link": {"bytes_s": 1e9}, "machine": {"id": "here"}}))
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "own"))
    text = said("26", tmp_path, monkeypatch)
    assert "over one process with one thread, parallel=ddp, ranks=2 gives 1.80x and one process with all threads 1.50x" in text
    assert "over one process with one thread, replicas=2 gives 2.00x and one process with all threads 1.33x" in text
    assert "replicas=2 takes 2.00x the memory of one process" in text
    assert "two ranks send 100 MB each; one process takes 300 ms a step" in text
    assert "with 1.00 GB/s (measured by the study on here): sending takes as long as the arithmetic at 2.5 devices" in text
    assert "with 25.00 GB/s (assumed between devices): sending takes as long as the arithmetic at 13.5 devices" in text
    assert "the batch of 32 samples ends, at one for each device" in text
    assert "was not measured here: 2 ranks need 2 GPUs" in text and "no GPU here" in text
    assert "no reference machine has two" in text and "no reference records yet" not in text

    made(tmp_path, notebook=notebook, machine="two-gpus", phase="train", cases=[
        (cuda, 0.1), (cuda | {"parallel": "dp"}, 0.07), (cuda | {"parallel": "ddp"}, 0.105),
        (cuda | {"parallel": "ddp", "ranks": 2}, 0.055)])
    text = said("26", tmp_path, monkeypatch)
    assert "no reference machine has two" not in text and "parallel=ddp and ranks=2 (a stack of parallel and ranks) is faster" in text


def test_25_tells_the_break_even_and_what_was_given_up(tmp_path, monkeypatch):
    notebook = "25_torchscript_and_compile"
    made(tmp_path, notebook=notebook, machine="two-cores", phase="train", cold={2: (46.0, 6.0)}, cases=[
        ({"script": "none"}, 0.30), ({"script": "torchscript"}, 0.31), ({"script": "compile"}, 0.27)])
    made(tmp_path, notebook=notebook, machine="slow", phase="train", cases=[
        ({"script": "none"}, 0.9), ({"script": "compile"}, "compiling took more than 60 s at this tier")])
    made(tmp_path, notebook=notebook, machine="two-cores", phase="infer", cases=[
        ({"engine": "eager"}, 0.06), ({"engine": "torchscript"}, 0.05995)])
    text = said("25", tmp_path, monkeypatch)
    assert "script=torchscript: cold start 1.00 s; break-even: never" in text
    assert "engine=torchscript: cold start 1.00 s; break-even: not shown" in text
    assert "script=compile: cold start 46.0 s, 6.00 s from a filled cache; break-even: 1,500 steps" in text
    assert "was not measured here: compiling took more than 60 s at this tier" in text


@pytest.mark.parametrize("name", ["25", "26"])
def test_without_reference_they_say_so(name, tmp_path, monkeypatch):
    assert said(name, tmp_path, monkeypatch).count("no reference records yet") == 2
