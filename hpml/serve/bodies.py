"""What arrives over HTTP, read within the limits: the bytes of a picture, a text, labels, a deadline."""

import asyncio
import json

from fastapi import Request
from starlette.requests import ClientDisconnect

from hpml.serve.settings import BadInput, Settings

DRAINED_MB = 200.0  # of a body that is too large so much is read and thrown away, so that the client sees the answer and not a broken pipe
MOST_DEADLINE_MS = 600_000
LABEL_CHARACTERS = 200


async def body(request: Request, settings: Settings) -> bytes:
    """The whole body. Raises BadInput: 413 beyond max_body_mb, 408 where the client takes longer than body_s."""
    most, parts, total = int(settings.max_body_mb * 1e6), [], 0
    try:
        async with asyncio.timeout(settings.body_s):
            async for part in request.stream():
                total += len(part)
                if total <= most:
                    parts.append(part)
                else:
                    parts.clear()
                    if total > DRAINED_MB * 1e6:
                        break
    except ClientDisconnect:
        raise BadInput(400, "the client left before its body was whole") from None
    except TimeoutError:
        raise BadInput(408, f"the body did not arrive within {settings.body_s:g} s") from None
    if total > most:
        raise BadInput(413, f"the body is larger than {settings.max_body_mb:g} MB")
    return b"".join(parts)


async def picture(request: Request, settings: Settings) -> tuple[bytes, dict[str, list[str]]]:
    """(a picture's bytes, other fields of the form). Raises BadInput 415 for another media type."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await body(request, settings)
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


async def text(request: Request, settings: Settings) -> tuple[str, dict]:
    """(the text, the whole object) of a JSON body. Raises BadInput: 415, 400 for broken JSON, 422 for what is no object with a text."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await body(request, settings)
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
