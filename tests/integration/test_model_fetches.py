"""Models of a host: fetched once however many ask, continued where they were cut, checked, and within a quota."""

import gzip
import io
import json
import lzma
import os
import random
import shutil
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import wait_until
from model_server import COMMIT, model_server, sha256

from ownpod.agent import (
    model_archives,
    model_downloads,
    model_process,
    model_sources,
    model_store,
)
from ownpod.agent.model_downloads import FetchError
from ownpod.agent.model_fetch import Lines, fetch
from ownpod.agent.model_orders import Options, Order
from ownpod.agent.model_process import FetchProcess
from ownpod.agent.model_store import ModelStore
from ownpod.rules.model_news import State
from ownpod.rules.models import Manifest, ModelFile, ModelSource, NoRoom

DATA = random.Random(7).randbytes(300_000)


class Silent(Lines):
    def _line(self, values):
        pass


@pytest.fixture
def server():
    with model_server() as found:
        yield found


@pytest.fixture
def root(tmp_path):
    return (tmp_path / "models").resolve()


def model(server, path="/model.bin", **changes):
    return ModelSource(changes.pop("id", "tiny"), f"{server.url}{path}", **changes)


def order(root, source, **changes):
    return Order(str(root), source, **changes)


def get(root, source, **changes):
    return fetch(order(root, source, **changes), Silent())


def path_of(root, manifest):
    return root / manifest.place / manifest.inside


def archive(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data, *kind in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if kind:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, kind[0], 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# https


def test_a_file_over_http_is_whole_and_found_again(server, root):
    server.files["/model.bin"] = DATA
    manifest = get(root, model(server))
    assert path_of(root, manifest).read_bytes() == DATA
    assert (manifest.inside, manifest.size) == ("model.bin", len(DATA))
    assert ModelStore(root).find(model(server)) == manifest
    get(root, model(server))
    assert server.gets("/model.bin") == [0]


def test_an_archive_is_unpacked(server, root):
    server.files["/m.tar.gz"] = archive(("a/config.json", b"{}"), ("weights", DATA))
    manifest = get(root, model(server, "/m.tar.gz"))
    assert [file.path for file in manifest.files] == ["a/config.json", "weights"]
    assert (path_of(root, manifest) / "weights").read_bytes() == DATA
    assert (path_of(root, manifest) / "weights").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "member", [("../out", b"x"), ("/tmp/out", b"x"), ("link", b"", "/etc/passwd"), ("a/../b", b"x")]
)
def test_an_archive_that_leads_out_of_its_directory_is_refused(server, root, member):
    server.files["/m.tar"] = archive(member)
    with pytest.raises(FetchError):
        get(root, model(server, "/m.tar"))
    assert ModelStore(root).find(model(server, "/m.tar")) is None
    assert not (root / "out").exists()
    assert not (root / "store" / "out").exists()


def header(kind, size, **changes):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    for name, value in changes.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.PAX_FORMAT if changes else tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(tarfile.XHDTYPE, 2**30), "header of more than"),
        (header(tarfile.XGLTYPE, 2**30), "header of more than"),
        (header(tarfile.GNUTYPE_LONGNAME, 2**30), "header of more than"),
        (header(tarfile.GNUTYPE_SPARSE, 0), "holes"),
        (
            header(
                tarfile.REGTYPE,
                512,
                pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
            )
            + b"1" * 512,
            "holes",
        ),
        (lzma.compress(gzip.decompress(archive(("weights", b"x")))), "cannot be unpacked"),
    ],
)
def test_an_archive_that_would_take_memory_is_refused(server, root, data, words):
    server.files["/m.tar"] = data
    with pytest.raises(FetchError, match=words):
        get(root, model(server, "/m.tar"))


def test_the_headers_of_an_archive_are_not_kept(server, root, monkeypatch):
    kept, extract = [], model_archives._extract

    def extracted(tar, *args):
        kept.append(len(tar.members))
        extract(tar, *args)

    monkeypatch.setattr(model_archives, "_extract", extracted)
    server.files["/m.tar"] = archive(*((f"{n}", b"x") for n in range(9)))
    assert len(get(root, model(server, "/m.tar")).files) == 9
    assert max(kept) <= 1


def test_a_server_that_is_away_for_a_moment_is_asked_again_and_one_that_refuses_is_not(
    server, root
):
    for status, again in ((503, True), (404, False), (401, False)):
        server.refuses["/model.bin"] = status
        with pytest.raises(FetchError, match=f"HTTP {status}") as caught:
            get(root, model(server))
        assert caught.value.again is again


