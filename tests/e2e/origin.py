"""Both far ends of the wire: a recording origin, and a client that shows raw bytes.

The gateway is judged by what it sends, so neither end may be forgiving. The origin keeps every byte that reaches it and
parses requests with a parser of its own, stricter than any real server: whatever it will not take is kept in
`Origin.errors` and the connection is closed. The client parses answers just as strictly, and says how a connection
ended (FIN, reset, or not at all), because "cut off" and "complete" must never look alike.

What an origin does is chosen by path: `origin.route("/x", handler)`. A handler is bytes to send as they are, or a
function of an `Exchange`, which can send, wait, reset, or close at any point. No HTTP library may be used here.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Union

CRLF = b"\r\n"
TCHAR = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# RFC 9112 §3.2.1: origin-form, printable ASCII without what no URI may hold; "*" is for OPTIONS alone.
TARGET = re.compile(rb"(/[!$-;=?-Z_a-z~%\[\]|{}^`\"<>]*|\*)\Z")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
HEAD_MAX = 256 * 1024
# Bytes kept per connection; streamed bodies of a gigabyte are counted and not kept.
RECEIVED_MAX = 4 * 1024 * 1024


class WireError(Exception):
    """What a strict peer refuses, with the reason."""


class Closed(Exception):
    """The peer is gone, or this connection was ended by its own handler."""


# ---------------------------------------------------------------------------------------------------------------------
# Requests, as a strict server sees them


@dataclass
class Request:
    method: str
    target: str
    version: str
    fields: list[tuple[str, str]]
    head: bytes
    body: bytes = b""
    trailers: bytes = b""
    connection: int = 0
    complete: bool = False
    received_bytes: int = 0
    wire: bytes = b""  # all of it as it came, chunks and trailers too

    @property
    def path(self) -> str:
        return self.target.split("?", 1)[0]

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.fields if n.lower() == name.lower()]

    def get(self, name: str, default: str | None = None) -> str | None:
        values = self.all(name)
        return values[0] if values else default


def parse_fields(lines: list[bytes]) -> list[tuple[str, str]]:
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise WireError(f"a field line without a colon: {line!r}")
        # RFC 9112 §5.1: no white space before the colon; §5.2: no folding.
        if not TCHAR.match(name):
            raise WireError(f"not a field name: {name!r}")
        value = value.strip(b" \t")
        # RFC 9110 §5.5: no CR, LF, NUL; no other control character either.
        if not VALUE.match(value):
            raise WireError(f"not a field value: {value!r}")
        fields.append((name.decode("latin-1"), value.decode("latin-1")))
    return fields


def parse_request_head(head: bytes) -> Request:
    if not head.endswith(CRLF + CRLF):
        raise WireError("a head that does not end in an empty line")
    lines = head[:-4].split(CRLF)
    for line in lines:
        if b"\n" in line or b"\r" in line or b"\0" in line:
            raise WireError(f"a bare CR, LF or NUL in {line!r}")
    parts = lines[0].split(b" ")
    if len(parts) != 3:
        raise WireError(f"a request line of {len(parts)} parts: {lines[0][:80]!r}")
    method, target, version = parts
    if not TCHAR.match(method):
        raise WireError(f"not a method: {method[:40]!r}")
    if not TARGET.match(target) or (target == b"*" and method != b"OPTIONS"):
        raise WireError(f"not an origin-form target: {target[:80]!r}")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise WireError(f"not a version: {version!r}")
    request = Request(method.decode(), target.decode(), version.decode(), parse_fields(lines[1:]), head)
    # RFC 9112 §3.2: exactly one; empty where the client of HTTP/1.0 named none.
    if len(request.all("host")) != 1:
        raise WireError(f"not exactly one Host: {request.all('host')!r}")
    framing_of(request)
    return request


def framing_of(request: Request) -> Union[int, str]:
    """The body's length, or "chunked". RFC 9112 §6.3, and anything doubtful is an error."""
    lengths, codings = request.all("content-length"), request.all("transfer-encoding")
    if lengths and codings:
        raise WireError("Content-Length and Transfer-Encoding together")
    if codings:
        if codings != ["chunked"] or request.version != "HTTP/1.1":
            raise WireError(f"not exactly one chunked: {codings!r} in {request.version}")
        return "chunked"
    if not lengths:
        return 0
    if len(lengths) != 1 or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lengths[0]):
        raise WireError(f"not a Content-Length: {lengths!r}")
    return int(lengths[0])


