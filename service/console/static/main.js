// The console's frame: sign-in, navigation, and which view the address names.

import { html, render, useEffect, useState } from "./vendor/preact.js";
import { ApiError, send, session, whenSignedOut } from "./api.js";
import { Busy, Failure, Field } from "./ui.js";
import { EngineBanner, State, useReadiness } from "./readiness.js";
import { AdaptersView } from "./adapters.js";
import { AdapterView } from "./adapter.js";
import { PlaygroundView } from "./playground.js";
import { TrainView } from "./train.js";
import { JobView } from "./job.js";
import { EvaluationView, VersionReport } from "./evaluation.js";
import { LadderView } from "./ladder.js";
import { TrafficView } from "./traffic.js";
import { StoresView, StoreView } from "./stores.js";
import { ReviewView } from "./review.js";

const PRINTABLE = /^[\x21-\x7e]+$/;
const VIEWS = [
  ["adapters", "Adapters", (rest) => (rest[0] ? html`<${AdapterView} key=${rest[0]} name=${rest[0]} />` : html`<${AdaptersView} />`)],
  ["playground", "Playground", (rest) => html`<${PlaygroundView} first=${rest[0]} />`],
  ["train", "Train", (rest) => trainView(rest)],
  ["traffic", "Traffic", () => html`<${TrafficView} />`],
  ["stores", "Stores", (rest) => (rest[0] ? html`<${StoreView} key=${rest[0]} id=${rest[0]} />` : html`<${StoresView} />`)],
  ["review", "Review", (rest) => html`<${ReviewView} evaluation=${rest[0]} />`],
];

function trainView([id]) {
  if (!id) return html`<${TrainView} />`;
  if (id.includes("@")) return html`<${VersionReport} key=${id} model=${id} />`;
  if (id.startsWith("ladder-")) return html`<${LadderView} key=${id} id=${id} />`;
  return id.startsWith("eval-") ? html`<${EvaluationView} key=${id} id=${id} />` : html`<${JobView} key=${id} id=${id} />`;
}

function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function route() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  return { view: VIEWS.find(([name]) => name === view) || VIEWS[0], rest };
}

/** Whether the gateway knows a key: a 403 says that it does. Raises ApiError. */
async function check() {
  try {
    await send("GET", "/v1/models");
  } catch (error) {
    if (error.status !== 403 || error.code === "project_mismatch") throw error;
  }
}

function SignIn({ reason, onOpen }) {
  const [state, setState] = useState({ busy: false, error: reason });
  useEffect(() => { document.getElementById("key")?.focus(); }, []);
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const [key, project] = [form.get("key").trim(), form.get("project").trim()];
    if (!PRINTABLE.test(key + project)) {
      setState({ busy: false, error: new ApiError(401, { message: "A key has letters, digits and signs of ASCII alone. Was something else pasted?" }) });
      return;
    }
    session.open(key, project);
    setState({ busy: true, error: null });
    try {
      await check();
      onOpen();
    } catch (error) {
      session.close();
      setState({ busy: false, error });
    }
  };
  return html`<main class="signin" id="main">
    <h1><img src="/console/icon.svg" alt="" width="36" height="36" /> Hatrack</h1>
    <p>Sign in with a key of this gateway. It stays in this tab, and is forgotten when the tab is closed.</p>
    <form onSubmit=${submit}>
      <${Field} label="Key" hint=${html`On the gateway's machine, <code>admin.key</code> under <code>HATRACK_HOME</code> (<code>var/</code> unless it is set) has the first one; <code>hatrack keys create NAME</code> makes others.`}>
        <input id="key" name="key" type="password" required autocomplete="off" spellcheck="false" /><//>
      <details><summary>Another project</summary>
        <${Field} label="Project" hint="With an admin key only; by default: default.">
          <input name="project" autocomplete="off" spellcheck="false" /><//></details>
      ${state.error && html`<${Failure} error=${state.error} />`}
      <button class="primary" disabled=${state.busy}>${state.busy ? "Signing in …" : "Sign in"}</button>
    </form>
    <p class="dim">The API is described at <a href="/docs">/docs</a>.</p>
  </main>`;
}

/** `entered`: somebody has signed in just now; the form that had the focus is gone, and the next Tab goes on in the view. */
function Frame({ entered, onSignOut }) {
  const [at, setAt] = useState(route());
  const ready = useReadiness();
  useEffect(() => {
    const enter = () => { document.getElementById("main")?.focus({ preventScroll: true }); window.scrollTo(0, 0); };
    const moved = () => { setAt(route()); enter(); };
    if (entered) enter();
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const [name, title, view] = at.view;
  useEffect(() => { document.title = `${title} · Hatrack`; }, [title]);
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to the content</a>
    <header class="top">
      <a class="brand" href="#/adapters"><img src="/console/icon.svg" alt="" width="26" height="26" /> Hatrack</a>
      <nav aria-label="Views">${VIEWS.map(([each, label]) => html`<a key=${each} href="#/${each}"
        aria-current=${each === name ? "page" : undefined}>${label}</a>`)}</nav>
      <div class="account"><${State} ready=${ready} />${session.project && html`<span class="badge" title="project">${session.project}</span>`}
        <button class="quiet" onClick=${onSignOut}>Sign out</button></div>
    </header>
    <${EngineBanner} ready=${ready} />
    <main id="main" tabindex="-1">${view(at.rest)}</main>`;
}

function Console() {
  const [state, setState] = useState({ open: session.key ? null : false, reason: null });
  useEffect(() => {
    whenSignedOut((error) => { session.close(); setState({ open: false, reason: error }); });
    if (session.key) check().then(() => setState({ open: true }), (error) => {
      if (error.status === 401 || error.status === 403) session.close();
      setState({ open: false, reason: error });
    });
  }, []);
  if (state.open === null) return html`<${Busy}>Signing in …<//>`;
  if (!state.open) return html`<${SignIn} key=${state.reason?.message} reason=${state.reason} onOpen=${() => setState({ open: true, entered: true })} />`;
  return html`<${Frame} entered=${state.entered} onSignOut=${() => { session.close(); setState({ open: false, reason: null }); }} />`;
}

// a file dropped beside a drop zone would be opened in place of the console, and take with it what was not sent
for (const type of ["dragover", "drop"]) {
  addEventListener(type, (event) => { if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); });
}
render(html`<${Console} />`, document.getElementById("console"));
