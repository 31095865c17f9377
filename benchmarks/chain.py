"""From images to a training on two nodes that survives a kill, all of it on one machine: does each link of the chain hold?

    sudo -E python benchmarks/chain.py [--folder FOLDER]

Images are packed into shards, nginx serves them, `hpml data pull` brings them over a link of 50 Mbit/s, and while they still arrive two
nodes (network namespaces, one rank each, gloo over the link) train from them under torchrun. The second rank is killed in the middle of an
epoch; torchrun starts both again, and they go on from the checkpoint. Prints a line for each check; exit code 1 where one fails.
Needs root (network namespaces), `ip`, `tc`, nginx and aria2.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpml import env, link, nginx, records
from hpml.data import imagefolder, packing
from hpml.data.shards import verify
from hpml.data.shardstore import open_store
from hpml.data.stream import ShardDataset, ShardOrder
from hpml.env import HpmlError

CLASSES, EACH, SIDE = 6, 32, 64
BATCH, EPOCHS, CHECKPOINT_STEPS, KILL_AT = 16, 2, 5, 8
LEFT_ALONE_S = 30
PULL_RATE, LINK_RATE_MBIT_S = "60K", link.RATE_MBIT_S  # slow enough that the training has to wait for shards
HPML = (sys.executable, "-c", "from hpml.cli import main; main()")
# The example's workload; each rank also notes the place of every sample that it reads. After the kill the first rank comes back last: the
# second one must not take what is left of its first life for its address.
NOTING = """
from pathlib import Path
from runpy import run_path
import os
import time
from hpml import distributed
globals().update(run_path({example!r}))
if os.environ.get("RANK") == "0" and list(Path({folder!r}).glob("0-*.ids")):
    time.sleep(3)
_dataset = dataset


def dataset(knobs, image_set, *, train):
    found = _dataset(knobs, image_set, train=train)

    class Noting(type(found)):
        def __getitem__(self, position):
            with Path({folder!r}, f"{{distributed.place().index}}-{{os.getpid()}}.ids").open("a") as file:
                file.write(f"{{position}}\\n")
            return super().__getitem__(position)

    if train:
        found.__class__ = Noting
    return found
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where it works (default: a temporary folder)")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="hpml-chain-") as scratch:
            sys.exit(0 if chain(asked.folder or Path(scratch)) else 1)
    except HpmlError as error:
        sys.exit(f"chain: {error}")


def chain(folder: Path) -> bool:
    """Run the whole chain in `folder`; returns whether every check passed. Raises Unavailable where it cannot be here."""
    if reason := link.unavailable():
        raise env.Unavailable(reason)
    images(folder / "images")
    index = packing.pack(imagefolder.source(str(folder / "images")), folder / "served", shard_mib=0.1, threads=1, parts=("train", "test"))
    good = [say(len(index.shards) > 4, f"packed {index.samples} images into {len(index.shards)} shards, {index.bytes / 2**20:.1f} MiB")]
    with link.shaped(rate_mbit_s=LINK_RATE_MBIT_S) as line, contextlib.ExitStack() as stack:
        url = stack.enter_context(nginx.serve(folder / "served", address=line.there_address, port=8080, through=line.there))
        words = [*line.here, *HPML, "data", "pull", url, str(folder / "pulled"), "--limit-rate", PULL_RATE]
        pull = started(stack, words, folder / "pull.log")
        until = time.monotonic() + 30
        while not (folder / "pulled" / "index.json").exists() and pull.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        nodes = [started(stack, node(folder, line, number), folder / f"node{number}.log", line.device) for number in (0, 1)]
        good.append(say(pull.wait() == 0 and not verify(folder / "pulled"), f"pulled over {LINK_RATE_MBIT_S:g} Mbit/s, checksums right"))
        arrived = time.time()
        logs = [folder / f"node{number}.log" for number in (0, 1)]
        good.append(say(ended(nodes) == [0, 0], "two nodes trained to the end", *logs))
    return all(good + checks(folder, arrived))


