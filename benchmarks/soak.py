"""Does the server's memory stay flat?

    python benchmarks/soak.py [--minutes 10] [--workload resnet50] [options of hpml serve ...]

Starts `hpml serve`, keeps it busy over HTTP with good pictures, damaged ones and clients that leave, and prints its resident memory every
ten seconds, then what it grew by from the second quarter to the last. Exit code 1 where that is more than two percent or an answer was
neither an answer nor a refusal.
"""

import argparse
import collections
import random
import statistics
import subprocess
import sys
import threading
import time

import httpx

from hpml.measure import rss_mib

CLIENTS = 8
STEP_S = 10.0
MOST_GROWTH = 0.02


def client(url: str, pictures: list[tuple[bytes, str]], until: float, seed: int, counts: collections.Counter) -> None:
    """Sends one request after the other: of twenty one is damaged and one is given up early."""
    draw = random.Random(seed)
    with httpx.Client(base_url=url, timeout=60, verify=False) as line:
        while time.monotonic() < until:
            content, media = draw.choice(pictures)
            kind = draw.randrange(20)
            try:
                answer = line.post("/v1/predict", content=content[:len(content) // 2] if kind == 0 else content,
                                   headers={"Content-Type": media}, timeout=0.001 if kind == 1 else 60)
                counts[answer.status_code] += 1
                if answer.status_code == 503:
                    time.sleep(0.05)
            except httpx.TimeoutException:
                counts["left"] += 1
            except httpx.HTTPError as error:
                counts[type(error).__name__] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workload", default="resnet50")
    asked, others = parser.parse_known_args()
    command = [sys.executable, "-c", "from hpml.cli import main; main()", "serve", "--port", "0", "--workload", asked.workload, *others]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server did not start: run the same `hpml serve` to see why")
        print(line.strip())
        url = line.split()[0].rstrip("/")
        with httpx.Client(base_url=url, timeout=60) as first:
            answers = [first.get(f"/samples/{i}") for i in range(16)]
        pictures = [(answer.content, answer.headers["content-type"]) for answer in answers]
        counts, seen, started = collections.Counter(), [], time.monotonic()
        until = started + 60 * asked.minutes
        threads = [threading.Thread(target=client, args=(url, pictures, until, seed, counts)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(min(STEP_S, 60 * asked.minutes / 8))
            seen.append(rss_mib(server.pid) or 0.0)
            print(f"{time.monotonic() - started:7.0f} s  {seen[-1]:8.1f} MiB  {dict(sorted(counts.items(), key=str))}", flush=True)
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        server.wait(60)
    quarter = max(1, len(seen) // 4)
    # The first quarter fills caches and allocators; growth is counted from the second.
    before, after = statistics.median(seen[quarter:2 * quarter] or seen), statistics.median(seen[-quarter:])
    growth = after / before - 1
    wrong = {kind: count for kind, count in counts.items() if kind not in (200, 422, 415, 503, "left")}
    print(f"from {before:.1f} to {after:.1f} MiB: {100 * growth:+.2f} %; neither answer nor refusal: {wrong or 'none'}")
    return int(growth > MOST_GROWTH or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
