"""`hpml data ...`: what data sets are here, fetching and checking them, shards, and shuttle frames from a video to a set."""

import math
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hpml.env import HpmlError

app = typer.Typer(help="Data sets: what is here, fetch one, check one.", no_args_is_help=True)


@app.command("list")
def data_list() -> None:
    """Which data sets there are, where they lie or how to get them."""
    from hpml.data import fetch

    for entry in fetch.status():
        print(f"{entry['name']:<10} {entry['title']}: {entry['found'] or entry['how']} (licence: {entry['licence']})")


@app.command("fetch")
def data_fetch(name: str) -> None:
    """Download a data set from its publisher, with checksum; an interrupted download goes on."""
    from hpml.data import fetch

    print(f"{name}: {fetch.fetch(name)}")


@app.command("pull")
def data_pull(
    url: Annotated[str, typer.Argument(help="a folder with an index.json, on a web server with range requests")],
    dst: Annotated[Path, typer.Argument(help="folder to pull into; an interrupted pull into it goes on")],
    connections: Annotated[int, typer.Option(help="TCP connections at the same time")] = 8,
    limit_rate: Annotated[str, typer.Option(help="bytes a second over all connections, as 500K or 2M; 0 = no limit")] = "0",
) -> None:
    """Pull shards over several connections at once, each checked by its sha256. Exit code 1 where one did not come."""
    from hpml.data import pull

    done = pull.pull(url, dst, connections=connections, limit_rate=limit_rate)
    for name, reason in done.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if done.failed:
        print(f"{dst}: {len(done.failed)} shards are missing; what came is kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{dst}: {done.shards} shards, verified")


@app.command("check")
def data_check(
    name: str,
    fix: Annotated[bool, typer.Option("--fix", help="move bad files aside (into set_aside); nothing is deleted")] = False,
) -> None:
    """Say what is wrong with a data set on this machine, or with a folder of shards (checksums and samples): file and reason."""
    from hpml.data import fetch, shards

    if (Path(name) / shards.INDEX).is_file():
        if fix:
            raise HpmlError(f"{name}: --fix moves single files; a shard that is wrong is packed or pulled again")
        wrong = shards.verify(Path(name))
    else:
        wrong = fetch.check(name, fix=fix)
    for line in wrong:
        print(line)
    if wrong:
        raise typer.Exit(1)
    print(f"{name}: nothing wrong")


@app.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(metavar="SRC", help="a folder (train/<class>/*.jpg or ImageNet's layouts), imagenet or standin")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder of the shards")],
    shard_mib: Annotated[float, typer.Option(help="size of a shard")] = 64,
    quality: Annotated[int | None, typer.Option(help="encode each JPEG again at this quality (1 to 95)")] = None,
    max_side: Annotated[int | None, typer.Option(help="shrink the longer side to this many pixels, and encode again")] = None,
    threads: Annotated[int, typer.Option(min=0, help="shards packed at the same time; 0 = as many as there are cores")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="of the order in which samples are packed")] = 0,
    with_test: Annotated[bool, typer.Option("--with-test", help="pack the test images too, into shards of their own")] = False,
    check: Annotated[bool, typer.Option("--check", help="decode every image first; else only those that look damaged")] = False,
) -> None:
    """Pack images into WebDataset shards with an index of sizes and checksums. Run again, it goes on where it stopped."""
    from hpml.data import imagefolder, packing, recode, shards

    files, began = imagefolder.source(source), time.perf_counter()
    asked = None
    if quality is not None or max_side is not None:
        asked = recode.Recode(recode.QUALITY if quality is None else quality, max_side or 0)
        step = max(1, len(files.train_images) // packing.SAMPLE)
        if some := recode.readable(files, files.train_images[::step][:packing.SAMPLE]):
            print(recode.text(recode.table(some, asked)))
    parts = shards.PARTS if with_test and files.informative else ("train",)
    index = packing.pack(files, target, shard_mib=shard_mib, recode=asked, threads=threads, seed=seed, parts=parts, check=check)
    for entry in index.skipped[:20]:
        print(f"left out: {entry['name']}: {entry['reason']}")
    took = time.perf_counter() - began
    left_out = f", {len(index.skipped)} left out" if index.skipped else ""
    print(f"{target}: {index.samples:,} samples in {len(index.shards)} shards, {index.bytes / 2**20:,.1f} MiB{left_out}; {took:.1f} s, "
          f"{index.bytes / 2**20 / took:,.0f} MiB/s")


@app.command("shuttle-label")
def data_shuttle_label(
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="a video file")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder for Label Studio; several videos may share it")],
    start: Annotated[float, typer.Option(help="seconds from which on frames are labelled")] = 0,
    stop: Annotated[float | None, typer.Option(help="seconds up to which frames are labelled (default: all)")] = None,
    png: Annotated[bool, typer.Option("--png", help="frames as PNG, without loss and about six times as large")] = False,
) -> None:
    """Write a video's frames, a labelling config and tasks for Label Studio. Run again, it goes on; nothing is overwritten."""
    from hpml.data import labelling

    if not 0 <= start < math.inf or (stop is not None and not stop > start):
        raise HpmlError(f"--start {start:g}{'' if stop is None else f' --stop {stop:g}'}: give seconds from 0 on, start before stop")
    count = labelling.label(source, target, start_s=start, stop_s=stop, png=png)
    print(f"{target}: {count:,} frames of {source.name} to label")
    print(labelling.START.format(root=target.resolve(), tasks=f"tasks_{source.stem}.json"))


