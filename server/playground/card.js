// The card of one token: its streams, the entropy before it, and its alternatives.

import { alternatives } from "./alternatives.js";

const SHOWN = 5;
const GAP = 8; // pixels between card and token
const LINGER = 150; // milliseconds for the pointer to move from token to card
const percent = new Intl.NumberFormat("en", { style: "percent", minimumSignificantDigits: 2, maximumSignificantDigits: 2 });

export class Card {
  #card;
  #target = null;
  #leaving = null;
  #form;
  /** Called with position and token if the user wants to change a token's forks; null if no layer forks. */
  onChoose = null;

  /** In the element `card`, which is not to cover `form`. */
  constructor(card, form) {
    this.#card = card;
    this.#form = form;
    card.addEventListener("pointerenter", () => clearTimeout(this.#leaving));
    card.addEventListener("pointerleave", () => this.leave());
  }

  /** Describe the token at `position` beside the element that shows it. */
  show(target, position, token) {
    clearTimeout(this.#leaving);
    if (target === this.#target) return;
    this.hide();
    this.#target = target;
    this.#card.replaceChildren(...described(token), ...this.#offer(position, token));
    this.#card.hidden = false;
    target.setAttribute("aria-describedby", this.#card.id);
    target.classList.add("pointed");
    this.#position(target);
  }

  /** Choose the token at `position` to change its forks. */
  choose(position, token) {
    this.hide();
    this.onChoose?.(position, token);
  }

  /** Hide soon, unless the pointer enters the card or another token is shown. */
  leave() {
    clearTimeout(this.#leaving);
    this.#leaving = setTimeout(() => this.hide(), LINGER);
  }

  /** Hide at once. Return whether a token was shown. */
  hide() {
    clearTimeout(this.#leaving);
    const shown = this.#target !== null;
    this.#target?.removeAttribute("aria-describedby");
    this.#target?.classList.remove("pointed");
    this.#target = null;
    this.#card.hidden = true;
    return shown;
  }

  // With the keyboard, Enter on the token does the same.
  #offer(position, token) {
    if (!this.onChoose) return [];
    const button = element("button", "", "Change its forks");
    button.type = "button";
    button.tabIndex = -1;
    button.addEventListener("pointerdown", (event) => event.preventDefault()); // the token keeps the focus
    button.addEventListener("mousedown", (event) => event.preventDefault());
    button.addEventListener("click", () => this.choose(position, token));
    return [button];
  }

  // Above the token, where the text has been read, unless that covers the form; else below it.
  #position(target) {
    const [token] = target.getClientRects();
    const text = target.parentElement.getBoundingClientRect();
    const frame = this.#card.offsetParent.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.#card;
    const above = token.top - height - GAP;
    const below = token.bottom + GAP;
    const free = above >= Math.max(0, this.#form.getBoundingClientRect().bottom);
    const focused = target === document.activeElement;
    // Under a mouse the page must not scroll: where neither side is free, the card covers the form for a moment.
    const top = free || (!focused && above >= 0 && below + height > innerHeight) ? above : below;
    const left = Math.max(text.left, Math.min(token.left, text.right - width));
    this.#card.style.top = `${top - frame.top}px`;
    this.#card.style.left = `${left - frame.left}px`;
    if (focused) this.#card.scrollIntoView({ block: "nearest" });
  }
}

/** Return a token's text with visible blanks. */
export function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→") || "(nothing)";
}

function described({ printed, streams, scores = [], logprob, top }) {
  const streamsLine = element("p", "streams", `${streams} ${streams === 1 ? "stream" : "streams"}`);
  streamsLine.prepend(...Array.from({ length: streams }, () => element("i")));
  const weights = scores.map((own) => own.map((p) => p.toFixed(2)).join(" "));
  const note = weights.length ? [element("p", "note", `P after each fork layer: ${weights.join(", ")}`)] : [];
  const head = [element("p", "name", visible(printed)), streamsLine, ...note];
  if (logprob === null) return [...head, element("p", "note", "The first token: nothing stands before it.")];
  const { ranked, rest, bits } = alternatives(top);
  return [
    ...head,
    element("p", "", `Entropy before it: at least ${bits.toFixed(2)} bits`),
    element("p", "note", `from the ${ranked.length} likeliest, the other ${percent.format(rest)} as one`),
    element("p", "note", "In its place, before temperature:"),
    list(ranked, printed),
  ];
}

// The likeliest tokens, and the token itself at any rank.
function list(ranked, printed) {
  const rows = ranked.filter(([text], rank) => rank < SHOWN || text === printed);
  const listed = element("ol");
  listed.append(
    ...rows.map(([text, probability]) => {
      const row = element("li", text === printed ? "chosen" : "");
      const bar = element("i");
      bar.style.inlineSize = `${100 * probability}%`;
      row.append(element("span", "", visible(text)), element("span", "", percent.format(probability)), bar);
      return row;
    }),
  );
  return listed;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
