"""The rules of the public frontend: which endpoint a request is for, whether it may pass, and its headers. Pure."""

from collections.abc import Iterator

from ownpod.front.counted import first_pass
from ownpod.front.layout import (
    ALIVE_PATH,
    ENDPOINT_HEADER,
    FRONT_HEADER,
    FRONT_KEY,
    JSON,
    UNLIMITED_MS,
    Layout,
    Maps,
    full,
    problem,
    quoted,
    refusal,
)
from ownpod.rules.homes import joined


def public(layout: Layout) -> Iterator[str]:
    yield "frontend public from base"
    for address in layout.binds:
        yield f"  bind {joined(*address)}"
    if layout.certificate is not None and layout.tls_port is not None:
        for host in dict.fromkeys(host for host, _ in layout.binds):
            where = joined(host, layout.tls_port)
            yield f"  bind {where} ssl crt {quoted(layout.certificate)} alpn h2,http/1.1"
    yield f"  monitor-uri {ALIVE_PATH}"
    yield from _which_endpoint(layout)
    yield from _access()
    yield from _refusals(layout)
    yield from _headers(layout)
    yield from (
        "  http-request set-var(txn.since) date if { var(txn.be) -m found }",
        # Entries of this table count what is held, queued and open.
        "  http-request track-sc0 var(txn.ep) table counts if { var(txn.be) -m found } !{ var(txn.remote) -m found }",
        "  http-request track-sc1 var(txn.wish) table wishes if { var(txn.wish) -m found }",
        # Lua runs only for what it decides: most requests have a worker, and name none.
        "  http-request lua.place if { var(txn.be) -m found } { var(txn.be),nbsrv eq 0 }",
        f"  http-request lua.place if {{ var(txn.be) -m found }} {{ var(txn.be),nbsrv eq 1 }} {{ var(txn.be),map_str({Maps.QUEUEING}) -m found }}",
        "  http-request lua.place if { var(txn.be) -m found } !{ var(txn.remote) -m found } !{ var(txn.pin) -m found } { var(txn.want) -m len gt 0 }",
        *first_pass(),
        "  use_backend %[var(txn.be)] if { var(txn.be) -m found }",
        "  default_backend api",
        "backend counts from base",
        "  stick-table type string len 256 size 10k expire 20d store conn_cur,http_req_cnt",
        "backend wishes from base",
        "  stick-table type string len 520 size 10k expire 1h store conn_cur",
        # Notes for the edge and for Lua: HAProxy knows only maps that a rule names. No request reaches this backend.
        f"  http-request set-var(txn.note) be_name,map_str({Maps.OWNERS})",
        f"  http-request set-var(txn.note) be_name,map_str({Maps.SERVERS})",
        f"  http-request set-var(txn.note) be_name,map_str({Maps.LOST})",
    )


def _which_endpoint(layout: Layout) -> Iterator[str]:
    own_domain = f"{{ var(txn.host) -m end .{layout.domain} }} !{{ var(txn.host),map_str({Maps.HOSTS}) -m found }}"
    yield from (
        f"  http-request set-var(txn.secret) req.fhdr({FRONT_HEADER}),sha2(256),hex if {{ req.fhdr({FRONT_HEADER}) -m found }}",
        f"  http-request set-var(txn.front) str({FRONT_KEY}|),concat(,txn.secret),map_str({Maps.KEYS}) if {{ var(txn.secret) -m found }}",
        # Only the host without port and final dot names an endpoint; a map compares it as a whole.
        "  http-request set-var(txn.host) req.hdr(host),host_only,rtrim(.),lower",
        f"  http-request set-var(txn.lb) str(front) if {{ var(txn.front) -m found }} {{ req.fhdr({ENDPOINT_HEADER}) -m found }}",
        f"  http-request set-var(txn.lb) str(host) if !{{ var(txn.lb) -m found }} {own_domain}",
        "  http-request set-var(txn.lb) str(path) if !{ var(txn.lb) -m found } { path_beg /lb/ }",
        f"  http-request set-var(txn.ep) req.fhdr({ENDPOINT_HEADER}) if {{ var(txn.lb) -m str front }}",
        f"  http-request set-var(txn.ep) var(txn.host),map_str({Maps.NAMES}) if {{ var(txn.lb) -m str host }}",
        "  http-request set-var(txn.ep) path,field(3,/) if { var(txn.lb) -m str path }",
        f"  http-request set-var(txn.be) var(txn.ep),map_str({Maps.ROUTES}) if {{ var(txn.lb) -m found }}",
        f"  http-request set-var(txn.remote) var(txn.be),map_str({Maps.REMOTE}) if {{ var(txn.be) -m found }}",
    )


