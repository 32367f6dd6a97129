// The AI SDK with RunPod's provider; prints what came back as one line of JSON. The variables are those of use_openai.mjs.
import { existsSync } from "node:fs"
import { createRunpod } from "@runpod/ai-sdk-provider"
import { generateText, streamText } from "ai"

const { ENDPOINT: baseURL, NOTE: note, MODEL } = process.env
const runpod = createRunpod({ apiKey: "any", baseURL })
const model = runpod(MODEL)
const said = {}

async function refusal(promise) {
  try {
    await promise
    return "no error"
  } catch (error) {
    return { status: error.statusCode, text: error.message, retryable: error.isRetryable }
  }
}

const found = await generateText({ model, prompt: "Grüße 🙂 from the sdk" })
said.text = found.text
said.tokens = found.usage.outputTokens
said.finish = found.finishReason

const streamed = streamText({ model, prompt: "one two three four five" })
said.parts = []
for await (const part of streamed.textStream) said.parts.push(part)
said.streamTokens = (await streamed.usage).outputTokens

const completion = await generateText({ model: runpod.completionModel(MODEL), prompt: "to be" })
said.completion = completion.text

said.unknown = await refusal(generateText({ model: runpod("other"), prompt: "a" }))
said.failed = await refusal(
  generateText({ model, prompt: `hello !note=${note} !status=400`, maxRetries: 2 }),
)

const controller = new AbortController()
const aborted = streamText({
  model,
  prompt: `one two !note=${note}.abort !pause=${note}.never`,
  abortSignal: controller.signal,
  onError: () => {},
})
const leaving = refusal((async () => {
  for await (const _ of aborted.textStream);
})())
while (!existsSync(`${note}.abort`)) await new Promise((done) => setTimeout(done, 20))
controller.abort()
await leaving

console.log(JSON.stringify(said))
process.exit(0)
