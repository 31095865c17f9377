"""The loader: one DataLoader built from knobs, and the measurement of it alone."""

import itertools

from hpml import forkserver
from hpml.env import HpmlError, Unavailable
from hpml.reader import Sent


class Share:
    """Every size-th index of the order that one process would take, so that batch k of all ranks together is its batch k.

    torch's DistributedSampler has another order for each number of ranks. Indices that do not fill a turn are left out.
    """

    def __init__(self, order, index: int, size: int) -> None:
        self.order, self.index, self.size, self.consumed = order, index, size, 0

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Let the next iteration leave out the first `consumed` samples of this rank; the order itself is that of its generator."""
        self.consumed = consumed

    def __iter__(self):
        consumed, self.consumed = self.consumed, 0
        return itertools.islice(self.order, self.index + consumed * self.size, len(self) * self.size, self.size)

    def __len__(self) -> int:
        return len(self.order) // self.size


def loader(dataset, knobs: dict, *, batch: int, shuffle: bool, seed: int, drop_last: bool = False, share: tuple[int, int] = (0, 1)):
    """torch DataLoader over `dataset` with the knobs workers, pin_memory, prefetch, persistent_workers and start_method.

    `share`: (index, size) of the ranks that divide the data set among them; `batch` is then a rank's. The order depends on `seed`
    alone (shards have one of their own); the augmentation on it and the number of workers (without workers it draws from torch's global
    generator, which the caller seeds). Raises HpmlError where shared memory cannot hold the batches in flight, Unavailable for pinned
    memory without a GPU.
    """
    import torch
    from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

    if knobs.get("pin_memory") and knobs["device"] == "cpu":
        raise Unavailable("pin_memory: no GPU in this case, so nothing is copied that page-locked memory could speed up")
    workers = knobs.get("workers", 0)
    if workers:
        _check_shared_memory(dataset, batch, workers, knobs["prefetch"])
        if knobs["start_method"] == "forkserver":  # else each worker imports torch anew: seconds and half a GiB each
            forkserver.context()
    extra = {"prefetch_factor": knobs["prefetch"], "persistent_workers": knobs["persistent_workers"],
             "multiprocessing_context": knobs["start_method"]} if workers else {}
    generator = torch.Generator().manual_seed(seed)
    if isinstance(dataset, IterableDataset):  # it has an order and a split over workers of its own
        if share[1] > 1:
            raise HpmlError(f"{share[1]} ranks: this storage is read by one process and its workers only; take storage=shards")
        return DataLoader(dataset, batch_size=batch, drop_last=drop_last, num_workers=workers, generator=generator,
                          pin_memory=knobs.get("pin_memory", False), **extra)
    if hasattr(dataset, "order"):
        order = dataset.order(seed=seed, shuffle=shuffle, share=share, even=drop_last)
    else:
        order = Share(RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset), *share)
    if workers and knobs["start_method"] != "fork":
        dataset = Sent(dataset)
    return DataLoader(dataset, batch_size=batch, sampler=order, drop_last=drop_last, num_workers=workers,
                      generator=generator, pin_memory=knobs.get("pin_memory", False), **extra)


def _check_shared_memory(dataset, batch: int, workers: int, prefetch: int) -> None:
    import torch

    from hpml import env

    shm_mib = env.machine()["shm_mib"]
    if hasattr(dataset, "sample_bytes"):  # shards say it: their first one may still be on its way
        size = dataset.sample_bytes
    else:
        size = sum(part.nbytes for part in dataset[0] if isinstance(part, torch.Tensor))
    needed_mib = size / 2**20 * batch * workers * (prefetch + 1)
    if shm_mib is not None and needed_mib > shm_mib:
        raise HpmlError(f"{workers} workers with {prefetch} batches ahead need {needed_mib:.0f} MiB of /dev/shm, which has {shm_mib}: "
                        "lower workers, prefetch or batch, or enlarge it")


def endless(batches):
    """Epoch after epoch of one DataLoader. Raises HpmlError where the data set does not fill one batch."""
    if not len(batches):
        needed = batches.batch_size * batches.sampler.size
        raise HpmlError(f"train_samples={len(batches.dataset)} is less than one batch of {needed}")
    return _epochs(batches)


def _epochs(batches):
    while True:
        yield from batches
