/**
 * What `token-provider.js` does, against a real endpoint; started by test_endpoint_provider.py.
 *
 * The server does to each attempt what the header X-Trouble lists, and then what it always does.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

const { ENDPOINT, MODULE } = process.env;
const { createTokenProvider, TokenProviderError } = await import(MODULE);

let serial = 0;

/** Make a provider; `seen` tells what the server saw of it. */
function provider({ trouble = [], headers = {}, ...options } = {}) {
  const name = `test-${++serial}`;
  const own = { "X-User": "alice", "X-Test": name, "X-Trouble": JSON.stringify(trouble) };
  const tokenProvider = createTokenProvider({
    url: ENDPOINT,
    headers: () => ({ ...own, ...(typeof headers === "function" ? headers() : headers) }),
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
  for (const { key } of requests) assert.match(key, /^[0-9a-f-]{36}$/);
});

test("makes good keys where there is no randomUUID", async (context) => {
  const { getRandomValues } = globalThis.crypto;
  const insecure = { getRandomValues: getRandomValues.bind(globalThis.crypto) };
  context.mock.getter(globalThis, "crypto", () => insecure);
  const { tokenProvider, seen } = provider();
  await tokenProvider();
  await tokenProvider();
  context.mock.restoreAll();
  const requests = await seen();
  assert.equal(keys(requests).size, 2);
  for (const { key } of requests) {
    assert.match(key, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  }
});

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
  const controller = new AbortController();
  const { tokenProvider } = provider({ trouble: ["hang"], signal: controller.signal });
  setTimeout(() => controller.abort(), 100);
  const { outcome, milliseconds } = await timed(tokenProvider);
  assert.ok(outcome instanceof TokenProviderError);
  assert.ok(milliseconds < 1_000, `${milliseconds} ms`);
  assert.ok((await timed(tokenProvider)).outcome instanceof TokenProviderError);
});

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
      return fetch(url, options);
    },
    credentials: "include",
  });
  await tokenProvider();
  assert.equal(calls.length, 1);
  assert.equal(calls[0].credentials, "include");
  assert.equal(calls[0].method, "POST");
});
