"use strict";
// Talks to an endpoint whose worker speaks OpenAI's API. The page asks for models only when a person clicks, because the
// request is a job, for which a worker may start.
const modelsKey = (name) => `ownpod-models-${name}`;
const keptModels = (name) => JSON.parse(sessionStorage.getItem(modelsKey(name)));

async function askOpenai(chat, path, body, signal) {
  const headers = headersOf(body ? { "Content-Type": "application/json" } : {});
  // The worker of the earlier messages has them in its cache.
  if (chat.worker) headers["X-Runpod-Worker-Id"] = chat.worker;
  const response = await fetch(`/v2/${chat.name}/openai/v1/${path}`, {
    method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
  });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    throw new Error((error && error.message) || error || `HTTP ${response.status}`);
  }
  chat.worker = response.headers.get("X-Runpod-Worker-Id") || chat.worker;
  return response;
}

async function askModels(chat) {
  const found = await (await askOpenai(chat, "models")).json().catch(() => null);
  const names = found && Array.isArray(found.data) ? found.data.map((model) => model && model.id).filter(Boolean) : [];
  if (!names.length) throw new Error("The answer is no list of models: the worker may not speak OpenAI's API.");
  chat.models = names.map(String);
  sessionStorage.setItem(modelsKey(chat.name), JSON.stringify(chat.models));
}

// The text of each event's first choice, and the numbers of tokens when they come. Throws the error that an event has.
async function* piecesOf(stream) {
  for await (const { data } of eventsOf(stream, String)) {
    if (data.startsWith("[DONE]")) return;
    const { error, usage, choices } = JSON.parse(data);
    if (error) throw new Error(error.message || JSON.stringify(error));
    const delta = choices && choices[0] && choices[0].delta;
    yield { text: (delta && delta.content) || "", usage };
  }
  throw new Error("the answer was cut off");
}

function speedOf(usage, began, first, now) {
  const count = usage && usage.completion_tokens;
  return [
    count !== undefined && `${count} tokens`, first && `the first after ${seconds(first - began)}`,
    count > 1 && now > first && `${((count - 1) * 1000 / (now - first)).toFixed(1)} tokens/s`,
  ].filter(Boolean).join(" · ");
}

async function sayOpenai(chat, text) {
  addLine(chat, "person", text);
  const line = addLine(chat, "model", ""), began = performance.now();
  let first = 0, tokens, content = "";
  const messages = [...chat.messages, { role: "user", content: text }];
  const body = { model: at("chat-model").value, messages, stream: true, stream_options: { include_usage: true } };
  chat.abort = new AbortController();
  showState(chat, "waiting for the first token");
  try {
    const response = await askOpenai(chat, "chat/completions", body, chat.abort.signal);
    for await (const { text: piece, usage } of piecesOf(response.body)) {
      tokens = usage || tokens;
      if (piece && !first) first = performance.now();
      content += piece;
      line.append(piece);
      showState(chat, [chat.worker && `worker ${chat.worker}`, speedOf(tokens, began, first, performance.now())].filter(Boolean).join(" · "));
      at("chat-log").scrollTop = at("chat-log").scrollHeight;
    }
  } catch (error) {
    addLine(chat, "note", error.name === "AbortError" ? "stopped" : error.message);
    showState(chat, "");
  }
  chat.abort = null;
  // A message without an answer is not sent again with the next one.
  if (content) chat.messages = [...messages, { role: "assistant", content }];
}

function forgetMessages(chat) {
  chat.messages = [];
  chat.log.replaceChildren();
  showState(chat, "");
}

// Called at each refresh of the page. `possible`: the endpoint is not one with sessions, which have a chat of their own.
function showOpenai(chat, possible) {
  at("openai").hidden = !possible;
  at("openai-url").textContent = `${location.origin}/v2/${chat.name}/openai/v1`;
  at("openai-ask").hidden = Boolean(chat.models);
  at("openai-models").disabled = Boolean(chat.asking);
  at("openai-note").textContent = chat.note || "asks a worker for its models; one starts for it where none runs";
  at("chat-models").hidden = !possible || !chat.models;
  at("chat-text").placeholder = possible ? "A text" : 'A text, sent as {"prompt": "..."}, or an object as JSON';
  const shownModels = [...at("chat-model").options].map((option) => option.value);
  if (chat.models && String(shownModels) !== String(chat.models)) {
    at("chat-model").replaceChildren(...chat.models.map((name) => element("option", name, { value: name })));
  }
}

function startOpenai() {
  at("openai-models").onclick = async () => {
    const chat = chatOf(endpoint);
    chat.asking = true;
    chat.note = "waits for a worker";
    showOpenai(chat, true);
    await askModels(chat).catch((error) => { chat.note = error.message; });
    chat.asking = false;
    refresh();
  };
}
