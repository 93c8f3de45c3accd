// The playground: from the form to an answer, or to two with the same seed beside each other.

import { Answer } from "./answer.js";
import { complete, servedModel } from "./api.js";
import { Card } from "./card.js";
import { showScale } from "./depth.js";
import { Dial } from "./dial.js";
import { keepKey, key, mark, settings, unmark } from "./form.js";
import { agreement } from "./transcript.js";

const SECOND_RATIO = 1; // no forks: what the model does without them
const PAUSE = 300; // milliseconds after which a dial that was turned has found its place
const ASKED = { echo: true, logprobs: 20, return_fork_counts: true, return_token_ids: true };
const number = new Intl.NumberFormat("en");

const field = (id) => document.getElementById(id);
const card = new Card(field("card"), field("ask"));
const dials = [new Dial(field("ratio-1")), new Dial(field("ratio-2"))];
const answers = dials.map(() => new Answer(field("answer"), card));
let met = false; // whether the served model is known
let stopping = null; // ends the writing that goes on
let turning = null;

function tell(words, wrong = false) {
  const status = field("status");
  status.classList.toggle("wrong", wrong);
  if (status.textContent !== words) status.textContent = words; // else it would be read out again
}

function tellWait(refusal) {
  tell(`${refusal.message} Asking again in ${refusal.retryAfter} s.`);
}

function fail(error) {
  mark(error);
  tell(error.message, true);
}

async function meet() {
  const model = await servedModel({ key: key(), onWait: tellWait });
  const forks = model.fork_layers.length;
  field("model").textContent = `${model.id} · ${number.format(model.parameters)} parameters`;
  showScale(field("scale"), 2 ** forks);
  dials[0].reach(forks, model.max_block_size / model.block_size);
  dials[1].reach(forks, SECOND_RATIO);
  met = true;
}

async function write() {
  stopping?.abort();
  const mine = (stopping = new AbortController());
  const shown = answers.slice(0, field("beside").checked ? 2 : 1);
  begin();
  const requests = shown.map((_, place) => ({ ...ASKED, ...settings(), fork_ratio: dials[place].ratio }));
  let started = false;
  // Only now: a refusal leaves the answer of before.
  const start = () => {
    if (!started) replace(shown, requests);
    started = true;
  };
  const ends = await Promise.allSettled(shown.map((answer, place) => fill(answer, requests[place], mine.signal, start)));
  if (stopping === mine) conclude(ends); // else they are being written anew
}

function begin() {
  unmark();
  card.hide();
  tell("Writing…");
  field("stop").disabled = false;
}

function replace(shown, requests) {
  card.hide();
  shown.forEach((answer, place) => answer.clear(`Fork ratio ${requests[place].fork_ratio}`));
  field("answers").replaceChildren(...shown.map((answer) => answer.element));
}

async function fill(answer, request, signal, start) {
  for await (const { choices } of complete(request, { key: key(), signal, onWait: tellWait })) {
    start();
    tell("Writing…");
    for (const choice of choices) answer.add(choice, request.max_tokens);
  }
}

function conclude(ends) {
  stopping = null;
  const shown = answers.filter(({ element }) => element.isConnected);
  const length = Math.max(...shown.map(({ transcript }) => transcript.tokens.length));
  for (const answer of shown) answer.end(length);
  if (document.activeElement === field("stop")) field("send").focus(); // a disabled button would lose the focus
  field("stop").disabled = true;
  const errors = ends.flatMap(({ reason }) => reason ?? []);
  const failure = errors.find(({ name }) => name !== "AbortError");
  if (failure) fail(failure);
  else if (errors.length) tell("Stopped.");
  else tell(shown.length === 1 ? "Done." : compared(shown));
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
  if (!met) await meet().catch(fail);
  if (met) await write();
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
keepKey(() => meet().then(() => tell(""), fail));
meet().catch(fail);
