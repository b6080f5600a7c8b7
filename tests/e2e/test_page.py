"""The live page in a real browser: every panel shows the truth of a load that the test makes, and nothing leaves the machine.

Screenshots of the page in light and dark, wide and narrow, are left in target/page/ for people to look at.
"""

import json
import os
import re
import socket
import subprocess
import threading
import time

import pytest

from browser import Browser
from harness import ROOT, Connection, Gateway, binary, free_port, get, http, is_hit, run, wait_until
from slow_origin import Reply

CONFIG = """
[upstreams.django]
servers = ["{origin}"]
max_concurrency = 2
reserve = 0

[upstreams.ndvi]
servers = ["{origin}"]
max_concurrency = 6

[[routes]]
path = "/"
upstream = "django"
cache = false

[[routes]]
path = "/farms/"
upstream = "ndvi"
[routes.cache]
ttl = "1h"

[[routes]]
name = "slow ones"
path = "/slow/"
upstream = "django"

[[warm]]
name = "farms"
host = "api.example.com"
paths = ["/farms/{1..3}"]
"""


@pytest.fixture
def gateway(origin):
    origin.on("/", Reply("light", {"Cache-Control": "no-store"}))
    origin.on("/farms/", lambda r: Reply("x" * 1000, {"Cache-Tag": "farms"}))
    with Gateway(CONFIG, origin=origin.address) as running:
        yield running


@pytest.fixture
def browser(gateway):
    """The page, with a first second on it; at the end nothing was complained about, and nobody else was asked."""
    with Browser() as running:
        running.open(gateway.admin_url + "/")
        running.wait("view.now !== null", "the first second")
        yield running
        assert running.complaints == []
        assert [url for url in running.requests if not url.startswith(gateway.admin_url + "/")] == []


