"""Tables, sentences and charts of load tests, from made-up records."""

import pytest

from hpml import plot_serving, queueing, records, tables_serving
from hpml.records import Record

MACHINE = {"id": "test-machine", "cores": 2}


def window(rate: float, p99_s: float | None, *, missed: int = 0, n: int = 2000, **more) -> dict:
    low, high = (p99_s * 0.95, p99_s * 1.06) if p99_s else (None, None)
    return {"scenario": "server", "asked_per_s": rate, "seconds": n / rate, "n": n, "answered": n - missed, "refused": missed, "failed": 0,
            "missed": missed, "within": missed <= n / 100, "per_s": (n - missed) * rate / n, "goodput_per_s": (n - missed) * rate / n,
            "p50_s": 0.04, "p90_s": 0.08, "p99_s": p99_s, "p99_low_s": low, "p99_high_s": high, "refusal_p99_s": 0.003 if missed else None,
            "cpu_s": {"server": 1.5 * n / rate, "client": 0.1 * n / rate}, **more}


def made(scenario: str, *, transport: str = "inprocess", image: int = 224, tier: str = "cpu", precision: str = "int8", per_s: float = 1.0,
         **fields) -> Record:
    knobs = {"engine": "openvino", "precision": precision, "image": image, "transport": transport, "scenario": scenario}
    case = {"workload": "resnet50", "phase": "serve", "tier": tier, "technique": "as it is", "key": f"{scenario}{transport}{image}",
            "group": scenario, "label": scenario, "order": 0, "baseline": f"{scenario}{transport}{image}", "arm": "", "differs_in": []}
    return Record(run_id="test", status="ok", case=case, knobs=knobs, machine=MACHINE, protocol={"round": 0},
                  samples={"unit": "s", "items": 1, "values": [1 / per_s]}, stats=records.stats([1 / per_s], items=1, center="mean"),
                  memory={"peak_rss_mib": 640.0}, cold={"ready_s": 1.4}, **fields)


def serving(per_s: float, windows: list, **more) -> dict:
    return {"serving": {"per_s": per_s, "windows": windows, "cores": 2, "limit_s": 0.15, **more}}


def some(tier: str = "cpu") -> list[Record]:
    """A service that stands 17 queries/s in process and 14 over HTTP; its parts bound it at what queueing says."""
    parts = {"stream_s": {"1": 0.028, "2": 0.054}, "decode_s": 0.004, "client_s": 0.0002, "http_s": 0.003, "cores": 2, "limit_s": 0.15}
    found = [made("bound", transport="http", per_s=37.0, tier=tier, actual={"bound": parts}),
             made("offline", per_s=33.0, tier=tier, actual=serving(33.0, [window(33, None)]))]
    for transport, rate in (("inprocess", 17.0), ("http", 14.0)):
        windows = [window(0.8 * rate, 0.11), window(1.15 * rate, 0.21, missed=90), window(rate, 0.14, confirmation=True)]
        overload = window(2 * rate, None, missed=900, rss_before_mib=600.0, rss_after_mib=602.0, recovery_s=0.2)
        found.append(made("server", transport=transport, per_s=rate, tier=tier,
                          actual=serving(rate, windows, offered_per_s=rate, overload=overload)))
    for image, rate, value in ((224, 12.0, 0.93), (192, 16.0, 0.92), (160, 22.0, 0.90), (128, 34.0, 0.84)):
        quality = {"metric": "top-1 accuracy", "value": value, "n": 400, "chance": 0.1, "margin": 0.01, "informative": image != 192}
        found.append(made("accuracy", image=image, precision="fp32", per_s=rate, tier=tier, quality=quality,
                          actual=serving(rate, [window(rate, None)])))
    return found


