# Between Caddy and gunicorn in scripts/lab, with grace against stampedes. @NAMES@ are filled in by it.
vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
}

sub vcl_backend_response {
    set beresp.grace = 60s;
    if (bereq.url ~ "^/api/v1/farms/") {
        set beresp.ttl = 5s;
    } elsif (bereq.url == "/metrics") {
        set beresp.ttl = 1s;
    } else {
        set beresp.uncacheable = true;
    }
}

sub vcl_recv {
    # Otherwise calls that are never stored would wait for each other.
    if (req.url !~ "^/api/v1/farms/" && req.url != "/metrics") {
        return (pass);
    }
}
