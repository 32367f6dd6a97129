"""The rules of the public frontend: which endpoint a request is for, whether it may pass, and its headers. Pure.

Each rule costs CPU for each request. So what a common request needs is found out once, in variables that the other rules test:
a variable costs a tenth of a microsecond, a regular expression over all headers two. A variable that is missing never opens anything.
"""

from collections.abc import Iterator

from ownpod.front.counted import first_pass
from ownpod.front.layout import (
    ALIVE_PATH,
    ENDPOINT_HEADER,
    FRONT_HEADER,
    FRONT_KEY,
    JSON,
    OPENAI_HEADER,
    PROBLEM,
    UNLIMITED_MS,
    Layout,
    Maps,
    api_error,
    full,
    problem,
    quoted,
    refusal,
)
from ownpod.rules.homes import joined
from ownpod.rules.openai_replies import error_body

BY_FRONT, BY_HOST, BY_PATH = 1, 2, 3
"""What names the endpoint, in ``txn.lb``: another front's header, the host, or the path. Without it a request is for the API."""

OPEN, FRONT, KEY = 1, 2, 3
"""Why a request may pass, in ``txn.passes``: no key is needed, another front has checked it, or its key is valid."""

SPECIAL = "pod forwarded origin sec-fetch upgrade transfer-encoding"
"""Parts of names of headers. A request without any has ``txn.plain``, and spares all rules that look for such headers."""

_FOUND_KEY = f"int({KEY}) if !passes {{ var(txn.digest) -m found }}"


def public(layout: Layout) -> Iterator[str]:
    """The lines of the frontend for clients, and of the two tables that it fills.

    HAProxy evaluates rules in their order, and ``allow`` ends them: first for a request for the API, then for one of which
    positive tests have shown that none of the rules below concerns it. All other requests reach the refusals, and what
    is rare.
    """
    yield "frontend public from base"
    for address in layout.binds:
        yield f"  bind {joined(*address)}"
    if layout.certificate is not None and layout.tls_port is not None:
        for host in dict.fromkeys(host for host, _ in layout.binds):
            where = joined(host, layout.tls_port)
            yield f"  bind {where} ssl crt {quoted(layout.certificate)} alpn h2,http/1.1"
    yield f"  monitor-uri {ALIVE_PATH}"
    # The text of an address costs more than a rule, so it is made once for a connection.
    yield "  tcp-request session set-var(sess.from) src,concat()"
    yield from _which_endpoint(layout)
    yield from _forwarded(layout)
    # All rules below are for endpoints only.
    yield "  http-request allow if !{ var(txn.lb) -m found }"
    yield from _route()
    yield from _access()
    yield from _body()
    yield from _headers()
    yield from _common()
    yield from _key_refusals()
    yield from _guard()
    yield from _refusals(layout)
    yield from _affinity()
    yield from _place()
    yield from (
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
        # One test finds the headers of OwnPod, of proxies and of pages: few requests of programs have any. HAProxy has all
        # names in lower case, and remembers what it found in a list of names.
        f"  http-request set-var(txn.plain) int(1) if !{{ req.hdr_names -m sub {SPECIAL} }}",
        "  acl plain var(txn.plain) -m found",
        "  acl trusted_front var(txn.front) -m found",
        f"  http-request set-var(txn.secret) req.fhdr({FRONT_HEADER}),sha2(256),hex if !plain {{ req.fhdr({FRONT_HEADER}) -m found }}",
        f"  http-request set-var(txn.front) str({FRONT_KEY}|),concat(,txn.secret),map_str({Maps.KEYS}) if !plain {{ var(txn.secret) -m found }}",
        f"  acl by_front var(txn.lb) -m int {BY_FRONT}",
        f"  acl by_host var(txn.lb) -m int {BY_HOST}",
        f"  acl by_path var(txn.lb) -m int {BY_PATH}",
        # Only the host without port and final dot names an endpoint; a map compares it as a whole.
        "  http-request set-var(txn.host) req.hdr(host),host_only,rtrim(.),lower",
        f"  http-request set-var(txn.lb) int({BY_FRONT}) if !plain trusted_front {{ req.fhdr({ENDPOINT_HEADER}) -m found }}",
        f"  http-request set-var(txn.lb) int({BY_HOST}) if {own_domain} !{{ var(txn.lb) -m found }}",
        *_openai(),
        f"  http-request set-var(txn.lb) int({BY_PATH}) if {{ path_beg /lb/ }} !{{ var(txn.lb) -m found }}",
    )


