"""Pulls of the engine `docker`, from a registry in this process with one image."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ownpod.agent.containers import ContainerEngine
from ownpod.agent.engine import EngineError
from ownpod.agent.registry_logins import Login
from ownpod.rules.templates import Template

pytestmark = pytest.mark.timeout(300)

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PIECE = 64 * 1024


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry(ThreadingHTTPServer):
    """Serves `worker:1`, with a layer of 4 MiB that nothing compresses.

    ``slow``: whether the layer is sent slowly. ``hangs``: whether it never ends. ``auth``: what a request must have.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.slow, self.hangs, self.auth = threading.Event(), threading.Event(), None
        self.done = threading.Event()
        self.pulled = []
        content = random.Random(7).randbytes(4 * 2**20)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            entry = tarfile.TarInfo("weights")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        packed = gzip.compress(layer.getvalue(), mtime=0)
        self._diff_id, self._size = digest(layer.getvalue()), len(packed)
        self.layer = digest(packed)
        self.blobs, self.manifests = {self.layer: packed}, {}
        self.move("/weights")
        # 127.0.0.1 needs no TLS.
        self.name = f"127.0.0.1:{self.server_port}/worker"

    def move(self, command):
        """The tag `1` means another image from now on, which differs in its command."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": [command]},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_id]},
        }
        configured = json.dumps(config).encode()
        self.blobs[digest(configured)] = configured
        kind = "application/vnd.docker.{}"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {
                    "mediaType": kind.format("container.image.v1+json"),
                    "size": len(configured),
                    "digest": digest(configured),
                },
                "layers": [
                    {
                        "mediaType": kind.format("image.rootfs.diff.tar.gzip"),
                        "size": self._size,
                        "digest": self.layer,
                    }
                ],
            }
        ).encode()
        self.manifests[digest(self.manifest)] = self.manifest


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.server.auth and self.headers.get("Authorization") != self.server.auth:
            return self.answer(401, b"{}", ("WWW-Authenticate", 'Basic realm="here"'))
        if self.path == "/v2/":
            return self.answer(200, b"{}")
        what, name = self.path.split("/")[-2:]
        manifest = self.server.manifest if name == "1" else self.server.manifests.get(name)
        if what == "manifests" and manifest:
            found = ("Docker-Content-Digest", digest(manifest))
            return self.answer(200, manifest, ("Content-Type", MANIFEST), found)
        if what == "blobs" and name in self.server.blobs:
            return self.blob(name)
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return self.answer(404, json.dumps(error).encode())

    def blob(self, name):
        self.server.pulled.append(name)
        data = self.server.blobs[name]
        if name != self.server.layer:
            self.answer(200, data)
            return
        self.answer(200, data, body=False)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), PIECE):
                if self.server.hangs.is_set() and start > len(data) // 2:
                    self.server.done.wait(60)
                    self.close_connection = True
                    break
                if self.server.slow.is_set():
                    self.server.done.wait(0.05)
                self.wfile.write(data[start : start + PIECE])

    def answer(self, status, data, *headers, body=True):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def registry(docker_engine):
    served = Registry()
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.done.set()
    served.shutdown()
    served.server_close()
    listed = subprocess.run(
        ["docker", "images", "--all", "--digests", "--quiet", served.name],
        capture_output=True,
        text=True,
        check=True,
    )
    for image in set(listed.stdout.split()):
        subprocess.run(["docker", "image", "rm", "--force", image], check=True, timeout=60)


@pytest.fixture
def engine():
    with contextlib.closing(ContainerEngine("test-pull", stall_s=5)) as made:
        yield made


def test_an_image_is_pulled_once_with_its_progress_in_words(registry, engine):
    registry.slow.set()
    words = []

    def progress(text):
        words.append(text)
        if " of 4 MB" in text:
            registry.slow.clear()

    template = Template(image=f"{registry.name}:1")
    engine.prepare(template, progress)
    assert words[0] == "image pull"
    assert any(text.startswith("image pull ") and text.endswith(" of 4 MB") for text in words)
    pulled = list(registry.pulled)
    assert registry.layer in pulled
    engine.prepare(template, words.append)
    assert registry.pulled == pulled


def test_an_image_is_pulled_by_its_digest(registry, engine):
    engine.prepare(Template(image=f"{registry.name}:2@{digest(registry.manifest)}"), print)
    assert registry.layer in registry.pulled


def test_a_tag_that_the_registry_does_not_have_is_one_line(registry, engine):
    with pytest.raises(EngineError, match=r"image .*/worker:2: the registry has no such image"):
        engine.prepare(Template(image=f"{registry.name}:2"), print)


def test_credentials_are_those_of_the_users_docker_settings(
    registry, engine, tmp_path, monkeypatch
):
    secret = base64.b64encode(b"me:a-password").decode()
    registry.auth = f"Basic {secret}"
    template = Template(image=f"{registry.name}:1")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    settings, host = tmp_path / "config.json", registry.name.partition("/")[0]
    settings.write_text(json.dumps({"auths": {"127.0.0.1:1": {"auth": secret}}}))
    with pytest.raises(EngineError, match="run docker login on this host"):
        engine.prepare(template, print)
    settings.write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    # The same engine, because an operator logs in while the agent runs.
    engine.prepare(template, print)
    assert registry.layer in registry.pulled


def test_a_pull_that_stalls_ends_with_one_line(registry, engine):
    registry.hangs.set()
    with pytest.raises(EngineError, match=r"the pull has stalled: no progress within 5 s"):
        engine.prepare(Template(image=f"{registry.name}:1"), print)


# Releases: one image for each, whatever its tag means later.


def test_the_digest_of_a_tag_is_the_registrys_and_a_release_keeps_it_when_the_tag_moves(
    registry, engine
):
    template = Template(image=f"{registry.name}:1")
    first = engine.digest(template)
    assert first == digest(registry.manifest)
    registry.move("/other")
    second = engine.digest(template)
    assert second == digest(registry.manifest) != first
    for found in (first, second):
        release = replace(template, digest=found)
        engine.prepare(release, print)
        name = f"{registry.name}@{found}"
        assert json.loads(docker("image", "inspect", name))[0]["RepoDigests"] == [name]
    pulled = list(registry.pulled)
    engine.prepare(replace(template, digest=first), print)
    assert registry.pulled == pulled


def test_without_the_registry_the_image_that_was_pulled_counts(registry, engine):
    template = Template(image=f"{registry.name}:1")
    assert engine.digest(Template(image=f"{registry.name}:2")) == ""
    engine.prepare(template, print)
    first = engine.digest(template)
    registry.auth = "Basic wrong"
    assert engine.digest(template) == first


def test_an_image_that_was_built_here_is_known_by_its_id(registry, engine):
    template = Template(image=f"{registry.name}:1")
    engine.prepare(template, print)
    built = Template(image="ownpod-test/built:1")
    docker("tag", f"{registry.name}:1", built.image)
    try:
        found = engine.digest(built)
        assert found == json.loads(docker("image", "inspect", built.image))[0]["Id"]
        engine.prepare(replace(built, digest=found), print)
    finally:
        docker("image", "rm", built.image)


def docker(*command):
    done = subprocess.run(
        ["docker", *command], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_an_image_is_pulled_with_the_credentials_of_its_template(registry):
    registry.auth = "Basic " + base64.b64encode(b"me:a-password").decode()

    def logins(registry_id):
        return {"": None, "right": Login("me", "a-password"), "wrong": Login("me", "x")}[
            registry_id
        ]

    made = ContainerEngine("logins", logins=logins)
    template = Template(image=f"{registry.name}:1")
    for registry_id in ("", "wrong"):
        with pytest.raises(EngineError, match="needs credentials"):
            made.prepare(replace(template, registry=registry_id), print)
    assert made.digest(replace(template, registry="right")).startswith("sha256:")
    made.prepare(replace(template, registry="right"), print)
    assert "a-password" not in repr(logins("right"))
