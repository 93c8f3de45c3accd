// How deep streams tint: not at all for one, fully for as many as the served model can give a token.

let most = 8; // of a model with three fork layers, until the served one is known

/** Take the deepest tint for `streams`, and show what each doubling looks like in `legend`. */
export function showScale(legend, streams) {
  most = streams;
  const counts = Array.from({ length: Math.log2(most) + 1 }, (_, doublings) => 2 ** doublings);
  legend.replaceChildren(...counts.flatMap((count) => [" ", swatch(count)]));
}

/** Tint an element by its streams, each doubling a step: its --depth is from 0 to 1. Returns it. */
export function tint(element, streams) {
  const depth = streams > 1 ? Math.log2(streams) / Math.log2(most) : 0;
  element.style.setProperty("--depth", Math.min(1, depth).toFixed(2));
  return element;
}

function swatch(streams) {
  const shown = tint(document.createElement("b"), streams);
  shown.textContent = streams;
  return shown;
}
