"""`hpml check`: the example of the course is accepted, and each thing that a reader's file can do wrong is one line that names it."""

from pathlib import Path

import pytest

from hpml import check, workloads

EXAMPLE = Path(__file__).resolve().parents[2] / "notebooks" / "examples" / "my_model.py"
ODD = "class Odd(nn.Module):\n    def forward(self, x):\n        {}\n\n\ndef model("


def odd(does: str) -> dict[str, str]:
    """A layer of the reader's own that does this."""
    return {"def model(": ODD.format(does), "nn.Flatten()": "nn.Flatten(), Odd()"}


def test_the_courses_example_is_accepted_and_short():
    assert [str(one) for one in check.findings(str(EXAMPLE)) if not one.ok] == []
    assert len(EXAMPLE.read_text().splitlines()) < 60


FAULTS = {
    "no rates": ({'LEARNING_RATE = {"sgd": 0.02, "adam": 0.003}': ""}, "names", "LEARNING_RATE is missing"),
    "no tuple": ({'("images",)': '("images")'}, "names", "INPUT_NAMES is 'images': a tuple of names is wanted"),
    "no function": ({"def split(batch):\n    return (batch[0],), batch[1]": "split = 3"}, "names", "split is no function"),
    "margin": ({"= 0.02, \"two": "= 2, \"two"}, "values", "MARGIN is 2"),
    "one rate": ({'"sgd": 0.02, ': ""}, "values", "no rate above 0 for 'sgd'"),
    "no parity": ({'"fp32": {"atol"': '"fp31": {"atol"'}, "values", "PARITY has no 'fp32'"),
    "unknown knob": ({'"batch": 32': '"batchsize": 32'}, "sizes", "SIZES['smoke']['train']: 'batchsize' is no knob"),
    "idle knob": ({'"batch": 32': '"image": 32'}, "sizes", "the knob image means nothing here"),
    "value": ({'"batch": 64': '"batch": 0'}, "sizes", "batch=0: must be at least 1"),
    "no tier": ({'("full"': '("fill"'}, "sizes", "SIZES has no tier 'full'"),
    "no part": ({'"data": size': '"date": size'}, "sizes", "SIZES['smoke']['data'] is missing"),
    "no rounds": ({', "rounds": 1}': "}"}, "sizes", "needs rounds of at least 1"),
    "small": ({'"train_samples": 256': '"train_samples": 20'}, "sizes", "train_samples=20 do not fill one batch of 32"),
    "nothing": ({"return subset(": "subset("}, "data", "data() returns nothing"),
    "no set": ({"return subset(": "return list("}, "data", "TypeError"),
    "leak": ({"(image_set.test_images, image_set.test_labels)": "(image_set.train_images[:80], image_set.train_labels[:80])"},
             "samples", "80 of 80 test samples are training samples too: the split leaks"),
    "chance": ({"np.float32) / 128 - 1)": "np.float32) + np.random.rand(len(images), 32, 32, 1).astype(np.float32))"},
               "samples", "test sample 0 differs between two calls"),
    "unseeded": ({", generator=torch.Generator().manual_seed(0)": ""}, "samples", "example_inputs() differs between two calls"),
    "shape": ({"(batch, 1, 32": "(batch, 3, 32"}, "samples", "a sample is float32 [1, 32, 32], example_inputs gives float32 [3, 32, 32]"),
    "inputs": ({"(batch, 1, 32": "(batch, 3, 32"}, "model", "the model does not take example_inputs: RuntimeError"),
    "split": ({"return (batch[0],), batch[1]": "return batch"}, "samples", "split() must give"),
    "index": ({"(batch[0],), batch[1]": "(batch[0],), batch[2]"}, "samples", "IndexError: list index out of range (mine.py, line "),
    "no module": ({"return nn.Sequential(": "return list("}, "model", "TypeError"),
    "dictionary": (odd("return {'out': x}") | {", nn.Linear(32 * 16, classes)": ""}, "model", "the model gives a dict: one tensor"),
    "noise": (odd("return x + torch.rand_like(x)"), "model", "two answers to one input"),
    "branch": (odd("return x if x.sum() > 0 else -x"), "model", "cannot be counted on torch's meta device"),
    "mean": ({'"sum")': '"mean")'}, "loss", "the loss is a mean"),
    "vector": ({'"sum")': '"none")'}, "loss", "one number"),
    "detached": ({"outputs.float()": "outputs.detach()"}, "loss", "the loss has no gradient"),
    "not finite": ({'"sum")': '"sum") / 0 * 0'}, "loss", "the loss is nan: not finite"),
    "unused": ({"nn.MaxPool2d(2)": "Odd()"} | {"def model(": ODD.format("return nn.functional.max_pool2d(x, 2)").replace(
        "    def f", "    def __init__(self):\n        super().__init__()\n        self.idle = nn.Linear(2, 2)\n\n    def f")},
               "loss", "no finite gradient reaches 2 parameters (4.idle.weight)"),
    "no metric": ({'"metric": METRIC, ': ""}, "metric", "evaluate() gives no 'metric'"),
    "no value": ({'"chance": 0.1': '"chance": None'}, "metric", "chance=None: a finite number is wanted"),
    "raises": ({"share = ": "share = 1 / 0, "}, "metric", "ZeroDivisionError: division by zero (mine.py, line 5"),
    "no python": ({"def split(batch):": "def split(batch)"}, "file", "SyntaxError: expected ':' (mine.py, line 4"),
    "exit": ({"import torch\n": "import torch\nraise SystemExit\n"}, "file", "SystemExit (mine.py, line "),
}


def changed(folder: Path, edits: dict[str, str]) -> str:
    text = EXAMPLE.read_text()
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_it(tmp_path, fault):
    edits, step, said = FAULTS[fault]
    found = list(check.findings(changed(tmp_path, edits), export=False))
    assert any(one.step == step and one.ok is False and said in one.text for one in found), "\n".join(map(str, found))
    assert all("\n" not in str(one) and "Traceback" not in str(one) for one in found)


def test_what_cannot_be_asked_is_said_and_not_called_right(tmp_path):
    found = {one.step: one.ok for one in check.findings(changed(tmp_path, {"return subset(": "subset("}))}
    assert found["sizes"] and found["data"] is False
    assert [found[step] for step in ("samples", "model", "loss", "metric", "graph")] == [None] * 5


def test_every_missing_name_has_its_line(tmp_path):
    (tmp_path / "empty.py").write_text("")
    said = [one.text for one in check.findings(str(tmp_path / "empty.py")) if one.ok is False]
    assert said == [f"{name} is missing" for name in workloads.CONTRACT]


def test_a_graph_that_computes_something_else_is_found(tmp_path):
    edits = odd("return x + 1 if torch.compiler.is_exporting() else x")
    graph = list(check.findings(changed(tmp_path, edits)))[-1]
    assert graph.step == "graph" and graph.ok is False and "another function" in graph.text
