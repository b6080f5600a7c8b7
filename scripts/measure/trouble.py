"""Everything that hits should not feel, for as long as it runs: trouble.py PORT ADMIN HANGING

- 64 fetches at any time whose origin, which listens on HANGING, says nothing for 10 s;
- a purge a second, of something that has just been stored, and a scrape of /metrics;
- downloads of 100 MiB, one after the other, read at 20 MiB a second;
- 1000 clients that send their requests byte by byte, four bytes a second each.

Prints `ready` once all of it is under way, and when it is told to end (SIGTERM) one line of JSON with what it did. It is
lazy about when it does things, so that the load that is measured can share its core.
"""

import heapq
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request

import readers

FETCHES = 64
HANG_S = 10
SLOW_CLIENTS = 1000
BYTE_EVERY_S = 0.25
TICK_S = 0.01
DOWNLOAD_BYTES_PER_S = 20 << 20

done = {
    "hanging": 0,
    "hung_to_the_end": 0,
    "purges": 0,
    "scrapes": 0,
    "download_bytes": 0,
    "slow_bytes": 0,
    "slow_answers": 0,
}


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def hang(listener: socket.socket, port: int) -> None:
    """The clients of hanging fetches, and the origin that lets them hang."""
    watch = selectors.DefaultSelector()
    listener.setblocking(False)
    watch.register(listener, selectors.EVENT_READ, "accept")
    clients, due, number = 0, [], 0
    while True:
        while clients < FETCHES:
            client, number = connect(port), number + 1
            client.sendall(f"GET /hang/{number} HTTP/1.1\r\nHost: hanging\r\n\r\n".encode())
            watch.register(client, selectors.EVENT_READ, "client")
            clients += 1
        for key, _ in watch.select(0.1):
            if key.data == "accept":
                asked, _ = listener.accept()
                watch.register(asked, selectors.EVENT_READ, "origin")
                continue
            data = key.fileobj.recv(65536)
            if key.data == "origin" and data:
                heapq.heappush(due, (time.monotonic() + HANG_S, id(key.fileobj), key.fileobj))
                done["hanging"] = len(due)
                continue
            watch.unregister(key.fileobj)
            key.fileobj.close()
            if key.data == "client":
                if not data.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"a hanging fetch was answered with {data[:80]!r}")
                clients -= 1
                done["hung_to_the_end"] += 1
        while due and due[0][0] <= time.monotonic():
            heapq.heappop(due)[2].sendall(
                b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
            )


def purge_and_scrape(port: int, admin: int) -> None:
    while True:
        url = f"http://127.0.0.1:{port}/hit/purged"
        urllib.request.urlopen(url, timeout=5).read()
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{admin}/purge?url={url}", b""), timeout=5
        ) as answer:
            done["purges"] += json.load(answer)["purged"]
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as answer:
            done["scrapes"] += b"pilotlight_requests_total" in answer.read()
        time.sleep(1)


def download(port: int) -> None:
    buffer = bytearray(1 << 20)
    while True:
        with connect(port) as sock:
            length, got = readers.ask(sock, "/large/download")
            started = time.monotonic()
            while got < length:
                time.sleep(max(TICK_S, got / DOWNLOAD_BYTES_PER_S - (time.monotonic() - started)))
                part = readers.discard(sock, length - got, buffer)
                got += part
                done["download_bytes"] += part


def dawdle(port: int) -> None:
    """One byte of one client after the other, evenly over time."""
    request = b"GET /hit/1k HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    # Each is at another place of its request. Whoever has sent one reads its answer with the next byte.
    clients = [connect(port) for _ in range(SLOW_CLIENTS)]
    places = [number % len(request) for number in range(SLOW_CLIENTS)]
    for sock, place in zip(clients, places, strict=True):
        sock.sendall(request[:place])
    asked = [False] * SLOW_CLIENTS
    started, turns = time.monotonic(), 0
    while True:
        owed = int((time.monotonic() - started) * SLOW_CLIENTS / BYTE_EVERY_S)
        while turns < owed:
            at = turns % SLOW_CLIENTS
            if asked[at]:
                done["slow_answers"] += read_answer(clients[at])
            clients[at].send(request[places[at] : places[at] + 1])
            places[at] = (places[at] + 1) % len(request)
            asked[at] = places[at] == 0
            turns += 1
            done["slow_bytes"] += 1
        time.sleep(TICK_S)


def read_answer(sock: socket.socket) -> int:
    # It was written a quarter of a second ago, in one piece.
    if not sock.recv(65536).startswith(b"HTTP/1.1 200 "):
        raise RuntimeError("a slow client was not answered")
    return 1


def guarded(what, *arguments) -> threading.Thread:
    def work() -> None:
        try:
            what(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def main() -> None:
    port, admin, hanging = map(int, sys.argv[1:])
    os.nice(10)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    listener = socket.create_server(("127.0.0.1", hanging), backlog=256)
    guarded(hang, listener, port)
    guarded(purge_and_scrape, port, admin)
    guarded(download, port)
    guarded(dawdle, port)
    while done["hanging"] < FETCHES or not all(
        done[name] for name in ("purges", "scrapes", "download_bytes", "slow_bytes")
    ):
        time.sleep(0.05)
    # The shares of it that go by the second start here.
    before = dict(done)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    gauges = {"hanging"}
    print(
        json.dumps({name: value if name in gauges else value - before[name] for name, value in done.items()}),
        flush=True,
    )
    os._exit(0)


if __name__ == "__main__":
    main()
