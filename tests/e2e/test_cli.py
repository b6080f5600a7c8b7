"""The commands: what they print, and how they end."""

import re
import socket

import pytest

from harness import Gateway, free_port, is_hit, run, wait_until
from slow_origin import Reply

GOOD = """\
[server]
listen = ["127.0.0.1:18080"]
shards = 1

[upstreams.django]
servers = ["127.0.0.1:8000"]
first_byte_timeout = "30s"

[[routes]]
path = "/"
upstream = "django"
[routes.cache]
ttl = "6h"
"""


def one_line(result, code):
    """The single line that a refusal consists of."""
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def write(tmp_path, text):
    path = tmp_path / "pilotlight.toml"
    path.write_text(text)
    return path


WRONG = {
    "an unknown key": (GOOD.replace("shards = 1", "shardz = 1"), "shardz = 1", "shardz"),
    "an unknown key in a route": (GOOD.replace("ttl = ", "tttl = "), "tttl = ", "tttl"),
    "an unknown table": (GOOD + "\n[serverr]\nx = 1\n", "[serverr]", "serverr"),
    "a bad duration": (GOOD.replace('"30s"', '"30 parsecs"'), "first_byte_timeout", ""),
    "a negative duration": (GOOD.replace('"6h"', '"-6h"'), "ttl = ", ""),
    "a route to an upstream that is not there": (GOOD.replace('upstream = "django"', 'upstream = "flask"'), 'upstream = "flask"', "flask"),
    "a bad address": (GOOD.replace("127.0.0.1:8000", "127.0.0.1:notaport"), "servers", ""),
    "a bad share": (GOOD.replace('first_byte_timeout = "30s"', "background_share = 1.5"), "background_share", ""),
    "a listener twice": (GOOD.replace('["127.0.0.1:18080"]', '["127.0.0.1:18080", "127.0.0.1:18080"]'), "listen = ", "18080"),
    "a syntax error": (GOOD.replace("shards = 1", "shards = = 1"), "shards = = 1", ""),
}


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("text, at, names", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_one_line_with_its_place(tmp_path, command, text, at, names):
    path = write(tmp_path, text)
    line = one_line(run(command, "--config", path), 1)
    number = next(n for n, content in enumerate(text.splitlines(), 1) if content.startswith(at))
    place = re.search(re.escape(str(path)) + r":(\d+):(\d+): (.+)", line)
    assert place, line
    assert int(place[1]) == number, f"line {number} expected: {line}"
    assert int(place[2]) >= 1 and names in place[3]


def test_listeners_that_overlap_are_refused(tmp_path):
    text = GOOD.replace('["127.0.0.1:18080"]', '["127.0.0.1:18080", "0.0.0.0:18080"]')
    line = one_line(run("check", "--config", write(tmp_path, text)), 1)
    assert re.search(r"pilotlight\.toml:\d+:\d+: ", line) and "18080" in line


def test_the_admin_address_may_not_overlap_a_listener(tmp_path):
    text = GOOD + '\n[admin]\nlisten = "127.0.0.1:18080"\n'
    line = one_line(run("check", "--config", write(tmp_path, text)), 1)
    assert re.search(r"pilotlight\.toml:\d+:\d+: ", line) and "18080" in line


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, command):
    for path in (tmp_path / "missing.toml", tmp_path):
        assert str(path) in one_line(run(command, "--config", path), 1)


def test_a_file_that_is_not_utf8_is_one_line(tmp_path):
    path = tmp_path / "latin1.toml"
    path.write_bytes(b"[server]\n# caf\xe9\n")
    assert str(path) in one_line(run("check", "--config", path), 1)


@pytest.mark.parametrize("args", [
    ["serve", "--listen", "nonsense"],
    ["serve", "--no-such-flag"],
    ["serve", "--upstream", "127.0.0.1:notaport"],
    ["serve", "--shards", "-1"],
    ["no-such-command"],
    ["check"],
    ["purge"],
    ["warm"],
])
def test_wrong_arguments_end_with_1(args):
    result = run(*args)
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    assert result.stderr.strip() and "panicked" not in result.stderr


