"""Every answer of REST v1 and v2 against RunPod's documents, where they are, and against shapes written for this project.

One scenario calls each operation of OwnPod's own documents; an operation that it leaves out fails the test.
"""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from helpers import HERE, ROOT, load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.management.v1.openapi import make_document as document_of_v1
from ownpod.management.v2.openapi import make_document as document_of_v2
from ownpod.rules.managed import AgentInfo, Device

DOCUMENTS = {
    "v1": document_of_v1(strict=False, keys=False),
    "v2": document_of_v2(strict=False, keys=False),
}
FOUND = [
    folder for parent in Path(ROOT).parents if (folder := parent / "shared" / "openapi").is_dir()
]
SOURCES = ["shapes", *(["runpods"] if FOUND else [])]

SCALARS = {"text": "string", "integer": "integer", "number": "number", "truth": "boolean"}


def schema_of(shape):
    """The JSON Schema of a shape of ``fixtures/shapes.yaml``."""
    if isinstance(shape, list):
        return {"type": "array", "items": schema_of(shape[0])}
    if isinstance(shape, dict):
        properties = {name.removesuffix("?"): schema_of(part) for name, part in shape.items()}
        required = [name for name in shape if not name.endswith("?")]
        return {"type": "object", "properties": properties, "required": required}
    if shape.endswith("|null"):
        return {"anyOf": [schema_of(shape.removesuffix("|null")), {"type": "null"}]}
    if shape in SCALARS:
        return {"type": SCALARS[shape]}
    if shape == "object":
        return {"type": "object"}
    if shape == "texts":
        return {"type": "object", "additionalProperties": {"type": "string"}}
    return {"enum": shape.split("/")} if "/" in shape else ref(shape)