@app.command("shuttle-prepare")
def data_shuttle_prepare(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Label Studio's export (CSV, TSV, JSON, JSON-MIN), TrackNet's CSV or a "
                                           "folder of them")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder of the set; as data/shuttle it is found by itself")],
    frames: Annotated[Path | None, typer.Option(help="folder of the pictures: one folder a clip, or one clip")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="a clip's video, named as the clip; may be given several times")] = None,
    png: Annotated[bool, typer.Option("--png", help="frames of videos as PNG, without loss")] = False,
) -> None:
    """Make a training set from labels and their frames; print what was found wrong and how it was decided."""
    from hpml.data import prepare

    if frames is not None and not frames.is_dir():
        raise HpmlError(f"--frames {frames}: no such folder")
    print(prepare.text(prepare.prepare(export, target, frames=frames, videos=video or (), png=png)))


@app.command("shuttle-render")
def data_shuttle_render(
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder: video/clip0.mp4, csv/clip0_ball.csv and so on")],
    clips: Annotated[int, typer.Option(help="videos")] = 1,
    frames: Annotated[int, typer.Option(help="frames of each, 30 a second")] = 300,
    cuts: Annotated[int, typer.Option(help="cuts to another scene in each")] = 0,
    width: Annotated[int, typer.Option(help="pixels; the height is 9/16 of it")] = 1280,
    seed: Annotated[int, typer.Option(min=0, help="another one gives other scenes")] = 0,
) -> None:
    """Render badminton rallies as videos with the shuttle's exact places, in TrackNet's folders; `hpml track` reads the videos."""
    from hpml.data import film

    for path in film.film(target, clips=clips, frames=frames, cuts=cuts, width=width, seed=seed):
        print(path)


@app.command("publish")
def data_publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a set made by shuttle-prepare or shard")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub")],
    yes: Annotated[bool, typer.Option("--yes", help="send it; without this, only what would be sent is said")] = False,
    public: Annotated[bool, typer.Option("--public", help="a new data set is seen by everybody; default: by its owner")] = False,
) -> None:
    """Send a processed set to the Hugging Face hub as a data set. Nothing is sent without --yes."""
    from hpml.data import publish

    asked = publish.plan(folder, repo)
    print(asked)
    if yes:
        print(publish.send(asked, public=public))
    else:
        print("nothing was sent; --yes sends it, " + ("to be seen by everybody" if public else "private if it is new"))
