#!/bin/sh
# Runs a job with curl: submits it with /run, waits for its end with /status-sync, prints its output.
set -eu
url="${OWNPOD_URL:-http://localhost:8000}/v2/${OWNPOD_ENDPOINT:-local-ep}"
auth="Authorization: Bearer ${OWNPOD_API_KEY:-none}"

job=$(curl -sf -X POST "$url/run" -H "$auth" -d '{"input": {"text": "hello from curl"}}' |
  sed 's/.*"id": *"\([^"]*\)".*/\1/')
echo "job $job"
curl -sf "$url/status-sync/$job?wait=60000" -H "$auth"
echo