def _access() -> Iterator[str]:
    yield from (
        "  acl balanced var(txn.lb) -m found",
        "  acl open_mode var(txn.keys) -m str open",
        "  acl trusted_front var(txn.front) -m found",
        # Without an entry a key is needed: an empty map must not open anything.
        f"  http-request set-var(txn.keys) str(keys),map_str({Maps.SWITCHES},needed) if balanced",
        # `Bearer <key>` or only the key, as the API accepts them.
        "  http-request set-var(txn.key) req.fhdr(authorization),regsub(\"^[Bb][Ee][Aa][Rr][Ee][Rr] +\",),ltrim(' '),rtrim(' ') if balanced !open_mode !trusted_front",
        "  http-request set-var(txn.digest) var(txn.key),sha2(256),hex if balanced !open_mode !trusted_front { var(txn.key) -m len gt 0 }",
        f"  http-request set-var(txn.opens) var(txn.ep),concat(|,txn.digest),map_str({Maps.KEYS}) if {{ var(txn.digest) -m found }} balanced",
        f"  http-request set-var(txn.opens) str(*|),concat(,txn.digest),map_str({Maps.KEYS}) if {{ var(txn.digest) -m found }} balanced !{{ var(txn.opens) -m found }}",
    )
    needed = "balanced !open_mode !trusted_front"
    yield refusal(
        401,
        problem(401, "Unauthorized", "no token provided"),
        f"{needed} !{{ var(txn.key) -m len gt 0 }}",
    )
    yield refusal(
        401,
        problem(401, "Unauthorized", "invalid api key"),
        f"{needed} !{{ var(txn.opens) -m found }}",
    )
    yield from _guard()


def _guard() -> Iterator[str]:
    """The checks of ``ownpod/rules/origins.py`` while no key is needed."""
    source = "balanced open_mode !trusted_front"
    yield from (
        # A host of the domain is no other site's: the domain is configured.
        "  acl own_host var(txn.lb) -m str host",
        "  acl own_host var(txn.host) -m end .localhost .docker.internal .containers.internal",
        "  acl own_host var(txn.host) -m reg ^([^.]*|[0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-f:.]+\\]|[0-9a-f.]*:[0-9a-f:.]*)$",
        f"  acl own_host var(txn.host),map_str({Maps.HOSTS}) -m found",
    )
    yield refusal(
        403,
        '{"error":"without keys OwnPod answers under its own names only: set OWNPOD_HOSTS to this name, or OWNPOD_API_KEYS"}',
        f"{source} !own_host {{ req.hdr(host) -m len gt 0 }}",
        kind=JSON,
    )
    page = 'req.fhdr(origin),lower,regsub("^https?://",)'
    here = "req.hdr(host),lower"
    yield from (
        f"  http-request set-var(txn.page) {page},regsub(:80$,) if {source} {{ req.fhdr(origin) -m beg -i http:// }}",
        f"  http-request set-var(txn.here) {here},regsub(:80$,) if {source} {{ req.fhdr(origin) -m beg -i http:// }}",
        f"  http-request set-var(txn.page) {page},regsub(:443$,) if {source} {{ req.fhdr(origin) -m beg -i https:// }}",
        f"  http-request set-var(txn.here) {here},regsub(:443$,) if {source} {{ req.fhdr(origin) -m beg -i https:// }}",
        "  acl same_site req.hdr(sec-fetch-site) -m str -i same-origin",
        "  acl own_page var(txn.page),strcmp(txn.here) eq 0",
        f"  acl own_page req.fhdr(origin),lower,map_str({Maps.ORIGINS}) -m found",
        f"  acl own_page str(*),map_str({Maps.ORIGINS}) -m found",
        f"  acl own_page req.fhdr(origin),map_reg({Maps.PATTERNS}) -m found",
        "  acl has_origin req.fhdr(origin) -m found",
        "  acl no_page req.hdr(sec-fetch-site) -m str -i none",
    )
    text = '{"error":"without keys no page of another site may call OwnPod: set OWNPOD_CORS_ORIGINS to its origin, or OWNPOD_API_KEYS"}'
    yield refusal(403, text, f"{source} !same_site has_origin !own_page", kind=JSON)
    yield refusal(
        403,
        text,
        f"{source} !same_site !has_origin {{ req.hdr(sec-fetch-site) -m found }} !no_page",
        kind=JSON,
    )


