"""Training reads shards: the order of an epoch, its split over ranks, and the data set behind torch's loader.

The order is computed from the index alone, as a function of (seed, epoch, rank, ranks): shards in an order by chance, and inside it a
shuffle buffer that is filled, emptied by chance and filled again. So a training that was stopped goes on at any place of an epoch without
reading what it had seen, with as many loader workers as it likes: they share one order.
"""

from __future__ import annotations

import collections
import os
import queue
import threading
from collections.abc import Iterator

from hpml.data import jpegfiles
from hpml.data.jpegfiles import NOT_DECODED, decoded
from hpml.data.shards import members
from hpml.data.shardstore import Store
from hpml.env import HpmlError

BUFFER = 2048  # samples among which the next one is chosen
OPEN_SHARDS = 16  # files that one process keeps open
AHEAD = 4  # shards that are asked for before they are needed, each by a thread of its own


class ShardDataset:
    """A map-style data set for torch's loader: position in the packed order -> (float32 tensor [3, image, image], int label).

    The transform is FileDataset's. `ids=True`: position -> the sample's number in the set that was packed, and nothing is decoded.
    `keep`: only so many downloaded shards stay in the cache behind the place that is read, and as many files stay open; 0 = all.
    Raises HpmlError, with shard and reason, for a shard that is missing, damaged or does not come, and for a sample that is no image.
    """

    def __init__(self, store: Store, *, part: str = "train", train: bool = True, image: int = 224, ids: bool = False,
                 keep: int = 0, buffer: int = BUFFER) -> None:
        import numpy as np

        self.store, self.shards, self.ids, self.keep, self.buffer = store, store.index.part(part), ids, keep, buffer
        if not self.shards:
            raise HpmlError(f"{store.folder}: no shard of the part {part!r} in the index")
        self.starts = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self.transform = jpegfiles.transform(train=train, image=image)
        self.sample_bytes = 0 if ids else 3 * image * image * 4
        self.actual = {"shards": len(self.shards), "shards_mib": sum(shard.bytes for shard in self.shards) / 2**20}
        self._open: collections.OrderedDict = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": collections.OrderedDict()}  # files do not travel to workers

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> tuple | int:
        shard, (file, samples) = self._at(position)
        number, offset, size, label = samples[position - self.starts[shard]]
        if self.ids:
            return int(number)
        content = os.pread(file.fileno(), size, offset)
        try:
            picture = decoded(content)
        except NOT_DECODED as error:
            raise HpmlError(f"{self.shards[shard].name}: sample {number:08d} is no image that can be read ({error}); "
                            "pack again with --check, which leaves such images out") from None
        return self.transform(picture), int(label)

    def order(self, *, seed: int, shuffle: bool, share: tuple[int, int], even: bool) -> ShardOrder:
        """The sampler of a rank: what `hpml.data.loader.loader` asks of a data set that has an order of its own."""
        return ShardOrder(self, seed=seed, shuffle=shuffle, share=share, even=even)

    def _at(self, position: int) -> tuple[int, tuple]:
        """(number of the shard that holds the position, (open file, its members))."""
        import numpy as np

        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            path = self.store.path(self.shards[shard])
            try:
                file = path.open("rb")
                self._open[shard] = (file, members(file, path, self.shards[shard], len(self.store.index.classes)))
            except OSError as error:
                raise HpmlError(f"{path}: {error.strerror}") from None
            while len(self._open) > (self.keep or OPEN_SHARDS):
                self._open.popitem(last=False)[1][0].close()
        return shard, self._open[shard]


