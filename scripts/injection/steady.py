"""The load beside the faults, in a process of its own: steady.py RATE MIX

MIX is JSON, class to weight. Every request starts at its time, whatever became of the others, and is counted from
then on; every answer is held to the body that its URL implies. The origin of these requests is here too, and healthy.
Prints `origin PORT` first, and then obeys lines: `start PORT ADMIN`, `take` (a line of JSON: what was seen since the
last one), `pause` (answers when nothing is under way), `resume`.

`idle` in the mix is no weight but a number of connections that are held open and say nothing.
"""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from injection import bodies  # noqa: E402
from measure.clients import read_response  # noqa: E402

# So many that a request that is slow delays hardly any other.
WORKERS = 12
APART = ("slow", "purge", "scrape")
HITS = 20
LARGE_BYTES = 200_000
# What answers in this time is fine; no request of a healthy client may take longer, whatever its neighbours do.
LOST_AFTER_S = 10.0
HICCUP_S = 0.02


# --- The origin ------------------------------------------------------------------------------------------------------


class Origin:
    """Right answers. `spoil` is for proving that wrong ones are noticed."""

    def __init__(self) -> None:
        self.version = itertools.count(1)
        self.spoil = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                url = head.split(b" ", 2)[1].decode()
                writer.write(self.answer(url, head))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def answer(self, url: str, head: bytes) -> bytes:
        kind = url.split("/")[2]
        size = LARGE_BYTES if kind == "large" else 1500
        if kind == "fail":
            return b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
        # What is validated or cut to ranges must not change under the eyes of who asks.
        version = next(self.version) if kind in ("pass", "miss") else 1
        body = bodies.make("/steady/pass/elsewhere" if self.spoil == "body" else url, version, size)
        if self.spoil == "short":
            body = body[:-7]
        lifetime = {"pass": "no-store", "hit": "max-age=86400", "purged": "max-age=86400"}.get(kind, "max-age=30")
        fields = f'Cache-Control: {lifetime}\r\nETag: "{url}"\r\nContent-Length: {len(body)}\r\n'
        return f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode() + body


# --- The clients -----------------------------------------------------------------------------------------------------


class Trouble(Exception):
    """An answer that is not what it had to be."""


class Seen:
    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.ms: dict[str, list[float]] = {}
        self.troubles: list[tuple[str, str]] = []
        self.hiccup_ms = 0.0

    def take(self) -> str:
        ms = {name: [round(value, 3) for value in values] for name, values in self.ms.items()}
        line = json.dumps({"ms": ms, "troubles": self.troubles, "hiccup_ms": round(self.hiccup_ms, 3)})
        self.clear()
        return line


