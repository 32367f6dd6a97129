"""The program of a one-off task: does what its input says. It knows nothing of OwnPod."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def say(**values):
    print(json.dumps(values), flush=True)


def count(to, pause_s=0.01):
    """Numbers on both streams, so that a test can see whether one is lost or repeated."""
    for number in range(to):
        print(number, flush=True)
        print("e", number, file=sys.stderr, flush=True)
        time.sleep(pause_s)


def wait_for(path):
    print("begun", flush=True)
    while not Path(path).exists():
        time.sleep(0.02)
    print("end", flush=True)


def rubbish(size):
    sys.stdout.buffer.write(bytes(range(256)) * (size // 256) + b"\n")
    sys.stderr.buffer.write(bytes(reversed(range(256))) * (size // 256) + b"\n")


def bar():
    for percent in range(101):
        print(f"{percent}%", end="\r", flush=True, file=sys.stderr)
        time.sleep(0.005)
    print("done", file=sys.stderr)


def flood(megabytes):
    for _ in range(megabytes):
        sys.stdout.write("x" * 999_999 + "\n")


def structured():
    say(type="text_delta", data={"delta": "Hel"})
    say(event="text_delta", delta="lo")
    print("noise")
    say(type="log", data={"log": "warm", "level": "WARN"})
    say(event="progress", progress={"step": 1})
    say(type="output", data={"output": {"n": 1}})
    say(type="finish", data={"status": "completed"})


def main():
    given = json.loads(Path(os.environ["OWNPOD_INPUT_FILE"]).read_text())
    what = given.pop("do")
    match what:
        case "print":
            print(os.environ["METADATA_TEXT"])
        case "exit":
            print("reason", file=sys.stderr)
            sys.exit(given["code"])
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            print("begun", flush=True)
            time.sleep(600)
        case "wide":
            print("w" * given["size"])
            print("v" * given["size"], file=sys.stderr)
        case _:
            {
                "count": count,
                "wait_for": wait_for,
                "rubbish": rubbish,
                "bar": bar,
                "flood": flood,
                "structured": structured,
            }[what](**given)


main()
