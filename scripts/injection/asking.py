"""Clients that say exactly what became of a request: answered and by whom, cut off, closed, or not ended in time."""

import json
import socket
import time
from dataclasses import dataclass

from measure import process  # noqa: F401  (finds the tests' client)
from origin import Buffered, Client, Closed, Response, WireError

from . import bodies


@dataclass
class Outcome:
    """`label` is a status, with the reason where the gateway made the answer; or `cut` (after a head), `closed`,
    `reset`, `late`."""

    label: str
    took_s: float
    complaint: str | None = None


class Timed(Buffered):
    """Reads until a moment, however the bytes trickle in."""

    def __init__(self, sock: socket.socket, deadline: float):
        super().__init__(sock)
        self.deadline = deadline

    def fill(self) -> bool:
        self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
        return super().fill()


def connect(port: int, deadline_s: float, receive_buffer: int | None = None) -> Client:
    client = Client(port, deadline_s, receive_buffer)
    client.stream = Timed(client.sock, time.monotonic() + deadline_s)
    return client


def request(url: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {url} HTTP/1.1", "Host: faults.test", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def judge(url: str, answer: Response) -> tuple[str, str | None]:
    """The label of a complete or an incomplete answer, and what is wrong with it."""
    if not answer.complete:
        return "cut", None
    if answer.status == 200:
        return "200", bodies.complaint(url, answer.body)
    try:
        return f"{answer.status} {json.loads(answer.body)['error']}", None
    except (ValueError, KeyError, TypeError):
        return str(answer.status), None


def outcome(client: Client, url: str, started: float, method: str = "GET") -> Outcome:
    """Reads the answer to what was sent."""
    complaint = None
    try:
        label, complaint = judge(url, client.response(method))
    except TimeoutError:
        label = "late"
        complaint = f"{url} was neither answered nor ended after {time.monotonic() - started:.1f} s"
    except Closed:
        # A head that stopped half-way is no answer.
        label = "closed" if client.stream.ended == "fin" else "reset"
    except WireError as error:
        label, complaint = "malformed", f"{url} got what is not HTTP: {error}"
    return Outcome(label, time.monotonic() - started, complaint)


def ask(port: int, url: str, deadline_s: float, *fields: str, method: str = "GET", body: bytes = b"") -> Outcome:
    """One request on a connection of its own."""
    started = time.monotonic()
    try:
        with connect(port, deadline_s) as client:
            client.send(request(url, *fields, method=method, body=body))
            return outcome(client, url, started, method)
    except TimeoutError:
        return Outcome(
            "late", time.monotonic() - started, f"{url}: the gateway did not take the request in {deadline_s:.1f} s"
        )
    except OSError as error:
        return Outcome(type(error).__name__, time.monotonic() - started, f"{url}: {error}")
