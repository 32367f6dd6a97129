// Talk to a model that stays loaded: node examples/sessions/client.mjs "hello" "how are you?". Node 18 or newer, or a browser, without packages.
// Each argument is one task of the same session. OWNPOD_URL and OWNPOD_API_KEY are the API and a key; MODEL, PRESET and DIFFICULTY choose the preset.

const environ = globalThis.process?.env ?? {};
const URL_ = (environ.OWNPOD_URL ?? "http://127.0.0.1:8000").replace(/\/$/, "");
const HEADERS = environ.OWNPOD_API_KEY ? { "X-API-Key": environ.OWNPOD_API_KEY } : {};
const TRIES = 30; // reconnects, 2 s apart, until this client gives up

// The events of a stream, by the HTML standard: { id, event, data }. A block without data is no event.
export async function* eventsOf(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "", id = "", event = "", data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const raw of lines) {
      const line = raw.replace(/\r$/, "");
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (!line) {
        if (data.length) yield { id, event: event || "message", data: JSON.parse(data.join("\n")) };
        event = "";
        data = [];
      } else if (name === "id") id = text;
      else if (name === "event") event = text;
      else if (name === "data") data.push(text);
    }
  }
}

async function checked(response) {
  if (response.ok) return response;
  const { code, detail } = await response.json().catch(() => ({}));
  throw new Error(`refused: ${code ?? response.status}: ${detail ?? response.statusText}`);
}

// Submits a task, and yields its events up to task_finish, also over broken connections.
export async function* run(body) {
  // With this key a POST that is repeated, because its answer was lost, is the same task.
  const headers = { ...HEADERS, "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() };
  let task = null, lastId = "", tries = 0;
  for (;;) {
    let response = null;
    try {
      response = task === null
        ? await fetch(`${URL_}/api/tasks/submit`, { method: "POST", headers, body: JSON.stringify(body) })
        // An id is a place in the stream: what follows it is sent, nothing twice.
        : await fetch(`${URL_}/api/tasks/${task}/events`, { headers: { ...HEADERS, ...(lastId && { "Last-Event-ID": lastId }) } });
    } catch (error) {
      console.error(`[${error.message}]`);
    }
    if (response) {
      task = (await checked(response)).headers.get("X-Task-Id");
      try {
        for await (const sent of eventsOf(response.body)) {
          lastId = sent.id;
          tries = 0;
          yield sent;
          if (sent.event === "task_finish") return;
        }
      } catch (error) {
        if (error.name !== "TypeError") throw error;
        console.error(`[${error.message}]`);
      }
    }
    // No task_finish: the task has not finished, only the connection.
    if (++tries > TRIES) throw new Error(`no connection to ${URL_}; the task goes on: ${task}`);
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

// In a browser, EventSource reconnects by itself, with the last id. It can send no header, so it needs an OwnPod without keys, or a proxy
// that adds one. It cannot POST either: submit with `Prefer: respond-async`, which answers the ids, and follow the task.
export async function follow(body, onEvent) {
  const headers = { ...HEADERS, "Content-Type": "application/json", Prefer: "respond-async" };
  const response = await checked(await fetch(`${URL_}/api/tasks/submit`, { method: "POST", headers, body: JSON.stringify(body) }));
  const { events_url: path } = await response.json();
  const source = new EventSource(`${URL_}${path}`);
  return new Promise((resolve) => {
    for (const name of ["connection", "worker", "text_delta", "output_delta", "text", "output", "logs", "task_finish"]) {
      source.addEventListener(name, (message) => {
        const data = JSON.parse(message.data);
        onEvent(name, data);
        if (name === "task_finish") {
          source.close();
          resolve(data);
        }
      });
    }
  });
}

async function main(prompts) {
  let session = null;
  for (const prompt of prompts) {
    console.log(`> ${prompt}`);
    const body = {
      task_type: "session",
      task_difficulty: environ.DIFFICULTY ?? "low",
      model_id: environ.MODEL ?? "parrot",
      task_preset: environ.PRESET ?? "chat",
      session_id: session,
      metadata: { prompt },
    };
    for await (const { event, data } of run(body)) {
      if (event === "text_delta") process.stdout.write(data.delta);
      else if (event === "connection") {
        session = data.session_id ?? session;
        console.error(`[${data.status}, session ${session}]`);
      } else if (event === "worker") console.error(`[${data.status}]`);
      else if (event === "task_finish") {
        console.log();
        if (data.status !== "completed") throw new Error(`${data.status}: ${data.error ?? ""}`);
      }
    }
  }
}

if (globalThis.process?.argv[1]?.endsWith("client.mjs")) {
  const prompts = process.argv.slice(2);
  main(prompts.length ? prompts : ["hello"]).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
