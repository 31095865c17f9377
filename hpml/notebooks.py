"""The course's files: which notebooks there are, what they declare, and how they are stored (run at the smoke tier, normalised)."""

import ast
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hpml import env
from hpml.env import HpmlError

PARAMETERS = ("tier", "workloads", "device", "data", "run_id", "guess")  # every notebook has these; sweep lists come on top
KEPT_METADATA = ("hpml", "kernelspec", "language_info")
UNSEEN = 16  # change of a colour, of 255, that nobody sees; no pixel of a chart may change more, or a thin red line turns brown
QUIET_KERNEL = ["--IPKernelApp.log_level=ERROR"]  # it warns on every start that loopback is not encrypted
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Notebook:
    """One notebook of the course. `minutes` by tier is what it needs for one workload on two cores, for the runner's shares;
    `workload` is the one that it is about, where it is about one."""

    path: Path
    title: str
    question: str
    parameters: tuple[str, ...]
    minutes: dict[str, float]
    workload: str | None

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem

    @property
    def number(self) -> str:
        """The two digits that the file name begins with."""
        return self.path.stem[:2]


def folder() -> Path:
    """Where the notebooks lie."""
    return env.root() / "notebooks"


def course() -> list[Notebook]:
    """All notebooks in reading order. Raises HpmlError for one that cannot be read."""
    return [_described(path) for path in sorted(folder().glob("[0-9][0-9]_*.ipynb"))]


def chosen(only: list[str] | None) -> list[Notebook]:
    """The notebooks with these numbers, or all. Raises HpmlError for a number that does not exist, and where there are none."""
    everything = course()
    if not everything:
        raise HpmlError(f"no notebooks in {folder()}: start this in a checkout of the course")
    if not only:
        return everything
    unknown = [number for number in only if number not in {n.number for n in everything}]
    if unknown:
        raise HpmlError(f"no notebook {', '.join(unknown)}: choose from {', '.join(n.number for n in everything)}")
    return [n for n in everything if n.number in only]


def _described(path: Path) -> Notebook:
    book = _open(path)
    text = next((cell.source for cell in book.cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    question = re.search(r"\*\*(.+?)\*\*", text, re.DOTALL)
    facts = book.metadata.get("hpml", {})
    return Notebook(path, title[1].strip() if title else path.stem, " ".join(question[1].split()) if question else "",
                    declared(book), dict(facts.get("minutes", {})), facts.get("workload"))


def _open(path: Path):
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, OSError) as error:
        raise HpmlError(f"{path}: not a notebook ({str(error).splitlines()[0]})") from None


def declared(book) -> tuple[str, ...]:
    """Names assigned in the cell tagged `parameters`."""
    cells = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    names: list[str] = []
    for cell in cells:
        for node in ast.parse(cell.source).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return tuple(names)


def normalised(book):
    """A copy without what changes from run to run: papermill's and editors' metadata, stderr, execution times."""
    import copy

    import nbformat

    clean = copy.deepcopy(book)
    clean.metadata = nbformat.NotebookNode({key: value for key, value in clean.metadata.items() if key in KEPT_METADATA})
    clean.metadata["kernelspec"] = nbformat.from_dict(KERNELSPEC)
    clean.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    clean.nbformat, clean.nbformat_minor = 4, 5
    for number, cell in enumerate(clean.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell["id"] = f"cell-{number:02d}"
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    return clean


def _plain(output):
    output.pop("transient", None)
    if "metadata" in output:  # a picture keeps its alternative text
        kept = {kind: {"alt": facts["alt"]} for kind, facts in output["metadata"].items() if isinstance(facts, dict) and "alt" in facts}
        output["metadata"] = type(output["metadata"])(kept)
    return output


def store(paths: list[Path], say=print) -> None:
    """Run notebooks at their stored parameters (the smoke tier) and keep the outputs in the sources, normalised.

    Results go to a temporary folder and the embedded data is used, so that what is stored depends on the checkout alone.
    Raises HpmlError with notebook and cell when one fails; its source is then left as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    for path in paths:
        book = _open(path)
        with tempfile.TemporaryDirectory() as scratch:
            settings = {"HPML_RESULTS": scratch, "HPML_DATA": scratch, "HPML_RUN_ID": "stored"}
            saved = {name: os.environ.get(name) for name in settings}
            os.environ.update(settings)
            try:
                NotebookClient(book, timeout=600, kernel_name="python3", extra_arguments=QUIET_KERNEL,
                               resources={"metadata": {"path": str(path.parent)}}).execute()
            except (CellExecutionError, DeadKernelError) as error:
                raise HpmlError(f"{path.name}: {str(error).strip().splitlines()[-1]}") from None
            finally:
                for name, value in saved.items():
                    os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        for output in (output for cell in book.cells for output in cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _fewer_colours(output["data"]["image/png"])
        text = nbformat.writes(normalised(book)) + "\n"
        partial = path.with_suffix(".part")
        partial.write_text(text)
        partial.replace(path)
        say(f"stored {path.name} ({len(text) // 1024} KiB)")


def _fewer_colours(encoded: str) -> str:
    """A PNG with a palette, a third of the size: of 32 colours where that looks the same (charts), else of 128 (photographs)."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    whole = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    small = whole.quantize(32, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    change = np.abs(np.asarray(small.convert("RGB"), np.int16) - np.asarray(whole, np.int16)).max()
    target = io.BytesIO()
    (small if change <= UNSEEN else whole.quantize(128)).save(target, format="PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


def not_normalised() -> list[str]:
    """Names of notebooks whose stored form is not the normalised one."""
    import nbformat

    return [n.path.name for n in course() if n.path.read_text() != nbformat.writes(normalised(_open(n.path))) + "\n"]
