"""A worker that shows its machine: nvidia-smi, files, downloads with progress."""

import shutil
import subprocess
import urllib.request
from pathlib import Path

import runpod

STEP = 1024 * 1024


def handler(job):
    """{"do": "nvidia-smi"}; {"do": "list", "path": "/models"}; {"do": "download", "url": ..., "to": ...}."""
    data = job["input"]
    match data.get("do", "nvidia-smi"):
        case "nvidia-smi":
            return nvidia_smi()
        case "list":
            return files(Path(data.get("path", ".")))
        case "download":
            return download(job, data["url"], Path(data["to"]))
        case other:
            return {"error": f"do: must be nvidia-smi, list or download, not {other!r}"}


def nvidia_smi():
    """What the command says, or plainly that there is no GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {
            "gpu": False,
            "text": "no GPU here: nvidia-smi is not installed (docker run --gpus all?)",
        }
    done = subprocess.run([command], capture_output=True, text=True, timeout=60, check=False)
    return {"gpu": done.returncode == 0, "text": done.stdout + done.stderr}


def files(folder):
    """Names and sizes below a folder."""
    if not folder.is_dir():
        return {"error": f"{folder} is no folder here"}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {"files": [{"path": str(path), "bytes": path.stat().st_size} for path in found]}


def download(job, url, to):
    """Into a file; its progress is the job's output meanwhile."""
    got = 0
    with urllib.request.urlopen(url, timeout=60) as source, to.open("wb") as target:
        size = int(source.headers.get("Content-Length") or 0)
        while part := source.read(STEP):
            target.write(part)
            got += len(part)
            progress = {"bytes": got, "of": size or None}
            runpod.serverless.progress_update(job, progress)
    return {"path": str(to), "bytes": got}


runpod.serverless.start({"handler": handler})
