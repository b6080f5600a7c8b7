"""Many clients at once, from one thread: connect all, then send all, then read all as they come.

Only for answers with Content-Length. What must not be here: expectations.
"""

import selectors
import socket
import time

from harness import Headers, Response


class _Client:
    def __init__(self, port, source):
        self.sock = socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0) if source else None)
        self.sock.setblocking(False)
        self.data = bytearray()
        self.response = None
        self.needed = None

    def feed(self, data, started):
        self.data += data
        if self.needed is None and b"\r\n\r\n" in self.data:
            head, _, _ = bytes(self.data).partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = Headers((n, v.strip()) for n, _, v in (line.partition(":") for line in lines[1:]))
            self.response = Response(int(lines[0].split(" ")[1]), "", headers, started=started)
            self.needed = len(head) + 4 + int(headers.get("content-length", "0"))
            self.head_size = len(head) + 4
        if self.needed is not None and len(self.data) >= self.needed:
            self.response.body = bytes(self.data[self.head_size : self.needed])
            self.response.elapsed = time.monotonic() - started
            return True
        return False


class Crowd:
    """`count` open connections to `port`."""

    def __init__(self, port, count, sources=(None,)):
        self.clients = []
        for number in range(count):
            self.clients.append(_Client(port, sources[number % len(sources)]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.sock.close()

    def send(self, target, host, headers=()):
        """Sends one GET on every connection (small enough for the socket buffer)."""
        fields = "".join(f"{n}: {v}\r\n" for n, v in headers)
        request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode()
        self.started = []
        for client in self.clients:
            client.data.clear()
            client.response = client.needed = None
            self.started.append(time.monotonic())
            assert client.sock.send(request) == len(request)

    def read(self, timeout=30.0):
        """One Response per client, in order; None where the connection ended or the time ran out."""
        selector = selectors.DefaultSelector()
        for number, client in enumerate(self.clients):
            selector.register(client.sock, selectors.EVENT_READ, number)
        end = time.monotonic() + timeout
        left = len(self.clients)
        results = [None] * left
        while left and (wait := end - time.monotonic()) > 0:
            for key, _ in selector.select(wait):
                client = self.clients[key.data]
                try:
                    data = client.sock.recv(65536)
                except OSError:
                    data = b""
                done = bool(data) and client.feed(data, self.started[key.data])
                if done or not data:
                    results[key.data] = client.response if done else None
                    selector.unregister(client.sock)
                    left -= 1
        selector.close()
        return results
