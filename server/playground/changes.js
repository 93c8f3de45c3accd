// The panel that changes the forks of single tokens: forbids or forces them in every fork layer.

export class Changes {
  #panel;
  #selects = new Map(); // by position
  #position = null;
  #layers = [];

  /** In the fieldset `panel`. `onChange` is called when the user has changed the forks of a token. */
  constructor(panel, onChange) {
    this.#panel = panel;
    panel.addEventListener("change", ({ target }) => {
      if (target.value === "by_rule") this.#selects.delete(this.#position);
      else this.#selects.set(this.#position, target.value);
      this.#mark();
      onChange();
    });
    panel.querySelector("button").addEventListener("click", () => {
      this.clear();
      onChange();
    });
  }

  /** The fork layers of the served model. */
  set layers(layers) {
    this.#layers = layers;
  }

  /** Show the panel for the token at `position`, whose visible text is `name`. */
  choose(position, name) {
    this.#position = position;
    this.#panel.querySelector("legend b").textContent = name;
    const select = this.#selects.get(position) ?? "by_rule";
    for (const radio of this.#panel.querySelectorAll("input")) radio.checked = radio.value === select;
    this.#panel.hidden = false;
    this.#panel.querySelector("input:checked").focus();
    this.#panel.scrollIntoView({ block: "nearest" });
  }

  /** Forget all changes and hide the panel. */
  clear() {
    this.#selects.clear();
    this.#panel.hidden = true;
    this.#mark();
  }

  /** The positions of the changed tokens. */
  get positions() {
    return [...this.#selects.keys()];
  }

  /** The changes as `fork_bias` of a request. */
  get bias() {
    const entries = [...this.#selects];
    return entries.flatMap(([position, select]) => this.#layers.map((layer) => ({ layer, position, select })));
  }

  #mark() {
    this.#panel.classList.toggle("active", this.#selects.size > 0);
  }
}
