#!/bin/sh
# A session with curl and sh. OWNPOD_URL and OWNPOD_API_KEY are the API and a key.
set -eu
url="${OWNPOD_URL:-http://127.0.0.1:8000}"

ownpod() { curl -sS --fail-with-body -H "X-API-Key: ${OWNPOD_API_KEY:-}" -H 'Content-Type: application/json' "$@"; }

# Make a session, and keep its id.
session=$(ownpod -X POST "$url/api/sessions" -d '{"model_id": "parrot", "task_preset": "chat", "task_difficulty": "low"}' |
    sed 's/.*"session_id": *"\([^"]*\)".*/\1/')
echo "session $session"

task() {
    printf '{"task_type": "session", "session_id": "%s", "task_difficulty": "low", "model_id": "parrot", "task_preset": "chat", "metadata": {"prompt": "%s"}}' "$session" "$1"
}

# The events of a task, as they are sent. -N: without a buffer.
ownpod -N -X POST "$url/api/tasks/submit" -d "$(task hello)"

# Only the ids; then the events from another connection. `Last-Event-ID: 1-2.3` would continue behind that event.
id=$(ownpod -X POST "$url/api/tasks/submit" -H 'Prefer: respond-async' -d "$(task again)" |
    sed 's/.*"task_id": *"\([^"]*\)".*/\1/')
ownpod -N "$url/api/tasks/$id/events"

ownpod "$url/api/tasks/$id"
ownpod "$url/api/sessions/$session"
ownpod -X POST "$url/api/sessions/$session/keepalive"
ownpod -X DELETE "$url/api/sessions/$session"

# A one-off task: a program of its own.
ownpod -N -X POST "$url/api/tasks/submit" \
    -d '{"task_type": "oneoff", "task_difficulty": "low", "model_id": "parrot", "task_preset": "count", "metadata": {"to": 3}}'
