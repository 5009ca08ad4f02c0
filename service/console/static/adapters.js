// All adapters: what is live, what it was judged to be, what it answers.

import { html, useState } from "./vendor/preact.js";
import { list, shownProject } from "./api.js";
import { count, plural } from "./format.js";
import { Badge, Empty, Loaded, useEvery, useLoaded, Verdict } from "./ui.js";
import { loadedVersions, metrics } from "./metrics.js";
import { baseWord, liveVersions, ownAliases, Target, usageByVersion } from "./versions.js";
import { PinDialog } from "./alias_dialogs.js";
import { UploadDialog } from "./upload.js";

export function AdaptersView() {
  const [dialog, setDialog] = useState(null); // "upload", "prompt", or the adapter to pin or unpin
  const [filter, setFilter] = useState("");
  const adapters = useLoaded(async () => {
    const [page, usage, samples] = await Promise.all([list("/v1/adapters"), usageByVersion(), metrics()]);
    return { ...page, usage, loaded: loadedVersions(samples, shownProject()) };
  });
  useEvery(15, adapters.poll, !dialog && !adapters.denied);
  const done = (version) => { setDialog(null); location.hash = `#/adapters/${encodeURIComponent(version.adapter)}`; };
  return html`<header class="view"><div><h1>Adapters</h1>
      <p>Names that applications ask for. Each has numbered versions; <code>live</code> says which one answers.</p></div>
      <div class="actions"><button onClick=${() => setDialog("prompt")}>New from a prompt</button>
        <button class="primary" onClick=${() => setDialog("upload")}>Upload an adapter</button></div></header>
    ${typeof dialog === "string" && html`<${UploadDialog} kind=${dialog} onClose=${() => setDialog(null)} onDone=${done} />`}
    ${dialog?.name && html`<${PinDialog} adapter=${dialog} onClose=${() => setDialog(null)} onDone=${() => { setDialog(null); adapters.reload(); }} />`}
    <${Loaded} of=${adapters}>${({ data, more, usage, loaded }) => {
      if (!data.length) return html`<${FirstAdapter} open=${setDialog} />`;
      const shown = data.filter((each) => each.name.includes(filter.trim().toLowerCase()));
      return html`${data.length > 8 && html`<input class="filter" type="search" placeholder="Filter by name" aria-label="Filter by name"
          value=${filter} onInput=${(event) => setFilter(event.target.value)} />`}
        <div class="scroll"><table class="cards"><thead><tr><th>Name</th><th>Live</th><th>Base</th><th>Verdict</th><th class="num">Versions</th>
          <th>Loaded</th><th class="num">${requestsTitle(usage)}</th><th class="num">Errors</th><th></th></tr></thead>
        <tbody>${shown.map((each) => html`<${Row} key=${each.name} adapter=${each} usage=${usage.of.get(each.name)} title=${requestsTitle(usage)} loaded=${loaded} pin=${setDialog} />`)}</tbody></table></div>
        ${!shown.length && html`<p class="dim">No adapter's name contains “${filter}”.</p>`}
        ${more && html`<p class="dim">These are the first ${data.length}; <code>hatrack ls</code> lists all.</p>`}`;
    }}<//>`;
}

/** What the number of requests counts. */
const requestsTitle = ({ byThisKey }) => (byThisKey ? "Requests by this key, 24 h" : "Requests, 24 h");

function Row({ adapter, usage, title, loaded, pin }) {
  const live = liveVersions(adapter);
  const broken = adapter.versions.filter((each) => each.state === "ready" && each.servable !== "ok");
  const others = ownAliases(Object.keys(adapter.aliases)).filter((each) => each !== "live");
  return html`<tr>
    <td data-label="Name"><a href="#/adapters/${encodeURIComponent(adapter.name)}"><strong>${adapter.name}</strong></a>
      ${adapter.pinned && html` <${Badge} title="Its live version is kept loaded">pinned<//>`}
      ${broken.length > 0 && html` <${Badge} tone="bad" title=${broken.map((each) => `@${each.version}: ${each.servable}`).join(", ")}>cannot serve<//>`}
      ${others.length > 0 && html`<div class="dim small">also ${others.join(", ")}</div>`}</td>
    <td data-label="Live"><${Target} adapter=${adapter} alias="live" /></td>
    <td data-label="Base">${[...new Set(live.map(baseWord))].join(", ") || html`<span class="dim">–</span>`}</td>
    <td data-label="Verdict">${live.length ? live.map((each) => html`<div key=${each.version}>
      ${live.length > 1 && html`<span class="mono">@${each.version}</span> `}<${Verdict} verdict=${each.verdict} revalidation=${each.revalidation} /></div>`) : html`<span class="dim">–</span>`}</td>
    <td data-label="Versions" class="num">${adapter.versions.length}</td>
    <td data-label="Loaded">${loadedWords(live, adapter.name, loaded)}</td>
    <td data-label=${title} class="num">${count(usage?.requests ?? 0)}</td>
    <td data-label="Errors" class=${usage?.errors ? "num warn" : "num"}>${count(usage?.errors ?? 0)}</td>
    <td class="row-actions">${(adapter.pinned || live.some((each) => each.digest)) && html`<button aria-label="${adapter.pinned ? "Unpin" : "Pin"} ${adapter.name}"
      onClick=${() => pin(adapter)}>${adapter.pinned ? "Unpin …" : "Pin …"}</button>`}</td>
  </tr>`;
}

function loadedWords(live, name, loaded) {
  const weighty = live.filter((each) => each.digest);
  if (!weighty.length) return html`<span class="dim" title="Versions without weights need no slot">${live.length ? "no weights" : "–"}</span>`;
  if (!loaded) return html`<span class="dim" title="Only a key that may read /metrics sees what is loaded">–</span>`;
  const there = weighty.filter((each) => loaded.has(`${name}@${each.version}`));
  return there.length === weighty.length ? "loaded" : there.length ? plural(there.length, "version") : html`<span class="dim">on demand</span>`;
}

function FirstAdapter({ open }) {
  return html`<${Empty} title="No adapters yet">
    <p>An adapter is a name that applications put into <code>model</code>. There are three ways to the first one:</p>
    <ul><li><button class="link" onClick=${() => open("prompt")}>Start from a prompt</button>: the base with a system prompt. It takes seconds, and weights can come later under the same name.</li>
      <li><button class="link" onClick=${() => open("upload")}>Upload a folder</button> that PEFT saved.</li>
      <li><a href="#/train">Train one</a> from examples.</li></ul>
  <//>`;
}
