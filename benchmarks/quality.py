"""What the standard four get right and wrong, beyond one score: one study each, one JSON each, read by notebooks 10 to 13.

    [HPML_DATA=FOLDER] python benchmarks/quality.py whole|optimizers|lengths|masks|calibration [--tier cpu] [--data auto] [--seeds 5]

whole (10): ResNet-50 from random weights on every image that there is, accuracy by epoch, and how long it took.
optimizers (10): ResNet-50 with SGD and with Adam, five seeds that both share: the difference is paired.
lengths (11): XLNet trained at several lengths: speed beside quality; the longest one's errors by confidence.
masks (12): DeepLabV3: IoU by class, of the outline alone (boundary IoU), the best and the worst pictures.
calibration (13): ResNet-152: top-1 and top-5, and how far its confidence may be believed (expected calibration error).

Each trains by the tier's own rule, on the real data where it is, else on stand-ins; the file says which. With HPML_RESULTS set, a training
that was made before is not made again. `--tier smoke --seeds 2` shows in minutes that it works, and is no result.
"""

import argparse

import numpy as np

import hpml
from hpml import env, scoring, studies, train

RUN = "quality"
SHOWN = 3  # best and worst pictures


def trained(case):
    """The record of a finished training. Ends with the reason where it did not finish."""
    record = hpml.run(case, rounds=1, run_id=RUN).records[-1]
    if record.status != "ok":
        raise SystemExit(f"{case.workload}: {record.status}: {record.reason}")
    return record


def answers(record) -> dict:
    """predictions, labels and confidence of the test samples."""
    with np.load(env.run_dir(RUN) / "models" / record.actual["artefacts"]["predictions"]) as left:
        return dict(left)


def about(*records) -> dict:
    record, data = records[-1], records[-1].actual["data"]
    return {"disturbance": {"busy": any(one.protocol["busy"] for one in records)}, "tier": record.case["tier"],
            "data": f"{data['title']} ({data['origin']})", "n": record.quality["n"],
            "knobs": {name: record.knobs[name] for name in ("variant", "image", "length", "batch", "epochs", "weights", "train_samples")
                      if name in record.knobs}}


def whole(asked) -> dict:
    knobs = {"precision": "bf16", "memory_format": "channels_last"} if train.bf16_native() else {}
    record = trained(hpml.case("resnet50", fit=True, train_samples=0, test_samples=0, batch=128, epochs=asked.epochs, **knobs))
    curve, minutes, data = record.quality["curve"], record.protocol["took_s"] / 60, record.actual["data"]
    rows = [{"epoch": epoch, "loss": f"{loss:.3f}", "top-1": f"{value:.1%}"} for epoch, loss, value in curve]
    return {**about(record), "curve": curve, "minutes": minutes, "rows": rows,
            "says": [f"{record.quality['value']:.1%} of {record.quality['n']:,} test images after {asked.epochs} epochs of "
                     f"{data['n_train']:,} images, {minutes:.0f} minutes on {record.machine['cores']} cores in {record.knobs['precision']} "
                     f"(chance {record.quality['chance']:.0%})"]}


def optimizers(asked) -> dict:
    found = {name: [trained(hpml.case("resnet50", fit=True, optimizer=name, seed=seed)) for seed in range(asked.seeds)]
             for name in ("sgd", "adam")}
    values = {name: [record.quality["value"] for record in records] for name, records in found.items()}
    gain = scoring.paired_difference(values["sgd"], values["adam"])
    word = "better than SGD" if gain["low"] > 0 else "worse than SGD" if gain["high"] < 0 else "not shown to differ from SGD"
    rows = [{"optimizer": name, "top-1 by seed": " ".join(f"{100 * value:.1f}" for value in each), "mean": f"{np.mean(each):.1%}"}
            for name, each in values.items()]
    return {**about(*found["sgd"], *found["adam"]), "values": values, "difference": gain, "rows": rows,
            "says": [f"Adam is {word}: {100 * gain['mean']:+.1f} points, 95 % interval {100 * gain['low']:+.1f} to "
                     f"{100 * gain['high']:+.1f} over {gain['n']} paired seeds"]}


