"""Charts of trainings: curves, confusion, pictures and masks."""

import statistics
import textwrap
from collections.abc import Sequence

from hpml import tables
from hpml.plot_look import INK, SERIES, SOFT, clean, figure_of, finish, styled
from hpml.records import Record
from hpml.wording import words

LIGHT = "#F3E9A2"  # a boundary's colour: seen on fur and on ground


def titled(claim: str, records: Sequence[Record]) -> str:
    """The claim, after a line that says smoke where a record is of that tier."""
    return f"{tables.SMOKE}\n{claim}" if any(r.case.get("tier") == "smoke" for r in records) else claim


def origin(records: Sequence[Record]) -> str:
    """Rounds, machine, tier and data of the records that a chart shows."""
    rounds = {r.protocol.get("round") for r in records}
    data = dict.fromkeys(f"{d['title']} ({d['origin']})" for r in records if (d := r.actual.get("data")))
    parts = [
        f"n = {len(rounds)} round{'s' * (len(rounds) != 1)}" if records else "nothing measured",
        ", ".join(dict.fromkeys(r.machine.get("id", "unknown machine") for r in records)),
        ", ".join(dict.fromkeys(f"tier {r.case.get('tier', '?')}" for r in records)),
        ", ".join(data),
    ]
    return clean("; ".join(filter(None, parts)))


def names_of(records: Sequence[Record]) -> dict[str, str]:
    """Case key -> what the case is called beside the others, in words."""
    several = len({r.case["workload"] for r in records}) > 1
    varying: dict[str, set[str]] = {}
    for r in records:
        varying.setdefault(r.case["group"], set()).update(r.case.get("differs_in", []))
    return {r.case["key"]: clean((f"{tables.title(r.case['workload'])}, " if several else "")
                                 + (words(r.knobs, varying[r.case["group"]]) or r.case.get("label", "")), 60) for r in records}


@styled
def curves(records: Sequence[Record]):
    """Loss and quality over the epochs of each fit: thin lines are seeds, the thick one is their mean. Returns the quality's Axes."""
    fits = [r for r in records if r.status == "ok" and r.quality and r.quality.get("curve")]
    names = names_of(fits)
    figure, grid = figure_of(3.6, columns=2)
    quality, loss = grid[0]
    finals: dict[str, list[float]] = {}
    for i, (key, name) in enumerate(names.items()):
        shade, own = SERIES[i % len(SERIES)], [r for r in fits if r.case["key"] == key]
        finals[name] = [r.quality["curve"][-1][2] for r in own]
        for r in own:
            epochs = [point[0] for point in r.quality["curve"]]
            steps = r.quality.get("losses") or []
            if steps:
                axis = [(j + 0.5) * epochs[-1] / len(steps) for j in range(len(steps))]
                loss.plot(axis, steps, color=shade, alpha=0.25, linewidth=0.7)
            if len(own) > 1:
                quality.plot(epochs, [100 * point[2] for point in r.quality["curve"]], color=shade, alpha=0.4, linewidth=0.8)
        for axes, column, factor in ((loss, 1, 1), (quality, 2, 100)):
            found: dict[float, list[float]] = {}
            for point in (p for r in own for p in r.quality["curve"]):
                found.setdefault(point[0], []).append(factor * point[column])
            axes.plot(
                list(found),
                [statistics.fmean(v) for v in found.values()],
                color=shade,
                linewidth=2,
                marker="o",
                markersize=3.5,
                label="\n".join(textwrap.wrap(name, 28)),
            )
    metric = fits[0].quality["metric"] if fits else "quality"
    if fits:
        quality.axhline(100 * fits[0].quality["chance"], color=SOFT, linewidth=1, linestyle=":")
        quality.text(
            1,
            100 * fits[0].quality["chance"],
            "chance ",
            transform=quality.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color=SOFT,
        )
    if len(names) > 1:
        loss.legend(loc="upper right")  # where a falling loss leaves room
    for axes, label in ((quality, f"{metric}, %"), (loss, "training loss")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(clean(label))
        axes.set_xlim(0, None)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set_ylim(0, None)
    reached = [f"{name if len(finals) > 1 else ''} {100 * statistics.fmean(values):.1f} %".lstrip() for name, values in finals.items()]
    seeds = max(map(len, finals.values()), default=0)
    last = max((r.quality["curve"][-1][0] for r in fits), default=0)
    claim = f"{metric} after {last} epoch{'s' * (last != 1)}: {', '.join(reached)}" if fits else "No training has finished an epoch yet"
    tests = f", {fits[0].quality['n']:,} test samples" if fits else ""
    caption = (
        f"Left: after each epoch, {seeds} seed{'s' * (seeds != 1)}{tests}; right: steps (thin), epoch means (thick). {origin(fits)}."
    )
    alt = (
        f"Curves of {metric} and loss. {claim}. Loss at the end: "
        + ", ".join(f"{names[r.case['key']]} {tables.figure(r.quality['curve'][-1][1])}" for r in fits)
        + "."
    )
    return finish(quality, titled(claim[0].upper() + claim[1:], fits), caption, alt)


@styled
def confusion(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]):
    """Which class is taken for which: rows are the true classes, shares of each row. Numbers up to 12 classes. Returns the Axes."""
    import numpy as np

    labels, predictions, size = np.asarray(labels), np.asarray(predictions), len(classes)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (labels, predictions), 1)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, grid = figure_of(5.4)
    axes = grid[0, 0]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    names = [clean(name, 14) for name in classes]
    if size <= 12:
        for y, x in np.ndindex(size, size):
            if counts[y, x]:
                axes.text(x, y, f"{shares[y, x]:.0f}", ha="center", va="center", fontsize=8, color="white" if shares[y, x] > 55 else INK)
        axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    wrong = counts - np.diag(np.diag(counts))
    claim = f"{100 * np.trace(counts) / max(counts.sum(), 1):.1f} % of {counts.sum():,} right"
    if wrong.any():
        true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
        claim += f"; most frequent mistake: {classes[true]} taken for {classes[taken]} ({wrong[true, taken]} of {counts[true].sum()})"
    weakest = sorted(range(size), key=lambda i: shares[i, i])[:3]
    alt = (
        f"Confusion matrix of {size} classes. {claim}. Weakest: " + ", ".join(f"{classes[i]} {shares[i, i]:.0f} %" for i in weakest) + "."
    )
    return finish(axes, clean(claim), "Numbers: % of the true class (row).", alt)


