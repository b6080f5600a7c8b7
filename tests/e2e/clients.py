"""Real HTTP clients behind one interface, for the table of cases in test_clients.py.

A driver takes steps and performs them in order, on one connection where the client keeps it, and gives one `Answer` for
each. It follows no redirect, retries nothing, and decodes Content-Encoding as its client does. What must not be here:
knowledge of what a case expects.
"""

import asyncio
import base64
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from harness import Headers

TIMEOUT = 20


@dataclass(frozen=True)
class Step:
    """One request. `target` is relative to the front, or absolute."""

    target: str
    method: str = "GET"
    headers: dict = field(default_factory=dict)
    body: bytes | None = None
    chunked: bool = False  # the body is sent without a length
    expect: bool = False  # with Expect: 100-continue
    http10: bool = False


@dataclass
class Answer:
    status: int
    headers: Headers
    body: bytes
    version: str = ""  # "1.0", "1.1" or "2"
    interim: list = field(default_factory=list)  # only where the client shows them
    trailers: Headers = field(default_factory=Headers)


def pieces(body):
    """A body in three parts, as a generator: the client cannot know its length."""
    third = len(body) // 3 + 1
    for at in range(0, len(body), third):
        yield body[at : at + third]


class Curl:
    """One process for all steps, so that it keeps the connection."""

    name = "curl"

    def __init__(self, directory):
        self.directory = Path(directory)

    def run(self, base, steps, ca=None):
        command = ["curl"]
        for at, step in enumerate(steps):
            command += ["--next"] if at else []
            command += self.arguments(base, at, step, ca)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT + 5)
        assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr}\n{command}"
        return [self.answer(at, step) for at, step in enumerate(steps)]

    def arguments(self, base, at, step, ca):
        head, body, data = (self.directory / f"{at}.{what}" for what in ("head", "body", "data"))
        body.write_bytes(b"")
        yield from ["-sS", "--path-as-is", "--globoff", "--max-time", str(TIMEOUT), "-D", head, "-o", body]
        yield from ["--cacert", ca, "--http2"] if ca else ["--http1.0" if step.http10 else "--http1.1"]
        if step.method == "HEAD":
            yield "-I"
        elif step.method != "GET" or step.body is not None:
            yield from ["-X", step.method]
        for name, value in step.headers.items():
            yield from ["-H", f"{name}: {value}"]
            if name == "Accept-Encoding":
                yield "--compressed"
        if step.body is not None:
            data.write_bytes(step.body)
            yield from ["--data-binary", f"@{data}", "-H", "Content-Type: application/octet-stream"]
            yield from ["-H", "Expect: 100-continue" if step.expect else "Expect:"]
        if step.chunked and not ca:
            yield from ["-H", "Transfer-Encoding: chunked"]
        yield step.target if "://" in step.target else base + step.target

    def answer(self, at, step):
        """Reads a header dump: interim heads, the final head, and trailers behind it."""
        blocks = (self.directory / f"{at}.head").read_bytes().decode("latin-1").split("\r\n\r\n")
        answer = None
        interim = []
        for block in filter(None, blocks):
            first, *lines = block.split("\r\n")
            match = re.match(r"HTTP/([0-9.]+) ([0-9]{3})", first)
            if not match:
                answer.trailers = Headers(parsed([first, *lines]))
                continue
            status = int(match[2])
            if status < 200:
                interim.append(status)
                continue
            answer = Answer(status, Headers(parsed(lines)), b"", match[1], interim)
        answer.body = (self.directory / f"{at}.body").read_bytes()
        # With -I the output is the head once more; whatever else came shows behind it.
        if step.method == "HEAD":
            answer.body = answer.body.removeprefix((self.directory / f"{at}.head").read_bytes())
        return answer


def parsed(lines):
    for line in lines:
        name, _, value = line.partition(":")
        yield name, value.strip()


class Requests:
    name = "requests"

    def run(self, base, steps, ca=None):
        import requests

        def one(session, step):
            data = pieces(step.body) if step.chunked else step.body
            url = step.target if "://" in step.target else base + step.target
            got = session.request(
                step.method, url, headers=step.headers, data=data, allow_redirects=False, timeout=TIMEOUT
            )
            fields = Headers(got.raw.headers.iteritems())
            return Answer(got.status_code, fields, got.content, {10: "1.0", 11: "1.1"}[got.raw.version])

        with requests.Session() as session:
            session.trust_env = False
            session.verify = ca or True
            # A session keeps cookies and would send them by itself: every step says what it sends.
            answers = []
            for step in steps:
                answers.append(one(session, step))
                session.cookies.clear()
            return answers


class Httpx:
    name = "httpx"

    def run(self, base, steps, ca=None):
        import httpx

        def one(client, step):
            content = pieces(step.body) if step.chunked else step.body
            url = step.target if "://" in step.target else base + step.target
            got = client.request(step.method, url, headers=step.headers, content=content)
            client.cookies.clear()
            fields = Headers((n.decode("latin-1"), v.decode("latin-1")) for n, v in got.headers.raw)
            return Answer(got.status_code, fields, got.content, got.http_version.removeprefix("HTTP/"))

        with httpx.Client(http2=bool(ca), verify=ca or True, timeout=TIMEOUT, trust_env=False) as client:
            return [one(client, step) for step in steps]


class Aiohttp:
    name = "aiohttp"

    def run(self, base, steps, ca=None):
        return asyncio.run(self.all(base, steps))

    async def all(self, base, steps):
        import aiohttp
        import yarl

        async def slowly(body):
            for piece in pieces(body):
                yield piece

        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            answers = []
            for step in steps:
                data = slowly(step.body) if step.chunked else step.body
                url = step.target if "://" in step.target else base + step.target
                async with session.request(
                    step.method, yarl.URL(url, encoded=url.isascii()), headers=step.headers, data=data,
                    allow_redirects=False, expect100=step.expect,
                ) as got:
                    fields = Headers((n.decode("latin-1"), v.decode("latin-1")) for n, v in got.raw_headers)
                    version = f"{got.version.major}.{got.version.minor}"
                    answers.append(Answer(got.status, fields, await got.read(), version))
            return answers


class Fetch:
    """Node's fetch."""

    name = "fetch"
    script = Path(__file__).with_name("fetch.mjs")

    def run(self, base, steps, ca=None):
        given = [
            {
                "url": step.target if "://" in step.target else base + step.target,
                "method": step.method,
                "headers": step.headers,
                "body": None if step.body is None else base64.b64encode(step.body).decode(),
                "chunked": step.chunked,
            }
            for step in steps
        ]
        done = subprocess.run(
            ["node", self.script], input=json.dumps(given), capture_output=True, text=True, timeout=TIMEOUT + 5
        )
        assert done.returncode == 0, f"node ended with {done.returncode}: {done.stderr}"
        return [
            Answer(got["status"], Headers(map(tuple, got["headers"])), base64.b64decode(got["body"]))
            for got in json.loads(done.stdout)
        ]