def test_check_prints_the_effective_configuration(tmp_path):
    result = run("check", "--config", write(tmp_path, GOOD))
    assert result.returncode == 0, result.stderr
    for expected in ("127.0.0.1:18080", "django", "127.0.0.1:8000", "6h", "background_share", "max_object", "9180"):
        assert expected in result.stdout, f"{expected} is not in\n{result.stdout}"


def test_what_check_prints_loads_again_to_the_same(tmp_path):
    printed = run("check", "--config", write(tmp_path, GOOD)).stdout
    again = run("check", "--config", write(tmp_path, printed))
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["demo"], ["purge"], ["warm"], ["status"]], ids=lambda c: " ".join(c))
def test_help_is_there(command):
    result = run(*command, "--help")
    assert result.returncode == 0 and len(result.stdout) > 100
    assert "\x1b" not in result.stdout, "NO_COLOR is honoured"


@pytest.mark.parametrize("which", ["listen", "admin"])
def test_a_port_that_is_taken_ends_with_2(which):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        ports = {"listen": free_port(), "admin": free_port(), which: taken}
        result = run("serve", "--upstream", "127.0.0.1:1", "--listen", f"127.0.0.1:{ports['listen']}",
                     "--admin", f"127.0.0.1:{ports['admin']}", "--shards", "2")
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if f":{taken}" in line]
    assert len(complaints) == 1 and "panicked" not in result.stderr, (result.stdout, result.stderr)


def test_a_second_start_ends_with_2_and_harms_nobody(origin):
    with Gateway(args=["--upstream", origin.address]) as gateway:
        result = run(*gateway.command[1:])
        assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
        assert all(gateway.get(f"/{n}").status == 200 for n in range(20))


def test_a_socket_in_a_folder_that_is_not_there_ends_with_2(tmp_path):
    result = run("serve", "--upstream", "127.0.0.1:1", "--listen", f"unix:{tmp_path}/no/such/folder/s", "--admin",
                 f"127.0.0.1:{free_port()}")
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)


# --- Asking a running gateway

CONFIG = """
[upstreams.app]
servers = ["{origin}"]
[[routes]]
path = "/"
upstream = "app"
[routes.cache]
ttl = "1h"
"""


def test_purge_warm_and_status(origin):
    origin.on("/", lambda r: Reply(f"{r.target} {r.number}"))
    with Gateway(CONFIG, origin=origin.address) as gateway:
        admin = ["--admin", f"127.0.0.1:{gateway.admin}"]

        result = run("warm", *admin, f"{gateway.url}/w/1", f"{gateway.url}/w/2")
        assert result.returncode == 0, result.stderr
        wait_until(lambda: is_hit(gateway.get("/w/1")) and is_hit(gateway.get("/w/2")), 5, "the warmed entries")
        assert (origin.count("/w/1"), origin.count("/w/2")) == (1, 1)

        assert gateway.get("/p").text == "/p 1"
        result = run("purge", *admin, "--url", f"{gateway.url}/p")
        assert result.returncode == 0, result.stderr
        assert gateway.get("/p").text == "/p 2"

        result = run("purge", *admin, "--prefix", f"{gateway.url}/w/")
        assert result.returncode == 0, result.stderr
        assert not is_hit(gateway.get("/w/1")) and not is_hit(gateway.get("/w/2")) and is_hit(gateway.get("/p"))

        result = run("status", *admin)
        assert result.returncode == 0 and result.stdout.strip(), result.stderr


@pytest.mark.parametrize("args", [["status"], ["purge", "--url", "http://127.0.0.1/x"], ["warm", "http://127.0.0.1/x"]])
def test_without_a_running_gateway_there_is_one_line_and_2(args):
    line = one_line(run(args[0], "--admin", f"127.0.0.1:{free_port()}", *args[1:]), 2)
    assert "127.0.0.1" in line
