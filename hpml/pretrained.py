"""Published weights: a workload's PRETRAINED names them (torchvision's name, or a url) and the heads that may be replaced.

They are used only where somebody asks for weights="pretrained", and downloaded only by `hpml weights NAME`.
"""

import hashlib
import os
import re
from pathlib import Path
from types import ModuleType

from hpml.env import HpmlError, Unavailable, data_dir


def folder() -> Path:
    """Where local copies lie: $HPML_WEIGHTS, else `weights` in the data folder."""
    return Path(os.environ.get("HPML_WEIGHTS") or data_dir() / "weights").expanduser().resolve()


def find(workload: ModuleType) -> Path:
    """The checked local copy of a workload's published weights: in `folder`, else in the hub's own cache.

    Raises Unavailable where there are none or no copy is here, HpmlError for a truncated or other file.
    """
    facts = _facts(workload)
    path = folder() / facts["file"]
    path = path if path.is_file() else _in_hub_cache(facts["url"]) or path
    if not path.is_file():
        raise Unavailable(f"weights='pretrained': {path} is not here; `hpml weights {workload.NAME}` downloads it, or name the folder of "
                          "a copy in HPML_WEIGHTS")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(facts["sha256"]):
        raise HpmlError(f"{path} is damaged or another file: sha256 {found[:8]}..., published is {facts['sha256']}...; delete it and "
                        "fetch it again")
    return path


def here(workload: ModuleType) -> bool:
    """Whether a copy of a workload's published weights is on this machine. Raises HpmlError for a damaged one."""
    try:
        find(workload)
    except Unavailable:
        return False
    return True


def _in_hub_cache(url: str) -> Path | None:
    """Where transformers or torch hub keeps the file of this address, if another program fetched it. Nothing is asked over the network."""
    if found := re.fullmatch(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(found[1], found[3], revision=found[2])
        return Path(path) if isinstance(path, str) else None
    from torch.hub import get_dir

    path = Path(get_dir(), "checkpoints", url.rpartition("/")[2])
    return path if path.is_file() else None


def fetch(workload: ModuleType) -> Path:
    """Download a workload's published weights, checked by torch while it arrives. Raises HpmlError in one line when that fails."""
    from torch.hub import download_url_to_file

    facts = _facts(workload)
    path = folder() / facts["file"]
    try:
        if path.is_file():
            return find(workload)
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(facts["url"], str(path), hash_prefix=facts["sha256"], progress=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise HpmlError(f"{facts['file']}: cannot be fetched: {str(reason).splitlines()[0]}; download it yourself from "
                        f"{facts['url']} and put it in {path.parent}") from None
    return find(workload)


def read(path: Path, model, workload: ModuleType) -> dict:
    """The weights of a published file for `model`: heads of another number of classes stay the model's own, and what the file holds beside
    weights (`beside`: endings of names) is left out.

    Only tensors are read (weights_only). Raises what torch raises for a file that is none.
    """
    import torch

    state, own = torch.load(path, weights_only=True, map_location="cpu"), model.state_dict()
    state = {name: weight for name, weight in state.items() if not name.endswith(workload.PRETRAINED.get("beside", ()))}
    for name in own:
        if name.startswith(workload.PRETRAINED.get("heads", ())) and name in state and state[name].shape != own[name].shape:
            state[name] = own[name]
    return state


def _facts(workload: ModuleType) -> dict:
    """url, file and sha256: where PRETRAINED names none, its first digits, which the file's name ends with (torchvision's custom)."""
    if not hasattr(workload, "PRETRAINED"):
        raise Unavailable(f"weights='pretrained': {workload.TITLE} names no published weights; give random, trained or a .safetensors file")
    url = workload.PRETRAINED.get("url")
    if url is None:
        from torchvision.models import get_weight

        url = get_weight(workload.PRETRAINED["torchvision"]).url
    if "sha256" in workload.PRETRAINED:
        return {"url": url, "file": workload.PRETRAINED["file"], "sha256": workload.PRETRAINED["sha256"]}
    file = url.rpartition("/")[2]
    return {"url": url, "file": file, "sha256": re.search(r"-([0-9a-f]{8,})\.\w+$", file)[1]}
