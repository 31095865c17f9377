"""Charts of whether a training is sound: the gradient by layer, and whether a confidence can be believed."""

from collections.abc import Sequence

from hpml import tables
from hpml.plot_look import INK, SERIES, SOFT, clean_lines, figure_of, finish, styled
from hpml.records import Record


@styled
def gradients(record: Record):
    """Norm of each layer's gradient, first layer to last, at a fit's first and last step; zeros stand at the foot. Returns the Axes."""
    steps = record.actual["gradients"]
    figure, grid = figure_of(3.6)
    axes = grid[0, 0]
    positive = [norm for step in steps for _, norm in step if norm > 0]
    foot = min(positive) / 10 if positive else 1e-12
    said = []
    for step, word, shade in zip(steps, ("first step", "last step"), SERIES, strict=False):
        norms = [norm for _, norm in step]
        none = sum(norm == 0 for norm in norms)
        axes.plot(range(1, len(norms) + 1), [norm or foot for norm in norms], color=shade, linewidth=1, marker=".", markersize=4,
                  label=word + (f" ({none} layers without gradient)" if none else ""))
        said.append(f"{word}: {norms[0]:.2g} at the first layer, {norms[-1]:.2g} at the last, {none} without gradient")
    axes.set_yscale("log")
    axes.set_xlabel("layer, from the input to the output")
    axes.set_ylabel("norm of its gradient")
    axes.legend(loc="upper center")
    last = [norm for _, norm in steps[-1] if norm > 0]
    claim = (f"At the last step {len(last)} of {len(steps[-1])} layers have a gradient, within a factor of {max(last) / min(last):,.0f}"
             if last else "No layer has a gradient")
    caption = f"{len(steps[0])} weights with two or more dimensions; {record.actual['data']['title']} ({record.actual['data']['origin']})."
    titled = f"{tables.SMOKE}\n{claim}" if record.case.get("tier") == "smoke" else claim
    return finish(axes, clean_lines(titled), caption, f"Gradient norms by layer, logarithmic. {claim}. " + "; ".join(said) + ".")


@styled
def memorised(record: Record):
    """The loss of a fit that sees one batch again and again, step by step. Returns the Axes."""
    losses, every = record.quality["losses"], record.quality.get("losses_every") or 1
    figure, grid = figure_of(3.2)
    axes = grid[0, 0]
    axes.plot([1 + every * i for i in range(len(losses))], losses, color=SERIES[0], linewidth=1.6, marker=".", markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the batch")
    word = "falls" if losses[-1] < losses[0] else "does not fall"
    claim = f"One batch by heart: its loss {word}, from {losses[0]:.2f} to {losses[-1]:.2f}"
    caption = f"{record.knobs['epochs']} epochs; {record.actual['data']['title']} ({record.actual['data']['origin']})."
    titled = f"{tables.SMOKE}\n{claim}" if record.case.get("tier") == "smoke" else claim
    return finish(axes, clean_lines(titled), caption, f"Loss by step. {claim}.")


@styled
def reliability(labels: Sequence[int], predictions: Sequence[int], confidence: Sequence[float], bins: int = 10):
    """Accuracy of the answers by their confidence, beside the diagonal of a model that knows what it does not know (Guo et al., 2017,
    arXiv:1706.04599). Returns the Axes."""
    import numpy as np

    right, sure = np.asarray(labels) == np.asarray(predictions), np.asarray(confidence, dtype=float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    figure, grid = figure_of(3.6)
    axes = grid[0, 0]
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=":")
    error, said = 0.0, []
    for b in sorted(set(place.tolist())):
        own = place == b
        accuracy, mean = right[own].mean(), sure[own].mean()
        error += own.mean() * abs(accuracy - mean)
        axes.bar([100 * (b + 0.5) / bins], [100 * accuracy], width=92 / bins, color=SERIES[0], alpha=0.85)
        axes.plot([100 * mean], [100 * accuracy], marker="o", color=INK, markersize=4)
        axes.text(100 * (b + 0.5) / bins, 100 * accuracy + 2, f"{own.sum()}", ha="center", fontsize=8)
        said.append(f"{100 * mean:.0f} % sure: {100 * accuracy:.0f} % right (n={own.sum()})")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 108)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("right, %")
    bias = 100 * (sure.mean() - right.mean())
    word = "more" if bias > 0 else "less"
    claim = f"It is {abs(bias):.0f} points {word} sure than right; expected calibration error {100 * error:.0f} %"
    return finish(axes, claim, f"n = {len(right):,} test images, their number over each bar; dotted: perfectly calibrated.",
                  f"Reliability diagram. {claim}. " + "; ".join(said) + ".")