@styled
def pictures(images, titles: Sequence[str], columns: int = 8, high: float = 0.0):
    """A grid of pictures with a title over each. images: N arrays [H, W], [H, W, 3], uint8 or floats in 0..1. `high` is their height over
    their width, kept as it is; 0 draws squares, nearly. Returns the one Axes."""
    import numpy as np

    images = [np.asarray(image) for image in images]
    rows = max(1, -(-len(images) // columns))
    room = 0.12 if columns > 5 else 0.08  # a line of text, as a share of a picture
    lines = [_two_lines(title, max(6, 100 // columns)) for title in titles]
    top = room * max((line.count("\n") + 1 for line in lines), default=1) * max(1, columns / 5) + 0.06
    tall = high or 1.0
    figure, grid = figure_of(0.5 + rows * (tall + top) * 5.8 / columns)
    axes = grid[0, 0]
    for i, (image, title) in enumerate(zip(images, lines, strict=True)):
        x, y = i % columns, (i // columns) * (tall + top) + top
        axes.imshow(
            image,
            extent=(x + 0.02, x + 0.98, y + 0.96 * tall, y),
            cmap="gray",
            vmin=0,
            vmax=255 if image.dtype == np.uint8 else 1,
            aspect="auto",
        )
        axes.text(x + 0.5, y - 0.03, title, ha="center", va="bottom", fontsize=7.5, linespacing=1.05)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows * (tall + top), 0)
    axes.set_axis_off()
    if high:
        axes.set_aspect("equal")
    alt = f"{len(images)} pictures: " + "; ".join(" ".join(str(title).split()) for title in titles) + "."
    return finish(axes, "", "", alt)


def masked(image, mask, opacity: float = 0.65):
    """`image` uint8 [H, W, 3] with its mask [H, W] painted over: class 0 dark, class 1 (the ground) not at all, class 2 light. uint8."""
    import numpy as np
    from matplotlib.colors import to_rgb

    tint = np.array([to_rgb(SERIES[0]), (0, 0, 0), to_rgb(LIGHT)])[np.asarray(mask)] * 255
    painted = (np.asarray(mask) != 1)[..., None] * opacity
    return np.round(np.asarray(image) * (1 - painted) + tint * painted).astype(np.uint8)


@styled
def distances(errors: Sequence[float], within: float):
    """Share of places that are at most so many pixels off, beside the distance `within` that counts as right. Returns the Axes."""
    import numpy as np

    errors = np.sort(np.asarray(errors, dtype=float))
    figure, grid = figure_of(3.0)
    axes = grid[0, 0]
    axes.step([*errors.clip(0.1), max(errors[-1], 1.0) * 1.05], [*(100 * np.arange(1, len(errors) + 1) / len(errors)), 100], where="post",
              color=SERIES[0])
    right = 100 * float((errors <= within).mean())
    axes.axvline(within, color=SOFT, linewidth=1, linestyle=":")
    axes.plot([within], [right], marker="o", color=INK, markersize=5)
    axes.set_xscale("log")
    axes.set_xlim(min(max(0.1, errors[0]), within / 2), None)
    axes.set_ylim(0, 103)
    axes.set_xlabel("error, pixels of the frame")
    axes.set_ylabel("frames at most so far off, %")
    claim = f"{right:.0f} % are within {within:g} px; half are within {np.median(errors):.1f} px, the mean is {errors.mean():.1f} px"
    return finish(axes, claim, f"n = {len(errors):,} frames with a visible shuttle; dotted: what counts as right.",
                  f"Cumulative distribution of pixel errors. {claim}. Nine in ten are within {np.quantile(errors, 0.9):.1f} px.")


def marked(image, places: Sequence[tuple[float, float]], side: int):
    """The `side` x `side` pixels of `image` uint8 [H, W, 3] around the first place, four times as large, with a dark ring around it and a
    light one around the second. uint8."""
    import numpy as np
    from matplotlib.colors import to_rgb
    from PIL import Image, ImageDraw

    image = np.asarray(image)
    left, top = (int(np.clip(value - side / 2, 0, max(0, size - side)))
                 for value, size in zip(places[0], (image.shape[1], image.shape[0]), strict=True))
    picture = Image.fromarray(image[top:top + side, left:left + side])
    picture = picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST)
    for (x, y), shade in zip(places, (SERIES[0], LIGHT), strict=False):
        x, y, colour = 4 * (x - left), 4 * (y - top), tuple(round(255 * part) for part in to_rgb(shade))
        ImageDraw.Draw(picture).ellipse([x - 14, y - 14, x + 14, y + 14], outline=colour, width=3)
    return np.asarray(picture)


def _two_lines(title: str, width: int) -> str:
    lines = textwrap.wrap(clean(title), width, break_long_words=True)
    return "\n".join([*lines[:1], clean(" ".join(lines[1:]), width)] if len(lines) > 1 else lines)
