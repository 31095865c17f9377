"""Charts: what they say (titles, captions, texts, data, alternative text), not their pixels."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from test_tables import DATA, fit, limit, make, noise, study, sweep

from hpml import compare, plot, tables
from hpml.plot_look import ENGINES, clean


@pytest.fixture(autouse=True)
def close():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def rows():
    return compare.rows(study())


def group(rows, name, workload="resnet50"):
    return [row for row in rows if row.workload == workload and name in row.group]


def texts(axes) -> str:
    """All words in a chart, with its title and caption."""
    figure = axes.figure
    found = [t.get_text() for ax in figure.axes for t in ax.texts] + [ax.get_title(loc="left") for ax in figure.axes]
    labels = [t.get_text() for ax in figure.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label)]
    caption = [figure.get_supxlabel()]
    return " ".join(" ".join([*found, *labels, *caption]).replace("\u00a0", " ").split())


def inside(axes) -> None:
    """No text leaves the picture."""
    figure = axes.figure
    figure.draw_without_rendering()
    box = figure.bbox
    words = [t for ax in figure.axes for t in (*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label)] + list(figure.texts)
    for word in words:
        extent = word.get_window_extent()
        if word.get_text().strip():
            assert extent.x0 >= box.x0 - 2 and extent.x1 <= box.x1 + 2, f"{word.get_text()!r} is cut at the side"
            assert extent.y0 >= box.y0 - 2 and extent.y1 <= box.y1 + 2, f"{word.get_text()!r} is cut above or below"


def bars(axes, *, hatched: bool = False) -> list[tuple[float, float, str]]:
    """(from, to, colour) of the bars that have a length, without the hatched ones or with them."""
    return [
        (b.get_x(), b.get_x() + b.get_width(), to_hex(b.get_facecolor()).upper())
        for c in axes.containers
        if hasattr(c, "patches")
        for b in c.patches
        if (hatched or not b.get_hatch()) and b.get_width()
    ]


def test_comparison_shows_ratio_interval_noise_guess_and_what_is_missing(rows):
    chosen = group(rows, "precision")
    axes = plot.comparison(chosen, guess=1.5)
    row = chosen[1]
    shown = texts(axes)
    assert f"ResNet-50 training: BF16 is faster, {row.ratio:.2f}x, quality kept" in shown
    for part in (
        f"▲ {row.ratio:.2f}x",
        tables.figure(row.per_s, "samples/s"),
        "24.0 % of compute limit",
        "your guess 1.50x",
        "baseline",
        "not measured: FP16 training on a CPU: no fast FP16 here",
        "n = 4 rounds",
        "noise floor",
        row.machine,
        "tier cpu",
        "CIFAR-10 (real)",
    ):
        assert part in shown, part
    assert pytest.approx(1 / (1 + row.floor)) in [left for left, _, _ in bars(axes)]
    assert any(right == pytest.approx(row.ratio) and shade == ENGINES["eager"] for _, right, shade in bars(axes))
    lines = [line for line in axes.lines if line.get_marker() == "D"]
    assert list(lines[0].get_xdata()) == [1.5]
    errors = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
    assert any(np.allclose(sorted(s[0][:, 0]), [row.low, row.high]) for s in errors if len(s))
    assert sum(bool(b.get_hatch()) for c in axes.containers if hasattr(c, "patches") for b in c.patches) == 1
    inside(axes)
    assert "FP16: not measured here: FP16" in axes.figure.hpml_alt


def test_comparison_titles_of_other_outcomes(rows):
    assert "no difference above" in texts(plot.comparison(group(rows, "memory_format")))
    assert "2 of 3 measured cases are faster; fastest: 1 loader worker" in texts(plot.comparison(group(rows, "workers")))
    assert "too few rounds (2 of 3)" in texts(plot.comparison(group(rows, "workers", "xlnet")))
    slow = compare.rows(noise() + sweep("workers", [0, 2, 4], rates=(50, 40, 30)))
    assert "no case is faster; 2 of 2 slower; slowest: 4 loader workers" in texts(plot.comparison(slow))
    lost = compare.rows(sweep("precision", ["fp32", "bf16"], lost={"bf16": ("oom", "too big")}))
    assert "ResNet-50 training: not measured here" in texts(plot.comparison(lost))
    assert texts(plot.comparison(rows[:1], title="My words")).count("My words") == 1


def test_comparison_of_several_workloads_has_headings_and_of_engines_their_colours(rows):
    axes = plot.comparison([row for row in rows if row.phase == "train" and "precision" in row.group])
    assert "ResNet-50" in texts(axes) and "XLNet" in texts(axes)
    axes = plot.comparison([row for row in rows if row.phase == "infer"])
    shades = {shade for _, _, shade in bars(axes)}
    assert {ENGINES["onnxruntime"], ENGINES["openvino"]} <= shades
    assert "OpenVINO, batch 32" in texts(axes)
    inside(axes)


def test_the_limit_is_a_mark_when_near_and_a_text_when_far():
    def marks(percent):
        axes = plot.comparison(compare.rows(noise() + sweep("precision", ["fp32", "bf16"], rates=(50, 69), limit=percent)))
        return [t.get_text() for t in axes.texts].count("limit"), texts(axes)

    assert marks(80.0)[0] >= 1
    count, shown = marks(3.0)
    assert count == 0 and "3.00 % of compute limit" in shown


def test_smoke_is_no_result():
    axes = plot.comparison(compare.rows(sweep("precision", ["fp32", "bf16"], rounds=3, rates=(50, 90), tier="smoke")))
    title = axes.get_title(loc="left")
    assert title.startswith("smoke: not a result") and "faster" not in title


def test_foreign_text_is_text():
    lost = compare.rows(sweep("precision", ["fp32", "bf16"], lost={"bf16": ("failed", "$\\frac{$ x_1 $\n" + "long " * 60)}))
    axes = plot.comparison(lost)
    inside(axes)
    assert "…" in texts(axes) and clean("a $x$\nb") == r"a \$x\$ b"
    assert axes.figure.hpml_alt.count("long") == 60


@pytest.mark.parametrize(
    "function",
    [plot.comparison, plot.worth, plot.phases, plot.curves, plot.speed_quality, plot.latency, plot.limits, plot.noise],
)
def test_charts_of_nothing_say_so(function):
    axes = function([])
    assert axes.get_title(loc="left") and axes.figure.hpml_alt


def test_worth_is_a_grid_with_verdicts_quality_and_hatching(rows):
    axes = plot.worth(rows)
    shown = texts(axes)
    row = group(rows, "precision")[1]
    assert f"▲ {row.ratio:.2f}x ✓" in shown and "▼ 0.8" in shown and "? 1.0" in shown and "= 1.00x" in shown
    assert "Training" in shown and "Inference, over FP32 in PyTorch" in shown and "BF16 + channels-last" in shown and "XLNet" in shown
    assert "Measured for no workload: FP16, TensorRT." in shown and not any(p.get_hatch() for p in axes.patches)
    assert "Faster in 7 of 10 measured cases, quality shown to be kept in 1 of them; best of these: ResNet-50, BF16 (1.38x over FP32)" in \
        shown
    late = [dataclasses.replace(row, status="skipped") if row.status == "unsupported" else row for row in rows]
    assert sum(bool(p.get_hatch()) for p in plot.worth(late).patches) == 2, "what the budget did not reach is still asked"
    inside(axes)
    other = [dataclasses.replace(row, machine="another-machine") for row in rows]
    assert len(plot.worth([*rows, *other]).figure.axes) == 2


def test_worth_leaves_out_rungs_and_what_has_no_rate(rows):
    steps = {"workers": 2, "memory_format": "channels_last", "precision": "bf16"}
    sets = [{}, *({name: steps[name] for name in names} for names in (
        ("workers",), ("workers", "memory_format"), ("workers", "memory_format", "precision"), ("precision",), ("memory_format",)))]
    climbed = [make(changes=c, varying=tuple(steps), group="l", number=n, order=o, per_s=50 + o)
               for n in range(3) for o, c in enumerate(sets)]
    exported = [dataclasses.replace(row, phase="export", status="failed", per_s=None, ratio=None) for row in group(rows, "precision")]
    shown = texts(plot.worth([*compare.rows(climbed), *exported]))
    assert shown.count("x –") == 4, "three steps alone and the whole stack"
    assert "Training" in shown and "xport" not in shown


def test_worth_keeps_a_stack_whose_steps_cannot_be_taken_alone():
    """FP32 has no ranges that could be taken at each call, so dynamic INT8 in one engine is no rung of dynamic INT8 in another."""
    int8 = {"precision": "int8", "quantization": "dynamic"}
    cases = [make(phase="infer", base={"engine": "onnxruntime", "quantization": "static"}, changes=c, varying=("precision", "engine"),
                  group="q", number=n, order=o, per_s=50 + 9 * o)
             for n in range(3) for o, c in enumerate(({}, int8, {"engine": "openvino"}, {"engine": "openvino", **int8}))]
    shown = texts(plot.worth(compare.rows(cases)))
    assert "dynamic INT8 OpenVINO dynamic INT8 in OpenVINO" in shown
    assert "Inference, over FP32 in ONNX Runtime" in shown and shown.count("x –") == 3


def test_worth_shows_one_size_of_a_technique():
    def cases(batch, engine):
        return [make(phase="infer", base={"batch": batch}, changes=c, varying=("engine",), group=f"e{batch}", number=n, order=o,
                     per_s=50 + 9 * o * batch) for n in range(3) for o, c in enumerate(({}, {"engine": engine}))]

    found = compare.rows([*cases(8, "openvino"), *cases(1, "openvino")])
    shown = texts(plot.worth(found))
    assert shown.count("x –") == 1 and "1.18x" in shown and "Of several sizes the smallest batch on all threads" in shown
    other = [dataclasses.replace(row, machine="another-machine") for row in found]
    assert [(row.machine == "another-machine", row.knobs["batch"]) for row in plot.charted([*found, *other])] == [(False, 1), (True, 1)]
    shapes = [make(phase="infer", changes=c, varying=("batch",), group="b", number=n, order=o)
              for n in range(3) for o, c in enumerate(({}, {"batch": 8}))]
    assert "x –" not in texts(plot.worth(compare.rows(shapes))), "more in one call is another input, no technique"
    assert plot.charted(compare.rows(shapes)) == [] == plot.charted([])


def test_worth_holds_six_workloads(rows):
    many = [dataclasses.replace(row, workload=name, verdict="faster", quality="kept")  # bold: the widest
            for name in tables.TITLES for row in group(rows, "precision") if row.ratio]
    axes = plot.worth(many)
    inside(axes)
    cells = [t for t in axes.texts if "x" in t.get_text()]
    width = axes.get_window_extent().width / 6
    assert len(cells) == 6 and all(t.get_window_extent().width < width for t in cells)


def test_phases_are_mean_milliseconds(rows):
    found = [r for r in study() if "workers" in r.case["group"] and r.case["workload"] == "resnet50"]
    axes = plot.phases(found)
    shown = texts(axes)
    assert "Backward takes 55 % of a step, forward 30 %, waiting for data 8 % (no loader workers)" in shown
    mean = 1e3 * np.mean([v for r in found if r.knobs["workers"] == 0 for v in r.samples["phases"]["wait"]])
    assert bars(axes, hatched=True)[0][1] == pytest.approx(mean)
    inside(axes)


def test_steps_show_the_best_stack_beside_its_baseline(rows):
    base, best = group(rows, "precision")[:2]
    own = [[r for r in study() if (r.case["group"], r.case["label"]) == (row.group, row.label)] for row in (base, best)]
    axes = plot.steps([plot.Pair(base, best, *own)])
    lengths = [sum(end - start for start, end, _ in bars(axes, hatched=True)[i::2]) for i in (0, 1)]
    lanes = [c.patches[0] for c in axes.containers]
    assert max(b.get_x() + b.get_width() for b in lanes[:5]) == pytest.approx(100), "the baseline is 100 %"
    share = max(b.get_x() + b.get_width() for b in lanes[5:])
    assert share < 100 and sum(lengths) == pytest.approx(100 + share)
    shown = texts(axes)
    assert f"ResNet-50 training is mostly backward; a step of the best stack takes {share:.0f} % of the baseline's time" in shown
    assert "ResNet-50 BF16: wait" in axes.figure.hpml_alt and "noise floor" in shown
    inside(axes)
    two = plot.steps([plot.Pair(base, best, *own), plot.Pair(*(dataclasses.replace(row, workload="xlnet") for row in (base, best)), *own)])
    assert "A step is mostly backward in 2 of 2 workloads" in texts(two) and "XLNet: FP32" in texts(two)
    inside(two)
    assert "No phase times" in texts(plot.steps([]))


def test_a_title_is_as_wide_as_the_picture_at_most(rows):
    wide = [dataclasses.replace(row, label=" ".join(["WWWWWW"] * 6), differs_in=()) for row in group(rows, "precision") if row.ratio]
    axes = plot.worth(wide)
    assert "WWWWWW" in texts(axes)
    inside(axes)
    left = axes._left_title.get_window_extent()
    assert left.x0 < 0.03 * axes.figure.bbox.width, "it starts at the edge"


def test_curves_show_seeds_and_their_mean():
    axes = plot.curves([fit(v, number=n) for n, v in enumerate((0.7, 0.74, 0.78))] + [make(changes={"precision": "bf16"})])
    assert "after 4 epochs" in texts(axes) and "74.0 %" in texts(axes) and "3 seeds" in texts(axes) and "chance" in texts(axes)
    thick = [line for line in axes.lines if line.get_linewidth() == 2]
    assert thick[0].get_ydata()[-1] == pytest.approx(74.0)
    inside(axes)


def test_speed_quality_says_the_claim_and_what_was_not_measured(rows):
    infer = [row for row in rows if row.phase == "infer" and row.knobs["batch"] == 8]
    assert "Speed is measured, quality is not" in texts(plot.speed_quality(infer))
    known = [
        dataclasses.replace(row, quality_value=value, quality=word, quality_metric="top-1 accuracy")
        for row, value, word in zip(infer, (0.853, 0.852, None), ("not measured", "kept", "not measured"), strict=False)
    ]
    axes = plot.speed_quality(known, margin=0.01)
    shown = texts(axes)
    assert (
        "Fastest with quality kept: FP32 in ONNX Runtime" in shown
        and "baseline" in shown
        and "quality not measured (1 of 3 cases)" in shown
        and "top-1 accuracy, %" in shown
    )
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [to_hex(line.get_markeredgecolor()).upper() for line in hollow] == [ENGINES["openvino"]]
    inside(axes)
    both = texts(plot.speed_quality([*known, *(dataclasses.replace(row, workload="xlnet") for row in known)])).replace("\n", " ")
    assert "Fastest with quality kept: ResNet-50 FP32 in ONNX" in both and "; XLNet FP32 in ONNX" in both, "each claim says whose it is"


def test_a_chart_keeps_its_layout_where_the_reader_shows_it(rows):
    """Outside of the study's style other sizes hold: they brought other ticks, and a title that began left of the picture."""
    infer = [row for row in rows if row.phase == "infer" and row.knobs["batch"] == 8]
    known = [dataclasses.replace(row, quality_value=value, quality="kept", quality_metric="top-1 accuracy")
             for row, value in zip(infer, (0.316, 0.311, 0.321), strict=False)]
    axes = plot.speed_quality(known, margin=0.01)
    before = [label.get_text() for label in axes.get_yticklabels()]
    with pyplot.rc_context({"ytick.labelsize": 16, "xtick.labelsize": 16}):
        inside(axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == before


def test_latency_has_a_line_for_each_engine(rows):
    axes = plot.latency([row for row in rows if row.phase == "infer"])
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["FP32 in PyTorch", "FP32 in ONNX Runtime", "FP32 in OpenVINO"]
    assert list(handles[0].lines[0].get_xdata()) == [1, 8, 32]
    assert "Lowest latency at batch 1: FP32 in OpenVINO" in texts(axes) and "Not measured: FP32 in TensorRT" in texts(axes)
    inside(axes)


def test_published_latencies_stand_beside_as_what_they_are(rows):
    rows = [row for row in rows if row.phase == "infer"]
    axes = plot.latency(rows, published={rows[0].workload: {1: 179, 16: 2478}, "xlnet": {1: 1}})
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "published, another machine" in labels and "on another machine: batch 1: 179 ms; batch 16: 2478 ms." in axes.figure.hpml_alt
    (line,) = [line for line in axes.get_lines() if line.get_label() == "published, another machine"]
    assert list(line.get_xdata()) == [1, 16] and list(line.get_ydata()) == [179, 2478] and axes.get_xlim()[1] > 16


def test_confusion_counts_and_names_the_most_frequent_mistake():
    axes = plot.confusion([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 2], ["cat", "dog", "frog"])
    assert "66.7 % of 6 right" in texts(axes) and "cat taken for dog (2 of 3)" in texts(axes)
    assert axes.images[0].get_array()[0, 1] == pytest.approx(200 / 3)
    inside(plot.confusion(range(100), range(100), [f"class {i}" for i in range(100)]))


def test_pictures_are_one_grid():
    images = [np.full((8, 8, 3), i, dtype=np.uint8) for i in range(11)]
    axes = plot.pictures(images, [f"picture {i}" for i in range(11)])
    assert len(axes.images) == 11 and "picture 10" in axes.figure.hpml_alt
    inside(axes)
    inside(plot.pictures([np.zeros((4, 4))], ["a very long title that does not fit over one picture"], columns=4))


def test_warmup_curve_marks_what_came_before():
    record = make(number=1)
    axes = plot.warmup_curve(record)
    assert "The first call takes 5." in texts(axes) and "warm-up: 3 iterations" in texts(axes)
    assert list(axes.lines[1].get_xdata()[:2]) == [4, 5]
    kept = dataclasses.replace(record, samples={**record.samples, "warmup": [2.0, 1.0, 0.8]})
    assert list(plot.warmup_curve(kept).lines[0].get_ydata()) == [2000, 1000, 800]


def test_noise_says_the_floor():
    logs = [0.01, -0.012, 0.003, 0.02]
    axes = plot.noise(logs)
    assert f"noise floor {100 * compare.noise_floor(logs, 3):.1f} % at 3 rounds" in texts(axes)
    assert list(axes.lines[-1].get_ydata()) == pytest.approx([100 * math.expm1(v) for v in logs])
    assert "too noisy" in texts(plot.noise([0.2, -0.3, 0.25])) and "too few" in texts(plot.noise([0.1]))


def test_limits_show_peaks_units_and_engines():
    axes = plot.limits(study())
    assert "Peak: fp32 264 GFLOP/s, bf16 1.32 TFLOP/s, int8 2.38 TOP/s" in texts(axes), "integers have no FLOPs"
    assert "31.0 GB/s" in texts(axes) and "410 images/s" in texts(axes) and "4 limits not measured here" in texts(axes)
    blocks = [bars(own) for own in axes.figure.axes]
    assert len(blocks) == 3 and all(max(width for _, width, _ in own) > 0 for own in blocks), "images/s have a scale of their own"
    assert {shade for _, _, shade in bars(axes)} == {ENGINES["eager"], ENGINES["onnxruntime"], ENGINES["openvino"]}
    assert "bf16 is not in this library" in axes.figure.hpml_alt
    inside(axes)
    plot.limits([limit("matmul", "fp32", "torch", None, "")])


def test_show_alt_prints_outside_a_notebook(rows, capsys):
    axes = plot.comparison(group(rows, "precision"))
    plot.show_alt(axes)
    assert capsys.readouterr().out.startswith("Alt text: Bar chart of ratios to the baseline. ResNet-50 training")


def test_a_notebook_shows_every_chart_and_its_words_under_it(monkeypatch):
    from nbclient import NotebookClient
    from nbformat import v4

    monkeypatch.delenv("MPLBACKEND", raising=False)
    sources = (
        "from hpml import plot\nplot.noise([0.01, 0.02, -0.01]);",
        "plot.noise([0.01, 0.02, -0.01]);",
        "plot.show_alt(plot.noise([0.01, 0.02, -0.01]))",
    )
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=300).execute()
    first, second, third = ([sorted(output["data"])[0] for output in cell.outputs if "data" in output] for cell in notebook.cells)
    assert first == second == ["image/png"] and third == ["image/png", "text/markdown"]
    assert "noise floor" in notebook.cells[2].outputs[0]["metadata"]["image/png"]["alt"]


def test_the_readers_own_style_is_left_alone(rows):
    before = dict(pyplot.rcParams)
    plot.worth(rows)
    assert dict(pyplot.rcParams) == before


def test_nothing_heavy_is_imported_until_something_is_drawn():
    code = "import sys; import hpml.plot, hpml.tables; print([m for m in ('matplotlib', 'numpy', 'pandas', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert DATA["title"] == "CIFAR-10"