def ref(name):
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(node):
    """A schema of OpenAPI 3.0 as one of 3.1, which has no ``nullable``."""
    if isinstance(node, list):
        return [nullable(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {name: nullable(part) for name, part in node.items()}
    if node.pop("nullable", None) is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    return node


def runpods(api):
    (folder, *_) = FOUND
    return nullable(json.loads((folder / f"runpod-rest-{api}.json").read_text()))


def schemas_of(source, api):
    """The schemas by name."""
    if source == "runpods":
        return runpods(api)["components"]["schemas"]
    shapes = yaml.safe_load((HERE / "fixtures" / "shapes.yaml").read_text())[api]
    return {name: schema_of(shape) for name, shape in shapes.items()}


LISTS = {"Endpoint": "ListEndpointsResponse", "Template": "ListTemplatesResponse"}
ANSWERS = {
    "v1": {
        "/v1/endpoints": "Endpoint",
        "/v1/templates": "Template",
        "/v1/networkvolumes": "NetworkVolume",
        "/v1/containerregistryauth": "ContainerRegistryAuth",
        "/v1/pods": "Pod",
        "/v1/billing/pods": "BillingRecord",
        "/v1/billing/endpoints": "BillingRecord",
        "/v1/billing/networkvolumes": "NetworkVolumeBillingRecord",
    },
    "v2": {
        "/v2/serverless": ("Endpoint", "ListEndpointsResponse"),
        "/v2/serverless/{id}/workers": ("", "ListEndpointWorkersResponse"),
        "/v2/serverless/{id}/releases": ("", "ListEndpointReleasesResponse"),
        "/v2/templates": ("Template", "ListTemplatesResponse"),
        "/v2/network-volumes": ("NetworkVolume", "ListNetworkVolumesResponse"),
        "/v2/registries": ("Registry", "ListRegistriesResponse"),
        "/v2/registries/delegations": ("", "ListDelegationsResponse"),
        "/v2/account/ssh-keys": ("", "SshKeys"),
        "/v2/catalog/gpus": ("GpuType", "ListGpuTypesResponse"),
        "/v2/catalog/cpus": ("", "ListCpuTypesResponse"),
        "/v2/catalog/datacenters": ("DataCenter", "ListDataCentersResponse"),
        "/v2/catalog/templates": ("", "ListTemplatesResponse"),
        "/v2/billing": ("", "ListBillingResponse"),
        "/v2/billing/pods": ("", "ListPodBillingResponse"),
        "/v2/billing/serverless": ("", "ListServerlessBillingResponse"),
        "/v2/billing/endpoints": ("", "ListEndpointBillingResponse"),
        "/v2/billing/network-volumes": ("", "ListNetworkVolumeBillingResponse"),
        "/v2/billing/clusters": ("", "ListClusterBillingResponse"),
        "/v2/pods": ("", "ListPodsResponse"),
        "/v2/clusters": ("", "ListClustersResponse"),
    },
}
NOT_RUNPODS = "/v2/account/secrets"
"""RunPod's document is older than its secrets."""


def answer_of(api, method, path):
    """The name of the schema of an operation's answer."""
    of_list = method == "get" and not path.endswith(("{id}", "{name}"))
    place = re.sub(r"/\{\w+\}(/update)?$", "", path)
    found = ANSWERS[api][place]
    if api == "v1":
        return f"{found}s" if of_list else found
    return found[of_list]


class Checked:
    """A client whose answers must fit. ``called``: the operations that it has called."""

    def __init__(self, http, source):
        self._http = http
        self._schemas = {api: schemas_of(source, api) for api in DOCUMENTS}
        self.called = set()

    def fits(self, api, name, body):
        document = {**ref(name), "components": {"schemas": self._schemas[api]}}
        jsonschema.Draft202012Validator(document).validate(body)

    def __call__(self, method, path, body=None, *, query="", **ids):
        api = path[1:3]
        self.called.add((method, path))
        response = self._http.open(path.format(**ids) + query, method=method.upper(), json=body)
        assert response.status_code < 300, response.text
        if response.status_code == 204:
            return None
        found = response.get_json()
        if not path.startswith(NOT_RUNPODS):
            self.fits(api, answer_of(api, method, path), found)
        return found


@pytest.fixture
def app(client, redis_server, tmp_path):
    app = create_app(
        load_settings(
            REDIS_URL=redis_server.url,
            OWNPOD_DATA_DIR=tmp_path,
            OWNPOD_WORKERS="http://localhost:1",
        )
    )
    services_of(app).notices.stop()
    return app


@pytest.fixture(params=SOURCES)
def call(app, request):
    return Checked(app.test_client(), request.param)


def start_workers(app, endpoint_id):
    """A ready worker of the endpoint on a host, a wanted one, and one that has failed."""
    svc = services_of(app)
    spec = svc.registry.endpoint(endpoint_id).managed
    devices = [
        Device(f"GPU-{n}", n, "NVIDIA GeForce RTX 4090", memory_mb=24_000, pools=("ADA_24",))
        for n in (1, 2)
    ]
    svc.agents.heartbeat(AgentInfo("h", "docker", tuple(devices)), "token")
    for name, device in zip(("ready", "failed", "wanted"), [*devices, None], strict=True):
        worker = f"{name:0<14}"
        assert svc.managed.want(worker, endpoint_id, spec=spec)
        if device is None:
            continue
        assert svc.managed.place(worker, "h", "token", [device.id])
        assert svc.managed.started(worker, "h")
        if name == "ready":
            assert svc.managed.ready(worker)
        else:
            assert svc.managed.stopped(worker, "h", exit_code=1, reason="exit code 1", failed=True)


def test_the_answers_of_rest_v1_fit(call, app):
    login = {"name": "r", "username": "u", "password": "p"}
    registry = call("post", "/v1/containerregistryauth", login)["id"]
    call("get", "/v1/containerregistryauth")
    call("get", "/v1/containerregistryauth/{id}", id=registry)
    volume = {"name": "v", "size": 20, "dataCenterId": "EU-RO-1"}
    volume = call("post", "/v1/networkvolumes", volume)["id"]
    call("get", "/v1/networkvolumes")
    call("get", "/v1/networkvolumes/{id}", id=volume)
    call("patch", "/v1/networkvolumes/{id}", {"size": 30}, id=volume)
    call("post", "/v1/networkvolumes/{id}/update", {"name": "w"}, id=volume)
    small = {"name": "small", "imageName": "org/worker:1"}
    template = call("post", "/v1/templates", small)["id"]
    large = {
        **small,
        "name": "large",
        "env": {"A": "1"},
        "isServerless": True,
        "dockerArgs": "python -u 'handler.py",
        "containerRegistryAuthId": registry,
    }
    large["dockerArgs"] = "python -u handler.py"
    large = call("post", "/v1/templates", large)["id"]
    call("get", "/v1/templates")
    call("get", "/v1/templates/{id}", id=template)
    call("patch", "/v1/templates/{id}", {"ports": ["80/http"]}, id=template)
    call("post", "/v1/templates/{id}/update", {"env": {"B": "2"}}, id=template)
    bare = call("post", "/v1/endpoints", {"templateId": template})["id"]
    cpu = {"templateId": template, "computeType": "CPU", "vcpuCount": 4}
    call("post", "/v1/endpoints", cpu)
    full = {
        "templateId": large,
        "name": "full",
        "gpuTypeIds": ["NVIDIA GeForce RTX 4090", "NVIDIA L4"],
        "networkVolumeIds": [volume],
        "allowedCudaVersions": ["12.4"],
        "minCudaVersion": "12.1",
        "expires": "2036-01-01T00:00:00Z",
        "scalerType": "REQUEST_COUNT",
    }
    full = call("post", "/v1/endpoints", full)["id"]
    both = "?includeTemplate=true&includeWorkers=true"
    start_workers(app, full)
    for query in ("", both):
        call("get", "/v1/endpoints", query=query)
        call("get", "/v1/endpoints/{id}", id=full, query=query)
    found = call("get", "/v1/endpoints/{id}", id=full, query=both)
    assert {worker["desiredStatus"] for worker in found["workers"]} == {"RUNNING", "EXITED"}
    call("patch", "/v1/endpoints/{id}", {"workersMax": 0}, id=bare)
    call("post", "/v1/endpoints/{id}/update", {"executionTimeout": 600}, id=full)
    call("get", "/v1/pods")
    assert len(call("get", "/v1/pods", query="?includeWorkers=true")) == 3
    for kind in ("pods", "endpoints", "networkvolumes"):
        call("get", f"/v1/billing/{kind}")
    # What was made through REST v2 has other defaults.
    call("post", "/v2/templates", {"name": "of-v2", "image": "i"})
    of_v2 = {
        "name": "of-v2",
        "image": "i",
        "type": "QUEUE",
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 0.5},
        "gpu": {"pools": ["ADA_24"]},
    }
    call("post", "/v2/serverless", of_v2)
    call("get", "/v1/endpoints", query=both)
    call("get", "/v1/templates")
    for endpoint in (full, bare):
        call("delete", "/v1/endpoints/{id}", id=endpoint)
    call("delete", "/v1/networkvolumes/{id}", id=volume)
    call("delete", "/v1/templates/{id}", id=large)
    call("delete", "/v1/containerregistryauth/{id}", id=registry)
    assert operations("v1") - call.called == set()


def test_the_answers_of_rest_v2_fit(call, app):
    login = {"name": "r", "username": "u", "password": "p"}
    registry = call("post", "/v2/registries", login)["id"]
    call("get", "/v2/registries")
    call("get", "/v2/registries/{id}", id=registry)
    secret = {"name": "key", "value": "x"}
    call("post", "/v2/account/secrets", secret)
    call("get", "/v2/account/secrets")
    call("get", "/v2/account/secrets/{id}", id="key")
    call("patch", "/v2/account/secrets/{id}", {"value": "y"}, id="key")
    volume = {"name": "v", "size": 20, "dataCenter": "EU-RO-1"}
    volume = call("post", "/v2/network-volumes", volume)["id"]
    call("get", "/v2/network-volumes")
    call("get", "/v2/network-volumes/{id}", id=volume)
    call("patch", "/v2/network-volumes/{id}", {"size": 30}, id=volume)
    template = {
        "name": "t",
        "image": "org/worker:1",
        "serverless": True,
        "mounts": {"persistent": {"size": 20, "path": "/data"}},
        "cmd": ["python", "-u", "handler.py"],
        "registry": registry,
    }
    template = call("post", "/v2/templates", template)["id"]
    call("post", "/v2/templates", {"name": "bare", "image": "i"})
    call("get", "/v2/templates")
    call("get", "/v2/templates/{id}", id=template)
    call("patch", "/v2/templates/{id}", {"env": {"A": "1"}}, id=template)
    new = {
        "name": "full",
        "type": "QUEUE",
        "templateId": template,
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 2.5},
        "gpu": {"pools": ["ADA_24", "AMPERE_24"], "excludedTypes": ["NVIDIA L4"], "count": 1},
        "networkVolumes": [volume],
    }
    full = call("post", "/v2/serverless", new)["id"]
    by_count = {"type": "REQUEST_COUNT", "requestCount": 2}
    cpu = {"name": "cpu", "image": "i", "scaling": by_count}
    cpu["cpu"] = [{"id": "cpu3c", "vcpuCount": 2}]
    call("post", "/v2/serverless", {**cpu, "type": "QUEUE"})
    start_workers(app, full)
    lb = call("post", "/v2/serverless", {**cpu, "type": "LOAD_BALANCER", "ports": ["80/http"]})[
        "id"
    ]
    changed = {"workers": {"idleTimeout": 60}, "env": {"PORT": "8000"}}
    assert call("patch", "/v2/serverless/{id}", changed, id=lb)["type"] == "LOAD_BALANCER"
    call("get", "/v2/serverless/{id}", id=lb)
    call("get", "/v2/serverless/{id}/workers", id=lb)
    call("get", "/v2/serverless/{id}/releases", id=lb)
    call("get", "/v1/endpoints/{id}", id=lb)
    call("get", "/v2/serverless")
    call("get", "/v2/serverless/{id}", id=full)
    call("patch", "/v2/serverless/{id}", {"image": "org/worker:2"}, id=full)
    found = call("get", "/v2/serverless/{id}/workers", id=full)
    assert found["summary"]["total"] == 2
    assert {worker["isStale"] for worker in found["workers"]} == {True}
    call("get", "/v2/serverless/{id}/releases", id=full)
    assert len(call("get", "/v2/catalog/gpus")["gpus"]) > 40
    call("get", "/v2/catalog/gpus/{name}", name="NVIDIA GeForce RTX 4090")
    center = call("get", "/v2/catalog/datacenters")["dataCenters"][0]["id"]
    call("get", "/v2/catalog/datacenters/{id}", id=center)
    # What was made through REST v1 has other defaults: no image, any GPU.
    of_v1 = call("post", "/v1/templates", {"name": "of-v1", "imageName": "i"})["id"]
    any_gpu = call("post", "/v1/endpoints", {"templateId": of_v1})["id"]
    shown = call("get", "/v2/serverless/{id}", id=any_gpu)["gpu"]
    call("patch", "/v2/serverless/{id}", {"gpu": shown}, id=any_gpu)
    assert services_of(app).registry.endpoint(any_gpu).managed.gpu.pools == ()
    call("get", "/v2/templates")
    call("delete", "/v2/serverless/{id}", id=full)
    call("delete", "/v2/network-volumes/{id}", id=volume)
    call("delete", "/v2/templates/{id}", id=template)
    call("delete", "/v2/registries/{id}", id=registry)
    call("delete", "/v2/account/secrets/{id}", id="key")
    for method, path in sorted(operations("v2") - call.called):
        assert (method, "{" in path) == ("get", False), path
        call(method, path)


