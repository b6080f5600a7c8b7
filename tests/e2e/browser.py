"""Headless Chromium, driven over the Chrome DevTools Protocol: what a person sees and does, and what the browser sent.

Only what the tests of the page need. It talks to nothing but 127.0.0.1 (every other name is unresolvable to it), keeps its profile in a folder
of its own, and is ended with the block.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

from harness import wait_until

CHROMIUM = "chromium"
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--disable-default-apps", "--lang=en-GB",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
]


class PageError(AssertionError):
    """Something that was run in the page threw."""


class Browser:
    """One tab. `requests` are the URLs it asked for, `complaints` its console errors, warnings and uncaught exceptions."""

    def __init__(self, width=1400, height=900):
        self.size = (width, height)
        self.requests = []
        self.complaints = []
        self._last_id = 0

    def __enter__(self):
        self._profile = tempfile.mkdtemp(prefix="pilotlight-chromium-")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TZ": "UTC"}
        )
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self):
        port_file = Path(self._profile, "DevToolsActivePort")

        def said():
            assert self._process.poll() is None, f"chromium ended with {self._process.returncode}"
            lines = port_file.read_text().split() if port_file.exists() else []
            return lines if len(lines) == 2 else None

        port, path = wait_until(said, 30, "chromium's debugging port", 0.05)
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, max_queue=None)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(*self.size)

    def __exit__(self, *_):
        # First, so that there is nobody whose events would have to be read before the connection is over.
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if hasattr(self, "_socket"):
            self._socket.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    # --- The protocol

    def call(self, method, **params):
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        end = time.monotonic() + 30
        while True:
            answer = json.loads(self._socket.recv(timeout=max(0.1, end - time.monotonic())))
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"])[:1000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"])[:1000])
            # It is the tests that read the heat map back, pixel by pixel; the page only draws.
            case "Log.entryAdded" if "getImageData" in params["entry"]["text"]:
                pass
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(json.dumps(params["entry"])[:1000])

    # --- What a person does

    def open(self, url):
        self.call("Page.navigate", url=url)
        wait_until(lambda: self.run("document.readyState === 'complete'"), 15, f"{url} to load")

    def run(self, expression):
        """The value of a JavaScript expression; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise PageError(f"{expression}: {json.dumps(done['exceptionDetails'])[:1000]}")
        return done["result"].get("value")

    def text(self, selector):
        """What is to be read there; None when there is no such element, or it is not shown."""
        return self.run(f"(e => e && e.checkVisibility() ? e.innerText : null)(document.querySelector({json.dumps(selector)}))")

    def texts(self, selector):
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")

    def wait(self, condition, what, timeout=10.0):
        """The first true value of a function, or of a JavaScript expression."""
        return wait_until((lambda: self.run(condition)) if isinstance(condition, str) else condition, timeout, what, 0.1)

    def click(self, selector):
        at = self.run(f"""(e => {{ e.scrollIntoView({{block: "center"}}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def type(self, text):
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key, code=None, text=None, modifiers=0):
        """A key by its name: Tab, Enter, Space…; modifiers 8 is Shift."""
        number = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}.get(key, 0)
        text = {"Enter": "\r", " ": " "}.get(key, "") if text is None else text
        common = {"key": key, "code": code or key, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def focused(self):
        """The element that has the focus, as 'tag#id' or its text, and whether that can be seen."""
        return self.run("""(e => [e.id ? `${e.localName}#${e.id}` : `${e.localName} ${e.innerText.trim()}`,
            e.matches(':focus-visible') && getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)""")

    # --- What a person sees

    def resize(self, width, height, scale=1):
        self.size = (width, height)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def prefer(self, scheme):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        """Of the whole page, whatever its height."""
        width, height = self.size
        full = self.run("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=full, deviceScaleFactor=2 if width < 500 else 1, mobile=False)
        time.sleep(0.3)
        image = self.call("Page.captureScreenshot", format="png")
        self.resize(width, height)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(image["data"]))
