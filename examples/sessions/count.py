"""A one-off task for the examples: a program without any SDK. Its lines are events of its task, its exit code is its end."""

import json
import os
import sys
import time

given = json.loads(os.environ.get("OWNPOD_INPUT", "{}"))
to = int(given.get("to", 3))
print(f"INFO: counts to {to}", file=sys.stderr)
for number in range(1, to + 1):
    print(json.dumps({"type": "text_delta", "data": {"delta": f"{number} "}}))
    time.sleep(0.2)
print(json.dumps({"type": "output", "data": {"output": {"counted": to}}}))