def operations(api):
    paths = DOCUMENTS[api]["paths"]
    return {(method, path) for path, item in paths.items() for method in item}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("get", "/v2/serverless/none", None, 404),
        ("get", "/v2/serverless/%20", None, 400),
        ("get", "/v2/catalog/gpus/none", None, 404),
        ("put", "/v2/serverless", {}, 405),
        ("post", "/v2/serverless", {}, 422),
        ("post", "/v2/serverless", [], 422),
        ("post", "/v2/pods", {}, 501),
        ("patch", "/v2/serverless/local-ep", {"name": "x"}, 409),
    ],
)
def test_the_errors_of_rest_v2_fit(call, app, method, path, body, status):
    response = app.test_client().open(path, method=method.upper(), json=body)
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    call.fits("v2", "ErrorResponse", response.get_json())


if FOUND:

    def test_the_names_of_the_answers_are_those_of_runpods_documents():
        for api, base in (("v1", ""), ("v2", "/v2")):
            paths = runpods(api)["paths"]
            for method, path in operations(api):
                if path.startswith(NOT_RUNPODS):
                    continue
                place = base + re.sub(r"\{\w+\}", "{}", path[3:])
                item = next(
                    item for p, item in paths.items() if re.sub(r"\{\w+\}", "{}", p) == place
                )
                responses = item[method]["responses"]
                status = next(status for status in responses if status.startswith("2"))
                content = responses[status].get("content")
                if content:
                    (kind,) = content.values()
                    assert kind["schema"] == ref(answer_of(api, method, path)), (method, path)
