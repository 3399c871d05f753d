/**
 * Sets the clock of a page.
 *
 * Its time may run faster, so that a session of minutes is over in seconds: the emulator's minutes
 * are made shorter by the same factor. The SDK reads the time from `Date.now` and waits by
 * `setTimeout`, so both are sped up; what the endpoint says of the time is translated on its way
 * in, by a `fetch` for the token provider.
 */

const REPLY_TIMES = ["tokenExpirationTime", "sessionExpirationTime", "now"];

/**
 * @param {number} speed seconds of the page in a real second
 * @param {number} ahead seconds by which the page's clock is ahead of the time
 * @returns {typeof globalThis.fetch}
 */
export function setClock(speed, ahead) {
  const started = Date.now();
  const { now } = Date;
  const realSetTimeout = globalThis.setTimeout;
  const sped = (time) => started + (time - started) * speed;

  Date.now = () => sped(now()) + ahead * 1000;
  globalThis.setTimeout = (callback, milliseconds = 0, ...values) =>
    realSetTimeout(callback, milliseconds / speed, ...values);

  return async (...request) => {
    const response = await fetch(...request);
    if (!response.ok) return response;
    const reply = await response.json();
    for (const name of REPLY_TIMES) {
      reply[name] = new Date(sped(Date.parse(reply[name]))).toISOString();
    }
    return Response.json(reply);
  };
}
