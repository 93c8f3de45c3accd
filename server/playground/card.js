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

  constructor(card) {
    this.#card = card;
    card.addEventListener("pointerenter", () => clearTimeout(this.#leaving));
    card.addEventListener("pointerleave", () => this.leave());
  }

  /** Describe `token` beside the element that shows it. */
  show(target, token) {
    clearTimeout(this.#leaving);
    if (target === this.#target) return;
    this.hide();
    this.#target = target;
    this.#card.replaceChildren(...described(token));
    this.#card.hidden = false;
    target.setAttribute("aria-describedby", this.#card.id);
    target.classList.add("pointed");
    this.#position(target);
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

  // Above the token, where the text has been read, unless that covers the form; else below it.
  #position(target) {
    const [token] = target.getClientRects();
    const text = target.parentElement.getBoundingClientRect();
    const frame = this.#card.offsetParent.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.#card;
    const above = token.top - height - GAP;
    const below = token.bottom + GAP;
    const free = above >= Math.max(0, target.closest(".answer").getBoundingClientRect().top);
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

function described({ printed, streams, logprob, top }) {
  const streamsLine = element("p", "streams", `${streams} ${streams === 1 ? "stream" : "streams"}`);
  streamsLine.prepend(...Array.from({ length: streams }, () => element("i")));
  const head = [element("p", "name", visible(printed)), streamsLine];
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
