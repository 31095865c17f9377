"""Can the verdict be trusted? 40 comparisons of a case with itself and 20 with a planted slowdown of 10 %, 6 rounds each.

    python benchmarks/verdicts.py [--same 40] [--planted 20]

Wanted: at least 38 of 40 say "no difference", and at least 18 of 20 find the slowdown. Takes about 25 minutes on two cores, on a
machine that does nothing else. The noise floor is measured first, on launches of its own. Both kinds alternate, so that a slow hour
of the machine falls on both.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import random
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
    smaller = {"batch": 4, "train_samples": 200, "test_samples": 20}
    aa = hpml.noise_floor("resnet50", phase="train", **smaller)
    floor = compare.noise_floor(compare.noise_logs(aa.records, "train"), compare.MAX_ROUNDS)
    print(f"machine {machine()['id']}, noise floor {compare.percent(floor)}")
    base = hpml.case("resnet50", phase="train", **smaller)
    kinds = ["same"] * asked.same + ["planted"] * asked.planted
    random.Random(0).shuffle(kinds)
    found = {"same": [], "planted": []}
    for number, kind in enumerate(kinds):
        arms = [dataclasses.replace(base, arm=f"{number} A"),
                dataclasses.replace(base.but(slowdown=0.1 if kind == "planted" else 0.0), arm=f"{number} B", technique="slowdown")]
        with contextlib.redirect_stdout(io.StringIO()):
            row = study.run(arms, rounds=compare.MAX_ROUNDS).rows()[1]
        found[kind].append(row.verdict)
        print(f"{kind} {len(found[kind])}: {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}] {row.verdict_text}", flush=True)
    same, planted = found["same"].count("no difference"), found["planted"].count("slower")
    print(f"\nA/A: {same} of {asked.same} say 'no difference' (wanted: 95 %)")
    print(f"planted 10 % slowdown: {planted} of {asked.planted} found (wanted: 90 %)")


if __name__ == "__main__":
    main()