class ShardOrder:
    """A sampler: the positions of one rank's samples in one epoch, then those of the next.

    Epoch 0 takes the shards as they are packed, which is the order in which they arrive and was shuffled by sample; later epochs take
    them by chance. Whole shards go to a rank, and ends of them, so that the ranks get equally many; with `even` exactly so: what does
    not fill a turn (fewer samples than ranks) is left out. Without `even` every sample is taken once.
    """

    def __init__(self, dataset: ShardDataset, *, seed: int, shuffle: bool = True, share: tuple[int, int] = (0, 1),
                 even: bool = True) -> None:
        self.dataset, self.seed, self.shuffle, self.even = dataset, seed, shuffle, even
        self.index, self.size = share
        self.set_epoch(0)

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Let the next iteration be that of `epoch`, from the sample on that follows the first `consumed` ones of this rank."""
        self.epoch, self.consumed = epoch, consumed

    def __len__(self) -> int:
        return self._quota(self.index)

    def __iter__(self) -> Iterator[int]:
        positions = self.positions(self.epoch)[self.consumed :]
        self.set_epoch(self.epoch + 1)
        with _Ahead(self.dataset, positions) as ahead:
            for i, position in enumerate(positions.tolist()):
                ahead.reached(i)
                yield position

    def positions(self, epoch: int):
        """int64 [len(self)]: the whole order of an epoch for this rank."""
        import numpy as np

        ds = self.dataset
        shards = np.arange(len(ds.shards))
        if self.shuffle and epoch:
            shards = np.random.default_rng([self.seed, epoch]).permutation(shards)
        found = np.concatenate([np.arange(first, stop) for first, stop in self._stretches(shards)])
        if self.shuffle:
            for number, first in enumerate(range(0, len(found), ds.buffer)):
                rng = np.random.default_rng([self.seed, epoch, self.index, number])
                found[first : first + ds.buffer] = rng.permutation(found[first : first + ds.buffer])
        return found

    def _quota(self, rank: int) -> int:
        count, ranks = len(self.dataset), self.size
        return count // ranks if self.even else count * (rank + 1) // ranks - count * rank // ranks

    def _stretches(self, shards) -> list[tuple[int, int]]:
        """(first, stop) positions of this rank: every size-th shard. What a rank has beyond its quota is cut off from its end and fills
        up the others, in turn."""
        starts = self.dataset.starts
        of_rank = [[(int(starts[s]), int(starts[s + 1])) for s in shards[rank :: self.size]] for rank in range(self.size)]
        spare: list[tuple[int, int]] = []
        for rank, own in enumerate(of_rank):
            surplus = sum(stop - first for first, stop in own) - self._quota(rank)
            while surplus > 0:
                first, stop = own.pop()
                cut = max(first, stop - surplus)
                spare.append((cut, stop))
                surplus -= stop - cut
                if cut > first:
                    own.append((first, cut))
        for rank, own in enumerate(of_rank):
            missing = self._quota(rank) - sum(stop - first for first, stop in own)
            while missing > 0:
                first, stop = spare.pop(0)
                cut = min(stop, first + missing)
                own.append((first, cut))
                missing -= cut - first
                if cut < stop:
                    spare.insert(0, (cut, stop))
        return of_rank[self.index]


class _Ahead:
    """Asks for the next shards of an order before a worker needs them: threads, which wait for the network or hash. What goes wrong
    there goes wrong again, and is said, where the shard is needed."""

    def __init__(self, dataset: ShardDataset, positions) -> None:
        import numpy as np

        shard_of = np.searchsorted(dataset.starts, positions, side="right") - 1
        numbers, first = np.unique(shard_of, return_index=True)
        turn = np.argsort(first)
        self.dataset, self.shards, self.first = dataset, numbers[turn].tolist(), first[turn].tolist()
        self.asked, self.jobs = 0, queue.SimpleQueue()
        self.ahead = min(AHEAD, dataset.keep or AHEAD)

    def __enter__(self) -> _Ahead:
        for _ in range(min(self.ahead, len(self.shards))):
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for _ in range(self.ahead):
            self.jobs.put(None)

    def reached(self, i: int) -> None:
        """The order is at its i-th sample: ask for the shards that come next, forget those beyond `keep`."""
        while self.asked < len(self.shards) and i >= self.first[max(0, self.asked - self.ahead)]:
            self.jobs.put(self.dataset.shards[self.shards[self.asked]])
            done = self.asked - self.ahead - self.dataset.keep
            if self.dataset.keep and done >= 0:
                self.dataset.store.discard(self.dataset.shards[self.shards[done]])
            self.asked += 1

    def _work(self) -> None:
        while (shard := self.jobs.get()) is not None:
            try:
                self.dataset.store.path(shard)
            except HpmlError:
                continue
