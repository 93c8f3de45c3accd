// The text of an answer as tokens that can be selected: by mouse, by tap, and by Tab and the arrow keys.

import { tint } from "./depth.js";

const STEPS = { ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 0, End: (_at, last) => last };

export class Text {
  #element;

  /**
   * In `element`. `onPoint` is called with the index of the selected token, undefined if none is; `onChoose` with the
   * index of the token on which Enter is pressed.
   */
  constructor(element, onPoint, onChoose) {
    this.#element = element;
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault(); // else the radio that gets the focus would submit the form
      onChoose(this.#at(event));
    });
    // Only moves of a mouse: text that scrolls under a resting mouse is not selected, and a tap sets the focus.
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

  /** The index of the token that has the focus, or undefined. */
  get focused() {
    return this.#at({ target: document.activeElement });
  }

  /** Clear the text; `name` is its label for screen readers. */
  clear(name) {
    this.#element.replaceChildren();
    this.#element.setAttribute("aria-label", name);
    this.busy = true;
  }

  /** Whether more tokens follow. */
  set busy(busy) {
    this.#element.ariaBusy = String(busy);
  }

  /** Add the next token, without its text. */
  add(streams, prompt) {
    const token = tint(document.createElement("span"), streams);
    token.className = prompt ? "token prompt" : "token";
    token.tabIndex = this.#element.childElementCount ? -1 : 0; // Tab stops once; arrow keys move from there
    this.#element.append(document.createTextNode(""), token);
  }

  /** Write the text of the token at `index`; blanks before a word are not tinted. */
  write(index, piece) {
    const token = this.token(index);
    const word = piece.trimStart() || piece;
    const blanks = piece.slice(0, piece.length - word.length);
    token.textContent = word;
    token.previousSibling.data = blanks;
    token.classList.toggle("opens", blanks !== "");
    token.previousElementSibling?.classList.toggle("closes", blanks !== "");
    token.classList.toggle("break", word.startsWith("\n"));
  }

  /** Return the element of the token at `index`. */
  token(index) {
    return this.#element.children[index];
  }

  #at({ target }) {
    const index = [...this.#element.children].indexOf(target);
    return index === -1 ? undefined : index;
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
