"""What is stored, for how long, for whom, and what a client sees of it."""

import time

import pytest

from harness import Gateway, is_hit, wait_until
from slow_origin import Reply

CONFIG = """
[cache]
memory = "64MiB"
max_object = "1MiB"

[upstreams.app]
servers = ["{origin}"]

[[routes]]
path = "/"
upstream = "app"

[[routes]]
path = "/hour/"
upstream = "app"
[routes.cache]
ttl = "1h"

[[routes]]
path = "/second/"
upstream = "app"
[routes.cache]
ttl = "1s"

[[routes]]
path = "/override/"
upstream = "app"
[routes.cache]
ttl = "1h"
override = true

[[routes]]
path = "/swr/"
upstream = "app"
[routes.cache]
ttl = "1s"
stale_while_revalidate = "1h"
refresh_ahead = 0

[[routes]]
path = "/each/"
upstream = "app"
[routes.cache]
ttl = "1h"
authorization = "per-credential"
"""


@pytest.fixture
def gateway(origin):
    with Gateway(CONFIG, origin=origin.address) as running:
        yield running


def counted(headers=(), **more):
    """A handler whose body is the number of the request."""
    return lambda request: Reply(f"{request.number}", headers, **more)


# --- How long


def test_the_routes_ttl_counts_where_the_origin_says_nothing(origin, gateway):
    origin.on("/hour/a", counted({"X-Origin": "kept", "Content-Type": "text/plain"}))
    first, second = gateway.get("/hour/a"), gateway.get("/hour/a")
    assert "pilotlight" in first.cache_status and "fwd=" in first.cache_status and "stored" in first.cache_status
    assert is_hit(second) and "ttl=" in second.cache_status
    assert (second.text, second.get("x-origin"), second.get("content-type")) == ("1", "kept", "text/plain")
    ttl = int(second.cache_status.split("ttl=")[1].split(";")[0])
    assert 3590 <= ttl <= 3600
    assert origin.count("/hour/a") == 1


def test_an_entry_ends_with_its_lifetime(origin, gateway):
    origin.on("/second/a", counted())
    stored = time.monotonic()
    assert gateway.get("/second/a").text == "1"
    assert is_hit(gateway.get("/second/a"))
    wait_until(lambda: gateway.get("/second/a").text == "2", 5, "a fresh answer")
    # An entry that is asked for is refreshed at 80 % of its lifetime, less up to a tenth of jitter.
    assert time.monotonic() - stored > 0.7


def test_what_the_origin_says_of_its_lifetime_counts(origin, gateway):
    origin.on("/hour/short", counted({"Cache-Control": "max-age=1"}))
    origin.on("/second/long", counted({"Cache-Control": "max-age=3600"}))
    origin.on("/second/shared", counted({"Cache-Control": "max-age=0, s-maxage=3600"}))
    started = time.monotonic()
    for target in ("/hour/short", "/second/long", "/second/shared"):
        gateway.get(target)
        assert is_hit(gateway.get(target)), target
    wait_until(lambda: gateway.get("/hour/short").text == "2", 5, "the short one's end")
    time.sleep(max(0.0, started + 2.1 - time.monotonic()))
    assert is_hit(gateway.get("/second/long")) and is_hit(gateway.get("/second/shared"))


