"""Do our latencies agree with an independent measurement in the same run? ONNX Runtime by 20 plain lines, OpenVINO by its benchmark_app.

    python benchmarks/engines_agree.py [--rounds 5] [--image 224]

Wanted: medians within 5 %. Ours and theirs alternate; same graph, threads, batch 1 and FP32; about 3 minutes on two cores.
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
import time
from pathlib import Path

import hpml
from hpml import compare, env, study

PLAIN_ONNXRUNTIME = """
import sys, time
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = [np.random.default_rng(i).standard_normal((1, 3, int(sys.argv[3]), int(sys.argv[3])), dtype=np.float32) for i in range(8)]
for i in range(5):
    session.run(None, {"images": images[i]})
took, end = [], time.perf_counter() + 4
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, {"images": images[len(took) % 8]})
    took.append(time.perf_counter() - start)
print(1e3 * sorted(took)[len(took) // 2])
"""


def plain_onnxruntime(graph: Path, image: int) -> float:
    """Median ms of a call, by plain onnxruntime in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PLAIN_ONNXRUNTIME, str(graph), str(env.cores()), str(image)], capture_output=True,
                          text=True, check=True)
    return float(done.stdout)


def benchmark_app(graph: Path, image: int) -> float:
    """Median ms by OpenVINO's own program: latency hint, one stream, FP32, synchronous calls."""
    program = shutil.which("benchmark_app") or str(Path(sys.executable).parent / "benchmark_app")
    done = subprocess.run([program, "-m", str(graph), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", str(env.cores()), "-api",
                           "sync", "-t", "4", "-infer_precision", "f32", "-data_shape", f"[1,3,{image},{image}]", "-ip", "f32"],
                          capture_output=True, text=True, check=True)
    return float(re.search(r"Median:\s+([\d.]+) ms", done.stdout)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", type=int, default=224)
    asked = parser.parse_args()
    os.environ.setdefault("HPML_RESULTS", tempfile.mkdtemp(prefix="hpml-agree-"))
    hpml.use(tier="cpu", run_id="agree", data="digits")
    base = hpml.case("resnet50", phase="infer", image=asked.image, test_samples=32, train_samples=32)
    base = dataclasses.replace(base, protocol={**base.protocol, "warmup": 5, "min_seconds": 4.0})
    print(f"machine {env.machine()['id']}, ResNet-50 at {asked.image} px, batch 1, FP32, {env.cores()} threads, medians in ms")
    for engine, theirs in (("onnxruntime", plain_onnxruntime), ("openvino", benchmark_app)):
        pairs = []
        for number in range(asked.rounds):
            arm = dataclasses.replace(base.but(engine=engine), arm=f"{number}")
            record = study.run(arm, rounds=1).records[-1]
            if record.status != "ok":
                sys.exit(f"{engine}: {record.status}: {record.reason}")
            graph = max((env.run_dir("agree") / "models").glob("*.onnx"), key=lambda path: path.stat().st_mtime)
            pairs.append((1e3 * record.stats["median"], theirs(graph, asked.image)))
            print(f"{engine} round {number + 1}: ours {pairs[-1][0]:.2f}, theirs {pairs[-1][1]:.2f}", flush=True)
            time.sleep(1)
        ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{engine}: ours {ours:.2f} ms, {theirs.__name__} {other:.2f} ms, difference {compare.percent(abs(ours / other - 1))} "
              f"(n={asked.rounds}); wanted: at most 5 %")


if __name__ == "__main__":
    main()
