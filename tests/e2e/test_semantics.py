"""What the RFCs ask of a shared cache, rule by rule, seen from outside: RFC 9110, 9111, 5861, 8586, 9211 and 9213.

The rules that are pure decisions have their tables beside the code in src/cache; here stands what only shows when a client, the
gateway and an origin talk to each other.
"""

import itertools
import re
import time
from email.utils import formatdate

import pytest

from harness import Gateway, is_hit, wait_until
from slow_origin import Reply

ROUTES = """
[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"
[routes.cache]
refresh_ahead = 0

[[routes]]
path = "/window/"
upstream = "app"
[routes.cache]
refresh_ahead = 0
stale_while_revalidate = "1h"
stale_if_error = "1h"
"""

UNTRUSTED = """
[server]
listen = ["127.0.0.1:{port}"]
shards = {shards}
trusted_proxies = []
[admin]
listen = "127.0.0.1:{admin}"
"""


@pytest.fixture
def gateway(origin):
    with Gateway(ROUTES, origin=origin.address) as running:
        yield running


def numbered(*headers, **more):
    """A handler whose body is the number of the request; `headers` are (name, value)."""
    return lambda request: Reply(f"{request.number}", list(headers), **more)


def params(response):
    """Our own member of Cache-Status: {parameter: value, or True}."""
    name, *own = [part.strip() for part in response.headers.all("cache-status")[-1].split(";")]
    assert name == "pilotlight"
    pairs = (param.partition("=") for param in own)
    return {key: value if equals else True for key, equals, value in pairs}


# --- RFC 9111 §4.2.4, §5.2.2: nothing stale where it is forbidden, whatever happens to the origin


FORBIDDEN = ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=1"]


# With s-maxage the route's own window is a permission (see src/cache.rs), so that pair is not among these.
@pytest.mark.parametrize("directive,prefix", [(d, "/") for d in FORBIDDEN] + [(d, "/window/") for d in FORBIDDEN[:3]])
def test_what_must_be_validated_is_never_served_from_a_closed_origin(origin, gateway, directive, prefix):
    path = prefix + "forbidden"
    origin.on(path, numbered(("Cache-Control", f"max-age=1, {directive}"), ("ETag", '"a"')))
    assert gateway.get(path).text == "1"
    if directive != "no-cache":
        assert is_hit(gateway.get(path)), "stored, and fresh for a second"
    time.sleep(1.1)
    origin.stop()
    for _ in range(3):
        response = gateway.get(path)
        assert response.status in (502, 504), "RFC 9111 §5.2.2.2: an error, never the stale content"
        assert response.text != "1" and response.json()["error"] == "upstream_refused"
        assert not is_hit(response)


@pytest.mark.parametrize("how", ["closes without an answer", "answers 503"])
@pytest.mark.parametrize("directive", FORBIDDEN)
def test_what_must_be_validated_is_never_served_for_an_origin_that_fails(origin, gateway, directive, how):
    def handler(request):
        if request.number == 1:
            return Reply("1", {"Cache-Control": f"max-age=1, {directive}", "ETag": '"a"'})
        return b"" if how.startswith("closes") else Reply("down", status=503)

    origin.on("/fails", handler)
    assert gateway.get("/fails").text == "1"
    time.sleep(1.1)
    response = gateway.get("/fails")
    assert response.status in (502, 503, 504) and response.text != "1"


def test_what_may_be_served_stale_is_served_when_the_origin_is_closed(origin, gateway):
    origin.on("/allowed", numbered(("Cache-Control", "max-age=1")))
    assert gateway.get("/allowed").text == "1"
    time.sleep(1.1)
    origin.stop()
    response = gateway.get("/allowed")
    assert (response.status, response.text) == (200, "1")
    told = params(response)
    assert (told["fwd"], told["detail"]) == ("stale", "upstream_refused") and int(told["ttl"]) <= 0, "RFC 9211 §2.1: no hit"
    assert int(response.get("age")) >= 1