# ---------------------------------------------------------------------------------------------------------------------
# A socket with a buffer


class Buffered:
    """Reads by mark or by count, and keeps what it has read."""

    def __init__(self, sock: socket.socket, keep: bool = False):
        self.sock = sock
        self.buffer = bytearray()
        self.seen = bytearray()
        self.keep = keep
        self.taken = 0  # bytes handed out since the start
        self.ended: str | None = None  # "fin" or "reset" once the peer has ended

    def fill(self) -> bool:
        """Reads once; False at the end. A reset is an end too, and is remembered as one."""
        if self.ended:
            return False
        try:
            data = self.sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            self.ended = "reset"
            return False
        if not data:
            self.ended = "fin"
            return False
        if self.keep and len(self.seen) < RECEIVED_MAX:
            self.seen += data
        self.buffer += data
        return True

    def until(self, mark: bytes, limit: int = HEAD_MAX) -> bytes:
        start = 0
        while True:
            at = self.buffer.find(mark, max(0, start - len(mark)))
            if at >= 0:
                return self.take(at + len(mark))
            if len(self.buffer) > limit:
                raise WireError(f"no {mark!r} within {limit} bytes")
            start = len(self.buffer)
            if not self.fill():
                raise Closed(self.ended)

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.fill():
                raise Closed(self.ended)
        return self.take(count)

    def take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        self.taken += len(data)
        return data

    def chunk(self) -> bytes:
        """One chunk's data, b"" for the last. RFC 9112 §7.1, without extensions."""
        line = self.until(CRLF, 4096)[:-2]
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", line):
            raise WireError(f"not a chunk size: {line[:60]!r}")
        size = int(line, 16)
        if size == 0:
            return b""
        data = self.exactly(size)
        if self.exactly(2) != CRLF:
            raise WireError("a chunk that does not end in CRLF")
        return data

    def trailers(self) -> bytes:
        block = b""
        while True:
            line = self.until(CRLF)
            if line == CRLF:
                return block
            parse_fields([line[:-2]])
            block += line


# ---------------------------------------------------------------------------------------------------------------------
# The origin


