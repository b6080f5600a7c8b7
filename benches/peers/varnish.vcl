# Varnish with its built-in rules: a peer in scripts/bench. @NAMES@ are filled in by it.
vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
}