# --- RFC 5861


def test_stale_if_error_of_the_response_covers_errors_and_nothing_else(origin, gateway):
    status = {"now": 200}
    origin.on("/sie", lambda r: Reply(f"{r.number}", {"Cache-Control": "max-age=1, stale-if-error=60"}, status=status["now"]))
    assert gateway.get("/sie").text == "1"
    time.sleep(1.1)
    for error in (500, 502, 503, 504):
        status["now"] = error
        response = gateway.get("/sie")
        assert (response.status, response.text) == (200, "1"), f"RFC 5861 §4: {error}"
    status["now"] = 404
    assert gateway.get("/sie").status == 404, "404 is an answer, not an error"


def test_stale_while_revalidate_of_the_response(origin, gateway):
    origin.on("/swr", numbered(("Cache-Control", "max-age=1, stale-while-revalidate=60")))
    assert gateway.get("/swr").text == "1"
    time.sleep(1.1)
    response = gateway.get("/swr")
    assert response.text == "1" and int(params(response)["ttl"]) <= 0, "RFC 5861 §3"
    wait_until(lambda: gateway.get("/swr").text == "2", 5, "the new one")


# --- RFC 9111 §4.3.3, §4.3.4: validation


def test_a_stray_304_leads_to_a_request_without_conditions(origin, gateway):
    def handler(request):
        if request.number == 1:
            return Reply("old", {"Cache-Control": "max-age=1", "ETag": '"old"'})
        if request.get("if-none-match"):
            return Reply(status=304, headers={"ETag": '"of something else"', "Cache-Control": "max-age=60"})
        return Reply("new", {"Cache-Control": "max-age=60", "ETag": '"new"'})

    origin.on("/stray", handler)
    assert gateway.get("/stray").text == "old"
    time.sleep(1.1)
    assert gateway.get("/stray").text == "new", "RFC 9111 §4.3.4: that 304 must not refresh what is stored"
    _, conditional, plain = origin.seen("/stray")
    assert conditional.get("if-none-match") == '"old"'
    assert plain.get("if-none-match") is None and plain.get("if-modified-since") is None
    hit = gateway.get("/stray")
    assert is_hit(hit) and hit.text == "new" and hit.get("etag") == '"new"'


def test_a_304_without_a_condition_is_no_answer(origin, gateway):
    origin.on("/unasked", Reply(status=304, headers={"ETag": '"a"'}))
    response = gateway.get("/unasked")
    assert (response.status, response.json()["error"]) == (502, "upstream_stray_304")


def test_a_304_that_forbids_storing_ends_the_entry(origin, gateway):
    def handler(request):
        if request.get("if-none-match"):
            return Reply(status=304, headers={"ETag": '"a"', "Cache-Control": "no-store"})
        return Reply(f"{request.number}", {"Cache-Control": "max-age=1", "ETag": '"a"'})

    origin.on("/ends", handler)
    assert gateway.get("/ends").text == "1"
    time.sleep(1.1)
    assert gateway.get("/ends").text == "1", "it may answer the one who asked"
    assert not is_hit(gateway.get("/ends"))


def test_both_validators_are_sent(origin, gateway):
    then = "Sun, 06 Nov 1994 08:49:37 GMT"
    origin.on("/both", numbered(("Cache-Control", "max-age=0"), ("ETag", 'W/"a"'), ("Last-Modified", then)))
    gateway.get("/both")
    gateway.get("/both")
    asked = origin.seen("/both")[1]
    assert (asked.get("if-none-match"), asked.get("if-modified-since")) == ('W/"a"', then), "RFC 9111 §4.3.1"


# --- RFC 9111 §4.3.5: HEAD


def head_and_get(fields):
    def handler(request):
        if request.method == "HEAD":
            return Reply(b"", [("Cache-Control", "max-age=60"), *fields])
        return Reply(f"body {request.number}", {"Cache-Control": "max-age=60", "ETag": '"a"'})

    return handler


