"""Starts the gateway for a test and talks to it over plain sockets.

Standard library only, so that every test and script can import it. Ports are chosen free, processes are ended by
their own id, and nothing is shared between two tests. What must not be here: knowledge of what a test expects.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def binary():
    """The program under test: PILOTLIGHT_BIN, or the release build."""
    return os.path.abspath(os.environ.get("PILOTLIGHT_BIN") or ROOT / "target" / "release" / "pilotlight")


_given_ports = set()


def free_port(host="127.0.0.1"):
    """A TCP port that nothing listens on now, and that this process was not given before."""
    while True:
        # Below the range that outgoing connections are given: one of those could take the port before its server does.
        port = random.randrange(10_000, 32_000)
        if port in _given_ports:
            continue
        with socket.socket() as s:
            try:
                s.bind((host, port))
            except OSError:
                continue
        _given_ports.add(port)
        return port


def wait_until(condition, timeout=10.0, what="the condition", interval=0.02):
    """The first true value of `condition()`; AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s for {what}")
        time.sleep(interval)


def wait_port(port, timeout=10.0, host="127.0.0.1", process=None):
    """Returns once something accepts on the port; fails early when `process` has ended."""

    def accepts():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode} before it listened on {port}")
        try:
            socket.create_connection((host, port), 1).close()
            return True
        except OSError:
            return False

    wait_until(accepts, timeout, f"port {port}", 0.05)


# --- HTTP client -----------------------------------------------------------------------------------------------------


class HttpError(Exception):
    """The exchange did not end as HTTP/1.1 says."""


class Closed(HttpError):
    """The connection was closed (or reset) before the first byte of a response: nothing was answered."""


class Truncated(HttpError):
    """The connection ended inside a response. `response` is what was seen of it."""

    def __init__(self, message, response=None):
        super().__init__(message)
        self.response = response


class Headers(list):
    """A list of (name, value) in wire order, with lookups that ignore case."""

    def get(self, name, default=None):
        """All values of the field joined by ', ', or the default."""
        values = self.all(name)
        return ", ".join(values) if values else default

    def all(self, name):
        name = name.lower()
        return [v for n, v in self if n.lower() == name]

    def __getitem__(self, key):
        if isinstance(key, str):
            value = self.get(key)
            if value is None:
                raise KeyError(key)
            return value
        return super().__getitem__(key)

    def __contains__(self, key):
        return bool(self.all(key)) if isinstance(key, str) else super().__contains__(key)


class Response:
    def __init__(self, status, reason, headers, body=b"", started=0.0, elapsed=0.0, first_byte=0.0, interim=()):
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body
        self.started = started  # time.monotonic() when the request was sent
        self.elapsed = elapsed  # seconds from there to the last byte
        self.first_byte = first_byte  # seconds from there to the first byte
        self.interim = list(interim)  # status codes of 1xx responses before it

    def get(self, name, default=None):
        return self.headers.get(name, default)

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)

    @property
    def cache_status(self):
        return self.headers.get("cache-status", "")

    @property
    def outcome(self):
        """'hit', 'miss', 'stale', ... the last pilotlight member of Cache-Status, as one word."""
        return outcome(self.cache_status)

    def __repr__(self):
        return f"<Response {self.status} {self.cache_status!r} {self.body[:60]!r} {self.elapsed * 1000:.1f} ms>"


def outcome(cache_status):
    """One word for a Cache-Status value: 'hit', the fwd reason ('miss', 'stale', 'bypass', ...), or 'none'."""
    params = [p.strip() for p in cache_status.split(";")]
    if "hit" in params[1:]:
        return "hit"
    for param in params[1:]:
        if param.startswith("fwd="):
            return param[4:]
    return "none"


def is_hit(response):
    return response.outcome == "hit"


