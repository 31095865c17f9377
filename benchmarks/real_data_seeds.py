"""Do XLNet on real reviews and DeepLabV3 on real pets learn more than the answer that needs no model?

    HPML_DATA=FOLDER python benchmarks/real_data_seeds.py [--only xlnet] [--seeds 5] [--epochs N] [--data real]

XLNet's small variant is trained on all Amazon reviews that are there and compared with the majority class; DeepLabV3 on all pets, and
compared with "background everywhere". Each seed is a whole training from random weights (order, augmentation and first weights differ); its
quality and that of the plain answer are taken on the same test samples, so the difference is paired. Wanted: the lower end of the 95 %
interval of the difference, over 5 seeds, above 0. `--tier smoke --seeds 2 --train 64 --test 40` shows that it works. With HPML_RESULTS
set, a seed that was trained before is not trained again. One JSON file each is left as a study, which notebooks 11 and 12 read.
"""

import argparse

import hpml
from hpml import scoring, studies

PLAIN = {"xlnet": "the majority class", "deeplabv3": "background everywhere"}
KNOBS = {"xlnet": {"variant": "small"}, "deeplabv3": {}}


def trainings(name: str, asked: argparse.Namespace) -> list:
    """One finished training for each seed. Ends with the reason where one did not finish."""
    knobs = {**KNOBS[name], "train_samples": asked.train, "test_samples": asked.test}
    if asked.epochs:
        knobs["epochs"] = asked.epochs
    found = []
    for seed in range(asked.seeds):
        record = hpml.run(hpml.case(name, fit=True, seed=seed, **knobs), rounds=1).records[-1]
        if record.status != "ok":
            raise SystemExit(f"{name}, seed {seed}: {record.status}: {record.reason}")
        found.append(record)
    return found


def answer(name: str, found: list, tier: str) -> dict:
    """What the seeds show, as a study that the workload's notebook reads."""
    last, data, metric = found[-1], found[-1].actual["data"], found[-1].quality["metric"]
    plain, values = ([100 * record.quality[key] for record in found] for key in ("chance", "value"))
    gain = scoring.paired_difference(plain, values)
    word = "above" if gain["low"] > 0 else "not shown to be above"
    rows = [{"seed": seed, PLAIN[name]: f"{without:.1f} %", metric: f"{value:.1f} %", "difference": f"{value - without:+.1f} points"}
            for seed, (without, value) in enumerate(zip(plain, values, strict=True))]
    knobs = {knob: last.knobs[knob] for knob in ("variant", "image", "length", "batch", "epochs") if knob in last.knobs}
    return {"tier": tier, "data": f"{data['title']} ({data['origin']})", "n": last.quality["n"],
            "knobs": {**knobs, "train_samples": data["n_train"]}, "difference": gain, "rows": rows,
            "says": [f"difference {gain['mean']:+.1f} points, 95 % interval {gain['low']:+.1f} to {gain['high']:+.1f} over n={gain['n']} "
                     f"seeds: {word} {PLAIN[name]}"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(PLAIN), help="one of the two")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="default: the tier's")
    parser.add_argument("--train", type=int, default=0, help="training samples; 0: all")
    parser.add_argument("--test", type=int, default=0, help="test samples; 0: all")
    parser.add_argument("--data", default="real", help="real, or standin to try it without data")
    parser.add_argument("--tier", default="cpu", choices=("smoke", "cpu", "gpu"))
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else PLAIN:
        with studies.trainings_aside():
            hpml.use(tier=asked.tier, run_id="real-data-seeds", data=asked.data)
            facts = answer(name, trainings(name, asked), asked.tier)
        path = studies.write(f"seeds-{name}", facts)
        print(studies.text(f"seeds-{name}", f"python benchmarks/real_data_seeds.py --only {name}"), path, sep="\n")


if __name__ == "__main__":
    main()
