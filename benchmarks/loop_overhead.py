"""What does hpml's training loop cost over a bare one? Alternating blocks of both in one process, on the same model and batches.

    python benchmarks/loop_overhead.py [--blocks 80] [--steps 4]

Wanted: the upper end of the 95 % interval of the ratio (hpml / bare) at most 1.02. About 3 minutes on two cores.
"""

import argparse
import itertools
import math
import time

import torch

from hpml import compare, env, train, workloads
from hpml.knobs import validate
from hpml.measure import Marks, set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    set_threads(0)
    torch.manual_seed(0)
    workload = workloads.get("resnet50")
    knobs = validate("train", {"batch": 16, "image": 32, "data": "digits"})
    model, optimizer, scaler, _ = train.build(workload, knobs, 10, None)
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))) for _ in range(8)]
    stream = itertools.cycle(batches)

    def ours() -> None:
        marks = Marks("cpu")
        train.train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks)
        train.phase_seconds(marks.spans())

    def bare() -> None:
        images, labels = next(stream)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(5):
        ours(), bare()
    logs = []
    for block in range(asked.blocks):
        took = {}
        for step in ((ours, bare) if block % 2 else (bare, ours)):
            started = time.perf_counter()
            for _ in range(asked.steps):
                step()
            took[step.__name__] = time.perf_counter() - started
        logs.append(math.log(took["ours"] / took["bare"]))
    ratio, low, high = compare.interval(logs)
    print(f"machine {env.machine()['id']}: hpml / bare = {ratio:.4f}, 95 % interval {low:.4f} to {high:.4f} "
          f"({asked.blocks} pairs of blocks of {asked.steps} steps); wanted: at most 1.02")


if __name__ == "__main__":
    main()
