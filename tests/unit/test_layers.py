"""The layers of CONTRIBUTING.md: a module imports from its own layer or below, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "hpml"
LAYERS = [
    {"env", "knobs", "records", "roofline", "answers", "compare", "agreement", "sittings", "preload", "forkserver", "reader", "turns",
     "studies", "scoring"},
    {"arithmetic", "data", "measure", "ladder", "limits", "queueing", "scaling", "plot", "plot_look", "plot_machine", "plot_runs",
     "plot_serving", "plot_soundness", "plot_stack", "plot_step", "plot_summary", "plot_tradeoff", "plot_training", "plot_versions",
     "tables", "tables_int8", "tables_serving", "tables_training", "tables_runs", "wording", "published", "nginx", "link"},
    {"workloads", "engines", "export", "einsum", "pretrained"},
    {"train", "contrast", "work", "distributed", "fit", "infer", "stored", "build", "loading", "pack", "profiling", "quantize",
     "sensitivity", "transfer", "checkpoint", "loadgen", "loadtargets", "loadfacts"},
    {"launch", "cases", "rounds", "study", "results", "check", "serve", "recommend", "configfile", "loadsite", "loadtest", "shares",
     "streams", "apps"},
    {"cli", "cli_clip", "cli_data", "cli_serve", "cli_train", "runner", "lab", "notebooks", "reference", "report", "report_notebook",
     "report_page", "report_readme", "report_charts", "report_records", "report_results", "report_search", "report_summary"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imports() -> dict[str, set[str]]:
    """Modules of hpml by the modules that they import, also inside functions; a subpackage counts as one."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        used = found.setdefault(own, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "hpml":
                used |= {alias.name for alias in node.names if alias.name in LAYER}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpml."):
                used.add(node.module.split(".")[1])
        used.discard(own)
    return found


def test_every_module_has_a_layer():
    assert imports().keys() == LAYER.keys()


def test_no_arrow_points_upwards():
    upward = [f"{own} -> {other}" for own, others in imports().items() for other in others if LAYER[other] > LAYER[own]]
    assert not upward


def test_no_circle():
    list(TopologicalSorter(imports()).static_order())
