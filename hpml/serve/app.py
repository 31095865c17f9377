"""The HTTP interface of a service: FastAPI endpoints, every error as one line of JSON, nothing that anybody sends ends the process."""

import asyncio
import base64
import math
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, StarletteHTTPException
from fastapi.responses import FileResponse, JSONResponse, Response

from hpml.serve import bodies, samples
from hpml.serve.gallery import Gallery
from hpml.serve.service import Answer, Service
from hpml.serve.settings import BadInput, Busy
from hpml.serve.watch import Watch

ASSETS = Path(__file__).parent / "assets"
REFUSED = {"application/json": {"schema": {"type": "object", "required": ["error", "request_id"], "additionalProperties": False,
                                           "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}}}}}
REFUSALS = {status: {"description": text, "content": REFUSED} for status, text in (
    (400, "nothing or broken JSON was sent"), (401, "an API key is needed"), (404, "nothing of that name is here"),
    (413, "larger than the limits"), (415, "another media type"), (422, "not what can be answered"),
    (503, "busy: the deadline would not be kept; Retry-After says when to come again"))}


def _picture(**fields: dict) -> dict:
    """The body of a request with a picture, and in a form further fields."""
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image", *fields], "properties": {"image": image, **fields}}
    return {"requestBody": {"required": True, "content": {"image/*": {"schema": image}, "multipart/form-data": {"schema": form}}}}


def _text(**fields: dict) -> dict:
    """The body of a request with a text, and further fields that may be left out."""
    properties = {"text": {"type": "string", "minLength": 1}, **fields}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {
        "type": "object", "required": ["text"], "properties": properties}}}}}