def respond(body: bytes | str = b"", *fields: str, status: str = "200 OK", version: str = "HTTP/1.1", length: bool = True) -> bytes:
    """A well-formed answer with a Content-Length; `fields` are whole lines."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"{version} {status}", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + CRLF + CRLF + body


def reset(sock: socket.socket) -> None:
    """Ends a connection with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Exchange:
    """One request and what the handler does about it."""

    def __init__(self, origin: "Origin", stream: Buffered, request: Request):
        self.origin = origin
        self.stream = stream
        self.start = stream.taken - len(request.head)
        self.sock = stream.sock
        self.request = request
        self.read = False

    def send(self, data: bytes | str) -> None:
        try:
            self.sock.sendall(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise Closed(str(error)) from error

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def read_body(self) -> bytes:
        """Reads and keeps the body, strictly."""
        if not self.read:
            framing = framing_of(self.request)
            if framing == "chunked":
                parts = []
                while piece := self.stream.chunk():
                    parts.append(piece)
                self.request.trailers = self.stream.trailers()
                self.request.body = b"".join(parts)
            else:
                self.request.body = self.stream.exactly(framing)
            self.request.received_bytes = len(self.request.body)
            self.done()
        return self.request.body

    def count_body(self) -> int:
        """Reads the body and keeps only its length: for bodies that must not be held."""
        framing = framing_of(self.request)
        if framing == "chunked":
            while piece := self.stream.chunk():
                self.request.received_bytes += len(piece)
            self.stream.trailers()
        else:
            self.request.received_bytes = len(self.stream.take(min(framing, len(self.stream.buffer))))
            scratch = memoryview(bytearray(1 << 20))
            while (left := framing - self.request.received_bytes) > 0:
                count = self.sock.recv_into(scratch[: min(left, len(scratch))])
                if count == 0:
                    raise Closed("fin")
                self.request.received_bytes += count
        self.done()
        return self.request.received_bytes

    def done(self) -> None:
        self.read = True
        self.request.wire = bytes(self.stream.seen[self.start : self.stream.taken])
        self.request.complete = True

    def fin(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        raise Closed("fin by the handler")

    def rst(self) -> None:
        reset(self.sock)
        raise Closed("reset by the handler")

    def peer_gone(self, timeout: float = 5.0) -> bool:
        """True once the gateway has closed this connection; False when it is still open after `timeout`."""
        self.sock.settimeout(timeout)
        try:
            while self.stream.fill():
                pass
            return True
        except TimeoutError:
            return False


Handler = Union[bytes, Callable[[Exchange], None]]


@dataclass
class Route:
    handler: Handler
    early: bool = False  # called when the head is there; the handler reads the body, or does not


@dataclass
class Connection:
    number: int
    stream: Buffered
    requests: list[Request] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)


class Origin:
    """A server on 127.0.0.1, one thread per connection. Unknown paths answer 200 with their own target as the body."""

    def __init__(self, default: Handler | None = None, backlog: int = 512):
        self.lock = threading.Condition()
        self.routes: dict[str, Route] = {}
        self.default = Route(default or echo_target)
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.errors: list[str] = []  # what arrived and is not HTTP
        self.failures: list[str] = []  # what a handler expected in vain
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port: int = self.listener.getsockname()[1]
        self.stopping = False
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self) -> "Origin":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.stopping = True
        # Closing a listener does not wake a blocked accept; shutting it down does.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            try:
                connection.stream.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def route(self, path: str, handler: Handler, early: bool = False) -> None:
        self.routes[path] = Route(handler, early)

    # What was seen -----------------------------------------------------------------------------------------------------

    def to(self, path: str) -> list[Request]:
        """Requests for this path, whether or not their bodies were complete."""
        with self.lock:
            return [r for r in self.requests if r.path == path]

    def complete(self, text: str) -> list[Request]:
        """Complete requests that carry `text` in target, head or body."""
        needle = text.encode()
        with self.lock:
            return [r for r in self.requests if r.complete and needle in r.raw]

    def saw(self, text: str) -> bool:
        """Whether these bytes reached the origin at all, in whatever shape."""
        needle = text.encode()
        with self.lock:
            return any(needle in c.stream.seen for c in self.connections)

    def wait_for(self, condition: Callable[["Origin"], bool], timeout: float = 5.0) -> bool:
        deadline = time.monotonic() + timeout
        with self.lock:
            while not condition(self):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.lock.wait(min(left, 0.05))
            return True

    # Serving -------------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        while not self.stopping:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                connection = Connection(len(self.connections), Buffered(sock, keep=True))
                self.connections.append(connection)
                self.lock.notify_all()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: Connection) -> None:
        stream = connection.stream
        try:
            while True:
                self.one(connection)
        except Closed:
            # A request that stopped half-way is no error of the gateway's by itself: a client may leave. Tests ask.
            pass
        except (WireError, UnicodeDecodeError, ValueError) as error:
            with self.lock:
                self.errors.append(f"connection {connection.number}: {error}")
        except OSError:
            pass
        except AssertionError as error:
            with self.lock:
                self.failures.append(f"connection {connection.number}: {error}")
        finally:
            try:
                stream.sock.close()
            finally:
                connection.closed.set()
                with self.lock:
                    self.lock.notify_all()

    def one(self, connection: Connection) -> None:
        request = parse_request_head(connection.stream.until(CRLF + CRLF))
        request.connection = connection.number
        exchange = Exchange(self, connection.stream, request)
        route = self.routes.get(request.path, self.default)
        with self.lock:
            self.requests.append(request)
            connection.requests.append(request)
            self.lock.notify_all()
        if not route.early:
            exchange.read_body()
            with self.lock:
                self.lock.notify_all()
        elif framing_of(request) == 0:
            exchange.done()
        if callable(route.handler):
            route.handler(exchange)
        else:
            exchange.send(route.handler)