class Connection:
    """One client connection. `port` may be a number, or the path of a unix socket."""

    def __init__(self, port, timeout=10.0, host="127.0.0.1", source=None):
        self.timeout = timeout
        if isinstance(port, str):
            self.authority = "localhost"
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(port)
        else:
            self.authority = f"{host}:{port}"
            self.sock = socket.create_connection((host, port), timeout, source_address=(source, 0) if source else None)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.closes = False  # the last response said that the connection ends

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Closed(str(e)) from e

    def request_bytes(self, method, path, headers=(), body=None):
        headers = list(headers.items() if isinstance(headers, dict) else headers)
        names = {n.lower() for n, _ in headers}
        if "host" not in names:
            headers.insert(0, ("Host", self.authority))
        if body is not None and "content-length" not in names and "transfer-encoding" not in names:
            headers.append(("Content-Length", str(len(body))))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
        return head.encode("latin-1") + (body or b"")

    def request(self, method="GET", path="/", headers=(), body=None):
        started = time.monotonic()
        self.send(self.request_bytes(method, path, headers, body))
        return self.read_response(method, started)

    def _fill(self):
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def _line(self, what):
        while b"\n" not in self.buffer:
            if not self._fill():
                raise Truncated(f"closed inside {what}: {bytes(self.buffer[:100])!r}")
        end = self.buffer.index(b"\n")
        line = bytes(self.buffer[:end]).rstrip(b"\r")
        del self.buffer[: end + 1]
        return line.decode("latin-1")

    def read_head(self, started=None):
        """(status, reason, Headers, seconds to the first byte) of the next response head, 1xx included."""
        started = time.monotonic() if started is None else started
        if not self.buffer and not self._fill():
            raise Closed("closed before a response")
        first_byte = time.monotonic() - started
        status_line = self._line("the status line")
        parts = status_line.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise HttpError(f"not a status line: {status_line!r}")
        headers = Headers()
        while line := self._line("the head"):
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        return int(parts[1]), parts[2] if len(parts) > 2 else "", headers, first_byte

    def read_response(self, method="GET", started=None):
        started = time.monotonic() if started is None else started
        interim = []
        while True:
            status, reason, headers, first_byte = self.read_head(started)
            if status >= 200 or status == 101:
                break
            interim.append(status)
        response = Response(status, reason, headers, b"", started, 0.0, first_byte, interim)
        self.closes = "close" in headers.get("connection", "").lower()
        try:
            response.body = self._body(method, status, headers)
        except Truncated as e:
            e.response = response
            raise
        response.elapsed = time.monotonic() - started
        return response

    def _body(self, method, status, headers):
        if method == "HEAD" or status in (101, 204, 304):
            return b""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = bytearray()
            while True:
                size = int(self._line("a chunk size").split(";")[0], 16)
                body += self.take(size)
                if size == 0:
                    while self._line("the trailers"):
                        pass
                    return bytes(body)
                if self._line("a chunk end"):
                    raise HttpError("no line end after a chunk")
        length = headers.get("content-length")
        if length is not None:
            return self.take(int(length))
        self.closes = True
        while self._fill():
            pass
        body = bytes(self.buffer)
        self.buffer.clear()
        return body

    def take(self, count):
        while len(self.buffer) < count:
            if not self._fill():
                raise Truncated(f"closed after {len(self.buffer)} of {count} bytes of the body")
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data


def http(port, method="GET", path="/", headers=(), body=None, timeout=10.0):
    """One request on a fresh connection."""
    with Connection(port, timeout) as connection:
        return connection.request(method, path, headers, body)


def get(port, path="/", headers=(), timeout=10.0):
    return http(port, "GET", path, headers, None, timeout)


# --- Prometheus text -------------------------------------------------------------------------------------------------

_SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*)(\{(.*)\})? (\S+)( \d+)?$')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


class Metrics(dict):
    """Sample text such as 'name{a="b"}' to its value."""

    def sum(self, name, **labels):
        """The sum of all samples of this name that carry these labels."""
        total = 0.0
        for key, value in self.items():
            sample, _, rest = key.partition("{")
            found = dict(_LABEL.findall(rest))
            if sample == name and all(found.get(k) == str(v) for k, v in labels.items()):
                total += value
        return total

    def has(self, name):
        return any(k == name or k.startswith((name + "{", name + "_bucket", name + "_count")) for k in self)


def parse_metrics(text):
    metrics = Metrics()
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if not match:
            raise AssertionError(f"not a Prometheus sample: {line!r}")
        metrics[match[1] + (match[2] or "")] = float(match[4])
    return metrics


# --- The gateway -----------------------------------------------------------------------------------------------------

