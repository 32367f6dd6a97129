"use strict";
// Values from the API become text nodes, never HTML, because inputs and outputs may contain markup of an attacker.
const at = (id) => document.getElementById(id);
const SIGNS = {
  ready: "● ready", busy: "◐ busy", paused: "❚❚ paused", initializing: "… starting", standby: "◌ standby", unhealthy: "✕ unhealthy",
  IN_QUEUE: "… in queue", IN_PROGRESS: "◐ running", COMPLETED: "✓ completed", FAILED: "✕ failed",
  CANCELLED: "– cancelled", TIMED_OUT: "✕ timed out",
  wanted: "… wanted", preparing: "… preparing", starting: "… starting", draining: "❚❚ draining", stopping: "❚❚ stopping",
  free: "● free", reserved: "❚❚ reserved", unusable: "✕ unusable", silent: "✕ silent", drained: "❚❚ drained",
};
const TERMINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
let key = sessionStorage.getItem("ownpod-key") || "";
let endpoint = "";
let shown = null;
let watched = null;

async function call(method, path, body, base = "/v2/") {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(base + path, { method, headers, body });
  const result = await response.json();
  if (base === "/v2/" && (response.status === 401 || response.status === 403)) {
    at("login").hidden = false;
    at("main").hidden = true;
  }
  if (!response.ok) throw new Error(result.error || response.statusText);
  return result;
}

const seconds = (ms) => ms === undefined ? "" : ms < 10000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.round(ms / 1000)} s`;

function ago(ms) {
  const s = Math.max(0, Math.round((Date.now() - ms) / 1000));
  return s < 120 ? `${s} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

function element(name, text, more = {}) {
  const made = Object.assign(document.createElement(name), more);
  made.textContent = text ?? "";
  return made;
}

function fill(body, rows) {
  body.replaceChildren(...rows.map(({ cells, open }) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    if (open) {
      row.className = "open";
      row.tabIndex = 0;
      row.onclick = open;
      row.onkeydown = (event) => { if (event.key === "Enter") open(); };
    }
    return row;
  }));
}

function percentile(values, share) {
  const sorted = values.filter((v) => v !== undefined).sort((a, b) => a - b);
  return sorted.length ? seconds(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]) : "–";
}

function plot(samples) {
  const now = Date.now(), hour = 3600e3;
  const peak = Math.max(1, ...samples.map((s) => Math.max(s[1], s[2])));
  const line = (n, name) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    made.setAttribute("class", name);
    made.setAttribute("points", samples.map((s) =>
      `${(600 * (1 - (now - s[0]) / hour)).toFixed(1)},${(115 - 110 * s[n] / peak).toFixed(1)}`).join(" "));
    return made;
  };
  at("plot").replaceChildren(line(1, "waiting"), line(2, "running"));
  at("peak").textContent = `(peak ${peak})`;
}

const gigabytes = (mb) => (mb / 1024).toFixed(1).replace(".0", "");

function memory({ memoryMb, metrics: { memory_used_mb: used } }) {
  if (!memoryMb) return "";
  return `${used === undefined ? "" : `${gigabytes(used)} of `}${gigabytes(memoryMb)} GB`;
}

function releaseText({ current, next, state, givenUp }) {
  return [
    `Release ${next || current}: ${state}`, next && current && `release ${current} serves`,
    givenUp && `release ${givenUp.number} was given up: ${givenUp.reason}`,
  ].filter(Boolean).join(" · ");
}

function showEnded(ended) {
  at("crashed").hidden = !ended.length;
  fill(at("ended"), ended.map((w) => ({
    cells: [w.id, `${ago(w.stoppedAt)} ago`, w.endedIn, w.outOfMemory ? "out of memory" : w.exitCode, w.host, w.reason],
    open: () => watch(w.id, w.log),
  })));
}

function showManaged({ workers, failures, releases, ended }, hosts) {
  at("managed").hidden = !workers.length && !failures && !releases && !ended.length;
  at("release").textContent = releases ? releaseText(releases) : "";
  showEnded(ended);
  fill(at("started"), workers.map((w) => ({ cells: [
    w.id, SIGNS[w.phase] || w.phase, ago(w.readyAt || w.startedAt || w.createdAt), w.host, w.devices.join(", "), w.reason,
  ], open: w.host ? () => watch(w.id) : undefined })));
  at("failures").hidden = !failures;
  if (failures) {
    at("failures").firstChild.textContent = [
      `Starts that failed in a row: ${failures.count}`, failures.unhealthy && "unhealthy", `worker ${failures.worker}`,
      failures.reason, failures.exitCode !== null && `exit code ${failures.exitCode}`,
      failures.pauseSeconds > 0 && `next start in ${failures.pauseSeconds} s`,
    ].filter(Boolean).join(" · ");
    at("failures").lastChild.textContent = failures.log.join("\n");
  }
  at("hosts").hidden = !hosts.length;
  fill(at("devices"), hosts.flatMap((h) => [
    { cells: [h.host, h.engine, SIGNS[h.state], "", "", h.workers, h.problem] },
    ...h.devices.map((d) => ({ cells: [
      "", `${d.index} ${d.name}`, SIGNS[d.state], memory(d),
      d.metrics.utilization_percent === undefined ? "" : `${Math.round(d.metrics.utilization_percent)} %`,
      d.workers.join(", "), d.reason,
    ] })),
  ]));
}

