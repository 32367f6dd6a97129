"""A worker with jobs for its host: the output of nvidia-smi, lists of files, downloads with progress."""

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
    """The output of the command, or a note that it is not installed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {
            "gpu": False,
            "text": "no GPU here: nvidia-smi is not installed (docker run --gpus all?)",
        }
    done = subprocess.run([command], capture_output=True, text=True, timeout=60, check=False)
    return {"gpu": done.returncode == 0, "text": done.stdout + done.stderr}


def files(folder):
    """The paths and sizes of the files in a folder and its sub-folders."""
    if not folder.is_dir():
        return {"error": f"{folder} is not a folder on this worker"}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {"files": [{"path": str(path), "bytes": path.stat().st_size} for path in found]}


def download(job, url, to):
    """Downloads a URL to a file. During the download the job's output is its progress."""
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
