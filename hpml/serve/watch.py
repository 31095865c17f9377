"""What a service says of itself: one JSON line for each request on stderr, figures for Prometheus, a request id in each answer."""

import errno
import hmac
import json
import re
import sys
import time
import traceback
import uuid

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import State

from hpml import env
from hpml.serve.bodies import Room
from hpml.serve.service import Answer, Service

SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # what needs no API key, beside the page's files
QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: counted, not logged
NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # why the loop cannot take a connection
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"),
           (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"))


class Watch:
    """Of one service. `middleware` is an ASGI middleware class. `api_key`: needed for all but OPEN, compared in constant time."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        self.api_key = api_key
        self.room = Room(service.settings)
        self.silent_until = 0.0  # about connections that cannot be taken
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("hpml_requests", "Requests by path and status", ["path", "status"], **own)
        self.seconds = Histogram("hpml_request_seconds", "Seconds from the request's first line to the answer's last byte", ["path"],
                                 buckets=SECONDS, **own)
        self.stage = Histogram("hpml_stage_seconds", "Seconds of an answer by stage", ["stage"], buckets=SECONDS, **own)
        self.rows = Histogram("hpml_batch_rows", "Rows in one model call", buckets=(1, 2, 4, 8, 16, 32, 64), **own)
        self.in_flight = Gauge("hpml_in_flight", "Requests that are being answered", **own)
        Gauge("hpml_outstanding", "Admitted rows that are not answered yet", **own).set_function(lambda: service.outstanding)
        Gauge("hpml_expected_seconds", "Seconds in which a request that came now would be answered", **own).set_function(service.expected_s)
        Gauge("hpml_body_bytes", "Bytes of bodies that arrive or are being answered", **own).set_function(lambda: self.room.taken)
        service.batches.append(self.rows.observe)
        watch = self

        class Middleware:
            def __init__(self, app) -> None:
                self.app = app

            async def __call__(self, scope, receive, send) -> None:
                if scope["type"] != "http":
                    await self.app(scope, receive, send)
                    return
                await watch.answered(self.app, scope, receive, send)

        self.middleware = Middleware

    async def answered(self, app, scope, receive, send) -> None:
        """One request through the application: never an exception, always an answer with its id, counted and logged."""
        started = time.perf_counter()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        # HEAD is GET without a body wherever there is a GET. The application is asked for GET, by a copy: uvicorn, which leaves the
        # body out, and the log still read HEAD.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def told(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        self.in_flight.inc()
        try:
            if self._allowed(scope):
                await app(asked, receive, told)
            else:
                said = "an API key is needed: X-API-Key, or Authorization: Bearer"
                await JSONResponse({"error": said, "request_id": request_id}, status_code=401,
                                   headers={"WWW-Authenticate": "Bearer"})(scope, receive, told)
        except Exception:  # noqa: BLE001 a fault of ours: the log gets it whole, the client one line
            log(request_id=request_id, level="error", error=traceback.format_exc())
            if not status:
                await JSONResponse({"error": "internal error", "request_id": request_id}, status_code=500)(scope, receive, told)
        finally:
            self.in_flight.dec()
            self.room.leave(State(scope["state"]))
            spent = time.perf_counter() - started
            route = asked.get("route")
            path = getattr(route, "path", None) or "other"
            self.requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(spent)
            if path not in QUIET:
                log(request_id=request_id, level="info", method=scope["method"], path=scope["path"][:200], status=status,
                    ms=round(1e3 * spent, 2))

    def _allowed(self, scope) -> bool:
        if not self.api_key or scope["path"] in OPEN or scope["path"].startswith("/assets/"):
            return True
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(b"x-api-key") or (token.strip() if scheme.lower() == b"bearer" else b"")
        return hmac.compare_digest(given, self.api_key.encode())

    def loop_failed(self, loop, context: dict) -> None:
        """The event loop's exception handler: connections that cannot be taken for want of files or memory, which asyncio would tell of
        with a traceback each, are at most one line a second."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in NO_FILES:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self.silent_until:
            self.silent_until = time.monotonic() + 1
            log(level="error", error=f"no connection can be taken: {error.strerror}")

    def stages(self, answer: Answer) -> None:
        """Count the seconds of an answer by stage: decode, wait, model."""
        for stage in ("decode", "wait", "model"):
            self.stage.labels(stage).observe(getattr(answer, f"{stage}_s"))

    def exposition(self) -> tuple[bytes, int, dict, str]:
        """(body, status, headers, media type) of /metrics."""
        return generate_latest(self.registry), 200, {}, CONTENT_TYPE_LATEST


def log(**fields) -> None:
    """One JSON line on stderr."""
    print(json.dumps({"time": env.now(), **fields}), file=sys.stderr, flush=True)
