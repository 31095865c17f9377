"""A scaling model of ResNet-50 under DDP: fitted on two ranks here, checked on a step that the fit has not seen, drawn to 8 devices.

    python benchmarks/scaling.py [--rounds 6] [--tier cpu] [--batches 16 128]

The link is measured by all-reduces of gloo over loopback. Compute and the exposed share of the communication come from steps of 1 and 4
micro-batches. Held back: the step of one micro-batch of twice the size, whose compute comes from its own accumulated step. Then one
global batch divided (strong scaling), for a small and a large one: two ranks of one thread, and one process with two, over one process
with one. About 20 minutes on two cores; needs two. Beyond two ranks nothing is measured: the curve is the model's. Table and sentences:
hpml/scaling.py.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hpml
from hpml import compare, scaling, studies
from hpml.env import HpmlError

RANKS, COUNT = 2, 4
SIZES = [4 * 4**power for power in range(4, 13)]  # bytes: 1 KiB to 64 MiB


def rank(index: int, meet: str, answer: str) -> None:
    """Seconds of an all-reduce by size, the median of its calls; rank 0 writes them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=index, world_size=RANKS)
    found = []
    for nbytes in SIZES:
        values, buffer = [], torch.zeros(nbytes // 4)
        for call in range(3 + max(5, min(50, 2**25 // nbytes))):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(buffer)
            if call >= 3:
                values.append(time.perf_counter() - started)
        found.append(statistics.median(values))
    if index == 0:
        Path(answer).write_text("\n".join(map(str, found)))
    dist.destroy_process_group()


def allreduces() -> list[float]:
    """Seconds by SIZES, over loopback."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer")
        mp.spawn(rank, (f"{folder}/meet", str(answer)), nprocs=RANKS)
        return [float(line) for line in answer.read_text().splitlines()]


def whole(cases: list, rounds: int):
    """The run of `cases`. Raises HpmlError where one of them has no figure."""
    run = hpml.run(cases, rounds=rounds)
    if lost := [r for r in run.records if r.status != "ok"]:
        raise HpmlError(f"{lost[0].case['label']}: {lost[0].status}: {lost[0].reason}")
    return run


def divided(tier: str, rounds: int, batch: int) -> dict:
    """One global batch by one process with one thread, by one with two, and by two ranks: samples/s, and ratios to the first."""
    alone = hpml.case("resnet50", phase="train", tier=tier, batch=batch, threads=1)
    rows = whole([alone, alone.but(threads=RANKS), alone.but(threads=RANKS, parallel="ddp", ranks=RANKS)], rounds).rows()
    return {"batch": batch, **{name: {"per_s": row.per_s, "ratio": row.ratio, "low": row.low, "high": row.high}
                               for name, row in zip(scaling.WAYS, rows, strict=True)}}


def steps(tier: str, rounds: int) -> tuple[dict[tuple[int, int], list[float]], float, str]:
    """({(micro-batch of a rank, micro-batches): seconds of a step, one for each round}, bytes of the gradients, the data)."""
    base = hpml.case("resnet50", phase="train", tier=tier, parallel="ddp", ranks=RANKS)
    small = max(2, base.knobs["batch"] // (RANKS * COUNT))
    asked = [(small, 1), (small, COUNT), (2 * small, 1), (2 * small, COUNT)]
    records = whole([base.but(batch=RANKS * micro * count, accum_steps=count) for micro, count in asked], rounds).records
    seconds = {}
    for key in {record.case["key"]: None for record in records}:
        own = compare.calmest(record for record in records if record.case["key"] == key)
        count = own[0].knobs["accum_steps"]
        seconds[own[0].knobs["batch"] // (RANKS * count), count] = [statistics.median(record.samples["values"]) for record in own]
    actual = own[0].actual
    return seconds, 4 * actual["parameters"], actual["data"]["title"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tier", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 128], help="global batches that are divided")
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error(f"--rounds {asked.rounds}: an interval needs two rounds")
    if uneven := [batch for batch in asked.batches if batch < RANKS or batch % RANKS]:
        parser.error(f"--batches {uneven[0]}: it cannot be divided over {RANKS} ranks")
    measured = allreduces()
    link = scaling.fit_link(SIZES, measured, RANKS)
    worst = max(abs(scaling.allreduce_s(size, RANKS, link) / value - 1) for size, value in zip(SIZES, measured, strict=True))
    seconds, nbytes, data = steps(asked.tier, asked.rounds)
    middle = {one: statistics.median(values) for one, values in seconds.items()}
    small, large = sorted({micro for micro, _ in middle})
    sent = scaling.allreduce_s(nbytes, RANKS, link)
    compute, exposed = scaling.fit_step(middle[small, 1], middle[small, COUNT], COUNT, sent)
    larger = (middle[large, COUNT] - exposed * sent) / COUNT
    predicted, found = scaling.step_s(larger, exposed, nbytes, RANKS, link), middle[large, 1]
    facts = {
        "tier": asked.tier, "data": data, "n": sum(map(len, seconds.values())), "knobs": {"ranks": RANKS, "rounds": asked.rounds},
        "gradient_bytes": nbytes, "allreduce": dict(zip(SIZES, measured, strict=True)),
        "link": {"bytes_s": link.bytes_s, "latency_s": link.latency_s, "worst_error": worst},
        "steps": [{"micro_batch": micro, "micro_batches": count, "seconds": values} for (micro, count), values in seconds.items()],
        "compute_s": compute, "exposed": exposed, "held_back": {"predicted_s": predicted, "measured_s": found},
        "divided": [divided(asked.tier, asked.rounds, batch) for batch in asked.batches]}
    path = studies.write("scaling", facts)
    print(studies.described(studies.read("scaling"), "python benchmarks/scaling.py"), scaling.text(facts), path, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except HpmlError as problem:
        raise SystemExit(f"{Path(__file__).name}: {problem}") from None
