// What the server refuses or cannot do, in words for the person before the page.

const NO_KEY = "invalid_api_key";

/** A refusal or failure. `message` is a sentence to show; `param` names the field that it is about, or is null. */
export class Refusal extends Error {
  /** Of an error object in OpenAI's form. `retryAfter`: seconds after which to ask again; null where it is useless. */
  constructor({ message, code = null, param = null }, retryAfter = null) {
    super(code === NO_KEY ? "This server answers only with an API key that it knows." : message);
    this.name = "Refusal";
    this.param = param;
    this.retryAfter = retryAfter;
    this.wantsKey = code === NO_KEY;
  }

  /** Of a response that is not a success, whoever wrote it: a proxy's may not be JSON. */
  static async of(response) {
    const body = await response.json().catch(() => null);
    const error = body?.error ?? { message: `The server answered ${response.status} ${response.statusText}.` };
    const seconds = Number(response.headers.get("retry-after") ?? NaN);
    const useless = Number.isNaN(seconds) || response.headers.get("x-should-retry") === "false";
    return new Refusal(error, useless ? null : seconds);
  }
}
