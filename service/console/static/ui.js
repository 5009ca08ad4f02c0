// Components that several views share.

import { html, useCallback, useEffect, useRef, useState } from "./vendor/preact.js";
import { VERDICTS, VERDICT_TONES } from "./format.js";

/** Load something when `keys` change, and again on `reload()`: {data, error, denied, loading, reload, poll}. `denied`: the key may not.
 * `reload` discards a load under way, whose answer may be older than what was just done; `poll` lets it finish, and is for `useEvery`. */
export function useLoaded(load, keys = []) {
  const [state, setState] = useState({ data: null, error: null, loading: true });
  const turn = useRef(0);
  const pending = useRef(0); // the turn of the load under way; 0 when there is none
  const reload = useCallback(async () => {
    const mine = pending.current = ++turn.current;
    setState((old) => ({ ...old, loading: true }));
    try {
      const data = await load();
      if (turn.current === mine) setState({ data, error: null, loading: false });
    } catch (error) {
      if (turn.current === mine) setState((old) => ({ data: old.data, error, loading: false }));
    } finally {
      if (pending.current === mine) pending.current = 0;
    }
  }, keys);
  const poll = useCallback(() => (pending.current ? undefined : reload()), [reload]);
  useEffect(() => { setState({ data: null, error: null, loading: true }); reload(); return () => { turn.current++; }; }, [reload]);
  return { ...state, denied: state.error?.status === 403, reload, poll };
}

/** Call something every `seconds` while `active` and while the tab is seen; a tick is left out while the last call is still under way. */
export function useEvery(seconds, callback, active = true) {
  const latest = useRef(callback);
  latest.current = callback;
  useEffect(() => {
    if (!active) return undefined;
    let busy = false;
    const tick = async () => {
      if (busy || document.hidden) return;
      busy = true;
      try { await latest.current(); } finally { busy = false; }
    };
    const timer = setInterval(tick, seconds * 1000);
    return () => clearInterval(timer);
  }, [seconds, active]);
}

const SCOPES = { infer: "ask models", adapters: "manage adapters", knowledge: "manage stores", train: "train and evaluate", admin: "do everything" };

/** A message with a capital, as it stands alone here. */
export const sentence = (text) => (/^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text);

/** A text of the API's: what stands in backticks is code. */
export const Words = ({ text }) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

/** An error of the API in words, with what to do about it. */
export function Failure({ error, retry }) {
  const scope = /scope `([a-z]+)`/.exec(error.message)?.[1];
  const title = error.title ? error.title : error.status === 403 ? "This key may not see this" : error.status === 401 ? "This key is not accepted" : error.status === 0 ? "No connection" : "That did not work";
  return html`<div class="notice bad" role="alert">
    <strong>${title}</strong>
    <p><${Words} text=${sentence(error.message)} /></p>
    ${scope && html`<p>The scope <code>${scope}</code> lets a key ${SCOPES[scope] || "do this"}. Whoever has an admin key can make one: <code>hatrack keys create NAME --scope ${scope}</code>.</p>`}
    ${error.code && html`<p class="dim">code <code>${error.code}</code>${error.param && html`, field <code>${error.param}</code>`}</p>`}
    ${retry && html`<button onClick=${retry}>Try again</button>`}
  </div>`;
}

export const Busy = ({ children = "Loading …" }) => html`<p class="busy" role="status"><span class="spinner" aria-hidden="true"></span>${children}</p>`;

/** What a view shows while it has nothing, or when it failed; else what `children` makes of the data. */
export function Loaded({ of, children }) {
  if (of.data === null) return of.error ? html`<${Failure} error=${of.error} retry=${of.reload} />` : html`<${Busy} />`;
  return html`${of.error && html`<${Failure} error=${of.error} retry=${of.reload} />`}${children(of.data)}`;
}

/** What to do next, where there is nothing yet. */
export const Empty = ({ title, children }) => html`<div class="empty"><h3>${title}</h3>${children}</div>`;

