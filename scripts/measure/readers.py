"""Reads large bodies as fast as they come, for so many seconds: readers.py PORT PATH CONNECTIONS SECONDS

Bytes are thrown away in the kernel (MSG_TRUNC, tcp(7)): a reader that copied them would need more of its core than the
server of its own, and be what is measured. Prints the bytes of bodies that came, the seconds that took, and how many
bodies were complete.
"""

import socket
import sys
import threading
import time

CHUNK = 4 << 20


def discard(sock: socket.socket, count: int, buffer: bytearray) -> int:
    """How many bytes were taken off the socket, at least one."""
    got = sock.recv_into(buffer, min(count, len(buffer)), socket.MSG_TRUNC)
    if got == 0:
        raise EOFError("closed inside a body")
    return got


def ask(sock: socket.socket, path: str) -> tuple[int, int]:
    """Sends a request and reads the head of its answer: the length of the body, and how much of it has been read."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    seen = b""
    while b"\r\n\r\n" not in seen:
        part = sock.recv(4096)
        if not part:
            raise EOFError("closed inside a head")
        seen += part
    head, _, body = seen.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(head.decode("latin-1").splitlines()[0])
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    return int(fields[b"content-length"]), len(body)


class Reader(threading.Thread):
    def __init__(self, port: int, path: str, end: float):
        super().__init__(daemon=True)
        self.port, self.path, self.end = port, path, end
        self.bytes = self.bodies = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            buffer = bytearray(CHUNK)
            with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
                while time.monotonic() < self.end:
                    length, got = ask(sock, self.path)
                    self.bytes += got
                    while got < length and time.monotonic() < self.end:
                        part = discard(sock, length - got, buffer)
                        got += part
                        self.bytes += part
                    self.bodies += got == length
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.error = error


def main() -> None:
    port, path, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    started = time.monotonic()
    readers = [Reader(port, path, started + seconds) for _ in range(connections)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for reader in readers:
        if reader.error is not None:
            sys.exit(f"readers: {reader.error!r}")
    print(sum(r.bytes for r in readers), time.monotonic() - started, sum(r.bodies for r in readers))


if __name__ == "__main__":
    main()
