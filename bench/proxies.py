"""Other proxies before the same workers, to compare with: HAProxy without OwnPod, nginx and Caddy, where they are installed."""

import shutil
from collections.abc import Sequence

from system import Processes, listens, wait_for

from ownpod.front.binary import find_haproxy
from ownpod.processes import free_port

HAPROXY = """
defaults
  mode http
  option http-no-delay
  timeout connect 3s
  timeout client 1h
  timeout server 1h
frontend fe
  bind 127.0.0.1:{port}
  default_backend workers
backend workers
  balance leastconn
{servers}
"""

NGINX = """
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream workers {{
    least_conn;
{servers}
    keepalive 64;
  }}
  server {{
    listen 127.0.0.1:{port};
    # Its default closes a connection after 1,000 requests.
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://workers;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""

CADDY = """
{{
  admin off
  auto_https off
  log default {{
    level ERROR
  }}
}}
:{port} {{
  bind 127.0.0.1
  reverse_proxy {servers} {{
    lb_policy least_conn
    flush_interval -1
  }}
}}
"""


def haproxy(group: Processes, ports: Sequence[int]) -> int | None:
    """HAProxy alone; returns its port. None: there is none."""
    program = find_haproxy()
    if program is None:
        return None
    servers = "\n".join(f"  server w{p} 127.0.0.1:{p}" for p in ports)
    return _start(group, "haproxy", str(program.path), HAPROXY, servers, "-db", "-f")


def nginx(group: Processes, ports: Sequence[int]) -> int | None:
    """nginx; returns its port. None: it is not installed."""
    program = shutil.which("nginx")
    servers = "\n".join(f"    server 127.0.0.1:{p};" for p in ports)
    return program and _start(group, "nginx", program, NGINX, servers, "-c")


def caddy(group: Processes, ports: Sequence[int]) -> int | None:
    """Caddy; returns its port. None: it is not installed."""
    program = shutil.which("caddy")
    servers = " ".join(f"127.0.0.1:{p}" for p in ports)
    options = ("run", "--adapter", "caddyfile", "--config")
    return program and _start(group, "caddy", program, CADDY, servers, *options)


def _start(
    group: Processes, name: str, program: str, text: str, servers: str, *options: str
) -> int:
    directory = group.directory / f"{name}-proxy"
    directory.mkdir()
    port, file = free_port(), directory / "configuration"
    file.write_text(text.format(port=port, servers=servers, directory=directory))
    group.run(program, *options, file, HOME=directory)
    wait_for(name, lambda: listens(port))
    return port


OTHERS = {"haproxy": haproxy, "nginx": nginx, "caddy": caddy}
