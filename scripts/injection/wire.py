"""An origin that speaks raw bytes, and does to each URL what was arranged for it. What nothing was arranged for gets
its right body.

One thread for each connection. What must not be here: what should come of a fault.
"""

import collections
import contextlib
import socket
import threading
from collections.abc import Callable

from measure import process  # noqa: F401  (finds the tests' origin)
from origin import Buffered, Closed, Request, WireError, framing_of, parse_request_head, reset

from . import bodies

FRESH = "Cache-Control: max-age=60"


class Talk:
    """One request, and what an origin may do about it."""

    def __init__(self, wire: "Wire", stream: Buffered, request: Request, number: int):
        self.wire, self.stream, self.sock, self.request, self.number = wire, stream, stream.sock, request, number

    @property
    def url(self) -> str:
        return self.request.target

    def read_body(self) -> None:
        framing = framing_of(self.request)
        if framing == "chunked":
            while self.stream.chunk():
                pass
            self.stream.trailers()
        else:
            self.stream.exactly(framing)

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def fin(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        raise Closed("by the origin")

    def rst(self) -> None:
        reset(self.sock)
        raise Closed("by the origin")

    def pause(self, seconds: float) -> None:
        """Returns early, and ends the talk, when the gateway has left."""
        self.sock.settimeout(seconds)
        try:
            if not self.stream.fill():
                raise Closed(self.stream.ended)
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(OSError):
                self.sock.settimeout(None)

    def body(self, size: int = 2000) -> bytes:
        return bodies.make(self.url, self.wire.version(self.url), size)

    def head(self, *fields: str, status: str = "200 OK") -> bytes:
        return "\r\n".join([f"HTTP/1.1 {status}", *fields]).encode() + b"\r\n\r\n"


Handler = Callable[[Talk], None]


def good(talk: Talk) -> None:
    body = talk.body()
    talk.send(talk.head(FRESH, f"Content-Length: {len(body)}") + body)


def sized(size: int) -> Handler:
    """A right answer of so many bytes."""

    def answer(talk: Talk) -> None:
        talk.send(talk.head(FRESH, f"Content-Length: {size}"))
        for piece in bodies.pieces(talk.url, talk.wire.version(talk.url), size):
            talk.send(piece)

    return answer


def after(seconds: float, then: Handler = good) -> Handler:
    def wait(talk: Talk) -> None:
        talk.pause(seconds)
        then(talk)

    return wait


class Wire:
    """Listens on 127.0.0.1 as its mode says: `serve`, `refuse` (closed), `hole` (nobody is let in), `reset` (at
    once)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arranged: dict[str, tuple[Handler, bool]] = {}
        self.served: collections.Counter[str] = collections.Counter()
        self.usual: Handler = good
        self.open: set[socket.socket] = set()
        self.errors: list[str] = []
        self.port = process.free_port()
        self.listener: socket.socket | None = None
        self.fillers: list[socket.socket] = []
        self.mode = "refuse"
        self.set_mode("serve")

    def arrange(self, url: str, handler: Handler, early: bool = False) -> None:
        """`early`: the handler is called when the head is there, and the body is left unread."""
        self.arranged[url] = (handler, early)

    def forget(self, urls: list[str]) -> None:
        """From now on they get their right bodies. Who is being hurt still is."""
        for url in urls:
            self.arranged.pop(url, None)

    def version(self, url: str) -> int:
        with self.lock:
            self.served[url] += 1
            return self.served[url]

    # Who is let in
    # -------------------------------------------------------------------------------------------------------

    def set_mode(self, mode: str) -> None:
        if mode == self.mode:
            return
        self.close_listener()
        # Who was let in before is not let in any more either.
        self.close_open()
        self.mode = mode
        if mode == "refuse":
            return
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=0 if mode == "hole" else 512)
        if mode == "hole":
            self.fill()
        else:
            threading.Thread(target=self.accept, args=(self.listener, mode), daemon=True).start()

    def close_listener(self) -> None:
        if self.listener is not None:
            # Closing does not wake an accept, shutting down does.
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        for filler in self.fillers:
            filler.close()
        self.fillers.clear()

    def fill(self) -> None:
        """Fills the queue of connections that nobody accepts; from then on the kernel drops each SYN without a word."""
        for _ in range(20):
            filler = socket.socket()
            self.fillers.append(filler)
            filler.settimeout(0.1)
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return
        raise AssertionError("the queue of a listener does not fill")

    def accept(self, listener: socket.socket, mode: str) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if mode == "reset":
                reset(sock)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.open.add(sock)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        stream, number = Buffered(sock), 0
        try:
            while True:
                request = parse_request_head(stream.until(b"\r\n\r\n"))
                number += 1
                talk = Talk(self, stream, request, number)
                handler, early = self.arranged.get(request.target, (self.usual, False))
                if not early:
                    talk.read_body()
                handler(talk)
        except (Closed, OSError, TimeoutError):
            pass
        except (WireError, ValueError) as error:
            self.errors.append(f"the origin was sent what is not HTTP: {error}")
        finally:
            with self.lock:
                self.open.discard(sock)
            sock.close()

    def stop(self) -> None:
        self.close_listener()
        self.close_open()

    def close_open(self) -> None:
        with self.lock:
            for sock in self.open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