def test_a_signed_url_is_in_no_error(server, root):
    with pytest.raises(FetchError) as caught:
        get(root, model(server, "/model.bin?signature=secret"))
    assert "secret" not in str(caught.value)
    assert "secret" not in model(server, "/model.bin?signature=secret").shown


def test_no_stall_is_seen_while_an_archive_is_unpacked_or_a_sum_is_checked(
    server, root, monkeypatch
):
    say, seen = Silent(), []
    unpacks, sums = model_sources.unpack, model_downloads.sum_of
    monkeypatch.setattr(
        model_sources, "unpack", lambda *args: (seen.append(say._state), unpacks(*args))
    )
    monkeypatch.setattr(
        model_downloads, "sum_of", lambda *args: (seen.append(say._state), sums(*args))[1]
    )
    server.files["/m.tar.gz"] = archive(("weights", DATA))
    fetch(order(root, model(server, "/m.tar.gz")), say)
    server.files["/f/weights"] = DATA
    files = [{"path": "weights", "url": "/f/weights", "sha256": sha256(DATA)}]
    server.download = lambda _: (200, {}, json.dumps({"files": files}).encode())
    fetch(order(root, ModelSource("b", "file-service:"), options=service(server)), say)
    assert seen == [State.CHECKING, State.CHECKING]
    # Each byte was progress, first of the archive, then of the sum.
    assert say._checked == 2 * len(DATA)


@pytest.mark.slow
def test_a_check_that_makes_no_progress_is_ended(server, root, monkeypatch):
    monkeypatch.setattr(model_process, "CHECKS", 0.2)
    server.files["/model.bin"] = DATA
    server.hold_at = 100_000
    process = FetchProcess(order(root, model(server), options=Options(stall_s=10)), os.environ)
    assert server.held.wait(60)
    # Stands for a disk that does not answer.
    with ModelStore(root).locked():
        server.go.set()
        states = [state for state, *_ in process.steps()]
    assert states[-1] is State.CHECKING
    end = process.end()
    assert (end.error, end.again) == ("its check made no progress for 2 s", True)


def test_an_archive_that_is_unpacked_as_it_comes_is_progress(server, root):
    kinds = {"Content-Type": "application/x-tar"}
    data = archive(("weights", DATA))
    server.download = lambda _: (200, kinds, data)
    told = []
    say = Silent()
    say.progress = lambda done, _total: told.append(done)
    fetch(order(root, ModelSource("a", "file-service:"), options=service(server)), say)
    assert told[-1] == len(data)


@pytest.mark.slow
def test_ten_processes_that_ask_at_once_are_one_download(server, root):
    server.files["/model.bin"] = DATA
    processes = [FetchProcess(order(root, model(server)), os.environ) for _ in range(10)]
    for process in processes:
        for _ in process.steps():
            pass
    assert [process.end().error for process in processes] == [""] * 10
    assert server.gets("/model.bin") == [0]
    assert server.bytes_of("/model.bin") == len(DATA)


@pytest.mark.slow
def test_a_fetch_that_was_killed_is_continued_where_it_was_cut(server, root):
    server.files["/model.bin"] = DATA * 30
    server.hold_at = 4_000_000
    process = FetchProcess(order(root, model(server)), os.environ)
    assert server.held.wait(60)
    part = next(iter([root / "store" / f".partial-{model(server).key}" / "model.bin.part"]))
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    process.kill()
    process.end()
    have = part.stat().st_size
    server.hold_at = None
    server.go.set()
    manifest = get(root, model(server))
    assert path_of(root, manifest).read_bytes() == DATA * 30
    assert server.gets("/model.bin") == [0, have]


def test_what_a_killed_process_has_left_and_no_fetch_continues_is_dropped_by_the_next_fetch(
    server, root
):
    store = ModelStore(root)
    store.make()
    source, other, busy = (model(server, f"/{n}", id=n) for n in ("m.tar", "other", "busy"))
    server.files["/m.tar"] = archive(("weights", DATA))
    partial = store.partial(source.key)
    cut = partial / "of-an-older-archive"
    cut.parent.mkdir()
    cut.write_bytes(b"cut")
    kept = [store.partial(other.key), partial.with_name(f"{store.partial(busy.key).name}.archive")]
    kept[0].mkdir()
    kept[1].write_bytes(DATA)
    left = [partial.with_name(f"{store.partial(s.key).name}.archive") for s in (source, other)]
    for path in left:
        path.write_bytes(DATA)
    left.append(partial.with_name(f"{partial.name}.old1"))
    (left[-1] / "weights").mkdir(parents=True)
    with store.fetching(busy, wait=False):
        manifest = get(root, source)
    assert [file.path for file in manifest.files] == ["weights"]
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if path.exists()] == kept
    assert store.remove(busy) == ""
    assert not kept[1].exists()


