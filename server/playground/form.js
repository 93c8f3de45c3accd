// What the form asks for, the API key apart from it, and the field that a refusal is about.

const KEY = "api-key";
const field = (id) => document.getElementById(id);

/** The form's settings as fields of a completion request. */
export function settings() {
  const numbers = ["max_tokens", "temperature", "seed"].map((name) => [name, field(name).valueAsNumber]);
  return { prompt: field("prompt").value, ...Object.fromEntries(numbers) };
}

/** The API key, which outlives a reload of this tab and nothing else; "" without one. */
export function key() {
  return field("key").value;
}

/** Bring back the key that this tab had, and keep the one that is typed; `typed` is called when it has changed. */
export function keepKey(typed) {
  field("key").value = sessionStorage.getItem(KEY) ?? "";
  field("key-field").hidden = !key();
  field("key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, key());
    typed();
  });
}

/** Show which field a refusal is about, if any, and that a key is wanted, if one is. */
export function mark({ param, wantsKey }) {
  if (wantsKey) field("key-field").hidden = false;
  const meant = wantsKey ? "key" : { fork_ratio: "ratio-1" }[param] ?? param;
  field(meant)?.setAttribute("aria-invalid", "true");
  field(meant)?.setAttribute("aria-errormessage", "status");
}

/** Forget what `mark` showed. */
export function unmark() {
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
}
