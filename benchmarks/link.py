"""How much of a thin link do 1, 2, 4 and 8 connections use?

    sudo -E python benchmarks/link.py [--connections 1,2,4,8] [--tier full]

Wanted: at least 90 % of 50 Mbit/s with several connections, where one uses what it may. Needs root, `ip`, `tc`, nginx and aria2.
"""

import argparse
import tempfile
from pathlib import Path

from hpml import launch, link, transfer
from hpml.cases import TIERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", default="1,2,4,8")
    parser.add_argument("--tier", default="full", choices=TIERS, help="a shard takes one connection 1 s (smoke), 2 s or 4 s (full)")
    asked = parser.parse_args()
    print(f"{link.RATE_MBIT_S:g} Mbit/s by tbf; one connection: window {link.WINDOW_KIB} KiB / round trip {link.ROUND_TRIP_MS} ms = "
          f"{link.CONNECTION_MBIT_S:.1f} Mbit/s, by nginx's limit_rate; {transfer.SHARDS} shards")
    with tempfile.TemporaryDirectory() as folder:
        for connections in map(int, asked.connections.split(",")):
            job = {"case": {"workload": "resnet152", "phase": "transfer", "key": "k", "tier": asked.tier},
                   "knobs": {"connections": connections}, "protocol": {"seed": 0, "round": 0}}
            fields = launch.run(job, log=Path(folder, "log"), timeout_s=600)
            if fields["status"] != "ok":
                raise SystemExit(f"{fields['status']}: {fields['reason']}")
            io = fields["io"]
            print(f"{connections:2d} connection{'s' * (connections > 1):1s}  {io['bytes'] / 2**20:6.1f} MiB in {io['seconds']:5.1f} s  "
                  f"{io['mbit_s']:5.1f} Mbit/s  {100 * io['link_share']:3.0f} % of the link  checksums right", flush=True)


if __name__ == "__main__":
    main()
