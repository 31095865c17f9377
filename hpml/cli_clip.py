"""`hpml clip index` and `hpml clip search`: pictures of a folder, found by words or by another picture."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpml.env import HpmlError

app = typer.Typer(help="Search a folder of pictures by words or by a picture.", no_args_is_help=True)
SHOWN_SKIPPED = 20


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@app.command("index")
def make_index(
    folder: Annotated[str, typer.Argument(help="a folder of pictures; folders below it are included, links are not followed")],
    out: Annotated[Path, typer.Option(help="the file of the index; the same command goes on with it or brings it up to date")],
    engine: Annotated[str, typer.Option(help="openvino, onnxruntime, eager, torchscript, compile or tensorrt")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8")] = "fp32",
    weights: Annotated[str, typer.Option(help="auto (published ones where a copy is here, else the run's, else a small CLIP is trained "
                                              "first), pretrained, trained or a .safetensors file")] = "auto",
    run_id: Annotated[str | None, typer.Option(help="the run whose trained weights are used and that keeps the engine (default: clip)")
                      ] = None,
    image: Annotated[int | None, typer.Option(help="side of the model's input in pixels (default: that of the weights)")] = None,
    tier: Annotated[str, typer.Option(help="sizes: smoke, cpu, gpu or full")] = "cpu",
    data: Annotated[str, typer.Option(help="what a training that has to come first trains on: auto, real, standin or a data set by name")
                    ] = "auto",
) -> None:
    """Embed a folder's pictures into one file. Damaged ones are listed and left out; pictures that are in the file are not done again."""
    from hpml.serve import indexing

    found, model = indexing.index_folder(folder, out, say=_say, engine=engine, precision=precision, weights=weights, run_id=run_id,
                                         image=image, tier=tier, data=data)
    for picture, reason in found.skipped[:SHOWN_SKIPPED]:
        print(f"left out: {picture.name}: {reason}")
    if len(found.skipped) > SHOWN_SKIPPED:
        print(f"left out: {len(found.skipped) - SHOWN_SKIPPED:,} more")
    print(f"{out}: {len(found.pictures):,} pictures, {found.embeddings.shape[1]} numbers each, {out.stat().st_size / 2**20:.3g} MiB")
    print(model)


@app.command("search")
def search_index(
    text: Annotated[str | None, typer.Argument(help='what to look for, as "a snowy street at night"')] = None,
    index: Annotated[Path, typer.Option(help="a file that `hpml clip index` made")] = ...,
    image: Annotated[Path | None, typer.Option(help="look for pictures like this one; if it is in the index, it is no answer")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many")] = 5,
    folder: Annotated[str | None, typer.Option(help="where the indexed folder lies now, if it was moved alone")] = None,
) -> None:
    """The nearest pictures of an index, with cosines. An index of other weights, or of pictures that have changed, is refused."""
    from hpml.serve import indexing

    if (text is None) == (image is None):
        raise HpmlError("give a text or --image PICTURE, one of them")
    near, model = indexing.search(index, text=text, image=image, k=k, folder=folder, say=_say)
    _say(model)
    for name, score in near:
        print(f"{score:7.4f}  {name}")
