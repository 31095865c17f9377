"""How near does serving come to what queueing theory allows on this machine, and does another client see the same?

    python benchmarks/serving.py [--workload resnet50] [--precision int8] [--weights trained] [--run-id NAME] [--tier cpu]

Wanted: within P99 150 ms at least 90 % of the M/D/c bound in process and 80 % over HTTP, Offline at least 95 % of the engine's
throughput-mode rate, and at twice the sustainable rate goodput within 10 % of the best, refusals within 50 ms at P99, recovery within 2 s.
Last, an open-loop client of its own (asyncio, Poisson arrivals, latency from the scheduled moment) asks a server at the rate that LoadGen
confirmed: its P99 stands beside LoadGen's. About 15 minutes on two cores; `--tier smoke --precision fp32` shows that it works.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

import hpml
from hpml import env, loadfacts, loadsite, results, tables_serving, workloads
from hpml.loadgen import FAILED, OK, REFUSED, Window
from hpml.loadtargets import served
from hpml.tables import figure


async def exchange(streams: list, place: tuple[str, int], payload: bytes) -> str:
    """One query over a connection that is kept, or a new one where all are in use."""
    reader, writer = streams.pop() if streams else await asyncio.open_connection(*place)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {place[0]}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    await reader.readexactly(length)
    streams.append((reader, writer))
    return {200: OK, 503: REFUSED}.get(int(lines[0].split()[1]), FAILED)


async def open_loop(place: tuple[str, int], payloads: list[bytes], *, rate: float, seconds: float, seed: int = 0) -> Window:
    """Poisson arrivals for `seconds`, each query a task of its own: none waits for another one's answer."""
    draw, streams, tasks, due_s, moment = random.Random(seed), [], [], [], 0.0
    took: dict[int, tuple[str, float]] = {}
    started = time.perf_counter()

    async def ask(number: int, due: float) -> None:
        try:
            outcome = await exchange(streams, place, payloads[number % len(payloads)])
        except (OSError, asyncio.IncompleteReadError):
            outcome = FAILED
        took[number] = outcome, time.perf_counter() - started - due

    while (moment := moment + draw.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, moment - (time.perf_counter() - started)))
        tasks.append(asyncio.create_task(ask(len(due_s), moment)))
        due_s.append(moment)
    await asyncio.gather(*tasks)
    for _, writer in streams:
        writer.close()
    ordered = [took[number] for number in range(len(due_s))]
    return Window("server", rate, [due - due_s[0] for due in due_s], [seconds for _, seconds in ordered], [what for what, _ in ordered])


def other_client(load: tables_serving.Load, knobs: dict, *, tier: str, run_id: str, seconds: float) -> str:
    """The open loop's P99 at the rate that LoadGen confirmed over HTTP, beside LoadGen's."""
    serving, confirmed = load.serving("server"), load.confirmed()
    _, payloads = loadsite.pictures(workloads.get(load.workload), knobs, most=256)
    job = {"case": {"workload": load.workload, "tier": tier}, "knobs": {**knobs, "streams": serving["streams"] or 0},
           "run_dir": str(env.run_dir(run_id))}
    with tempfile.TemporaryDirectory() as folder, served(loadsite.arguments(job), log=Path(folder) / "log") as (url, _, _):
        place = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        asyncio.run(open_loop(place, payloads, rate=serving["offered_per_s"] / 2, seconds=seconds / 10))
        window = asyncio.run(open_loop(place, payloads, rate=serving["offered_per_s"], seconds=seconds))
    found = loadfacts.facts(window, limit_s=serving["limit_s"])
    return (f"at {figure(serving['offered_per_s'])} queries/s over HTTP: LoadGen P99 {tables_serving.p99(confirmed)}; open loop "
            f"P99 {tables_serving.p99(found)}, {found['missed']} of {found['n']} not in time")


def held(name: str, value: float | None, wanted: float, *, most: bool = False) -> str:
    if value is None:
        return f"{name}: not measured"
    return f"{name}: {value:.3g} (wanted: at {'most' if most else 'least'} {wanted:g}: {'yes' if (value <= wanted) == most else 'no'})"


def verdicts(load: tables_serving.Load) -> list[str]:
    server, overload = load.serving("server"), load.serving("server")["overload"]
    lines = [held("share of the queueing bound", load.share(), 0.8 if load.knobs["transport"] == "http" else 0.9)]
    if offline := load.serving("offline"):
        lines.append(held("Offline over the engine's own rate", offline["per_s"] / load.by_scenario["bound"].stats["per_s"], 0.95))
    lines.append(held("goodput at twice the rate over the best", overload["goodput_per_s"] / server["per_s"], 0.9))
    if overload["refusal_p99_s"] is not None:
        lines.append(held("refusals, P99 in s", overload["refusal_p99_s"], 0.05, most=True))
    return [*lines, held("recovery in s", overload["recovery_s"], 2.0, most=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("workload", "resnet50"), ("engine", "openvino"), ("precision", "int8"), ("weights", "trained"),
                          ("data", "auto"), ("tier", "cpu"), ("run-id", f"serving-{time.strftime('%Y%m%d-%H%M%S')}")):
        parser.add_argument(f"--{name}", default=default)
    asked = parser.parse_args()
    hpml.use(tier=asked.tier, data=asked.data, device="cpu", run_id=asked.run_id)
    base = hpml.case(asked.workload, phase="serve", engine=asked.engine, precision=asked.precision, weights=asked.weights)
    cases = [base.but(scenario="bound", transport="http"), base.but(scenario="offline"), base.but(scenario="offline", transport="http"),
             base.but(scenario="server"), base.but(scenario="server", transport="http")]
    for case in cases:
        hpml.run(case, rounds=1)
    print(tables_serving.text(results.load(asked.run_id).records))
    for load in tables_serving.loads(results.load(asked.run_id).records):
        if load.confirmed():
            print(f"\n{load.name}", *verdicts(load), sep="\n  ")
            if load.knobs["transport"] == "http":
                seconds = 2.0 if asked.tier == "smoke" else 100.0
                print("  " + other_client(load, cases[-1].knobs, tier=asked.tier, run_id=asked.run_id, seconds=seconds))


if __name__ == "__main__":
    main()
