"""Each piece of workarounds.py: a test that fails without it."""

import time

import requests
from helpers import Process, RedisServer, answers, wait_until

from ownpod.processes import free_port


def test_a_redis_restart_does_not_end_a_node_with_a_running_job_and_a_free_slot(
    start_worker, tmp_path
):
    import sys

    url, _ = start_worker("async")
    file = tmp_path / "workers.yaml"
    file.write_text(f"endpoints: {{ep: {{workers: [{{url: '{url}', capacity: 2}}]}}}}")
    redis = RedisServer(tmp_path)
    port = free_port()
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS_FILE": file}
    command = (sys.executable, "-m", "ownpod")
    dispatch = Process(*command, "dispatch", log=tmp_path / "dispatch.log", **environ)
    api = Process(*command, "api", "--port", port, log=tmp_path / "api.log", **environ)
    try:
        endpoint = f"http://127.0.0.1:{port}/v2/ep"
        wait_until(lambda: answers(f"{endpoint}/health"), 30)
        note = tmp_path / "note"
        body = {"input": {"seconds": 6, "note": str(note)}}
        job = requests.post(f"{endpoint}/run", json=body, timeout=9).json()["id"]
        wait_until(note.exists)
        redis.stop()
        assert requests.get(f"{endpoint}/status/{job}", timeout=9).status_code == 503
        time.sleep(2)
        redis.start()

        def done():
            return (
                requests.get(f"{endpoint}/status/{job}", timeout=9).json()["status"] == "COMPLETED"
            )

        wait_until(done, 30)
        assert len(note.read_text().split()) == 1
        body = {"input": {"text": "next"}}
        answer = requests.post(f"{endpoint}/runsync?wait=40000", json=body, timeout=50).json()
        assert answer["output"]["echo"] == "next"
        assert "ended" not in dispatch.output, dispatch.output
        assert "Unrecoverable" not in dispatch.output
    finally:
        print(dispatch.output)
        api.stop()
        dispatch.stop()
        redis.stop()