def _openai() -> Iterator[str]:
    """``/v2/<endpoint>/openai/<rest>`` of a load-balanced endpoint becomes ``/lb/<endpoint>/<rest>``, and gets ``txn.openai``.

    Nothing is decoded, and empty segments count, so a path in another spelling names no endpoint here: it is for the API.
    The API also gets the paths of all other endpoints.
    """
    yield from (
        f"  acl balanced path,field(3,/),map_str({Maps.ROUTES}) -m found",
        f"  acl balanced path,field(3,/),map_str({Maps.LEFT_OUT}) -m found",
        # The first test spares all other ways to name an endpoint the rest.
        "  http-request set-var(txn.openai) int(1) if !{ var(txn.lb) -m found } { path_beg /v2/ } { path,field(4,/) -m str openai } balanced",
        "  acl openai var(txn.openai) -m found",
        "  http-request set-path /lb/%[path,field(3,/)]/%[path,field(5,/,0)] if openai",
        # From another front, which has removed the beginning of the path.
        f"  http-request set-var(txn.openai) int(1) if !plain by_front {{ req.fhdr({OPENAI_HEADER}) -m found }}",
    )


def _forwarded(layout: Layout) -> Iterator[str]:
    """The headers of proxies, also for the API. What a client sends must not look like a proxy's."""
    yield f"  http-request del-header {FRONT_HEADER} if !plain"
    if layout.trusted_proxies == 0:
        # A worker with WSGI or CGI reads `_` as `-`.
        yield "  http-request del-header ^x[-_]forwarded([-_]|$) -m reg if !plain !trusted_front"
        yield "  http-request del-header forwarded if !plain !trusted_front"
    yield from (
        "  http-request add-header X-Forwarded-For %[var(sess.from)] if !trusted_front",
        "  acl has_scheme req.hdr(x-forwarded-proto) -m found",
        "  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)] if plain or !has_scheme",
        "  acl has_host req.hdr(x-forwarded-host) -m found",
        "  acl names_host var(txn.host) -m found",
        "  http-request set-header X-Forwarded-Host %[req.hdr(host)] if plain names_host or !has_host names_host",
    )


def _route() -> Iterator[str]:
    """The endpoint and its backend; ``txn.remote``: another front is its home."""
    yield from (
        "  http-request set-var(txn.ep) path,field(3,/) if by_path",
        f"  http-request set-var(txn.ep) var(txn.host),map_str({Maps.NAMES}) if by_host",
        f"  http-request set-var(txn.ep) req.fhdr({ENDPOINT_HEADER}) if by_front",
        f"  http-request set-var(txn.be) var(txn.ep),map_str({Maps.ROUTES})",
        f"  http-request set-var(txn.remote) var(txn.be),map_str({Maps.REMOTE})",
        "  acl remote var(txn.remote) -m found",
    )


def _access() -> Iterator[str]:
    """Whether a key opens the endpoint, or none is needed: ``txn.passes``."""
    yield from (
        "  acl passes var(txn.passes) -m found",
        f"  acl open_mode var(txn.passes) -m int {OPEN}",
        # Without an entry a key is needed: an empty map must not open anything.
        f"  http-request set-var(txn.passes) int({OPEN}) if {{ str(keys),map_str({Maps.SWITCHES},needed) -m str open }}",
        f"  http-request set-var(txn.passes) int({FRONT}) if !plain trusted_front !passes",
        # `Bearer <key>` or only the key, as the API accepts them.
        "  acl bearer req.fhdr(authorization) -m beg -i 'bearer '",
        "  http-request set-var(txn.key) req.fhdr(authorization),bytes(7),ltrim(' '),rtrim(' ') if !passes bearer",
        "  http-request set-var(txn.key) req.fhdr(authorization),ltrim(' '),rtrim(' ') if !passes !bearer",
        "  http-request set-var(txn.digest) var(txn.key),sha2(256),hex if !passes { var(txn.key) -m len gt 0 }",
        f"  http-request set-var(txn.passes) {_FOUND_KEY} {{ str(*|),concat(,txn.digest),map_str({Maps.KEYS}) -m found }}",
        f"  http-request set-var(txn.passes) {_FOUND_KEY} {{ var(txn.ep),concat(|,txn.digest),map_str({Maps.KEYS}) -m found }}",
    )


def _body() -> Iterator[str]:
    """The limit of the body. Most requests have none, and thus neither of the two headers."""
    yield from (
        "  acl has_length req.hdr(content-length) -m found",
        # Only Lua can count the bytes of such a body.
        "  acl chunks req.hdr(transfer-encoding) -m found",
        "  acl http_2 fc_http_major ge 2",
        "  acl has_body var(txn.body) -m found",
        f"  http-request set-var(txn.body) var(txn.ep),map_str_int({Maps.BODIES}) if has_length or http_2 or !plain chunks",
        "  http-request set-var(txn.above) req.hdr_val(content-length),sub(txn.body) if has_body has_length",
        "  http-request set-var(txn.chunked) var(txn.body) if has_body !has_length",
    )


