// The tint of a token by its streams: none for one stream, full for the most that the served model can have.

let most = 8; // with three fork layers, until the served model is known

/** Use the deepest tint for `streams`, and show the tint of each doubling in `legend`. */
export function showScale(legend, streams) {
  most = streams;
  const counts = Array.from({ length: Math.log2(most) + 1 }, (_, doublings) => 2 ** doublings);
  legend.replaceChildren(...counts.flatMap((count) => [" ", swatch(count)]));
}

/** Tint an element by its streams, each doubling one step: --depth is from 0 to 1. Return the element. */
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
