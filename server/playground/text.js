// The text of an answer as tokens that can be pointed at: by mouse, by tap, and by Tab and the arrow keys.

import { tint } from "./depth.js";

const STEPS = { ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 0, End: (_at, last) => last };

export class Text {
  #element;

  /** In `element`; `onPoint` is called with the place of the token pointed at, and with undefined when none is. */
  constructor(element, onPoint) {
    this.#element = element;
    // Moves alone: text that scrolls under a mouse at rest is not pointed at, and a finger's tap gives the focus.
    element.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") onPoint(this.#at(event) ?? this.focused);
    });
    element.addEventListener("pointerleave", () => onPoint(this.focused));
    element.addEventListener("focusout", () => onPoint(undefined));
    element.addEventListener("focusin", (event) => {
      this.#rove(event.target);
      onPoint(this.#at(event));
    });
    element.addEventListener("keydown", (event) => this.#step(event));
  }

  /** The place of the token that has the focus, or undefined. */
  get focused() {
    return this.#at({ target: document.activeElement });
  }

  /** Begin anew, under a name for those who cannot see where it stands. */
  clear(name) {
    this.#element.replaceChildren();
    this.#element.setAttribute("aria-label", name);
    this.busy = true;
  }

  /** Whether more is to come. */
  set busy(busy) {
    this.#element.ariaBusy = String(busy);
  }

  /** Add the next token, without its text. */
  add(streams, prompt) {
    const token = tint(document.createElement("span"), streams);
    token.className = prompt ? "token prompt" : "token";
    token.tabIndex = this.#element.childElementCount ? -1 : 0; // one stop for Tab; arrows go on from there
    this.#element.append(document.createTextNode(""), token);
  }

  /** Write the text of the token at `place`; blanks before a word stand between what is tinted. */
  write(place, piece) {
    const token = this.token(place);
    const word = piece.trimStart() || piece;
    const blanks = piece.slice(0, piece.length - word.length);
    token.textContent = word;
    token.previousSibling.data = blanks;
    token.classList.toggle("opens", blanks !== "");
    token.previousElementSibling?.classList.toggle("closes", blanks !== "");
    token.classList.toggle("break", word.startsWith("\n"));
  }

  /** The element of the token at `place`. */
  token(place) {
    return this.#element.children[place];
  }

  #at({ target }) {
    const place = [...this.#element.children].indexOf(target);
    return place === -1 ? undefined : place;
  }

  #rove(token) {
    this.#element.querySelector("[tabindex='0']").tabIndex = -1;
    token.tabIndex = 0;
  }

  #step(event) {
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.token(step(this.#at(event), this.#element.childElementCount - 1))?.focus();
  }
}
