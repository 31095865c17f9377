"""The localizer's samples and its two stages as parts of the workload, each exported and run alone: the place in the frame, then the place
in a crop."""

CELL_PX = 8.0  # of the first network's map, in pixels of the frame
# Each stage alone. Nothing is rounded between input and answer: a tenth of a pixel is a hundred times what the order of additions does.
# The first one's answer is right where it is right to a cell of its map: the crop is many cells wide.
PARITY = {"fp32": {"atol": 0.1, "rtol": 0.0, "top1_agreement": 0.99}}


def design_of(knobs: dict):
    """The design that the knobs name, or one that stands there itself (benchmarks/shuttle_versions.py)."""
    from hpml.workloads._designs import Design, design

    named = knobs.get("variant", "base")
    return named if isinstance(named, Design) else design(named)


def samples(knobs: dict, frames, *, train: bool, part: str | None = None, storage: str = "array"):
    """The FrameDataset of a part of the split ("train" or "test"; by default the one that `train` means), as the design wants it."""
    from hpml.data.frames import AUGMENTS, FrameDataset, preceding

    wanted, part = design_of(knobs), part or ("train" if train else "test")
    images, labels, clips, numbers = (getattr(frames, f"{part}_{what}") for what in ("images", "labels", "clips", "numbers"))
    previous = preceding(clips, numbers, wanted.history) if wanted.history else None
    return FrameDataset(images, labels, train=train, storage=storage, augment=AUGMENTS[wanted.augment], previous=previous)


def answers(predict, knobs: dict, frames, *, part: str = "test"):
    """What `predict` (tuple of arrays -> [N, 3]) answers for every frame of a part of the split, float32 [N, 3].

    A design with history gets its own answers as past places, as it does on video: first the first frame of every clip, then the second
    of every clip, and so on.
    """
    import numpy as np
    import torch

    data, batch = samples(knobs, frames, train=False, part=part), max(knobs["batch"], 8)
    found, depth = np.zeros((len(data), 3), np.float32), np.zeros(len(data), int)
    if data.previous is not None:
        data.past, order = found, np.argsort(getattr(frames, f"{part}_numbers"), kind="stable")
        for row in order:  # one more than the deepest frame before it
            depth[row] = max((depth[before] + 1 for before in data.previous[row] if before >= 0), default=0)
    for level in range(depth.max(initial=0) + 1):
        rows = np.flatnonzero(depth == level)
        for start in range(0, len(rows), batch):
            some = rows[start:start + batch]
            found[some] = np.asarray(predict((torch.stack([data[row][0] for row in some]).numpy(),)), dtype=np.float32)
    return found


class Crops:
    """Map-style over a data set of frames: index -> (float32 [3, side, side],), around the truth, or in the middle where there is none."""

    def __init__(self, frames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple:
        import torch

        from hpml.workloads._designs import crop_side
        from hpml.workloads._localizer import corner_of, cut

        frame, truth = self.frames[index]
        side, middle = crop_side(frame.shape[-1]), torch.tensor([frame.shape[-1], frame.shape[-2]]) / 2
        corner = corner_of((truth[:2] if truth[2] else middle)[None], frame[None], side)
        return (cut(frame[None], corner, side)[0],)


def find(model):
    """The first network of the localizer, in evaluation mode."""
    from hpml.workloads._localizer import Find

    return Find(model).eval()


def refine(model):
    """The second one."""
    from hpml.workloads._localizer import Refine

    return Refine(model).eval()


def crops(knobs: dict, frames, *, train: bool) -> Crops:
    """The test frames' crops; the training frames' with `train`, without augmentation."""
    return Crops(samples(knobs, frames, train=False, part="train" if train else "test"))


def crop_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded crops [batch, channels, side, side] of the side that the frame's width asks for."""
    import torch

    from hpml.workloads._designs import crop_side

    side = crop_side(knobs["image"])
    return (torch.randn(batch, design_of(knobs).channels, side, side, generator=torch.Generator().manual_seed(0)),)


def same_cell(wanted, got) -> float:
    """Share of places [N, 2] that lie within a cell of the first network's map of each other."""
    return float((apart(wanted, got) <= CELL_PX).mean())


def apart(wanted, got):
    """Distances [N] of places [N, 2 or more] in pixels."""
    import numpy as np

    return np.hypot(*(wanted - got)[:, :2].T)


def distance(wanted, got) -> dict[str, float]:
    """The largest and the median distance of two lists of places in pixels."""
    import numpy as np

    far = apart(wanted, got)
    return {"largest distance px": float(far.max()), "median distance px": float(np.median(far))}


PARTS = {
    "find": {"TITLE": "Shuttle localizer, first stage", "PARITY": PARITY, "of": find, "agreement": same_cell, "likeness": distance},
    "refine": {"TITLE": "Shuttle localizer, second stage", "INPUT_NAMES": ("crops",), "PARITY": PARITY, "of": refine,
               "example_inputs": crop_inputs, "dataset": crops, "likeness": distance},
}