@pytest.mark.parametrize(
    "case,fields,outdated",
    [
        ("the same", [("ETag", '"a"'), ("Content-Length", "6")], False),
        ("another tag", [("ETag", '"b"'), ("Content-Length", "6")], True),
        ("another length", [("ETag", '"a"'), ("Content-Length", "7")], True),
        ("a date that was not there", [("ETag", '"a"'), ("Content-Length", "6"), ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")], True),
    ],
)
def test_a_forwarded_head_ends_what_it_contradicts(origin, gateway, case, fields, outdated):
    # Several keys, so that some are owned by the shard that is asked and some are not.
    for n in range(6):
        path = f"/head/{n}"
        origin.on(path, head_and_get(fields))
        assert gateway.get(path).text == "body 1"
        gateway.http("HEAD", path, {"Cache-Control": "no-store"})
        assert [r.method for r in origin.seen(path)] == ["GET", "HEAD"], "past the cache"
        if outdated:
            wait_until(lambda: gateway.get(path).text == "body 3", 2, "the new one")
        else:
            time.sleep(0.02)
            assert is_hit(gateway.get(path)), case


def test_a_head_about_another_resource_ends_nothing(origin, gateway):
    origin.on("/head/other", head_and_get([("ETag", '"b"'), ("Content-Length", "0")]))
    assert gateway.get("/head/other").text == "body 1"
    gateway.http("HEAD", "/head/other", {"X-Original-URL": "/elsewhere"})
    time.sleep(0.1)
    assert is_hit(gateway.get("/head/other"))


def test_a_stale_entry_is_validated_for_a_head(origin, gateway):
    def handler(request):
        if request.get("if-none-match") == '"a"':
            return Reply(status=304, headers={"ETag": '"a"', "Cache-Control": "max-age=60"})
        return Reply("twelve bytes", {"Cache-Control": "max-age=1", "ETag": '"a"'})

    origin.on("/headstale", handler)
    gateway.get("/headstale")
    time.sleep(1.1)
    response = gateway.http("HEAD", "/headstale")
    assert (response.status, response.body, response.get("content-length")) == (200, b"", "12")
    assert is_hit(gateway.get("/headstale")), "the validation counts for the GET too"
    assert origin.count("/headstale") == 2


def test_a_head_gives_its_lease_back(origin, gateway):
    origin.on("/lease", numbered(("Cache-Control", "max-age=60")))
    for n in range(4):
        assert gateway.http("HEAD", f"/lease{n}").status == 200
        started = time.monotonic()
        assert gateway.get(f"/lease{n}").text == "2"
        assert time.monotonic() - started < 5, "nobody waits for a lease that a HEAD kept"
        assert is_hit(gateway.get(f"/lease{n}"))


# --- RFC 9111 §4.4: invalidation


@pytest.mark.parametrize("field", ["Location", "Content-Location"])
@pytest.mark.parametrize("host,gone", [("", True), ("http://{host}", True), ("http://elsewhere.example", False)])
def test_what_an_unsafe_answer_names_is_invalidated_on_the_same_host_only(origin, gateway, field, host, gone):
    own = f"127.0.0.1:{gateway.port}"
    origin.on("/named", numbered(("Cache-Control", "max-age=60")))
    origin.on("/change", Reply("", [(field, host.replace("{host}", own) + "/named")], status=201))
    elsewhere = {"Host": "elsewhere.example"}
    assert gateway.get("/named").text == "1"
    assert gateway.get("/named", elsewhere).text == "2"
    gateway.http("POST", "/change", body=b"x")
    if gone:
        wait_until(lambda: gateway.get("/named").text == "3", 2, "the new one")
    else:
        time.sleep(0.1)
        assert is_hit(gateway.get("/named"))
    assert is_hit(gateway.get("/named", elsewhere)), "what is another host's stays"


def test_an_unsafe_request_invalidates_for_every_credential(origin):
    config = ROUTES.replace('[routes.cache]\n', '[routes.cache]\nauthorization = "per-credential"\n', 1)
    origin.on("/", numbered(("Cache-Control", "max-age=60")))
    one, two = {"X-API-Key": "one"}, {"Authorization": "Bearer two"}
    with Gateway(config, origin=origin.address) as gateway:
        # Several keys, so that their owners differ.
        for n in range(6):
            path = f"/each/{n}"
            gateway.get(path, one), gateway.get(path, two)
            assert is_hit(gateway.get(path, one)) and is_hit(gateway.get(path, two))
            gateway.http("PUT", path, one, b"x")
            time.sleep(0.05)
            assert gateway.get(path, two).text == "4", "RFC 9111 §4.4: all that is stored for the URI"
            assert gateway.get(path, one).text == "5"


# --- RFC 9111 §4.1: variants


def test_equal_requests_share_a_variant(origin, gateway):
    origin.on("/vary", numbered(("Cache-Control", "max-age=60"), ("Vary", "Accept-Encoding, Accept-Language")))
    first = {"Accept-Encoding": "gzip, br", "Accept-Language": "en;q=0.5, de, fr"}
    assert gateway.get("/vary", first).text == "1"
    for same in (
        {"Accept-Encoding": "br;q=0.5,gzip", "Accept-Language": "en;q=0.5, de, fr"},
        {"Accept-Encoding": "gzip, br", "Accept-Language": "FR, de,en;q=0.5"},
    ):
        assert is_hit(gateway.get("/vary", same)), same
    for other in (
        {"Accept-Encoding": "gzip", "Accept-Language": "en;q=0.5, de, fr"},
        {"Accept-Encoding": "gzip, br", "Accept-Language": "en;q=0.5, de"},
        {"Accept-Encoding": "gzip, br", "Accept-Language": "en, de, fr;q=0.5"},
        {"Accept-Encoding": "gzip, br"},
    ):
        assert not is_hit(gateway.get("/vary", other)), other


def test_variants_of_a_key_are_bounded(origin, gateway):
    origin.on("/many", numbered(("Cache-Control", "max-age=60"), ("Vary", "X-Kind")))
    for n in range(64):
        gateway.get("/many", {"X-Kind": f"{n}"})
    kept = [n for n in range(64) if is_hit(gateway.get("/many", {"X-Kind": f"{n}", "Cache-Control": "only-if-cached"}))]
    assert 0 < len(kept) <= 16, kept
    assert kept[-1] == 63, "the newest stay"


# --- RFC 9111 §5.2: directives


def test_only_if_cached(origin, gateway):
    origin.on("/oic", numbered(("Cache-Control", "max-age=60")))
    response = gateway.get("/oic", {"Cache-Control": "only-if-cached"})
    assert (response.status, response.json()["error"]) == (504, "not_cached"), "RFC 9111 §5.2.1.7"
    assert origin.count("/oic") == 0
    gateway.get("/oic")
    for _ in range(8):
        assert is_hit(gateway.get("/oic", {"Cache-Control": "only-if-cached"})), "on whichever shard"
    time.sleep(0.05)
    assert origin.count("/oic") == 1 and gateway.get("/oic2").status == 200, "no lease is left behind"


@pytest.mark.parametrize("field", [("Cache-Control", "no-cache"), ("Cache-Control", "max-age=0"), ("Cache-Control", "min-fresh=61"), ("Pragma", "no-cache")])
def test_a_client_may_ask_for_validation(origin, gateway, field):
    origin.on("/again", numbered(("Cache-Control", "max-age=60")))
    gateway.get("/again")
    response = gateway.get("/again", [field])
    assert response.text == "2" and params(response)["fwd"] == "request", "RFC 9111 §5.2.1, §5.4; RFC 9211 §2.2"
    assert gateway.get("/again").text == "2", "and what came of it is stored"


def test_pragma_beside_cache_control_says_nothing(origin, gateway):
    origin.on("/pragma", numbered(("Cache-Control", "max-age=60")))
    gateway.get("/pragma")
    assert is_hit(gateway.get("/pragma", {"Pragma": "no-cache", "Cache-Control": "max-stale"})), "RFC 9111 §5.4"


def test_max_stale(origin, gateway):
    origin.on("/mstale", numbered(("Cache-Control", "max-age=1")))
    gateway.get("/mstale")
    time.sleep(1.1)
    assert gateway.get("/mstale", {"Cache-Control": "max-stale=30"}).text == "1", "RFC 9111 §5.2.1.2"


@pytest.mark.parametrize("directive", ["no-cache", "private"])
def test_named_fields_are_not_stored(origin, gateway, directive):
    control = f'max-age=60, {directive}="X-Mine, Set-Cookie"'
    origin.on("/named-field", Reply("x", {"Cache-Control": control, "X-Mine": "1", "Set-Cookie": "a=b", "X-Ours": "2"}))
    first = gateway.get("/named-field")
    assert (first.get("x-mine"), first.get("set-cookie")) == ("1", "a=b"), "who asked first gets them"
    second = gateway.get("/named-field")
    assert is_hit(second) and second.get("x-ours") == "2"
    assert second.get("x-mine") is None and second.get("set-cookie") is None, "RFC 9111 §5.2.2.4, §5.2.2.7"


@pytest.mark.parametrize("status,stored", [(200, True), (299, False)])
def test_must_understand(origin, gateway, status, stored):
    origin.on("/mu", numbered(("Cache-Control", "max-age=60, no-store, must-understand"), status=status))
    gateway.get("/mu")
    assert is_hit(gateway.get("/mu")) is stored, "RFC 9111 §5.2.2.3"


@pytest.mark.parametrize("field", ["CDN-Cache-Control", "Pilotlight-Cache-Control"])
def test_targeted_fields_come_first(origin, gateway, field):
    origin.on("/targeted", numbered((field, "max-age=60"), ("Cache-Control", "no-store")))
    gateway.get("/targeted")
    response = gateway.get("/targeted")
    assert is_hit(response) and response.get("cache-control") == "no-store", "RFC 9213 §2.2"
    origin.on("/bad-target", numbered((field, "max-age=60, &"), ("Cache-Control", "no-store")))
    gateway.get("/bad-target")
    assert not is_hit(gateway.get("/bad-target")), "RFC 9213 §2.1: what is no dictionary is ignored"


# --- RFC 9111 §4.2.3, §5.1: ages


@pytest.mark.parametrize("age", ["4294967295", "99999999999999999999"])
def test_an_age_that_cannot_be_counted_is_old(origin, gateway, age):
    origin.on("/old", numbered(("Cache-Control", "max-age=3600"), ("Age", age)))
    gateway.get("/old")
    assert not is_hit(gateway.get("/old")), "RFC 9111 §1.2.2"


@pytest.mark.parametrize(
    "case,off_secs,control,hit",
    [
        ("an old Date counts as age", -3600, "max-age=60", False),
        ("a Date to come adds nothing", 3600, "max-age=2", True),
        ("an old Date within the lifetime", -10, "max-age=60", True),
    ],
)
def test_the_date_counts(origin, gateway, case, off_secs, control, hit):
    date = formatdate(time.time() + off_secs, usegmt=True)
    origin.on("/dated", numbered(("Cache-Control", control), ("Date", date)))
    assert gateway.get("/dated").get("date") == date
    second = gateway.get("/dated")
    assert is_hit(second) is hit, f"RFC 9111 §4.2.3: {case}"
    if off_secs > 0:
        assert int(second.get("age")) < 2
        time.sleep(2.1)
        assert not is_hit(gateway.get("/dated")), "nor does it make anything last longer"


@pytest.mark.parametrize("expires", ["0", "Sun, 06 Nov 1994 08:49:37 GMT", "soon"])
def test_an_expires_that_is_past_or_no_date_is_stale(origin, gateway, expires):
    origin.on("/expires", numbered(("Expires", expires), ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")))
    gateway.get("/expires")
    assert not is_hit(gateway.get("/expires")), "RFC 9111 §5.3; and no heuristic beside it, §4.2.2"


def test_ages_add_up(origin, gateway):
    origin.on("/aged", numbered(("Cache-Control", "max-age=60"), ("Age", "57")))
    gateway.get("/aged")
    response = gateway.get("/aged")
    assert is_hit(response) and 57 <= int(response.get("age")) < 60
    assert int(params(response)["ttl"]) == 60 - int(response.get("age")), "RFC 9211 §2.3"
    time.sleep(3.1)
    assert gateway.get("/aged").text == "2", "RFC 9111 §4.2: at its lifetime it is stale"


# --- RFC 9110 §14: ranges


BODY = "0123456789"


def ranged(gateway, path, value, **more):
    return gateway.get(path, {"Range": value, **more})


def test_ranges_are_cut_from_what_is_stored(origin, gateway):
    origin.on("/range", Reply(BODY, {"Cache-Control": "max-age=60", "ETag": '"a"'}))
    gateway.get("/range")
    part = ranged(gateway, "/range", "bytes=2-4")
    assert (part.status, part.text, part.get("content-range")) == (206, "234", "bytes 2-4/10") and is_hit(part)
    assert part.get("content-length") == "3" and part.get("etag") == '"a"', "RFC 9110 §15.3.7"
    none = ranged(gateway, "/range", "bytes=10-")
    assert (none.status, none.get("content-range")) == (416, "bytes */10")
    several = ranged(gateway, "/range", "bytes=0-1,4-5")
    assert (several.status, several.text) == (200, BODY), "RFC 9110 §14.2: several may be answered with all of it"
    for condition, status in (('"a"', 206), ('"b"', 200), ('W/"a"', 200)):
        assert ranged(gateway, "/range", "bytes=0-1", **{"If-Range": condition}).status == status, "RFC 9110 §13.1.5"
    assert origin.count("/range") == 1


def test_a_part_is_never_stored(origin, gateway):
    origin.on("/part", lambda r: Reply("01", {"Cache-Control": "max-age=60", "Content-Range": "bytes 0-1/10"}, status=206))
    assert gateway.get("/part").status == 206
    assert not is_hit(gateway.get("/part")), "RFC 9111 §3.3"


def test_a_range_fetches_the_whole_for_the_cache(origin, gateway):
    origin.on("/whole", Reply(BODY, {"Cache-Control": "max-age=60"}))
    assert (ranged(gateway, "/whole", "bytes=0-1").text, origin.last().get("range")) == ("01", None)
    assert gateway.get("/whole").text == BODY and origin.count("/whole") == 1


# --- RFC 9110 §7.6.2, §7.6.3, RFC 8586: hops


def test_a_request_that_comes_back_is_refused(origin, gateway):
    origin.on("/loop", Reply("x"))
    gateway.get("/loop", {"CDN-Loop": "outer"})
    ours = origin.last().all("cdn-loop")
    assert ours[0] == "outer" and re.fullmatch(r"pilotlight; id=[0-9a-f]{16}", ours[1]), ours
    origin.forget()
    with gateway.connect() as client:
        response = client.request("GET", "/loop", {"CDN-Loop": ", ".join(ours)})
        assert (response.status, response.json()["error"]) == (508, "loop")
        assert client.request("GET", "/loop").status == 200, "the connection goes on"
        assert client.request("POST", "/loop", {"CDN-Loop": ours[1]}, b"body").status == 508
    assert [r.method for r in origin.requests] == ["GET"]
    assert gateway.metrics().sum("pilotlight_rejected_total", reason="loop") == 2


def test_via_alone_ends_a_loop_too(origin, gateway):
    origin.on("/loop", Reply("x"))
    assert gateway.get("/loop", {"Via": ", ".join(["1.1 pilotlight"] * 7)}).status == 200
    assert gateway.get("/loop", {"Via": ", ".join(["1.1 pilotlight"] * 8)}).status == 508, "RFC 9110 §7.6.3"


def test_a_loop_is_found_on_the_first_return(origin, gateway):
    # The upstream sends what it gets back to the gateway, fields and all.
    origin.on("/round", lambda r: Reply(str(gateway.get(r.target, r.headers).status)))
    response = gateway.get("/round")
    assert (response.status, response.text) == (200, "508")
    assert origin.count("/round") == 1
    assert gateway.metrics().sum("pilotlight_rejected_total", reason="loop") == 1


def test_two_gateways_in_a_row(origin):
    origin.on("/", Reply("x", {"Cache-Control": "max-age=60"}))
    with Gateway(ROUTES, origin=origin.address) as inner, Gateway(ROUTES, origin=f"127.0.0.1:{inner.port}") as outer:
        first = outer.get("/chain")
        assert (first.status, first.text) == (200, "x")
        assert len(origin.last().all("cdn-loop")) == 2 and len(origin.last().all("via")) == 2
        assert is_hit(outer.get("/chain"))
        passed = outer.http("POST", "/chain", body=b"")
        assert len(passed.headers.all("cache-status")) == 2, "RFC 9211 §2: each appends its own"


def test_refreshing_does_not_lengthen_the_way(origin):
    config = ROUTES.replace("refresh_ahead = 0\nstale", "refresh_ahead = 0.5\nstale")
    origin.on("/window/again", numbered(("Cache-Control", "max-age=1")))
    with Gateway(config, origin=origin.address) as gateway:

        def refreshed():
            for _ in range(4):
                gateway.get("/window/again")
            return origin.count("/window/again") >= 5

        wait_until(refreshed, 15, "five fetches")
    for request in origin.seen("/window/again"):
        assert (len(request.all("via")), len(request.all("cdn-loop"))) == (1, 1), request.head


def test_the_last_hop_answers_options(origin, gateway):
    with gateway.connect() as client:
        response = client.request("OPTIONS", "/hops", {"Max-Forwards": "0"})
        assert response.status == 204 and "GET" in response.get("allow"), "RFC 9110 §7.6.2, §9.3.7"
        assert client.request("GET", "/hops").status == 200, "the connection goes on"
    assert [r.method for r in origin.seen("/hops")] == ["GET"]
    gateway.http("OPTIONS", "/hops", {"Max-Forwards": "3"})
    assert origin.last().get("max-forwards") == "2"
    assert gateway.http("TRACE", "/hops", {"Max-Forwards": "0"}).status == 405
    assert gateway.metrics().sum("pilotlight_rejected_total", reason="max_forwards") == 1


@pytest.mark.parametrize("framing", ["Content-Length: 45", "Transfer-Encoding: chunked"])
def test_the_body_of_a_request_that_ends_here_is_not_the_next_request(origin, gateway, framing):
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: h\r\nX-Pad: 1\r\n\r\n"
    body = smuggled if framing.startswith("Content") else b"%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    with gateway.connect() as client:
        client.send(f"OPTIONS /hops HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n{framing}\r\n\r\n".encode() + body)
        response = client.read_response("OPTIONS")
        assert response.status == 204 and response.get("connection") == "close"
        assert not client._fill(), "closed, with nothing behind the answer"
    assert origin.count("/smuggled") == 0


# --- RFC 9110 §7.8, §15.2.2: switching protocols


WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}


@pytest.mark.parametrize(
    "said,status",
    [("Upgrade: WebSocket", 101), ("Upgrade: h2c", 502), ("Upgrade: websocket, h2c", 502), ("X-None: 1", 502)],
)
def test_a_101_is_for_what_was_asked_for(origin, gateway, said, status):
    origin.on("/ws", f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{said}\r\n\r\n".encode())
    response = gateway.http("GET", "/ws", WEBSOCKET)
    assert response.status == status
    if status == 502:
        assert response.json()["error"] == "upstream_other_switch"


def test_a_101_that_nobody_asked_for(origin, gateway):
    origin.on("/ws", b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    response = gateway.get("/ws")
    assert (response.status, response.json()["error"]) == (502, "upstream_unasked_switch")


# --- RFC 9111 §7.1: what the origin obeys and the key does not hold


def mirrored(request):
    """As a framework that believes X-Forwarded-Host: the host it was given is in the page."""
    return Reply(f"https://{request.get('x-forwarded-host')}/", {"Cache-Control": "max-age=60"})


def test_an_untrusted_x_forwarded_host_is_dropped(origin):
    origin.on("/page", mirrored)
    with Gateway(UNTRUSTED + ROUTES, origin=origin.address) as gateway:
        own = f"127.0.0.1:{gateway.port}"
        assert gateway.get("/page", {"X-Forwarded-Host": "evil.example"}).text == f"https://{own}/"
        assert gateway.get("/page").text == f"https://{own}/"


def test_a_trusted_x_forwarded_host_does_not_poison(origin, gateway):
    origin.on("/page", mirrored)
    own = f"127.0.0.1:{gateway.port}"
    evil = gateway.get("/page", {"X-Forwarded-Host": "evil.example"})
    assert evil.text == "https://evil.example/" and params(evil) == {"fwd": "bypass", "detail": "unkeyed"}
    assert gateway.get("/page").text == f"https://{own}/"
    assert gateway.get("/page", {"X-Forwarded-Host": "evil.example"}).text == "https://evil.example/"
    assert is_hit(gateway.get("/page", {"X-Forwarded-Host": own})), "what a proxy in front says of the same host is no reason"


# --- RFC 9211: Cache-Status


def test_cache_status_says_what_happened(origin, gateway):
    control = {"now": "max-age=1"}

    def handler(request):
        if request.get("if-none-match"):
            return Reply(status=304, headers={"ETag": '"a"', "Cache-Control": control["now"]})
        return Reply("x", {"Cache-Control": control["now"], "ETag": '"a"'})

    origin.on("/cs", handler)
    first = params(gateway.get("/cs"))
    assert first["fwd"] == "miss" and first["stored"] is True
    hit = params(gateway.get("/cs"))
    assert hit.keys() == {"hit", "ttl"} and 0 <= int(hit["ttl"]) <= 1
    time.sleep(1.1)
    control["now"] = "max-age=60"
    valid = params(gateway.get("/cs"))
    assert valid.keys() == {"fwd", "fwd-status", "stored", "ttl"} and (valid["fwd"], valid["fwd-status"]) == ("stale", "304")
    assert params(gateway.http("POST", "/cs", body=b"")) == {"fwd": "bypass", "detail": "method"}
    assert params(gateway.get("/cs", {"Cache-Control": "no-store"})) == {"fwd": "bypass", "detail": "no_store"}
    origin.on("/private", numbered(("Cache-Control", "private")))
    assert params(gateway.get("/private")) == {"fwd": "miss", "detail": "private"}


def test_a_stale_one_that_is_replaced(origin, gateway):
    origin.on("/replaced", numbered(("Cache-Control", "max-age=1")))
    gateway.get("/replaced")
    time.sleep(1.1)
    replaced = params(gateway.get("/replaced"))
    assert replaced["fwd"] == "stale" and replaced["stored"] is True and "hit" not in replaced


# --- RFC 9111 §4: nothing is mixed up


def test_no_two_of_these_share_an_entry(origin, gateway):
    origin.on("/key", lambda r: Reply(f"{r.target} {r.get('host')}", {"Cache-Control": "max-age=60"}))
    paths = ["/key", "/key?", "/key?a", "/key?A", "/key/", "/KEY", "/%6bey", "/key;x", "/key//"]
    hosts = ["a.example", "b.example", "a.example:81"]
    for _, (path, host) in itertools.product(range(2), itertools.product(paths, hosts)):
        got = gateway.get(path, {"Host": host})
        if path.startswith("/key"):
            assert got.text == f"{path} {host}"
