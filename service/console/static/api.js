// The public API: one function a way of asking. The key stays in the tab's sessionStorage and goes nowhere else.

const KEY = "hatrack.key";
const PROJECT = "hatrack.project";

/** An answer that is no success: `status`, `code` and `message` as the API gives them. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

/** What the console itself refuses, or has to say: Failure shows it under `title`. */
export class Notice extends Error {
  constructor(title, message) {
    super(message);
    this.title = title;
  }
}

export const session = {
  get key() { return sessionStorage.getItem(KEY); },
  get project() { return sessionStorage.getItem(PROJECT) || ""; },
  open(key, project) {
    sessionStorage.setItem(KEY, key);
    sessionStorage.setItem(PROJECT, project);
  },
  close() {
    sessionStorage.clear(); // with what the playground remembers
  },
};

/** The project that a view of the adapters shows to an admin's key; every other key acts in its own. */
export const shownProject = () => session.project || "default";

let onSignedOut = () => {};

/** Register what is called when the gateway no longer accepts the key. */
export function whenSignedOut(callback) {
  onSignedOut = callback;
}

function headers(more = {}) {
  const all = { ...more };
  if (session.key) all.authorization = `Bearer ${session.key}`;
  if (session.project) all["openai-project"] = session.project;
  return all;
}

function problem(status, text) {
  try {
    const { error } = JSON.parse(text);
    if (error && error.message) return new ApiError(status, error);
  } catch { /* not JSON: something between the browser and the gateway has answered */ }
  return new ApiError(status, { message: `The gateway answered ${status} without saying why.`, code: null });
}

/** Send a request; the response, once its status is a success. Raises ApiError. */
export async function send(method, path, { json, body, signal, more } = {}) {
  const asked = json === undefined ? headers(more) : headers({ "content-type": "application/json", ...more });
  const content = json === undefined ? body : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, headers: asked, body: content, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The gateway cannot be reached. Is it running, and is the network up?", code: "unreachable" });
  }
  if (response.ok) return response;
  const refusal = problem(response.status, await response.text());
  if (response.status === 401 && session.key) onSignedOut(refusal);
  throw refusal;
}

async function parsed(response) {
  return response.status === 204 ? null : response.json();
}

export const get = async (path, options) => parsed(await send("GET", path, options));
export const post = async (path, json = {}, options) => parsed(await send("POST", path, { json, ...options }));
export const put = async (path, json = {}) => parsed(await send("PUT", path, { json }));
export const remove = async (path) => parsed(await send("DELETE", path));

/** A path with a query, of those values that are set. */
export function url(path, query = {}) {
  const set = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return set.length ? `${path}?${new URLSearchParams(set)}` : path;
}

/** Everything of a list, page by page, up to `max` objects; `more` says whether there are others. */
export async function list(path, query = {}, max = 300) {
  const data = [];
  let after;
  for (;;) {
    const page = await get(url(path, { limit: 100, ...query, after }));
    data.push(...page.data);
    after = page.last_id ?? page.data.at(-1)?.id;
    if (!page.has_more || data.length >= max || after === undefined) return { data, more: page.has_more };
  }
}

/** POST a form and report the progress of its upload. Raises ApiError. */
export function upload(path, fields, onProgress = () => {}) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onerror = () => reject(new ApiError(0, { message: "The connection broke during the upload. Nothing was stored; try again." }));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(problem(request.status, request.responseText));
    };
    request.send(form);
  });
}

/** The events of a stream as they come: each one's parsed `data`. Ends at `[DONE]`, or when the connection ends. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const frames = buffer.split(/\r?\n\r?\n/);
      buffer = frames.pop();
      for (const frame of frames) {
        const data = frame.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
