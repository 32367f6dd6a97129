// Runs a job with the official JavaScript SDK: npm install runpod-sdk, then node javascript_sdk.mjs
import runpodSdk from "runpod-sdk";

const baseUrl = (process.env.OWNPOD_URL ?? "http://localhost:8000") + "/v2";
const runpod = runpodSdk(process.env.OWNPOD_API_KEY ?? "any, while OwnPod has no keys", { baseUrl });
const endpoint = runpod.endpoint(process.env.OWNPOD_ENDPOINT ?? "local-ep");

const done = await endpoint.runSync({ input: { text: "hello from JavaScript" } });
console.log(done.status, JSON.stringify(done.output));