def test_readme_has_a_line_for_each_service_that_stood_a_rate():
    head, _, inside, over = tables_serving.markdown(some()).splitlines()
    assert head.startswith("| service | Offline, queries/s | in time, queries/s | its P99 | queueing bound | share of it | peak memory |")
    assert inside.startswith("| ResNet-50 INT8 in OpenVINO, 224 px, in process | 33.0 | 17.0 | 140 ms [133, 148], n=2,000; limit 150 ms |")
    assert over.startswith("| ResNet-50 INT8 in OpenVINO, 224 px, over HTTP |  | 14.0 |")
    assert tables_serving.markdown([r for r in some() if r.knobs["scenario"] != "server"]) == ""


def test_one_service_is_one_column_with_its_bound_and_the_cores():
    inside, over = [load for load in tables_serving.loads(some()) if "server" in load.by_scenario]
    assert inside.knobs["transport"] == "inprocess" and over.knobs["transport"] == "http"
    server, rate = queueing.bound({1: 0.028, 2: 0.054}, cores=2, other_s=0.0042)
    assert inside.bound == (server, rate) and inside.share() == pytest.approx(17 / rate)
    assert over.bound[1] < rate  # what HTTP costs comes out of the same cores
    assert inside.cores_offline(100) == 7  # 100 / 16.5
    assert inside.cores_within(100) == queueing.cores_needed(100, server) > inside.cores_offline(100)
    shown = tables_serving.columns(inside)
    assert shown["its P99"] == "140 ms [133, 148], n=2,000" and shown["refusals, P99"] == "3.00 ms"
    assert shown["memory grew by"] == "2.00 MiB" and shown["CPU in use"] == "80%" and shown["of it the client's"] == "6%"
    assert shown["queries/s per core, within the limit"] == "8.50"


def test_the_bound_in_process_needs_no_http_figure_and_the_one_over_http_does():
    found = some()
    found[0].actual["bound"]["http_s"] = None
    inside, over = [load for load in tables_serving.loads(found) if "server" in load.by_scenario]
    assert inside.bound and over.bound is None and over.share() is None and over.cores_within(100) is None


def test_the_table_and_the_sentences():
    text = tables_serving.text(some())
    assert "Server within the limit, queries/s" in text and "not a result" not in text
    assert tables_serving.text(some("smoke")).startswith("smoke: not a result")
    assert tables_serving.text([]) == "no load test was measured"
    first, second = tables_serving.sentences(tables_serving.loads(some()))
    assert first.startswith("ResNet-50 INT8 in OpenVINO, 224 px, in process on test-machine (2 cores): 17.0 queries/s within 150 ms at P99")
    assert "of the queueing bound" in first and "refused, within 3.00 ms at P99" in first and "640 MiB" in first
    assert "over HTTP" in second


def test_a_search_that_ended_early_gives_a_range_and_no_share_of_the_bound():
    found = some()
    open_ended = next(r for r in found if r.knobs["scenario"] == "server" and r.knobs["transport"] == "inprocess")
    probes = open_ended.actual["serving"]["windows"]
    probes[1] = window(26.0, 0.16, missed=40, n=1300)
    inside, over = [load for load in tables_serving.loads(found) if "server" in load.by_scenario]
    assert over.settled and not inside.settled and inside.stood() == "at least 17.0 (26.0 missed)"
    shown = tables_serving.columns(inside)
    assert shown["Server within the limit, queries/s"] == "at least 17.0 (26.0 missed)"
    assert shown["share of the bound"] == shown["queries/s per core, within the limit"] == "" and shown["queueing bound, queries/s"]
    said = tables_serving.sentences([inside])[0]
    assert "at least 17.0 (26.0 missed) queries/s within 150 ms" in said and "the queueing bound is" in said and "% of the" not in said
    title = plot_serving.load([inside, over]).get_title(loc="left").replace("\n", " ")
    assert "at least 17.0 (26.0 missed) in process, 14.0 over HTTP queries/s" in title
    probes[1] = window(17.0, 0.16, missed=40, n=100)  # the rate itself, in a short window: no end above it
    open_ended.actual["serving"]["overload"] |= {"within": True}
    assert inside.missed() is None and inside.stood() == "at least 17.0 (no rate missed)"


