// Vector stores: their documents, what failed, and what a search finds.

import { html, useState } from "./vendor/preact.js";
import { get, list, post, remove, upload } from "./api.js";
import { ago, bytes, count, decimal, plural, STATUSES, STATUS_TONES } from "./format.js";
import { Badge, Busy, Confirm, DropZone, Empty, Failure, Field, Loaded, Progress, useEvery, useLoaded } from "./ui.js";

const KINDS = ".txt,.md,.html,.htm,.pdf,.docx,.pptx,.xlsx,.csv,.json,.jsonl";
const pathOf = (id) => `/v1/vector_stores/${encodeURIComponent(id)}`;

export function StoresView() {
  const [making, setMaking] = useState(false);
  const stores = useLoaded(() => list("/v1/vector_stores"));
  useEvery(10, stores.poll, !making && !stores.denied);
  return html`<header class="view"><div><h1>Stores</h1><p>Documents whose passages go into prompts. An adapter speaks; what is true today comes from here.</p></div>
      <div class="actions"><button class="primary" onClick=${() => setMaking(true)}>New store</button></div></header>
    ${making && html`<${NewStore} stores=${stores.data?.data || []} onClose=${() => setMaking(false)} />`}
    <${Loaded} of=${stores}>${({ data }) => (data.length ? html`<div class="scroll"><table class="cards"><thead><tr><th>Name</th><th>Documents</th><th class="num">Size</th><th>Last used</th></tr></thead>
      <tbody>${data.map((each) => html`<tr key=${each.id}><td data-label="Name"><a href="#/stores/${each.id}"><strong>${each.name || "unnamed"}</strong></a><div class="dim small mono">${each.id}</div></td>
        <td data-label="Documents"><${Counts} counts=${each.file_counts} /></td><td data-label="Size" class="num">${bytes(each.usage_bytes)}</td>
        <td data-label="Last used">${ago(each.last_active_at)}</td></tr>`)}</tbody></table></div>`
      : html`<${Empty} title="No stores yet"><p>A store holds documents: policies, orders, a catalogue. Requests name it in <code>grounding</code>, and answers cite it.</p>
        <p><button class="link" onClick=${() => setMaking(true)}>Make the first store</button>, then drop documents on it.</p><//>`)}<//>`;
}

function Counts({ counts }) {
  return html`<span class="links">${plural(counts.total, "document")}
    ${counts.in_progress > 0 && html`<${Badge} tone="info">${counts.in_progress} being read<//>`}
    ${counts.failed > 0 && html`<${Badge} tone="bad">${counts.failed} failed<//>`}</span>`;
}

/** The API lets two stores have one name, but `hatrack kb` could no longer tell them apart by it. */
function NewStore({ stores, onClose }) {
  const [name, setName] = useState("");
  const same = stores.find((each) => each.name === name);
  return html`<${Confirm} title="New store" action="Make it" disabled=${!name || same} run=${() => post("/v1/vector_stores", { name })} onClose=${onClose}
    onDone=${(store) => { location.hash = `#/stores/${store.id}`; }}><${Field} label="Name"><input value=${name} autocomplete="off" placeholder="shop" onInput=${(event) => setName(event.target.value.trim())} /><//>
    ${same && html`<p class="warn">There is already a store of this name: <a href="#/stores/${same.id}">open it</a>.</p>`}<//>`;
}

export function StoreView({ id }) {
  const store = useLoaded(async () => {
    const [object, files] = await Promise.all([get(pathOf(id)), list(`${pathOf(id)}/files`)]);
    return { object, files };
  }, [id]);
  const [asking, setAsking] = useState(null);
  const reading = store.data?.object.file_counts.in_progress > 0;
  useEvery(reading ? 1.5 : 15, store.poll, !asking && !store.denied);
  return html`<p class="crumb"><a href="#/stores">Stores</a></p><${Loaded} of=${store}>${({ object, files }) => html`
    <header class="view"><div><h1>${object.name || "unnamed"}</h1><p><span class="mono">${object.id}</span>, ${bytes(object.usage_bytes)}</p></div>
      <div class="actions"><button class="danger" onClick=${() => setAsking({ kind: "store" })}>Delete the store</button></div></header>
    ${asking && html`<${Removal} store=${object} file=${asking.file} onClose=${() => setAsking(null)}
      onDone=${() => { if (asking.kind === "store") location.hash = "#/stores"; else { setAsking(null); store.reload(); } }} />`}
    ${object.file_counts.completed > 0 && html`<${SearchBox} id=${id} />`}
    <section aria-label="Documents"><h2>Documents</h2><${AddDocuments} id=${id} onAdded=${store.reload} />
      ${files.data.length > 0 && html`<${Documents} files=${files.data} ask=${setAsking} />`}
      ${files.more && html`<p class="dim">These are the first ${files.data.length}; <code>hatrack kb</code> lists all.</p>`}</section>`}<//>`;
}

