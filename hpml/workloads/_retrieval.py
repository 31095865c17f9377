"""Search by embeddings, scored: recall with repeated answers, a query never its own answer, zero-shot attributes, chance beside each."""

TEMPERATURE = 0.07  # of the probabilities that are called confidence: where CLIP's own starts


def scores(seen, labels, classes: list[str], texts: dict) -> dict:
    """value, right, n, chance, details, predictions, labels and confidence of frames' embeddings `seen` [N, dim] with classes `labels` [N].

    value: share of frames whose nearest caption is that of their class, which says all attributes; candidates are the captions of all
    classes, each once. chance: always the largest class. details: recall@5 and @10; text to image, one query for each class that is
    tested, right is every frame of it; image to image, right is every other frame of the class, the query itself is no candidate, and a
    frame without another one of its class asks nothing; zero-shot accuracy of each attribute over the frames where it is known. texts: of
    hpml.workloads.clip.texts.
    """
    import numpy as np

    from hpml.data.captions import UNKNOWN, attributes

    similar, tested = seen @ texts["captions"].T, np.unique(labels)
    near, own = seen @ seen.T, np.eye(len(labels), dtype=bool)
    near[own] = -np.inf
    details = {}
    for way, ranked, right, depths in (("image to text", similar, labels[:, None] == np.arange(len(classes)), (5, 10)),
                                       ("text to image", similar.T[tested], tested[:, None] == labels, (1, 5, 10)),
                                       ("image to image", near, (labels[:, None] == labels) & ~own, (1, 5, 10))):
        for k in depths:
            details[f"recall@{k}, {way}"], details[f"chance of recall@{k}, {way}"] = recall(ranked, right, k)
    for key in (key for key in texts if key != "captions"):
        values, prompts = texts[key]
        true = np.array([attributes(one)[key] for one in classes])[labels]
        known = true != UNKNOWN
        if known.any():
            said = np.array(values)[(seen @ prompts.T).argmax(1)]
            details[f"zero-shot {key}"] = float((said == true)[known].mean())
            details[f"chance of zero-shot {key}"] = float(np.unique(true[known], return_counts=True)[1].max() / known.sum())
    answers = similar.argmax(1)
    likely = np.exp((similar - similar.max(1, keepdims=True)) / TEMPERATURE)
    right = answers == labels
    return {"value": float(right.mean()), "right": right, "n": len(labels),
            "chance": float(np.bincount(labels).max() / len(labels)), "details": details, "predictions": answers, "labels": labels,
            "confidence": (likely / likely.sum(1, keepdims=True)).max(1)}


def recall(ranked, right, k: int) -> tuple[float, float]:
    """(share of queries with a right item among their first `k`, what a random order reaches), over the queries that have a right item.

    ranked: scores [queries, items], -inf where an item is no candidate; right: bool of the same shape.
    """
    import numpy as np

    asked = right.any(1)
    if not asked.any():
        return 0.0, 0.0
    ranked, right = ranked[asked], right[asked]
    items, good = np.isfinite(ranked).sum(1), right.sum(1)
    best = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    missed = np.ones(len(ranked))
    for drawn in range(k):  # without replacement: none of k draws is right
        missed *= np.clip(items - good - drawn, 0, None) / np.maximum(items - drawn, 1)
    return float(np.take_along_axis(right, best, 1).any(1).mean()), float((1 - missed).mean())