def test_override_uses_ttl_whatever_the_origin_says(origin, gateway):
    origin.on("/override/zero", counted({"Cache-Control": "max-age=0, must-revalidate"}))
    origin.on("/override/past", counted({"Expires": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    for target in ("/override/zero", "/override/past"):
        gateway.get(target)
        assert is_hit(gateway.get(target)), target


@pytest.mark.parametrize("route", ["/hour", "/override"])
@pytest.mark.parametrize("directive", ["no-store", "private", "private, max-age=60", "max-age=60, no-store"])
def test_no_store_and_private_are_never_stored(origin, gateway, route, directive):
    origin.on(f"{route}/n", counted({"Cache-Control": directive}))
    responses = [gateway.get(f"{route}/n") for _ in range(3)]
    assert [r.text for r in responses] == ["1", "2", "3"]
    assert not any(is_hit(r) or "stored" in r.cache_status for r in responses)


def test_a_route_without_a_cache_and_a_silent_origin_stores_nothing(origin, gateway):
    origin.on("/plain", counted())
    assert [gateway.get("/plain").text for _ in range(3)] == ["1", "2", "3"]


@pytest.mark.parametrize("status", [500, 503, 201])
def test_statuses_that_are_not_to_be_kept_get_no_ttl(origin, gateway, status):
    origin.on("/hour/e", counted(status=status))
    assert [gateway.get("/hour/e").text for _ in range(2)] == ["1", "2"]


def test_age_is_told_and_counts_the_upstreams(origin, gateway):
    origin.on("/hour/young", counted())
    origin.on("/hour/old", counted({"Age": "100"}))
    for target in ("/hour/young", "/hour/old"):
        gateway.get(target)
    young, old = int(gateway.get("/hour/young").get("age")), int(gateway.get("/hour/old").get("age"))
    assert 0 <= young <= 2 and 100 <= old <= 102
    wait_until(lambda: int(gateway.get("/hour/young").get("age")) >= 2, 5, "the age to grow")


def test_stale_while_revalidate_keeps_nobody_waiting(origin, gateway):
    origin.on("/swr/a", lambda r: Reply(f"{r.number}", delay=0.0 if r.number == 1 else 0.7))
    assert gateway.get("/swr/a").text == "1"
    slowest = 0.0

    def renewed():
        nonlocal slowest
        response = gateway.get("/swr/a")
        slowest = max(slowest, response.elapsed)
        return response.text != "1"

    wait_until(renewed, 8, "the renewed answer")
    assert slowest < 0.3, "a client waited for the refresh"
    assert origin.count("/swr/a") == 2 and origin.peak == 1


# --- For whom


def test_set_cookie_is_never_shared(origin, gateway):
    origin.on("/hour/c", lambda r: Reply("x", {"Set-Cookie": f"session={r.number}; HttpOnly"}))
    cookies = [gateway.get("/hour/c").get("set-cookie") for _ in range(3)]
    assert cookies == [f"session={n}; HttpOnly" for n in (1, 2, 3)]


def test_several_set_cookies_stay_several(origin, gateway):
    origin.on("/plain", Reply("x", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    assert gateway.get("/plain").headers.all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("field", ["Authorization", "X-API-Key"])
def test_answers_to_credentials_are_not_shared(origin, gateway, field):
    origin.on("/hour/me", lambda r: Reply(f"for {r.get(field)} {r.number}"))
    ask = lambda who: gateway.get("/hour/me", {field: f"Bearer {who}"} if who else {}).text  # noqa: E731
    assert [ask("ann"), ask("bob"), ask("ann"), ask(None)] == [
        "for Bearer ann 1", "for Bearer bob 2", "for Bearer ann 3", "for None 4"]


def test_authorization_may_be_shared_where_the_origin_allows_it(origin, gateway):
    origin.on("/hour/public", counted({"Cache-Control": "public, max-age=60"}))
    assert gateway.get("/hour/public", {"Authorization": "Bearer ann"}).text == "1"
    assert is_hit(gateway.get("/hour/public", {"Authorization": "Bearer bob"}))


@pytest.mark.parametrize("field", ["Authorization", "X-API-Key"])
def test_per_credential_keeps_one_entry_for_each(origin, gateway, field):
    origin.on("/each/a", lambda r: Reply(f"for {r.get(field)}"))
    ask = lambda who: gateway.get("/each/a", {field: who} if who else {})  # noqa: E731
    assert [ask(who).text for who in ("k1", "k2", None)] == ["for k1", "for k2", "for None"]
    again = {who: ask(who) for who in ("k1", "k2", None)}
    assert all(is_hit(r) and r.text == f"for {who}" for who, r in again.items())
    assert origin.count("/each/a") == 3


def test_per_credential_tells_the_two_fields_apart(origin, gateway):
    origin.on("/each/b", lambda r: Reply(f"{r.get('authorization')} {r.get('x-api-key')}"))
    assert gateway.get("/each/b", {"Authorization": "same"}).text == "same None"
    assert gateway.get("/each/b", {"X-API-Key": "same"}).text == "None same"
    assert gateway.get("/each/b", {"X-API-Key": "same", "Authorization": "same"}).text == "same same"


def test_vary_keeps_variants_apart(origin, gateway):
    origin.on("/hour/v", lambda r: Reply(f"in {r.get('accept-language')}", {"Vary": "Accept-Language"}))
    ask = lambda language: gateway.get("/hour/v", {"Accept-Language": language} if language else {})  # noqa: E731
    for language in ("de", "fr", None):
        assert ask(language).text == f"in {language}"
    for language in ("de", "fr", None):
        response = ask(language)
        assert is_hit(response) and response.text == f"in {language}"
    assert origin.count("/hour/v") == 3


def test_vary_star_is_never_reused(origin, gateway):
    origin.on("/hour/star", counted({"Vary": "*"}))
    assert [gateway.get("/hour/star").text for _ in range(3)] == ["1", "2", "3"]


def test_host_and_query_are_part_of_the_key(origin, gateway):
    origin.on("/hour/k", lambda r: Reply(f"{r.get('host')} {r.target}"))
    asks = [("a.example", "/hour/k"), ("b.example", "/hour/k"), ("a.example", "/hour/k?x=1"), ("a.example", "/hour/k?x=2"),
            ("a.example", "/hour/k?")]
    for _ in range(2):
        for host, target in asks:
            assert gateway.get(target, {"Host": host}).text == f"{host} {target}"


# --- Conditional requests, HEAD, and other methods

ETAG = '"v1"'
MODIFIED = "Tue, 01 Jul 2025 10:00:00 GMT"


def validated(request):
    headers = {"ETag": ETAG, "Last-Modified": MODIFIED, "X-Kind": "validated"}
    if request.get("if-none-match") == ETAG or (not request.get("if-none-match") and request.get("if-modified-since")):
        return Reply(b"", headers, status=304)
    return Reply("validated body", headers)


@pytest.mark.parametrize("condition, status", [
    ({"If-None-Match": ETAG}, 304),
    ({"If-None-Match": 'W/"v1"'}, 304),
    ({"If-None-Match": '"v0", "v1"'}, 304),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": '"other"'}, 200),
    ({"If-Modified-Since": MODIFIED}, 304),
    ({"If-Modified-Since": "Tue, 01 Jul 2025 09:00:00 GMT"}, 200),
    ({"If-None-Match": '"other"', "If-Modified-Since": MODIFIED}, 200),
    ({"If-Modified-Since": "no date"}, 200),
])
def test_conditions_are_answered_from_the_cache(origin, gateway, condition, status):
    origin.on("/hour/e", validated)
    gateway.get("/hour/e")
    with gateway.connect() as client:
        response = client.request("GET", "/hour/e", condition)
        assert response.status == status
        assert response.get("etag") == ETAG
        assert response.body == (b"" if status == 304 else b"validated body")
        assert client.request("GET", "/hour/e").body == b"validated body", "the connection is in step"
    assert origin.count("/hour/e") == 1


def test_a_clients_condition_does_not_leave_a_304_in_the_cache(origin, gateway):
    origin.on("/hour/cold", validated)
    assert gateway.get("/hour/cold", {"If-None-Match": ETAG}).status == 304
    response = gateway.get("/hour/cold")
    assert (response.status, response.text) == (200, "validated body")


def test_a_stale_entry_is_validated_and_lives_on(origin, gateway):
    origin.on("/second/v", validated)
    assert gateway.get("/second/v").text == "validated body"

    def asked_again():
        response = gateway.get("/second/v")
        assert (response.status, response.text, response.get("x-kind")) == (200, "validated body", "validated")
        return origin.count("/second/v") >= 2

    wait_until(asked_again, 5, "the validation")
    assert origin.seen("/second/v")[1].get("if-none-match") == ETAG
    assert is_hit(gateway.get("/second/v")), "a 304 from the origin renews the lifetime"


def test_a_changed_answer_replaces_the_stale_one(origin, gateway):
    origin.on("/second/c", lambda r: Reply(f"body {r.number}", {"ETag": f'"{r.number}"'}))
    assert gateway.get("/second/c").text == "body 1"
    wait_until(lambda: gateway.get("/second/c").text == "body 2", 5, "the new one")


def test_head_is_answered_from_a_stored_get(origin, gateway):
    origin.on("/hour/h", Reply("twelve bytes", {"X-Kind": "stored"}))
    gateway.get("/hour/h")
    with gateway.connect() as client:
        response = client.request("HEAD", "/hour/h")
        assert is_hit(response) and response.status == 200 and response.body == b""
        assert (response.get("content-length"), response.get("x-kind")) == ("12", "stored")
        assert client.request("GET", "/hour/h").text == "twelve bytes", "the connection is in step"
    assert origin.count("/hour/h") == 1


def test_head_without_a_stored_get_reaches_the_origin(origin, gateway):
    origin.on("/hour/hh", Reply("twelve bytes"))
    with gateway.connect() as client:
        response = client.request("HEAD", "/hour/hh")
        assert (response.status, response.body, response.get("content-length")) == (200, b"", "12")
        assert client.request("GET", "/hour/hh").text == "twelve bytes", "a HEAD never stands in for a GET"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_unsafe_methods_pass_and_invalidate(origin, gateway, method):
    origin.on("/hour/i", lambda r: Reply(f"{r.method} {r.number}"))
    assert gateway.get("/hour/i").text == "GET 1"
    assert gateway.http(method, "/hour/i", body=b"x").text == f"{method} 2"
    assert gateway.get("/hour/i").text == "GET 3"


def test_a_failed_post_invalidates_nothing(origin, gateway):
    origin.on("/hour/f", lambda r: Reply("no", status=500) if r.method == "POST" else Reply(f"{r.number}"))
    assert gateway.get("/hour/f").text == "1"
    assert gateway.http("POST", "/hour/f", body=b"x").status == 500
    assert is_hit(gateway.get("/hour/f"))


def test_post_is_never_served_from_the_cache(origin, gateway):
    origin.on("/hour/p", lambda r: Reply(f"{r.number}", {"Cache-Control": "max-age=60"}))
    assert [gateway.http("POST", "/hour/p", body=b"x").text for _ in range(3)] == ["1", "2", "3"]


# --- How much


def test_memory_is_bounded(origin):
    size = 256 * 1024
    origin.on("/hour/", lambda r: Reply(r.target.ljust(size, ".")))
    with Gateway(CONFIG.replace('"64MiB"', '"16MiB"'), origin=origin.address) as gateway:
        for n in range(300):
            assert gateway.get(f"/hour/{n}").text == f"/hour/{n}".ljust(size, ".")
        # Counts are published a few times a second.
        metrics = wait_until(
            lambda: m if (m := gateway.metrics()).sum("pilotlight_cache_evictions_total") >= 200 else None, 5, "200 evictions"
        )
        assert 4 << 20 <= metrics.sum("pilotlight_cache_bytes") <= 16 << 20
        assert metrics.sum("pilotlight_cache_entries") <= 64
        assert gateway.rss_bytes() < 100 << 20
        assert is_hit(gateway.get("/hour/299")), "the newest entry is there"


def test_what_is_larger_than_max_object_passes_and_is_not_stored(origin, gateway):
    body = "b" * (2 << 20)
    origin.on("/hour/big", lambda r: Reply(body, chunked=r.number % 2 == 0))
    for n in range(1, 4):
        response = gateway.get("/hour/big")
        assert response.text == body and not is_hit(response)
        assert origin.count("/hour/big") == n
