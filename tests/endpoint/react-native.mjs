/**
 * What React Native gives a module, in Node: what is not here, the module must not need.
 *
 * Its AbortController and its fetch are the packages that React Native takes them from
 * (Libraries/Core/setUpXHR.js). The XMLHttpRequest below that fetch is the phone's own, and here
 * made of Node's fetch. Hermes has no `crypto`, no `DOMException`, and not all of the language.
 */

import { readFile } from "node:fs/promises";
import { createContext, runInContext } from "node:vm";

const NOT_IN_HERMES = [
  "Array.fromAsync",
  "Atomics",
  "FinalizationRegistry",
  "Iterator",
  "Map.groupBy",
  "Object.groupBy",
  "Promise.try",
  "Promise.withResolvers",
  "SharedArrayBuffer",
  "WebAssembly",
];

/**
 * @param {URL} modules the folder `node_modules`
 * @param {URL} module what to load
 * @returns {Promise<object>} what the module exports, and what it finds: `fetch` and the like
 */
export async function loadInReactNative(modules, module) {
  const native = createContext({
    clearTimeout,
    console,
    performance: { now: () => performance.now() },
    setTimeout,
  });
  for (const name of NOT_IN_HERMES) runInContext(`delete ${name}`, native);
  runInContext("var global = globalThis, window = globalThis, self = globalThis;", native);
  native.XMLHttpRequest = class extends Xhr {
    toNative(bytes) {
      return runInContext("(length) => new Uint8Array(length)", native)(bytes.length);
    }
  };

  const load = async (path) => runInContext(await readFile(new URL(path, modules), "utf8"), native);
  await load("whatwg-fetch/dist/fetch.umd.js");
  await load("abort-controller/dist/abort-controller.umd.js");
  runInContext("var { AbortController, AbortSignal } = AbortControllerShim;", native);

  const source = (await readFile(module, "utf8")).replace(/^export /gm, "");
  const exported = "({ createTokenProvider, TokenProviderError, fetch, AbortController, Date })";
  return runInContext(`"use strict"; ${source}; ${exported}`, native);
}

/** As much of XMLHttpRequest as whatwg-fetch needs. */
class Xhr {
  #end = new AbortController();
  #headers = {};
  readyState = 0;
  responseType = "";

  open(method, url) {
    Object.assign(this, { method, url });
  }

  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }

  getAllResponseHeaders() {
    return [...this.headers].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }

  abort() {
    this.#end.abort();
  }

  send(body) {
    const { method, url } = this;
    const request = { method, body, headers: this.#headers, signal: this.#end.signal };
    this.#load(fetch(url, request)).then(
      () => this.#done(this.onload),
      () => this.#done(this.#end.signal.aborted ? this.onabort : this.onerror),
    );
  }

  async #load(answer) {
    const { status, statusText, headers, url } = await answer;
    const bytes = new Uint8Array(await (await answer).arrayBuffer());
    const own = this.toNative(bytes);
    own.set(bytes);
    Object.assign(this, { status, statusText, headers, responseURL: url, response: own.buffer });
  }

  #done(tell) {
    this.readyState = 4;
    this.onreadystatechange?.();
    tell.call(this);
  }
}
