"""A programmable HTTP/1.1 origin for tests: slow on demand, counts everything, and can misbehave byte by byte.

One thread per connection. Handlers are plain functions from a Request to a Reply, or to raw bytes which are sent as
they are before the connection is closed. What must not be here: expectations; tests read the counters.
"""

import collections
import os
import socket
import threading
import time

REASONS = {200: "OK", 201: "Created", 204: "No Content", 304: "Not Modified", 404: "Not Found", 500: "Internal Server Error"}


class Request:
    def __init__(self, method, target, headers, body, head, number, connection_number):
        self.method = method
        self.target = target  # as on the wire
        self.path, _, self.query = target.partition("?")
        self.headers = headers  # list of (name, value) as on the wire
        self.body = body
        self.head = head  # raw bytes up to and including the empty line
        self.number = number  # the how-many-th request for this target, from 1
        self.connection_number = connection_number
        self.at = time.monotonic()
        self.inflight = True

    def get(self, name, default=None):
        values = self.all(name)
        return ", ".join(values) if values else default

    def all(self, name):
        return [v for n, v in self.headers if n.lower() == name.lower()]


class Reply:
    """`delay` seconds pass (and `gate`, an Event, is waited for) before the first byte."""

    def __init__(self, body=b"", headers=(), status=200, delay=0.0, gate=None, chunked=False, close=False, pieces=None):
        self.body = body.encode() if isinstance(body, str) else body
        self.headers = list(headers.items() if isinstance(headers, dict) else headers)
        self.status = status
        self.delay = delay
        self.gate = gate
        self.chunked = chunked
        self.close = close
        self.pieces = pieces  # [(seconds to wait before it, bytes)], sent in place of the body; implies chunked


class Origin:
    """Usage: `with Origin() as origin: origin.on("/a", lambda r: Reply("x"))`. The longest matching prefix answers.

    `origin.stop()` cuts every connection and the listener, as a killed process does; `start()` brings it back on
    the same address.
    """

    def __init__(self, handler=None, unix=None):
        self.unix = unix
        self.port = None
        self.handlers = {"/": handler or (lambda request: Reply(request.target))}
        self.lock = threading.Lock()
        self.requests = []
        self.counts = collections.Counter()
        self.inflight = 0
        self.peak = 0
        self.connections = 0
        self.running = False
        self._open = set()

    @property
    def address(self):
        return f"unix:{self.unix}" if self.unix else f"127.0.0.1:{self.port}"

    def on(self, prefix, handler):
        """`handler` is a function, a Reply, or raw bytes."""
        self.handlers[prefix] = handler if callable(handler) else (lambda _request: handler)
        return self

    def count(self, target):
        """Requests seen for exactly this target."""
        with self.lock:
            return self.counts[target]

    def count_prefix(self, prefix):
        with self.lock:
            return sum(n for target, n in self.counts.items() if target.startswith(prefix))

    def seen(self, target):
        with self.lock:
            return [r for r in self.requests if r.target == target]

    def last(self):
        with self.lock:
            return self.requests[-1]

    def forget(self):
        """Zeroes the counters and the high-water mark."""
        with self.lock:
            self.requests.clear()
            self.counts.clear()
            self.peak = self.inflight

    # --- life

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        if self.unix:
            if os.path.exists(self.unix):
                os.unlink(self.unix)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.unix)
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port or 0))
            self.port = listener.getsockname()[1]
        listener.listen(4096)
        self.listener = listener
        self.running = True
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self):
        self.running = False
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        end = time.monotonic() + 5
        while self._open and time.monotonic() < end:
            time.sleep(0.005)

    def _accept(self, listener):
        threading.stack_size(512 * 1024)
        while self.running:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not self.unix:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections += 1
                number = self.connections
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection, number):
        reader = connection.makefile("rb")
        try:
            while self.running and self._one(connection, reader, number):
                pass
        except (OSError, ValueError):
            pass
        finally:
            reader.close()
            connection.close()
            with self.lock:
                self._open.discard(connection)

    # --- one exchange

    def _one(self, connection, reader, number):
        request = self._read(connection, reader, number)
        if request is None:
            return False
        with self.lock:
            self.inflight += 1
            self.peak = max(self.peak, self.inflight)
        try:
            return self._answer(connection, request)
        finally:
            self._leave(request)

    def _leave(self, request):
        """Ends a request's time in `inflight`: before its last bytes go out, since the next may come as soon as they arrive."""
        with self.lock:
            self.inflight -= request.inflight
            request.inflight = False

    def _read(self, connection, reader, connection_number):
        line = reader.readline()
        if not line.endswith(b"\n"):
            return None
        head = line
        method, target, _ = line.decode("latin-1").rstrip("\r\n").split(" ", 2)
        headers = []
        while True:
            line = reader.readline()
            if not line:
                return None
            head += line
            text = line.decode("latin-1").rstrip("\r\n")
            if not text:
                break
            name, _, value = text.partition(":")
            headers.append((name, value.strip()))
        with self.lock:
            self.counts[target] += 1
            request = Request(method, target, headers, b"", head, self.counts[target], connection_number)
            self.requests.append(request)
        if (request.get("expect") or "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = self._read_body(reader, request)
        return request

    def _read_body(self, reader, request):
        if "chunked" in (request.get("transfer-encoding") or "").lower():
            body = b""
            while True:
                size = int(reader.readline().split(b";")[0], 16)
                if size == 0:
                    while reader.readline().strip():
                        pass
                    return body
                body += reader.read(size)
                reader.readline()
        length = int(request.get("content-length") or 0)
        return reader.read(length) if length else b""

    def _answer(self, connection, request):
        prefix = max((p for p in self.handlers if request.target.startswith(p)), key=len)
        reply = self.handlers[prefix](request)
        if isinstance(reply, bytes):
            connection.sendall(reply)
            return False
        if reply.delay:
            time.sleep(reply.delay)
        if reply.gate is not None:
            reply.gate.wait(30)
        chunked = reply.chunked or reply.pieces is not None
        head = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}"]
        head += [f"{n}: {v}" for n, v in reply.headers]
        names = {n.lower() for n, _ in reply.headers}
        if chunked:
            head.append("Transfer-Encoding: chunked")
        elif reply.status not in (204, 304) and "content-length" not in names:
            head.append(f"Content-Length: {len(reply.body)}")
        if reply.close:
            head.append("Connection: close")
        data = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        bodiless = request.method == "HEAD" or reply.status in (204, 304)
        if bodiless:
            self._leave(request)
            connection.sendall(data)
        elif chunked:
            connection.sendall(data)
            for wait, piece in reply.pieces if reply.pieces is not None else [(0, reply.body)]:
                if wait:
                    time.sleep(wait)
                if piece:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            self._leave(request)
            connection.sendall(b"0\r\n\r\n")
        else:
            self._leave(request)
            connection.sendall(data + reply.body)
        return not reply.close
