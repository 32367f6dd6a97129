"use strict";
// Talks to a preset with sessions, or by openai.js to a worker that speaks OpenAI's API. The id of a session stays in this
// tab, so that its model stays loaded between messages and reloads.
const RECONNECT_MS = 1000;
const chats = {};

// The events in the bytes of a stream, by the HTML standard: the last one is dropped if it is cut off.
async function* eventsOf(stream, parse = JSON.parse) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", id = "", event = "", data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((l) => l.replace(/\r$/, ""))) {
      const [, name, text] = /^([^:]*):? ?([^]*)$/.exec(line);
      if (!line) {
        if (data.length) yield { id, event: event || "message", data: parse(data.join("\n")) };
        event = "";
        data = [];
      } else if (name === "id") id = text;
      else if (name === "event") event = text;
      else if (name === "data") data.push(text);
    }
  }
}

function chatOf(name) {
  if (!chats[name]) {
    chats[name] = {
      name, session: sessionStorage.getItem(`ownpod-session-${name}`), log: document.createElement("div"), task: null, state: "",
      models: keptModels(name), messages: [],
    };
  }
  return chats[name];
}

function keepSession(chat, session) {
  chat.session = session;
  if (session) sessionStorage.setItem(`ownpod-session-${chat.name}`, session);
  else sessionStorage.removeItem(`ownpod-session-${chat.name}`);
}

function addLine(chat, who, text) {
  const line = element("p", text, { className: who });
  chat.log.append(line);
  at("chat-log").scrollTop = at("chat-log").scrollHeight;
  return line;
}

function showState(chat, text) {
  chat.state = text;
  if (chat.name === endpoint) at("chat-state").textContent = text;
}

async function refused(response) {
  const body = await response.json().catch(() => ({}));
  return Object.assign(new Error(body.detail || body.error || response.statusText), { code: body.code, status: response.status });
}

const headersOf = (more) => (key ? { Authorization: `Bearer ${key}`, ...more } : more);

