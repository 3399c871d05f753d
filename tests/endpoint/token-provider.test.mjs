/**
 * What `token-provider.js` does, against a real endpoint; started by test_provider.py.
 *
 * The server does to each attempt what the header X-Trouble lists, and then what it always does.
 * With the folder of npm's modules, the module runs in what React Native has of a platform.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { loadInReactNative } from "./react-native.mjs";

const { ENDPOINT, MODULE, NPM_MODULES } = process.env;
const native = NPM_MODULES && (await loadInReactNative(NPM_MODULES, new URL(MODULE)));
const { createTokenProvider, TokenProviderError } = native ?? (await import(MODULE));
const { fetch: platformFetch, AbortController: PlatformAbortController } = native ?? globalThis;

let serial = 0;

/** Make a provider; `seen` tells what the server saw of it. */
function provider({ trouble = [], headers = {}, ...options } = {}) {
  const name = `test-${++serial}`;
  const own = { "X-User": "alice", "X-Test": name, "X-Trouble": JSON.stringify(trouble) };
  const tokenProvider = createTokenProvider({
    url: ENDPOINT,
    headers: async () => ({
      ...own,
      ...(typeof headers === "function" ? await headers() : headers),
    }),
    ...options,
  });
  const seen = async () => {
    const response = await fetch(new URL(`/seen/${name}`, ENDPOINT));
    return response.json();
  };
  return { tokenProvider, seen };
}

async function timed(call) {
  const started = performance.now();
  const outcome = await call().catch((error) => error);
  return { outcome, milliseconds: performance.now() - started };
}

function keys(requests) {
  return new Set(requests.map((request) => request.key));
}

test("gives the SDK what it wants", async () => {
  const { tokenProvider } = provider({ body: { capabilities: ["SEND_MESSAGE"] } });
  const token = await tokenProvider();
  assert.ok(token.token.length > 20);
  const minutes = (token.sessionExpirationTime - Date.now()) / 60_000;
  assert.ok(minutes > 59 && minutes <= 60.1);
  assert.deepEqual(token.tokenExpirationTime, token.sessionExpirationTime);
});

test("names each call by a key of its own", async () => {
  const { tokenProvider, seen } = provider();
  const tokens = [await tokenProvider(), await tokenProvider()];
  assert.notEqual(tokens[0].token, tokens[1].token);
  const requests = await seen();
  assert.equal(requests.length, 2);
  assert.equal(keys(requests).size, 2);
  for (const { key } of requests) assert.match(key, /^[0-9a-f-]{36,60}$/);
});

for (const random of ["getRandomValues", "Math"]) {
  test(`makes good keys where there is no randomUUID: ${random}`, async (context) => {
    const { getRandomValues } = globalThis.crypto;
    const insecure = { getRandomValues: getRandomValues.bind(globalThis.crypto) };
    const found = random === "Math" ? undefined : insecure;
    context.mock.getter(globalThis, "crypto", () => found);
    const { tokenProvider, seen } = provider();
    for (let call = 0; call < 3; call++) await tokenProvider();
    context.mock.restoreAll();
    const requests = await seen();
    assert.equal(keys(requests).size, 3);
    for (const { key } of requests) assert.match(key, /^(?!0{32})[0-9a-f]{32}-[0-9a-f]{11,}$/);
  });
}

test("tells how long it will wait", async () => {
  const { tokenProvider, seen } = provider({ timeout: 5_500 });
  await tokenProvider();
  assert.equal((await seen())[0].prefer, "wait=5");
});

test("sends an attempt again with the same key when the network or the server fails", async () => {
  const trouble = ["reset", 500, 502, 503, "cut", "reset-late"];
  const { tokenProvider, seen } = provider({ trouble });
  assert.ok((await tokenProvider()).token);
  const requests = await seen();
  assert.equal(requests.length, trouble.length + 1);
  assert.equal(keys(requests).size, 1);
});

for (const [status, after] of [[503, "1"], [429, "1"], [503, "date"], [503, "body"]]) {
  test(`waits as long as it is told to: ${status}, ${after}`, async () => {
    const { tokenProvider, seen } = provider({ trouble: [{ status, after }] });
    const { outcome, milliseconds } = await timed(tokenProvider);
    assert.ok(outcome.token);
    assert.ok(milliseconds >= 950 && milliseconds < 4_500, `${milliseconds} ms`);
    assert.equal(keys(await seen()).size, 1);
  });
}

