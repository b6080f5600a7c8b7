"""The clients of the story: some poll heavy endpoints, some make light calls at a constant rate. What they saw is kept
call by call. What must not be here: what stands behind the port."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

HOST = "api.example.com"
HEAVY = [f"/api/v1/farms/{farm}/ndvi/latest/" for farm in range(1, 9)]
LIGHT = "/api/v1/light/"
CALL_TIMEOUT_S = 15.0


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], str, bytes, bool]:
    """The next one: status, fields with lower-case names, head, body, and whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
    status, body = int(head.split(" ", 2)[1]), b""
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"])) if status != 304 else b""
    elif status != 304:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    return status, fields, head, body, "close" not in fields.get("connection", "")


class Client:
    """A pool of keep-alive connections to one port."""

    def __init__(self, port):
        self.port = port
        self.idle = []

    async def get(self, path):
        """(status, head, body); any trouble on the wire is an exception."""
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        done = False
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: application/json\r\n\r\n".encode())
            status, _, head, body, done = await read_response(reader)
            return status, head, body
        finally:
            if done:
                self.idle.append((reader, writer))
            else:
                writer.close()

    def close(self):
        for _, writer in self.idle:
            writer.close()


@dataclass(slots=True)
class Call:
    """One call: when it was due (monotonic clock), how long until its answer or its failure, and its status or None."""

    due_s: float
    ms: float
    status: int | None


@dataclass
class Seen:
    """What the clients saw."""

    heavy: list[Call] = field(default_factory=list)
    light: list[Call] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    oldest_s: float = 0.0

    @property
    def calls(self):
        return len(self.heavy) + len(self.light)


async def call(client, path, due, calls, seen):
    """One call that must succeed; the body, or None when it failed."""
    status, body, trouble = None, b"", ""
    try:
        status, _, body = await asyncio.wait_for(client.get(path), CALL_TIMEOUT_S)
    except Exception as e:
        trouble = f"{type(e).__name__} {e}"
    calls.append(Call(due, (time.monotonic() - due) * 1000, status))
    if status == 200:
        return body
    seen.failed.append(f"{path}: {trouble or status}")
    return None


async def poll_heavy(client, number, end, seen, pause_s):
    # Clients that have nothing to do with each other do not poll in step.
    spread = random.Random(number)
    turn = number
    await asyncio.sleep(pause_s * number / 8)
    while time.monotonic() < end:
        body = await call(client, HEAVY[turn % len(HEAVY)], time.monotonic(), seen.heavy, seen)
        if body is not None:
            seen.oldest_s = max(seen.oldest_s, time.time() - json.loads(body)["data"]["generated"])
        turn += 1
        await asyncio.sleep(pause_s * spread.uniform(0.8, 1.2))


async def at_rate(interval_s, start, end, what):
    """Starts `what(due)` every interval, whether or not the earlier ones have ended; returns once all have."""
    tasks, number = [], 0
    while (due := start + number * interval_s) < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(what(due)))
        number += 1
    await asyncio.gather(*tasks)


def jobs(heavy, light, start, end, seen, pause_s):
    """Eight pollers and twenty light calls a second, to be awaited."""
    made = [poll_heavy(heavy, number, end, seen, pause_s) for number in range(8)]
    made.append(at_rate(0.05, start, end, lambda due: call(light, LIGHT, due, seen.light, seen)))
    return made


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("inf")