class Load:
    """Asks for `path` about `rate` times a second, in a thread, for as long as the block lasts."""

    def __init__(self, gateway, path, rate, host="api.example.com"):
        self.gateway, self.path, self.rate, self.host = gateway, path, rate, host
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        with Connection(self.gateway.port) as connection:
            due = time.monotonic()
            while not self.ended.is_set():
                assert connection.request("GET", self.path, {"Host": self.host}).status == 200
                due += 1 / self.rate
                time.sleep(max(0, due - time.monotonic()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def figure(text):
    """The first number in a text; a dash, which stands for nothing to tell, is zero."""
    return 0.0 if text.startswith("–") else float(re.search(r"[\d,]+(\.\d+)?", text)[0].replace(",", ""))


def cells(browser, panel):
    """The rows of a panel's table, as lists of texts."""
    return browser.run(f"[...document.querySelectorAll('#{panel} tbody tr')].map(r => [...r.children].map(c => c.innerText.trim()))")


def about(value, expected, tolerance=0.3):
    return abs(value - expected) <= tolerance * expected


def test_requests_hits_and_routes_are_those_of_the_load(gateway, browser):
    with Load(gateway, "/farms/1", 90), Load(gateway, "/light", 30):
        browser.wait(lambda: about(figure(browser.text("#requests .value")), 120), "120 requests/s", 20)
        browser.wait(lambda: about(figure(browser.text("#hits .value")), 75, 0.1), "a hit ratio of 75 %")
        browser.wait(lambda: about(figure(browser.text("#fetches .value")), 30), "30 upstream requests/s")
        rows = browser.wait(lambda: (r := cells(browser, "routes")) and about(figure(r[1][2]), 90) and r, "the routes' rates")
        assert [row[0] for row in rows] == ["/", "/farms/", "slow ones"]
        root, farms, slow = rows
        assert about(figure(root[2]), 30) and root[3] == "0 %" and farms[3] == "100 %"
        assert slow[2:] == ["0", "–", "0", "–", "–", "–", "–"], "nobody asked for it"
        assert all(re.fullmatch(r"[\d.]+ (µs|ms)", text) for text in farms[5:]), farms
        assert browser.run("document.querySelectorAll('#requests path.line').length") == 2
        # Painted are the heat map and the strips of the two routes that were asked for.
        painted = """[...document.querySelectorAll('#heat-map, #routes canvas')].map(c => {
            const axis = c.id ? c.width * 0.5 : 0;
            return c.getContext('2d').getImageData(axis, 0, c.width - axis, c.height).data.some((v, i) => i % 4 === 2 && v > 200 && v < 250) })"""
        browser.wait(lambda: browser.run(painted) == [True, True, True, False], "the heat maps")
    browser.wait(lambda: browser.text("#requests .value").startswith("0"), "the end of the load")


def test_latency_is_that_of_the_upstream(gateway, browser, origin):
    origin.on("/slow/", Reply("slow", {"Cache-Control": "no-store"}, delay=0.25))
    with Load(gateway, "/slow/a", 3):
        browser.wait(lambda: about(figure(browser.text("#latency .value")), 250, 0.35), "a p99 of 250 ms", 15)
        row = browser.wait(lambda: (r := cells(browser, "routes")[2])[5] != "–" and r, "percentiles")
        assert all(about(figure(text), 250, 0.35) and text.endswith(" ms") for text in row[5:]), row
        browser.click("#routes tbody tr:nth-child(3) button")
        assert browser.text("#heat-route") == "slow ones"
        label = browser.run("document.querySelector('#heat-map').ariaLabel")
        assert re.search(r"slow ones.*median 2\d\d ms", label), label
        # The only band with requests in it is the one from 134 to 268 ms, or its neighbour.
        bands = browser.run("heatOf(2).flatMap(s => [...s.counts.keys()].map(band => [view.bands_ms[band - 1], view.bands_ms[band]]))")
        assert bands and all(low < 400 and high > 250 for low, high in bands), bands
        browser.click("#routes tbody tr:nth-child(3) button")
        assert browser.text("#heat-route") == "all routes"


def test_upstream_slots_queue_and_waiting_clients(gateway, browser, origin):
    gate = threading.Event()
    origin.on("/slow/", lambda r: Reply("slow", {"Cache-Control": "no-store"}, gate=gate))
    asking = [threading.Thread(target=gateway.get, args=(f"/slow/{n}",), kwargs={"timeout": 30}) for n in range(5)]
    try:
        for thread in asking:
            thread.start()
        browser.wait(lambda: "2 of 2 slots, 3 queued" in browser.text("#upstreams li:first-child"), "two at work and three waiting")
        assert "0 of 6 slots, 0 queued" in browser.text("#upstreams li:nth-child(2)")
        assert browser.run("document.querySelectorAll('#upstreams li:first-child .slots.full .taken').length") == 2
        shards = browser.wait(lambda: (r := cells(browser, "shards")) and sum(int(row[3]) for row in r) == 5 and r, "five clients")
        assert [row[0].split()[0] for row in shards] == ["0", "1"]
        assert sum(int(row[4]) for row in shards) == 2, "two are at the upstream"
        assert all(re.fullmatch(r"\d+ %", row[1]) and row[2] != "–" for row in shards), shards
    finally:
        gate.set()
        for thread in asking:
            thread.join()
    browser.wait(lambda: "0 of 2 slots, 0 queued" in browser.text("#upstreams li:first-child"), "all free again")


def test_a_busy_shard_is_seen_to_be_busy(gateway, browser):
    idle = browser.wait(lambda: (r := [row[1] for row in cells(browser, "shards")]) and "–" not in r and [figure(x) for x in r], "two seconds")
    command = ["wrk", "-t1", "-c8", "-d6s", "-H", "Host: api.example.com", f"http://127.0.0.1:{gateway.port}/farms/1"]
    flooding = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        browser.wait(lambda: max(figure(row[1]) for row in cells(browser, "shards")) > max(idle) + 8, "a busy shard", 8)
    finally:
        flooding.wait(20)


def test_warm_lists_with_their_next_refresh(gateway, browser):
    (name, filled, oldest, next_refresh), = cells(browser, "warm")
    assert name.split() == ["farms", "api.example.com"] and filled == "3/3"
    assert re.fullmatch(r"\d+ s", oldest)
    # At 80 % of an hour, less up to a quarter.
    assert re.fullmatch(r"in (3[5-9]|4[0-8]) min( \d+ s)?", next_refresh), next_refresh


def test_hottest_keys_in_their_order_and_their_purge_button(gateway, browser, origin):
    with Load(gateway, "/farms/1", 60), Load(gateway, "/farms/2", 20):
        rows = browser.wait(lambda: (r := cells(browser, "hot")) and len(r) == 2 and about(figure(r[0][1]), 60, 0.2) and r, "the keys", 25)
        assert [row[0] for row in rows] == ["api.example.com/farms/1", "api.example.com/farms/2"]
        assert about(figure(rows[1][1]), 20)
    before = origin.count("/farms/1")
    browser.click("#hot tbody tr:first-child button")
    assert browser.run("[document.activeElement.id, document.activeElement.value]") == ["purge-what", "http://api.example.com/farms/1"]
    browser.press("Enter")
    browser.wait(lambda: "Purged 1 entry." in browser.text("#done"), "the purge")
    # It stands on the warm list, so it comes back by itself.
    wait_until(lambda: origin.count("/farms/1") > before, 5, "its refill")
    browser.wait(lambda: browser.text("#hot .none") is not None, "nothing hot any more", 20)


def test_a_hostile_key_is_text(gateway, browser):
    hostile = "/farms/?<img/src=x/onerror=alert(1)><script>alert(2)</script>\"'&amp;"
    with Load(gateway, hostile, 20):
        row = browser.wait(lambda: (r := cells(browser, "hot")) and r[0], "the key")
        assert row[0] == "api.example.com" + hostile
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("document.querySelector('#hot button').ariaLabel") == "Purge api.example.com" + hostile


def test_findings_are_shown_with_what_to_do(gateway, browser):
    assert browser.text("#findings .none") == "Nothing stands out." and browser.run("document.title") == "pilotlight"
    found = [
        {"kind": "sync_trap", "subject": "django", "since": time.time() - 60, "detail": "all 2 slots busy", "remedy": "warm what is slow"},
        {"kind": "upstream_down", "subject": "<b>x</b>"},
    ]
    browser.run(f"view.paused = true, showFindings({{status: {{findings: {json.dumps(found)}}}}})")
    first, second = browser.texts("#findings li")
    assert re.fullmatch(r"sync trap: django all 2 slots busy, since \d\d:\d\d:\d\d\s+warm what is slow", first), first
    assert second.strip() == "upstream down: <b>x</b>"
    assert browser.text("#findings .none") is None and browser.run("document.title") == "(2) pilotlight"


def fill(browser, field, text):
    browser.run(f"document.querySelector('{field}').value = ''")
    browser.click(field)
    browser.type(text)


def choose_kind(browser, kind):
    browser.run(f"""(e => {{ e.value = '{kind}'; e.dispatchEvent(new Event('change')) }})(document.querySelector('#purge-by'))""")


def test_purge_and_warm(gateway, browser, origin):
    host = gateway.url
    for n in (7, 8, 9):
        gateway.get(f"/farms/{n}")
        assert is_hit(gateway.get(f"/farms/{n}"))
    fill(browser, "#purge-what", f"{host}/farms/7")
    browser.click("#purge button")
    browser.wait(lambda: "Purged 1 entry." in browser.text("#done"), "the purge by URL")
    assert not is_hit(gateway.get("/farms/7")) and is_hit(gateway.get("/farms/8"))

    choose_kind(browser, "prefix")
    assert "Prefix" in browser.text("#purge-label")
    fill(browser, "#purge-what", f"{host}/farms/")
    browser.click("#purge button")
    browser.wait(lambda: "Purged 3 entries." in browser.text("#done"), "the purge by prefix")
    assert not any(is_hit(gateway.get(f"/farms/{n}")) for n in (7, 8, 9))

    choose_kind(browser, "tag")
    fill(browser, "#purge-what", "farms")
    browser.click("#purge button")
    browser.wait(lambda: "Purged 6 entries." in browser.text("#done"), "the purge by tag, warm ones included")

    fill(browser, "#warm-urls", f"{host}/farms/20\n{host}/farms/21")
    browser.click("#warm-form button")
    browser.wait(lambda: "Warming 2 URLs." in browser.text("#done"), "the warming")
    wait_until(lambda: origin.count("/farms/20") == origin.count("/farms/21") == 1, 5, "the fetches")
    wait_until(lambda: is_hit(gateway.get("/farms/20")) and is_hit(gateway.get("/farms/21")), 5, "hits")
    assert (origin.count("/farms/20"), origin.count("/farms/21")) == (1, 1)

    fill(browser, "#warm-urls", "nonsense")
    browser.click("#warm-form button")
    browser.wait(lambda: "Refused: line 1: not a URL" in browser.text("#done"), "the refusal")
    # The browser itself notes the 400; that is what was asked for here.
    browser.complaints = [c for c in browser.complaints if "400 (Bad Request)" not in c]


def test_it_says_when_the_gateway_is_gone_and_comes_back_by_itself(gateway, browser):
    assert browser.text("#state") == "Ready"
    gateway.process.kill()
    gateway.process.wait()
    browser.wait(lambda: browser.text("#state").startswith("Gateway gone: nothing heard since"), "the outage", 8)
    assert browser.run("document.querySelector('main').classList.contains('gone')")
    with open(gateway.log_path, "ab") as log:
        gateway.process = subprocess.Popen(gateway.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=gateway.dir)
    browser.wait(lambda: browser.text("#state") == "Ready", "the return", 20)
    assert not browser.run("document.querySelector('main').classList.contains('gone')")
    browser.complaints = [c for c in browser.complaints if "net::ERR_" not in c]


def test_the_page_shows_what_was_before_it_was_opened(gateway, browser):
    with Load(gateway, "/farms/1", 50):
        browser.wait(lambda: figure(browser.text("#requests .value")) > 20, "some load")
    browser.open(gateway.admin_url + "/")
    browser.wait("view.now !== null", "a second after the reload")
    assert browser.run("Math.max(...view.seconds.map(requestsOf))") > 20, "what was before the page was opened"


def test_by_keyboard(gateway, browser):
    seen = []
    for _ in range(40):
        browser.press("Tab")
        what, visible = browser.focused()
        if what.startswith("body"):
            break
        assert visible, f"the focus on {what} is not to be seen"
        seen.append(what)
    else:
        raise AssertionError(f"the focus does not come out at the end: {seen}")
    assert seen == [
        "a Skip to purge and warm", "button#pause", "button#theme", "button /", "button /farms/", "button slow ones", "select#purge-by",
        "input#purge-what", "button Purge", "textarea#warm-urls", "button Warm", "a status", "a metrics", "a readyz", "a healthz",
    ]
    browser.run("document.querySelector('#pause').focus()")
    browser.press(" ", "Space")
    browser.wait(lambda: browser.text("#state").startswith("Paused at"), "the pause")
    paused = browser.text("#about")
    time.sleep(2.5)
    assert browser.text("#about") == paused
    browser.press(" ", "Space")
    browser.wait(lambda: browser.text("#state") == "Ready" and browser.text("#about") != paused, "going on")


def test_everything_has_a_name(browser):
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "textbox", "combobox", "link", "image", "heading", "region", "table"):
        assert all(named.get(role, ["x"])), f"a {role} without a name: {named[role]}"
    assert len(named["button"]) == 7 and len(named["textbox"]) == 2 and len(named["combobox"]) == 1
    assert any("heat map" in name.lower() for name in named["image"]), named["image"]


def luminance(css):
    parts = [int(x) / 255 for x in re.findall(r"\d+", css)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(browser, selector):
    """Between a text and the first painted background behind it (WCAG 2)."""
    colours = browser.run(f"""(e => {{ const ink = getComputedStyle(e).color;
        while (getComputedStyle(e).backgroundColor.endsWith(', 0)')) e = e.parentElement;
        return [ink, getComputedStyle(e).backgroundColor] }})(document.querySelector({json.dumps(selector)}))""")
    lighter, darker = sorted((luminance(c) for c in colours), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_light_and_dark_wide_and_narrow(gateway, browser, origin):
    origin.on("/slow/", Reply("slow", {"Cache-Control": "no-store"}, delay=0.3))
    shots = ROOT / "target" / "page"
    loads = [Load(gateway, "/farms/1", 60), Load(gateway, "/farms/2", 25), Load(gateway, "/light", 15), Load(gateway, "/slow/a", 2)]
    for load in loads:
        load.__enter__()
    try:
        browser.wait(lambda: len(cells(browser, "hot")) == 2, "the load", 15)
        time.sleep(8)
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            for name, size in {"wide": (1400, 900), "middle": (900, 900), "narrow": (360, 740)}.items():
                browser.resize(*size)
                time.sleep(1.1)
                too_wide = browser.run("document.documentElement.scrollWidth - innerWidth")
                assert too_wide <= 0, f"{name}: {too_wide} px stick out"
                browser.screenshot(shots / f"{scheme}-{name}.png")
            page = luminance(browser.run("getComputedStyle(document.body).backgroundColor"))
            assert page > 0.8 if scheme == "light" else page < 0.05
            for text in ("#requests .value b", ".note", "#state", "thead th", "#purge button", "footer a", "#hot td", ".sub"):
                assert contrast(browser, text) >= 4.5, f"{scheme}: {text} has a contrast of {contrast(browser, text):.1f}"
    finally:
        for load in loads:
            load.__exit__()
    # The button goes over what the system prefers, and is remembered.
    dark = "getComputedStyle(document.documentElement).colorScheme"
    assert browser.run(dark) == "dark"
    browser.click("#theme")
    assert browser.text("#theme") == "Theme: light" and browser.run(dark) == "light"
    browser.open(gateway.admin_url + "/")
    assert browser.text("#theme") == "Theme: light" and browser.run(dark) == "light"


# --- The admin address against other people's pages, without a browser


def test_other_sites_can_neither_act_nor_read(gateway):
    own = f"127.0.0.1:{gateway.admin}"
    gateway.get("/farms/5")

    def purge(**headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return http(gateway.admin, "POST", "/purge?prefix=/", fields, b"").status

    assert purge(Sec_Fetch_Site="cross-site") == 403
    assert purge(Origin="http://evil.example") == 403
    assert purge(Origin=f"http://{own}") == 403, "without the page's header"
    assert purge(Host=f"evil.example:{gateway.admin}") == 403
    assert is_hit(gateway.get("/farms/5"))
    for path in ("/", "/page.js", "/status", "/events"):
        assert get(gateway.admin, path, {"Host": "evil.example"}).status == 403, path
    for path in ("/metrics", "/healthz", "/readyz"):
        assert get(gateway.admin, path, {"Host": "gw.example"}).status == 200, f"{path} is for machines"
    assert purge(Origin=f"http://{own}", X_Pilotlight="page") == 200
    assert not is_hit(gateway.get("/farms/5"))
    assert purge() == 200, "no browser"


def test_a_name_of_the_configuration_is_let_in(origin):
    config = CONFIG + '[admin]\nlisten = "127.0.0.1:{admin}"\nhosts = ["gw.example"]\n[server]\nlisten = ["127.0.0.1:{port}"]\n'
    with Gateway(config, origin=origin.address) as gateway:
        assert get(gateway.admin, "/", {"Host": "gw.example"}).status == 200
        assert get(gateway.admin, "/", {"Host": "other.example"}).status == 403


def test_the_policy_of_the_page(gateway):
    page = get(gateway.admin, "/")
    policy = page.get("content-security-policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.get("x-content-type-options") == "nosniff"
    assert not re.search(r"https?://(?!host)", page.text), "nothing from elsewhere"


def test_watchers_are_bounded_and_nobody_waits_for_them(gateway):
    def watch():
        s = socket.create_connection(("127.0.0.1", gateway.admin), 5)
        s.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return s, s.recv(15)

    watching = [watch() for _ in range(16)]
    try:
        assert all(head == b"HTTP/1.1 200 OK" for _, head in watching)
        refused = get(gateway.admin, "/events")
        assert refused.status == 503 and refused.json()["error"] == "too_many_watchers"
        # None of them reads; everything else goes on.
        for _ in range(20):
            assert get(gateway.admin, "/healthz", timeout=1).status == 200
    finally:
        for s, _ in watching:
            s.close()

    def lets_in():
        s, head = watch()
        s.close()
        return head == b"HTTP/1.1 200 OK"

    wait_until(lets_in, 5, "a free place")


# --- The same in a terminal


class Watching:
    """`pilotlight status --watch`; `lines` grows while it runs. With `terminal` it writes to one (a pseudo-terminal)."""

    def __init__(self, gateway, terminal=False, env=None):
        ours, theirs = os.openpty() if terminal else os.pipe()
        command = [binary(), "status", "--watch", "--admin", f"127.0.0.1:{gateway.admin}"]
        base = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, env={**base, **(env or {})})
        os.close(theirs)
        self.output = ours
        self.text = ""
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self):
        try:
            while data := os.read(self.output, 65536):
                self.text += data.decode()
        except OSError:
            pass  # the other end of a terminal is closed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.reading.join(5)
        os.close(self.output)


def test_status_watch_prints_plain_lines(gateway):
    with Watching(gateway) as watching:
        with Load(gateway, "/farms/1", 50):
            wait_until(lambda: re.search(r"Z ready (4\d|5\d)(\.\d)? req/s, hits 100.0%, .*django 0/2 slots 0 queued", watching.text), 15, "a line")
        lines = len(watching.text.splitlines())
        wait_until(lambda: len(watching.text.splitlines()) >= lines + 2, 5, "a line each second")
        assert "\x1b" not in watching.text
        gateway.process.kill()
        gateway.process.wait()
        wait_until(lambda: "gateway gone" in watching.text, 8, "the outage")
        gone = len(watching.text)
        with open(gateway.log_path, "ab") as log:
            gateway.process = subprocess.Popen(gateway.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=gateway.dir)
        wait_until(lambda: "Z ready" in watching.text[gone:], 20, "the return")


def test_status_watch_paints_a_terminal_and_honours_no_color(gateway):
    with Load(gateway, "/farms/1", 20), Watching(gateway, terminal=True) as watching:
        wait_until(lambda: "api.example.com/farms/1" in watching.text, 15, "the hottest key")
        page = watching.text.split("\x1b[H")[-2]
        for part in ("ready", "django", "0/2", "slow ones", "farms", "3/3"):
            assert part in page, f"{part} is not in {page}"
        assert "\x1b[32mready" in page
    with Watching(gateway, terminal=True, env={"NO_COLOR": "1"}) as watching:
        wait_until(lambda: "django" in watching.text, 10, "a page")
        assert not re.search(r"\x1b\[\d+m", watching.text)


def test_status_watch_without_a_gateway_is_one_line_and_2():
    result = run("status", "--watch", "--admin", f"127.0.0.1:{free_port()}")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "cannot reach" in result.stderr


def test_the_command_line_needs_no_name_in_the_configuration(gateway):
    for args in (["status"], ["purge", "--tag", "x"]):
        assert run(args[0], "--admin", f"localhost:{gateway.admin}", *args[1:]).returncode == 0