function showCounts(counts) {
  at("counts").replaceChildren(...Object.entries(counts).map(([name, value]) => {
    const box = element("div", name);
    box.prepend(element("b", value));
    return box;
  }));
}

function showJobs(health, { requests: jobs }, { samples }) {
  showCounts({
    waiting: health.jobs.inQueue, running: health.jobs.inProgress, completed: health.jobs.completed,
    failed: health.jobs.failed,
    "delay p50 / p95": `${percentile(jobs.map((j) => j.delayTime), .5)} / ${percentile(jobs.map((j) => j.delayTime), .95)}`,
    "execution p50 / p95":
      `${percentile(jobs.map((j) => j.executionTime), .5)} / ${percentile(jobs.map((j) => j.executionTime), .95)}`,
  });
  fill(at("jobs"), jobs.map((job) => ({
    cells: [job.id, SIGNS[job.status], ago(job.createdAt), seconds(job.delayTime), seconds(job.executionTime), job.workerId],
    open: () => open(job.id),
  })));
  plot(samples);
}

// What a worker of each type of endpoint has: ids of jobs with their ages, or numbers of requests.
function workOf(w, ms, balanced) {
  if (balanced) return [w.waiting && `${w.waiting} waiting for it`, `${w.total} in all`].filter(Boolean).join(", ");
  return w.jobs.map((id) => ms[id] ? `${id} for ${ago(ms[id].createdAt + (ms[id].delayTime || 0))}` : id).join(", ");
}

async function refresh() {
  try {
    const { endpoints: names, types, presets = {} } = await call("GET", "");
    if (at("endpoint").options.length !== names.length) {
      at("endpoint").replaceChildren(...names.map((name) => element("option", name, { value: name })));
      endpoint = names.includes(endpoint) ? endpoint : names[0];
      at("endpoint").value = endpoint;
    }
    at("login").hidden = true;
    at("main").hidden = false;
    // A load-balanced endpoint has requests in place of jobs, and no list of them.
    const balanced = types[endpoint] === "LB";
    const [health, recent, history, { managed }, { agents }] = await Promise.all([
      call("GET", `${endpoint}/health`),
      balanced ? { requests: [] } : call("GET", `${endpoint}/requests?limit=50`),
      balanced ? { samples: [] } : call("GET", `${endpoint}/history`),
      call("GET", `${endpoint}/workers`),
      // The key of one endpoint does not open the hosts.
      call("GET", "agents", undefined, "/").catch(() => ({ agents: [] })),
    ]);
    const front = health.ownpod.front;
    const notes = [health.ownpod.paused, front && front.problem].filter(Boolean);
    at("paused").hidden = !notes.length;
    at("paused").textContent = notes.join(" · ");
    for (const section of document.querySelectorAll(".queue")) section.hidden = balanced;
    at("address").hidden = !balanced;
    at("address").textContent = `Send requests to ${location.origin}/lb/${endpoint}/<any path>`;
    at("of-jobs").textContent = balanced ? "Requests" : "Job";
    if (balanced) showCounts({ waiting: front.waiting, open: front.open, "requests in all": front.total });
    else showJobs(health, recent, history);
    const ms = Object.fromEntries(recent.requests.map((job) => [job.id, job]));
    fill(at("workers"), health.ownpod.workers.map((w) => ({ cells: [
      w.id, SIGNS[w.state] || w.state, `${w.running + w.held}/${w.capacity ?? "any"}`, workOf(w, ms, balanced), w.reason,
    ] })));
    showManaged(managed, agents);
    await showChat(presets[endpoint]);
    if (shown) await show(shown);
    if (watched) await showLines(watched);
    at("message").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    at("message").textContent = error.message;
  }
}

