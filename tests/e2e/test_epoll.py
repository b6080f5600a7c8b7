"""Where io_uring is forbidden, as containers' seccomp filters do, the gateway runs on epoll and says so."""

import stat
import sys

from harness import Gateway, binary, is_hit
from slow_origin import Origin, Reply

# Runs a program with a seccomp filter under which io_uring_setup fails with EPERM.
WITHOUT_IO_URING = """#!{python}
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
SYSCALL = 425  # io_uring_setup, the same on every architecture
code = b"".join(struct.pack("HBBI", *i) for i in [
    (0x20, 0, 0, 0),            # load the system call's number
    (0x15, 0, 1, SYSCALL),      # is it that one?
    (0x06, 0, 0, 0x00050001),   # then EPERM
    (0x06, 0, 0, 0x7FFF0000),   # else allow
])
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""

CONFIG = """
[server]
listen = ["127.0.0.1:{port}"]
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.app]
servers = ["{origin}"]
first_byte_timeout = "500ms"
[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


def test_without_io_uring(tmp_path, monkeypatch):
    wrapper = tmp_path / "without-io-uring"
    wrapper.write_text(WITHOUT_IO_URING.format(python=sys.executable, binary=str(binary())))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PILOTLIGHT_BIN", str(wrapper))
    with Origin() as origin:
        origin.on("/", lambda r: Reply("x" * 100_000))
        origin.on("/hangs", lambda r: Reply("late", delay=3))
        with Gateway(CONFIG, origin=origin.address) as gateway:
            assert {shard["driver"] for shard in gateway.status()["shards"]} == {"epoll"}
            for n in range(20):
                assert gateway.get(f"/{n}").text == "x" * 100_000
            for n in range(20):
                assert is_hit(gateway.get(f"/{n}"))
            assert gateway.get("/hangs").status == 504
