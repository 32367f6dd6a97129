"""Models from S3, by a real client of it and a server that speaks its protocol."""

import logging
import os
import random

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ownpod.agent.model_orders import Order
from ownpod.agent.model_process import FetchProcess
from ownpod.agent.model_store import ModelStore
from ownpod.rules.models import ModelSource

# The server's libraries take seconds to import.
pytestmark = pytest.mark.slow

DATA = random.Random(7).randbytes(300_000)


@pytest.fixture(scope="module")
def environ():
    """Of an agent that knows the server and a key of it."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "some-id",
        "AWS_SECRET_ACCESS_KEY": "some-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    yield {**os.environ, **values}
    server.stop()


@pytest.fixture
def bucket(environ):
    client = boto3.client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL"],
        aws_access_key_id="some-id",
        aws_secret_access_key="some-secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    files = {
        # As the consoles of S3 make folders.
        "tiny/": b"",
        "tiny/part/": b"",
        "tiny/config.json": b"{}",
        "tiny/part/weights": DATA,
        "tiny-2/other": b"other",
    }
    for key, data in files.items():
        client.put_object(Bucket="models", Key=key, Body=data)
    yield client
    for key in [found["Key"] for found in client.list_objects(Bucket="models")["Contents"]]:
        client.delete_object(Bucket="models", Key=key)
    client.delete_bucket(Bucket="models")
    client.close()


@pytest.fixture
def get(environ, tmp_path):
    """Fetches a model; its manifest and directory, or the error."""

    def fetched(url):
        root, source = (tmp_path / "models").resolve(), ModelSource("tiny", url)
        process = FetchProcess(Order(str(root), source), environ)
        for _ in process.steps():
            pass
        if error := process.end().error:
            return error, None
        manifest = ModelStore(root).find(source)
        return manifest, root / manifest.place / manifest.inside

    return fetched


@pytest.mark.parametrize("end", ["", "/"])
def test_all_objects_below_a_prefix_are_the_model(bucket, get, end):
    manifest, path = get(f"s3://models/tiny{end}")
    assert [(file.path, file.size) for file in manifest.files] == [
        ("config.json", 2),
        ("part/weights", len(DATA)),
    ]
    assert (path / "part" / "weights").read_bytes() == DATA


def test_one_object_is_the_model(bucket, get):
    manifest, path = get("s3://models/tiny/part/weights")
    assert manifest.inside == "weights"
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("place", ["models/none", "no-such-bucket/tiny"])
def test_what_s3_does_not_have_is_one_plain_line_without_the_key(bucket, get, place):
    error, _ = get(f"s3://{place}")
    assert error.startswith(f"s3://{place} ")
    assert "\n" not in error
    assert "some-" not in error
