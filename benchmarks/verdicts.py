"""Can the verdict be trusted? 40 comparisons of a case with itself and 20 with a planted slowdown of 10 %, 6 rounds each.

    python benchmarks/verdicts.py [--same 40] [--planted 20]

Wanted: at least 38 of 40 say "no difference", and at least 18 of 20 find the slowdown. Takes about 15 minutes on two cores, on a
machine that does nothing else. The noise floor is measured first, on launches of its own.
"""

import argparse
import dataclasses
import os
import tempfile

import hpml
from hpml import compare, study
from hpml.env import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--same", type=int, default=40)
    parser.add_argument("--planted", type=int, default=20)
    asked = parser.parse_args()
    os.environ.setdefault("HPML_RESULTS", tempfile.mkdtemp(prefix="hpml-verdicts-"))
    hpml.use(tier="cpu", run_id="verdicts", data="digits")
    base = hpml.case("resnet50", phase="train", batch=8, train_samples=200, test_samples=20)
    base = dataclasses.replace(base, protocol={**base.protocol, "warmup": 2, "min_iters": 8, "min_seconds": 0.5})
    aa = study.run([dataclasses.replace(base, arm=arm, technique=compare.NOISE) for arm in ("A", "A again")], rounds=compare.MAX_ROUNDS)
    floor = compare.noise_floor(compare.noise_logs(aa.records, "train"), compare.MAX_ROUNDS)
    print(f"machine {machine()['id']}, noise floor {compare.percent(floor)}")
    found = {"same": [], "planted": []}
    for kind, count, slowdown in (("same", asked.same, 0.0), ("planted", asked.planted, 0.1)):
        for number in range(count):
            arms = [dataclasses.replace(base, arm=f"{kind} {number} A"),
                    dataclasses.replace(base.but(slowdown=slowdown), arm=f"{kind} {number} B", technique="slowdown")]
            row = study.run(arms, rounds=compare.MAX_ROUNDS).rows()[1]
            found[kind].append(row.verdict)
            print(f"{kind} {number + 1}/{count}: {row.verdict_text}", flush=True)
    same, planted = found["same"].count("no difference"), found["planted"].count("slower")
    print(f"\nA/A: {same} of {asked.same} say 'no difference' (wanted: 95 %)")
    print(f"planted 10 % slowdown: {planted} of {asked.planted} found (wanted: 90 %)")


if __name__ == "__main__":
    main()
