# ruff: noqa: UP031 - braces are GraphQL's
"""RunPod's GraphQL API on a real Redis, with the queries as RunPod's own clients write them."""

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.managed import AgentInfo, Device


@pytest.fixture
def app(redis_server, client):
    client.flushall()
    return create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://localhost:1")
    )


@pytest.fixture
def ask(app):
    http = app.test_client()

    def asked(query, **variables):
        body = {"query": query} | ({"variables": variables} if variables else {})
        response = http.post("/graphql", json=body)
        assert response.status_code == 200, response.text
        return response.get_json()

    return asked


def made(ask, name="first", **values):
    text = "".join(f", {key}: {value}" for key, value in values.items())
    answer = ask(
        """mutation { saveEndpoint(input: { gpuIds: "ADA_24,AMPERE_24,-NVIDIA L4", name: "%s",
        templateId: "%s"%s, networkVolumeId: "", locations: "", workersMin: 0, workersMax: 3, }) {
        id name gpuIds templateId version idleTimeout flashBootType scalerType scalerValue } }"""
        % (name, template(ask, f"t-{name}")["id"], text)
    )
    assert "errors" not in answer, answer
    return answer["data"]["saveEndpoint"]


def template(ask, name="t"):
    # Inline literals as the Python SDK writes them.
    answer = ask(
        """mutation { saveTemplate(input: { containerDiskInGb: 10, dockerArgs: "python -u handler.py",
        env: [{ key: "MODEL", value: "small" }], imageName: "org/worker:1", name: "%s", ports: "8888/http,22/tcp",
        readme: "", volumeInGb: 0, isServerless: true, startSsh: true, isPublic: false, })
        { id name imageName dockerArgs env { key value } ports isServerless somethingNew } }"""
        % name
    )
    assert "errors" not in answer, answer
    return answer["data"]["saveTemplate"]


def test_a_template_reads_back_and_unknown_fields_are_no_error(ask):
    found = template(ask)
    assert found["dockerArgs"] == "python -u handler.py"
    assert found["env"] == [{"key": "MODEL", "value": "small"}]
    assert found["ports"] == "8888/http,22/tcp"
    changed = ask(
        "mutation saveTemplate($input: SaveTemplateInput!) { saveTemplate(input: $input) { id imageName } }",
        input={
            "id": found["id"],
            "name": "t",
            "imageName": "org/worker:2",
            "containerDiskInGb": 10,
            "volumeInGb": 0,
        },
    )
    assert changed["data"]["saveTemplate"] == {"id": found["id"], "imageName": "org/worker:2"}


def test_an_endpoint_is_made_upserted_bound_anew_and_deleted(ask, app):
    endpoint = made(ask, flashBootType="FLASHBOOT", scalerType='"REQUEST_COUNT"', scalerValue=2)
    assert endpoint["gpuIds"] == "ADA_24,AMPERE_24,-NVIDIA L4"
    assert (endpoint["idleTimeout"], endpoint["flashBootType"]) == (10, "FLASHBOOT")
    spec = services_of(app).registry.endpoint(endpoint["id"]).managed
    assert spec.template.command == ("python", "-u", "handler.py")
    changed = ask(
        "mutation($input: EndpointInput!) { saveEndpoint(input: $input) { id workersMax idleTimeout version } }",
        input={"id": endpoint["id"], "name": "first", "workersMax": 0},
    )["data"]["saveEndpoint"]
    assert changed == {"id": endpoint["id"], "workersMax": 0, "idleTimeout": 10, "version": 1}
    other = template(ask, "other")["id"]
    bound = ask(
        "mutation($input: UpdateEndpointTemplateInput) { updateEndpointTemplate(input: $input) { id templateId } }",
        input={"endpointId": endpoint["id"], "templateId": other},
    )
    assert bound["data"]["updateEndpointTemplate"]["templateId"] == other
    in_use = ask('mutation { deleteTemplate(templateName: "other") }')
    assert "in use by 'first'" in in_use["errors"][0]["message"]
    assert in_use["data"] == {"deleteTemplate": None}
    gone = ask("mutation($id: String!) { deleteEndpoint(id: $id) }", id=endpoint["id"])
    assert gone == {"data": {"deleteEndpoint": None}}
    assert ask('mutation { deleteTemplate(templateName: "other") }') == {
        "data": {"deleteTemplate": None}
    }


def test_myself_lists_everything_as_the_python_sdk_asks(ask):
    endpoint = made(ask)
    data = ask(
        """query { myself { id endpoints { aiKey gpuIds id idleTimeout name networkVolumeId locations scalerType
        scalerValue templateId type userId version workersMax workersMin workersStandby gpuCount
        env { key value } createdAt networkVolume { id dataCenterId } pods { desiredStatus }
        template { imageName } } podTemplates { name } } }"""
    )["data"]["myself"]
    assert data["id"] == "user_ownpod"
    (mine, of_file) = data["endpoints"]
    assert (mine["id"], mine["env"]) == (endpoint["id"], [{"key": "MODEL", "value": "small"}])
    assert (mine["type"], mine["template"]["imageName"]) == ("QB", "org/worker:1")
    assert of_file["id"] == "local-ep"
    one = ask(
        'query { myself { endpoint(id: "%s") { name } none: endpoint(id: "x") { name } } }'
        % endpoint["id"]
    )
    assert one["data"]["myself"] == {"endpoint": {"name": "first"}, "none": None}


