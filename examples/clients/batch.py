"""Runs a job for each file of a folder: python batch.py photos results

The input of a job has its file as base64. The job's output is written to results/<name>.json. A file with a result is
skipped, so an interrupted batch can be started again.
"""

import base64
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

BASE = os.environ.get("OWNPOD_URL", "http://localhost:8000")
URL = f"{BASE}/v2/{os.environ.get('OWNPOD_ENDPOINT', 'local-ep')}"
HEADERS = {"Authorization": f"Bearer {os.environ.get('OWNPOD_API_KEY', 'none')}"}
AT_A_TIME = 16


def run(file: Path, result: Path) -> str:
    """Submits a file as a job and waits for its end; returns a line with the job's state."""
    job_input = {"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()}
    job = requests.post(f"{URL}/run", json={"input": job_input}, headers=HEADERS, timeout=60).json()
    while True:
        status_url = f"{URL}/status-sync/{job['id']}?wait=60000"
        status = requests.get(status_url, headers=HEADERS, timeout=90).json()
        if status["status"] not in {"IN_QUEUE", "IN_PROGRESS"}:
            break
    if status["status"] == "COMPLETED":
        result.write_text(json.dumps(status.get("output")))
    return f"{file.name}: {status['status']} {status.get('error', '')}".strip()


def main() -> None:
    folder, results = Path(sys.argv[1]), Path(sys.argv[2])
    results.mkdir(exist_ok=True)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    todo = [(f, results / f"{f.name}.json") for f in files]
    todo = [(file, result) for file, result in todo if not result.exists()]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for line in pool.map(lambda pair: run(*pair), todo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