test("does not wait for what comes too late, nor knock before it is time", async () => {
  const { tokenProvider, seen } = provider({ trouble: [{ status: 503, after: "60" }], timeout: 2_000 });
  for (let call = 0; call < 4; call++) {
    const { outcome, milliseconds } = await timed(tokenProvider);
    assert.ok(outcome instanceof TokenProviderError);
    assert.ok(milliseconds < 1_000, `${milliseconds} ms`);
  }
  assert.equal((await seen()).length, 1);
});

for (const status of [400, 403, 404, 413, 415, 422]) {
  test(`fails at once on ${status}`, async () => {
    const { tokenProvider, seen } = provider({ trouble: [status, status] });
    await assert.rejects(tokenProvider, { name: "TokenProviderError", status });
    assert.equal((await seen()).length, 1);
  });
}

test("tells what the endpoint said", async () => {
  const { tokenProvider } = provider({ body: { user: "bob" } });
  await assert.rejects(tokenProvider, (error) => {
    assert.equal(error.status, 403);
    assert.equal(error.problem.type, "urn:problem-type:aioivschat:forbidden");
    assert.match(error.problem.instance, /^urn:uuid:/);
    assert.equal(error.message, error.problem.title);
    return true;
  });
});

test("refreshes the application's credentials once", async () => {
  let credentials = "stale";
  let refreshes = 0;
  const { tokenProvider, seen } = provider({
    headers: () => ({ "X-Credentials": credentials }),
    refreshCredentials: async () => {
      refreshes++;
      credentials = "good";
    },
  });
  assert.ok((await tokenProvider()).token);
  assert.equal(refreshes, 1);
  assert.equal(keys(await seen()).size, 1);
});

test("gives up when the credentials stay bad, or nobody refreshes them", async () => {
  let refreshes = 0;
  const refreshCredentials = () => refreshes++;
  const headers = { "X-Credentials": "stale" };
  await assert.rejects(provider({ headers, refreshCredentials }).tokenProvider, { status: 401 });
  assert.equal(refreshes, 1);
  await assert.rejects(provider({ headers }).tokenProvider, { status: 401 });
});

test("times out, whatever the server does", async () => {
  for (const trouble of [["hang"], Array(1_000).fill(500), Array(1_000).fill("reset")]) {
    const { tokenProvider } = provider({ trouble, timeout: 700 });
    const { outcome, milliseconds } = await timed(tokenProvider);
    assert.ok(outcome instanceof TokenProviderError);
    assert.ok(milliseconds < 1_500, `${milliseconds} ms`);
  }
});

test("can be ended from outside", async () => {
  const controller = new PlatformAbortController();
  const { tokenProvider } = provider({ trouble: ["hang"], signal: controller.signal });
  setTimeout(() => controller.abort(), 100);
  const { outcome, milliseconds } = await timed(tokenProvider);
  assert.ok(outcome instanceof TokenProviderError);
  assert.ok(milliseconds < 1_000, `${milliseconds} ms`);
  assert.ok((await timed(tokenProvider)).outcome instanceof TokenProviderError);
});

test("is not ended by what was over before", async () => {
  const controller = new PlatformAbortController();
  const { tokenProvider, seen } = provider({ signal: controller.signal });
  await tokenProvider();
  controller.abort();
  await assert.rejects(tokenProvider, { name: "TokenProviderError" });
  assert.equal((await seen()).length, 1);
});

for (const [trouble, status, message] of [
  [{ status: 200, html: true }, 200, "no token: status 200 with text/html"],
  [{ status: 202, html: true }, 202, "no token: status 202 with text/html"],
  [{ status: 403, html: true }, 403, "status 403 with text/html"],
  [{ status: 405, html: true }, 405, "status 405 with text/html"],
  [204, 204, "no token: status 204 with no body"],
  [200, 200, "no token: status 200 with no body"],
  ["no token", 200, "no token: status 200 with application/json"],
  ["login", 200, /^no token: (redirected to http.+[/]login, )?status 200 with text[/]html$/],
]) {
  test(`tells at once what is no answer of the endpoint's: ${message}`, async () => {
    const { tokenProvider, seen } = provider({ trouble: [trouble, trouble] });
    await assert.rejects(tokenProvider, { name: "TokenProviderError", status, message });
    assert.equal((await seen()).length, 1);
  });
}

test("follows a redirect that keeps the request", async () => {
  const { tokenProvider, seen } = provider({ trouble: ["moved", "reset", "moved"] });
  assert.ok((await tokenProvider()).token);
  assert.equal(keys(await seen()).size, 1);
});

