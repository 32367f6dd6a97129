"""What a Terraform provider does: create, read back, apply again, change one field. Any other difference is drift.

MANAGEMENT.md, 3.3: every attribute that was sent is read back identically, and applying the same again changes nothing.
"""

from dataclasses import dataclass

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of

DRY_RUN = {"X-OwnPod-Dry-Run": "1"}

FOLLOW = {
    "workersMax": {"workersStandby"},
    "cpuFlavorIds": {"instanceIds"},
    "cmd": {"args"},
}
"""Fields of an answer that another one determines, by that one."""


@dataclass
class Resource:
    """A resource as a provider has it: where it is, what its configuration says, and which fields make a release.

    Attributes:
        url: of the collection.
        config: the body of the request that creates it; the provider reads back each of these fields.
        changes: another value of a field, and the fields in the difference that it makes.
        once: fields that only the creation has.
        releases: whether changes make releases of endpoints.
    """

    url: str
    config: dict
    changes: dict
    once: tuple = ()
    releases: bool = False


V1_ENDPOINT = Resource(
    "/v1/endpoints",
    {
        "name": "drift",
        "computeType": "GPU",
        "gpuTypeIds": ["NVIDIA RTX A4500", "NVIDIA L4", "NVIDIA GeForce RTX 4090"],
        "gpuCount": 2,
        "workersMin": 0,
        "workersMax": 4,
        "idleTimeout": 7,
        "scalerType": "REQUEST_COUNT",
        "scalerValue": 3,
        "executionTimeoutMs": 600_000,
        "flashboot": True,
        "dataCenterIds": ["US-TX-3", "EU-RO-1", "CA-MTL-1"],
        "allowedCudaVersions": ["12.8", "12.4"],
        "minCudaVersion": "12.4",
    },
    {
        "name": ("other", ["name"]),
        "gpuTypeIds": (["NVIDIA L4", "NVIDIA RTX A4500", "NVIDIA GeForce RTX 4090"], ["gpu"]),
        "gpuCount": (1, ["gpu"]),
        "workersMin": (1, ["workersMin"]),
        "workersMax": (5, ["workersMax"]),
        "idleTimeout": (8, ["idleTimeout"]),
        "scalerType": ("QUEUE_DELAY", ["scalerType"]),
        "scalerValue": (4, ["scalerValue"]),
        "executionTimeoutMs": (0, ["executionTimeoutMs"]),
        "flashboot": (False, ["flashboot"]),
        "dataCenterIds": (["EU-RO-1", "US-TX-3"], ["dataCenterIds"]),
        "allowedCudaVersions": (["12.4", "12.8"], ["allowedCudaVersions"]),
        "minCudaVersion": ("12.8", ["minCudaVersion"]),
    },
    once=("computeType",),
    releases=True,
)

V1_CPU_ENDPOINT = Resource(
    "/v1/endpoints",
    {
        "name": "drift",
        "computeType": "CPU",
        "cpuFlavorIds": ["cpu5c", "cpu3g"],
        "vcpuCount": 4,
        "workersMax": 2,
        "minCudaVersion": "",
        "networkVolumeIds": [],
    },
    {
        "cpuFlavorIds": (["cpu3g", "cpu5c"], ["cpu"]),
        "vcpuCount": (8, ["cpu"]),
        "workersMax": (3, ["workersMax"]),
    },
    once=("computeType",),
    releases=True,
)

V1_TEMPLATE = Resource(
    "/v1/templates",
    {
        "name": "drift",
        "imageName": "org/worker:1",
        "category": "NVIDIA",
        "containerDiskInGb": 30,
        "dockerEntrypoint": ["/bin/sh", "-c"],
        "dockerStartCmd": ["python  -u  'a b.py'", ""],
        "env": {"Z": "1", "A": " two ", "EMPTY": "", "REF": "{{ RUNPOD_SECRET_hub }}"},
        "isPublic": False,
        "isServerless": True,
        "ports": ["8888/http", "22/tcp", "80/http"],
        "readme": "# Read me\n",
        "volumeInGb": 0,
        "volumeMountPath": "/workspace",
    },
    {
        "imageName": ("org/worker:2", ["template.imageName"]),
        "containerDiskInGb": (40, ["template.containerDiskInGb"]),
        "dockerEntrypoint": ([], ["template.dockerEntrypoint"]),
        "dockerStartCmd": (["python"], ["template.dockerStartCmd"]),
        "env": ({"Z": "1"}, ["template.env"]),
        "ports": (["22/tcp"], ["template.ports"]),
        "readme": ("", []),
        "volumeInGb": (10, []),
        "volumeMountPath": ("/data", []),
        "isPublic": (True, []),
        "name": ("other", []),
    },
    once=("category", "isServerless"),
)

