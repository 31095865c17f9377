"""Reading shards: the same samples as from files, an order that goes on after a stop, a split without overlap, every fault named."""

import gc
import itertools
import multiprocessing
import shutil
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shardmaking import packed

from hpml.data import fetch, imagefolder, jpegfiles, localhttp, shardcase, shardstore
from hpml.data.loader import loader
from hpml.data.shards import INDEX, read_index
from hpml.data.shardstore import open_store
from hpml.data.stream import ShardDataset
from hpml.env import HpmlError, Unavailable
from hpml.knobs import validate

KNOBS = {**validate("data", {"batch": 4}), "start_method": "fork", "persistent_workers": False}


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(shardstore, "PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))


def ids(place, *, rank=0, ranks=1, workers=0, epoch=0, consumed=0, even=True, seed=3, buffer=10, batch=4) -> list[list[int]]:
    """The sample ids of the batches of one epoch, as the loader gives them."""
    samples = ShardDataset(open_store(place, wait_s=0.2), ids=True, buffer=buffer)
    batches = loader(samples, {**KNOBS, "workers": workers}, batch=batch, shuffle=True, seed=seed, drop_last=even, share=(rank, ranks))
    batches.sampler.set_epoch(epoch, consumed)
    return [batch.tolist() for batch in batches]


def flat(batches) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def test_training_from_shards_gives_the_samples_of_the_files(tmp_path):
    place, index = packed(tmp_path)
    files = imagefolder.load(tmp_path / "images")
    look = {"image": 32, "train": False}
    shards, plain = ShardDataset(open_store(place), **look), jpegfiles.FileDataset(files, **look)
    number = ShardDataset(open_store(place), ids=True)
    assert len(shards) == 24 and sorted(number[i] for i in range(24)) == list(range(24))
    for position in range(24):
        image, label = shards[position]
        wanted, wanted_label = plain[number[position]]
        assert torch.equal(image, wanted) and label == wanted_label
    drawn = [ShardDataset(open_store(place), image=32), jpegfiles.FileDataset(files, train=True, image=32)]
    for position in (0, 7):
        pictures = [torch.manual_seed(5) and samples[i][0] for samples, i in zip(drawn, (position, number[position]), strict=True)]
        assert torch.equal(*pictures)  # the same crop and mirroring


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_epoch_goes_on_as_if_nothing_had_happened(tmp_path, ranks, workers):
    place, index = packed(tmp_path)
    for epoch in (0, 1):
        whole = [ids(place, rank=rank, ranks=ranks, workers=workers, epoch=epoch) for rank in range(ranks)]
        assert sorted(flat(flat(whole))) == list(range(24)), "each sample once, over all ranks"
        assert len({len(batches) for batches in whole}) == 1, "equally many steps for each rank"
        for rank, stopped in itertools.product(range(ranks), range(1, len(whole[0]))):
            again = ids(place, rank=rank, ranks=ranks, workers=workers, epoch=epoch, consumed=4 * stopped)
            assert again == whole[rank][stopped:]
    assert ids(place, epoch=0) != ids(place, epoch=1) != ids(place, epoch=1, seed=4)


def test_workers_share_one_order(tmp_path):
    place, _ = packed(tmp_path)
    assert ids(place, workers=0) == ids(place, workers=1) == ids(place, workers=2)
    assert ids(place, workers=2, consumed=8) == ids(place, workers=0)[2:]


def test_epochs_follow_each_other_and_a_loader_goes_on_inside_one(tmp_path):
    place, _ = packed(tmp_path)
    samples = ShardDataset(open_store(place), ids=True)
    batches = loader(samples, KNOBS, batch=4, shuffle=True, seed=3, drop_last=True)
    batches.sampler.set_epoch(1, 12)
    rest, after = [flat(batch.tolist() for batch in batches) for _ in range(2)]
    assert len(rest) == 12 and sorted(after) == list(range(24)) and after == flat(ids(place, epoch=2, buffer=samples.buffer))
    assert flat(ids(place, epoch=1, buffer=samples.buffer))[12:] == rest


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_split_has_no_overlap_whatever_the_numbers(tmp_path, ranks):
    place, index = packed(tmp_path, each=7, shard_mib=0.022)  # 21 samples: not a multiple of 2 or 5
    counts = [shard.samples for shard in index.shards]
    assert len(set(counts)) > 1 and sum(counts) == 21
    for epoch in range(4):
        every = [flat(ids(place, rank=rank, ranks=ranks, epoch=epoch, even=False)) for rank in range(ranks)]
        assert sorted(flat(every)) == list(range(21)) and max(map(len, every)) - min(map(len, every)) <= 1
        equal = [flat(ids(place, rank=rank, ranks=ranks, epoch=epoch, batch=1)) for rank in range(ranks)]
        assert {len(own) for own in equal} == {21 // ranks} and len(set(flat(equal))) == 21 // ranks * ranks


def test_the_order_is_by_chance_and_keeps_shards_together(tmp_path):
    place, index = packed(tmp_path, each=20)
    samples = ShardDataset(open_store(place), ids=True, buffer=8)
    order = samples.order(seed=0, shuffle=True, share=(0, 1), even=True)
    first, second = (order.positions(epoch).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(60)) and first != list(range(60))
    assert all(abs(position - i) < 8 for i, position in enumerate(first)), "epoch 0 takes shards as they arrive"
    assert max(abs(position - i) for i, position in enumerate(second)) > 8, "later ones do not"
    assert samples.order(seed=0, shuffle=False, share=(0, 1), even=True).positions(5).tolist() == list(range(60))


def test_two_processes_share_an_epoch(tmp_path):
    place, _ = packed(tmp_path)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        ranks = [pool.submit(ids, place, rank=rank, ranks=2, workers=2, epoch=1) for rank in range(2)]
        told = [rank.result(timeout=300) for rank in ranks]
    assert sorted(flat(flat(told))) == list(range(24)) and told == [ids(place, rank=rank, ranks=2, epoch=1) for rank in range(2)]


# ---- shards that are still arriving, missing or damaged


def test_it_waits_for_shards_that_still_arrive(tmp_path):
    place, index = packed(tmp_path)
    there = tmp_path / "arriving"
    there.mkdir()
    shutil.copy(place / INDEX, there)

    def arrive() -> None:
        for shard in index.shards:
            time.sleep(0.15)
            content = (place / shard.name).read_bytes()
            (there / shard.name).write_bytes(content[:1000])  # a tool that writes under the last name
            time.sleep(0.05)
            (there / shard.name).write_bytes(content)

    sender = threading.Thread(target=arrive)
    sender.start()
    samples = ShardDataset(open_store(there, wait_s=10), ids=True, buffer=10)
    seen = flat(batch.tolist() for batch in loader(samples, KNOBS, batch=4, shuffle=True, seed=3, drop_last=True))
    sender.join()
    assert seen == flat(ids(place))


@pytest.mark.parametrize(("harm", "said"), [
    (lambda path: path.unlink(), "is missing; nothing came in 0.2 s"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1024]), r"is truncated or still arriving: [\d,]+ of [\d,]+ bytes"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "corrupt or tampered with: sha256"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "too long"),
    (lambda path: path.with_name(path.name + ".aria2").touch(), "still arriving"),
])
def test_a_shard_that_is_not_as_it_was_packed_stops_the_training_with_its_name(tmp_path, harm, said):
    place, index = packed(tmp_path)
    assert len(flat(ids(place))) == 24  # all of them were right a moment ago
    harm(place / index.shards[1].name)
    with pytest.raises(HpmlError, match=rf"{index.shards[1].name}.*{said}"):
        ids(place)


