"""The training loop: accumulation is the large batch where nothing depends on the batch, and the marks add up."""

import itertools
import time
import types
from pathlib import Path

import pytest
import torch

from hpml import engines, train, work, workloads
from hpml.env import HpmlError, Unavailable
from hpml.knobs import validate
from hpml.measure import Marks

TINY = workloads.get(str(Path(__file__).parent.parent / "tiny.py"))


def gradient(batches, **settings):
    """Parameters after one step over `batches`."""
    torch.manual_seed(0)
    knobs = validate("train", {"batch": sum(len(y) for _, y in batches), "lr": 1.0, **settings})
    model, optimizer, scaler, _ = train.build(TINY, knobs, 3, None)
    marks = Marks("cpu")
    loss = train.train_step(model, iter(batches), knobs, workload=TINY, optimizer=optimizer, scaler=scaler, marks=marks)
    return float(loss), torch.cat([p.detach().flatten() for p in model.parameters()]), marks


def batch(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=random), torch.randint(0, 3, (count,), generator=random)


def test_accumulation_is_the_large_batch_without_batchnorm():
    images, labels = batch(16)
    whole = gradient([(images, labels)])
    parts = gradient([(images[i:i + 4], labels[i:i + 4]) for i in range(0, 16, 4)], accum_steps=4)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(parts[1], whole[1], atol=1e-6)


def test_marks_give_five_phases_for_each_micro_batch():
    images, labels = batch(16)
    _, _, marks = gradient([(images[:8], labels[:8]), (images[8:], labels[8:])], accum_steps=2)
    spans = marks.spans()
    phases = train.phase_seconds(spans)
    assert len(spans) == 10 and sum(phases.values()) == pytest.approx(marks.points[-1] - marks.points[0])
    assert phases["forward"] > 0 and phases["backward"] > 0


def test_the_host_does_not_wait_for_the_step_that_it_has_just_given_a_gpu(monkeypatch):
    """Events as CUDA's: the end of a step is waited for when the next one is queued, and the last one's at the end."""
    queue, waited = itertools.count(), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(queue)

        def synchronize(self):
            waited.append(self.at)

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    gpu, cpu = Marks("cuda"), Marks("cpu")
    seen = []
    for _ in range(3):
        for marks in (gpu, cpu):
            for _ in range(4):
                marks.mark()
            marks.end_step()
        seen.append((len(list(gpu.steps())), len(list(cpu.steps()))))
    assert seen == [(0, 1), (1, 1), (1, 1)] and waited == [3, 7]
    assert list(gpu.steps(last=True)) == [[1, 1, 1]] and waited == [3, 7, 11] and not list(gpu.steps(last=True))


def test_a_scripted_and_a_wrapped_model_compute_the_same():
    plain = gradient([batch(8)])
    for settings in ({"script": "torchscript"}, {"memory_format": "channels_last"}, {"parallel": "ddp"}):
        try:
            loss, parameters, _ = gradient([batch(8)], **settings)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        assert loss == pytest.approx(plain[0], rel=1e-5), settings
        assert torch.allclose(parameters, plain[1], atol=1e-5), settings


def test_a_scripted_model_is_the_same_in_bf16_and_channels_last():
    """TorchScript runs its graph from the third call on by a fuser and a differentiator of its own: types must stay autocast's."""
    def steps(script):
        torch.manual_seed(0)
        knobs = validate("train", {"batch": 8, "lr": 0.1, "precision": "bf16", "memory_format": "channels_last", "script": script})
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
                                    torch.nn.Linear(288, 3)).to(memory_format=torch.channels_last)
        model = train._scripted(model, script)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = [float(train.train_step(model, iter([batch(8, seed)]), knobs, workload=TINY, optimizer=optimizer,
                                         scaler=torch.amp.GradScaler("cpu", enabled=False), marks=Marks("cpu"))) for seed in range(4)]
        return losses, [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]

    (eager, theirs), (scripted, ours) = steps("none"), steps("torchscript")
    assert scripted == pytest.approx(eager, rel=1e-3)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype == torch.float32 and torch.allclose(mine, other, atol=1e-3)


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(monkeypatch, tmp_path):
    if reason := engines.get("compile").unavailable("cpu"):
        pytest.skip(reason)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    plain, (loss, parameters, _) = gradient([batch(8)]), gradient([batch(8)], script="compile")
    assert loss == pytest.approx(plain[0], rel=1e-5) and torch.allclose(parameters, plain[1], atol=1e-5)


def test_compiling_beyond_the_limit_is_given_up_and_what_came_out_is_said():
    actual = {}
    with pytest.raises(engines.TooLong, match="compiling took more than 0.05 s at this tier"), \
         train.compiling({"script": "compile"}, {"compile_limit_s": 0.05}, actual):
        time.sleep(5)
    with train.compiling({"script": "none"}, {"compile_limit_s": 0.05}, actual):
        assert actual == {}


def test_what_a_machine_cannot_do_is_said():
    with pytest.raises(Unavailable, match="no GPU"):
        gradient([batch(8)], parallel="dp")


