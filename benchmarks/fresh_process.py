"""What does a fresh measured process cost beyond its work, once the server is warm?

    python benchmarks/fresh_process.py [--runs 20]

Wanted: at most 0.5 s. Prints the start (until the child's first line), the whole call of a child that does next to nothing, and what
a new Python with the same imports costs instead.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpml import env, launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    asked = parser.parse_args()
    print(f"machine {env.machine()['id']}: server started in {launch.warm_up():.2f} s, once")
    # A job that is refused at once: all that remains is the process itself.
    job = {"case": {"workload": "machine", "phase": "limit", "key": "none"}, "protocol": {"min_seconds": 0.0},
           "knobs": {"kind": "none", "dtype": "fp32", "engine": "torch", "device": "cpu", "threads": 1}}
    starts, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.runs):
            started = time.perf_counter()
            fields = launch.run(job, log=Path(folder, f"{number}.log"), timeout_s=60)
            whole.append(time.perf_counter() - started)
            starts.append(fields["spawn_s"])
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    plain = time.perf_counter() - started
    for name, values in (("start", starts), ("whole call", whole)):
        print(f"{name}: median {1e3 * statistics.median(values):.0f} ms, highest {1e3 * max(values):.0f} ms (n={asked.runs})")
    print(f"a new Python that imports torch and torchvision: {plain:.2f} s; wanted: at most 0.5 s")


if __name__ == "__main__":
    main()
