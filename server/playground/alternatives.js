// The alternatives to a token, and the entropy before it, computed from the likeliest tokens alone.

/**
 * Return for the log-probabilities of the likeliest tokens, by text: `ranked`, [text, probability] with the likeliest
 * first; `rest`, the probability of all others; `bits`, the entropy in bits if the rest were one token. The entropy of the
 * whole distribution is at least this.
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