export const Badge = ({ tone = "", title, children }) => html`<span class="badge ${tone}" title=${title}>${children}</span>`;

export function Verdict({ verdict, revalidation }) {
  if (!verdict) return html`<span class="dim">not judged</span>`;
  const due = revalidation && revalidation.state !== "fresh";
  return html`<${Badge} tone=${VERDICT_TONES[verdict.verdict]} title=${verdict.sentence}>${VERDICTS[verdict.verdict]}<//>
    ${due && html` <${Badge} tone="warn" title=${`Since it was judged, this changed: ${revalidation.reasons.join(", ")}`}>
      revalidation ${revalidation.state}<//>`}`;
}

/** `name`: what a screen reader calls the bar, where the label is more than a text. */
export function Progress({ done, total, label, name = label }) {
  const known = total > 0;
  return html`<div class="progress"><span>${label}</span>
    <progress max=${known ? total : undefined} value=${known ? done : undefined} aria-label=${name}></progress></div>`;
}

/** A modal dialog. Its first field takes the focus, or else its first button that does nothing yet; Escape closes it. */
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  useEffect(() => {
    element.current.showModal();
    [...element.current.querySelectorAll(":is(input, select, textarea, footer button)")].find((each) => each.offsetParent && !each.disabled && each.tabIndex >= 0)?.focus();
  }, []);
  // a file chooser that is closed without a choice sends a `cancel`, too, which bubbles up to here
  const cancelled = (event) => { if (event.target === element.current) { event.preventDefault(); onClose(); } };
  return html`<dialog ref=${element} aria-label=${title} onCancel=${cancelled}>
    <header><h2>${title}</h2><button class="quiet" aria-label="Close" onClick=${onClose}>✕</button></header>
    ${children}
  </dialog>`;
}

/** A dialog that does something after it was confirmed: it shows progress, and the refusal in words. */
export function Confirm({ title, action, danger, disabled, run, onClose, onDone, children }) {
  const [state, setState] = useState({ busy: false, error: null });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      onDone(await run());
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${go}>
      ${children}
      ${state.error && html`<${Failure} error=${state.error} />`}
      <footer>
        <button type="button" onClick=${onClose} disabled=${state.busy}>Cancel</button>
        <button class=${danger ? "danger" : "primary"} disabled=${state.busy || disabled}>${state.busy ? "Working …" : action}</button>
      </footer>
    </form>
  <//>`;
}

/** A labelled field of a form. */
export const Field = ({ label, hint, wide, children }) => html`<label class=${wide ? "field wide" : "field"}>
  <span>${label}</span>${children}${hint && html`<small>${hint}</small>`}</label>`;

/** All files below what was dropped or chosen, as [{path, file}]. */
async function filesOf(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      found.push({ path: entry.fullPath, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!batch.length) return;
      for (const each of batch) await walk(each);
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

/** A place to drop files or a folder on; a button does the same for those who use no mouse. */
export function DropZone({ label, button, folder, accept, multiple, onFiles }) {
  const [over, setOver] = useState(false);
  const input = useRef(null);
  const dropped = async (event) => {
    event.preventDefault();
    setOver(false);
    onFiles(await filesOf(event.dataTransfer.items));
  };
  const chosen = (event) => {
    onFiles([...event.target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
    event.target.value = "";
  };
  return html`<div class=${over ? "drop over" : "drop"} onDragOver=${(event) => { event.preventDefault(); setOver(true); }}
      onDragLeave=${() => setOver(false)} onDrop=${dropped}>
    <p>${label}</p>
    <button type="button" onClick=${() => input.current.click()}>${button}</button>
    <input ref=${input} type="file" class="hidden" tabindex="-1" aria-hidden="true" webkitdirectory=${folder} accept=${accept}
      multiple=${multiple || folder} onChange=${chosen} />
  </div>`;
}

/** Hand a text to the browser as a file. */
export function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
