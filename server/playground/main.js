// The playground: completes the form's prompt, once or with two fork ratios and the same seed side by side.

import { Answer } from "./answer.js";
import { complete, servedModel } from "./api.js";
import { Card, visible } from "./card.js";
import { Changes } from "./changes.js";
import { showScale } from "./depth.js";
import { Dial } from "./dial.js";
import { keepKey, key, mark, settings, unmark } from "./form.js";
import { agreement } from "./transcript.js";

const SECOND_RATIO = 1; // no forks
const PAUSE = 300; // milliseconds without a change after which a dial counts as set
const OUTPUTS = { echo: true, logprobs: 20, return_fork_counts: true, return_token_ids: true };
const number = new Intl.NumberFormat("en");

const field = (id) => document.getElementById(id);
const card = new Card(field("card"), field("ask"));
const dials = [new Dial(field("ratio-1")), new Dial(field("ratio-2"))];
const changes = new Changes(field("changes"), () => {
  field("beside").checked = false;
  field("second").hidden = true;
  rewrite();
});
const answers = dials.map(() => new Answer(field("answer"), card));
let connected = false; // whether the served model is known
let stopping = null; // aborts the running completion
let turning = null;
let written = null; // the prompt of the answers on the page

function showStatus(words, wrong = false) {
  const status = field("status");
  status.classList.toggle("wrong", wrong);
  if (status.textContent !== words) status.textContent = words; // else screen readers would read it again
}

function showWait(refusal) {
  showStatus(`${refusal.message} Asking again in ${refusal.retryAfter} s.`);
}

function fail(error) {
  mark(error);
  showStatus(error.message, true);
}

async function connect() {
  const model = await servedModel({ key: key(), onWait: showWait });
  const forks = model.fork_layers.length;
  field("model").textContent = `${model.id} · ${number.format(model.parameters)} parameters`;
  showScale(field("scale"), 2 ** forks);
  dials[0].reach(forks, model.max_block_size / model.block_size);
  dials[1].reach(forks, SECOND_RATIO);
  changes.layers = model.fork_layers;
  card.onChoose = forks ? (position, { printed }) => changes.choose(position, visible(printed)) : null;
  connected = true;
}

async function write() {
  stopping?.abort();
  const mine = (stopping = new AbortController());
  const same = field("prompt").value === written && !field("beside").checked; // else the changes are of other tokens
  const bias = same ? changes.bias : [];
  const shown = answers.slice(0, field("beside").checked || bias.length ? 2 : 1);
  begin();
  const requests = shown.map((_, index) => request(index, bias));
  let started = false;
  // Only now: a refused request leaves the previous answer, and the changes of its tokens.
  const start = () => {
    if (started) return;
    started = true;
    if (!same) changes.clear();
    showAnswers(shown, requests);
  };
  const ends = await Promise.allSettled(shown.map((answer, index) => fill(answer, requests[index], mine.signal, start)));
  if (stopping === mine) finish(ends); // else a newer completion has replaced them
}

// With changes both answers have scores, so that both are computed in the same way.
function request(index, bias) {
  const common = { ...OUTPUTS, ...settings(), fork_ratio: dials[bias.length ? 0 : index].ratio };
  return bias.length ? { ...common, return_fork_scores: true, fork_bias: index ? bias : [] } : common;
}

function title({ fork_ratio: ratio, fork_bias: bias = [] }) {
  return bias.length ? `Fork ratio ${ratio}, other forks` : `Fork ratio ${ratio}`;
}

function begin() {
  unmark();
  card.hide();
  showStatus("Writing…");
  field("stop").disabled = false;
}

function showAnswers(shown, requests) {
  written = requests[0].prompt;
  card.hide();
  shown.forEach((answer, index) => answer.clear(title(requests[index])));
  field("answers").replaceChildren(...shown.map((answer) => answer.element));
}

async function fill(answer, request, signal, start) {
  for await (const { choices } of complete(request, { key: key(), signal, onWait: showWait })) {
    start();
    showStatus("Writing…");
    for (const choice of choices) answer.add(choice, request.max_tokens);
  }
}

function finish(ends) {
  stopping = null;
  const shown = answers.filter(({ element }) => element.isConnected);
  const length = Math.max(...shown.map(({ transcript }) => transcript.tokens.length));
  for (const answer of shown) answer.end(length);
  shown[1]?.markChanged(changes.positions);
  if (document.activeElement === field("stop")) field("send").focus(); // a disabled button loses the focus
  field("stop").disabled = true;
  const errors = ends.flatMap(({ reason }) => reason ?? []);
  const failure = errors.find(({ name }) => name !== "AbortError");
  if (failure) fail(failure);
  else if (errors.length) showStatus("Stopped.");
  else showStatus(shown.length === 1 ? "Done." : compared(shown));
}

function compared(shown) {
  const [one, other] = shown.map(({ transcript }) => transcript);
  const agreed = agreement(one, other);
  if (agreed === Math.max(one.answerTokens, other.answerTokens)) return "Done: both answers are the same.";
  for (const answer of shown) answer.partAfter(agreed);
  const common = agreed === 1 ? "1 token" : `${agreed} tokens`;
  return `Done: with the same seed the answers have ${common} in common, then they part.`;
}

function rewrite() {
  clearTimeout(turning);
  if (field("answers").childElementCount) turning = setTimeout(() => field("ask").requestSubmit(), PAUSE);
}

field("ask").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  if (!connected) await connect().catch(fail);
  if (connected) await write();
});
field("stop").addEventListener("click", () => stopping.abort());
field("beside").addEventListener("change", () => {
  field("second").hidden = !field("beside").checked;
  rewrite();
});
for (const dial of dials) dial.onTurn(rewrite);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !card.hide()) stopping?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) field("ask").requestSubmit();
});
keepKey(() => connect().then(() => showStatus(""), fail));
connect().catch(fail);