def test_a_notebook_trains_no_epochs_in_bf16_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr(train, "bf16_native", lambda: False)
    job = {"knobs": validate("train", {"batch": 2, "precision": "bf16", "epochs": 1}), "protocol": {"seed": 0}, "weights": None}
    with pytest.raises(Unavailable, match="no instructions for it.*hpml train does it"):
        train.prepare({**job, "notebook": "23"}, TINY)
    for other in (job, {**job, "notebook": "23", "knobs": {**job["knobs"], "epochs": 0}}):
        assert train.prepare(other, TINY)[2][3]["bf16_native"] is False


class Varying(torch.nn.Module):
    def forward(self, *parts):
        return sum(parts)


def test_a_model_that_torchscript_refuses_is_unavailable_with_its_reason():
    with pytest.raises(Unavailable, match="torch.jit.script refuses Varying: .*variable number of arguments"):
        train._scripted(Varying(), "torchscript")


def test_a_batch_that_cannot_be_split_is_refused():
    job = {"knobs": validate("train", {"batch": 10, "accum_steps": 4}), "protocol": {"seed": 0}, "weights": None}
    with pytest.raises(HpmlError, match="batch=10 cannot be split into accum_steps=4"):
        train.measure(job, TINY)


def test_flops_of_resnet50_are_the_published_ones():
    """4.09 G multiply-adds at 224 pixels (He et al., table 1; torchvision's weights page): 3 times that with the backward pass."""
    resnet = workloads.get("resnet50")
    flops = work.train_flops(resnet, validate("train", {"image": 224}), 1000)
    assert flops / 3 == pytest.approx(2 * 4.09e9, rel=0.02)


def test_a_depthwise_convolution_costs_twice_its_forward_pass_backwards():
    def net(knobs, classes):
        return torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 8, 3, padding=1, groups=knobs["groups"]))

    def counted(groups):
        workload = types.SimpleNamespace(model=net, example_inputs=lambda knobs, batch: (torch.empty(batch, 8, 10, 10),))
        return work.train_flops(workload, {"groups": groups}, 1)

    first = 2 * 2 * 8 * 8 * 100  # its input needs no gradient
    assert counted(1) == first + 3 * 2 * 8 * 8 * 9 * 100 and counted(8) == first + 3 * 2 * 8 * 9 * 100


def test_what_a_dilated_kernel_would_read_beside_the_picture_is_no_work():
    """A kernel of ones over a picture of ones sums up how often its weights meet the picture."""
    def counted(**kernel):
        workload = types.SimpleNamespace(model=lambda knobs, classes: torch.nn.Conv2d(2, 3, (3, 1), **kernel),
                                         example_inputs=lambda knobs, batch: (torch.empty(batch, 2, 10, 7),))
        return work.counted_flops(workload, {}, 1, training=False), kernel

    for forward, kernel in (counted(padding=(4, 0), dilation=4), counted(padding=(4, 2), dilation=(4, 2), stride=(2, 3)),
                            counted(padding=(36, 0), dilation=36)):
        met = torch.nn.functional.conv2d(torch.ones(1, 1, 10, 7), torch.ones(1, 1, 3, 1), **kernel).sum().item()
        assert forward == {"convolution": 2 * 2 * 3 * met, "convolution_backward": 2 * 2 * 3 * met}, kernel
    plain, _ = counted(padding=(1, 0))
    assert plain["convolution"] == 2 * 2 * 3 * 10 * 7 * 3, "as published figures count it"


def test_a_runs_children_count_the_work_once(tmp_path, monkeypatch):
    job = {"case": {"workload": "resnet50"}, "code": "a", "run_dir": str(tmp_path), "knobs": validate("train", {"image": 32})}
    resnet = workloads.get("resnet50")
    found = work.known_work(job, resnet, 1000)
    assert found == {"flops": work.train_flops(resnet, job["knobs"], 1000), "parameters": 25_557_032}
    counted = []
    monkeypatch.setattr(work, "train_flops", lambda *args, **more: counted.append(more["training"]) or 1.0)
    assert work.known_work({**job, "knobs": {**job["knobs"], "batch": 4}}, resnet, 1000) == found and not counted
    for other in ({"code": "b"}, {"knobs": {**job["knobs"], "image": 64}}, {"knobs": {**job["knobs"], "stem": "cifar"}}):
        assert work.known_work({**job, **other}, resnet, 1000)["flops"] == 1.0
    work.known_work(job, resnet, 1000, training=False)
    assert counted == [True, True, True, False]


def test_same_seed_same_batches():
    from hpml.data.loader import loader

    points = TINY.Points(*(part.numpy() for part in (torch.arange(64 * 192, dtype=torch.uint8).reshape(64, 8, 8, 3), torch.arange(64))))
    first, second, other = ([y.tolist() for _, y in loader(points, {}, batch=8, shuffle=True, seed=seed)] for seed in (1, 1, 2))
    assert first == second != other
    assert sorted(itertools.chain.from_iterable(first)) == list(range(64))
