"""Every notebook has the course's form: title and question, parameters, stored outputs, size, prose, links, answers, normal form."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from hpml import notebooks

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
# Folders of a machine. /dev/shm and /proc are the same on all of them.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|tmp|usr|opt|mnt|media|srv|var|Users|data|content|workspace)/")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def book(path: Path):
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list:
    return [cell for cell in book(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> list[str]:
    return [cell.source for cell in book(path).cells if cell.cell_type == "markdown"]


def texts(outputs) -> list[str]:
    """What the outputs say, without pictures."""
    found = [output.get("text", "") for output in outputs]
    return found + [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]


def checked(cell) -> bool:
    return "nbval-check-output" in cell.metadata.get("tags", [])


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown file or notebook."""
    source = path.read_text() if path.suffix == ".md" else "\n".join(prose(path))
    headings = re.findall(r"^#+ (.+?)\s*$", source, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_notebooks():
    assert PATHS


@each
def test_it_opens_with_title_and_question(path):
    described = next(n for n in notebooks.course() if n.path == path)
    first = book(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(rf"# {path.stem[:2]} · \S", first.source)
    assert described.question.endswith("?")


def test_each_leads_to_its_neighbours():
    course = notebooks.course()
    for number, one in enumerate(course):
        line = re.search(r"Previous: (.*) · next: (.*)", book(one.path).cells[0].source)
        assert line, one.name
        before, after = (LINK.search(side) for side in line.groups())
        assert before[1] == (course[number - 1].path.name if number else "../README.md"), one.name
        assert (after and after[1]) == (course[number + 1].path.name if number + 1 < len(course) else None), one.name


@each
def test_parameters_are_the_courses_and_stored_at_the_smoke_tier(path):
    cells = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    assert set(notebooks.PARAMETERS) <= set(notebooks.declared(book(path)))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cells[0].source).body}
    assert values["tier"] == "smoke"
    assert values["workloads"] == [book(path).metadata["hpml"].get("workload", "resnet50")]


@each
def test_kernel_is_python3(path):
    assert book(path).metadata.kernelspec.name == "python3"


@each
def test_declares_its_minutes_by_tier(path):
    minutes = book(path).metadata.get("hpml", {}).get("minutes", {})
    assert {"smoke", "cpu", "gpu"} <= set(minutes)
    assert all(value > 0 for value in minutes.values())


@each
def test_it_was_run_in_order_without_error_or_warning(path):
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@each
def test_at_least_three_cells_are_compared(path):
    full = [cell for cell in code(path) if checked(cell) and cell.execution_count and "".join(texts(cell.outputs)).strip()]
    assert len(full) >= 3


@each
def test_pictures_are_not_compared_and_have_a_text(path):
    for cell in code(path):
        pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert not (checked(cell) and pictures)
        assert "".join(texts(cell.outputs)).count("Alt text") >= pictures


@each
def test_cells_are_short(path):
    lines = [len(cell.source.splitlines()) for cell in code(path)]
    assert 8 <= len(lines) <= 18
    assert statistics.median(lines) <= 8
    assert max(lines) <= 25


@each
def test_prose_is_enough_and_not_too_much(path):
    assert 500 <= sum(len(text.split()) for text in prose(path)) <= 1500


@each
def test_prose_stands_before_code(path):
    row = 0
    for cell in book(path).cells:
        row = row + 1 if cell.cell_type == "code" else 0
        assert row <= 3, f"code cell {cell.get('execution_count')} has no prose before it"


@each
def test_it_is_small(path):
    limit_kib = 800 if "10" <= path.stem[:2] <= "15" else 300  # pictures
    assert path.stat().st_size <= limit_kib * 1024


@each
def test_no_shell_no_magic_and_no_path_of_one_machine(path):
    for cell in book(path).cells:
        assert cell.cell_type != "code" or not re.search(r"^\s*[!%]", cell.source, re.MULTILINE)
        for text in [cell.source, *texts(cell.get("outputs", []))]:
            assert not ABSOLUTE.search(text), ABSOLUTE.search(text)
            assert str(ROOT) not in text


@each
def test_links_lead_somewhere(path):
    for link in LINK.findall("\n".join(prose(path))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each
def test_exercises_have_answers(path):
    answers = FOLDER / "answers" / f"{path.stem[:2]}.md"
    assert answers.is_file()
    assert f"answers/{answers.name}" in "\n".join(prose(path))


def test_answers_belong_to_notebooks():
    assert {path.stem for path in (FOLDER / "answers").glob("*.md")} <= {path.stem[:2] for path in PATHS}


def test_stored_form_is_the_normal_form():
    assert notebooks.not_normalised() == []


def test_readme_lists_exactly_the_notebooks_on_disk():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"\b\d\d_[a-z0-9_]+(?=\.ipynb)", readme)) == {path.stem for path in PATHS}


@pytest.mark.parametrize("tier", ["smoke", "cpu", "gpu"])
def test_readme_says_how_long_a_tier_takes(tier):
    said = re.search(rf"^\| `{tier}` \|.*?about (\d+) minutes", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert float(said[1]) == pytest.approx(sum(book.minutes[tier] for book in notebooks.course()), rel=0.1)


def test_the_syllabus_names_every_notebook_outside_the_workloads_own():
    text = (ROOT / "COURSE.md").read_text()
    links = re.findall(r"\]\((notebooks/[^)]+)\)", text)
    assert all((ROOT / link).is_file() for link in links)
    own = {path.name for path in PATHS if "11" <= path.stem[:2] <= "15"}
    assert {path.name for path in PATHS} - own <= {Path(link).name for link in links}
