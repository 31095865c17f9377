"""A connection of the server: idle ones end, and keep nobody out."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0  # within which a connection sends a whole request head, after it was made or after its last answer


class Connection(H11Protocol):
    """One connection of uvicorn's. It is closed where no whole request head comes within HEAD_S: uvicorn itself waits for ever for the
    first one, and for the rest of a head. Beyond `most` connections the one that has waited longest for a head makes room, so that idle
    ones keep nobody out."""

    def __init__(self, *args, most: int, **named) -> None:
        super().__init__(*args, **named)
        self.most = most
        self.wait: asyncio.TimerHandle | None = None  # for a head; None while a request is under way

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._time()
        if len(self.connections) > self.most:
            oldest = min((one for one in self.connections if one.wait), key=lambda one: one.wait.when())  # this one, if no other waits
            oldest._end_wait()
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_wait()

    def _time(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()
        elif self.wait is None and not self.transport.is_closing():
            self.wait = self.loop.call_later(HEAD_S, self.transport.close)

    def _end_wait(self) -> None:
        if self.wait is not None:
            self.wait.cancel()
            self.wait = None
