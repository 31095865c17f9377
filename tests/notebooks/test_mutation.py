"""nbval really compares: a notebook whose conclusions rest on committed records fails when one record is altered."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hpml import records
from hpml.records import Record

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "23_mixed_precision.ipynb"
COMMITTED = ROOT / "results" / "reference"
CORNERS = [("fp32", "contiguous"), ("fp32", "channels_last"), ("bf16", "contiguous"), ("bf16", "channels_last")]


def trimmed():
    """The notebook without what measures: imports, parameters, and the cells that read the reference."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    imports, *others = (cell for cell in book.cells if cell.cell_type == "code")
    book.cells = [imports, *(cell for cell in others if {"parameters", "reference"} & set(cell.metadata.get("tags", [])))]
    return book


def ours(record: Record) -> bool:
    """A speed figure of a BF16 case of this notebook."""
    return (record.notebook == NOTEBOOK.stem and record.status == "ok" and record.case["phase"] == "train" and not record.knobs["epochs"]
            and record.knobs["precision"] == "bf16" and record.case["technique"] != "noise_floor")


SHARES = {"wait": 0.05, "copy": 0.01, "forward": 0.3, "backward": 0.6, "optimizer": 0.04}


def synthetic(folder: Path) -> None:
    """Reference records of a machine that does not exist: three rounds of the 2 x 2 and of an A/A pair, and two peak rates."""
    path = folder / "test-machine" / "records.jsonl"
    for number in range(3):
        wobble = 1 + 0.004 * (number - 1)
        for order, (precision, memory_format) in enumerate(CORNERS):
            knobs = {"device": "cpu", "epochs": 0, "precision": precision, "memory_format": memory_format}
            differs = [name for name, plain in zip(("precision", "memory_format"), CORNERS[0], strict=True) if knobs[name] != plain]
            seconds = 0.4 * wobble * (0.6 if precision == "bf16" else 1) * (0.95 if memory_format == "channels_last" else 1)
            case = made("precision+memory_format", "corner", order, f"precision={precision}, memory_format={memory_format}", differs)
            records.append(path, timed(case, knobs, seconds, number))
        for order, arm in enumerate(("A", "A again")):
            knobs = {"device": "cpu", "epochs": 0, "precision": "fp32", "memory_format": "contiguous"}
            records.append(path, timed(made("noise_floor", "noise", order, arm, []), knobs, 0.4 + 0.002 * order * (number - 1), number))
    for order, (dtype, value) in enumerate((("fp32", 1e11), ("bf16", 2e11))):
        case = made("limit", "limit", order, dtype, []) | {"workload": "machine", "phase": "limit"}
        knobs = {"kind": "matmul", "dtype": dtype, "engine": "torch", "device": "cpu"}
        records.append(path, record(case=case, knobs=knobs, protocol={"round": 0}, actual={"value": value, "unit": "FLOP/s"}))


def made(technique: str, group: str, order: int, label: str, differs: list[str]) -> dict:
    return {"workload": "resnet50", "phase": "train", "tier": "cpu", "technique": technique, "key": f"{group}{order}", "group": group,
            "label": label, "order": order, "baseline": f"{group}0", "arm": "", "differs_in": differs}


def timed(case: dict, knobs: dict, seconds: float, number: int) -> Record:
    values = [seconds, 1.01 * seconds, 0.99 * seconds]
    samples = {"unit": "s", "items": 32, "values": values, "phases": {name: [seconds * share] * 3 for name, share in SHARES.items()}}
    return record(case=case, knobs=knobs, protocol={"round": number}, samples=samples, actual={"tf32": False},
                  stats=records.stats(values, items=32, center="mean"), memory={"peak_rss_mib": 900.0})


def record(**fields) -> Record:
    return Record(run_id="test", notebook=NOTEBOOK.stem, status="ok", machine={"id": "test-machine"}, **fields)


def store(book, reference: Path) -> None:
    """Run the trimmed notebook against `reference` and keep the outputs, as the course's notebooks are stored."""
    before = os.environ.get("HPML_REFERENCE")
    os.environ["HPML_REFERENCE"] = str(reference)
    try:
        NotebookClient(book, timeout=120, kernel_name="python3").execute()
    finally:
        os.environ.pop("HPML_REFERENCE") if before is None else os.environ.__setitem__("HPML_REFERENCE", before)


def nbval(path: Path, reference: Path) -> subprocess.CompletedProcess:
    sanitize = Path(__file__).parent / "sanitize.cfg"
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", str(sanitize),
               "-p", "no:cacheprovider", "--rootdir", str(path.parent), "-c", os.devnull, str(path)]
    # A notebook is run outside the checkout: the library must still be found.
    environment = os.environ | {"HPML_REFERENCE": str(reference), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[Path, Path]:
    """(trimmed notebook with stored outputs, reference folder): the committed reference, or synthetic records where there is none."""
    folder = tmp_path_factory.mktemp("mutation")
    reference, path = folder / "reference", folder / NOTEBOOK.name
    book = trimmed()
    if any(ours(record) for file in COMMITTED.glob("*/records.jsonl") for record in records.read(file)):
        shutil.copytree(COMMITTED, reference)
        for number, cell in enumerate(book.cells, 1):
            cell.execution_count = number
    else:
        synthetic(reference)
        store(book, reference)
    nbformat.write(book, path)
    return path, reference


def test_cells_remain_to_be_compared(case):
    compared = [cell for cell in trimmed().cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(compared) >= 3


def test_passes_unaltered(case):
    done = nbval(*case)
    assert done.returncode == 0, done.stdout[-3000:]


def test_fails_when_one_record_is_altered(case, tmp_path):
    path, reference = case
    altered = tmp_path / "reference"
    shutil.copytree(reference, altered)
    file, number = next((file, number) for file in sorted(altered.glob("*/records.jsonl"))
                        for number, record in enumerate(records.read(file)) if ours(record))
    lines = [dataclasses.asdict(record) for record in records.read(file)]
    lines[number]["stats"]["per_s"] *= 2
    lines[number]["samples"]["values"] = [value / 2 for value in lines[number]["samples"]["values"]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = nbval(path, altered)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "Cell execution caused an exception" not in done.stdout  # it fails by its output, not by an error
