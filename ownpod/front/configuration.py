"""The configuration of HAProxy, rendered once for each start of the front. Pure.

It is never reloaded. Endpoints, keys and workers are entries of maps and servers of prebuilt backends, which change
over the runtime socket. All paths are relative to HAProxy's working directory, so that the text depends on the layout only.
"""

from collections.abc import Iterator

from ownpod.front.counted import second_pass
from ownpod.front.frontend import public
from ownpod.front.layout import (
    API_WAIT_S,
    BUFFER_BYTES,
    ENDPOINT_HEADER,
    FRONT_HEADER,
    HEADERS,
    HOT_BYTES,
    JSON,
    LUA,
    OPENAI_HEADER,
    REWRITE_BYTES,
    SOCKET,
    UNLIMITED_MS,
    Layout,
    Maps,
    backends,
    digest,
    error,
    is_address,
    problem,
)
from ownpod.rules.homes import joined

__all__ = ["Layout", "Maps", "digest", "render"]


def render(layout: Layout, script: str = "") -> str:
    """The text of ``haproxy.cfg``. Its digest depends on the Lua ``script``, too."""
    lines = [*_global(layout), *_defaults(), *public(layout), *_metrics(layout), *_api(layout)]
    lines += second_pass()
    for name, hold_s in backends(layout.pool, layout.holds).items():
        lines += [f"backend {name} from pool", f"  timeout queue {hold_s}s", *_PINS]
    text = "\n".join(lines) + "\n"
    return text.replace(_DIGEST, digest(text + script))


_DIGEST = "OWNPOD-DIGEST"


def _own(status: int, title: str, detail: str) -> str:
    """An error of HAProxy's own, in the shape of RunPod's edge and of OwnPod's API."""
    return problem(status, title, detail, error=detail)


def _global(layout: Layout) -> Iterator[str]:
    yield from (
        "global",
        f"  description {_DIGEST}",
        f"  maxconn {layout.max_connections}",
        # With more threads two requests of the same moment exceed a worker's capacity, because HAProxy 2.8 checks the limit and
        # takes the place in two steps (HAProxy's issue 2744). One thread forwards 14,000 requests a second.
        "  nbthread 1",
        f"  stats socket unix@{SOCKET} mode 600 level admin",
        # The edge keeps one connection for each of its commands only; HAProxy's default of 10 s cuts slow ones.
        "  stats timeout 30s",
        # A second HAProxy on the same port must fail, and not get a share of the connections.
        "  noreuseport",
        f"  tune.bufsize {BUFFER_BYTES}",
        f"  tune.maxrewrite {REWRITE_BYTES}",
        f"  tune.http.maxhdr {HEADERS}",
        f"  tune.memory.hot-size {HOT_BYTES}",
        # The time that a request is held in Lua is its own limit; the default of 4 s counts run time only.
        "  tune.lua.session-timeout 0",
        f"  lua-load-per-thread {LUA} {layout.timeout_status}",
        "  ssl-default-bind-options ssl-min-ver TLSv1.2",
    )


def _defaults() -> Iterator[str]:
    yield from (
        "defaults base",
        "  mode http",
        # Without it an event of a stream arrives 200 ms late.
        "  option http-no-delay",
        # Without it a client that leaves keeps its place in the queue, and its worker is not notified.
        "  option abortonclose",
        # A browser's connection without a request is closed without an error.
        "  option http-ignore-probes",
        # A client or worker whose host is gone frees its place after two minutes.
        "  option clitcpka",
        "  clitcpka-idle 60s",
        "  clitcpka-intvl 10s",
        "  clitcpka-cnt 6",
        "  option srvtcpka",
        "  srvtcpka-idle 60s",
        "  srvtcpka-intvl 10s",
        "  srvtcpka-cnt 6",
        "  timeout connect 3s",
        "  timeout client 1h",
        f"  timeout server {UNLIMITED_MS}",
        "  timeout tunnel 1d",
        "  timeout http-request 10s",
        "  timeout http-keep-alive 75s",
        "  timeout queue 120s",
        # It has no effect on a request that HAProxy cannot parse: 2.8 to 3.1 then send a page of HTML that is compiled in,
        # whatever the configuration is. From 3.2 it takes the page from an `errorfile` (HAProxy's issue 3032).
        error(400, _own(400, "Bad Request", "HTTP syntax error, or the header is too large")),
        error(408, _own(408, "Request Timeout", "the header did not arrive in time")),
        error(413, _own(413, "Payload Too Large", "the body is too large")),
        error(500, _own(500, "Internal Server Error", "the front failed")),
        error(502, _own(502, "Bad Gateway", "the connection ended before the response")),
        error(504, _own(504, "Gateway Timeout", "no response in time")),
        "defaults api from base",
        # The pause before a retry is the time limit of the connection, at most a second.
        "  timeout connect 300ms",
        f"  retries {API_WAIT_S * 1000 // 300}",
        # Nothing was sent when it is repeated: a request is never executed twice.
        "  retry-on conn-failure",
        # Shorter than the 4000 s of the API's server, so that HAProxy closes a connection first.
        "  timeout server 1h",
        error(503, _own(503, "Service Unavailable", "the API is not reachable"), 1),
        "defaults pool from base",
        *_POOL_DEFAULTS,
        *_RULES,
    )