function Documents({ files, ask }) {
  const sorted = [...files].sort((a, b) => (b.status === "failed") - (a.status === "failed") || b.created_at - a.created_at);
  return html`<div class="scroll"><table class="cards"><thead><tr><th>Document</th><th>State</th><th class="num">Passages</th><th class="num">Size</th><th></th></tr></thead>
    <tbody>${sorted.map((each) => html`<tr key=${each.id}><td data-label="Document"><strong class="wrap">${each.filename}</strong>
        ${Object.keys(each.attributes).length > 0 && html`<div class="dim small">${Object.entries(each.attributes).map(([key, value]) => `${key}=${value}`).join(", ")}</div>`}</td>
      <td data-label="State"><${Badge} tone=${STATUS_TONES[each.status]}>${STATUSES[each.status]}<//>${each.last_error && html`<div class="bad small">${each.last_error.message}</div>`}</td>
      <td data-label="Passages" class="num">${each.passages.indexed < each.passages.total ? `${count(each.passages.indexed)} of ` : ""}${count(each.passages.total)}</td>
      <td data-label="Size" class="num">${bytes(each.usage_bytes)}</td>
      <td class="row-actions"><button class="danger" aria-label="Remove ${each.filename}" onClick=${() => ask({ kind: "file", file: each })}>Remove …</button></td></tr>`)}</tbody></table></div>`;
}

function AddDocuments({ id, onAdded }) {
  const [state, setState] = useState({ busy: null, failures: [] });
  const add = async (found) => {
    const failures = [];
    for (const [index, { file }] of found.entries()) {
      const label = `${file.name}, ${index + 1} of ${found.length}`;
      try {
        const stored = await upload("/v1/files", [["purpose", "assistants"], ["file", file]], (done, total) => setState({ busy: { label, done, total }, failures }));
        await post(`${pathOf(id)}/files`, { file_id: stored.id });
      } catch (error) {
        failures.push({ name: file.name, error });
      }
    }
    setState({ busy: null, failures });
    onAdded();
  };
  return html`${state.busy ? html`<${Progress} ...${state.busy} />` : html`<${DropZone} multiple accept=${KINDS} label="Drop documents here: text, Markdown, HTML, PDF, Office files, CSV, JSONL" button="Choose files" onFiles=${add} />`}
    ${state.failures.map((each) => html`<div key=${each.name}><strong>${each.name}</strong><${Failure} error=${each.error} /></div>`)}`;
}

function SearchBox({ id }) {
  const [query, setQuery] = useState("");
  const [state, setState] = useState({});
  const search = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    try {
      setState({ results: (await post(`${pathOf(id)}/search`, { query, max_num_results: 10 })).data });
    } catch (error) {
      setState({ error });
    }
  };
  return html`<section aria-label="Search"><h2>Search</h2><form class="search" onSubmit=${search}>
      <input type="search" aria-label="Search the store" placeholder="What a customer would ask" value=${query} onInput=${(event) => setQuery(event.target.value)} />
      <button class="primary" disabled=${!query.trim() || state.busy}>Search</button></form>
    ${state.busy && html`<${Busy}>Searching …<//>`}${state.error && html`<${Failure} error=${state.error} />`}
    ${state.results && (state.results.length ? html`<ol class="results">${state.results.map((each) => html`<li key=${each.passage_id} class="panel"><div class="links">
        <b class="mono" title="score, 0 to 1">${decimal(each.score, 3)}</b><meter min="0" max="1" value=${each.score} aria-label="score"></meter><strong>${each.filename}</strong></div>
        <p class="quoted">${each.content.map((part) => part.text).join("\n")}</p></li>`)}</ol>
        <p class="dim small">Passages below a request's or version's <code>score_threshold</code> stay out of the prompt; where neither has one, those below <code>HATRACK_GROUNDING_MIN_SCORE</code>, which is 0.12 for the packaged model.</p>`
      : html`<p class="dim">Nothing was found.</p>`)}</section>`;
}

/** Which versions name a store in their settings; null where the key may not see adapters. */
async function versionsWith(store) {
  try {
    return (await list("/v1/adapters", {}, Infinity)).data.flatMap((each) => each.versions)
      .filter((each) => each.settings.grounding?.vector_store_ids?.includes(store)).map((each) => `${each.adapter}@${each.version}`);
  } catch (error) {
    if (error.status === 403) return null;
    throw error;
  }
}

export function Removal({ store, file, onClose, onDone }) {
  const users = useLoaded(async () => (file ? [] : versionsWith(store.id)), [store.id]);
  if (file) {
    return html`<${Confirm} title="Remove ${file.filename}" action="Remove it" danger run=${() => remove(`${pathOf(store.id)}/files/${file.id}`)} onClose=${onClose} onDone=${onDone}>
      <p>Its ${plural(file.passages.total, "passage")} ${file.passages.total === 1 ? "is" : "are"} no longer found. The uploaded file itself stays, and can be added again.</p><//>`;
  }
  return html`<${Confirm} title="Delete ${store.name || store.id}" action="Delete the store" danger disabled=${users.loading} run=${() => remove(pathOf(store.id))} onClose=${onClose} onDone=${onDone}>
    <p>The store and its index are gone for good. The uploaded files stay.</p>
    ${users.loading && html`<${Busy}>Looking who uses it …<//>`}
    ${users.error && html`<${Failure} error=${users.error} />`}
    ${users.data === null && !users.loading && !users.error && html`<p class="warn">This key may not see which versions use this store.</p>`}
    ${users.data?.length > 0 && html`<div class="notice bad"><strong>These versions lose their passages</strong><p>${users.data.join(", ")}</p></div>`}<//>`;
}
