// What could have stood in a token's place, and how undecided the model was: from the likeliest tokens alone.

/**
 * Of the log-probabilities of the likeliest tokens by their text: `ranked`, [text, probability] with the likeliest
 * first; `rest`, the probability of all the others; `bits`, the entropy in bits of the ranked and the rest taken as one.
 * Telling the rest apart can only add to it: the entropy of the whole distribution is at least this.
 */
export function alternatives(top) {
  const ranked = Object.entries(top).map(([text, logprob]) => [text, Math.exp(logprob)]);
  ranked.sort(([, one], [, other]) => other - one);
  const rest = Math.max(0, 1 - ranked.reduce((sum, [, probability]) => sum + probability, 0));
  const bits = [...ranked.map(([, probability]) => probability), rest]
    .filter((probability) => probability > 0)
    .reduce((sum, probability) => sum - probability * Math.log2(probability), 0);
  return { ranked, rest, bits };
}
