//! What people get wrong, and the line they read; and that what `check` prints means the same again.

use std::collections::BTreeMap;

use super::load::parse_in;
use super::print::effective;
use super::*;

const CPUS: [usize; 4] = [0, 1, 2, 5];

fn parse(text: &str, flags: &Overrides) -> Result<Config, ConfigError> {
    parse_in(text, flags, &CPUS, &BTreeMap::from([("WARM_API_KEY", "s3cret"), ("BAD", "a\nb")]))
}

fn flags(listen: &[&str], upstream: &str, admin: &str, shards: &str) -> Overrides {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let listen = listen.iter().map(|&text| text.to_owned()).collect();
    Overrides { listen, upstream: given(upstream), admin: given(admin), shards: given(shards) }
}

/// The file of interface.md.
const CONTRACT: &str = r#"
[server]
listen          = ["127.0.0.1:8080"]        # or "unix:/run/pilotlight/http.sock"
shards          = "auto"                    # "auto", a number, or a CPU list such as "2-5,8"
busy_poll       = "off"                     # or how long a shard spins before it sleeps: "50us"; "always"
idle_timeout    = "180s"                    # longer than Caddy's 2 min, so that we never close first
drain_timeout   = "30s"
trusted_proxies = ["127.0.0.0/8", "::1"]    # only these may set X-Forwarded-*

[admin]
listen = "127.0.0.1:9180"

[cache]
memory     = "512MiB"                       # all shards together, index included
max_object = "8MiB"

[upstreams.django]
servers            = ["127.0.0.1:8000"]     # several are balanced; "unix:/run/gunicorn.sock" works
max_concurrency    = 4                      # what it can really do at once; the rest waits here, foreground first
background_share   = 0.5                    # of that, at most so much for refreshing and warming
connect_timeout    = "1s"
first_byte_timeout = "30s"
idle_timeout       = "1500ms"               # shorter than gunicorn's 2 s

[upstreams.ndvi]
servers = ["127.0.0.1:8081"]

[[routes]]                                  # the longest matching path wins; a route may also name a host
path     = "/api/v1/farms/"
upstream = "django"
max_concurrency = 3                         # of the upstream's slots, at most so many for this route
[routes.cache]
ttl                    = "6h"               # used where the response says nothing about its lifetime
override               = false              # true: use ttl whatever the response says (never stores no-store or private)
stale_while_revalidate = "1d"
stale_if_error         = "7d"
refresh_ahead          = 0.8                # refresh popular entries at 80 % of their lifetime; 0 turns it off
authorization          = "rfc9111"          # or "per-credential": one entry per Authorization / X-API-Key value

[[routes]]
path     = "/"
upstream = "django"

[[warm]]                                    # fetched before /readyz says yes, and kept fresh from then on
paths   = ["/api/v1/farms/{1..8}/ndvi/latest/", "/api/v1/weather/current/?lat=-1.3&lon=36.8"]
host    = "api.example.com"                 # the Host that clients will send: part of the key
headers = { "X-API-Key" = "env:WARM_API_KEY" }
"#;

