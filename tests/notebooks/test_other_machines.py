"""Answers read true on a machine that is not this one: cells that read the reference, run on made-up records of a machine with a GPU."""

import nbformat
import pytest
from nbclient import NotebookClient
from test_mutation import ROOT, made

from hpml import records
from hpml.records import Record

GPU = {"id": "test-gpu", "gpu": "Test GPU", "gpus": 1, "cores": 8}
CPU = {"id": "test-cpu", "gpu": None, "gpus": 0, "cores": 2}


def cells(number: str):
    """A notebook without what measures."""
    path = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    book = nbformat.read(path, as_version=4)
    first, *others = (cell for cell in book.cells if cell.cell_type == "code")
    book.cells = [first, *(cell for cell in others if {"parameters", "reference"} & set(cell.metadata.get("tags", [])))]
    return path.stem, book


def record(notebook: str, machine: dict, case: dict, knobs: dict, seconds: float | None, number: int, **fields) -> Record:
    shared = {"run_id": "test", "notebook": notebook, "machine": machine, "case": case, "knobs": {"epochs": 0, "batch": 32, **knobs},
              "protocol": {"round": number}}
    if seconds is None:
        return Record(**shared, status="unsupported", reason="pin_memory: no GPU in this case", **fields)
    phases = {"wait": 0.02, "copy": 0.08, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}
    values = [seconds, 1.01 * seconds, 0.99 * seconds]
    samples = {"unit": "s", "items": 32, "values": values, "phases": {name: [seconds * share] * 3 for name, share in phases.items()}}
    return Record(**shared, status="ok", samples=samples, stats=records.stats(values, items=32, center="median"),
                  actual={"device": knobs["device"]}, **fields)


def write(folder, notebook: str, machine: dict, technique: str, corners: list[dict], seconds: list[float | None], memory=lambda i: {}):
    """Six rounds of a comparison and of a case against itself."""
    path, device = folder / machine["id"] / "records.jsonl", "cuda" if machine["gpu"] else "cpu"
    for number in range(6):
        wobble = 1 + 0.002 * (number % 3 - 1)
        for order, (knobs, took) in enumerate(zip(corners, seconds, strict=True)):
            differs = [name for name in knobs if knobs[name] != corners[0][name]]
            label = ", ".join(f"{name}={value}" for name, value in knobs.items())
            case = made(technique, f"{machine['id']}-{technique}", order, label, differs)
            records.append(path, record(notebook, machine, case, {"device": device, **knobs}, took and took * wobble, number,
                                        memory=memory(order)))
        for order, arm in enumerate(("A", "A again")):
            noise = made("noise_floor", f"{machine['id']}-noise", order, arm, [])
            records.append(path, record(notebook, machine, noise, {"device": device, **corners[0]}, 0.4 * wobble**order, number))


def said(book, reference, monkeypatch) -> str:
    monkeypatch.setenv("HPML_REFERENCE", str(reference))
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs)


PINNED = [{"pin_memory": pin, "non_blocking": ahead} for pin in (False, True) for ahead in (False, True)]


def test_pinned_memory_on_a_machine_with_a_gpu_and_on_one_without(tmp_path, monkeypatch):
    name, book = cells("22")
    write(tmp_path, name, GPU, "pin_memory+non_blocking", PINNED, [0.40, 0.40, 0.39, 0.37])
    write(tmp_path, name, CPU, "pin_memory+non_blocking", PINNED, [0.90, None, None, None])
    text = said(book, tmp_path, monkeypatch)
    assert "pin_memory=True and non_blocking=True (a stack of pin_memory and non_blocking) is faster" in text
    assert "the copy is 8.0% of the step, so at most 1.087x; the best case measured gives 1.08x" in text
    assert "test-cpu: not measured (pin_memory: no GPU in this case)" in text
    assert "reference machines with a GPU among these records: 1" in text


@pytest.mark.parametrize(("machine", "field"), [(GPU, "device_peak_mib"), (CPU, "steps_mib")])
def test_accumulation_shows_the_memory_that_the_machine_has(tmp_path, monkeypatch, machine, field):
    name, book = cells("24")
    write(tmp_path, name, machine, "accum_steps", [{"accum_steps": k} for k in (1, 2, 4)], [0.40, 0.42, 0.50],
          memory=lambda order: {field: [1000.0, 700.0, 550.0][order]})
    text = said(book, tmp_path, monkeypatch)
    assert f"ResNet-50 on {machine['id']}, 4 micro-batches: 550 MiB, -45 %" in text
    assert "4 micro-batches: throughput -20 %" in text and "slower" in text


def test_where_time_goes_names_the_largest_phase_of_each_machine(tmp_path, monkeypatch):
    name, book = cells("20")
    for machine in (GPU, CPU):
        case = {**made("as it is", machine["id"], 0, "storage=array", []), "phase": "profile"}
        device = "cuda" if machine["gpu"] else "cpu"
        found = record(name, machine, case, {"device": device}, 0.5, 0, limit={"percent": 21.55, "bound": "compute"})
        records.append(tmp_path / machine["id"] / "records.jsonl", found)
    waiting = record(name, GPU, {**case, "label": "storage=jpeg", "key": "jpeg"}, {"device": "cuda"}, 0.5, 0)
    seconds = {"wait": 0.35, "copy": 0.04, "forward": 0.03, "backward": 0.04, "optimizer": 0.04}
    waiting.samples["phases"] = {phase: [value] * 3 for phase, value in seconds.items()}
    records.append(tmp_path / GPU["id"] / "records.jsonl", waiting)
    text = said(book, tmp_path, monkeypatch)
    assert "profiles: 3; reference machines: 2" in text
    assert ("ResNet-50 on test-gpu, storage=array, batch 32: 500 ms a step; wait 2 %, copy 8 %, forward 30 %, backward 50 %, "
            "optimizer 10 %; compute-bound; 21.6 % of the compute limit\n") in text
    assert "wait 70 %, copy 8 %, forward 6 %, backward 8 %, optimizer 8 %; loader-bound\n" in text
    assert "test-gpu, storage=array, batch 32: backward is 50 % of a step. Twice as fast, it gives 1.33x; at no cost at all, 2.00x." in text
    assert "storage=jpeg, batch 32: wait is 70 % of a step" in text and "See 21 (loader workers)" in text
    assert "On a GPU: not measured here" not in text


def test_where_time_goes_says_that_no_gpu_was_measured(tmp_path, monkeypatch):
    name, book = cells("20")
    case = {**made("as it is", "one", 0, "device=cpu", []), "phase": "profile"}
    records.append(tmp_path / CPU["id"] / "records.jsonl", record(name, CPU, case, {"device": "cpu"}, 0.5, 0))
    absent = record(name, CPU, {**case, "label": "device=cuda", "key": "cuda"}, {"device": "cuda"}, None, 0)
    records.append(tmp_path / CPU["id"] / "records.jsonl", absent)
    text = said(book, tmp_path, monkeypatch)
    assert "profiles: 1; reference machines: 1" in text and "On a GPU: not measured here, no reference machine has one yet." in text

