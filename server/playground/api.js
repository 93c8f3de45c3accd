// The page's requests to its server: for the served model, and for streamed completions.

import { events } from "./events.js";
import { Refusal } from "./refusal.js";

const TRIES = 4;

/** Return the served model, from GET /v1/models. Retries and throws as `complete` does. */
export async function servedModel({ key, onWait }) {
  const response = await admitted("v1/models", { headers: authorization(key) }, onWait);
  return (await response.json()).data[0];
}

/**
 * Yield the chunks of a streamed completion. If the server is full or starting, retry after its Retry-After; `onWait` is
 * called with the refusal before each wait. Throws `Refusal`, an Error if the connection fails, and an AbortError when
 * `signal` is aborted.
 */
export async function* complete(body, { key, signal, onWait }) {
  const headers = { "Content-Type": "application/json", ...authorization(key) };
  const request = { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await admitted("v1/completions", request, onWait);
  for await (const chunk of events(response)) {
    signal.throwIfAborted(); // drop what arrived before the abort, too
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

// The server decodes the header as UTF-8, and fetch sends one byte per character.
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
