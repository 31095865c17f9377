"""What does INT8 give ResNet-50 on this CPU, at batch 1 and equal threads, and is OpenVINO's INT8 here as fast as its own benchmark_app?

    python benchmarks/int8.py --weights FILE.safetensors --data cifar10 [--rounds 6] [--image 224] [--test 10000]

Wanted on a CPU with VNNI: at least 3.0x over the same engine's FP32, with the ratio to the fastest FP32 engine beside it; top-1 at most
1 % (relative) below FP32's on 10,000 test images; OpenVINO's INT8 not slower than benchmark_app with the same graph, shape, hint,
threads and input. `--weights` is what `hpml train resnet50 --data cifar10` left in its run (models/*.safetensors); without it, a model
is trained first by the tier's short rule. Quality is measured at the size of the training (`--quality-image`, 32), speed at
`--image`: each with a graph calibrated at its own size. OpenVINO compiles for batch 1 alone in all cases, as benchmark_app does. About
20 minutes on two cores; `--tier smoke --image 32 --test 40 --rounds 1` shows that it works.
"""

import argparse
import dataclasses
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import hpml
from hpml import compare, env, study, workloads
from hpml.cases import Case

PLANS = (("onnxruntime", "dynamic"), ("openvino", "static"))


def of(base: Case, engine: str, shapes: str) -> list[Case]:
    """FP32 and INT8 by both quantizers in one engine."""
    own = base.but(engine=engine, shapes=shapes)
    return [own, own.but(precision="int8"), own.but(precision="int8", quantizer="nncf")]


def name(record) -> str:
    made = f" by {record.knobs['quantizer']}" if record.knobs["precision"] == "int8" else ""
    return f"{record.knobs['engine']} {record.knobs['precision']}{made}"


def ratio(base: dict[int, float], other: dict[int, float]) -> str:
    logs = compare.log_ratios(base, other)
    if not logs:
        return "not measured"
    if len(logs) == 1:
        return f"{np.exp(logs[0]):.2f}x"
    middle, low, high = compare.interval(logs)
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def speed(base: Case, rounds: int) -> None:
    cases = [case for engine, shapes in PLANS for case in of(base, engine, shapes)]
    found: dict[str, list] = {}
    for record in hpml.run(cases, rounds=rounds).records:
        found.setdefault(name(record), []).append(record)
    rates = {key: compare.by_round(records) for key, records in found.items()}
    plain = {key: values for key, values in rates.items() if "fp32" in key and values}
    best = max(plain, key=lambda key: statistics.median(plain[key].values()), default="none")
    print(f"\nmachine {env.machine()['id']}, {', '.join(env.machine()['isa'])}; batch 1, {env.cores()} threads; fastest FP32: {best}")
    for key, records in found.items():
        last = records[-1]
        if not rates[key]:
            print(f"{key:<36} {last.status}: {last.reason}")
            continue
        line = f"{key:<36} {1e3 / statistics.median(rates[key].values()):7.2f} ms (n={len(rates[key])} rounds)"
        if "int8" in key:
            own = rates[f"{last.knobs['engine']} fp32"]
            line += (f"  over its FP32 {ratio(own, rates[key])}, over the fastest FP32 {ratio(plain.get(best, {}), rates[key])}; "
                     f"{last.actual['int8_ops']} of {last.actual['heavy_ops_total']} in INT8")
        print(line)
    print("wanted: at least 3.0x over the same engine's FP32 on a CPU with VNNI")


def quality(base: Case, image: int, test: int) -> None:
    base = base.but(measure="quality", image=image, batch=32, test_samples=test)
    cases = [case for engine, _ in PLANS for case in of(base, engine, "dynamic")]
    found = {name(record): record for record in hpml.run(cases, rounds=1).records}
    print()
    for key, record in found.items():
        if record.status != "ok" or not record.quality:
            print(f"{key:<36} {record.status}: {record.reason or 'no quality'}")
            continue
        line = f"{key:<36} {record.quality['metric']} {100 * record.quality['value']:.2f} % (n={record.quality['n']:,})"
        plain = found[f"{record.knobs['engine']} fp32"].quality
        if record.knobs["precision"] == "int8" and plain:
            line += f", {100 * (1 - record.quality['value'] / plain['value']):+.2f} % of FP32's lost"
        print(line + ("" if record.quality["informative"] else "; not informative"))
    print("wanted: at most 1 % lost on 10,000 images")


def benchmark_app(graph: Path, image: int, array: Path, seconds: float) -> float:
    """Median ms by OpenVINO's own program: latency hint, our threads, synchronous calls, our input."""
    program = shutil.which("benchmark_app") or str(Path(sys.executable).parent / "benchmark_app")
    done = subprocess.run(
        [program, "-m", str(graph), "-d", "CPU", "-hint", "latency", "-nthreads", str(env.cores()), "-api", "sync", "-t", f"{seconds:.0f}",
         "-infer_precision", "f32", "-data_shape", f"[1,3,{image},{image}]", "-i", str(array)], capture_output=True, text=True)
    median = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if not median:
        sys.exit(f"benchmark_app failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return float(median[1])


def beside_benchmark_app(base: Case, rounds: int, seconds: float) -> None:
    case = of(base, *PLANS[1])[2]
    case = dataclasses.replace(case, protocol={**case.protocol, "warmup": 5, "min_seconds": seconds})
    image = case.knobs["image"]
    module = workloads.get("resnet50")
    array = env.run_dir("int8") / "image.npy"
    sample = module.dataset(case.knobs, module.data(case.knobs), train=False)[0][0]
    np.save(array, np.asarray(sample)[None])
    pairs = []
    for number in range(rounds + 1):
        record = study.run(dataclasses.replace(case, arm=f"{number}"), rounds=1).records[-1]
        if record.status != "ok":
            sys.exit(f"openvino: {record.status}: {record.reason}")
        graph = env.run_dir("int8") / "models" / record.actual["quantized"]["graph"]
        pairs.append((1e3 * record.stats["median"], benchmark_app(graph, image, array, seconds)))
        counted = "" if number else " (the first, not counted)"
        print(f"round {number}{counted}: ours {pairs[-1][0]:.2f}, benchmark_app {pairs[-1][1]:.2f} ms", flush=True)
    ours, theirs = (dict(enumerate(1 / ms for ms in side)) for side in zip(*pairs[1:], strict=True))
    print(f"OpenVINO INT8, our rate over benchmark_app's: {ratio(theirs, ours)} (n={rounds}); wanted: not below 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="trained", help="a .safetensors file; default: train first, by the tier's rule")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="the first layers of the trained model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--quality-image", type=int, default=32, help="the size that the weights were trained at")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round beside benchmark_app")
    parser.add_argument("--tier", default="cpu", choices=("smoke", "cpu"))
    asked = parser.parse_args()
    os.environ.setdefault("HPML_RESULTS", tempfile.mkdtemp(prefix="hpml-int8-"))
    hpml.use(tier=asked.tier, run_id="int8", data=asked.data, device="cpu")
    base = hpml.case("resnet50", phase="infer", batch=1, image=asked.image, weights=asked.weights, stem=asked.stem)
    quality(base, asked.quality_image, asked.test)
    speed(base, asked.rounds)
    beside_benchmark_app(base, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