V2_ENDPOINT = Resource(
    "/v2/serverless",
    {
        "name": "drift",
        "type": "QUEUE",
        "image": "org/worker:1",
        "args": "python  -u  handler.py --name 'a b'",
        "disk": 30,
        "env": {"Z": "1", "A": " two ", "EMPTY": "", "REF": "{{ RUNPOD_SECRET_hub }}"},
        "ports": ["8888/http", "22/tcp", "80/http"],
        "registry": None,
        "gpu": {"pools": ["AMPERE_24", "ADA_24"], "excludedTypes": ["NVIDIA L4"], "count": 2},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 0.5},
        "workers": {"min": 0, "max": 4, "idleTimeout": 7},
        "dataCenterIds": ["US-TX-3", "EU-RO-1"],
        "networkVolumes": [],
        "timeout": 600_000,
        "flashboot": "PRIORITY_FLASHBOOT",
    },
    {
        "name": ("other", ["name"]),
        "image": ("org/worker:2", ["template.imageName"]),
        "args": ("python -u handler.py", ["template.dockerArgs"]),
        "disk": (40, ["template.containerDiskInGb"]),
        "env": ({"A": " two ", "Z": "2"}, ["template.env"]),
        "ports": (["22/tcp", "8888/http"], ["template.ports"]),
        "gpu": ({"pools": ["ADA_24", "AMPERE_24"], "count": 2}, ["gpu"]),
        "scaling": ({"type": "QUEUE_DELAY", "queueDelay": 4}, ["scalerValue"]),
        "workers": ({"min": 1, "max": 4, "idleTimeout": 7}, ["workersMin"]),
        "dataCenterIds": (["EU-RO-1", "US-TX-3"], ["dataCenterIds"]),
        "timeout": (0, ["executionTimeoutMs"]),
        "flashboot": ("OFF", ["flashboot"]),
    },
    once=("type",),
    releases=True,
)

V2_CPU_ENDPOINT = Resource(
    "/v2/serverless",
    {
        "name": "drift",
        "type": "QUEUE",
        "image": "org/worker:1",
        "cpu": [{"id": "cpu5c", "vcpuCount": 4}, {"id": "cpu3g", "vcpuCount": 4}],
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 2},
        "workers": {"min": 0, "max": 4},
        "cmd": [],
        "entrypoint": ["/bin/sh"],
    },
    {
        "cpu": ([{"id": "cpu5c", "vcpuCount": 8}], ["cpu"]),
        "scaling": ({"type": "REQUEST_COUNT", "requestCount": 3}, ["scalerValue"]),
        "cmd": (["python", ""], ["template.dockerStartCmd"]),
        "entrypoint": ([], ["template.dockerEntrypoint"]),
    },
    once=("type",),
    releases=True,
)

V2_TEMPLATE = Resource(
    "/v2/templates",
    {
        "name": "drift",
        "image": "org/worker:1",
        "args": "python  -u  handler.py",
        "disk": 30,
        "env": {"Z": "1", "A": "2"},
        "ports": ["8888/http", "22/tcp"],
        "allowedCudaVersions": ["12.8", "12.4"],
        "category": "NVIDIA",
        "mounts": {"persistent": {"size": 10, "path": "/workspace"}},
        "public": False,
        "serverless": True,
        "startSsh": False,
        "startJupyter": False,
    },
    {
        "name": ("other", []),
        "image": ("org/worker:2", []),
        "args": ("", []),
        "env": ({}, []),
        "ports": ([], []),
        "mounts": ({}, []),
        "startSsh": (True, []),
    },
)

VOLUMES = [
    Resource(
        "/v1/networkvolumes",
        {"name": "drift", "size": 10, "dataCenterId": "EU-RO-1"},
        {"name": ("other", []), "size": (20, [])},
        once=("dataCenterId",),
    ),
    Resource(
        "/v2/network-volumes",
        {"name": "drift", "size": 10, "dataCenter": "EU-RO-1", "type": "HIGH_PERFORMANCE"},
        {"name": ("other", []), "size": (20, [])},
        once=("dataCenter", "type"),
    ),
]

RESOURCES = [
    *(V1_ENDPOINT, V1_CPU_ENDPOINT, V1_TEMPLATE),
    *(V2_ENDPOINT, V2_CPU_ENDPOINT, V2_TEMPLATE),
    *VOLUMES,
]


@pytest.fixture
def http(redis_server, client):
    client.flushall()
    settings = load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://localhost:1")
    return create_app(settings).test_client()


def created(http, resource):
    """The configuration with what it needs, and the resource's URL."""
    config = dict(resource.config)
    if resource.url == "/v1/endpoints":
        body = {"name": "t", "imageName": "org/worker:1", "isServerless": True}
        config["templateId"] = http.post("/v1/templates", json=body).get_json()["id"]
        volume = {"name": "v", "size": 10, "dataCenterId": "EU-RO-1"}
        made = http.post("/v1/networkvolumes", json=volume).get_json()["id"]
        if "networkVolumeIds" in config:
            config["networkVolumeIds"] = [made]
        else:
            config["networkVolumeId"] = made
    response = http.post(resource.url, json=config)
    assert response.status_code in {200, 201}, response.text
    return config, f"{resource.url}/{response.get_json()['id']}"


