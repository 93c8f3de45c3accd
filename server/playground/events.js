// Server-sent events in the form of completion servers: one data line each, comments between them, [DONE] at the end.

const DATA = "data: ";

/** Yield the JSON of each event of a response. Throws an Error if the stream ends before [DONE]. */
export async function* events(response) {
  for await (const line of lines(response.body)) {
    if (line === `${DATA}[DONE]`) return;
    if (line.startsWith(DATA)) yield JSON.parse(line.slice(DATA.length));
  }
  throw broken();
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : broken();
    });
    if (done) return;
    const complete = (held + value).split("\n");
    held = complete.pop();
    yield* complete;
  }
}

function broken() {
  return new Error("The connection broke before the answer was done.");
}