def lengths(asked) -> dict:
    chosen = [int(length) for length in asked.lengths.split(",")]
    found = [trained(hpml.case("xlnet", fit=True, length=length)) for length in chosen]
    values = [record.quality["value"] for record in found]
    speeds = [record.samples["items"] * len(record.samples["values"]) / sum(record.samples["values"])
              for record in found]
    left = answers(found[-1])
    right, sure = left["predictions"] == left["labels"], left["confidence"]
    bins = scoring.by_confidence(right, sure)
    error = 100 * (values[0] * (1 - values[0]) / found[0].quality["n"]) ** 0.5
    rows = [{"tokens": length, "accuracy": f"{value:.1%}", "reviews/s in training": f"{speed:.3g}"}
            for length, value, speed in zip(chosen, values, speeds, strict=True)]
    wrong = [row for row in bins["bins"] if row["right"] < 1]
    said = [f"from {chosen[0]} to {chosen[-1]} tokens accuracy moves by {100 * (values[-1] - values[0]):+.1f} points "
            f"(standard error of one figure: {error:.1f}) and a training runs at {speeds[-1] / speeds[0]:.2f}x the speed"]
    said += [f"{row['from']:.0%} to {row['to']:.0%} sure: {1 - row['right']:.1%} wrong (n={row['n']})" for row in wrong]
    return {**about(*found), "values": values, "speeds": speeds, "by_confidence": bins, "rows": rows, "says": said}


def masks(asked) -> dict:
    record = trained(hpml.case("deeplabv3", fit=True))
    left = answers(record)
    true, said = left["labels"], left["predictions"]
    classes, width = record.actual["classes"], max(1, round(0.02 * np.hypot(*true.shape[1:])))  # 2 % of the diagonal, as in the paper
    each = scoring.mask_ious(true, said, len(classes))
    rims = [[value for t, s in zip(true == c, said == c, strict=True) if (value := scoring.boundary_iou(t, s, width)) is not None]
            for c in range(len(classes))]
    order = np.argsort(each[:, 0])
    rows = [{"class": name, "IoU": f"{record.quality['details'][f'IoU {name}']:.1%}", "mean of pictures": f"{np.nanmean(each[:, c]):.1%}",
             "boundary IoU": f"{np.mean(rims[c]):.1%}"} for c, name in enumerate(classes)]
    ends = {"worst": order[:SHOWN].tolist(), "best": order[::-1][:SHOWN].tolist()}
    return {**about(record), "rim_px": width, "iou_by_picture": each[:, 0].tolist(), **ends, "rows": rows,
            "says": [f"boundary IoU looks at a rim of {width} pixels; of {classes[0]} it is {np.mean(rims[0]):.1%} beside "
                     f"{np.nanmean(each[:, 0]):.1%} of whole pictures",
                     *(f"{word} test pictures, by number: " + ", ".join(f"{i} ({each[i, 0]:.0%})" for i in chosen)
                       for word, chosen in ends.items())]}


def calibration(asked) -> dict:
    record = trained(hpml.case("resnet152", fit=True))
    left, details = answers(record), record.quality["details"]
    right = left["predictions"] == left["labels"]
    bins = scoring.by_confidence(right, left["confidence"])
    bias = float(left["confidence"].mean() - right.mean())
    rows = [{"confidence": f"{row['from']:.0%} to {row['to']:.0%}", "right": f"{row['right']:.1%}", "n": row["n"]} for row in bins["bins"]]
    return {**about(record), "top1": record.quality["value"], "top5": details["top-5 accuracy"], **bins, "rows": rows,
            "says": [f"top-1 {record.quality['value']:.1%} (chance {record.quality['chance']:.2%}), top-5 {details['top-5 accuracy']:.1%}; "
                     f"{100 * abs(bias):.1f} points {'more' if bias > 0 else 'less'} sure than right; "
                     f"expected calibration error {bins['ece']:.1%}"]}


STUDIES = {"whole": whole, "optimizers": optimizers, "lengths": lengths, "masks": masks, "calibration": calibration}


def main() -> None:
    """Makes one study, prints it and leaves its file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--tier", default="cpu", choices=("smoke", "cpu", "gpu"))
    parser.add_argument("--data", default="auto", help="auto, real, standin or a data set by name")
    parser.add_argument("--seeds", type=int, default=5, help="of optimizers")
    parser.add_argument("--epochs", type=int, default=3, help="of whole")
    parser.add_argument("--lengths", default="32,64,128", help="of lengths: tokens of a review")
    asked = parser.parse_args()
    with studies.trainings_aside():
        hpml.use(tier=asked.tier, run_id=RUN, data=asked.data)
        facts = STUDIES[asked.study](asked)
    path = studies.write(f"quality-{asked.study}", facts)
    print(studies.text(f"quality-{asked.study}", f"python benchmarks/quality.py {asked.study}"), path, sep="\n")


if __name__ == "__main__":
    main()
