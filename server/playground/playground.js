"use strict";

const field = (id) => document.getElementById(id);
const MOST_TINTED = 4;
let stopping = null;

// The request of the form's settings; a setting left empty is the server's default.
function request() {
  const body = { prompt: field("prompt").value, stream: true, return_fork_counts: true,
                 stream_options: { include_usage: true } };
  for (const name of ["max_tokens", "temperature", "fork_ratio", "seed"]) {
    if (field(name).value !== "") body[name] = Number(field(name).value);
  }
  const headers = { "Content-Type": "application/json" };
  if (field("key").value) headers.Authorization = `Bearer ${field("key").value}`;
  return { method: "POST", headers, body: JSON.stringify(body), signal: stopping.signal };
}

// The data of each server-sent event, parsed.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const lines = (held + read.value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice("data: ".length));
    }
  }
}

function show(choice) {
  const piece = document.createElement("span");
  const streams = Math.max(0, ...(choice.fork_counts ?? []));
  piece.className = `bubble-${Math.min(MOST_TINTED, streams)}`;
  piece.title = streams ? `${streams} streams` : "";
  piece.textContent = choice.text;
  field("answer").append(piece);
}

async function complete() {
  const response = await fetch("v1/completions", request());
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    event.choices.forEach(show);
    if (event.usage) {
      const { completion_tokens: tokens, stream_tokens: streams } = event.usage;
      field("told").textContent = `${tokens} tokens; ${streams} streams computed in the last segment, prompt included`;
    }
  }
}

field("ask").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  stopping = new AbortController();
  field("answer").replaceChildren();
  field("told").textContent = "";
  field("send").disabled = true;
  field("stop").disabled = false;
  try {
    await complete();
  } catch (error) {
    field("told").textContent = error.name === "AbortError" ? "stopped" : error.message;
  } finally {
    field("send").disabled = false;
    field("stop").disabled = true;
  }
});

field("stop").addEventListener("click", () => stopping.abort());
