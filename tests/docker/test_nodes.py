"""A worker's node as a Celery container of pytest-celery's: `celery -A ownpod worker`, on the image."""

import time

import pytest
import requests
from helpers import wait_until
from pytest_celery import CeleryBrokerCluster, CeleryWorkerContainer, RedisContainer
from pytest_docker_tools import container, fxtr

pytestmark = pytest.mark.timeout(300)

GPU = "http://ownpod-test-gpu:8000"
NODE = "ownpod-test-gpu-8000"


class Broker(RedisContainer):
    """Redis, as the compose file has it."""

    @classmethod
    def image(cls):
        return "redis:8-alpine"

    @classmethod
    def command(cls, *args, **_):
        return ["redis-server", "--appendonly", "yes", "--appendfsync", "always", *args]

    @property
    def host_url(self):
        host, port = self.get_addr("6379/tcp")
        return f"redis://{host}:{port}/0"


class Node(CeleryWorkerContainer):
    """A RunPod worker's node."""

    @classmethod
    def command(cls, *args, **_):
        return ["celery", "-A", "ownpod", "worker", "-n", f"{NODE}@%h", *args]

    @classmethod
    def initial_env(cls, celery_worker_cluster_config, initial=None):
        (url,) = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
        return {"REDIS_URL": url, "OWNPOD_WORKERS": GPU, "OWNPOD_LEASE_S": "3", **(initial or {})}

    @classmethod
    def tasks_modules(cls):
        return set()


@pytest.fixture
def default_redis_broker_cls(images):
    return Broker


@pytest.fixture
def celery_broker_cluster(celery_redis_broker):
    cluster = CeleryBrokerCluster(celery_redis_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster():
    """None: the job record is the result."""


default_redis_broker = container(
    image="{default_redis_broker_image}",
    ports=fxtr("default_redis_broker_ports"),
    network="{default_pytest_celery_network.name}",
    command=fxtr("default_redis_broker_command"),
    wrapper_class=Broker,
)
default_worker_container = container(
    image="ownpod",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    command=fxtr("default_worker_command"),
    wrapper_class=Node,
)
gpu = container(
    image="ownpod/worker-echo",
    name="ownpod-test-gpu",
    network="{default_pytest_celery_network.name}",
)
api = container(
    image="ownpod",
    command=["ownpod", "api", "--host", "0.0.0.0"],
    environment=fxtr("default_worker_env"),
    ports={"8000/tcp": None},
    network="{default_pytest_celery_network.name}",
)


@pytest.fixture
def default_worker_container_cls():
    return Node


@pytest.fixture
def default_worker_container_session_cls():
    return Node


@pytest.fixture
def endpoint(celery_setup, gpu, api):
    host, port = api.get_addr("8000/tcp")
    url = f"http://{host}:{port}/v2/local-ep"
    wait_until(lambda: health(url).get("ready") == 1, 60, "the worker")
    return url


def health(url):
    try:
        return requests.get(f"{url}/health", timeout=60).json()["workers"]
    except requests.RequestException:
        return {}


def run(url, **job_input):
    return requests.post(f"{url}/run", json={"input": job_input}, timeout=60).json()["id"]


def ended(url, job):
    def look():
        status = requests.get(f"{url}/status/{job}", timeout=60).json()
        return status if status["status"] not in {"IN_QUEUE", "IN_PROGRESS"} else None

    return wait_until(look, 90, f"the end of {job}")


def test_a_job_goes_through_a_node_that_celery_started(endpoint, celery_setup):
    done = ended(endpoint, run(endpoint, text="x"))
    assert (done["status"], done["output"]["echo"], done["workerId"]) == ("COMPLETED", "x", NODE)
    celery_setup.worker.assert_log_exists(f"job {done['id']} COMPLETED")


def test_a_node_that_is_killed_during_a_job_costs_no_job(endpoint, celery_setup):
    job = run(endpoint, text="x", seconds=10)
    wait_until(lambda: health(endpoint).get("running") == 1, 20)
    celery_setup.worker.kill()
    celery_setup.worker.restart()
    done = ended(endpoint, job)
    assert (done["status"], done["output"]["echo"]) == ("COMPLETED", "x")


def test_a_node_outlives_its_broker(endpoint, celery_setup):
    job = run(endpoint, text="x", seconds=6)
    wait_until(lambda: health(endpoint).get("running") == 1, 20)
    celery_setup.broker.kill()
    time.sleep(1)
    celery_setup.broker.restart()
    done = ended(endpoint, job)
    assert (done["status"], "retries" in done) == ("COMPLETED", False)
    assert celery_setup.worker.container.status == "running"
