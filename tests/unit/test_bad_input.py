"""What every wrapper says to a text longer than the export, an image of another size, an empty batch, another type: one clear line."""

import numpy as np
import pytest

from hpml import engines, workloads
from hpml.env import HpmlError, missing
from hpml.export import export_onnx

torch = pytest.importorskip("torch")
SIX = ["clip", "deeplabv3", "resnet50", "resnet152", "shuttle", "xlnet"]


class Pictures(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))


class Texts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 2)

    def forward(self, ids, mask):
        return self.head((self.words(ids) * mask[..., None]).mean(1))


KINDS = {"pictures": (Pictures, lambda: (torch.zeros(2, 3, 16, 16),), ["images"]),
         "texts": (Texts, lambda: (torch.zeros(2, 12, dtype=torch.int64), torch.ones(2, 12)), ["input_ids", "attention_mask"])}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def loaded(request, tmp_path_factory):
    """Both kinds of graph in one engine, exported with a batch that is free."""
    for package in ("onnx", "onnxscript", request.param):
        if reason := missing(package):
            pytest.skip(reason)
    made = {}
    for kind, (net, example, names) in KINDS.items():
        path = tmp_path_factory.mktemp("bad") / f"{kind}.onnx"
        export_onnx(net(), example(), path, input_names=names, output_names=["y"])
        made[kind] = engines.get(request.param)(threads=1)
        made[kind].load(path)
    return made


def ids(batch, length, dtype="int64"):
    return np.ones((batch, length), dtype)


def images(batch, side, dtype="float32"):
    return np.ones((batch, 3, side, side), dtype)


@pytest.mark.parametrize(("kind", "inputs", "said"), [
    ("texts", (ids(1, 20), ids(1, 20, "float32")), r"input 'input_ids' has shape \[.*, 12\], an array of \[1, 20\] was given"),
    ("texts", (ids(1, 12, "int32"), ids(1, 12, "float32")), "input 'input_ids' is int64, an array of int32 was given"),
    ("texts", (ids(0, 12), ids(0, 12, "float32")), "texts.onnx: the batch is empty"),
    ("texts", (ids(1, 12), ids(2, 12, "float32")), "the inputs hold 1, 2 samples: they must hold equally many"),
    ("texts", (ids(1, 12),), r"texts.onnx takes 2 inputs \(input_ids, attention_mask\), 1 were given"),
    ("pictures", (images(1, 20),), r"input 'images' has shape \[.*, 3, 16, 16\], an array of \[1, 3, 20, 20\] was given"),
    ("pictures", (images(1, 16, "float64"),), "input 'images' is float32, an array of float64 was given"),
    ("pictures", (images(0, 16),), "pictures.onnx: the batch is empty"),
    ("pictures", (np.ones((3, 16, 16), "float32"),), r"an array of \[3, 16, 16\] was given"),
])
def test_an_exported_graph_refuses_in_one_line(loaded, kind, inputs, said):
    for give in (loaded[kind].run, lambda inputs: loaded[kind].bind([inputs])):
        with pytest.raises(HpmlError, match=said) as caught:
            give(inputs)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def wrapper():
    """The eager engine with a workload's smallest model, and inputs that fit it."""
    made = {}

    def get(name, part="whole"):
        if (name, part) not in made:
            module = workloads.get(name)
            knobs = {**module.SIZES["smoke"]["infer"], "variant": "small", "part": part}
            view = workloads.part(module, knobs)
            engine = engines.get("eager")(threads=1)
            whole = module.model(knobs, 3).eval()
            example = view.example_inputs(knobs, 1)
            engine.load(view.of(whole) if part != "whole" else whole, example)
            made[name, part] = engine, tuple(x.numpy() for x in example)
        return made[name, part]

    return get


@pytest.mark.parametrize(("name", "part"), [*((name, "whole") for name in SIX),
                                            ("clip", "text"), ("shuttle", "find"), ("shuttle", "refine")])
def test_every_wrapper_refuses_an_empty_batch_and_another_type(wrapper, name, part):
    engine, inputs = wrapper(name, part)
    with pytest.raises(HpmlError, match="the batch is empty: give at least one sample"):
        engine.run(tuple(x[:0] for x in inputs))
    wrong = "float32" if inputs[0].dtype == np.int64 else "int64"
    with pytest.raises(HpmlError) as caught:
        engine.run((inputs[0].astype(wrong), *inputs[1:]))
    assert "\n" not in str(caught.value) and "refused" in str(caught.value) and wrong in str(caught.value)


@pytest.mark.parametrize(("part", "change"), [
    ("whole", lambda x: np.concatenate([x, x], axis=3)),  # a picture twice as wide
    ("text", lambda x: np.concatenate([x] * 4, axis=1)),  # a text of 96 tokens, where there are 77 positions
])
def test_clips_towers_refuse_what_their_positions_do_not_reach(wrapper, part, change):
    engine, inputs = wrapper("clip", part)
    with pytest.raises(HpmlError, match="eager: .* refused") as caught:
        engine.run((change(inputs[0]),))
    assert "\n" not in str(caught.value)