def _headers() -> Iterator[str]:
    """The limit of the request, its path, and headers that a worker gets or does not get."""
    yield from (
        "  acl upgrades req.hdr(upgrade) -m found",
        "  acl streams req.hdr(accept) -m sub text/event-stream",
        # Without the variable there is no limit, see the timeouts in ``configuration.py``.
        f"  http-request set-var(txn.limit) var(txn.ep),map_str_int({Maps.LIMITS},{UNLIMITED_MS}) if !remote !streams plain or !remote !streams !upgrades",
        f"  http-request del-header authorization if !open_mode !{{ var(txn.ep),map_str({Maps.PASSING}) -m found }}",
        "  http-request set-header X-Forwarded-Prefix /lb/%[var(txn.ep)] if by_path !openai",
        "  http-request set-header X-Forwarded-Prefix /v2/%[var(txn.ep)]/openai if by_path openai",
        # `/lb/<endpoint>` without a slash is the worker's `/`. Only the first two segments are removed, nothing is decoded.
        "  http-request set-path /%[path,field(4,/,0)] if by_path",
        "  http-request set-var(txn.since) date",
    )


def _common() -> Iterator[str]:
    """The end of the rules for a common request: none of those below would refuse it, or do anything for it.

    It is plain, has a worker, a valid key or an own host name where none is needed, and no large or chunked body.
    """
    served = "plain { var(txn.be) -m found } !remote !{ var(txn.paused) -m found } { var(txn.be),nbsrv gt 0 } !only_keeper !chunked !too_large"
    yield from (
        # The server of a backend with a queue that keeps its requests is no worker, see ``plan.py``.
        f"  http-request set-var(txn.keeps) int(1) if {{ var(txn.be),nbsrv eq 1 }} {{ var(txn.be),map_str({Maps.QUEUEING}) -m found }}",
        "  acl only_keeper var(txn.keeps) -m found",
        "  acl chunked var(txn.chunked) -m found",
        "  acl too_large var(txn.above) -m int gt 0",
        f"  http-request set-var(txn.paused) var(txn.ep),map_str({Maps.PAUSED})",
        # HAProxy stops at the first that matches; the first two spare most requests the regular expression.
        "  acl own_host var(txn.host) -m ip 0.0.0.0/0",
        "  acl own_host var(txn.host) -m str localhost",
        # A host of the domain is no other site's: the domain is configured.
        f"  acl own_host var(txn.lb) -m int {BY_HOST}",
        "  acl own_host var(txn.host) -m end .localhost .docker.internal .containers.internal",
        f"  acl own_host var(txn.host),map_str({Maps.HOSTS}) -m found",
        "  acl own_host var(txn.host) -m reg ^([^.]*|[0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-f:.]+\\]|[0-9a-f.]*:[0-9a-f:.]*)$",
        f"  http-request set-var(txn.common) int(1) if {{ var(txn.passes) -m int {KEY} }} {served}",
        f"  http-request set-var(txn.common) int(1) if open_mode own_host {served}",
        # Entries of this table count what is held, queued and open.
        "  http-request track-sc0 var(txn.ep) table counts if { var(txn.common) -m found }",
        "  http-request allow if { var(txn.common) -m found }",
    )


def _refused(
    status: int,
    detail: str,
    condition: str,
    *,
    title: str | None = None,
    code: str | None = None,
    retry_s: int | None = None,
    form: str = "string",
) -> Iterator[str]:
    """Two rules that answer a request: clients of OpenAI's API get its shape; others RunPod's, or without a ``title`` the API's."""
    body = error_body(status, detail, code=code)
    yield refusal(status, body, f"openai {condition}", kind=JSON, retry_s=retry_s, form=form)
    kind = JSON if title is None else PROBLEM
    body = api_error(detail) if title is None else problem(status, title, detail)
    yield refusal(status, body, condition, kind=kind, retry_s=retry_s, form=form)


def _key_refusals() -> Iterator[str]:
    """Requests without a valid key."""
    yield from _refused(
        401,
        "no token provided",
        "!passes !{ var(txn.key) -m len gt 0 }",
        title="Unauthorized",
        code="invalid_api_key",
    )
    yield from _refused(
        401, "invalid api key", "!passes", title="Unauthorized", code="invalid_api_key"
    )


