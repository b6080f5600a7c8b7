"""`pilotlight demo`, as somebody runs it who has just cloned the repository: default ports, nothing set up."""

import signal
import subprocess

import pytest

from harness import HttpError, binary, get, is_hit, wait_until

HTTP, ADMIN = 8080, 9180


def answers(port, path):
    try:
        return get(port, path, timeout=2).status == 200
    except (OSError, HttpError):
        return False


@pytest.mark.timeout(90)
def test_the_demo_is_warm_once_it_says_so(tmp_path):
    assert not answers(HTTP, "/") and not answers(ADMIN, "/healthz"), "the default ports 8080 and 9180 are taken"
    with open(tmp_path / "log", "w+") as log:
        demo = subprocess.Popen([binary(), "demo"], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: demo.poll() is not None or answers(ADMIN, "/readyz"), 40, "the demo's readiness", 0.1)
            assert demo.poll() is None, (tmp_path / "log").read_text()
            for farm in range(1, 9):
                response = get(HTTP, f"/api/v1/farms/{farm}/ndvi/latest/")
                assert response.status == 200 and is_hit(response), response
                assert response.elapsed < 0.02, f"farm {farm} took {response.elapsed * 1000:.1f} ms"
                assert response.json()["status"] == 0
            demo.send_signal(signal.SIGINT)
            assert demo.wait(35) == 0
        finally:
            if demo.poll() is None:
                demo.kill()
            demo.wait()
        log.seek(0)
        text = log.read()
    assert "panicked" not in text
    assert "curl" in text and str(HTTP) in text, "it prints what to try"
    assert "\x1b" not in text, "no colours where there is no terminal"
