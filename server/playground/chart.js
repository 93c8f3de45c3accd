// A bar chart of streams per token, drawn as tokens arrive.

const SVG = "http://www.w3.org/2000/svg";
const UNIT = 10; // pixels per stream, the same in all charts, so that they can be compared

export class Chart {
  #svg;
  #streams = [];
  #length = 1;

  /** In an svg. `onPoint` is called with the index of the token under the pointer; undefined if there is none. */
  constructor(svg, onPoint) {
    this.#svg = svg;
    svg.addEventListener("pointermove", ({ clientX }) => onPoint(this.#at(clientX)));
    svg.addEventListener("pointerleave", () => onPoint(undefined));
  }

  /** Clear the chart. */
  clear() {
    this.#streams = [];
    this.#svg.replaceChildren();
    this.fit(1);
  }

  /** Use the whole width for this many tokens. */
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

  /** Mark the bar of the token at `index`; none if it is undefined. */
  point(index) {
    this.#svg.querySelector(".pointed")?.classList.remove("pointed");
    this.#svg.children[index]?.classList.add("pointed");
  }

  #at(x) {
    const { left, width } = this.#svg.getBoundingClientRect();
    const index = Math.floor(((x - left) / width) * this.#length);
    return index in this.#streams ? index : undefined;
  }
}
