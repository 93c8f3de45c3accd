// The tokens of one answer, collected from the chunks of its stream.

/**
 * Prompt and completion, token by token. A token has `id`, `printed` (its text, or its bytes if they are part of a
 * character), `offset` in characters, `streams` after the last fork layer, `logprob`, and `top`, the log-probabilities of
 * the likeliest tokens at its position by printed text. The last two are null for the first token. `scores` are P of its
 * streams after each fork layer, if the request has them.
 */
export class Transcript {
  tokens = [];
  promptTokens = 0;
  #characters = []; // code points: the server counts offsets in these

  /** Add a chunk's choice. Its request must have echo, log-probabilities, token ids and fork counts. */
  add({ text, logprobs, token_ids: ids, prompt_token_ids: promptIds = [], fork_counts: counts, fork_scores: scores }) {
    this.promptTokens += promptIds.length;
    for (const character of text) this.#characters.push(character);
    [...promptIds, ...ids].forEach((id, index) => {
      this.tokens.push({
        id,
        printed: logprobs.tokens[index],
        offset: logprobs.text_offset[index],
        streams: counts[index],
        scores: scores?.[index],
        logprob: logprobs.token_logprobs[index],
        top: logprobs.top_logprobs[index],
      });
    });
  }

  /** Return the text of token `index`: "" if it only continues the character of the token before. */
  piece(index) {
    return this.#characters.slice(this.tokens[index].offset, this.tokens[index + 1]?.offset).join("");
  }

  /** Number of tokens of the completion. */
  get answerTokens() {
    return this.tokens.length - this.promptTokens;
  }

  /** Mean streams per token; NaN without tokens. */
  get meanStreams() {
    return mean(this.tokens.map((token) => token.streams));
  }

  /** Mean surprise of the prompt's tokens in bits, without the first, which has no prediction. */
  get promptBits() {
    return mean(this.tokens.slice(1, this.promptTokens).map((token) => -token.logprob / Math.LN2));
  }
}

/** Return how many tokens of the completion are the same in two transcripts until they differ. */
export function agreement(one, other) {
  const [ones, others] = [one, other].map(({ tokens, promptTokens }) => tokens.slice(promptTokens));
  const parts = ones.findIndex((token, index) => token.id !== others[index]?.id);
  return parts === -1 ? ones.length : parts;
}

function mean(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}