def test_refusals_that_come_late_are_said_to_be_late():
    load = next(load for load in tables_serving.loads(some()) if load.confirmed())
    assert "900 are refused, within 3.00 ms at P99, and it" in tables_serving.sentences([load])[0]
    load.serving("server")["overload"] |= {"refusal_p99_s": 0.15}
    late = "900 are refused, not all of them at once (within 150 ms at P99; at once would be 50 ms), and it"
    assert late in tables_serving.sentences([load])[0]


def test_cores_within_the_limit_are_never_fewer_than_offline():
    found = some()
    next(r for r in found if r.knobs["scenario"] == "offline").actual["serving"]["per_s"] = 12.0
    load = next(load for load in tables_serving.loads(found) if load.confirmed())
    assert load.cores_within(100) == load.cores_offline(100) == 17


def test_what_came_is_what_is_shown_beside_what_was_in_time():
    found = some()
    load = next(load for load in tables_serving.loads(found) if load.confirmed())
    load.serving("server")["windows"][1] |= {"n": 2400, "goodput_per_s": 23.0}
    assert [round(tables_serving.sent(w), 2) for w in tables_serving.windows(load)] == [13.6, 17.0, 23.46, 34.0]
    assert all(tables_serving.sent(w) >= w["goodput_per_s"] for w in tables_serving.windows(load))
    assert "23.5 offered: P99 210 ms, 23.0 in time" in plot_serving.load([load]).figure.hpml_alt


def test_points_are_named_only_where_both_ends_inform_and_differ():
    entries = [load for load in tables_serving.loads(some()) if load.knobs["precision"] == "fp32"]

    def title(*sizes):
        return plot_serving.resolution([one for one in entries if one.knobs["image"] in sizes]).get_title(loc="left").replace("\n", " ")

    assert title(224, 160).endswith("no difference of accuracy shown") and title(224, 128).endswith("x the rate, -9.0 points")
    assert title(224, 192).endswith("x the rate, accuracy not informative")


def test_a_rate_that_no_number_of_cores_gives_is_said():
    found = some()
    found[0].actual["bound"]["stream_s"] = {"1": 0.2, "2": 0.4}
    load = next(load for load in tables_serving.loads(found) if "server" in load.by_scenario)
    assert load.cores_within(100) is None and load.share() is None
    assert "none would be enough" in tables_serving.columns(load)["cores for 100/s within the limit, at least"]


def test_the_frontier_goes_by_size():
    found = tables_serving.loads(some())
    entries = [entry for entry in tables_serving.frontier(found) if entry["load"].knobs["precision"] == "fp32"]
    assert [entry["image"] for entry in entries] == [224, 192, 160, 128] and [entry["cores"] for entry in entries] == [17, 13, 10, 6]
    text = tables_serving.frontier_text(found)
    assert "84.00 %" in text and "not measured" in text  # the INT8 service has no accuracy run


def test_the_charts_say_what_they_show():
    found = tables_serving.loads(some())
    axes = plot_serving.load([load for load in found if "server" in load.by_scenario])
    assert "17.0 in process, 14.0 over HTTP queries/s within 150 ms" in axes.get_title(loc="left").replace("\n", " ")
    assert "34.0 offered: P99 not reached" in axes.figure.hpml_alt
    axes = plot_serving.resolution([load for load in found if load.knobs["precision"] == "fp32"])
    assert "from 224 to 128 px: 2.83x the rate, -9.0 points" in axes.get_title(loc="left").replace("\n", " ")
    for empty in (plot_serving.load([]), plot_serving.resolution([])):
        assert "No" in empty.get_title(loc="left")
    assert plot_serving.load(tables_serving.loads(some("smoke"))).get_title(loc="left").startswith("smoke: not a result")