/// Every key there is, each away from its default.
const EVERYTHING: &str = r#"
[server]
listen = ["[::1]:8443", "unix:/run/p/http.sock", ":81"]
shards = 6
busy_poll = "50us"
idle_timeout = "1m 1ms"
header_timeout = "1s"
body_timeout = "2s"
drain_timeout = "0s"
half_close_timeout = "2s"
max_connections = 7
max_request_body = "10MB"
trusted_proxies = []
name = "edge-1"
server_timing = true
[admin]
listen = "unix:/run/p/admin.sock"
hosts = ["GW.internal", "gw"]
[cache]
memory = "1GiB"
max_object = 12345
snapshot = "/var/lib/p/a \"b\".snapshot"
snapshot_interval = "0s"
[upstreams.a]
servers = ["unix:/run/a.sock", "App.internal:80", "10.0.0.1:1"]
max_concurrency = 4
background_share = 1
reserve = 1
connect_timeout = "2s"
first_byte_timeout = "3s"
read_timeout = "4s"
total_timeout = "5s"
idle_timeout = "0s"
slow_start = "0s"
resolve_interval = "1m"
retries = 3
retry_budget = 0.1
ejection = { failures = 2, share = 0.25, min_requests = 3, interval = "1s", time = "2s", max_time = "3s", max_ejected = 1 }
health_check = { path = "/ok?x", host = "App.internal", interval = "1s", timeout = "500ms", healthy = 1, unhealthy = 2 }
breaker = { share = 0.75, window = "20s", min_requests = 2, open = "1s", probes = 1 }
queue_timeout = "6s"
max_queue = 0
[[routes]]
name = "the \"heavy\" one"
host = "API.example.com.:80"
path = "/a"
upstream = "a"
max_concurrency = 2
server_timing = false
[routes.cache]
ttl = "10s"
override = true
store_set_cookie = true
stale_while_revalidate = "1s"
stale_if_error = "2s"
refresh_ahead = 0
authorization = "per-credential"
negative_ttl = { 404 = "10s", "502" = "1s" }
[routes.rate_limit]
requests = 100
per = "1m"
burst = 7
by = "header:X-Tenant"
[[routes]]
path = "/b"
upstream = "a"
cache = false
rate_limit = { requests = 5 }
[[routes]]
path = "/c"
upstream = "a"
cache = true
[[routes]]
path = "/metrics"
upstream = "a"
[routes.shield]
interval = "5s"
host = "API.example.com"
[[routes]]
path = "/metrics/b"
upstream = "a"
[routes.shield]
[[warm]]
name = "w"
scheme = "https"
host = "api.example.com:8443"
paths = ["/a/{x,y}", "/a/x", "/c?q='%7B'"]
headers = { Accept = "text/\"x\"", "X-API-Key" = "env:WARM_API_KEY" }
[log]
access = "/var/log/p/access.log"
sample = 1
slow = "0s"
[tracing]
endpoint = "http://[::1]/otlp?x"
sample = 0.5
service = "edge"
"#;

#[test]
fn what_is_printed_loads_to_the_same() {
    for (text, given) in [
        (CONTRACT, Overrides::default()),
        (EVERYTHING, Overrides::default()),
        ("", flags(&[":80"], "unix:/run/a.sock", "", "1")),
        ("", flags(&[], "127.0.0.1:8000", "", "5-5,0-1")),
    ] {
        let config = parse(text, &given).unwrap();
        let printed = effective(&config);
        assert!(!printed.contains("s3cret"), "a secret was printed");
        let again = parse(&printed, &Overrides::default()).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(again, config, "{printed}");
    }
}

#[test]
fn the_contract_says_the_defaults() {
    let bare = "[upstreams.django]\nservers = [\"127.0.0.1:8000\"]\nmax_concurrency = 4";
    let (contract, bare) =
        (parse(CONTRACT, &Overrides::default()).unwrap(), parse(bare, &Overrides::default()).unwrap());
    assert_eq!((contract.server, contract.admin, contract.cache), (bare.server, bare.admin, bare.cache));
    assert_eq!(contract.upstreams[0], bare.upstreams[0]);
    assert_eq!(contract.routes[1], bare.routes[0]);
    assert_eq!(contract.warm[0].targets.len(), 9);
    assert_eq!(contract.warm[0].headers["X-API-Key"], "s3cret");
}

#[test]
fn everything_is_read() {
    let config = parse(EVERYTHING, &Overrides::default()).unwrap();
    assert_eq!(config.server.shards, [Some(0), Some(1), Some(2), Some(5), None, None]);
    assert_eq!(config.server.max_request_body, 10_000_000);
    assert_eq!(config.upstreams[0].servers[1], Addr::Name("app.internal".to_owned(), 80));
    assert_eq!(config.routes[0].host.as_deref(), Some("api.example.com"));
    assert_eq!((config.routes[1].name.as_str(), config.routes[1].cache.is_none()), ("/b", true));
    assert_eq!(config.routes[2].cache, Some(RouteCache::default()));
    let limit = |requests, secs, burst, by| RateLimit { requests, per: Duration::from_secs(secs), burst, by };
    assert_eq!(config.routes[0].rate_limit, Some(limit(100, 60, 7, LimitBy::Header("x-tenant".to_owned()))));
    assert_eq!(config.routes[1].rate_limit, Some(limit(5, 1, 5, LimitBy::Address)));
    assert_eq!(config.warm[0].targets, ["/a/x", "/a/y", "/c?q='%7B'"]);
    assert_eq!(config.log.access, Some(LogTarget::File("/var/log/p/access.log".into())));
    let collector = config.tracing.unwrap().endpoint.unwrap();
    assert_eq!((&*collector.host, collector.port, &*collector.path), ("::1", 4318, "/otlp?x"));
}