DEFAULT_CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
shards = {shards}
[admin]
listen = "127.0.0.1:{admin}"
"""


class Gateway:
    """A running `pilotlight serve`, ended when the block ends.

    `config` is TOML in which {port}, {admin}, {shards}, {dir} and every name in `values` are replaced. Without a
    [server] or [admin] table the usual one is put in front. `config=None` passes no file: listen, admin and shards
    are then given as flags, before `args`.
    """

    def __init__(self, config=None, args=(), shards=2, wait_ready=True, env=None, allow_panic=False, **values):
        self.port = free_port()
        self.admin = free_port()
        self.shards = shards
        self.wait_ready = wait_ready
        self.allow_panic = allow_panic
        self.dir = tempfile.mkdtemp(prefix="pilotlight-test-")
        self.log_path = os.path.join(self.dir, "log")
        self.config_path = None
        self.env = {**os.environ, **(env or {})}
        self.process = None
        command = [binary(), "serve"]
        if config is None:
            command += ["--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin}"]
            command += ["--shards", str(shards)]
        else:
            if "[server]" not in config and "[admin]" not in config:
                config = DEFAULT_CONFIG + config
            for name, value in {"port": self.port, "admin": self.admin, "shards": shards, "dir": self.dir, **values}.items():
                config = config.replace("{" + name + "}", str(value))
            self.config_path = os.path.join(self.dir, "pilotlight.toml")
            Path(self.config_path).write_text(config)
            command += ["--config", self.config_path]
        self.command = command + list(args)

    def __enter__(self):
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.env, cwd=self.dir
            )
        try:
            self._wait("/readyz" if self.wait_ready else "/healthz")
        except BaseException:
            self._end()
            sys.stderr.write(self.log)
            shutil.rmtree(self.dir, ignore_errors=True)
            raise
        return self

    def _wait(self, path):
        def answered():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} at start:\n{self.log}")
            try:
                return http(self.admin, "GET", path, timeout=2).status == 200
            except (OSError, HttpError):
                return False

        wait_until(answered, 20, f"200 from {path}", 0.02)

    def __exit__(self, kind, _value, _trace):
        ended_by_itself = self.process.poll()
        self._end()
        log = self.log
        shutil.rmtree(self.dir, ignore_errors=True)
        if kind is not None:
            sys.stderr.write(f"--- gateway log (exit {ended_by_itself})\n{log[-20000:]}\n")
            return
        if not self.allow_panic:
            assert "panicked" not in log, f"the log tells of a panic:\n{log[-20000:]}"
        assert ended_by_itself in (None, 0), f"the gateway had ended with {ended_by_itself}:\n{log[-20000:]}"

    def _end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def pid(self):
        return self.process.pid

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self):
        return f"http://127.0.0.1:{self.admin}"

    @property
    def log(self):
        try:
            return Path(self.log_path).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def get(self, path="/", headers=(), timeout=10.0):
        return http(self.port, "GET", path, headers, None, timeout)

    def http(self, method="GET", path="/", headers=(), body=None, timeout=10.0):
        return http(self.port, method, path, headers, body, timeout)

    def connect(self, timeout=10.0):
        return Connection(self.port, timeout)

    def rss_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def metrics(self):
        response = http(self.admin, "GET", "/metrics", timeout=5)
        assert response.status == 200, response
        return parse_metrics(response.text)

    def status(self):
        response = http(self.admin, "GET", "/status", timeout=5)
        assert response.status == 200, response
        return response.json()

    def ready(self):
        """The /readyz response."""
        return http(self.admin, "GET", "/readyz", timeout=5)

    def purge(self, url=None, prefix=None, tag=None, timeout=10.0):
        """POST /purge. A url or prefix that starts with '/' is taken to be on this gateway."""
        what = {"url": url, "prefix": prefix, "tag": tag}
        query = {k: (self.url + v if v.startswith("/") else v) for k, v in what.items() if v is not None}
        response = http(self.admin, "POST", "/purge?" + urllib.parse.urlencode(query), (), b"", timeout)
        assert response.status == 200, response
        return response

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=35.0):
        return self.process.wait(timeout)

    def terminate(self, timeout=35.0):
        """SIGTERM; the exit code."""
        self.signal()
        return self.wait(timeout)


def run(*args, timeout=20.0, env=None, cwd=None):
    """Runs `pilotlight ARGS…` to its end; a CompletedProcess with text output."""
    return subprocess.run(
        [binary(), *map(str, args)], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1", **(env or {})}, cwd=cwd,
    )
