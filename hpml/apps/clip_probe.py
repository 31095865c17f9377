"""Attributes from embeddings: zero-shot by one prompt and by several, and a classifier trained on them, each beside the majority class.

Answers are compared on the same frames, so the comparisons are paired: only frames on which two ways differ tell them apart.
"""

from typing import TYPE_CHECKING

from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the classifier: 1 / penalty (scikit-learn's C)
VALIDATION = 0.25  # share of the training frames on which the strength is chosen


def zero_shot(seen: "np.ndarray", prompts: "np.ndarray", values: list[str]) -> tuple["np.ndarray", "np.ndarray"]:
    """The nearest value of each frame [N], by the first template alone and by the mean of all of them; prompts [values, templates, dim]."""
    import numpy as np

    mean = prompts.mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return tuple(np.asarray(values)[(seen @ one.T).argmax(1)] for one in (prompts[:, 0], mean))


def probe(features: "np.ndarray", true: "np.ndarray", tested: "np.ndarray", *, seed: int = 0) -> tuple["np.ndarray", float]:
    """(answers to `tested` [M, d], the strength chosen) of a logistic regression on `features` [N, d] with `true` [N].

    The penalty is chosen on a part of the training frames that is held out (VALIDATION, by class), then all of them train; the tested
    frames choose nothing. Raises HpmlError where a value has fewer than two training frames or there is one value only.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    values, counts = np.unique(true, return_counts=True)
    if len(values) < 2 or counts.min() < 2:
        held = ", ".join(f"{value} {count}" for value, count in zip(values, counts, strict=True))
        raise HpmlError(f"a classifier needs two values with two training frames each, here: {held}")
    middle, spread = features.mean(0), features.std(0) + 1e-6
    scaled = (features - middle) / spread

    def fitted(rows, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000, random_state=seed).fit(scaled[rows], true[rows])

    share = max(VALIDATION, len(values) / len(true))
    part, held = train_test_split(np.arange(len(true)), test_size=share, stratify=true, random_state=seed)
    right = [(fitted(part, strength).predict(scaled[held]) == true[held]).mean() for strength in STRENGTHS]
    best = STRENGTHS[int(np.argmax(right))]
    return fitted(np.arange(len(true)), best).predict((tested - middle) / spread), best


def paired(one: "np.ndarray", other: "np.ndarray") -> dict:
    """How two lists of right and wrong [N] on the same frames differ: difference of `other` over `one` in accuracy, on how many frames each
    alone is right, and the exact two-sided probability of so unlike counts where both are equally good (McNemar)."""
    from scipy.stats import binomtest

    alone = int((one & ~other).sum()), int((other & ~one).sum())
    return {"difference": float(other.mean() - one.mean()), "only_one": alone[0], "only_other": alone[1],
            "p": float(binomtest(alone[1], sum(alone)).pvalue) if sum(alone) else 1.0}


def study(key: str, values: list[str], prompts: "np.ndarray", train: dict, test: dict) -> dict:
    """All ways to tell one attribute, on the test frames where it is known.

    train, test: {"image": [N, dim], "text": [N, dim] of captions that do not say this attribute, "true": words [N]}. Returns n, accuracy by
    way ("majority class", "one prompt", "prompt ensemble", "probe: image", "probe: text", "probe: image + text") and two paired
    comparisons: "ensemble over one prompt", "text beside the image".
    """
    import numpy as np

    known = np.isin(test["true"], values)
    true, trained = test["true"][known], np.isin(train["true"], values)
    if not known.any() or not trained.any():
        raise HpmlError(f"{key}: known of no {'test' if trained.any() else 'training'} frame")
    words, counts = np.unique(train["true"][trained], return_counts=True)
    right = {"majority class": true == words[counts.argmax()]}
    for way, said in zip(("one prompt", "prompt ensemble"), zero_shot(test["image"][known], prompts, values), strict=True):
        right[way] = said == true
    for way, parts in (("probe: image", ("image",)), ("probe: text", ("text",)), ("probe: image + text", ("image", "text"))):
        learnt, asked = (np.concatenate([each[part] for part in parts], axis=1) for each in (train, test))
        right[way] = probe(learnt[trained], train["true"][trained], asked[known])[0] == true
    return {"attribute": key, "n": int(known.sum()), "accuracy": {way: float(one.mean()) for way, one in right.items()},
            "ensemble over one prompt": paired(right["one prompt"], right["prompt ensemble"]),
            "text beside the image": paired(right["probe: image"], right["probe: image + text"])}


def studies(embedded: dict, workload, model, knobs: dict, frames) -> list[dict]:
    """`study` of each attribute. embedded: {"train", "test": (embeddings [N, dim], classes [N])} of the workload's `frames_embedded`. What
    stands beside a frame as text is its caption without the attribute in question, so that it cannot be read off."""
    import numpy as np

    from hpml.data.captions import ATTRIBUTES, UNKNOWN, attributes, captions, name

    found = []
    for key, (values, each) in workload.prompts(model, knobs, frames).items():
        if len(values) < 2:
            continue
        known = [attributes(one) for one in frames.classes]
        silent = [captions(name(*(UNKNOWN if other == key else one[other] for other in ATTRIBUTES)))[0] for one in known]
        spoken, words = workload.lines_embedded(model, knobs, frames, silent), np.asarray([one[key] for one in known])
        parts = {part: {"image": seen, "text": spoken[labels], "true": words[labels]} for part, (seen, labels) in embedded.items()}
        found.append(study(key, values, each, parts["train"], parts["test"]))
    return found


def recalls(judged: dict[str, dict]) -> str:
    """The searches of several models as a table with chance beside them; judged: evaluations of the workload by the model's name, of the
    same frames."""
    last = next(reversed(judged.values()))
    names = [name for name in last["details"] if name.startswith("recall@")]
    names.sort(key=lambda name: (name.split(", ")[1], len(name), name))  # by the way of the search, then by depth
    rows = {last["metric"]: ([one["value"] for one in judged.values()], last["chance"])}
    rows |= {name: ([one["details"][name] for one in judged.values()], last["details"][f"chance of {name}"]) for name in names}
    wide = max(map(len, rows)) + 2
    lines = [" " * wide + "".join(f"{name:>12}" for name in [*judged, "chance"])]
    lines += [f"{name:<{wide}}" + "".join(f"{value:>12.1%}" for value in [*values, chance]) for name, (values, chance) in rows.items()]
    return "\n".join(lines)


def text(found: list[dict]) -> str:
    """The studies as a table of fixed width, and what each paired comparison says: all together are wrong in one of twenty (Bonferroni)."""
    comparisons = ("ensemble over one prompt", "text beside the image")
    enough = 0.05 / (len(comparisons) * len(found))
    ways = list(found[0]["accuracy"])
    lines = [f"{'':<22}" + "".join(f"{one['attribute']:>12}" for one in found)]
    lines += [f"{way:<22}" + "".join(f"{one['accuracy'][way]:>12.1%}" for one in found) for way in ways]
    lines.append(f"{'test frames':<22}" + "".join(f"{one['n']:>12,}" for one in found))
    for what in comparisons:
        for one in found:
            pair = one[what]
            word = "no difference shown" if pair["p"] > enough else "better" if pair["difference"] > 0 else "worse"
            lines.append(f"{what}, {one['attribute']}: {100 * pair['difference']:+.1f} points ({pair['only_other']} frames against "
                         f"{pair['only_one']}, p = {pair['p']:.2g}): {word}")
    lines.append(f"{len(comparisons) * len(found)} comparisons are made, so one counts below p = {enough:.2g}")
    return "\n".join(lines)
