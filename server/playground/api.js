// What the page asks of the server that it came from: the served model, and completions as they are written.

import { events } from "./events.js";
import { Refusal } from "./refusal.js";

const TRIES = 4;

/** The served model as GET /v1/models tells it. Waits and throws as `complete` does. */
export async function servedModel({ key, onWait }) {
  const response = await admitted("v1/models", { headers: authorization(key) }, onWait);
  return (await response.json()).data[0];
}

/**
 * The chunks of a streamed completion. A server that is full, or starting, is asked again after the time that it says;
 * `onWait` is called with its refusal before each wait. Throws `Refusal`, an Error when the connection fails, and an
 * AbortError once `signal` is aborted.
 */
export async function* complete(body, { key, signal, onWait }) {
  const headers = { "Content-Type": "application/json", ...authorization(key) };
  const request = { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await admitted("v1/completions", request, onWait);
  for await (const chunk of events(response)) {
    signal.throwIfAborted(); // what had come before the abort is not wanted either
    if (chunk.error) throw new Refusal(chunk.error);
    yield chunk;
  }
}

async function admitted(path, request, onWait) {
  for (let tries = 1; ; tries++) {
    const response = await fetch(path, request).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
    });
    if (response.ok) return response;
    const refusal = await Refusal.of(response);
    if (refusal.retryAfter === null || tries === TRIES) throw refusal;
    onWait(refusal);
    await pause(refusal.retryAfter, request.signal);
  }
}

// The server reads UTF-8 there, and fetch sends a byte for a character.
function authorization(key) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return key ? { Authorization: `Bearer ${bytes}` } : {};
}

function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(signal.reason);
    });
  });
}