def echo_target(exchange: Exchange) -> None:
    """The answer names what was asked, so that a mixed-up answer shows."""
    body = b"" if exchange.request.method == "HEAD" else exchange.request.target.encode()
    exchange.send(
        respond(b"", "Content-Type: text/plain", "Cache-Control: no-store", f"Content-Length: {len(exchange.request.target)}", length=False)
        + body
    )


# ---------------------------------------------------------------------------------------------------------------------
# The client


@dataclass
class Response:
    status: int
    reason: str
    version: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = True  # False: the connection ended before the framing said so
    framing: str = "length"  # "length", "chunked", "close" or "none"
    interim: list["Response"] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.fields if n.lower() == name.lower()]

    def get(self, name: str, default: str | None = None) -> str | None:
        values = self.all(name)
        return values[0] if values else default


class Client:
    """A raw connection to the gateway."""

    def __init__(self, port: int, timeout: float = 5.0, receive_buffer: int | None = None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = Buffered(self.sock)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes | str) -> bool:
        """False when the peer has closed already; what it answered can still be read."""
        try:
            self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def send_slowly(self, data: bytes) -> bool:
        """One byte in each segment, so that a parser meets every cut of its input."""
        return all(self.send(data[i : i + 1]) for i in range(len(data)))

    def half_close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def get(self, path: str, *fields: str, method: str = "GET", host: str = "a.test") -> Response:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
        self.send("\r\n".join(lines) + "\r\n\r\n")
        return self.response(method)

    def head(self) -> Response:
        """The next head, interim or final, with no body read."""
        head = self.stream.until(CRLF + CRLF)
        lines = head[:-4].split(CRLF)
        match = re.fullmatch(rb"(HTTP/1\.[01]) ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)", lines[0])
        if not match:
            raise WireError(f"not a status line: {lines[0][:80]!r}")
        return Response(int(match[2]), match[3].decode("latin-1"), match[1].decode(), parse_fields(lines[1:]))

    def response(self, method: str = "GET") -> Response:
        """The next final answer with the interim ones before it. Raises `Closed` when there is none."""
        interim = []
        while True:
            answer = self.head()
            if answer.status >= 200 or answer.status == 101:
                break
            interim.append(answer)
        answer.interim = interim
        return self.body(answer, method)

    def body(self, answer: Response, method: str = "GET") -> Response:
        lengths, codings = answer.all("content-length"), answer.all("transfer-encoding")
        if len(lengths) > 1 or len(codings) > 1 or (lengths and codings):
            raise WireError(f"doubtful framing: {lengths!r} {codings!r}")
        if method == "HEAD" or answer.status in (101, 204, 304):
            answer.framing = "none"
            return answer
        parts = bytearray()
        try:
            if codings:
                if codings != ["chunked"]:
                    raise WireError(f"not a transfer coding: {codings!r}")
                answer.framing = "chunked"
                while piece := self.stream.chunk():
                    parts += piece
                self.stream.trailers()
            elif lengths:
                if not re.fullmatch(r"[0-9]+", lengths[0]):
                    raise WireError(f"not a Content-Length: {lengths[0]!r}")
                left = int(lengths[0])
                while left:
                    if not self.stream.buffer and not self.stream.fill():
                        raise Closed(self.stream.ended)
                    piece = self.stream.take(min(left, len(self.stream.buffer)))
                    parts += piece
                    left -= len(piece)
            else:
                answer.framing = "close"
                while self.stream.fill():
                    pass
                parts += self.stream.take(len(self.stream.buffer))
                # RFC 9112 §8: a body that lasts to the close is complete only when the close is orderly.
                answer.complete = self.stream.ended == "fin"
        except Closed:
            answer.complete = False
        answer.body = bytes(parts)
        return answer

    def closed(self) -> bool:
        """Whether the gateway has ended the connection with nothing more to say; waits up to the time-out."""
        try:
            while self.stream.fill():
                pass
        except TimeoutError:
            return False
        return not self.stream.buffer


def fetch(port: int, path: str, *fields: str, method: str = "GET", host: str = "a.test", timeout: float = 5.0) -> Response:
    """One request on a connection of its own."""
    with Client(port, timeout) as client:
        return client.get(path, *fields, "Connection: close", method=method, host=host)


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
