"""The contract of a workload, asked step by step: what `hpml check` says of a reader's file, and what the tests ask of our own."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

from hpml import cases, reader, workloads
from hpml.env import HpmlError, Unavailable
from hpml.knobs import KNOBS, validate

PARTS = {"train": "train", "fit": "train", "infer": "infer", "data": "data", "quality": "infer"}  # of a tier's sizes, with their phases
PROTOCOL = {"warmup": 1, "min_iters": 1, "min_seconds": 0, "rounds": 1}  # and the least of each
TEXTS, TABLES, NAMES = ("NAME", "TITLE", "METRIC", "MARGIN_REASON"), ("SIZES", "LEARNING_RATE", "PARITY"), ("INPUT_NAMES", "OUTPUT_NAMES")
DATA = ("name", "title", "origin", "note", "checksum", "classes", "train_labels", "test_labels")  # what records and loops ask a data set
SCORES = ("metric", "value", "n", "chance", "predictions", "labels", "confidence")
LEAK_SHARE = 0.05  # real sets hold a few doubles; a split that leaks shares far more


class Wrong(HpmlError):
    """What a step found, one line each."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer: `ok` is None for what could not be asked."""

    step: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{({True: 'ok', False: 'wrong', None: 'not checked'})[self.ok]:<12}{self.step:<9}{self.text}"


def findings(name: str, *, data: str = "auto", export: bool = True) -> Iterator[Finding]:
    """Ask the workload `name` (one of ours, or a file) for everything that the contract says, at the smoke tier and on the CPU.

    `data`: the knob's value. `export=False` leaves the graph out, which takes most of the time. Whatever the file does wrong is a finding
    of one line, with its line number. Raises HpmlError only for a name that is neither a workload nor a file.
    """
    path = workloads.file(name) if name.endswith(".py") else None
    try:
        module = workloads.load(name)
    except HpmlError as error:
        if path is None:
            raise
        yield Finding("file", False, str(error).removeprefix(f"workload file {path}: "))
        return
    seen = SimpleNamespace(name=name, module=module, data=data, knobs=None, image_set=None, batch=None, net=None)
    steps = [("names", _names, "module"), ("values", _values, "complete"), ("sizes", _sizes, "complete"), ("data", _data, "knobs"),
             ("samples", _samples, "image_set"), ("model", _model, "image_set"), ("loss", _loss, "net"),
             ("metric", _metric, "net"), ("graph", _graph, "net")]
    for step, ask, needed in steps if export else steps[:-1]:
        if getattr(seen, needed, None) is None:
            yield Finding(step, None, "what it needs is wrong above")
            continue
        try:
            yield Finding(step, True, ask(seen))
        except Unavailable as reason:
            yield Finding(step, None, str(reason))
        except Wrong as wrong:
            yield from (Finding(step, False, line) for line in wrong.args)
        except (Exception, SystemExit) as error:
            yield Finding(step, False, reader.blame(error, module.__file__))


def _unless(wrong: list[str]) -> None:
    if wrong:
        raise Wrong(*wrong)


@contextlib.contextmanager
def _doing(what: str, module: ModuleType):
    """An exception in the body says what was tried."""
    try:
        yield
    except (Wrong, Unavailable):
        raise
    except Exception as error:
        raise Wrong(f"{what}: {reader.blame(error, module.__file__)}") from error


def _names(seen) -> str:
    """Every name of the contract, each of its kind."""
    module = seen.module
    _unless([f"{name} is missing" for name in workloads.missing(module)])
    wrong = [f"{name} is {getattr(module, name)!r}: a text is wanted" for name in TEXTS
             if not (isinstance(getattr(module, name), str) and getattr(module, name))]
    wrong += [f"{name} is no dictionary" for name in TABLES if not isinstance(getattr(module, name), dict)]
    wrong += [f'{name} is {getattr(module, name)!r}: a tuple of names is wanted, as ("images",)' for name in NAMES
              if not isinstance(getattr(module, name), tuple | list) or not getattr(module, name)]
    wrong += [f"{name} is no function" for name in workloads.CONTRACT if name.islower() and not callable(getattr(module, name))]
    _unless(wrong)
    seen.complete = True
    return f"{module.TITLE}: all {len(workloads.CONTRACT)} names of the contract"