// Images in a job's output: data URLs, base64 of PNG or JPEG without a prefix, links. At most 12, so that a large output
// does not make the page slow.
function images(value, found = []) {
  if (typeof value === "string") {
    if (/^data:image\/(png|jpeg|webp|gif);base64,/.test(value)) found.push(value);
    else if (/^(iVBORw0KGgo|\/9j\/)[A-Za-z0-9+/=\s]{40,}$/.test(value)) {
      found.push(`data:image/${value[0] === "i" ? "png" : "jpeg"};base64,${value}`);
    } else if (/^https?:\/\/\S+\.(png|jpe?g|webp|gif)(\?\S*)?$/i.test(value)) found.push(value);
  } else if (value && typeof value === "object") {
    for (const part of Object.values(value)) images(part, found);
  }
  return found.slice(0, 12);
}

async function show(id) {
  const job = await call("GET", `${endpoint}/requests/${id}`);
  at("job-id").textContent = id;
  at("job-state").textContent = [SIGNS[job.status], job.worker_id, job.error].filter(Boolean).join(" · ");
  at("job-input").textContent = JSON.stringify(job.input, null, 2);
  at("job-output").textContent = job.output === undefined ? "" : JSON.stringify(job.output, null, 2).slice(0, 20000);
  at("cancel").hidden = TERMINAL.includes(job.status);
  at("retry").hidden = !["FAILED", "TIMED_OUT"].includes(job.status);
  await showJobLines(id, job);
  const found = images(job.output);
  if (at("images").dataset.of !== `${id} ${found.length}`) {
    at("images").dataset.of = `${id} ${found.length}`;
    at("images").replaceChildren(...found.map((src) => element("img", "", { src, alt: "in the output" })));
  }
}

// The lines of a worker; only an admin key opens them, where there are keys.
const linesOf = (worker, query) => call("GET", `workers/${worker}/logs?${query}`, undefined, "/");

async function showJobLines(id, { worker_id: worker }) {
  const { lines } = worker ? await linesOf(worker, `job=${id}`).catch(() => ({ lines: [] })) : { lines: [] };
  at("job-lines").hidden = !lines.length;
  at("job-lines").lastChild.textContent = lines.map((line) => line.text).join("\n");
}

async function showLines(of) {
  // A second request with the same `after` would bring the same lines.
  if (of.busy) return;
  of.busy = true;
  try {
    const { worker, lines, next } = await linesOf(of.id, `after=${of.after}`);
    if (watched !== of) return;
    const all = at("worker-lines"), atEnd = all.scrollTop + all.clientHeight >= all.scrollHeight - 4;
    of.after = next;
    of.texts = [...of.texts, ...lines.map((line) => line.text)].slice(-1000);
    at("worker-state").textContent = [
      worker.phase, worker.host, worker.endedIn && `ended in ${worker.endedIn}`,
      worker.outOfMemory && "out of memory", worker.reason,
    ].filter(Boolean).join(" · ");
    all.textContent = of.texts.join("\n");
    if (atEnd) all.scrollTop = all.scrollHeight;
  } catch (error) {
    // The last lines of a worker that has ended are also in the list, which needs no admin key.
    at("worker-lines").textContent = of.log ? of.log.join("\n") : error.message;
  } finally {
    of.busy = false;
  }
}

async function watch(id, log) {
  watched = { id, log, after: "0", texts: [] };
  at("worker-id").textContent = id;
  at("worker-state").textContent = "";
  at("worker-lines").textContent = "";
  at("worker").showModal();
  await showLines(watched);
}

async function open(id) {
  shown = id;
  try {
    await show(id);
    at("job").showModal();
  } catch (error) {
    at("message").textContent = error.message;
  }
}

async function act(method, path, body) {
  try {
    const result = await call(method, path, body);
    await refresh();
    return result;
  } catch (error) {
    at("message").textContent = error.message;
    return null;
  }
}

at("endpoint").onchange = (event) => { endpoint = event.target.value; refresh(); };
at("job").onclose = () => { shown = null; };
at("worker").onclose = () => { watched = null; };
at("cancel").onclick = () => act("POST", `${endpoint}/cancel/${shown}`);
at("retry").onclick = async () => {
  const retried = await act("POST", `${endpoint}/retry/${shown}`);
  if (retried) { shown = retried.id; await show(shown); }
};
at("login").onsubmit = (event) => {
  event.preventDefault();
  key = at("key").value;
  sessionStorage.setItem("ownpod-key", key);
  refresh();
};
at("send").onsubmit = async (event) => {
  event.preventDefault();
  let input;
  try {
    input = JSON.parse(at("input").value);
  } catch (error) {
    at("message").textContent = `the input is not valid JSON: ${error.message}`;
    return;
  }
  const job = await act("POST", `${endpoint}/run`, JSON.stringify({ input }));
  if (job) await open(job.id);
};
startChat();
startOpenai();
// The next refresh is scheduled after the end of this one, so that refreshes of a slow API do not overlap.
async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, 1500);
}
poll();