def test_an_inline_template_belongs_to_its_endpoint(ask):
    values = {
        "name": "flash",
        "gpuIds": "ANY",
        "template": {
            "name": "flash__tpl",
            "imageName": "org/flash:1",
            "containerDiskInGb": 10,
            "volumeInGb": 0,
            "env": [],
            # runpod-flash sends an object here, others a text.
            "config": {},
        },
    }
    query = "mutation($input: EndpointInput!) { saveEndpoint(input: $input) { id templateId template { name } } }"
    found = ask(query, input=values)["data"]["saveEndpoint"]
    assert found["template"]["name"] == "flash__tpl"
    ask("mutation($id: String!) { deleteEndpoint(id: $id) }", id=found["id"])
    assert ask("query { myself { podTemplates { id } } }")["data"]["myself"]["podTemplates"] == []
    both = ask(query, input={**values, "templateId": "x"})
    assert "only one of template and templateId" in both["errors"][0]["message"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ('mutation { saveEndpoint(input: {name: "abc"}) { id } }', "gpuId(s) is required"),
        ('mutation { saveEndpoint(input: {name: "ab", gpuIds: "ADA_24"}) { id } }', "at least 3"),
        (
            'mutation { saveEndpoint(input: {name: "abc", gpuIds: "ADA_24", templateId: "x"}) { id } }',
            "template 'x' not found",
        ),
        ('mutation { podFindAndDeployOnDemand(input: {name: "x"}) { id } }', "pods are not served"),
        ('mutation { podStop(input: {podId: "x"}) { id } }', "pod 'x' not found"),
        (
            'mutation { createFlashApp(input: {name: "x"}) { id } }',
            'field "createFlashApp" on type',
        ),
        ("query { flashApps { id } }", 'Cannot query field "flashApps" on type "Query".'),
        ("subscription { jobs }", 'on type "Subscription"'),
        (
            'mutation { saveEndpoint(input: {name: "abc", gpuIds: "ADA_24", type: "X", template: {imageName: "i"}}) { id } }',
            "type must be one of QB, LB",
        ),
        ("query { myself { id ", "Syntax Error"),
        ("query { " + "myself { endpoints { " * 30 + "id" + " } }" * 30 + " }", "levels"),
        ("#" * 200_000, "characters"),
        (
            "mutation($i: SaveTemplateInput!) { saveTemplate(input: $i) { id } }",
            'Field "containerDiskInGb" of required type "Int!" was not provided.',
        ),
    ],
)
def test_errors_are_in_an_answer_of_status_200(ask, query, words):
    answer = ask(query, i={"name": "t"})
    assert words in answer["errors"][0]["message"], answer


def test_a_field_that_the_input_does_not_have_has_runpods_words(ask):
    answer = ask(
        "mutation($input: SaveTemplateInput!) { saveTemplate(input: $input) { id } }",
        input={"name": "t", "containerDiskInGb": 1, "volumeInGb": 0, "foo": 1},
    )
    (error,) = answer["errors"]
    assert error["message"] == 'Field "foo" is not defined by type "SaveTemplateInput".'


def test_an_error_has_no_values_of_the_request(ask):
    query = "mutation($input: SaveTemplateInput!) { saveTemplate(input: $input) { id } }"
    values = {"name": "t", "containerDiskInGb": "hidden", "volumeInGb": 0, "dockerArgs": ["hidden"]}
    assert "hidden" not in str(ask(query, input=values))


def test_gpus_and_data_centers_are_those_of_the_hosts(ask, app):
    device = Device("GPU-1", 0, "NVIDIA L4", 23_034, ("AMPERE_24",))
    own = Device("GPU-2", 1, "My Card", 8_192)
    services_of(app).agents.heartbeat(
        AgentInfo("h", "docker", (device, own), {"datacenter": "EU-RO-1"}), "token"
    )
    data = ask(
        """query { gpuTypes(input: {ids: ["NVIDIA L4", "My Card", "NVIDIA H200"]}) { id memoryInGb maxGpuCount
        lowestPrice(input: {gpuCount: 1}) { stockStatus } } dataCenters { id gpuAvailability { gpuTypeId } }
        serverlessGpuPools { id gpuTypeIds } }"""
    )["data"]
    found = {gpu["id"]: gpu for gpu in data["gpuTypes"]}
    assert found["NVIDIA L4"]["lowestPrice"]["stockStatus"] == "High"
    assert (found["NVIDIA H200"]["maxGpuCount"], found["My Card"]["memoryInGb"]) == (0, 8)
    assert data["dataCenters"][0]["id"] == "EU-RO-1"
    assert {"id": "ADA_24", "gpuTypeIds": ["NVIDIA GeForce RTX 4090"]} in data["serverlessGpuPools"]