def _refusals(layout: Layout) -> Iterator[str]:
    yield refusal(
        400,
        '{"error":"not allowed for QB API"}',
        f"balanced {{ var(txn.ep),map_str({Maps.QUEUES}) -m found }}",
        kind=JSON,
    )
    yield refusal(
        503,
        problem(503, "Service Unavailable", full(layout.pool)),
        f"balanced !{{ var(txn.be) -m found }} {{ var(txn.ep),map_str({Maps.LEFT_OUT}) -m found }}",
    )
    yield refusal(
        404,
        problem(404, "Not Found", "endpoint not found"),
        "balanced !{ var(txn.be) -m found }",
    )
    yield f"  http-request set-var(txn.paused) var(txn.ep),map_str({Maps.PAUSED}) if {{ var(txn.be) -m found }}"
    yield refusal(
        400,
        '{"status":400,"title":"Bad Request","detail":"%[var(txn.paused)]"}',
        "{ var(txn.paused) -m found }",
        form="lf-string",
    )
    # Two fronts may disagree for a second which of them is the home; a request must not circle between them.
    yield refusal(
        503,
        problem(503, "Service Unavailable", "the endpoint moves to another front"),
        "{ var(txn.front) -m found } { var(txn.remote) -m found }",
        retry_s=1,
    )
    yield from (
        f"  http-request set-var(txn.body) var(txn.ep),map_str_int({Maps.BODIES}) if balanced",
        "  http-request set-var(txn.above) req.hdr_val(content-length),sub(txn.body) if balanced { req.hdr(content-length) -m found }",
    )
    # Only Lua can count the bytes of such a body.
    yield "  acl no_length req.hdr(transfer-encoding) -m found"
    yield "  acl no_length fc_http_major ge 2"
    yield "  http-request set-var(txn.chunked) var(txn.body) if balanced no_length !{ req.hdr(content-length) -m found }"
    yield refusal(
        413,
        problem(413, "Payload Too Large", "the body is larger than this endpoint accepts"),
        "balanced { var(txn.above) -m int gt 0 }",
    )


def _headers(layout: Layout) -> Iterator[str]:
    yield from (
        "  http-request set-var(txn.want) req.fhdr(x-runpod-worker-id) if balanced { req.fhdr(x-runpod-worker-id) -m len gt 0 }",
        "  acl resumes var(txn.want) -m reg -i ^strict-resume\\ +[a-z0-9_-]{1,255}$",
        '  http-request set-var(txn.wanted) var(txn.want),regsub("^[^ ]+ +",) if balanced resumes',
        "  http-request set-var(txn.wish) var(txn.ep),concat(|,txn.wanted) if balanced resumes !{ var(txn.remote) -m found }",
        "  acl streams req.hdr(upgrade) -m found",
        "  acl streams req.hdr(accept) -m sub text/event-stream",
        f"  http-request set-var(txn.limit) var(txn.ep),map_str_int({Maps.LIMITS},{UNLIMITED_MS}) if balanced !streams !{{ var(txn.remote) -m found }}",
        f"  http-request set-var(txn.limit) int({UNLIMITED_MS}) if balanced !{{ var(txn.limit) -m found }}",
        # What a client sends must not look like OwnPod's own. A worker with WSGI or CGI reads `_` as `-`.
        "  http-request del-header ^x[-_](runpod|ownpod)[-_] -m reg if balanced",
        f"  http-request del-header {FRONT_HEADER}",
        f"  http-request del-header authorization if balanced !open_mode !{{ var(txn.ep),map_str({Maps.PASSING}) -m found }}",
    )
    if layout.trusted_proxies == 0:
        yield "  http-request del-header ^x[-_]forwarded([-_]|$) -m reg if !trusted_front"
        yield "  http-request del-header forwarded if !trusted_front"
    yield from (
        "  http-request add-header X-Forwarded-For %[src] if !trusted_front",
        "  acl has_scheme req.hdr(x-forwarded-proto) -m found",
        "  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)] if !has_scheme",
        "  acl has_host req.hdr(x-forwarded-host) -m found",
        "  http-request set-header X-Forwarded-Host %[req.hdr(host)] if !has_host { req.hdr(host) -m found }",
        "  http-request set-header X-Forwarded-Prefix /lb/%[var(txn.ep)] if { var(txn.lb) -m str path }",
        # `/lb/<endpoint>` without a slash is the worker's `/`. Only the first two segments are removed, nothing is decoded.
        "  http-request replace-path ^/lb/[^/]+/?(.*) /\\1 if { var(txn.lb) -m str path }",
    )