const thrown = new RangeError("of the application");
const fail = () => {
  throw thrown;
};
const reject = async () => fail();
for (const [name, option] of [
  ["body", fail],
  ["body", reject],
  ["body", { number: 1n }],
  ["headers", fail],
  ["headers", reject],
  ["headers", () => ({ "not a name": "" })],
  ["fetch", fail],
  ["fetch", reject],
]) {
  test(`tells at once what the application did: ${name}, ${option}`, async () => {
    const { tokenProvider, seen } = provider({ [name]: option });
    await assert.rejects(tokenProvider, (error) => {
      assert.ok(error instanceof TokenProviderError);
      assert.equal(error.message, `the application's \`${name}\` failed`);
      assert.ok(error.cause);
      if (option === fail || option === reject) assert.equal(error.cause, thrown);
      return true;
    });
    assert.equal((await seen()).length, 0);
  });
}

test("tells at once that the application could not refresh its credentials", async () => {
  for (const refreshCredentials of [fail, reject]) {
    const { tokenProvider } = provider({
      headers: { "X-Credentials": "stale" },
      refreshCredentials,
    });
    const message = "the application's `refreshCredentials` failed";
    await assert.rejects(tokenProvider, { status: 401, message, cause: thrown });
  }
});

test("waits for nothing of the application's without an end", async () => {
  const never = () => new Promise(() => {});
  for (const option of ["body", "headers", "refreshCredentials", "fetch"]) {
    const stale = option === "refreshCredentials" ? { "X-Credentials": "stale" } : {};
    const options = { headers: stale, timeout: 300, [option]: never };
    const { outcome, milliseconds } = await timed(provider(options).tokenProvider);
    assert.ok(outcome instanceof TokenProviderError, option);
    assert.ok(milliseconds < 1_500, `${milliseconds} ms`);
  }
});

test("sends nothing once it has ended", async () => {
  let give;
  const body = () => new Promise((resolve) => (give = resolve));
  const calls = [];
  const { tokenProvider } = provider({ body, timeout: 100, fetch: (...call) => calls.push(call) });
  await assert.rejects(tokenProvider, TokenProviderError);
  give({});
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(calls.length, 0);
});

test("cannot be asked for what has no address", async () => {
  const getToken = createTokenProvider({ url: "/chat/token" });
  await assert.rejects(getToken, { name: "TokenProviderError", message: /`url` must be absolute/ });
});

for (const hours of [-2, 2]) {
  test(`gives times by this machine's clock: ${hours} h ahead`, async (context) => {
    const dates = native?.Date ?? Date;
    const { now } = dates;
    context.mock.method(dates, "now", () => now() + hours * 3_600_000);
    const { tokenProvider } = provider({ trouble: [{ status: 503, after: "date" }] });
    const { outcome: token, milliseconds } = await timed(tokenProvider);
    const minutes = (token.sessionExpirationTime - dates.now()) / 60_000;
    context.mock.restoreAll();
    assert.ok(minutes > 59 && minutes <= 60.1, `${minutes} minutes`);
    assert.ok(milliseconds >= 950 && milliseconds < 4_500, `${milliseconds} ms`);
  });

  test(`keeps to its times when the clock is set: ${hours} h`, async (context) => {
    const dates = native?.Date ?? Date;
    const { now } = dates;
    const trouble = [{ status: 503, after: "1" }];
    const { tokenProvider, seen } = provider({ trouble, timeout: 900 });
    await assert.rejects(tokenProvider, { status: 503 });
    context.mock.method(dates, "now", () => now() + hours * 3_600_000);
    await assert.rejects(tokenProvider, TokenProviderError);
    assert.equal((await seen()).length, 1);
    await new Promise((resolve) => setTimeout(resolve, 2_100));
    assert.ok((await tokenProvider()).token);
    context.mock.restoreAll();
  });
}

test("asks for what it is told at each call", async () => {
  let user = "bob";
  const { tokenProvider } = provider({ body: async () => ({ user }) });
  await assert.rejects(tokenProvider, { status: 403 });
  user = "alice";
  assert.ok((await tokenProvider()).token);
});

test("uses the fetch that it is given", async () => {
  const calls = [];
  const { tokenProvider } = provider({
    fetch: (url, options) => {
      calls.push(options);
      return platformFetch(url, options);
    },
    credentials: "include",
  });
  await tokenProvider();
  assert.equal(calls.length, 1);
  assert.equal(calls[0].credentials, "include");
  assert.equal(calls[0].method, "POST");
});