def _guard() -> Iterator[str]:
    """The checks of ``ownpod/rules/origins.py`` while no key is needed."""
    source = "open_mode !trusted_front"
    yield from _refused(
        403,
        "without keys OwnPod answers under its own names only: set OWNPOD_HOSTS to this name, or OWNPOD_API_KEYS",
        f"{source} !own_host {{ req.hdr(host) -m len gt 0 }}",
    )
    yield from (
        f"  http-request set-var(txn.origin) req.fhdr(origin),lower if {source} !plain",
        "  acl plain_page var(txn.origin) -m beg http://",
        "  acl tls_page var(txn.origin) -m beg https://",
        "  http-request set-var(txn.page) var(txn.origin),bytes(7),regsub(:80$,) if !plain plain_page",
        "  http-request set-var(txn.here) req.hdr(host),lower,regsub(:80$,) if !plain plain_page",
        "  http-request set-var(txn.page) var(txn.origin),bytes(8),regsub(:443$,) if !plain tls_page",
        "  http-request set-var(txn.here) req.hdr(host),lower,regsub(:443$,) if !plain tls_page",
        "  acl same_site req.hdr(sec-fetch-site) -m str -i same-origin",
        "  acl own_page var(txn.page),strcmp(txn.here) eq 0",
        f"  acl own_page req.fhdr(origin),lower,map_str({Maps.ORIGINS}) -m found",
        f"  acl own_page str(*),map_str({Maps.ORIGINS}) -m found",
        f"  acl own_page req.fhdr(origin),map_reg({Maps.PATTERNS}) -m found",
        "  acl has_origin req.fhdr(origin) -m found",
        "  acl no_page req.hdr(sec-fetch-site) -m str -i none",
    )
    text = "without keys no page of another site may call OwnPod: set OWNPOD_CORS_ORIGINS to its origin, or OWNPOD_API_KEYS"
    yield from _refused(403, text, f"{source} !plain has_origin !same_site !own_page")
    yield from _refused(
        403,
        text,
        f"{source} !plain {{ req.hdr(sec-fetch-site) -m found }} !has_origin !same_site !no_page",
    )


def _refusals(layout: Layout) -> Iterator[str]:
    """Requests that no worker gets."""
    # No endpoint is both: an endpoint with a route has no queue.
    lost = "!{ var(txn.be) -m found }"
    yield from _refused(
        400,
        "not allowed for QB API",
        f"{lost} {{ var(txn.ep),map_str({Maps.QUEUES}) -m found }}",
    )
    yield from _refused(
        503,
        full(layout.pool),
        f"{lost} {{ var(txn.ep),map_str({Maps.LEFT_OUT}) -m found }}",
        title="Service Unavailable",
    )
    yield from _refused(404, "endpoint not found", lost, title="Not Found")
    yield from _refused(
        400,
        "%[var(txn.paused)]",
        "{ var(txn.paused) -m found }",
        title="Bad Request",
        form="lf-string",
    )
    # Two fronts may disagree for a second which of them is the home; a request must not circle between them.
    yield from _refused(
        503,
        "the endpoint moves to another front",
        "remote trusted_front",
        title="Service Unavailable",
        retry_s=1,
    )
    yield from _refused(
        413,
        "the body is larger than this endpoint accepts",
        "too_large",
        title="Payload Too Large",
    )


def _affinity() -> Iterator[str]:
    """What the client wishes of workers, and the end of all headers that look like OwnPod's own."""
    yield from (
        "  http-request set-var(txn.want) req.fhdr(x-runpod-worker-id) if !plain { req.fhdr(x-runpod-worker-id) -m len gt 0 }",
        "  acl wants var(txn.want) -m found",
        "  acl resumes var(txn.want) -m reg -i ^strict-resume\\ +[a-z0-9_-]{1,255}$",
        '  http-request set-var(txn.wanted) var(txn.want),regsub("^[^ ]+ +",) if wants resumes',
        "  http-request set-var(txn.wish) var(txn.ep),concat(|,txn.wanted) if wants resumes !remote",
        # A worker with WSGI or CGI reads `_` as `-`.
        "  http-request del-header ^x[-_](runpod|ownpod)[-_] -m reg if !plain",
    )


def _place() -> Iterator[str]:
    """The last rules: a worker for the request."""
    yield from (
        "  http-request track-sc0 var(txn.ep) table counts if !remote",
        "  http-request track-sc1 var(txn.wish) table wishes if wants { var(txn.wish) -m found }",
        # Lua runs only for what it decides: a request that finds no worker, or names one.
        "  http-request lua.place if { var(txn.be),nbsrv eq 0 }",
        "  http-request lua.place if only_keeper",
        "  http-request lua.place if wants !remote !{ var(txn.pin) -m found }",
        *first_pass(),
    )
