// A dial for fork_ratio: octaves of four equal steps, from one stream per token to the most that the model can have.

const STEPS = 4; // per octave

export class Dial {
  #input;
  #output;
  #ticks;
  #turned = false;

  /** Uses a range input, the output beside it, and the ticks below. */
  constructor(input) {
    this.#input = input;
    this.#output = input.parentElement.querySelector("output");
    this.#ticks = input.parentElement.querySelector(".ticks");
    input.addEventListener("input", () => {
      this.#turned = true;
      this.#showRatio();
    });
    this.#showRatio();
  }

  /** Set the maximum to 2^`forks`, and the value to the ratio nearest to `ratio` unless the user has set one. */
  reach(forks, ratio) {
    this.#input.max = STEPS * forks;
    this.#ticks.replaceChildren(...Array.from({ length: forks + 1 }, (_, doublings) => tick(2 ** doublings)));
    if (!this.#turned) this.#input.value = step(Math.min(ratio, 2 ** forks));
    this.#showRatio();
  }

  /** The dial's ratio. */
  get ratio() {
    const steps = this.#input.valueAsNumber;
    return 2 ** Math.floor(steps / STEPS) * (1 + (steps % STEPS) / STEPS);
  }

  /** Call `turned` when the user has changed the ratio. */
  onTurn(turned) {
    this.#input.addEventListener("change", turned);
  }

  #showRatio() {
    this.#output.textContent = this.ratio;
    this.#input.ariaValueText = `${this.ratio} per token`;
  }
}

// The position of the ratio nearest to `ratio`.
function step(ratio) {
  const octave = Math.floor(Math.log2(ratio));
  return STEPS * octave + Math.round(STEPS * (ratio / 2 ** octave - 1));
}

function tick(ratio) {
  const mark = document.createElement("span");
  mark.textContent = ratio;
  return mark;
}