#[test]
fn flags_alone_suffice() {
    let config = parse("", &flags(&[], "127.0.0.1:8000", "", "")).unwrap();
    assert_eq!(config.server.listen, [Addr::Tcp("127.0.0.1:8080".parse().unwrap())]);
    assert_eq!(config.admin, Addr::Tcp("127.0.0.1:9180".parse().unwrap()));
    assert_eq!(config.server.shards, CPUS.map(Some));
    assert_eq!((config.upstreams.len(), config.upstreams[0].name.as_str()), (1, "default"));
    assert_eq!(config.routes, [routes::everything(0)]);
}

#[test]
fn the_upstream_flag_finds_its_place() {
    let server = [Addr::Tcp("127.0.0.1:9".parse().unwrap())];
    let given = flags(&[], "127.0.0.1:9", "", "");
    let one = parse("[upstreams.a]\nservers=[\":1\"]\nmax_concurrency=3", &given).unwrap();
    assert_eq!(
        (&one.upstreams[0].servers[..], one.upstreams[0].max_concurrency),
        (&server[..], Some(Concurrency::Fixed(3)))
    );

    let two = "[upstreams.a]\nservers=[\":1\"]\n[upstreams.b]\nservers=[\":2\"]\n";
    let two = parse(&format!("{two}[[routes]]\npath='/a'\nupstream='a'"), &given).unwrap();
    assert_eq!((two.upstreams[2].name.as_str(), &two.upstreams[2].servers[..]), ("default", &server[..]));
    assert_eq!((two.routes[1].path.as_str(), two.routes[1].upstream), ("/", 2));

    let named = "[upstreams.a]\nservers=[\":1\"]\n[upstreams.default]\nservers=[\":2\"]\n";
    let named = parse(&format!("{named}[[routes]]\npath='/'\nupstream='a'"), &given).unwrap();
    assert_eq!((named.upstreams.len(), &named.upstreams[1].servers[..]), (2, &server[..]));
}

/// A warm list for an upstream that may do nothing in the background.
const IDLE_UPSTREAM: &str = "\
[[routes]]
path = '/b'
upstream = 'b'
[upstreams.b]
servers = [':2']
max_concurrency = 1
background_share = 0.0
[[warm]]
host = 'h'
paths = ['/b']";

/// `text` after a correct upstream and route, which take the first four lines.
fn error(text: &str) -> String {
    let start = "upstreams.a.servers = [':1']\n[[routes]]\npath = '/a'\nupstream = 'a'\n";
    parse(&format!("{start}{text}"), &Overrides::default()).expect_err(text).to_string()
}

