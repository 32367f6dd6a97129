"""A worker of a load-balanced endpoint: FastAPI on uvicorn, with a page, echoes and a WebSocket.

Environment: ``PORT`` as RunPod sets it.
"""

import os

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, JSONResponse

app = FastAPI()
sockets = []
"""For each WebSocket that was opened: the messages that it has sent."""

PAGE = """<!doctype html><title>worker</title><script>
const echoes = [], closed = []
const url = new URL("ws", location.href)
url.protocol = url.protocol.replace("http", "ws")
function start() {
  const socket = new WebSocket(url)
  let sent = 0
  const send = () => { if (socket.readyState === 1) socket.send(`message ${sent++}`) }
  socket.onopen = () => { send(); setInterval(send, 100) }
  socket.onmessage = (event) => echoes.push(event.data)
  socket.onclose = (event) => closed.push(event.code)
  return socket
}
</script>"""


@app.get("/ping")
def ping():
    return {"status": "healthy"}


@app.get("/")
def page():
    return HTMLResponse(PAGE)


@app.get("/sockets")
def seen():
    return sockets


@app.api_route("/echo/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def echo(request: Request, rest: str):
    body = await request.body()
    return {
        "method": request.method,
        "path": rest,
        "query": request.url.query,
        "json": await request.json() if body else None,
        "headers": dict(request.headers),
    }


@app.post("/add")
async def add(request: Request):
    given = await request.json()
    return given["a"] + given["b"]


@app.api_route("/status/{code}", methods=["GET", "POST"])
def status(code: int):
    return JSONResponse({"detail": f"status {code}"}, code)


@app.websocket("/ws")
async def websocket(socket: WebSocket):
    await socket.accept()
    texts = []
    sockets.append(texts)
    try:
        while True:
            text = await socket.receive_text()
            texts.append(text)
            await socket.send_text(f"echo of {text}")
    except WebSocketDisconnect:
        texts.append("closed")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