@pytest.mark.slow
def test_what_the_library_of_the_hub_does_not_continue_is_dropped(hub, root):
    source = ModelSource("tiny", "hf://org/tiny")
    top = root / "hub" / "models--org--tiny" / "blobs"
    top.mkdir(parents=True)
    left = top / f"{sha256(DATA)}.12345678.incomplete"
    left.write_bytes(DATA)
    assert hub(root, source).error == ""
    assert not left.exists()


@pytest.mark.slow
def test_a_process_that_fetches_ends_with_its_agent(server, root):
    server.files["/model.bin"] = DATA
    server.hold_at = 100_000
    process = FetchProcess(order(root, model(server)), os.environ)
    assert server.held.wait(60)
    process._process.stdin.close()
    assert process._process.wait(60) == 1
    process.end()


@pytest.mark.slow
def test_what_a_library_prints_is_no_step(server, root):
    server.files["/model.bin"] = DATA
    process = FetchProcess(order(root, model(server)), os.environ)
    process._process.stdout.readline()
    lines = process._process.stdout
    process._process.stdout = io.StringIO('5\nnull\n"state"\n[]\nx\n{"state": "fetching"}\n')
    assert list(process.steps()) == [(State.FETCHING, 0, 0)]
    lines.close()
    process.kill()
    process.end()


def test_a_file_that_has_changed_since_it_was_cut_begins_at_its_first_byte(server, root):
    partial = ModelStore(root).partial(model(server).key)
    partial.mkdir(parents=True)
    (partial / "model.bin.part").write_bytes(b"old" * 100)
    (partial / "model.bin.part.tag").write_text(json.dumps('"old"'))
    server.files["/model.bin"] = DATA
    manifest = get(root, model(server))
    assert path_of(root, manifest).read_bytes() == DATA
    assert server.gets("/model.bin") == [0]


@pytest.mark.slow
def test_a_server_that_sends_nothing_more_is_a_stall(server, root):
    server.files["/model.bin"] = DATA
    server.hold_at = 100_000
    with pytest.raises(FetchError) as caught:
        get(root, model(server), options=Options(stall_s=0.5))
    assert caught.value.again


def test_a_manifest_without_its_files_does_not_count(server, root):
    server.files["/model.bin"] = DATA
    manifest = get(root, model(server))
    path_of(root, manifest).write_bytes(DATA[:-1])
    assert ModelStore(root).find(model(server)) is None
    assert path_of(root, get(root, model(server))).read_bytes() == DATA


# The hub


@pytest.fixture
def hub(server, monkeypatch):
    server.repositories["org/tiny"] = {"config.json": b"{}", "model.safetensors": DATA}
    # The library reads it when it is imported, so these fetches are processes of their own.
    environ = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}

    def fetched(root, source, **changes):
        process = FetchProcess(order(root, source, **changes), environ)
        for _ in process.steps():
            pass
        return process.end()

    return fetched


@pytest.fixture
def hub_states(server):
    server.repositories["org/tiny"] = {"model.safetensors": DATA}
    environ = {**os.environ, "HF_ENDPOINT": server.url}

    def states(root, source):
        process = FetchProcess(order(root, source), environ)
        found = [state for state, *_ in process.steps()]
        assert process.end().error == ""
        return found

    return states


@pytest.mark.slow
def test_a_repository_of_the_hub_is_in_hugging_faces_cache(server, hub, root):
    source = ModelSource("tiny", "hf://org/tiny")
    assert hub(root, source).error == ""
    manifest = ModelStore(root).find(source)
    assert manifest.place == "hub/models--org--tiny"
    assert manifest.inside == f"snapshots/{COMMIT}"
    assert manifest.revision == COMMIT
    assert (path_of(root, manifest) / "model.safetensors").read_bytes() == DATA
    assert (root / manifest.place / "refs" / "main").read_text() == COMMIT
    assert {file.sha256 for file in manifest.files} == {sha256(DATA), sha256(b"{}")}
    assert "Bearer hf_secret" in [v for headers in server.headers for v in headers.values()]
    assert ModelStore(root).remove(source) == ""
    assert not (root / manifest.place).exists()


