// The form's settings, its API key, and the field that a refusal is about.

const KEY = "api-key";
const field = (id) => document.getElementById(id);

/** Return the form's settings as fields of a completion request. */
export function settings() {
  const numbers = ["max_tokens", "temperature", "seed"].map((name) => [name, field(name).valueAsNumber]);
  return { prompt: field("prompt").value, ...Object.fromEntries(numbers) };
}

/** Return the API key, "" without one. It is kept when the tab is reloaded, and not longer. */
export function key() {
  return field("key").value;
}

/** Restore the key of this tab, and keep the one that is typed. `typed` is called when it changes. */
export function keepKey(typed) {
  field("key").value = sessionStorage.getItem(KEY) ?? "";
  field("key-field").hidden = !key();
  field("key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, key());
    typed();
  });
}

/** Mark the field that a refusal is about, if any, and show the key's field if a key is needed. */
export function mark({ param, wantsKey }) {
  if (wantsKey) field("key-field").hidden = false;
  const meant = wantsKey ? "key" : { fork_ratio: "ratio-1" }[param] ?? param;
  field(meant)?.setAttribute("aria-invalid", "true");
  field(meant)?.setAttribute("aria-errormessage", "status");
}

/** Remove the marks of `mark`. */
export function unmark() {
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
}