_POOL_DEFAULTS = (
    "  balance leastconn",
    "  option redispatch",
    # A request that a dead worker did not accept is repeated once more after the third failure, which marks the worker down.
    "  retries 3",
    "  retry-on conn-failure",
    # Without it `plan.KEEPER` would get requests although it is full.
    "  option allbackups",
    "  option httpchk",
    # HTTP/1.1 with a Host, because some servers refuse other requests.
    f"  http-check send meth GET uri-lf %[be_name,map_str({Maps.HEALTH},/ping)] ver HTTP/1.1 hdr Host localhost hdr Connection close",
    # 204 is "starting", so that worker gets no requests either.
    "  http-check expect status 200",
    error(503, "%[lua.problem]", 5, "lf-string"),
    # The worker had the request already. 504 is the processing limit; RunPod's status for it is Cloudflare's 524.
    error(502, "%[lua.failed(502)]", form="lf-string"),
    error(504, "%[lua.failed(504)]", form="lf-string"),
)

_RULES = (
    # The limit is that of silence of the worker, because HAProxy 2.8 has no other: up to the response it is the processing
    # time, and a response that has begun may take longer. Event streams and upgrades have no limit if the request asks for
    # them (`Accept`, `Upgrade`): 2.8 cannot change the limit when the response shows its type.
    "  http-request set-timeout server var(txn.limit)",
    # One look-up for all rules below. It is not ``txn.remote``: Lua may have given the request another backend since then.
    f"  http-request set-var(txn.far) be_name,map_str({Maps.REMOTE})",
    "  http-request allow if !{ var(txn.far) -m found }",
    f"  http-request set-header {FRONT_HEADER} %[str(secret),map_str({Maps.SWITCHES})]",
    f"  http-request set-header {ENDPOINT_HEADER} %[var(txn.ep)]",
    f"  http-request set-header {OPENAI_HEADER} 1 if {{ var(txn.openai) -m found }}",
    "  http-request set-header X-Runpod-Worker-Id %[var(txn.want)] if { var(txn.want) -m found }",
    # It replaces what a worker has sent. Another front has set it already.
    "  http-after-response set-header X-Runpod-Worker-Id %[srv_name] if { srv_name -m found } !{ var(txn.far) -m found }",
    "  http-after-response allow if !{ var(txn.problem) -m found }",
    '  http-after-response set-status 400 reason "Bad Request" if { var(txn.problem) -m int 400 }',
    '  http-after-response set-status 502 reason "Bad Gateway" if { var(txn.problem) -m int 502 }',
    "  http-after-response set-status 503 if { var(txn.problem) -m int 503 }",
    '  http-after-response set-status 524 reason "A Timeout Occurred" if { var(txn.problem) -m int 524 }',
    f"  http-after-response set-header Content-Type {JSON} if {{ var(txn.openai) -m found }}",
    # OpenAI's clients repeat a request after each status from 500 on, and a worker would generate the same text again.
    "  http-after-response set-header X-Should-Retry false if { var(txn.openai) -m found } { var(txn.began) -m found }",
)

_PINS = (
    "  use-server %[var(txn.pin)] if { var(txn.pin) -m found }",
    # A request that names its worker strictly is never sent to another one, also when its worker fails meanwhile.
    "  force-persist if { var(txn.strict) -m found }",
)


def _metrics(layout: Layout) -> Iterator[str]:
    if layout.metrics is None:
        return
    yield "frontend metrics from base"
    yield f"  bind {joined(*layout.metrics)}"
    yield "  http-request use-service prometheus-exporter if { path /metrics }"
    yield "  http-request return status 404"


def _api(layout: Layout) -> Iterator[str]:
    yield "backend api from api"
    host, port = layout.api
    if host == "localhost":
        host = "127.0.0.1"
    # A container that was started again has another address.
    names = "" if is_address(host) else " resolvers host init-addr last,libc,none"
    yield f"  server api {joined(host, port)}{names}"
    if names:
        yield from ("resolvers host", "  parse-resolv-conf", "  hold valid 5s")
        # A name of /etc/hosts only, or a name server that fails, must not remove the last address.
        yield from (
            f"  hold {case} 20d" for case in ("nx", "obsolete", "other", "refused", "timeout")
        )