def _values(seen) -> str:
    """Margin, learning rates, tolerances, knobs that mean nothing."""
    module, wrong = seen.module, []
    if not isinstance(module.MARGIN, float) or not 0 < module.MARGIN < 1:
        wrong.append(f"MARGIN is {module.MARGIN!r}: the loss of quality that counts as none, between 0 and 1, as 0.01")
    wrong += [f"LEARNING_RATE has no rate above 0 for {name!r}" for name in KNOBS["optimizer"].choices
              if not module.LEARNING_RATE.get(name, 0) > 0]
    if "fp32" not in module.PARITY:
        wrong.append("PARITY has no 'fp32': nobody could tell a wrong graph")
    for precision, tolerance in module.PARITY.items():
        absent = [key for key in ("atol", "rtol", "top1_agreement") if key not in tolerance
                  and not (key == "atol" and "range_share" in tolerance)]
        wrong += [f"PARITY[{precision!r}] has no {key!r}" for key in absent]
    wrong += [f"WITHOUT names {name!r}, which is no knob" for name in workloads.without(module) if name not in KNOBS]
    _unless(wrong)
    return f"margin {100 * module.MARGIN:g} points of {module.METRIC}; parity for {', '.join(module.PARITY)}"


def _sizes(seen) -> str:
    """Each tier's sizes: known knobs, allowed values, enough samples for a batch."""
    sizes, wrong = seen.module.SIZES, []
    for tier in cases.TIERS:
        if tier not in sizes:
            wrong.append(f"SIZES has no tier {tier!r}")
            continue
        for part, phase in PARTS.items():
            where = f"SIZES[{tier!r}][{part!r}]"
            if part in sizes[tier]:
                wrong += [f"{where}: {line}" for line in _size(seen.module, part, phase, sizes[tier][part])]
            elif part != "quality":
                wrong.append(f"{where} is missing")
        wrong += [f"SIZES[{tier!r}]['protocol'] needs {key} of at least {least}" for key, least in PROTOCOL.items()
                  if not sizes[tier].get("protocol", {}).get(key, -1) >= least]
    _unless(wrong)
    variant = {"variant": "small"} if "variant" not in workloads.without(seen.module) else {}  # the same contract in less time
    ask = {"tier": "smoke", "device": "cpu", "data": seen.data, **variant}
    seen.knobs = {"train": {**cases.case(seen.name, phase="train", **ask).knobs, "workers": 0},
                  "infer": cases.case(seen.name, phase="infer", **ask).knobs,
                  "quality": cases.case(seen.name, phase="infer", measure="quality", **ask).knobs,
                  "export": cases.case(seen.name, phase="export", **ask).knobs}
    return f"{', '.join(cases.TIERS)}: known knobs with allowed values"


def _size(module: ModuleType, part: str, phase: str, settings: dict) -> list[str]:
    allowed, idle = validate(phase, {}), workloads.without(module)
    wrong = [f"{name!r} is no knob" for name in settings if name not in KNOBS]
    wrong += [f"the knob {name} means nothing here (WITHOUT)" for name in settings if name in idle]
    try:
        full = validate(phase, {name: value for name, value in settings.items() if name in allowed})
    except HpmlError as error:
        return [*wrong, str(error)]
    if part == "fit" and not full["epochs"]:
        wrong.append("epochs is missing, the stop rule of a training")
    if phase == "train" and 0 < full["train_samples"] < full["batch"]:
        wrong.append(f"train_samples={full['train_samples']} do not fill one batch of {full['batch']}")
    return wrong


def _data(seen) -> str:
    """A data class with training and test part that says what it is."""
    found = seen.module.data(seen.knobs["train"])
    if found is None:
        raise Wrong("data() returns nothing: a data class with training and test samples is wanted, as hpml.data.ImageSet")
    wrong = [f"data() gives no {field}" for field in DATA if not hasattr(found, field)]
    if not dataclasses.is_dataclass(found):  # calibration puts its training samples in the place of the test samples
        wrong.append(f"data() gives a {type(found).__name__}: a data class is wanted, as hpml.data.ImageSet")
    _unless(wrong or [f"data() gives no {part} samples" for part in ("train", "test") if not len(getattr(found, f"{part}_labels"))])
    seen.image_set = found
    count = f"{len(found.train_labels):,} + {len(found.test_labels):,} {getattr(found, 'unit', 'images')}"
    return f"{found.title} ({found.origin}), {count}, {len(found.classes):,} classes"