@pytest.mark.slow
def test_a_flat_model_of_the_hub_has_real_files(hub, root):
    source = ModelSource("tiny", "hf://org/tiny", flat=True)
    assert hub(root, source).error == ""
    manifest = ModelStore(root).find(source)
    files = sorted(path.name for path in path_of(root, manifest).iterdir())
    assert files == ["config.json", "model.safetensors"]
    assert not any(path.is_symlink() for path in path_of(root, manifest).iterdir())


@pytest.mark.slow
def test_a_file_with_a_wrong_sum_or_size_is_not_taken(server, hub, root):
    source = ModelSource("tiny", "hf://org/tiny")
    server.sums["model.safetensors"] = "0" * 64
    end = hub(root, source)
    assert "SHA-256" in end.error
    assert end.again
    assert ModelStore(root).find(source) is None
    server.sums.clear()
    server.listed_sizes["model.safetensors"] = len(DATA) + 1
    assert hub(root, source).error
    assert ModelStore(root).find(source) is None


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_plain_line(hub, root):
    assert "not on the hub" in hub(root, ModelSource("x", "hf://org/none")).error
    gone = hub(root, ModelSource("x", "hf://org/tiny", revision="gone"))
    assert "has no revision 'gone'" in gone.error
    assert not gone.again


@pytest.mark.slow
def test_a_file_of_the_hub_that_leads_out_of_the_cache_is_refused(server, hub, root):
    server.repositories["org/tiny"]["../../../out"] = b"x"
    assert hub(root, ModelSource("tiny", "hf://org/tiny")).error
    assert not list(root.rglob("out"))


def again(root, source):
    """The next fetch finds the files, but no manifest, as after a try that was killed."""
    (root / "ownpod" / f"{source.key}.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_a_file_that_a_killed_try_has_left_is_checked_too(hub, root, flat):
    source = ModelSource("tiny", "hf://org/tiny", flat=flat)
    assert hub(root, source).error == ""
    place = path_of(root, ModelStore(root).find(source))
    again(root, source)
    if flat:
        # What the hub's library notes is removed at the end of a fetch.
        place = place.rename(ModelStore(root).partial(source.key))
        notes = place / ".cache" / "huggingface" / "download"
        notes.mkdir(parents=True)
        note = f"{COMMIT}\n{sha256(DATA)}\n{2**40}\n"
        (notes / "model.safetensors.metadata").write_text(note)
    (place / "model.safetensors").resolve().write_bytes(bytes(len(DATA)))
    end = hub(root, source)
    assert "SHA-256" in end.error
    assert end.again
    assert hub(root, source).error == ""
    manifest = ModelStore(root).find(source)
    assert (path_of(root, manifest) / "model.safetensors").read_bytes() == DATA


@pytest.mark.slow
def test_the_sums_of_the_hub_are_checked_in_a_state_of_its_own(hub_states, root):
    states = hub_states(root, ModelSource("tiny", "hf://org/tiny"))
    assert State.CHECKING in states
    assert states.index(State.FETCHING) < states.index(State.CHECKING)


@pytest.mark.slow
def test_a_file_that_several_models_of_the_hub_share_has_its_own_sum(hub, root):
    source = ModelSource("tiny", "hf://org/tiny")
    assert hub(root, source).error == ""
    again(root, source)
    # The library's store of shared files names them by the sum of another kind.
    shared = root / "hub" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob = root / "hub" / "models--org--tiny" / "blobs" / sha256(DATA)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert hub(root, source).error == ""
    shared.write_bytes(bytes(len(DATA)))
    again(root, source)
    assert "SHA-256" in hub(root, source).error
    assert not blob.is_symlink()
    assert not shared.exists()


# fsspec, and paths of the host


def test_files_of_what_fsspec_reads_are_copied(root, tmp_path):
    top = tmp_path / "bucket"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "weights").write_bytes(DATA)
    (top / "config.json").write_bytes(b"{}")
    source = ModelSource("copied", f"local://{top}")
    manifest = get(root, source)
    assert [file.path for file in manifest.files] == ["config.json", "sub/weights"]
    assert (path_of(root, manifest) / "sub" / "weights").read_bytes() == DATA


