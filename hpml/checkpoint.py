"""Checkpoints of a training: all that the next step depends on, written whole or not at all, the last few kept.

Model, optimizer, schedule and scaler are the same on all ranks; the random states, and the losses of an epoch that is under way, are each
rank's own. The order of an epoch depends on seed and epoch alone, so a place in it is a number of samples.
"""

import os
import pickle
import random
from pathlib import Path

from hpml import distributed
from hpml.env import HpmlError


def seed(number: int) -> None:
    """Start the generators of Python, NumPy and torch from one number."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def random_state() -> dict:
    """Where the generators of this process are, in types that torch loads safely."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest], "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def restore_random(state: dict) -> None:
    """Set the generators to what `random_state` returned."""
    import numpy as np
    import torch

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def stream(batches, *, epoch: int, seed: int, taken: int):
    """The batches of one epoch without the first `taken`, which are not loaded where the order can be entered anywhere (a pipeline of
    WebDataset's own cannot: it reads them). With loader workers the samples are those that would have come; what the workers draw for
    their augmentation is new."""
    batches.generator.manual_seed(seed)
    settable = hasattr(batches.sampler, "set_epoch")
    if settable:
        batches.sampler.set_epoch(epoch, taken * batches.batch_size)
    found = iter(batches)
    for _ in range(0 if settable else taken):
        next(found)
    return found


def of_all_ranks(own: dict) -> list[dict]:
    """What each rank has of its own, by rank."""
    here = distributed.place()
    if here.size == 1:
        return [own]
    import torch

    found: list = [None] * here.size
    torch.distributed.all_gather_object(found, own)
    return found


def save(folder: Path, name: str, state: dict, *, keep: int) -> None:
    """Write the checkpoint of state["epoch"] and state["step"] and remove all but the last `keep`. Raises HpmlError where it cannot be
    written; those before it are whole then."""
    import torch

    path = folder / f"{name}.checkpoint-{state['epoch']:05d}-{state['step']:08d}.pt"
    partial = path.with_suffix(".part")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # a name that stands for a whole file, also after the power was cut
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise HpmlError(f"{path}: the checkpoint cannot be written ({str(error).splitlines()[0]}); the one before it is whole") from None
    for old in found(folder, name)[:-keep]:
        old.unlink(missing_ok=True)


def found(folder: Path, name: str) -> list[Path]:
    """The checkpoints of a training, oldest first."""
    return sorted(folder.glob(f"{name}.checkpoint-*.pt"))


def load(folder: Path, name: str, parts: dict) -> dict | None:
    """Set `parts` (model, optimizer, ... by name) to the last checkpoint that can be read, and return the rest of it; None where there is
    none. One that cannot be read is named, and the one before it taken.

    Raises HpmlError where none can be read, and for one of another model, which is not touched.
    """
    import torch

    broken = []
    for path in reversed(found(folder, name)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            broken.append(f"{path}: a checkpoint that cannot be read ({reason})")
            print(f"{broken[-1]}: going on from the one before it", flush=True)
            continue
        try:
            for part, own in parts.items():
                own.load_state_dict(state.pop(part))
        except (RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise HpmlError(f"{path}: not a checkpoint of this case ({str(error).splitlines()[0]}); remove it to start again") from None
        return state
    if broken:
        raise HpmlError(f"{broken[0]}; remove it to start again")
    return None
