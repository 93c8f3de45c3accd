// A dial for fork_ratio: octaves of four equal steps, from one stream per token to as many as the model can have.

const STEPS = 4; // an octave

export class Dial {
  #input;
  #output;
  #ticks;
  #turned = false;

  /** Of a range input, the output beside it, and the ticks below. */
  constructor(input) {
    this.#input = input;
    this.#output = input.parentElement.querySelector("output");
    this.#ticks = input.parentElement.querySelector(".ticks");
    input.addEventListener("input", () => {
      this.#turned = true;
      this.#tell();
    });
    this.#tell();
  }

  /** Reach up to 2^`forks` streams per token; stand at the ratio nearest to `ratio`, unless it has been turned. */
  reach(forks, ratio) {
    this.#input.max = STEPS * forks;
    this.#ticks.replaceChildren(...Array.from({ length: forks + 1 }, (_, doublings) => tick(2 ** doublings)));
    if (!this.#turned) this.#input.value = step(Math.min(ratio, 2 ** forks));
    this.#tell();
  }

  /** The ratio that it stands at. */
  get ratio() {
    const steps = this.#input.valueAsNumber;
    return 2 ** Math.floor(steps / STEPS) * (1 + (steps % STEPS) / STEPS);
  }

  /** Call `turned` when it has been turned and let go. */
  onTurn(turned) {
    this.#input.addEventListener("change", turned);
  }

  #tell() {
    this.#output.textContent = this.ratio;
    this.#input.ariaValueText = `${this.ratio} per token`;
  }
}

// Of the ratio nearest to `ratio`.
function step(ratio) {
  const octave = Math.floor(Math.log2(ratio));
  return STEPS * octave + Math.round(STEPS * (ratio / 2 ** octave - 1));
}

function tick(ratio) {
  const mark = document.createElement("span");
  mark.textContent = ratio;
  return mark;
}