def images(folder: Path) -> None:
    """Coloured noise in class folders: CLASSES x EACH training images, a quarter as many for the test."""
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    for part, count in (("train", EACH), ("val", EACH // 4)):
        for number in range(CLASSES):
            (place := folder / part / f"class{number}").mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = 40 * np.array([number & 1, number >> 1 & 1, number >> 2 & 1]) + 80
                pixels = drawn.normal(colour, 40, (SIDE, SIDE, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(place / f"{i:03d}.jpg", quality=90)


def node(folder: Path, line: link.Link, number: int) -> list[str]:
    """The command of one node: torchrun with one rank, as it stands in DISTRIBUTED.md."""
    workload = folder / "from_shards.py"
    if not number:
        example = env.root() / "notebooks" / "examples" / "from_shards.py"
        workload.write_text(NOTING.format(example=str(example), folder=str(folder)))
    words, address = (line.there, line.there_address) if number else (line.here, line.here_address)
    return [*words, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{line.here_address}:29500", "--rdzv-id", "chain",
            "--rdzv-conf", f"is_host={1 - number}", "--local-addr", address, "--no-python", *HPML, "train", str(workload),
            "--tier", "smoke", "--run-id", "chain", "--distributed", "--threads", "1", "--batch", str(BATCH), "--image", "32",
            "--epochs", str(EPOCHS), "--checkpoint-steps", str(CHECKPOINT_STEPS), "--interrupt-step", str(KILL_AT)]


def started(stack: contextlib.ExitStack, words: list[str], log: Path, device: str = "") -> subprocess.Popen:
    """Start a command with its output in `log`; it is gone when the stack is."""
    place = log.parent
    more = {"GLOO_SOCKET_IFNAME": device, "NCCL_SOCKET_IFNAME": device} if device else {}
    environment = {**os.environ, "HPML_RESULTS": str(place / "results"), "HPML_SHARDS": str(place / "pulled"), "no_proxy": "*",
                   "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                   "PYTHONPATH": os.pathsep.join(filter(None, (str(env.root()), os.environ.get("PYTHONPATH")))), **more}
    with log.open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=place)
    stack.callback(lambda: process.poll() is None and (process.terminate(), process.wait()))
    return process


def ended(nodes: list[subprocess.Popen]) -> list[int | None]:
    """The exit codes of all; where one failed, those of the others after LEFT_ALONE_S, None for one that still waits for it."""
    until = None
    while any(one.poll() is None for one in nodes) and (until is None or time.monotonic() < until):
        if until is None and any(one.poll() for one in nodes):
            until = time.monotonic() + LEFT_ALONE_S
        time.sleep(0.1)
    return [one.poll() for one in nodes]


def checks(folder: Path, arrived: float) -> list[bool]:
    """What must hold afterwards: one rank was killed, both went on from the checkpoint, and no sample of an epoch is missing or twice."""
    run = folder / "results" / "runs" / "chain"
    first = records.read(run / "records.jsonl")
    killed = [r for r in first + records.read(run / "records-rank1.jsonl") if r.status == "failed" and "signal 9" in r.reason]
    done = first[-1] if first else None
    good = [say(len(killed) == 1, "one rank was killed, and its record says so")]
    resumed = done and done.status == "ok" and [done.actual["resumed_from"], done.actual["resumed_step"]]
    good.append(say(resumed == [0, CHECKPOINT_STEPS], f"the training went on from step {CHECKPOINT_STEPS} of its first epoch"))
    lives = {rank: sorted(folder.glob(f"{rank}-*.ids"), key=lambda path: path.stat().st_mtime) for rank in (0, 1)}
    order = [ShardOrder(ShardDataset(open_store(folder / "pulled"), image=32), seed=0, share=(rank, 2)) for rank in (0, 1)]
    for rank, logs in lives.items():
        read = [[int(word) for word in path.read_text().split()] for path in logs]
        each = BATCH // 2
        full = len(order[rank]) // each * each
        wanted = [int(place) for epoch in range(EPOCHS) for place in order[rank].positions(epoch)[:full]]
        kept = read[0][: CHECKPOINT_STEPS * each] + read[1] if len(read) == 2 else []
        good.append(say(kept == wanted, f"rank {rank} read its {len(wanted)} samples of {EPOCHS} epochs, none missing, none twice"))
    if lives[0]:
        early = arrived - min(path.stat().st_ctime for path in lives[0])
        print(f"      the first rank's first life ended {abs(early):.1f} s {'before' if early > 0 else 'after'} the last shard had arrived")
    if done and done.quality:
        print(f"      {done.quality['metric']} {done.quality['value']:.2f} on {done.quality['n']} test images; a check, not a result")
    return good


def say(passed: bool, text: str, *logs: Path) -> bool:
    print(f"{'PASS' if passed else 'FAIL'}  {text}", flush=True)
    if not passed:
        for log in logs:
            print("\n".join(log.read_text(errors="replace").splitlines()[-25:]))
    return passed


if __name__ == "__main__":
    main()
