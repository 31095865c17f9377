"""What arrives over HTTP, read within the limits: the bytes of a picture, a text, labels, a deadline."""

import asyncio
import json

from fastapi import Request
from starlette.datastructures import State
from starlette.requests import ClientDisconnect

from hpml.serve.settings import BadInput, Busy, Settings

DRAINED_MB = 200.0  # of a body that is too large so much is read and thrown away, so that the client sees the answer and not a broken pipe
MOST_DEADLINE_MS = 600_000
LABEL_CHARACTERS = 200
ROOM_RETRY_S = 1.0


class Room:
    """Bytes of bodies that all requests hold together, at most max_bodies_mb. Used by the event loop alone, so without a lock."""

    def __init__(self, settings: Settings) -> None:
        self.most, self.taken = int(settings.max_bodies_mb * 1e6), 0

    def check(self, count: int) -> None:
        """Raises Busy where so many further bytes do not fit."""
        if self.taken + count > self.most:
            raise Busy(ROOM_RETRY_S, f"busy: the bodies under way would be more than {self.most / 1e6:g} MB together")

    def take(self, state: State, count: int) -> None:
        """Count bytes to a request, by its state. Raises Busy where they do not fit."""
        self.check(count)
        self.taken += count
        state.body_bytes = getattr(state, "body_bytes", 0) + count

    def leave(self, state: State) -> None:
        """The request holds nothing any more."""
        self.taken -= getattr(state, "body_bytes", 0)
        state.body_bytes = 0


async def body(request: Request, settings: Settings, room: Room) -> bytes:
    """The whole body, counted in `room` until the request ends. Raises BadInput: 413 beyond max_body_mb, 408 where the client takes
    longer than body_s; Busy where `room` is full."""
    most, parts, total = int(settings.max_body_mb * 1e6), [], 0
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 16 and int(announced) <= most:  # Python refuses to read thousands of digits
        room.check(int(announced))  # a hint, for an early answer: what counts is what arrives
    try:
        async with asyncio.timeout(settings.body_s):
            async for part in request.stream():
                total += len(part)
                if total <= most:
                    room.take(request.state, len(part))
                    parts.append(part)
                else:
                    parts.clear()
                    room.leave(request.state)
                    if total > DRAINED_MB * 1e6:
                        break
    except ClientDisconnect:
        raise BadInput(400, "the client left before its body was whole") from None
    except TimeoutError:
        raise BadInput(408, f"the body did not arrive within {settings.body_s:g} s") from None
    if total > most:
        raise BadInput(413, f"the body is larger than {settings.max_body_mb:g} MB")
    return b"".join(parts)


async def picture(request: Request, settings: Settings, room: Room) -> tuple[bytes, dict[str, list[str]]]:
    """(a picture's bytes, other fields of the form). Raises BadInput 415 for another media type, and what `body` raises."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await body(request, settings, room)
    if media.startswith("image/") or media == "application/octet-stream":
        return content, {}
    if media != "multipart/form-data":
        raise BadInput(415, f"content type {media[:60] or 'none'}: send a picture as image/jpeg, image/png, ... or in multipart/form-data")
    if not content:
        raise BadInput(400, "the body is empty: send the bytes of a picture")

    async def again() -> dict:
        return {"type": "http.request", "body": content, "more_body": False}

    form = await Request(request.scope, again).form(max_files=1, max_fields=settings.max_labels + 10,
                                               max_part_size=int(settings.max_body_mb * 1e6))
    try:
        files = [value for _, value in form.multi_items() if hasattr(value, "read")]
        fields: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if not hasattr(value, "read"):
                fields.setdefault(name, []).append(value)
        if not files:
            raise BadInput(422, "the form holds no file")
        return await files[0].read(), fields
    finally:
        await form.close()


async def text(request: Request, settings: Settings, room: Room) -> tuple[str, dict]:
    """(the text, the whole object) of a JSON body. Raises BadInput: 415, 400 for broken JSON, 422 for what is no object with a text, and
    what `body` raises."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await body(request, settings, room)
    if media != "application/json":
        raise BadInput(415, f"content type {media[:60] or 'none'}: send application/json")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise BadInput(400, "broken JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise BadInput(422, 'an object with a text is expected: {"text": "..."}')
    words = found["text"].encode("utf-8", "replace").decode().replace("\0", " ")
    if not words.strip():
        raise BadInput(422, "the text is empty")
    if len(words) > settings.max_text:
        raise BadInput(413, f"{len(words):,} characters: more than {settings.max_text:,}")
    return words, found


def labels(given: list[str], settings: Settings) -> list[str]:
    """Labels, each once, from fields that hold one a line. Raises BadInput for none, too many or too long ones."""
    lines = (line.strip().replace("\0", " ") for field in given for line in field.encode("utf-8", "replace").decode().splitlines())
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise BadInput(422, "no labels: give at least one in `labels`")
    if len(found) > settings.max_labels:
        raise BadInput(413, f"{len(found):,} labels: more than {settings.max_labels}")
    if max(len(label) for label in found) > LABEL_CHARACTERS:
        raise BadInput(413, f"a label is longer than {LABEL_CHARACTERS} characters")
    return found


def deadline_s(request: Request) -> float | None:
    """The deadline that the client asks for in X-Deadline-Ms, in seconds; None without. Raises BadInput 400 for what is none."""
    given = request.headers.get("x-deadline-ms")
    if given is None:
        return None
    try:
        asked_ms = float(given)
    except ValueError:
        asked_ms = 0.0
    if not 0 < asked_ms <= MOST_DEADLINE_MS:
        raise BadInput(400, f"X-Deadline-Ms: a number above 0 and at most {MOST_DEADLINE_MS} is expected")
    return asked_ms / 1e3


def whole_number(found: dict, name: str, default: int, *, least: int, most: int) -> int:
    """A number of a JSON body. Raises BadInput 422."""
    value = found.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(422, f"{name}: a whole number from {least} to {most} is expected")
    return value
