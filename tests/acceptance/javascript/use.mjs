// Every operation of RunPod's official JavaScript client; prints what came back as one line of JSON.
import { mkdtempSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import runpodSdk from "runpod-sdk"

const log = console.log
console.log = () => {}
const runpod = runpodSdk(process.env.KEY, { baseUrl: process.env.BASE })
const endpoint = runpod.endpoint("local-ep")
const generator = runpod.endpoint("generator-ep")
const pause = (ms) => new Promise((done) => setTimeout(done, ms))
const said = {}
// Of a loaded machine; the client's own limit is 3 s.
const MS = 60_000

const run = await endpoint.run({ input: { text: "js", seconds: 0.3 } }, MS)
said.run = run
said.status = await endpoint.status(run.id, MS)
while (!(said.status = await endpoint.status(run.id, MS)).completed) await pause(50)

said.runSync = await endpoint.runSync({ input: { text: "sync" } })
said.longRunSync = await endpoint.runSync({ input: { text: "long", seconds: 2.5 } }, 20000)

const streamed = await generator.run({ input: { count: 4 } }, MS)
said.stream = []
for await (const chunk of generator.stream(streamed.id)) said.stream.push(chunk)

const until = join(mkdtempSync(join(tmpdir(), "ownpod-")), "end")
const busy = [await endpoint.run({ input: { until } }, MS), await endpoint.run({ input: { until } }, MS)]
for (const job of busy) while ((await endpoint.status(job.id, MS)).status !== "IN_PROGRESS") await pause(20)
const waiting = await endpoint.run({ input: {} }, MS)
said.cancel = await endpoint.cancel(waiting.id, MS)
await endpoint.run({ input: {} }, MS)
said.health = await endpoint.health(MS)
said.purgeQueue = await endpoint.purgeQueue(MS)
writeFileSync(until, "")
for (const job of busy) while (!(await endpoint.status(job.id, MS)).completed) await pause(100)

log(JSON.stringify(said))
process.exit(0)