#[test]
fn mistakes_in_a_file() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        ("[server", "p.toml:5:8: unclosed table, expected `]`"),
        (
            "[server]\nlistn = []",
            "p.toml:6:1: unknown key `listn`; did you mean `listen`? (known here: `listen`, `shards`",
        ),
        (
            "[sever]\n",
            "p.toml:5:2: unknown key `sever`; did you mean `server`? (known here: `server`, `admin`, `cache`",
        ),
        (
            "zzzzzz = 1\n[routes.cache]\nttl = '1s'",
            "p.toml:5:1: unknown key `zzzzzz` (known here: `name`, `host`, `path`",
        ),
        ("[routes.cache]\nxx = 1", "p.toml:6:1: unknown key `xx`"),
        ("[[routes]]\npath = '/'", "p.toml:5:1: missing key `upstream`"),
        ("[server]\nidle_timeout = '6 fortnights'", "p.toml:6:16: bad duration \"6 fortnights\": "),
        ("[server]\nidle_timeout = 30", "p.toml:6:16: invalid type: integer `30`, expected a duration with a unit"),
        ("[server]\nidle_timeout = '2d'", "p.toml:6:16: the duration 2d is out of bounds: 1ms to 1d is allowed"),
        ("[server]\nidle_timeout = '0s'", "p.toml:6:16: the duration 0s is out of bounds: 1ms to 1d is allowed"),
        ("[routes.cache]\nttl = '2y'", "p.toml:6:7: the duration 17532h is out of bounds: 0s to 366d is allowed"),
        ("[server]\nbusy_poll = 'on'", "p.toml:6:13: bad busy_poll \"on\": expected \"off\", \"always\" or a duration"),
        ("[server]\nbusy_poll = '2s'", "p.toml:6:13: the duration 2s is out of bounds"),
        ("[server]\nmax_connections = 0", "p.toml:6:19: invalid value: integer `0`, expected a nonzero usize"),
        ("[log]\naccess = 'log/access'", "p.toml:6:10: bad access \"log/access\": expected \"off\""),
        ("[log]\nsample = 2", "p.toml:6:10: the share 2 is out of bounds"),
        ("[log]\nacces = 'off'", "p.toml:6:1: unknown key `acces`; did you mean `access`?"),
        ("[tracing]\nendpoint = 'https://c'", "p.toml:6:12: bad endpoint \"https://c\": expected http://HOST"),
        ("[tracing]\nendpoint = 'http://c:0'", "p.toml:6:12: bad endpoint"),
        ("[tracing]\nendpoint = 'http://[::g]'", "p.toml:6:12: bad endpoint"),
        ("[tracing]\nendpoint = 'http://a b/'", "p.toml:6:12: bad endpoint"),
        ("[server]\nname = 'a b'", "p.toml:6:8: bad name \"a b\": expected a token"),
        ("[server]\ntrusted_proxies = ['::1', '10.0.0.0/33']", "p.toml:6:27: bad trusted proxy \"10.0.0.0/33\""),
        ("[cache]\nmemory = '8 apples'", "p.toml:6:10: bad size \"8 apples\": expected a whole number and B, k, m"),
        ("[cache]\nmemory = '1k'", "p.toml:6:10: the cache's memory is 1KiB: at least 1MiB is needed"),
        ("[cache]\nmax_object = '1GiB'", "p.toml:6:14: max_object is 1GiB: more than the cache's memory of 512MiB"),
        ("[cache]\nmax_object = -1", "p.toml:6:14: the size -1 is negative"),
        ("[cache]\nsnapshot = 'a/b'", "p.toml:6:12: bad path \"a/b\": expected an absolute one"),
        ("[cache]\nsnapshot_interval = '2d'", "p.toml:6:21: the duration 2d is out of bounds: 0s to 1d is allowed"),
        ("[server]\nlisten = []", "p.toml:6:10: no address to listen on"),
        ("[server]\nlisten = ['a.example:80']", "p.toml:6:11: cannot listen on the host \"a.example\""),
        (
            "[server]\nlisten = ['127.0.0.1']",
            "p.toml:6:11: bad address \"127.0.0.1\": expected host:port, :port or unix:/path",
        ),
        (
            "[server]\nlisten = ['127.0.0.1:0']",
            "p.toml:6:11: bad port \"0\" in the address \"127.0.0.1:0\": expected 1 to 65535",
        ),
        (
            "[server]\nlisten = [':80', '127.0.0.1:80']",
            "p.toml:6:18: the listener 127.0.0.1:80 overlaps the listener 0.0.0.0:80",
        ),
        (
            "[server]\nlisten = ['unix:/a', 'unix:/a']",
            "p.toml:6:22: the listener unix:/a overlaps the listener unix:/a",
        ),
        (
            "[server]\nlisten = [':9180']",
            "p.toml:6:11: the admin address 127.0.0.1:9180 overlaps the listener 0.0.0.0:9180",
        ),
        (
            "[admin]\nlisten = ':8080'",
            "p.toml:6:10: the admin address 0.0.0.0:8080 overlaps the listener 127.0.0.1:8080",
        ),
        (
            "[admin]\nhosts = ['http://gw']",
            "p.toml:6:10: bad host \"http://gw\": expected a name without scheme and port",
        ),
        (
            "[server]\nshards = '0-2,7'",
            "p.toml:6:10: CPU 7 of the list \"0-2,7\" may not be used by this process; allowed: 0-2,5",
        ),
        ("[server]\nshards = 'many'", "p.toml:6:10: bad shards \"many\": expected \"auto\", a number, or a CPU list"),
        ("[server]\nshards = 0", "p.toml:6:10: 0 shards: expected 1 to 256"),
        (
            "[server]\nshards = true",
            "p.toml:6:10: invalid type: boolean `true`, expected \"auto\", a number of shards, or",
        ),
        (
            "[routes.cache]\nnegative_ttl = { 200 = '1s' }",
            "p.toml:6:18: bad status \"200\" in negative_ttl: expected 400 to 599",
        ),
        ("[routes.cache]\nnegative_ttl = { 0404 = '1s' }", "p.toml:6:18: bad status \"0404\" in negative_ttl"),
        ("[routes.cache]\nnegative_ttl = { 401 = '1s' }", "p.toml:6:18: 401 depends on who asks"),
        (
            "[upstreams.b]\nservers = [':2']\nhealth_check = { path = 'x' }",
            "p.toml:7:25: bad path \"x\": expected a path",
        ),
        ("[upstreams.b]\nservers = [':2']\nhealth_check = true", "p.toml:7:16: invalid type: boolean `true`"),
        (
            "[upstreams.b]\nservers = [':2']\nbreaker = 1",
            "p.toml:7:11: invalid type: integer `1`, expected false, true",
        ),
        ("[upstreams.b]\nservers = [':2']\nbreaker = { x = 1 }", "p.toml:7:13: unknown key `x`"),
        ("[upstreams.b]\nservers = [':2']\nresolve_interval = '1ms'", "p.toml:7:20: the duration 1ms is out of bounds"),
        ("[upstreams.b]\nservers = []", "p.toml:6:11: the upstream `b` has 0 servers: expected 1 to 256"),
        ("[upstreams.b]\nmax_queue = 1", "p.toml:5:1: missing key `servers`"),
        (
            "[upstreams.b]\nservers = [':1', '127.0.0.1:1']",
            "p.toml:6:18: the server 127.0.0.1:1 stands twice in the upstream `b`",
        ),
        ("[upstreams.b]\nservers = [':8080']", "p.toml:6:12: the server 127.0.0.1:8080 is this gateway's own listener"),
        ("[upstreams.b]\nservers = ['http://x']", "p.toml:6:12: bad address \"http://x\": expected no scheme"),
        (
            "[upstreams.b]\nservers = [':2']\nbackground_share = 1.5",
            "p.toml:7:20: the share 1.5 is out of bounds: 0 to 1 is allowed",
        ),
        ("[upstreams.b]\nservers = [':2']\nbackground_share = nan", "p.toml:7:20: the share NaN is out of bounds"),
        (
            "[upstreams.b]\nservers = [':2']\nreserve = 1",
            "p.toml:7:11: reserve is a part of max_concurrency, which is not there",
        ),
        (
            "[upstreams.b]\nservers = [':2']\nmax_concurrency = 2\nreserve = 2",
            "p.toml:8:11: reserve is 2: expected less than the max_concurrency of 2",
        ),
        ("[upstreams.b]\nservers = [':2']\nmax_concurrency = 0", "p.toml:7:19: expected a number from 1 on"),
        (
            "[upstreams.b]\nservers = [':2']\nmax_concurrency = 'automatic'",
            "p.toml:7:19: bad max_concurrency \"automatic\": expected a number or \"auto\"",
        ),
        (
            "[upstreams.b]\nservers = [':2']\nmax_concurrency = { min = 3, max = 2 }",
            "p.toml:7:19: min 3, initial 3, max 2: expected each to be at most the next",
        ),
        (
            "[[routes]]\npath = '/b'\nupstream = 'aa'",
            "p.toml:7:12: unknown upstream `aa`; did you mean `a`? (known here: `a`)",
        ),
        (
            "[[routes]]\npath = '/a'\nupstream = 'a'",
            "p.toml:6:8: the path \"/a\" on any host has a route already, number 1",
        ),
        ("[[routes]]\npath = 'a'\nupstream = 'a'", "p.toml:6:8: bad path \"a\": it must start with /"),
        ("[[routes]]\npath = '/a?b'\nupstream = 'a'", "p.toml:6:8: bad path \"/a?b\": '?' cannot be part of it"),
        ("[[routes]]\npath = '/b'\nhost = '*'\nupstream = 'a'", "p.toml:7:8: bad host \"*\""),
        (
            "[[routes]]\npath = '/b'\nname = '/a'\nupstream = 'a'",
            "p.toml:7:8: the name \"/a\" is that of route number 1 already",
        ),
        ("[routes.rate_limit]\nper = '1s'", "p.toml:5:1: missing key `requests`"),
        ("[routes.rate_limit]\nrequests = 0", "p.toml:6:12: invalid value: integer `0`, expected a nonzero u32"),
        ("[routes.rate_limit]\nrequests = 1\nper = '1500ms'", "p.toml:7:7: per must be whole seconds"),
        (
            "[routes.rate_limit]\nrequests = 1\nper = '500ms'",
            "p.toml:7:7: the duration 500ms is out of bounds: 1s to 1d is allowed",
        ),
        ("[routes.rate_limit]\nrequests = 1\nby = 'adress'", "p.toml:7:6: bad by \"adress\": expected \"address\""),
        ("[routes.rate_limit]\nrequests = 1\nby = 'header:X_T'", "p.toml:7:6: bad field name \"X_T\" in by"),
        ("[routes.rate_limit]\nrequests = 9001\nburst = 9", "p.toml:7:9: the burst 9 is too small for 9001 requests"),
        ("[routes.rate_limit]\nrequests = 1\nbrust = 2", "p.toml:7:1: unknown key `brust`; did you mean `burst`?"),
        ("[routes.cache]\noverride = true", "p.toml:6:12: override = true needs a ttl beside it"),
        ("[routes.cache]\nrefresh_ahead = -1", "p.toml:6:17: the share -1 is out of bounds: 0 to 1 is allowed"),
        (
            "[routes.cache]\nauthorization = 'x'",
            "p.toml:6:17: bad authorization \"x\": expected \"rfc9111\" or \"per-credential\"",
        ),
        ("cache = 'off'", "p.toml:5:9: invalid type: string \"off\", expected false, true, or a [routes.cache] table"),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a', '/b']",
            "p.toml:7:16: no route for the warm path \"/b\" on the host \"h\"",
        ),
        ("[[warm]]\nhost = 'h'\npaths = ['a/b']", "p.toml:7:10: bad warm path \"a/b\": it must start with /"),
        ("[[warm]]\nhost = 'h'\npaths = ['/a b']", "p.toml:7:10: bad warm path \"/a b\": ' ' must be written as %XX"),
        ("[[warm]]\nhost = 'h'\npaths = ['/a/{1..2']", "p.toml:7:10: `{` without `}` in \"/a/{1..2\""),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a/{1..100001}']",
            "p.toml:7:10: \"/a/{1..100001}\" expands to more than the 100000",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a/{1..60000}', '/a/b{1..60000}']",
            "p.toml:7:27: the warm lists have more than the 100000",
        ),
        (
            "cache = false\n[[warm]]\nhost = 'h'\npaths = ['/a']",
            "p.toml:8:10: the warm path \"/a\" is taken by the route \"/a\", which has",
        ),
        (
            IDLE_UPSTREAM,
            "p.toml:14:10: the warm path \"/b\" goes to the upstream `b`, whose background_share of 0 forbids warming",
        ),
        ("[[warm]]\nhost = 'h'\npaths = []", "p.toml:7:9: no paths: expected at least one"),
        ("[[warm]]\nhost = 'h i'\npaths = ['/a']", "p.toml:6:8: bad host \"h i\""),
        (
            "[[warm]]\nhost = 'h'\nscheme = 'ftp'\npaths = ['/a']",
            "p.toml:7:10: bad scheme \"ftp\": expected \"http\" or \"https\"",
        ),
        ("[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { 'X Y' = 'v' }", "p.toml:8:13: bad header name \"X Y\""),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { Host = 'v' }",
            "p.toml:8:13: the header \"Host\" is the gateway's own",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { X = 'v', x = 'v' }",
            "p.toml:8:22: the header \"x\" stands twice",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { X = \"a\\nb\" }",
            "p.toml:8:17: bad header value: it has a control character",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { X = ' a' }",
            "p.toml:8:17: bad header value: it starts or ends with white",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { X = 'env:BAD' }",
            "p.toml:8:17: bad header value: it has a control character",
        ),
        (
            "[[warm]]\nhost = 'h'\npaths = ['/a']\nheaders = { X = 'env:NONE' }",
            "p.toml:8:17: the environment variable \"NONE\" of this",
        ),
    ] {
        let message = error(text);
        if !message.starts_with(expected) || message.contains('\n') {
            wrong.push(format!("{text}\n  got {message}\n  not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mistakes_in_flags() {
    let two = "[upstreams.a]\nservers=[\":1\"]\n[upstreams.b]\nservers=[\":2\"]\n";
    let two_routed = format!("{two}[[routes]]\npath='/'\nupstream='a'");
    for (text, given, expected) in [
        ("", flags(&[], "", "", ""), "p.toml: no upstream: give --upstream ADDR, or"),
        (two, flags(&[], "", "", ""), "p.toml: no routes: with several upstreams"),
        (&two_routed, flags(&[], ":9", "", ""), "--upstream: the file has several upstreams and a route for /"),
        ("", flags(&[], "x", "", ""), "--upstream: bad address \"x\""),
        ("", flags(&[], ":8080", "", ""), "--upstream: the server 127.0.0.1:8080 is this gateway's own listener"),
        ("", flags(&["x:1"], ":1", "", ""), "--listen: cannot listen on the host \"x\""),
        ("", flags(&[":1", ":1"], ":2", "", ""), "--listen: the listener 0.0.0.0:1 overlaps the listener 0.0.0.0:1"),
        ("", flags(&[":9180"], ":1", "", ""), "--listen: the admin address 127.0.0.1:9180 overlaps"),
        ("", flags(&[], ":1", ":8080", ""), "--admin: the admin address 0.0.0.0:8080 overlaps"),
        ("", flags(&[], ":1", "", "0"), "--shards: 0 shards: expected 1 to 256"),
        ("", flags(&[], ":1", "", "3-4"), "--shards: CPU 3 of the list \"3-4\" may not be used"),
    ] {
        let message = parse(text, &given).expect_err(expected).to_string();
        assert!(message.starts_with(expected), "got {message}\nnot {expected}");
    }
}

#[test]
fn an_unreadable_file() {
    let path = std::path::Path::new("/nonexistent/p.toml");
    let message = load(Some(path), &Overrides::default()).unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent/p.toml: cannot read the configuration: No such file"), "{message}");
}

#[test]
fn every_cut_of_a_file_is_read_or_refused_in_one_line() {
    for text in [CONTRACT, EVERYTHING] {
        for (end, _) in text.char_indices() {
            if let Err(error) = parse(&text[..end], &Overrides::default()) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

#[test]
fn a_shield_asks_as_a_scraper_would() {
    let config = |upstream: &str, route: &str| {
        let text = format!(
            "[upstreams.a]\nservers = ['{upstream}']\n[[routes]]\npath = '/metrics'\nupstream = 'a'\n{route}\n[routes.shield]\n"
        );
        parse(&text, &Overrides::default()).unwrap().routes[0].shield.clone().unwrap()
    };
    let interval = Duration::from_secs(15);
    for (upstream, route, host) in [
        ("127.0.0.1:8000", "", "127.0.0.1:8000"),
        ("app:8000", "", "app:8000"),
        ("unix:/run/app.sock", "", "localhost"),
        ("127.0.0.1:8000", "host = 'Api.example.com'", "api.example.com"),
    ] {
        assert_eq!(config(upstream, route), Shield { interval, host: host.to_owned() });
    }
    let error = |route: &str| {
        let text = format!("[upstreams.a]\nservers = [':1']\n[[routes]]\npath = '/m'\nupstream = 'a'\n{route}");
        parse(&text, &Overrides::default()).unwrap_err().to_string()
    };
    for (route, expected) in [
        ("cache = true\n[routes.shield]", "a shielded route keeps one page and caches nothing else"),
        ("[routes.shield]\ninterval = '2d'", "the duration 2d is out of bounds"),
        ("[routes.shield]\nhost = 'a b'", "bad host"),
        ("[routes.shield]\nhosts = 'a'", "unknown key `hosts`"),
        ("[routes.shield]\n[[warm]]\nhost = 'h'\npaths = ['/m']", "which is a scrape shield"),
    ] {
        assert!(error(route).contains(expected), "{route}: {}", error(route));
    }
}

#[test]
fn server_timing_is_the_servers_unless_the_route_says_otherwise() {
    let routes =
        "[[routes]]\npath = \"/\"\nupstream = \"a\"\n[[routes]]\npath = \"/b\"\nupstream = \"a\"\nserver_timing = ";
    for (server, of_route, expected) in
        [("", "true", [false, true]), ("server.server_timing = true\n", "false", [true, false])]
    {
        let text = format!("{server}upstreams.a.servers = [\"127.0.0.1:1\"]\n{routes}{of_route}\n");
        let config = load::parse("p.toml", &text, &Overrides::default()).unwrap();
        assert_eq!([0, 1].map(|route: usize| config.routes[route].server_timing), expected);
    }
    let text = "server.server_timing = true\nupstreams.a.servers = [\"127.0.0.1:1\"]\n";
    assert!(
        load::parse("p.toml", text, &Overrides::default()).unwrap().routes[0].server_timing,
        "the route that goes without saying"
    );
}