// A task's events up to task_finish, none twice, also over broken connections.
async function* taskEvents(chat, body) {
  let response = await fetch("/api/tasks/submit", {
    method: "POST", body: JSON.stringify(body),
    headers: headersOf({ "Content-Type": "application/json", Accept: "text/event-stream", "Idempotency-Key": crypto.randomUUID() }),
  });
  if (!response.ok) throw await refused(response);
  chat.task = response.headers.get("X-Task-Id");
  let last = "";
  for (;;) {
    try {
      for await (const sent of eventsOf(response.body)) {
        last = sent.id;
        yield sent;
        if (sent.event === "task_finish") return;
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    // Without task_finish the task has not ended: only the connection has.
    do {
      showState(chat, "the connection broke off; the task goes on");
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
      response = await fetch(`/api/tasks/${chat.task}/events`, { headers: headersOf(last ? { "Last-Event-ID": last } : {}) })
        .catch(() => null);
    } while (!response || response.status >= 500);
    if (response.status === 204) return;
    if (!response.ok) throw await refused(response);
  }
}

function wordsOf({ event, data }) {
  const { progress } = data;
  return [
    data.status, event === "connection" && data.session_id && `session ${data.session_id}`,
    data.position && `position ${data.position}`, data.gpu_name && `on ${data.gpu_name}`, data.reason,
    progress && progress.total ? `${Math.floor(100 * progress.done / progress.total)} %` : progress && JSON.stringify(progress),
    data.load_seconds !== undefined && `loaded in ${data.load_seconds} s`, data.log, data.error,
  ].filter(Boolean).join(" · ");
}

async function answer(chat, preset, metadata) {
  const line = addLine(chat, "model", "");
  let parts = 0;
  const body = {
    task_type: "session", session_id: chat.session, create_session: !chat.session, metadata, ...preset,
  };
  for await (const sent of taskEvents(chat, body)) {
    const { event, data } = sent;
    if (event === "text_delta") line.append(data.delta);
    else if (event === "output_delta") line.append(`${JSON.stringify(data.output)}\n`);
    else if (event === "text" && !parts) line.append(data.content);
    else if (event === "output" && !parts) line.append(JSON.stringify(data.output ?? data, null, 2));
    if (event.endsWith("_delta")) parts += 1;
    // Another attempt begins; what there is of the earlier one is void.
    if (data.status === "restarted") { line.textContent = ""; parts = 0; }
    if (event === "connection" && data.session_id) keepSession(chat, data.session_id);
    if (event === "task_finish") {
      showState(chat, `${data.status} after ${seconds(data.execution_ms)}`);
      if (data.status !== "completed") addLine(chat, "note", [data.status, data.error].filter(Boolean).join(": "));
    } else if (["connection", "worker", "logs"].includes(event)) showState(chat, wordsOf(sent));
    at("chat-log").scrollTop = at("chat-log").scrollHeight;
  }
}

async function say(chat, preset, text) {
  let metadata = { prompt: text };
  if (text.startsWith("{")) {
    try {
      metadata = JSON.parse(text);
    } catch (error) {
      addLine(chat, "note", `the message is not valid JSON: ${error.message}`);
      return;
    }
  }
  addLine(chat, "person", text);
  try {
    try {
      await answer(chat, preset, metadata);
    } catch (error) {
      if (!chat.session || error.status !== 404) throw error;
      chat.log.lastChild.remove();
      addLine(chat, "note", `${error.message}. A new session begins.`);
      keepSession(chat, null);
      await answer(chat, preset, metadata);
    }
  } catch (error) {
    addLine(chat, "note", error.message);
    showState(chat, "");
  }
}

// Called at each refresh of the page, with the preset of the endpoint, if it is one with sessions.
async function showChat(preset = null) {
  const chat = chatOf(endpoint);
  showOpenai(chat, !preset);
  at("chat").hidden = !preset && !chat.models;
  if (at("chat").hidden) return;
  if (at("chat-log").firstChild !== chat.log) at("chat-log").replaceChildren(chat.log);
  at("chat").dataset.preset = JSON.stringify(preset);
  showButtons(chat);
  if (!chat.busy && chat.session) await showSession(chat, chat.session);
  showState(chat, chat.state);
}

function showButtons(chat) {
  if (chat.name !== endpoint) return;
  at("chat-send").disabled = Boolean(chat.busy);
  at("chat-stop").hidden = !chat.busy;
  at("chat-end").hidden = !chat.session && !chat.messages.length;
  at("chat-end").textContent = chat.session ? "End session" : "New chat";
}

async function showSession(chat, id) {
  const found = await call("GET", `sessions/${id}`, undefined, "/api/").catch(() => ({ status: "killed" }));
  if (chat.busy || chat.session !== id) return;
  if (found.status === "killed") {
    addLine(chat, "note", `The session has ended${found.reason ? `: ${found.reason.replaceAll("_", " ")}` : ""}. The next message begins a new one.`);
    keepSession(chat, null);
    chat.state = "";
    return;
  }
  const until = found.idle_expires_at || found.expires_at;
  chat.state = [
    `session ${id}`, found.status, found.gpu && `on ${found.gpu.name}`, `${found.tasks_done} done`,
    until && `ends at ${new Date(until).toLocaleTimeString()}`,
  ].filter(Boolean).join(" · ");
}

function startChat() {
  at("chat-form").onsubmit = async (event) => {
    event.preventDefault();
    const chat = chatOf(endpoint), preset = JSON.parse(at("chat").dataset.preset), text = at("chat-text").value.trim();
    if (!text || chat.busy) return;
    at("chat-text").value = "";
    chat.busy = true;
    showButtons(chat);
    await (preset ? say(chat, preset, text) : sayOpenai(chat, text));
    chat.busy = false;
    chat.task = null;
    showButtons(chat);
    refresh();
  };
  at("chat-text").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("chat-form").requestSubmit();
  };
  at("chat-stop").onclick = () => {
    const { task, abort } = chatOf(endpoint);
    if (abort) abort.abort();
    if (task) call("POST", `tasks/${task}/cancel`, undefined, "/api/").catch((error) => { at("message").textContent = error.message; });
  };
  at("chat-end").onclick = async () => {
    const chat = chatOf(endpoint), { session } = chat;
    if (session) {
      await call("DELETE", `sessions/${session}`, undefined, "/api/").catch((error) => { at("message").textContent = error.message; });
    } else if (!chat.busy) forgetMessages(chat);
    refresh();
  };
}