def parts_of(shown, sent):
    """What was read, without parts of objects that the configuration does not have."""
    if isinstance(sent, dict) and isinstance(shown, dict) and not all(map(str.isupper, sent)):
        return {name: parts_of(shown.get(name), value) for name, value in sent.items()}
    if isinstance(sent, list) and isinstance(shown, list) and len(sent) == len(shown):
        return [parts_of(a, b) for a, b in zip(shown, sent, strict=True)]
    return shown


def drift(http, url, config):
    """Fields that are not read back as they are in the configuration."""
    shown = http.get(url).get_json()
    return {
        name: (shown.get(name), value)
        for name, value in config.items()
        if parts_of(shown.get(name), value) != value
    }


def version_of(http, url):
    """An endpoint's version, which each release of it raises."""
    endpoint_id = url.rpartition("/")[2]
    return services_of(http.application).management.endpoints.get(endpoint_id).version


def changeable(resource, config):
    return {name: value for name, value in config.items() if name not in resource.once}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: f"{r.url} {len(r.config)}")
def test_the_same_configuration_again_changes_nothing(http, resource):
    config, url = created(http, resource)
    assert drift(http, url, config) == {}
    before = http.get(url).get_json()
    again = http.patch(url, json=changeable(resource, config), headers=DRY_RUN).get_json()
    assert (again["diff"], again["restarts"]) == ([], False)
    response = http.patch(url, json=changeable(resource, config))
    assert response.status_code == 200, response.text
    assert http.get(url).get_json() == before
    # What was read, sent back, as clients do that change one field of what they have read.
    read = {name: before[name] for name in changeable(resource, config)}
    assert http.patch(url, json=read).status_code == 200
    assert drift(http, url, config) == {}
    if resource.releases:
        assert version_of(http, url) == 1


@pytest.mark.parametrize(
    ("resource", "name"),
    [(resource, name) for resource in RESOURCES for name in resource.changes],
    ids=lambda part: part if isinstance(part, str) else part.url,
)
def test_one_changed_field_is_the_whole_difference(http, resource, name):
    config, url = created(http, resource)
    before = http.get(url).get_json()
    value, fields = resource.changes[name]
    wanted = {**changeable(resource, config), name: value}
    would = http.patch(url, json=wanted, headers=DRY_RUN).get_json()
    assert [d["field"] for d in would["diff"]] == (fields if resource.releases else [])
    assert http.get(url).get_json() == before
    # A provider sends the fields that have changed.
    assert http.patch(url, json={name: value}).status_code == 200
    after = http.get(url).get_json()
    assert drift(http, url, {**config, name: value}) == {}
    differ = {n for n in {*before, *after} if before.get(n) != after.get(n)} - {"version"}
    assert differ <= {name, *FOLLOW.get(name, ())}, (before, after)
    again = http.patch(url, json=wanted, headers=DRY_RUN).get_json()
    assert (again["diff"], again["restarts"]) == ([], False)
    if name == "size":
        return
    # And the way back.
    assert http.patch(url, json={name: config[name]}).status_code == 200
    assert drift(http, url, config) == {}


def test_one_volume_beside_an_empty_list_of_volumes_is_mounted(http):
    config, url = created(http, V1_ENDPOINT)
    both = {"networkVolumeId": config["networkVolumeId"], "networkVolumeIds": []}
    assert http.patch(url, json=both).get_json()["networkVolumeId"] == config["networkVolumeId"]
    assert http.patch(url, json={"networkVolumeId": ""}).get_json()["networkVolumeIds"] == []


def test_what_is_deleted_elsewhere_is_gone_for_the_provider(http):
    for resource in RESOURCES:
        _, url = created(http, resource)
        assert http.delete(url).status_code == 204
        assert http.get(url).status_code == 404
        assert http.delete(url).status_code == 404
        client_of_templates = http.get("/v1/templates").get_json()
        for template in client_of_templates:
            http.delete(f"/v1/templates/{template['id']}")


def test_the_first_provider_for_rest_v2_sends_names_of_v1(http):
    body = {
        "name": "first",
        "type": "QUEUE",
        "image": "org/worker:1",
        "gpu": {"pools": ["ADA_24"]},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "flashboot": True,
        "dockerStartCmd": ["python", "-u"],
        "dockerEntrypoint": ["/bin/sh"],
        "containerRegistryAuthId": "",
        "readme": "x",
    }
    response = http.post("/v2/serverless", json=body)
    made = response.get_json()
    assert response.status_code == 201, response.text
    assert (made["flashboot"], made["cmd"]) == ("FLASHBOOT", ["python", "-u"])
    assert (made["entrypoint"], made["registry"]) == (["/bin/sh"], "")
    assert response.headers["X-OwnPod-Ignored"] == "readme"
    template = {"name": "t", "image": "org/worker:1", "mounts": [{"size": 10}], "readme": "x"}
    response = http.post("/v2/templates", json=template)
    assert (response.status_code, response.get_json()["mounts"]) == (201, {})
    assert response.headers["X-OwnPod-Ignored"] == "mounts, readme"