def test_s3_without_its_library_names_the_extra(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(FetchError, match=r"ownpod\[s3\]"):
        get(root, ModelSource("x", "s3://bucket/x"))


def test_a_path_of_the_host_is_used_where_it_is(root, tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    store = ModelStore(root)
    assert store.find(ModelSource("x", f"file://{place}")).place == str(place)
    with pytest.raises(ValueError, match="does not exist"):
        store.find(ModelSource("x", f"file://{place}/none"))
    with pytest.raises(ValueError, match="/etc"):
        store.find(ModelSource("x", "file:///etc/ssl"))


def test_a_snapshot_of_a_cache_is_mounted_with_its_repository(root, tmp_path):
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    found = ModelStore(root).find(ModelSource("x", f"file://{snapshot}"))
    assert (found.place, found.inside) == (str(repository), f"snapshots/{COMMIT}")
    assert path_of(root, found) == snapshot


# The file service


def service(server):
    return Options(service_url=server.url, service_key="key")


def test_the_file_service_writes_the_model_itself(server, root):
    def download(asked):
        (Path(asked["destination"]) / "weights").write_bytes(DATA)
        return 200, {}, b'{"success": true}'

    server.download = download
    manifest = get(root, ModelSource("tiny", "file-service:"), options=service(server))
    assert (path_of(root, manifest) / "weights").read_bytes() == DATA
    assert server.headers[-1]["X-Internal-Key"] == "key"
    assert server.headers[-1]["Authorization"] == "Bearer key"


def test_the_file_service_lists_files_whose_sums_are_checked(server, root):
    server.files["/f/weights"] = DATA
    files = [{"path": "sub/weights", "url": "/f/weights", "sha256": "0" * 64}]
    server.download = lambda _: (200, {}, json.dumps({"files": files}).encode())
    source = ModelSource("tiny", "file-service:")
    with pytest.raises(FetchError, match="SHA-256"):
        get(root, source, options=service(server))
    files[0]["sha256"] = sha256(DATA)
    manifest = get(root, source, options=service(server))
    assert [file.path for file in manifest.files] == ["sub/weights"]
    files[0]["path"] = "../weights"
    with pytest.raises(FetchError, match="refused"):
        get(root, ModelSource("other", "file-service:"), options=service(server))


def test_the_key_of_the_file_service_is_not_sent_to_another_host(server, root):
    with model_server() as other:
        other.files["/weights"] = DATA
        server.redirects["/f/weights"] = f"{other.url}/weights"
        files = [{"path": "weights", "url": "/f/weights"}]
        server.download = lambda _: (200, {}, json.dumps({"files": files}).encode())
        get(root, ModelSource("tiny", "file-service:"), options=service(server))
        assert other.gets("/weights") == [0]
        assert not any(
            "X-Internal-Key" in headers or "Authorization" in headers for headers in other.headers
        )


def test_the_file_service_answers_with_an_archive_or_one_file(server, root):
    kinds = {"Content-Type": "application/gzip"}
    server.download = lambda _: (200, kinds, archive(("weights", DATA)))
    manifest = get(root, ModelSource("a", "file-service:"), options=service(server))
    assert (path_of(root, manifest) / "weights").read_bytes() == DATA
    named = {"Content-Type": "application/octet-stream"}
    named["Content-Disposition"] = 'attachment; filename="m.gguf"'
    server.download = lambda _: (200, named, DATA)
    manifest = get(root, ModelSource("b", "file-service:"), options=service(server))
    assert path_of(root, manifest).name == "m.gguf"
    assert path_of(root, manifest).read_bytes() == DATA


def test_a_file_service_without_downloads_is_read_by_its_list(server, root):
    server.files["/bucket/tiny/weights"] = DATA
    source = ModelSource("tiny", "file-service:")
    server.bucket = "weights"
    with pytest.raises(FetchError, match="no files"):
        get(root, source, options=service(server))
    manifest = get(root, source, options=replace(service(server), service_bucket="weights"))
    assert path_of(root, manifest).read_bytes() == DATA


def test_what_the_operator_has_put_in_place_is_not_fetched(server, root):
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "weights").write_bytes(DATA)
    manifest = get(root, ModelSource("tiny", "file-service:"), options=service(server))
    assert manifest.place == "tiny"
    assert server.headers == []


# Room


def test_the_least_recently_used_model_goes_and_never_one_that_a_worker_has(server, root):
    store = ModelStore(root)
    for name in ("a", "b", "c", "d"):
        server.files[f"/{name}"] = DATA
    sources = {name: model(server, f"/{name}", id=name) for name in ("a", "b", "c", "d")}
    quota = 3 * len(DATA)
    for at, name in enumerate(("a", "b", "c")):
        get(root, sources[name], quota=quota)
        os.utime(root / "ownpod" / f"{sources[name].key}.json", (at, at))
    store.hold("worker1", sources["a"])
    os.utime(root / "ownpod" / f"{sources['a'].key}.json", (0, 0))
    get(root, sources["d"], quota=quota)
    assert store.find(sources["a"]) is not None
    assert store.find(sources["b"]) is None
    assert not (root / "store" / sources["b"].key).exists()
    assert store.remove(sources["a"]) == "it is in use by worker worker1"
    store.release([])
    assert store.remove(sources["a"]) == ""


def test_models_in_use_or_pinned_leave_no_room_and_nothing_goes(server, root):
    store = ModelStore(root)
    for name in ("a", "b", "c"):
        server.files[f"/{name}"] = DATA
    a, b, c = (model(server, f"/{name}", id=name) for name in ("a", "b", "c"))
    quota = 2 * len(DATA)
    get(root, a, quota=quota)
    get(root, b, quota=quota)
    store.hold("worker1", a)
    with pytest.raises(FetchError, match="OWNPOD_MODELS_QUOTA") as caught:
        get(root, c, quota=quota, stay=("b",))
    assert not caught.value.again
    assert store.find(a) is not None
    assert store.find(b) is not None


def test_a_full_disk_is_told_before_a_byte_is_fetched(server, root, monkeypatch):
    server.files["/model.bin"] = DATA
    usage = SimpleNamespace(total=1_000_000, used=900_000, free=100_000)
    monkeypatch.setattr(model_store.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match="needed"):
        get(root, model(server))
    assert server.bytes_of("/model.bin") == 0


def test_a_model_that_is_being_fetched_does_not_give_way(server, root):
    server.files["/a"] = DATA
    a = model(server, "/a", id="a")
    get(root, a)
    store, free = ModelStore(root), shutil.disk_usage(root).free
    with store.fetching(a, wait=False) as mine:
        assert mine
        with pytest.raises(NoRoom):
            store.make_room(model(server, id="b"), free, quota=None, stay=())
        assert store.remove(a) == "it is being fetched"
    assert store.find(a) is not None


def test_an_archive_that_is_larger_than_it_says_does_not_exceed_the_quota(server, root):
    server.files["/m.tar.gz"] = archive(*((f"{n}", bytes(100_000)) for n in range(9)))
    source = model(server, "/m.tar.gz")
    with pytest.raises(FetchError, match="OWNPOD_MODELS_QUOTA"):
        get(root, source, quota=500_000)
    partial = ModelStore(root).partial(source.key)
    assert sum(file.stat().st_size for file in partial.iterdir()) <= 500_000
    assert get(root, source, quota=900_000).size == 900_000


def test_a_model_whose_size_no_server_tells_does_not_exceed_the_quota(server, root, monkeypatch):
    monkeypatch.setattr(model_sources, "LOOK", 100_000)
    monkeypatch.setattr(model_downloads, "PIECE", 50_000)
    # As a signed URL, which permits no HEAD.
    monkeypatch.setattr(model_downloads.Http, "size", lambda *_: None)
    server.files["/model.bin"] = DATA * 4
    with pytest.raises(FetchError, match="OWNPOD_MODELS_QUOTA"):
        get(root, model(server), quota=600_000)
    part = ModelStore(root).partial(model(server).key) / "model.bin.part"
    assert part.stat().st_size <= 700_000
    assert get(root, model(server), quota=1_200_000).size == 1_200_000


def test_what_is_here_of_a_model_counts_in_the_quota(server, root):
    server.files["/model.bin"], server.files["/a"] = DATA, DATA
    store, a = ModelStore(root), model(server, "/a", id="a")
    get(root, a)
    store.hold("worker1", a)
    partial = store.partial(model(server).key)
    partial.mkdir()
    (partial / "model.bin.part").write_bytes(DATA[:200_000])
    (partial / "model.bin.part.tag").write_text(json.dumps(server.tag))
    with pytest.raises(FetchError, match="OWNPOD_MODELS_QUOTA"):
        get(root, model(server), quota=500_000)
    assert get(root, model(server), quota=600_000).size == len(DATA)


def test_what_another_fetch_has_and_still_needs_counts_in_the_quota(server, root):
    store, a, b = ModelStore(root), model(server, "/a", id="a"), model(server, "/b", id="b")
    server.files["/b"] = DATA
    with store.fetching(a, wait=False):
        store.make_room(a, 250_000, quota=500_000, stay=())
        with pytest.raises(FetchError, match="being fetched"):
            get(root, b, quota=500_000)
        assert server.bytes_of("/b") == 0
        # Its bytes on the disk are those that it needed before, and are counted once.
        store.partial(a.key).mkdir()
        (store.partial(a.key) / "a.part").write_bytes(bytes(100_000))
        with pytest.raises(FetchError, match="being fetched"):
            get(root, b, quota=500_000)
        assert get(root, b, quota=550_000).size == len(DATA)


def test_a_repository_that_is_being_fetched_counts_in_the_quota(server, root):
    store, a, b = ModelStore(root), ModelSource("a", "hf://org/a"), model(server, "/b", id="b")
    server.files["/b"] = DATA
    with store.fetching(a, wait=False):
        store.make_room(a, 250_000, quota=500_000, stay=())
        blob = root / "hub" / "models--org--a" / "blobs" / "one"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(bytes(200_000))
        with pytest.raises(FetchError, match="being fetched"):
            get(root, b, quota=549_000)
    # Its process has died, and its promise with it.
    assert get(root, b, quota=549_000).size == len(DATA)


def test_a_fetch_that_is_whole_is_counted_once_before_its_lock_is_free(server, root):
    store, a, b = ModelStore(root), model(server, "/a", id="a"), model(server, "/b", id="b")
    server.files["/b"] = DATA
    with store.fetching(a, wait=False):
        store.make_room(a, len(DATA), quota=None, stay=())
        store.partial(a.key).mkdir()
        (store.partial(a.key) / "a").write_bytes(DATA)
        files = (ModelFile("a", len(DATA)),)
        store.complete(Manifest(a, f"store/{a.key}", "a", files, 1))
        assert get(root, b, quota=2 * len(DATA), stay=(a.key,)).size == len(DATA)


def test_bytes_that_another_fetch_still_needs_are_not_free(server, root, monkeypatch):
    usage = SimpleNamespace(total=1_000_000, used=400_000, free=600_000)
    monkeypatch.setattr(model_store.shutil, "disk_usage", lambda _: usage)
    store, a, b = ModelStore(root), model(server, "/a", id="a"), model(server, "/b", id="b")
    server.files["/b"] = DATA
    with store.fetching(a, wait=False):
        store.make_room(a, 300_000, quota=None, stay=())
        with pytest.raises(FetchError, match="needed"):
            get(root, b)
    assert get(root, b).size == len(DATA)


def test_a_part_that_no_fetch_continues_gives_way_and_a_wanted_one_stays(server, root):
    store, a, b, c = ModelStore(root), *(model(server, f"/{n}", id=n) for n in ("a", "b", "c"))
    server.files["/c"] = DATA
    store.make()
    for source in (a, b):
        store.partial(source.key).mkdir()
        (store.partial(source.key) / "cut.part").write_bytes(bytes(100_000))
    assert get(root, c, quota=400_000, stay=(a.key,)).size == len(DATA)
    assert store.partial(a.key).exists()
    assert not store.partial(b.key).exists()


def test_no_fetch_begins_while_a_model_is_removed(server, root, monkeypatch):
    server.files["/a"] = server.files["/b"] = DATA
    a, b = (model(server, f"/{name}", id=name) for name in ("a", "b"))
    store, seen = ModelStore(root), []
    removes = ModelStore._remove

    def removed(self, manifest):
        with ModelStore(root).fetching(manifest.source, wait=False) as free:
            seen.append(free)
        removes(self, manifest)

    monkeypatch.setattr(ModelStore, "_remove", removed)
    get(root, a)
    get(root, b, quota=len(DATA))
    assert store.find(a) is None
    assert store.remove(b) == ""
    assert seen == [False, False]


def test_threads_that_hold_and_release_never_lose_a_user(server, root):
    server.files["/a"] = DATA
    a = model(server, "/a", id="a")
    get(root, a)
    store = ModelStore(root)
    threads = [threading.Thread(target=store.hold, args=(f"worker{n}", a)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.users()) == 20