def _samples(seen) -> str:
    """Samples fit example_inputs, are the same at every call, and no test sample is trained on; a batch splits into inputs and targets."""
    import numpy as np

    from hpml.data.loader import loader

    module, knobs, serving, wide = seen.module, seen.knobs["train"], seen.knobs["infer"], len(seen.module.INPUT_NAMES)
    found = module.data(serving)
    train, test = module.dataset(knobs, seen.image_set, train=True), module.dataset(serving, found, train=False)
    sample, again = test[0], module.dataset(serving, module.data(serving), train=False)[0]
    if not isinstance(sample, tuple | list) or len(sample) <= wide:
        raise Wrong(f"a sample is {type(sample).__name__}: a tuple of {wide} input{'s' * (wide > 1)} and the target is wanted")
    arrays, wrong = [np.asarray(part) for part in sample[:wide]], []
    for name, own, wanted in zip(module.INPUT_NAMES, arrays, _example(seen), strict=True):
        shape, kind = tuple(wanted.shape[1:]), str(wanted.dtype).removeprefix("torch.")
        if (own.shape, str(own.dtype)) != (shape, kind):
            wrong.append(f"{name}: a sample is {own.dtype} {list(own.shape)}, example_inputs gives {kind} {list(shape)}")
    if not all(np.array_equal(one, np.asarray(other)) for one, other in zip(arrays, again, strict=False)):
        wrong.append("test sample 0 differs between two calls of data() and dataset(): cases would not see the same samples")
    shared = len(_prints(module, serving, found, "test") & _prints(module, serving, found, "train"))
    if shared > LEAK_SHARE * len(test):
        wrong.append(f"{shared} of {len(test)} test samples are training samples too: the split leaks")
    if len(train) < knobs["batch"]:
        wrong.append(f"{len(train)} training samples do not fill one batch of {knobs['batch']}")
    _unless(wrong)
    batch = next(iter(loader(train, knobs, batch=knobs["batch"], shuffle=True, seed=0, drop_last=True)))
    parts = module.split(batch)
    if not (isinstance(parts, tuple) and len(parts) == 2 and isinstance(parts[0], tuple) and len(parts[0]) >= wide):
        raise Wrong(f"split() must give ({wide} input{'s' * (wide > 1)} or more as a tuple, targets)")  # training may take more
    seen.batch = batch
    return f"{'; '.join(f'{n} {a.dtype} {list(a.shape)}' for n, a in zip(module.INPUT_NAMES, arrays, strict=True))}; {shared} in both parts"


def _prints(module: ModuleType, knobs: dict, found, part: str) -> set[bytes]:
    """What a part's samples are after the transform for testing, as bytes."""
    import numpy as np

    names = [field.name for field in dataclasses.fields(found) if field.name.startswith("train_")] if part == "train" else []
    replaced = {name.replace("train_", "test_", 1): getattr(found, name) for name in names}
    samples = module.dataset(knobs, dataclasses.replace(found, **replaced), train=False)
    wide = len(module.INPUT_NAMES)
    return {b"".join(np.asarray(one).tobytes() for one in samples[index][:wide]) for index in range(len(samples))}


def _example(seen) -> tuple:
    """Two of example_inputs as inference takes them, which are the same at every call."""
    import torch

    inputs, again = (seen.module.example_inputs(seen.knobs["infer"], 2) for _ in range(2))
    if not isinstance(inputs, tuple) or len(inputs) != len(seen.module.INPUT_NAMES):
        raise Wrong(f"example_inputs() must give a tuple of {len(seen.module.INPUT_NAMES)}, one for each of INPUT_NAMES")
    if not all(isinstance(one, torch.Tensor) and one.dim() and len(one) == 2 for one in inputs):
        raise Wrong("example_inputs(knobs, 2) must give tensors whose first dimension is 2, the batch")
    if not all(torch.equal(*pair) for pair in zip(inputs, again, strict=True)):
        raise Wrong("example_inputs() differs between two calls: seed it (torch.Generator().manual_seed(0))")
    return inputs


def _model(seen) -> str:
    """A module that takes the inputs and gives one tensor, in evaluation the same one each time, and runs on the meta device."""
    import torch

    from hpml.work import train_flops

    module, knobs, classes = seen.module, seen.knobs["infer"], len(seen.image_set.classes)
    torch.manual_seed(0)
    net, inputs = module.model(knobs, classes), _example(seen)
    if not isinstance(net, torch.nn.Module):
        raise Wrong(f"model() gives a {type(net).__name__}: a torch.nn.Module is wanted")
    with torch.no_grad(), _doing("the model does not take example_inputs", module):
        outputs = [net.eval()(*inputs), net(*inputs)]
    if not all(isinstance(one, torch.Tensor) and one.dim() and len(one) == 2 for one in outputs):
        raise Wrong(f"the model gives a {type(outputs[0]).__name__}: one tensor whose first dimension is the batch is wanted")
    if not torch.equal(*outputs):
        raise Wrong("the model in evaluation mode gives two answers to one input: parity could never hold (dropout that ignores eval()?)")
    with _doing("the operations cannot be counted on torch's meta device", module):
        flops = train_flops(module, seen.knobs["train"], classes)
    seen.net = net
    small = f", variant {knobs['variant']}" if "variant" in knobs else ""
    count = sum(p.numel() for p in net.parameters())
    return f"{count:,} parameters{small}, {flops / 1e6:,.1f} MFLOP a sample and step, output {list(outputs[0].shape[1:])}"


