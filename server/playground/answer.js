// One answer on the page: its text, chart and figures, and the card of the token under the pointer.

import { Chart } from "./chart.js";
import { Text } from "./text.js";
import { Transcript } from "./transcript.js";

export class Answer {
  #section;
  #text;
  #chart;
  #card;

  /** Made from the page's template; all answers share the card. */
  constructor(template, card) {
    this.#section = template.content.cloneNode(true).firstElementChild;
    const choose = (index) => card.choose(index, this.transcript.tokens[index]);
    this.#text = new Text(this.#section.querySelector(".text"), (index) => this.#point(index), choose);
    this.#chart = new Chart(this.#section.querySelector("svg"), (index) => this.#point(index));
    this.#card = card;
    this.transcript = new Transcript();
  }

  /** The section for the page. */
  get element() {
    return this.#section;
  }

  /** Clear the answer. */
  clear(title) {
    this.transcript = new Transcript();
    this.#section.querySelector("h2").textContent = title;
    this.#section.querySelector("dl").replaceChildren();
    this.#text.clear(`${title}: tokens`);
    this.#chart.clear();
  }

  /** Show what a chunk's choice adds to a completion of at most `maxTokens`. */
  add(choice, maxTokens) {
    const { transcript } = this;
    const known = transcript.tokens.length;
    transcript.add(choice);
    this.#chart.fit(transcript.promptTokens + maxTokens);
    transcript.tokens.slice(known).forEach(({ streams }, index) => {
      const prompt = known + index < transcript.promptTokens;
      this.#text.add(streams, prompt);
      this.#chart.add(streams, prompt);
    });
    // From the last token before: its text may continue.
    for (let index = Math.max(0, known - 1); index < transcript.tokens.length; index++) {
      this.#text.write(index, transcript.piece(index));
    }
  }

  /** Show the figures of a finished answer; the chart's width is `length` tokens. */
  end(length) {
    const { tokens, promptTokens, answerTokens, meanStreams, promptBits } = this.transcript;
    this.#text.busy = false;
    this.#section.querySelector("dl").replaceChildren();
    if (!tokens.length) return;
    this.#chart.fit(length);
    this.#addFigure("Tokens", `${promptTokens} given, ${answerTokens} written`);
    this.#addFigure("Streams per token", meanStreams.toFixed(2));
    if (promptTokens > 1) this.#addFigure("Surprise at the prompt", `${promptBits.toFixed(2)} bits a token`);
  }

  /** Mark where it differs from the other answer, after this many common tokens. */
  partAfter(agreed) {
    this.#text.token(this.transcript.promptTokens + agreed)?.classList.add("parting");
  }

  /** Mark the tokens at `positions`, whose forks were changed. */
  markChanged(positions) {
    for (const position of positions) this.#text.token(position)?.classList.add("changed");
  }

  #point(index) {
    this.#chart.point(index);
    if (index === undefined) this.#card.leave();
    else this.#card.show(this.#text.token(index), index, this.transcript.tokens[index]);
  }

  #addFigure(name, value) {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    [pair.firstChild.textContent, pair.lastChild.textContent] = [name, value];
    this.#section.querySelector("dl").append(pair);
  }
}