def make_app(service: Service, *, gallery: Gallery | None = None, api_key: str | None = None) -> FastAPI:
    """The application of one service. `api_key`: needed in X-API-Key or as a bearer token, except for the page and the health checks."""
    watch, settings = Watch(service, api_key), service.settings

    @asynccontextmanager
    async def lifespan(_app):
        asyncio.get_running_loop().set_exception_handler(watch.loop_failed)
        yield
        await asyncio.to_thread(service.close)  # uvicorn has waited for the answers by now

    app = FastAPI(title=f"hpml serve: {service.workload.TITLE}", version="1", docs_url=None, redoc_url=None, lifespan=lifespan,
                  description="Errors are {\"error\": one line, \"request_id\": ...}. The header X-Deadline-Ms asks for another deadline.")

    async def asked(request: Request, payload: bytes, kind: str | None = None, rows: int = 1) -> Answer:
        """Hands a payload to the service. Awaiting happens on the event loop, decoding and computing do not."""
        answer = await asyncio.wrap_future(service.submit(payload, kind=kind, deadline_s=bodies.deadline_s(request), rows=rows))
        watch.stages(answer)
        return answer

    def told(request: Request, value: dict, *answers: Answer) -> JSONResponse:
        spent = {stage: round(1e3 * sum(getattr(one, f"{stage}_s") for one in answers), 3) for stage in ("decode", "wait", "model")}
        timing = ", ".join(f"{stage};dur={ms}" for stage, ms in spent.items())
        return JSONResponse({**value, "timing_ms": spent, "request_id": request.state.request_id}, headers={"Server-Timing": timing})

    async def predict_picture(request: Request) -> Response:
        """The answer to a picture: the raw bytes as the body (image/*), or a form with one file."""
        answer = await asked(request, (await bodies.picture(request, settings, watch.room))[0])
        if "mask_png" in answer.value and "image/png" in request.headers.get("accept", ""):
            return Response(base64.b64decode(answer.value["mask_png"]), media_type="image/png")
        return told(request, answer.value, answer)

    async def predict_text(request: Request) -> Response:
        """The answer to a text: {"text": "..."}."""
        text, _ = await bodies.text(request, settings, watch.room)
        answer = await asked(request, text.encode())
        return told(request, answer.value, answer)

    async def embed_text(request: Request) -> Response:
        """A text's embedding, of length 1: {"text": "..."}."""
        text, _ = await bodies.text(request, settings, watch.room)
        answer = await asked(request, text.encode(), "text")
        return told(request, answer.value, answer)

    async def search(request: Request) -> Response:
        """The frames of the gallery that are nearest to a text: {"text": "...", "k": 12}."""
        if gallery is None:
            raise BadInput(404, "no gallery is served: start with --gallery FOLDER")
        text, body = await bodies.text(request, settings, watch.room)
        answer = await asked(request, text.encode(), "text")
        found = gallery.nearest(answer.value["embeddings"][0], bodies.whole_number(body, "k", 12, least=1, most=100))
        return told(request, {"results": found, "of": len(gallery.names)}, answer)

    async def zero_shot(request: Request) -> Response:
        """Which of your own labels fits a picture: a form with the file and `labels` (one a line, or the field again and again),
        or the raw bytes with ?labels=..."""
        content, form = await bodies.picture(request, settings, watch.room)
        labels = bodies.labels([*request.query_params.getlist("labels"), *form.get("labels", [])], settings)
        words = "\0".join(f"a photo of {label}" for label in labels)
        texts = await asked(request, words.encode(), "text", rows=len(labels))
        picture = await asked(request, content, "image")
        shares = service.shares(picture.value["embeddings"][0], texts.value["embeddings"])
        ranked = sorted(({"label": label, "probability": round(share, 6)} for label, share in zip(labels, shares, strict=True)),
                        key=lambda one: -one["probability"])
        return told(request, {"top": ranked}, texts, picture)

    def post(path: str, call, body: dict) -> None:
        app.post(path, openapi_extra=body, responses=REFUSALS, response_model=None)(call)

    if service.workload.NAME == "clip":
        post("/v1/embed/image", predict_picture, _picture())
        post("/v1/embed/text", embed_text, _text())
        post("/v1/search", search, _text(k={"type": "integer", "minimum": 1, "maximum": 100}))
        post("/v1/zero-shot", zero_shot, _picture(labels={"type": "string", "minLength": 1}))
    elif service.tasks[service.default].takes == "text":
        post("/v1/predict", predict_text, _text())
    else:
        post("/v1/predict", predict_picture, _picture())

    @app.get("/healthz")
    async def alive() -> dict:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> dict:
        """What is served, and how long a request would take now."""
        return {"status": "ready", **service.facts, "expected_ms": round(1e3 * service.expected_s(), 3), "outstanding": service.outstanding,
                "takes": service.tasks[service.default].takes,
                "gallery": gallery.facts if gallery else None, "samples": samples.count(service),
                "endpoints": sorted(path for path in app.openapi()["paths"] if path.startswith("/v1")), "api_key": bool(api_key)}

    def answers_with(*media: str) -> dict:
        """What an endpoint whose answer is no JSON says of its answers."""
        return {200: {"description": "as the path says", "content": {name: {"schema": {"type": "string"}} for name in media}},
                **{status: REFUSALS[status] for status in (401, 404, 422)}}

    @app.get("/metrics", response_class=Response, responses=answers_with("text/plain"))
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(*watch.exposition())

    @app.get("/samples/{index}", response_class=Response, responses=answers_with("image/*", "text/plain"))
    async def one_sample(index: int) -> Response:
        """A test sample as a client would send it; its true answer stands in X-Truth."""
        content, media, truth = await asyncio.to_thread(service.sample, index)
        return Response(content, media_type=media, headers={"X-Truth": truth.encode("ascii", "replace").decode()})

    @app.get("/gallery/{index}", response_class=Response, responses=answers_with("image/jpeg"))
    async def thumbnail(index: int) -> Response:
        """A frame of the gallery, made small."""
        if gallery is None or not 0 <= index < len(gallery.names):
            raise BadInput(404, "no such frame")
        return Response(await asyncio.to_thread(gallery.thumbnail, index), media_type="image/jpeg")

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(ASSETS / "index.html")

    @app.get("/assets/{name}", response_model=None, include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ("page.js", "page.css"):
            raise BadInput(404, "no such file")
        return FileResponse(ASSETS / name)

    def failed(request: Request, status: int, message: str, **headers: str) -> JSONResponse:
        line = " ".join(message.split())[:300]
        return JSONResponse({"error": line, "request_id": request.state.request_id}, status_code=status, headers=headers)

    app.add_exception_handler(BadInput, lambda request, error: failed(request, error.status, str(error)))
    app.add_exception_handler(Busy, lambda request, error: failed(request, 503, str(error), **{
        "Retry-After": str(math.ceil(error.retry_after_s)), "X-Retry-After-Ms": str(math.ceil(1e3 * error.retry_after_s))}))
    app.add_exception_handler(StarletteHTTPException, lambda request, error: failed(
        request, error.status_code, str(error.detail), **(error.headers or {})))
    app.add_exception_handler(RequestValidationError, lambda request, error: failed(
        request, 422, "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:3])))

    app.add_middleware(watch.middleware)  # outermost: it counts and logs what the others answer, and catches what they raise
    return app


def described(service: Service, url: str) -> str:
    """The one line that says what is served where."""
    facts, settings = service.facts, service.settings
    return (f"{url}  {facts['title']} ({facts['engine']}, {facts['precision']}; {facts['weights']}; {settings.streams} streams, batches of "
            f"at most {settings.max_batch}, deadline {settings.deadline_ms:g} ms)")
