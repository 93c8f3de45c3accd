// One answer on the page: its text, its chart, its figures, and the card of the token pointed at.

import { Chart } from "./chart.js";
import { Text } from "./text.js";
import { Transcript } from "./transcript.js";

export class Answer {
  #section;
  #text;
  #chart;
  #card;

  /** Made from the page's template; the card is every answer's. */
  constructor(template, card) {
    this.#section = template.content.cloneNode(true).firstElementChild;
    this.#text = new Text(this.#section.querySelector(".text"), (place) => this.#point(place));
    this.#chart = new Chart(this.#section.querySelector("svg"), (place) => this.#point(place));
    this.#card = card;
    this.transcript = new Transcript();
  }

  /** The section to put into the page. */
  get element() {
    return this.#section;
  }

  /** Begin anew. */
  clear(title) {
    this.transcript = new Transcript();
    this.#section.querySelector("h2").textContent = title;
    this.#section.querySelector("dl").replaceChildren();
    this.#text.clear(`${title}: tokens`);
    this.#chart.clear();
  }

  /** Show what a chunk's choice adds, of a completion that may reach `maxTokens`. */
  add(choice, maxTokens) {
    const { transcript } = this;
    const known = transcript.tokens.length;
    transcript.add(choice);
    this.#chart.fit(transcript.promptTokens + maxTokens);
    transcript.tokens.slice(known).forEach(({ streams }, place) => {
      const prompt = known + place < transcript.promptTokens;
      this.#text.add(streams, prompt);
      this.#chart.add(streams, prompt);
    });
    // From the last token that was known: its text may go on.
    for (let place = Math.max(0, known - 1); place < transcript.tokens.length; place++) {
      this.#text.write(place, transcript.piece(place));
    }
  }

  /** Show the figures, once no more comes; the chart takes its whole width for `length` tokens. */
  end(length) {
    const { tokens, promptTokens, answerTokens, meanStreams, promptBits } = this.transcript;
    this.#text.busy = false;
    this.#section.querySelector("dl").replaceChildren();
    if (!tokens.length) return;
    this.#chart.fit(length);
    this.#tell("Tokens", `${promptTokens} given, ${answerTokens} written`);
    this.#tell("Streams per token", meanStreams.toFixed(2));
    if (promptTokens > 1) this.#tell("Surprise at the prompt", `${promptBits.toFixed(2)} bits a token`);
  }

  /** Mark where it parts from the answer beside it, with which it has so many tokens in common. */
  partAfter(agreed) {
    this.#text.token(this.transcript.promptTokens + agreed)?.classList.add("parting");
  }

  #point(place) {
    this.#chart.point(place);
    if (place === undefined) this.#card.leave();
    else this.#card.show(this.#text.token(place), this.transcript.tokens[place]);
  }

  #tell(name, value) {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    [pair.firstChild.textContent, pair.lastChild.textContent] = [name, value];
    this.#section.querySelector("dl").append(pair);
  }
}
