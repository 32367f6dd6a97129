"""RunPod's MCP server, unmodified, over stdio: its tools make, change and delete objects of the running OwnPod.

Its version 4 speaks REST v2 only; version 3 is the last one that speaks REST v1, too.
"""

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import environment
from managing import ADMIN, ENV, POOL, START, managing, root_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with both versions of the server."""
    if not shutil.which("npm"):
        pytest.skip("no Node: install node and npm to test the MCP server")
    directory = tmp_path_factory.mktemp("mcp")
    shutil.copy(Path(__file__).parent / "mcp" / "package.json", directory)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=directory, check=True, timeout=180)
    return directory / "node_modules"


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    with managing(tmp_path_factory.mktemp("managing")) as found:
        yield found


class Server:
    """The MCP server's process; each message is one line of JSON-RPC."""

    def __init__(self, process):
        self._process = process
        self._number = 0

    def request(self, method, **params):
        self._number += 1
        self._send({"id": self._number, "method": method, "params": params})
        while True:
            line = self._process.stdout.readline()
            assert line, "the MCP server has ended"
            answer = json.loads(line)
            if answer.get("id") == self._number:
                return answer["result"]

    def notify(self, method):
        self._send({"method": method})

    def _send(self, message):
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self._process.stdin.flush()

    def call(self, tool, **arguments):
        """The JSON of a tool's answer; None if the answer is no JSON. Fails if the tool reports an error."""
        result = self.request("tools/call", name=tool, arguments=arguments)
        text = "".join(part.get("text", "") for part in result["content"])
        assert not result.get("isError"), text
        try:
            found = json.loads(text)
        except ValueError:
            return None
        assert not (isinstance(found, dict) and found.get("error")), text
        return found