def test_network_volumes(ask):
    volume = ask(
        'mutation { createNetworkVolume(input: {name: "v", size: 10, dataCenterId: "EU-RO-1"}) { id size dataCenter { id } } }'
    )["data"]["createNetworkVolume"]
    assert (volume["size"], volume["dataCenter"]) == (10, {"id": "EU-RO-1"})
    bigger = ask(
        'mutation { updateNetworkVolume(input: {id: "%s", size: 20}) { name size } }' % volume["id"]
    )
    assert bigger["data"]["updateNetworkVolume"] == {"name": "v", "size": 20}
    gone = ask('mutation { deleteNetworkVolume(input: {id: "%s"}) }' % volume["id"])
    assert gone == {"data": {"deleteNetworkVolume": None}}


def test_the_key_may_be_in_the_url(redis_server, client):
    http = create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_API_KEYS="user", OWNPOD_ADMIN_KEYS="admin")
    ).test_client()
    query = {"query": "query { myself { id } }"}
    assert http.post("/graphql", json=query).status_code == 401
    assert http.post("/graphql?api_key=wrong", json=query).status_code == 401
    assert http.post("/graphql?api_key=user", json=query).status_code == 403
    assert http.post("/graphql?api_key=admin", json=query).status_code == 200
    admin = {"Authorization": "Bearer admin"}
    assert http.post("/graphql", json=query, headers=admin).status_code == 200
    # The query's key opens nothing else.
    assert http.get("/v1/endpoints?api_key=admin").status_code == 401


@pytest.mark.parametrize(
    "body", [[], {}, {"query": 1}, {"query": "{ myself { id } }", "variables": [1]}]
)
def test_a_body_that_is_no_request_is_an_error_in_the_answer(app, body):
    answer = app.test_client().post("/graphql", json=body)
    assert (answer.status_code, answer.get_json()["data"]) == (200, None)
    assert answer.get_json()["errors"]


def test_workers_are_read_for_a_request_that_selects_them_only(ask, app, monkeypatch):
    made(ask)
    read = []
    store = services_of(app).managed
    found = store.list
    monkeypatch.setattr(
        store, "list", lambda endpoint=None: read.append(endpoint) or found(endpoint)
    )
    ask("query { myself { endpoints { id name } } }")
    assert read == []
    data = ask("query { myself { endpoints { id pods { id } } } }")["data"]["myself"]
    assert [endpoint["pods"] for endpoint in data["endpoints"]] == [[], []]
    assert len(read) == 2


def test_variables_may_be_scalars_as_pulumis_provider_sends_them(ask):
    template = ask(
        """mutation SaveTemplate($name: String!, $image: String!, $disk: Int!, $volume: Int!, $args: String!) {
          saveTemplate(input: {name: $name, imageName: $image, containerDiskInGb: $disk, volumeInGb: $volume,
            dockerArgs: $args, env: [], isServerless: true}) { id dockerArgs } }""",
        name="scalars",
        image="org/worker:1",
        disk=5,
        volume=0,
        args="python x.py",
    )["data"]["saveTemplate"]
    assert template["dockerArgs"] == "python x.py"
    made = ask(
        """mutation SaveEndpoint($name: String!, $templateId: String!, $gpuIds: String!, $idle: Int!, $max: Int!,
          $scaler: String!, $value: Int!) { saveEndpoint(input: {name: $name, templateId: $templateId, gpuIds: $gpuIds,
            idleTimeout: $idle, workersMin: 0, workersMax: $max, scalerType: $scaler, scalerValue: $value})
            { id gpuIds idleTimeout workersMax scalerType scalerValue } }""",
        name="scalars",
        templateId=template["id"],
        gpuIds="ADA_24",
        idle=9,
        max=2,
        scaler="REQUEST_COUNT",
        value=3,
    )["data"]["saveEndpoint"]
    assert (made["gpuIds"], made["idleTimeout"], made["workersMax"]) == ("ADA_24", 9, 2)
    assert (made["scalerType"], made["scalerValue"]) == ("REQUEST_COUNT", 3)


@pytest.mark.parametrize("instance", ["cpu3g-2-8", "cpu3c-4-8", "cpu5c-8-16"])
def test_a_cpu_instance_reads_back_as_it_was_sent(ask, instance):
    query = "mutation($input: EndpointInput!) { saveEndpoint(input: $input) { instanceIds computeType } }"
    template = {"name": "t", "imageName": "org/worker:1", "containerDiskInGb": 5, "volumeInGb": 0}
    values = {"name": "cpus", "instanceIds": [instance], "template": template}
    made = ask(query, input=values)["data"]["saveEndpoint"]
    assert made == {"instanceIds": [instance], "computeType": "CPU"}