def _loss(seen) -> str:
    """One step of the library's own training loop: a finite sum, and a finite gradient for every parameter that wants one."""
    import torch

    from hpml import measure, train

    if seen.batch is None:
        raise Unavailable("what it needs is wrong above")
    module, knobs = seen.module, {**seen.knobs["train"], "precision": "fp32", "script": "none", "parallel": "none", "accum_steps": 1}
    model, optimizer, scaler, _ = train.build(module, knobs, len(seen.image_set.classes), None)
    inputs, targets = module.split(seen.batch)
    with _doing("loss() does not take the model's output and the targets", module):
        outputs = model(*inputs)
        loss = module.loss(outputs, targets)
    if not isinstance(loss, torch.Tensor) or loss.dim():
        raise Wrong("loss() must give a tensor with one number, the sum over the samples")
    once = float(loss.detach())
    if not math.isfinite(once):
        raise Wrong(f"the loss is {once}: not finite")
    if not loss.requires_grad:
        raise Wrong("the loss has no gradient: it was detached, or computed outside torch")
    twice = math.inf
    with torch.no_grad(), contextlib.suppress(Exception):  # targets that cannot be put together tell nothing
        twice = float(module.loss(torch.cat([outputs, outputs]), torch.cat([targets, targets])))
    if 0 < twice < 1.5 * once:
        raise Wrong("the loss is a mean: the loop divides by the batch itself, so give the sum (reduction='sum')")
    without: list[str] = []
    hook = optimizer.register_step_pre_hook(lambda *_: without.extend(
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.isfinite().all()))))
    value = train.train_step(model, iter([seen.batch]), knobs, workload=module, optimizer=optimizer, scaler=scaler,
                             marks=measure.Marks("cpu"))
    hook.remove()
    if without:
        raise Wrong(f"no finite gradient reaches {len(without)} parameter{'s' * (len(without) > 1)} ({without[0]}): use them, "
                    "or set requires_grad_(False)")
    return f"{float(value):.3f} a sample at the first step, gradients for all parameters"


def _metric(seen) -> str:
    """The quality of any predictor: the metric with all that records keep of it."""
    from hpml.fit import judge, predictor

    module, knobs = seen.module, seen.knobs["quality"]
    found = module.data(knobs)
    net = module.model(knobs, len(found.classes))
    scores = judge(predictor(net, {**knobs, "precision": "fp32"}), net, module, knobs, found)
    if not isinstance(scores, dict):
        raise Wrong(f"evaluate() gives a {type(scores).__name__}: a dictionary with {', '.join(SCORES)} is wanted")
    _unless([f"evaluate() gives no {key!r}" for key in SCORES if key not in scores])
    wrong = [f"evaluate() gives {key}={scores[key]!r}: a finite number is wanted" for key in ("value", "chance")
             if not isinstance(scores[key], int | float) or not math.isfinite(scores[key])]
    if scores["metric"] != module.METRIC:
        wrong.append(f"evaluate() gives the metric {scores['metric']!r}, METRIC is {module.METRIC!r}")
    if scores["n"] < 1:
        wrong.append(f"evaluate() gives n={scores['n']}: no sample was counted")
    _unless(wrong)
    return f"{module.METRIC} of n={scores['n']:,} test samples, chance {scores['chance']:.3f}"


def _graph(seen) -> str:
    """The exported graph is the same function, by the engines that are here."""
    from hpml import infer

    with tempfile.TemporaryDirectory(prefix="hpml-check-") as folder:
        job = {"case": {"workload": seen.name, "key": "check"}, "knobs": seen.knobs["export"], "run_dir": folder, "weights": None,
               "weights_sha256": None, "protocol": {"round": 0}}
        found = infer.measure_export(job, seen.module)
    parity, engines = found["parity"], ", ".join(found["actual"]["engines"])
    if not parity["passed"]:
        raise Wrong(f"the exported graph is another function: max abs {parity['max_abs']} by {engines}, allowed is PARITY['fp32']")
    return f"opset {found['actual']['opset']}, max abs {parity['max_abs']:.0e} by {engines}"