class Connection:
    """Kept alive, and made anew when it is gone."""

    def __init__(self, port: int):
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, slowly: bool = False) -> tuple[int, dict[str, str], bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        done = False
        try:
            if slowly:
                for at in range(0, len(request), 10):
                    writer.write(request[at : at + 10])
                    await asyncio.sleep(0.02)
            else:
                writer.write(request)
            status, fields, _, body, done = await read_response(reader)
            return status, fields, body
        finally:
            if not done:
                writer.close()
                self.streams = None


class Load:
    def __init__(self, rate: float, mix: dict[str, float]):
        self.rate, self.mix = rate, mix
        self.port = self.admin = 0
        self.seen = Seen()
        self.running = asyncio.Event()
        self.under_way = 0
        self.number = itertools.count(1)
        self.held: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task] = []
        # For proving that a failure is noticed.
        self.doomed = False

    async def start(self, port: int, admin: int) -> None:
        self.port, self.admin = port, admin
        for _ in range(int(self.mix.pop("idle", 0))):
            self.held.append((await asyncio.open_connection("127.0.0.1", self.port))[1])
        total = sum(self.mix.values())
        # What is slow by its nature has a connection of its own, and so have hits, or they would delay what comes
        # after them.
        apart = {name: weight for name, weight in self.mix.items() if name in APART}
        others = {name: weight for name, weight in self.mix.items() if name not in APART and name != "hit"}
        start = time.monotonic() + 0.1
        for mix, workers in [
            ({"hit": self.mix["hit"]}, WORKERS),
            (others, WORKERS),
            *(({name: weight}, 1) for name, weight in apart.items()),
        ]:
            rate = self.rate * sum(mix.values()) / total
            for worker in range(workers):
                work = self.work(start + worker / rate, mix, worker / workers, workers / rate)
                self.tasks.append(asyncio.create_task(work))
        self.tasks.append(asyncio.create_task(self.watch_itself()))
        self.running.set()

    async def watch_itself(self) -> None:
        """How late this process is by itself is nothing that the gateway is to blame for."""
        while True:
            due = time.monotonic() + HICCUP_S
            await asyncio.sleep(HICCUP_S)
            self.seen.hiccup_ms = max(self.seen.hiccup_ms, (time.monotonic() - due) * 1000)

    async def work(self, due: float, mix: dict[str, float], phase: float, every_s: float) -> None:
        connection, admin = Connection(self.port), Connection(self.admin)
        turns = _dealt(mix, phase)
        while True:
            if not self.running.is_set():
                await self.running.wait()
                due = time.monotonic() + every_s * phase
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not self.running.is_set():
                continue
            self.under_way += 1
            kind = next(turns)
            try:
                call = getattr(self, f"do_{kind}")(connection, admin)
                await asyncio.wait_for(call, LOST_AFTER_S)
            except Exception as error:
                self.seen.troubles.append((kind, f"{kind}: {error or type(error).__name__}"))
            finally:
                self.under_way -= 1
            self.seen.ms.setdefault(kind, []).append((time.monotonic() - due) * 1000)
            due += every_s

    async def pause(self) -> None:
        self.running.clear()
        while self.under_way:
            await asyncio.sleep(0.005)

    # One method for each class of the mix
    # -----------------------------------------------------------------------------------

    async def whole(self, connection: Connection, url: str, *fields: str, slowly: bool = False) -> None:
        if self.doomed:
            url = "/steady/fail/now"
        status, _, body = await connection.ask(_request(url, *fields), slowly)
        if status != 200:
            raise Trouble(f"{url} was answered with {status}: {body[:80]!r}")
        if wrong := bodies.complaint(url, body):
            raise Trouble(wrong)

    async def do_hit(self, connection: Connection, _admin: Connection) -> None:
        await self.whole(connection, f"/steady/hit/{next(self.number) % HITS}")

    async def do_pass(self, connection: Connection, _admin: Connection) -> None:
        await self.whole(connection, f"/steady/pass/{next(self.number)}")

    async def do_miss(self, connection: Connection, _admin: Connection) -> None:
        await self.whole(connection, f"/steady/miss/{next(self.number)}")

    async def do_large(self, connection: Connection, _admin: Connection) -> None:
        await self.whole(connection, f"/steady/large/{next(self.number) % 4}")

    async def do_slow(self, connection: Connection, _admin: Connection) -> None:
        await self.whole(connection, f"/steady/hit/{next(self.number) % HITS}", slowly=True)

    async def do_condition(self, connection: Connection, _admin: Connection) -> None:
        url = f"/steady/kept/{next(self.number) % HITS}"
        status, _, body = await connection.ask(_request(url, f'If-None-Match: "{url}"'))
        if status != 304 and (status != 200 or bodies.complaint(url, body)):
            raise Trouble(f"{url} was answered with {status} and {body[:80]!r}, and not with 304")

    async def do_range(self, connection: Connection, _admin: Connection) -> None:
        url, first = f"/steady/large/{next(self.number) % 4}", next(self.number) * 7919 % (LARGE_BYTES - 5000)
        status, _, body = await connection.ask(_request(url, f"Range: bytes={first}-{first + 4999}"))
        right = bodies.make(url, 1, LARGE_BYTES)
        # What was not stored at this moment comes whole.
        if not (status == 206 and body == right[first : first + 5000]) and not (status == 200 and body == right):
            raise Trouble(f"{url} from {first} was answered with {status} and {len(body)} bytes that are not those")

    async def do_purge(self, connection: Connection, admin: Connection) -> None:
        url = f"/steady/purged/{next(self.number) % 4}"
        request = f"POST /purge?prefix={url} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
        status, _, body = await admin.ask(request.encode())
        if status != 200 or "purged" not in json.loads(body):
            raise Trouble(f"a purge was answered with {status}: {body[:80]!r}")
        await self.whole(connection, url)

    async def do_scrape(self, _connection: Connection, admin: Connection) -> None:
        status, _, body = await admin.ask(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        if status != 200 or b"pilotlight_requests_total" not in body:
            raise Trouble(f"a scrape was answered with {status}")


def _request(url: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {url} HTTP/1.1", "Host: steady.test", *fields]).encode() + b"\r\n\r\n"


def _dealt(mix: dict[str, float], phase: float):
    """Classes in proportion to their weights, spread evenly, the same in every run (the largest remainder goes next)."""
    owed = {name: weight * phase for name, weight in mix.items()}
    total = sum(mix.values())
    while True:
        for name, weight in mix.items():
            owed[name] += weight / total
        name = max(owed, key=owed.get)
        owed[name] -= 1
        yield name


async def main() -> None:
    origin = Origin()
    server = await asyncio.start_server(origin.serve, "127.0.0.1", 0, backlog=256)
    load = Load(float(sys.argv[1]), json.loads(sys.argv[2]))
    print("origin", server.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := (await orders.readline()).decode().split():
        answer = "done"
        match line:
            case ["start", port, admin]:
                await load.start(int(port), int(admin))
            case ["take"]:
                answer = load.seen.take()
            case ["pause"]:
                await load.pause()
            case ["resume"]:
                load.running.set()
            case ["spoil", how]:
                origin.spoil, load.doomed = how, how == "fail"
        print(answer, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
