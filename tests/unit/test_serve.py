"""What a service makes of bytes, and words of outputs: pictures of every kind, the evaluation's own preprocessing, saved settings."""

import asyncio
import base64
import contextlib
import errno
import functools
import gc
import io
import json
import resource
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.datastructures import State

from hpml import cli_serve, configfile, env, workloads
from hpml.data.frames import FrameDataset
from hpml.data.images import ImageDataset
from hpml.data.masks import MaskDataset
from hpml.env import HpmlError, Unavailable
from hpml.serve import bodies, connection, prepare, searching, server, service, tasks
from hpml.serve.batching import Batcher
from hpml.serve.inputs import open_picture, reader_of
from hpml.serve.settings import BadInput, Busy, Settings
from hpml.serve.watch import Watch

RANDOM = np.random.default_rng(0)


def encoded(pixels, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def photograph(width: int, height: int):
    """Smooth colours with some grain, as JPEG is made for."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 5, height))
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2) * 90 + 128
    return (smooth + RANDOM.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def test_a_picture_stands_upright_and_keeps_its_full_size():
    pixels = photograph(400, 200)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    picture, size = open_picture(encoded(pixels, "JPEG", exif=turned, quality=95))
    assert picture.size == size == (200, 400)
    assert np.abs(np.asarray(picture, int) - np.rot90(pixels, -1)).mean() < 6
    small, size = open_picture(encoded(photograph(3200, 1600), "JPEG", exif=turned), wanted=100)
    assert size == (1600, 3200) and small.size == (200, 400), "decoded at the scale that is needed, told at its own"


def test_a_scaled_decode_stays_near_the_full_one():
    content = encoded(photograph(2000, 1500), "JPEG", quality=90)
    full, scaled = open_picture(content)[0], open_picture(content, wanted=256)[0]
    assert scaled.size[0] < full.size[0]
    near = [np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR), int) for picture in (full, scaled)]
    assert np.abs(near[0] - near[1]).mean() < 1.0 and np.abs(near[0] - near[1]).max() < 16, "of 255"


@pytest.mark.parametrize(("content", "status"), [
    (b"", 400), (b"GIF89a", 415), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415), (encoded(photograph(64, 64))[:200], 422),
    (encoded(photograph(1000, 1100)), 413), (encoded(photograph(410, 10)), 422)])
def test_what_is_no_picture_says_so(content, status):
    with pytest.raises(BadInput) as refused:
        open_picture(content, max_megapixels=1.0)
    assert refused.value.status == status and "\n" not in str(refused.value)


@pytest.mark.parametrize(("dataset", "whole"), [
    (ImageDataset(RANDOM.integers(0, 255, (3, 32, 32, 3), np.uint8), np.arange(3), train=False, image=48), False),
    (MaskDataset(RANDOM.integers(0, 255, (3, 64, 64, 3), np.uint8), np.zeros((3, 64, 64), np.uint8), train=False, image=32), True),
    (FrameDataset(RANDOM.integers(0, 255, (3, 72, 128, 3), np.uint8), np.zeros((3, 3), np.float32), train=False), True)])
def test_a_served_sample_is_the_input_of_the_evaluation(dataset, whole):
    read, side = reader_of(dataset, whole=whole)
    for i in range(len(dataset)):
        served = read(open_picture(encoded(dataset.images[i]), wanted=side)[0])
        np.testing.assert_array_equal(served[0], np.asarray(dataset[i][0]))
    assert read(Image.fromarray(photograph(300, 200))).shape == (1, *dataset[0][0].shape)


def test_pictures_of_files_take_the_files_way(tmp_path):
    from hpml.data.jpegfiles import FileDataset, FileSet

    content = encoded(photograph(500, 375), "JPEG", quality=90)
    (tmp_path / "one.jpg").write_bytes(content)
    places = np.array([(b"one.jpg", -1, 0, 0)], dtype=[("name", "S10"), ("archive", int), ("offset", int), ("size", int)])
    labels = np.zeros(1, np.int64)
    files = FileSet(name="x", title="x", origin="real", classes=["x"], train_images=places, train_labels=labels, test_images=places,
                    test_labels=labels, checksum="0", root=str(tmp_path))
    dataset = FileDataset(files, train=False, image=224)
    read, side = reader_of(dataset, whole=False)
    assert side == 256
    np.testing.assert_array_equal(read(open_picture(content, wanted=side)[0])[0], dataset[0][0].numpy())


def test_answers_in_words():
    top = tasks._classes_answer([f"c{i}" for i in range(7)])(np.array([[0, 3, 1, 9, 2, -1, 4]], np.float32), None)["top"]
    assert [one["label"] for one in top] == ["c3", "c6", "c1", "c4", "c2"] and top[0]["probability"] > 0.98

    place = tasks._place_answer({"image": 320})(np.array([[160, 90, 2.0]], np.float32), (1280, 720))
    assert (place["x"], place["y"], place["visible"]) == (640, 360, True) and place["probability"] == pytest.approx(0.8808, abs=1e-3)
    assert not tasks._place_answer({"image": 320})(np.array([[0, 0, -2.0]]), (10, 10))["visible"]

    logits = np.zeros((1, 3, 8, 8), np.float32)
    logits[0, 1, :, 4:] = 1
    answer = tasks._mask_answer(["pet", "background", "boundary"])(logits, (100, 50))
    mask = Image.open(io.BytesIO(base64.b64decode(answer["mask_png"])))
    assert mask.size == (100, 50) and np.unique(np.asarray(mask)[:, :50]) == 0 and np.unique(np.asarray(mask)[:, 50:]) == 1
    assert [one["share"] for one in answer["classes"]] == [0.5, 0.5, 0]


def test_texts_are_bounded():
    settings = Settings(max_text=10)
    assert tasks.text_of("héllo".encode(), settings) == "héllo"
    for content, status in ((b" \n", 422), (b"\xff", 422), (b"x" * 11, 413)):
        with pytest.raises(BadInput) as refused:
            tasks.text_of(content, settings)
        assert refused.value.status == status


def test_weights_are_the_runs_else_published_else_random_and_sizes_those_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    monkeypatch.setenv("HPML_WEIGHTS", str(tmp_path / "none"))
    asked = {"engine": "openvino", "precision": "fp32", "tier": "cpu", "image": None, "run_id": "r", "weights": "auto",
             "settings": Settings(), "data": "auto"}
    plain = prepare.plan("xlnet", **asked)
    assert (plain.knobs["weights"], plain.knobs["variant"], plain.knobs["shapes"]) == ("random", "base", "static")
    models = env.run_dir("r") / "models"
    models.mkdir(parents=True)
    (models / "xlnet.safetensors").write_bytes(b"")
    (models / "xlnet.json").write_text(json.dumps({"knobs": {"variant": "small", "length": 32, "batch": 99}}))
    fitted = prepare.plan("xlnet", **asked)
    assert (fitted.knobs["weights"], fitted.knobs["variant"], fitted.knobs["length"]) == ("trained", "small", 32)
    assert prepare.plan("resnet50", **{**asked, "image": 96, "settings": Settings(max_batch=4)}).knobs["shapes"] == "dynamic"
    xlnet = workloads.get("xlnet")
    monkeypatch.setattr(xlnet, "PARITY", {"fp32": xlnet.PARITY["fp32"]})
    with pytest.raises(Unavailable, match="XLNet in int8"):
        prepare.plan("xlnet", **{**asked, "precision": "int8"})


def test_a_search_keeps_the_fastest_that_leaves_room_and_serving_takes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    rates = iter([(10, 20.0), (30, 60.0), (20, 50.0), (90, 120.0), (1, 1.0), (1, 1.0)])

    class Opened:
        def __init__(self, workload, *, settings, say, **asked):
            self.asked = settings

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(searching, "open_service", Opened)
    monkeypatch.setattr(searching, "full_load", lambda service, seconds: dict(zip(("per_s", "own_ms"), next(rates), strict=True)))
    monkeypatch.setattr(searching, "candidates", lambda engine: [{"streams": n, "max_batch": n, "max_wait_ms": 0.0, "decoders": 2}
                                                                 for n in (1, 2, 3, 4)])
    asked = {"engine": "openvino", "precision": "fp32", "run_id": "r"}
    assert searching.found("resnet50", **asked) == {}
    said = searching.search("resnet50", {}, say=lambda line: None, **asked)
    assert "30 answers/s of 4 tried" in said, "90 a second would leave no time to wait in"
    assert searching.found("resnet50", **asked)["streams"] == 2
    assert searching.found("resnet50", **{**asked, "precision": "int8"}) == {}
    searching.place("resnet50", **asked).write_text("{")
    assert searching.found("resnet50", **asked) == {}


def test_what_is_served_is_named():
    engine = SimpleNamespace(actual={"provider": "openvino"})
    job = {"knobs": {"weights": "/x/mine.safetensors", "engine": "openvino", "precision": "fp32", "image": 8}, "weights_sha256": "ab",
           "case": {"workload": "a/my_model.py"}, "run_dir": "/runs/r"}
    workload, data = SimpleNamespace(NAME="m", TITLE="Mine", METRIC="accuracy"), SimpleNamespace(title="D", origin="real")
    facts = prepare.facts_of(job, workload, data, engine)
    assert facts["workload"] == "my_model" and facts["weights"] == "weights of mine.safetensors" and facts["sizes"] == {"image": 8}
    with pytest.raises(HpmlError, match="unknown workload 'nothing'"):
        prepare.plan("nothing", engine="openvino", precision="fp32", tier="cpu", image=None, run_id="r", weights="auto",
                     settings=Settings(), data="auto")


def test_an_answered_request_leaves_nothing_behind():
    """No circle of references keeps its pixels until the collector of circles comes by, which it seldom does in a large process."""
    seen = []

    def decode(payload: bytes) -> tuple:
        pixels = np.ones((1, 3, 8, 8), np.float32)
        seen.append(weakref.ref(pixels))
        if payload == b"bad":
            raise BadInput(422, "no picture")
        return (pixels,), None

    served = object.__new__(service.Service)  # without an engine
    served.default, served.decoders = "x", ThreadPoolExecutor(1)
    served.tasks = {"x": SimpleNamespace(decode=decode, answer=lambda output, beside: {"sum": float(output[0])})}
    served.batchers = {"x": Batcher([lambda inputs: (inputs[0].sum((1, 2, 3)),)])}
    gc.disable()
    try:
        assert [served.submit(b"", deadline_s=60).result(60).value for _ in range(3)] == 3 * [{"sum": 192.0}]
        refused = served.submit(b"bad", deadline_s=60)
        assert isinstance(refused.exception(60), BadInput)
        del refused
        served.close()
        assert len(seen) == 4 and not [pixels for pixels in seen if pixels() is not None]
    finally:
        gc.enable()


def test_a_decoder_computes_on_its_own_thread_alone_and_leaves_the_others_as_they_are(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    before = torch.get_num_threads()
    try:
        with service.open_service(str(Path(__file__).parents[1] / "tiny.py"), engine="eager", tier="smoke") as served:
            torch.set_num_threads(2)
            with ThreadPoolExecutor(1) as other:
                assert served.decoders.submit(torch.get_num_threads).result() == 1
                assert other.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def recommended(folder, **workloads_) -> str:
    """A file of recommendations: knobs of inference by workload."""
    found = {name: {"infer": {"knobs": knobs}} for name, knobs in workloads_.items()}
    path = folder / "recommended.yaml"
    path.write_text(json.dumps({"format": 1, "machine": "m", "machines": {"m": {"workloads": found}}}))
    return path


def test_what_a_file_says_is_served_unless_a_flag_says_otherwise(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(server, "serve", lambda workload, given, **asked: seen.update(asked, workload=workload, given=given))
    cli_serve.serve()
    plain = {name: seen[name] for name in cli_serve.DEFAULTS}
    assert (seen["workload"], seen["knobs"], seen["given"], plain) == ("resnet50", {}, {}, cli_serve.DEFAULTS)
    knobs = {"engine": "onnxruntime", "data": "standin", "weights": "random", "image": 64, "threads": 2, "batch": 8, "hint": "throughput",
             "calib_samples": 16}
    file = recommended(tmp_path, clip=knobs)
    cli_serve.serve(config=file)
    assert [seen[name] for name in ("workload", "engine", "data", "weights", "image")] == ["clip", "onnxruntime", "standin", "random", 64]
    assert seen["given"] == {"threads": 2} and seen["knobs"] == {"calib_samples": 16}
    note = capsys.readouterr().err
    taken, left = note.split("; not taken, as the service settles them: ")
    assert left == "batch=8, hint=throughput\n" and "engine=onnxruntime" in taken and "batch" not in taken
    cli_serve.serve(config=file, engine="openvino", data="auto", weights="trained", image=96, threads=1)
    assert (seen["engine"], seen["data"], seen["weights"], seen["image"]) == ("openvino", "auto", "trained", 96)
    assert seen["given"] == {"threads": 1}


def test_without_a_name_the_only_workload_of_a_file_is_taken_or_the_default(tmp_path):
    file = recommended(tmp_path, clip={"engine": "openvino"}, resnet50={"engine": "eager"})
    assert configfile.read(file, phase="infer", default="resnet50").workload == "resnet50"
    for default in (None, "xlnet"):
        with pytest.raises(HpmlError, match="clip, resnet50: name the workload"):
            configfile.read(file, phase="infer", default=default)
    with pytest.raises(HpmlError, match="no workload 'xlnet'"):
        configfile.read(file, phase="infer", workload="xlnet", default="resnet50")


def test_bodies_share_one_room_and_leave_it():
    room, one, other = bodies.Room(Settings(max_body_mb=1, max_bodies_mb=1)), State(), State()
    room.take(one, 600_000)
    room.take(one, 300_000)
    with pytest.raises(Busy) as full:
        room.take(other, 200_000)
    assert full.value.retry_after_s > 0 and room.taken == 900_000
    room.take(other, 100_000)
    for state in (one, one, other):
        room.leave(state)
    assert room.taken == 0
    with pytest.raises(HpmlError, match="max_bodies_mb=1: a body of 20 MB"):
        Settings(max_bodies_mb=1)


@contextlib.contextmanager
def answering(app, most: int = 100):
    """The port of an application that uvicorn serves here by Connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = uvicorn.Config(app, http=functools.partial(connection.Connection, most=most), ws="none", lifespan="off", log_config=None)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield taken.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


async def slow(scope, receive, send):
    """An answer that takes longer than a head may take."""
    await asyncio.sleep(1.3 * connection.HEAD_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def test_a_connection_without_a_whole_head_is_closed_and_a_slow_answer_is_not(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 2.0)
    with answering(slow) as port, connected(port) as silent, connected(port) as half, connected(port) as asking:
        asking.sendall(ASKED)
        half.sendall(ASKED[:-2])
        answer = asking.makefile("rb")
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        asking.sendall(ASKED[:5])  # half a head, after an answer
        assert answer.read().endswith(b"ok") and [line.recv(1) for line in (silent, half)] == [b"", b""], "closed by the server"


def test_beyond_the_most_connections_the_one_that_waits_longest_makes_room(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 600)
    begun, on = threading.Event(), threading.Event()

    async def held(scope, receive, send):
        begun.set()
        await asyncio.to_thread(on.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with answering(held, most=3) as port, connected(port) as asking:
        asking.sendall(ASKED)
        assert begun.wait(60)
        idle = [connected(port) for _ in range(10)]
        for line in idle[:8]:
            with contextlib.suppress(ConnectionResetError):
                assert line.recv(1) == b""
        on.set()
        assert asking.recv(9) == b"HTTP/1.1 ", "a request under way is not given up"
        idle[9].sendall(ASKED)
        assert idle[9].recv(9) == b"HTTP/1.1 ", "the newest waits for its head as before"
        for line in idle:
            line.close()


def test_want_of_files_is_said_once_a_second_and_other_faults_as_ever(capsys, monkeypatch):
    served = SimpleNamespace(settings=Settings(), outstanding=0, expected_s=float, batches=[])
    watch, told = Watch(served), []
    loop = SimpleNamespace(default_exception_handler=told.append)
    for _ in range(5):
        watch.loop_failed(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and json.loads(said)["error"] == "no connection can be taken: Too many open files" and not told
    watch.loop_failed(loop, {"message": "x"})
    watch.loop_failed(loop, {"exception": OSError(errno.EPIPE, "x")})
    assert len(told) == 2


def test_connections_are_a_quarter_of_the_files_that_may_be_open():
    program = ("import resource; from hpml.serve.server import _most_connections as most; "
               "print(most(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])")

    def found(soft: int, hard: int) -> list[int]:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
        return [int(word) for word in done.stdout.split()]

    assert found(128, 256) == [64, 256], "the soft limit is raised to the hard one"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found(hard, hard)[0] == min(1024, hard // 4) or hard == resource.RLIM_INFINITY


def test_a_port_is_held_from_the_start_and_who_comes_early_is_told_so():
    with server._bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HpmlError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            server._bound("127.0.0.1", port)
        with server._early(taken), connected(port):  # one that says nothing keeps nobody waiting for long
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60)
            with refused.value as answer:
                assert (answer.code, answer.headers["Retry-After"]) == (503, "5")
                assert set(json.load(answer)) == {"error", "request_id"}
