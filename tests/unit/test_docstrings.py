"""Every module, public class and public function says what it is."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hpml"
MODULES = sorted(PACKAGE.rglob("*.py"))
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def public(path: Path):
    """(name, node) of what others may use: functions and classes of the module, and methods of those classes that no base describes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield node.name, node
            inside = node.body if isinstance(node, ast.ClassDef) and (not node.bases or ast.unparse(node.bases[0]) == "Protocol") else []
            yield from ((f"{node.name}.{one.name}", one) for one in inside
                        if isinstance(one, DEFINITIONS) and not one.name.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_everything_public_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "the module says nothing of itself"
    described = {"Engine"} if path.parent.name == "engines" else set()  # the package says for all engines what each method does
    if described:
        contract = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text()))
        described |= {f"Engine.{name}" for name in re.findall(r"[a-z_]+", contract)}
    silent = [name for name, node in public(path) if not ast.get_docstring(node) and name not in described]
    assert not silent, f"without a docstring: {', '.join(silent)}"


def test_the_check_sees_what_is_missing():
    names = {name for name, _ in public(PACKAGE / "notebooks.py")}
    assert {"Notebook", "Notebook.name", "course"} <= names and not any("_described" in name for name in names)
