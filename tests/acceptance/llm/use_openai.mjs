// OpenAI's JavaScript client; prints what came back as one line of JSON.
// ENDPOINT: its base URL. NOTE: a file for the engine's notes. MODEL: the model.
import { existsSync } from "node:fs"
import OpenAI from "openai"

const { ENDPOINT: baseURL, NOTE: note, MODEL: model, RESPONSES: responses } = process.env
const client = new OpenAI({ baseURL, apiKey: "any" })
const messages = (content) => [{ role: "user", content }]
const said = {}

async function refusal(promise) {
  try {
    await promise
    return "no error"
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, type: error.type }
  }
}

const chat = await client.chat.completions.create({ model, messages: messages("Grüße 🙂 from js") })
said.chat = chat.choices[0].message.content

said.stream = ""
const stream = await client.chat.completions.create({
  model,
  messages: messages("one two three four five"),
  stream: true,
  stream_options: { include_usage: true },
})
for await (const chunk of stream) {
  said.stream += chunk.choices[0]?.delta?.content ?? ""
  said.usage = chunk.usage ?? said.usage
}

const completion = await client.completions.create({ model, prompt: "to be or not", max_tokens: 2 })
said.completion = completion.choices[0].text

if (responses) {
  const answer = await client.responses.create({ model, input: "a response" })
  said.response = answer.output_text
  said.events = []
  const events = await client.responses.create({ model, input: "two words", stream: true })
  for await (const event of events) said.events.push(event.type)
  const embedding = await client.embeddings.create({ model, input: ["four", "a"] })
  said.embeddings = embedding.data.map((row) => row.embedding)
}

said.models = []
for await (const found of client.models.list()) said.models.push(found.id)

said.unknown = await refusal(client.chat.completions.create({ model: "other", messages: messages("a") }))
const failing = `hello !note=${note} !status=500`
said.failed = await refusal(client.chat.completions.create({ model, messages: messages(failing) }))

const broken = await client.chat.completions.create({ model, messages: messages("one two !break"), stream: true })
said.broken = await refusal((async () => { for await (const _ of broken); })())

// Not all workers send a first word before their last one, so the note shows that one has begun.
const waiting = `one two !note=${note}.abort !pause=${note}.never`
const controller = new AbortController()
const leaving = refusal((async () => {
  const body = { model, messages: messages(waiting), stream: true }
  for await (const _ of await client.chat.completions.create(body, { signal: controller.signal }));
})())
while (!existsSync(`${note}.abort`)) await new Promise((done) => setTimeout(done, 20))
controller.abort()
await leaving

const late = `one !note=${note}.late !until=${note}.never`
const once = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 4000 })
said.late = await refusal(once.chat.completions.create({ model, messages: messages(late) }))

console.log(JSON.stringify(said))
process.exit(0)
