// The tokens of one answer, put together from the chunks of its stream.

/**
 * Prompt and completion, token by token. A token has `id`, `printed` (its text, or its bytes where they are part of a
 * character), `offset` in characters, `streams` after the last fork layer, `logprob` and `top`, the log-probabilities of
 * the likeliest tokens in its place by their printed text; the last two are null where no token stands before it.
 */
export class Transcript {
  tokens = [];
  promptTokens = 0;
  #characters = []; // code points: the server counts offsets in these

  /** Add what a chunk's choice tells, which was asked with echo, log-probabilities, token ids and fork counts. */
  add({ text, logprobs, token_ids: ids, prompt_token_ids: promptIds = [], fork_counts: counts }) {
    this.promptTokens += promptIds.length;
    for (const character of text) this.#characters.push(character);
    [...promptIds, ...ids].forEach((id, place) => {
      this.tokens.push({
        id,
        printed: logprobs.tokens[place],
        offset: logprobs.text_offset[place],
        streams: counts[place],
        logprob: logprobs.token_logprobs[place],
        top: logprobs.top_logprobs[place],
      });
    });
  }

  /** The text that token `place` begins: "" for one that goes on with the character of the token before. */
  piece(place) {
    return this.#characters.slice(this.tokens[place].offset, this.tokens[place + 1]?.offset).join("");
  }

  /** Tokens of the completion. */
  get answerTokens() {
    return this.tokens.length - this.promptTokens;
  }

  /** Mean streams per token; NaN without tokens. */
  get meanStreams() {
    return mean(this.tokens.map((token) => token.streams));
  }

  /** How much the model was surprised by the prompt, in bits a token; the first token, which nothing predicts, apart. */
  get promptBits() {
    return mean(this.tokens.slice(1, this.promptTokens).map((token) => -token.logprob / Math.LN2));
  }
}

/** How many tokens of the completion two transcripts have in common before they part. */
export function agreement(one, other) {
  const [ones, others] = [one, other].map(({ tokens, promptTokens }) => tokens.slice(promptTokens));
  const parts = ones.findIndex((token, place) => token.id !== others[place]?.id);
  return parts === -1 ? ones.length : parts;
}

function mean(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}
