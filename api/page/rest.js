// The REST interface: requests with the key if one is needed, problems as errors, and event streams.

import { ask, el, newId } from "./dom.js";

const KEY = "factor-search-key";
const LONGEST_PAUSE_MS = 10_000;

export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail ?? `the server answered with ${status}`);
    this.status = status;
    this.errors = document?.errors ?? [];
  }
}

// Whether the same may succeed later on, as when the server is started again.
export function isPassing(error) {
  return !(error instanceof Problem) || error.status >= 500 || [408, 429].includes(error.status);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return { Accept: "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}), ...more };
}

let asking = null, isRefused = false;
// Asks for a key once, for all requests that need one; false if there is none, and then not again.
function askForKey(detail) {
  if (isRefused) return Promise.resolve(false);
  asking ??= (async () => {
    const input = el("input", { type: "password", id: newId("key"), autocomplete: "off", required: true });
    const answer = await ask("This server needs a key", [{ label: "Key", input }], {
      action: "Use it",
      explained: `${detail}. The browser keeps it until this tab is closed.`,
    });
    if (answer) sessionStorage.setItem(KEY, answer[0].trim());
    isRefused = answer === null;
    return !isRefused;
  })().finally(() => {
    asking = null;
  });
  return asking;
}

export async function request(path, { method = "GET", body, more, signal } = {}) {
  const used = sessionStorage.getItem(KEY);
  const content = body === undefined ? {} : { "Content-Type": "application/json" };
  const options = { method, signal, cache: "no-store", credentials: "same-origin", headers: headers({ ...content, ...more }) };
  let response;
  try {
    response = await fetch(path, { ...options, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw signal?.aborted ? error : new Error("the server does not answer");
  }
  if (response.ok) return response;
  let document = null;
  try {
    document = await response.json();
  } catch {
    // a proxy's answer, perhaps
  }
  const newer = sessionStorage.getItem(KEY) !== used;
  if (response.status === 401 && (newer || (await askForKey(document?.detail ?? "It answered 401")))) {
    return request(path, { method, body, more, signal });
  }
  throw new Problem(response.status, document);
}

// Any text that nobody else sends, also where the page is not served securely.
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

export async function post(path, body) {
  return (await request(path, { method: "POST", body })).json();
}

// Events after a number, until there will be none; a broken connection is made again from the last one that was seen.
export async function* events(path, after, signal, onConnection = () => {}) {
  let pause = 500;
  while (!signal.aborted) {
    try {
      const response = await request(path, { more: { Accept: "text/event-stream", "Last-Event-ID": String(after) }, signal });
      if (response.status === 204) return;
      onConnection(true);
      for await (const event of read(response.body)) {
        after = event.number;
        pause = 500;
        yield event;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!isPassing(error)) throw error;
    }
    onConnection(false);
    await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

async function* read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").filter((line) => line.startsWith("data:"));
      text = text.slice(end + 2);
      if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
    }
  }
}

// Saves what a path answers with as a file of this name.
export async function save(path, name) {
  const response = await request(path);
  const address = URL.createObjectURL(await response.blob());
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
