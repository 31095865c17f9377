"""The localizer's two stages as parts of the workload, each exported and run alone: the place in the frame, then the place in a crop."""

CELL_PX = 8.0  # of the first network's map, in pixels of the frame
# Each stage alone. Nothing is rounded between input and answer: a tenth of a pixel is a hundred times what the order of additions does.
# The first one's answer is right where it is right to a cell of its map: the crop is many cells wide.
PARITY = {"fp32": {"atol": 0.1, "rtol": 0.0, "top1_agreement": 0.99}}


class Crops:
    """Map-style over a data set of frames: index -> (float32 [3, side, side],), around the truth, or in the middle where there is none."""

    def __init__(self, frames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple:
        import torch

        from hpml.workloads._localizer import corner_of, crop_side, cut

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
    from hpml.data.frames import FrameDataset

    images, labels = (frames.train_images, frames.train_labels) if train else (frames.test_images, frames.test_labels)
    return Crops(FrameDataset(images, labels, train=False))


def crop_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded crops [batch, 3, side, side] of the side that the frame's width asks for."""
    import torch

    from hpml.workloads._localizer import crop_side

    side = crop_side(knobs["image"])
    return (torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)),)


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
