# Varnish as it comes, but for what the suite needs to work at all: a peer in scripts/cache-tests. @NAMES@ are filled in by it.
vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
}

sub vcl_backend_response {
    # Without this, what says nothing about freshness would be kept for two minutes, which the suite counts as a fault.
    if (!beresp.http.Cache-Control && !beresp.http.Expires) {
        set beresp.ttl = 0s;
    }
    # Keeps stale responses around to be validated, and serves none.
    set beresp.grace = 0s;
    set beresp.keep = 1h;
}