def test_a_loader_worker_says_what_is_wrong(tmp_path):
    place, index = packed(tmp_path)
    (place / index.shards[1].name).unlink()
    with pytest.raises(HpmlError, match=f"{index.shards[1].name} is missing"):
        ids(place, workers=2)


def test_a_sample_that_is_no_image_is_named(tmp_path, monkeypatch):
    place, index = packed(tmp_path)
    samples = ShardDataset(open_store(place), image=32)
    monkeypatch.setattr("hpml.data.stream.decoded", lambda content: jpegfiles.decoded(content[:50]))
    with pytest.raises(HpmlError, match=rf"{index.shards[0].name}: sample \d{{8}} is no image .* --check"):
        samples[0]
    with pytest.raises(HpmlError, match="no shard of the part 'test'"):
        ShardDataset(open_store(place), part="test")
    with pytest.raises(HpmlError, match=r"index\.json: No such file"):
        open_store(tmp_path)


# ---- over HTTP


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; `server.plan` says what goes wrong with the next requests for shards."""

    def do_GET(self):
        mode = self.server.plan.pop(0) if self.server.plan and self.path.endswith(".tar") else ""
        path = Path(self.translate_path(self.path))
        if mode.isdigit() or not path.is_file():
            return self.send_error(int(mode or 404))
        body, start = path.read_bytes(), int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.asked.append((path.name, start))
        if mode == "tampered":
            body = body[:-1] + b"x"
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start + (7 if mode == "wrong length" else 0)))
        self.end_headers()
        self.wfile.write(body[start : (start + len(body)) // 2] if mode == "dies" else body[start:])
        if mode == "dies":
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    place, index = packed(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place))) as server:
        server.plan, server.asked, server.index, server.place = [], [], index, place
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http_each_shard_is_fetched_once_and_then_read_from_the_cache(served, workers):
    assert ids(served.url, workers=workers) == ids(served.place)
    assert sorted(served.asked[1:]) == sorted((shard.name, 0) for shard in served.index.shards)
    assert ids(served.url, workers=workers, epoch=1) == ids(served.place, epoch=1)
    assert {name for name, _ in served.asked[1 + len(served.index.shards):]} == {INDEX}


def test_a_server_that_fails_is_asked_again_and_goes_on_where_it_stopped(served):
    served.plan = ["dies", "503", "dies", "tampered"]
    store = open_store(served.url)
    for shard in served.index.shards:
        assert store.path(shard).read_bytes() == (served.place / shard.name).read_bytes()
    assert served.asked[1][1] == 0 and served.asked[2][1] > 0, "the second request asks for the rest"
    assert not list(store.folder.glob("*.part"))


@pytest.mark.parametrize(("mode", "said"), [
    ("404", "answered 404"), ("503", "answered 503"), ("wrong length", "sends something else than"),
    ("tampered", "is not the published file"),
])
def test_a_shard_that_does_not_come_right_is_named_and_not_kept(served, mode, said):
    served.plan = [mode] * 40
    name = served.index.shards[0].name
    store = open_store(served.url)
    with pytest.raises(HpmlError, match=f"{name}.*{said}"):
        store.path(served.index.shards[0])
    assert not (store.folder / name).exists() and len(served.plan) == (39 if mode == "404" else 40 - shardstore.ATTEMPTS)


def test_a_full_disk_is_said_at_once(served, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    store, asked = open_store(served.url), len(served.asked)
    with pytest.raises(HpmlError, match=rf"{served.index.shards[0].name}: .* MiB free, .* are needed"):
        store.path(served.index.shards[0])
    assert len(served.asked) == asked


def test_shared_memory_is_checked_before_a_shard_is_there(tmp_path, monkeypatch):
    place, index = packed(tmp_path)
    for shard in index.shards:
        (place / shard.name).unlink()
    monkeypatch.setattr("hpml.env.machine", lambda: {"shm_mib": 1})
    with pytest.raises(HpmlError, match="2 workers with 2 batches ahead need 14 MiB of /dev/shm, which has 1"):
        loader(ShardDataset(open_store(place), image=224), {**KNOBS, "workers": 2}, batch=4, shuffle=True, seed=0)


def test_a_server_that_is_gone_is_said(served):
    store, shard = open_store(served.url), served.index.shards[0]
    gone = shardstore.Store(store.index, store.folder, "http://127.0.0.1:9", store.wait_s)
    with pytest.raises(HpmlError, match=f"{shard.name}: cannot reach 127.0.0.1:9"):
        gone.path(shard)
    with pytest.raises(HpmlError, match=r"http://127\.0\.0\.1:9/index\.json: "):
        open_store("http://127.0.0.1:9/")
    with pytest.raises(HpmlError, match=r"nowhere/index\.json: the server answered 404"):
        open_store(f"{served.url}/nowhere")


def test_a_shard_that_was_changed_in_the_cache_is_fetched_again(served):
    store, shard = open_store(served.url), served.index.shards[0]
    path = store.path(shard)
    path.write_bytes(b"changed")
    assert store.path(shard).read_bytes() == (served.place / shard.name).read_bytes()


def test_only_some_shards_are_kept_where_that_is_asked(served, tmp_path):
    store = open_store(served.url, cache=tmp_path / "kept")
    samples = ShardDataset(store, ids=True, keep=1, buffer=4)
    batches = loader(samples, KNOBS, batch=4, shuffle=True, seed=3, drop_last=True)
    assert [len(flat(batch.tolist() for batch in batches)) for _ in range(3)] == [24] * 3
    assert len(served.asked) - 1 > len(served.index.shards), "dropped ones are fetched anew"


# ---- the knob


def test_storages_of_a_case(tmp_path, monkeypatch):
    packed(tmp_path)
    files = imagefolder.load(tmp_path / "images")
    wanted = sorted(files.train_labels.tolist())
    for storage in shardcase.STORAGES:
        if storage == "webdataset":
            pytest.importorskip("webdataset")
        samples = shardcase.dataset(files, image=32, storage=storage)
        batches = loader(samples, KNOBS, batch=4, shuffle=True, seed=0, drop_last=True)
        labels = [label for _, labels in batches for label in labels.tolist()]
        assert sorted(labels) == wanted and len(batches) == 6
        if storage == "shards_http":
            assert samples.actual["server"] in ("nginx", "Python's http.server")
            cache = samples.store.folder
            del samples, batches
            for _ in range(100):  # a thread that asked ahead may still hold it
                if not cache.exists() or gc.collect() < 0:
                    break
                time.sleep(0.02)
            assert not cache.exists(), "server and cache go with the data set"
    with pytest.raises(HpmlError, match="2 ranks: this storage is read by one process"):
        loader(samples, KNOBS, batch=4, shuffle=True, seed=0, share=(0, 2))
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with localhttp.serve(tmp_path / "shards") as (url, server):
        assert server == "Python's http.server" and open_store(url, cache=tmp_path / "c").index == read_index(tmp_path / "shards")
    with pytest.raises(HpmlError, match=r"index\.json: "):
        open_store(url, cache=tmp_path / "c")


def test_arrays_and_other_workloads_have_no_shards():
    import hpml

    with pytest.raises(Unavailable, match="storage=shards: shards are packed from image files"):
        shardcase.dataset(object.__new__(type("Set", (), {"title": "digits"})), image=32, storage="shards")
    with pytest.raises(HpmlError, match="deeplabv3: storage='shards' is not made for this workload: choose from array, jpeg"):
        hpml.case("deeplabv3", phase="data", tier="smoke", storage="shards")
