"""The served API as its clients meet it: answers, refusals, abuse, and an end that loses nothing."""

import concurrent.futures
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

BATCHED = ("--max-batch", "4")  # all servers of the tiny net: one engine is built


@pytest.fixture(scope="module")
def tiny(serving):
    return serving("tiny.py", *BATCHED, "--max-body-mb", "2", "--max-megapixels", "4")


@pytest.fixture(scope="module")
def clip(serving):
    return serving("tiny_clip.py")


@pytest.fixture
def client(tiny):
    with httpx.Client(base_url=tiny.url, timeout=60) as opened:
        yield opened


def picture(kind: str = "PNG", size=(40, 30), mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def send(client, content: bytes, media: str = "image/png", **headers):
    return client.post("/v1/predict", content=content, headers={"Content-Type": media, **headers})


def refused(answer, status: int, *words: str) -> None:
    """The answer is this refusal: one line of JSON, no traceback."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"error", "request_id"} and "\n" not in found["error"] and "Traceback" not in answer.text
    assert all(word in found["error"] for word in words), found["error"]


# ---- answers

def test_it_says_what_it_serves(tiny, client):
    assert "Tiny net (openvino, fp32; random weights: the answers mean nothing" in tiny.line
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready" and ready["weights"].startswith("random") and ready["settings"]["max_batch"] == 4
    assert ready["settings"]["deadline_ms"] == 150
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 404, "FastAPI's own page loads from other hosts"


def test_it_serves_what_a_file_recommends_and_a_flag_overrides(serving, tmp_path):
    config = tmp_path / "recommended.yaml"
    knobs = {"engine": "onnxruntime", "precision": "int8", "quantizer": "onnxruntime", "calib_samples": 16, "hint": "latency"}
    config.write_text(json.dumps({"format": 1, "machine": "m", "machines": {"m": {"workloads": {"tiny": {"infer": {"knobs": knobs}}}}}}))
    server = serving("tiny.py", "--config", str(config), "--precision", "fp32")
    assert "Tiny net (onnxruntime, fp32;" in server.line


def test_a_sample_raw_or_in_a_form_gets_one_answer_with_its_times(client):
    sample = client.get("/samples/3")
    assert sample.headers["content-type"] == "image/png" and sample.headers["x-truth"] in "abc"
    raw = send(client, sample.content, **{"X-Request-ID": "mine-1"})
    form = client.post("/v1/predict", files={"any": ("../../etc/passwd", sample.content, "image/png")})
    assert raw.status_code == form.status_code == 200
    answer = raw.json()
    assert answer["top"] == form.json()["top"] and sorted(one["label"] for one in answer["top"]) == ["a", "b", "c"]
    assert sum(one["probability"] for one in answer["top"]) == pytest.approx(1, abs=1e-5)
    assert set(answer["timing_ms"]) == {"decode", "wait", "model"} and answer["timing_ms"]["model"] > 0
    assert answer["request_id"] == raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["server-timing"].startswith("decode;dur=")


def test_request_ids_that_are_not_sane_are_replaced_and_logged_as_json(tiny, client):
    answer = send(client, picture(), **{"X-Request-ID": "a b\"}\x7f"})
    made = answer.headers["x-request-id"]
    assert len(made) == 32
    line = next(line for line in tiny.logged() if line["request_id"] == made)
    assert line["status"] == 200 and line["path"] == "/v1/predict" and line["ms"] > 0


def test_figures_for_prometheus(client):
    send(client, picture())
    send(client, b"no picture")
    text = client.get("/metrics").text
    assert 'hpml_requests_total{path="/v1/predict",status="200"}' in text and 'status="415"' in text
    for name in ("hpml_request_seconds_bucket", "hpml_batch_rows_count", "hpml_outstanding 0.0", "hpml_in_flight 1.0",
                 'hpml_stage_seconds_count{stage="decode"}'):
        assert name in text, name


def test_every_kind_of_picture(client):
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    still = io.BytesIO()
    frames[0].save(still, "GIF")
    for content in (picture("JPEG", mode="CMYK"), picture("JPEG", mode="L"), picture(mode="RGBA"), picture("JPEG", exif=turned),
                    picture("WEBP"), picture("BMP")):
        assert send(client, content, "application/octet-stream").status_code == 200
    assert send(client, animated.getvalue(), "image/gif").json()["top"] == send(client, still.getvalue(), "image/gif").json()["top"]


# ---- what cannot be answered

@pytest.mark.parametrize(("content", "media", "status", "words"), [
    (b"", "image/png", 400, ("empty",)),
    (b"hello", "image/png", 415, ("not a picture",)),
    (picture()[:300], "image/png", 422, ("damaged",)),
    (picture("JPEG", size=(200, 200))[:2000], "image/jpeg", 422, ("damaged",)),
    (picture(), "text/plain", 415, ("text/plain",)),
    (picture(), "", 415, ("none",)),
    (b"--x\r\nbroken", "multipart/form-data; boundary=x", 422, ()),
    (b"no boundary", "multipart/form-data", 400, ()),
    (b"%PDF-1.4", "application/octet-stream", 415, ()),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png", 415, ()),
    (picture(size=(2000, 1)), "image/png", 422, ("one side",)),
], ids=("empty", "no-image", "truncated-png", "truncated-jpeg", "wrong-type", "no-type", "broken-form", "no-boundary", "pdf", "postscript",
        "line"))
def test_bad_bodies_get_one_line(client, content, media, status, words):
    refused(send(client, content, media), status, *words)


def test_a_bomb_is_refused_by_its_header(client):
    small = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(small, "PNG")
    assert len(small.getvalue()) < 100_000
    refused(send(client, small.getvalue()), 413, "more than 4 million")


def test_a_large_upload_is_refused_and_the_next_one_served(client):
    refused(send(client, b"x" * 20_000_000), 413, "larger than 2 MB")

    def parts():
        for _ in range(30):
            yield b"x" * 100_000

    refused(send(client, parts()), 413, "larger than 2 MB")
    assert send(client, picture()).status_code == 200


def test_other_paths_methods_and_tricks(client):
    refused(client.get("/v1/predict"), 405)
    refused(client.get("/nothing"), 404)
    for path in ("/assets/../app.py", "/assets/..%2f..%2fapp.py", "/samples/..%2f..%2fetc%2fpasswd", "/gallery/0", "/assets/%00"):
        answer = client.get(path)
        assert answer.status_code in (404, 422) and "root:" not in answer.text
    assert client.get("/samples/99999999999999999999").status_code == 200, "counted round"
    refused(send(client, picture(), **{"X-Deadline-Ms": "soon"}), 400, "X-Deadline-Ms")


def test_what_is_no_http_does_not_end_the_server(tiny, client):
    host, port = tiny.url.removeprefix("http://").split(":")
    for junk in (b"\x00\xff" * 1000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                 b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\nhalf"):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(junk)  # the last one leaves in the middle of its body
    assert send(client, picture()).status_code == 200


# ---- load

def test_two_hundred_connections_at_once_are_answered_or_refused(tiny):
    content, answers = picture(), []
    barrier = threading.Barrier(200)

    def ask(i: int) -> httpx.Response:
        with httpx.Client(base_url=tiny.url, timeout=60, verify=False) as own:  # reading certificates takes longer than all the rest
            barrier.wait(60)
            return send(own, content, **({"X-Deadline-Ms": "0.001"} if i % 2 else {}))

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert {answer.status_code for answer in answers} <= {200, 503} and any(answer.status_code == 200 for answer in answers)
    for answer in answers:
        if answer.status_code == 503:
            refused(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
    with httpx.Client(base_url=tiny.url, timeout=60) as own:
        assert send(own, content).status_code == 200
        assert own.get("/readyz").json()["outstanding"] == 0


def test_leaving_clients_leave_nothing_behind(tiny, client):
    content = picture()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    request = head.encode() + content
    host, port = tiny.url.removeprefix("http://").split(":")
    for _ in range(30):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(request)
    assert send(client, content).status_code == 200
    end = time.monotonic() + 30
    while (ready := client.get("/readyz").json())["outstanding"] and time.monotonic() < end:
        time.sleep(0.05)
    assert ready["outstanding"] == 0
    assert not [line for line in tiny.logged() if line["level"] == "error"]


def body_bytes(client) -> int:
    return int(float(next(line for line in client.get("/metrics").text.splitlines() if line.startswith("hpml_body_bytes ")).split()[1]))


def until(value, wanted) -> None:
    """Waits for what the server has yet to notice."""
    end = time.monotonic() + 60
    while (found := value()) != wanted:
        assert time.monotonic() < end, f"{found}, not {wanted}"
        time.sleep(0.02)


def test_bodies_under_way_have_one_limit_and_are_released_however_they_end(serving):
    server = serving("tiny.py", *BATCHED, "--max-body-mb", "2", "--max-bodies-mb", "4")
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1950000\r\n\r\n"
    with httpx.Client(base_url=server.url, timeout=60) as client:
        with socket.create_connection((host, int(port))) as one, socket.create_connection((host, int(port))) as other:
            for line in (one, other):
                line.sendall(head + b"x" * 1_900_000)
            until(lambda: body_bytes(client), 3_800_000)
            for content in (b"x" * 300_000, (part for part in [b"x" * 100_000] * 3)):  # announced, and only known as it arrives
                answer = send(client, content)
                refused(answer, 503, "4 MB")
                assert int(answer.headers["retry-after"]) >= 1
            assert send(client, picture()).status_code == 200, "what fits is answered"
        until(lambda: body_bytes(client), 0)  # both left in the middle
        refused(send(client, (part for part in [b"x" * 100_000] * 30)), 413)
        refused(send(client, b"x" * 1_900_000), 415)
        assert send(client, b"x" * 300_000).status_code == 415 and body_bytes(client) == 0


def test_idle_connections_starve_nobody_and_fill_no_log(tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", sys.executable, "-c", "from hpml.cli import main; main()", "serve"]
        words = ["--port", "0", "--tier", "smoke", "--workload", str(Path(__file__).parent.parent / "tiny.py"), *BATCHED]
        process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=log, text=True)
    with process.stdout, contextlib.ExitStack() as held:
        try:
            url = process.stdout.readline().split()[0]
            host, port = url.removeprefix("http://").rstrip("/").split(":")
            for _ in range(300):
                held.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with httpx.Client(base_url=url, timeout=60) as client:
                assert client.get("/healthz").status_code == 200
                assert send(client, picture()).status_code == 200
        finally:
            process.terminate()
            process.wait(60)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said and said.count("no connection can be taken") < 10


def test_head_is_get_without_a_body(tiny, client):
    for path in ("/", "/healthz", "/readyz", "/metrics", "/samples/0", "/assets/page.js", "/openapi.json"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", got.headers["content-type"]), path
    assert client.head("/v1/predict").status_code == 405 and client.head("/nothing").status_code == 404
    assert client.get("/healthz").json() == {"status": "ok"}, "the connection still knows where an answer ends"


def test_it_listens_on_loopback_only(tiny):
    addresses = {one.laddr.ip for one in psutil.Process(tiny.process.pid).net_connections() if one.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


# ---- its start and its end

def test_an_api_key_and_an_end_that_loses_no_accepted_request(serving):
    server = serving("tiny.py", *BATCHED, "--max-wait-ms", "1500", "--deadline-ms", "60000", HPML_API_KEY="sésame")
    key = {"X-API-Key": "sésame".encode()}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        refused(client.post("/v1/predict", content=picture(), headers={"Content-Type": "image/png"}), 401, "API key")
        wrong = client.get("/metrics", headers={"X-API-Key": "wrong"})
        refused(wrong, 401)
        assert wrong.headers["www-authenticate"] == "Bearer"
        for scheme, status in (("Bearer", 200), ("bearer", 200), ("BEARER ", 200), ("Basic", 401)):
            assert client.get("/metrics", headers={"Authorization": f"{scheme} sésame".encode()}).status_code == status
        assert client.get("/").status_code == client.get("/assets/page.js").status_code == client.get("/readyz").status_code == 200

        def ask(_):
            with httpx.Client(base_url=server.url, timeout=60) as own:
                return own.post("/v1/predict", content=picture(), headers={"Content-Type": "image/png", **key})

        with concurrent.futures.ThreadPoolExecutor(3) as pool:  # fewer than a batch: they wait for company
            waiting = [pool.submit(ask, i) for i in range(3)]
            end = time.monotonic() + 30
            while client.get("/readyz").json()["outstanding"] < 3 and time.monotonic() < end:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in waiting]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert server.end() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()


def test_what_cannot_be_served_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-c", "from hpml.cli import main; main()", "serve", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and f"hpml: cannot listen on 127.0.0.1:{port}" in done.stderr and done.stderr.count("\n") == 1


def test_of_two_servers_on_one_port_one_ends_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["serve", "--port", port, "--tier", "smoke", "--workload", str(Path(__file__).parent.parent / "tiny.py"), *BATCHED]
    both = [subprocess.Popen([sys.executable, "-c", "from hpml.cli import main; main()", *words], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    until(lambda: [one.poll() for one in both].count(2), 1)
    lost, won = sorted(both, key=lambda one: one.poll() is None)
    said = lost.communicate()
    assert said == ("", f"hpml: cannot listen on 127.0.0.1:{port}: Address already in use\n")
    assert won.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200
    won.terminate()
    assert "Traceback" not in won.communicate(timeout=60)[1]


# ---- what the interface says of itself, held against what it does

@pytest.mark.parametrize("name", ["tiny", "clip"])
def test_no_request_breaks_the_interface_that_openapi_describes(name, request, tmp_path):
    """Requests that schemathesis makes from /openapi.json, valid and broken ones: no 5xx but a refusal, no undocumented answer."""
    server = request.getfixturevalue(name)
    # A picture is more than a string of bytes, which is all that a schema can say: a refusal of valid bytes is no fault.
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", "--phases", "coverage,fuzzing"]
    options = ["--max-examples", "10", "--seed", "1", "--exclude-checks", "positive_data_acceptance", "-H", "X-Deadline-Ms: 60000"]
    done = subprocess.run([*command, *options, "--no-color"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "Traceback" not in server.log.read_text()


# ---- CLIP: search and labels of one's own

def test_a_gallery_is_searched_by_words(clip):
    with httpx.Client(base_url=clip.url, timeout=60) as client:
        found = client.post("/v1/search", json={"text": "a highway at night", "k": 5}).json()
        assert found["of"] == 12 and len(found["results"]) == 5
        scores = [one["score"] for one in found["results"]]
        assert scores == sorted(scores, reverse=True)
        shown = client.get(found["results"][0]["url"])
        assert Image.open(io.BytesIO(shown.content)).format == "JPEG"
        # A frame's own embedding finds the frame: both came through the engine.
        name = found["results"][0]["name"]
        index = int(name.split()[2].rstrip(":"))
        own = client.post("/v1/embed/image", content=client.get(f"/samples/{index}").content, headers={"Content-Type": "image/png"}).json()
        text = client.post("/v1/embed/text", json={"text": "a highway at night"}).json()
        assert np.dot(own["embeddings"][0], text["embeddings"][0]) == pytest.approx(scores[0], abs=1e-3)
        assert np.linalg.norm(own["embeddings"][0]) == pytest.approx(1, abs=1e-3)


def test_labels_of_ones_own(clip):
    with httpx.Client(base_url=clip.url, timeout=60) as client:
        sample = client.get("/samples/0").content
        answer = client.post("/v1/zero-shot", files={"image": sample}, data={"labels": ["night\nday", "xyzzy", "day"]}).json()
        assert sorted(one["label"] for one in answer["top"]) == ["day", "night", "xyzzy"], "unknown words are labels like others"
        assert sum(one["probability"] for one in answer["top"]) == pytest.approx(1, abs=1e-4)
        many = "\n".join(f"label {i}" for i in range(10_000))
        refused(client.post("/v1/zero-shot", files={"image": sample}, data={"labels": many}), 413, "labels")
        refused(client.post("/v1/zero-shot", files={"image": sample}, data={"labels": [f"label {i}" for i in range(10_000)]}), 400)
        refused(client.post("/v1/zero-shot", files={"image": sample}), 422, "no labels")
        refused(client.post("/v1/zero-shot", files={"image": sample}, data={"labels": "x" * 300}), 413)


@pytest.mark.parametrize(("content", "status"), [
    (b'{"text": ""}', 422), (b'{"text": "  "}', 422), (b'{"text": 5}', 422), (b'{"text": ', 400), (b"", 400), (b"[" * 100_000, 400),
    (b'["text"]', 422), (json.dumps({"text": "x" * 20_000}).encode(), 413), (b'{"text": "a", "k": -1}', 422),
    (b'{"text": "a", "k": 1e9}', 422), (b"\xff\xfe", 400)])
def test_bad_texts_get_one_line(clip, content, status):
    with httpx.Client(base_url=clip.url, timeout=60) as client:
        refused(client.post("/v1/search", content=content, headers={"Content-Type": "application/json"}), status)


def test_odd_texts_are_texts(clip):
    with httpx.Client(base_url=clip.url, timeout=60) as client:
        for text in (r'"\ud800"', r'"a\u0000b"', '"' + "é" * 5000 + '"', '"🚗🌧️"'):
            answer = client.post("/v1/search", content=f'{{"text": {text}}}'.encode(), headers={"Content-Type": "application/json"})
            assert answer.status_code == 200, answer.text
        refused(client.post("/v1/search", content=b'{"text": "a"}', headers={"Content-Type": "text/plain"}), 415)


# ---- the page

@pytest.mark.browser
def test_the_page_answers_an_upload_and_says_an_error(tiny, browser, tmp_path):
    browser.open(f"{tiny.url}/")
    assert "Tiny net" in browser.look("document.title") and "random weights" in browser.look("document.body.innerText")
    assert browser.look("document.querySelectorAll('#sample-list img').length") == 8
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture())
    bad.write_bytes(b"no picture")

    def upload(path) -> None:
        browser.look("delete document.body.dataset.state")
        node = browser.call("DOM.querySelector", nodeId=browser.call("DOM.getDocument")["root"]["nodeId"], selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
        browser.wait("['done', 'error'].includes(document.body.dataset.state)")

    upload(good)
    assert browser.look("document.querySelectorAll('#answer tr').length") == 3 and browser.look("!document.getElementById('timing').hidden")
    assert all(stage in browser.look("document.getElementById('timing-words').textContent") for stage in ("decode", "wait", "model"))
    assert browser.look("document.getElementById('canvas').width") == 40
    upload(bad)
    assert "not a picture" in browser.look("document.getElementById('error').textContent")
    assert browser.look("document.querySelectorAll('#answer tr').length") == 0
    browser.look("document.querySelector('#sample-list button').click()")
    browser.wait("document.body.dataset.state === 'done' && document.getElementById('error').hidden")
    assert not [line for line in browser.said if "415" not in line and '"level": "verbose"' not in line]


@pytest.mark.browser
def test_the_page_searches_by_words_on_a_phone(clip, browser):
    browser.open(f"{clip.url}/", width=400)
    assert browser.look("document.documentElement.scrollWidth") <= 400
    browser.look("document.getElementById('find-text').value = 'rain'; document.querySelector('#find-form button').click()")
    browser.wait("document.body.dataset.state === 'done'")
    assert browser.look("[...document.querySelectorAll('#find-results img')].filter((i) => i.src.startsWith('blob:')).length") == 12
    browser.look("delete document.body.dataset.state; document.querySelector('#sample-list button').click()")
    browser.wait("document.body.dataset.state === 'done'")
    assert "a city street" in browser.look("document.getElementById('answer').innerText")
    assert browser.look("document.documentElement.scrollWidth") <= 400
    assert len(set(Image.open(io.BytesIO(browser.picture())).convert("L").tobytes())) > 20
