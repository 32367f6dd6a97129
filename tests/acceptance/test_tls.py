"""Workers behind HTTPS, with certificates of their own and a token: the real SDK, real processes."""

import datetime as dt
import socket

import pytest
import trustme
from helpers import sdk_worker, wait_until

from ownpod.processes import free_port

TOKEN = '{"X-Token": "let-me-in"}'


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A CA, and its certificate's file."""
    ca = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(file)
    return ca, file


@pytest.fixture(scope="module")
def workers(tmp_path_factory, authority):
    """URLs of an HTTPS worker with a good certificate, and of one whose has expired."""
    directory = tmp_path_factory.mktemp("tls")
    ca, _ = authority
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    certificates = {
        "good": ca.issue_cert("127.0.0.1"),
        "expired": ca.issue_cert("127.0.0.1", not_after=past),
    }
    urls, processes = {}, []
    for name, certificate in certificates.items():
        file, port = directory / f"{name}.pem", free_port()
        certificate.private_key_and_cert_chain_pem.write_to_path(file)
        log = directory / f"{name}.log"
        processes.append(sdk_worker(port, log, CERTIFICATE=file))
        urls[name] = f"https://127.0.0.1:{port}"
        wait_until(lambda port=port: listens(port), 40, "the worker")
    yield urls
    for process in processes:
        process.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_with_the_right_ca_and_token_jobs_run_and_neither_is_logged(
    start_ownpod, workers, authority
):
    ownpod = start_ownpod(
        workers["good"],
        OWNPOD_WORKER_CA_BUNDLE=authority[1],
        OWNPOD_WORKER_HEADERS=TOKEN,
        OWNPOD_LOG_LEVEL="DEBUG",
    )
    done = ownpod.ended(ownpod.submit(text="over TLS"))
    assert (done["status"], done["output"]["echo"]) == ("COMPLETED", "over TLS")
    assert "let-me-in" not in ownpod.output
    assert "let-me-in" not in str(ownpod.get("/health")) + str(ownpod.get("/workers"))


def test_each_worker_can_have_its_own_settings(start_ownpod, workers, authority, tmp_path):
    other = trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    file = tmp_path / "workers.yaml"
    good, expired, ca = workers["good"], workers["expired"], authority[1]
    token = f"headers: {TOKEN}"
    file.write_text(f"""
endpoints:
  right: {{workers: [{{url: "{good}", caBundle: "{ca}", {token}}}]}}
  expired: {{workers: [{{url: "{expired}", caBundle: "{ca}", {token}}}]}}
""")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file)
    ownpod.endpoint = f"{ownpod.base}/right"
    assert ownpod.ended(ownpod.submit(text="x"))["status"] == "COMPLETED"
    ownpod.endpoint = f"{ownpod.base}/expired"
    (worker,) = ownpod.get("/health")["ownpod"]["workers"]
    assert worker["state"] == "unhealthy"
    assert "certificate has expired" in worker["reason"]
    waiting = ownpod.status(ownpod.submit(text="y"))
    assert "certificate has expired" in waiting["waitingReason"]


@pytest.mark.parametrize("which", ["wrong", "none"])
def test_a_certificate_of_an_unknown_ca_is_refused(start_ownpod, workers, tmp_path, which):
    environ = {"OWNPOD_WORKER_HEADERS": TOKEN}
    if which == "wrong":
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        environ["OWNPOD_WORKER_CA_BUNDLE"] = tmp_path / "other.pem"
    ownpod = start_ownpod(workers["good"], **environ)
    (worker,) = ownpod.get("/health")["ownpod"]["workers"]
    assert worker["state"] == "unhealthy"
    assert "certificate verify failed" in worker["reason"]


def test_without_verification_any_certificate_will_do(start_ownpod, workers):
    ownpod = start_ownpod(
        workers["good"],
        workers["expired"],
        OWNPOD_WORKER_VERIFY_TLS="false",
        OWNPOD_WORKER_HEADERS=TOKEN,
    )
    jobs = [ownpod.submit(text=str(n), seconds=0.2) for n in range(6)]
    assert {ownpod.ended(job)["status"] for job in jobs} == {"COMPLETED"}
    assert ownpod.get("/health")["workers"]["ready"] == 2


def test_a_missing_token_is_reported(start_ownpod, workers, authority):
    ownpod = start_ownpod(workers["good"], OWNPOD_WORKER_CA_BUNDLE=authority[1])
    job = ownpod.submit(text="x")

    def told():
        said = ownpod.status(job).get("waitingReason", "")
        return "HTTP 401" in said and "a token is needed" in said

    wait_until(told, 15)
