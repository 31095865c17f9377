"""A processed set sent to the Hugging Face hub as a data set, when it is asked for and not before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpml.data import shards, shuttle
from hpml.env import HpmlError, Unavailable

LEFT = [".*", "**/.*", "*.part", f"{shuttle.ASIDE}/*"]  # hidden files, unfinished ones, what was moved aside
CARD = "README.md"


@dataclass(frozen=True)
class Plan:
    """What would be sent."""

    folder: Path
    repo: str
    files: tuple[str, ...]
    size: int  # bytes

    def __str__(self) -> str:
        card = "" if CARD in self.files else f"; no {CARD} is in it: say there whose frames these are, and their licence"
        return f"{self.folder}: {len(self.files):,} files, {self.size / 2**20:,.1f} MiB, to the data set {self.repo}{card}"


def plan(folder: Path, repo: str) -> Plan:
    """What `send` would send. Raises HpmlError, one line, for a folder that is no processed set, links in it, or a name that is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import filter_repo_objects, validate_repo_id

    if not any((folder / name).is_file() for name in (shuttle.PREPARED, shards.INDEX)):
        raise HpmlError(f"{folder}: no processed set (hpml data shuttle-prepare and hpml data shard make one)")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HpmlError(f"{repo!r} is no name of a data set (owner/name): {str(error).splitlines()[0]}") from None
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())
    files = tuple(filter_repo_objects(names, ignore_patterns=LEFT))
    if links := [name for name in files if (folder / name).is_symlink()]:
        raise HpmlError(f"{folder / links[0]} is a link; only the set's own files are sent")
    return Plan(folder, repo, files, sum((folder / name).stat().st_size for name in files))


def send(asked: Plan, *, public: bool = False) -> str:
    """Makes the data set where it is missing (private unless `public`), uploads, and returns its address.

    The token is that of `hf auth login` or HF_TOKEN. Raises Unavailable without one or without a connection, HpmlError where the hub
    refuses; what was sent by then is kept there, and the same call goes on.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if not get_token():
        raise Unavailable("publishing needs a token with the right to write: hf auth login, or HF_TOKEN")
    api = HfApi()
    try:
        where = api.create_repo(asked.repo, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(repo_id=where.repo_id, repo_type="dataset", folder_path=asked.folder, ignore_patterns=list(LEFT),
                          commit_message=f"{len(asked.files)} files of a processed set")
    except OfflineModeIsEnabled:
        raise Unavailable("the hub is switched off here (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE); nothing was sent") from None
    except HfHubHTTPError as error:
        raise HpmlError(f"{asked.repo}: the hub refused it ({str(error).strip().splitlines()[0]})") from None
    except (HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(f"{asked.repo}: the hub cannot be reached ({reason})") from None
    return str(where)
