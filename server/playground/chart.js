// Bars of streams per token, one a token, drawn as the tokens come.

const SVG = "http://www.w3.org/2000/svg";
const UNIT = 10; // pixels for a stream, in every chart the same, so that two can be compared

export class Chart {
  #svg;
  #streams = [];
  #length = 1;

  /** In an svg; `onPoint` is called with the place of the token under the pointer, and with undefined without one. */
  constructor(svg, onPoint) {
    this.#svg = svg;
    svg.addEventListener("pointermove", ({ clientX }) => onPoint(this.#at(clientX)));
    svg.addEventListener("pointerleave", () => onPoint(undefined));
  }

  /** Begin anew. */
  clear() {
    this.#streams = [];
    this.#svg.replaceChildren();
    this.fit(1);
  }

  /** Take the whole width for this many tokens. */
  fit(length) {
    this.#length = length;
    const height = Math.max(2, ...this.#streams);
    this.#svg.setAttribute("viewBox", `0 ${-height} ${length} ${height}`);
    this.#svg.style.blockSize = `${height * UNIT}px`;
    this.#svg.setAttribute("aria-label", `Streams of ${this.#streams.length} tokens, ${height} at most`);
  }

  /** Add the next token's bar. */
  add(streams, prompt) {
    const bar = document.createElementNS(SVG, "rect");
    const shape = { x: this.#streams.length + 0.12, y: -streams, width: 0.76, height: streams };
    for (const [name, value] of Object.entries(shape)) bar.setAttribute(name, value);
    bar.classList.toggle("prompt", prompt);
    this.#svg.append(bar);
    this.#streams.push(streams);
    this.fit(Math.max(this.#length, this.#streams.length));
  }

  /** Mark the bar of the token at `place`, or none. */
  point(place) {
    this.#svg.querySelector(".pointed")?.classList.remove("pointed");
    this.#svg.children[place]?.classList.add("pointed");
  }

  #at(x) {
    const { left, width } = this.#svg.getBoundingClientRect();
    const place = Math.floor(((x - left) / width) * this.#length);
    return place in this.#streams ? place : undefined;
  }
}
