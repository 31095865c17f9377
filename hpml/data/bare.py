"""WebDataset's own pipeline on the same shards: what reading them here is compared with."""

from pathlib import Path

import webdataset
from torch.utils.data import IterableDataset

from hpml.data import jpegfiles
from hpml.data.shards import read_index
from hpml.data.stream import BUFFER


class Bare(IterableDataset):
    """Shards of a folder as its documentation reads them: shuffled shards split over workers, a shuffle buffer, decode, transform."""

    def __init__(self, folder: Path, *, image: int, part: str = "train") -> None:
        index = read_index(folder)
        self.urls = [str(folder / shard.name) for shard in index.part(part)]
        self.count = sum(shard.samples for shard in index.part(part))
        self.transform = jpegfiles.transform(train=True, image=image)
        self.sample_bytes = 3 * image * image * 4
        self.actual = {"shards": len(self.urls), "webdataset": webdataset.__version__}

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        pipeline = webdataset.WebDataset(self.urls, shardshuffle=len(self.urls), empty_check=False)
        return iter(pipeline.shuffle(BUFFER).decode("pilrgb").to_tuple("jpg;png", "cls").map_tuple(self.transform, int))