@contextmanager
def mcp_server(folder, ownpod, **environ):
    root = root_of(ownpod)
    with subprocess.Popen(
        ["node", folder / "dist" / "stdio.mjs"],
        env=environment(
            RUNPOD_API_KEY=ADMIN,
            RUNPOD_API_BASE_URL=root,
            RUNPOD_REST_API_URL=f"{root}/v1",
            RUNPOD_REST_V2_API_URL=f"{root}/v2",
            RUNPOD_SERVERLESS_API_URL=f"{root}/v2",
            RUNPOD_PUBLIC_GRAPHQL_URL=f"{root}/graphql",
            RUNPOD_AUTHED_GRAPHQL_URL=f"{root}/graphql",
            **environ,
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        server = Server(process)
        try:
            client = {"name": "test", "version": "1"}
            hello = server.request(
                "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client
            )
            assert hello["serverInfo"]["name"] == "Runpod API Server"
            server.notify("notifications/initialized")
            yield server
        finally:
            process.kill()


def rows_of(found):
    """The list in an answer, whose other keys are about pages."""
    if isinstance(found, list):
        return found
    return next(value for value in found.values() if isinstance(value, list))


def ids_in(found):
    return {row["id"] for row in rows_of(found)}


def test_the_tools_of_version_4_manage_through_rest_v2(packages, ownpod):
    with mcp_server(packages / "mcp-server", ownpod) as server:
        tools = {tool["name"] for tool in server.request("tools/list")["tools"]}
        assert {"create-endpoint", "list-endpoint-releases", "list-gpu-types"} <= tools
        command = {"image": "org/worker:1", "args": " ".join(START), "env": ENV}
        template = server.call(
            "create-template", body={"name": "mcp-4", "serverless": True, **command}
        )
        assert template["env"] == ENV
        changed = server.call("update-template", id=template["id"], body={"image": "org/worker:2"})
        assert changed["image"] == "org/worker:2"
        assert template["id"] in ids_in(server.call("list-templates"))
        body = {
            "name": "mcp-4",
            "type": "QUEUE",
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 1},
            "gpu": {"pools": [POOL]},
            "workers": {"max": 1, "idleTimeout": 60},
            "templateId": template["id"],
        }
        made = server.call("create-endpoint", body=body)
        assert (made["image"], made["gpu"]["pools"]) == ("org/worker:2", [POOL])
        assert made["id"] in ids_in(server.call("list-endpoints"))
        # At once, although another process of the API may answer than the one that made it.
        assert server.call("endpoint-health", endpointId=made["id"])["jobs"]["inQueue"] == 0
        server.call("update-endpoint", id=made["id"], body={"env": {**ENV, "MORE": "1"}})
        assert server.call("get-endpoint", id=made["id"])["env"]["MORE"] == "1"
        releases = server.call("list-endpoint-releases", id=made["id"])
        assert len(rows_of(releases)) == 2
        done = server.call("runsync-endpoint", endpointId=made["id"], input={"text": "mcp"})
        while done["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
            done = server.call("get-job-status", endpointId=made["id"], jobId=done["id"])
        assert done["output"]["echo"] == "mcp"
        assert ids_in(server.call("list-endpoint-workers", id=made["id"])) == {done["workerId"]}
        server.call("delete-endpoint", id=made["id"])
        assert made["id"] not in ids_in(server.call("list-endpoints"))
        server.call("delete-template", id=template["id"])
        assert template["id"] not in ids_in(server.call("list-templates"))


def test_the_tools_of_version_4_make_a_load_balanced_endpoint(packages, ownpod):
    with mcp_server(packages / "mcp-server", ownpod) as server:
        body = {
            "name": "mcp-lb",
            "type": "LOAD_BALANCER",
            "scaling": {"type": "REQUEST_COUNT", "requestCount": 2},
            "gpu": {"pools": [POOL]},
            "workers": {"max": 1, "idleTimeout": 60},
            "image": "org/web:1",
            "env": {**ENV, "PORT": "8000", "PORT_HEALTH": "8000"},
            "ports": ["8000/http"],
        }
        made = server.call("create-endpoint", body=body)
        read = server.call("get-endpoint", id=made["id"])
        assert (read["type"], read["scaling"]) == (body["type"], body["scaling"])
        assert read["requestUrls"]["health"] == read["requestUrls"]["base"] + "/ping"
        server.call("update-endpoint", id=made["id"], body={"workers": {"max": 0}})
        server.call("delete-endpoint", id=made["id"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_tools_of_version_3_manage_through_either_rest(packages, ownpod, version):
    folder = packages / "mcp-server-of-v1"
    with mcp_server(folder, ownpod, RUNPOD_REST_VERSION=version) as server:
        tools = {tool["name"] for tool in server.request("tools/list")["tools"]}
        assert {"create-endpoint", "update-endpoint", "create-template"} <= tools
        name = f"mcp-3-{version}"
        template = server.call(
            "create-template",
            name=name,
            imageName="org/worker:1",
            isServerless=True,
            dockerStartCmd=START,
            env=ENV,
        )
        assert server.call("get-template", templateId=template["id"])["env"] == ENV
        server.call("update-template", templateId=template["id"], imageName="org/worker:2")
        hardware = {"gpuPoolIds": [POOL], "imageName": "org/worker:2"}
        if version == "v1":
            hardware = {"computeType": "CPU"}
        made = server.call(
            "create-endpoint",
            name=name,
            templateId=template["id"],
            workersMax=1,
            **hardware,
        )
        assert made["id"] in ids_in(server.call("list-endpoints"))
        server.call("update-endpoint", endpointId=made["id"], workersMax=2, name=f"{name}-b")
        read = server.call("get-endpoint", endpointId=made["id"])
        most = read["workersMax"] if version == "v1" else read["workers"]["max"]
        assert (read["name"], most) == (f"{name}-b", 2)
        assert server.call("endpoint-health", endpointId=made["id"])["jobs"]["inQueue"] == 0
        server.call("delete-endpoint", endpointId=made["id"])
        assert made["id"] not in ids_in(server.call("list-endpoints"))
        server.call("delete-template", templateId=template["id"])
        assert template["id"] not in ids_in(server.call("list-templates"))
