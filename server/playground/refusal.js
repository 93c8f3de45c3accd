// Errors of the server, as messages for the user.

const NO_KEY = "invalid_api_key";

/** An error of the server. `message` is a sentence to show; `param` names the wrong field, or is null. */
export class Refusal extends Error {
  /** From an error object in OpenAI's form. `retryAfter`: seconds after which to retry; null if that is useless. */
  constructor({ message, code = null, param = null }, retryAfter = null) {
    super(code === NO_KEY ? "This server answers only with an API key that it knows." : message);
    this.name = "Refusal";
    this.param = param;
    this.retryAfter = retryAfter;
    this.wantsKey = code === NO_KEY;
  }

  /** Return the error of a response; a proxy's may not be JSON. */
  static async of(response) {
    const body = await response.json().catch(() => null);
    const error = body?.error ?? { message: `The server answered ${response.status} ${response.statusText}.` };
    const seconds = Number(response.headers.get("retry-after") ?? NaN);
    const useless = Number.isNaN(seconds) || response.headers.get("x-should-retry") === "false";
    return new Refusal(error, useless ? null : seconds);
  }
}
