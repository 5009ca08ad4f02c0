// A new version: a folder that PEFT saved, or a prompt for the base.

import { html, useEffect, useState } from "./vendor/preact.js";
import { get, post, upload } from "./api.js";
import { bytes } from "./format.js";
import { BaseField, useBases } from "./bases.js";
import { Busy, Dialog, DropZone, Failure, Field, Progress, Words } from "./ui.js";

const PARTS = [
  ["config", "adapter_config.json", true], ["weights", "adapter_model.safetensors", true],
  ["readme", "README.md", false], ["settings", "settings.json", false], ["metadata", "metadata.json", false],
];
const POLL_MS = 1000;

/** The files of a PEFT folder by the upload's fields, from whichever folder of the drop holds the weights. */
function pick(found) {
  const folder = (path) => path.slice(0, path.lastIndexOf("/") + 1);
  const weights = found.filter((each) => each.path.endsWith("adapter_model.safetensors")).sort((a, b) => a.path.length - b.path.length)[0];
  const at = weights ? folder(weights.path) : folder(found.find((each) => each.path.endsWith("adapter_config.json"))?.path || "");
  const files = {};
  for (const [field, name] of PARTS) {
    const match = found.find((each) => each.path === at + name);
    if (match) files[field] = match.file;
  }
  return files;
}

export function UploadDialog({ kind, name: given = "", onClose, onDone }) {
  const [tab, setTab] = useState(kind);
  const [name, setName] = useState(given);
  const [base, setBase] = useState("");
  const bases = useBases();
  const [state, setState] = useState({ step: "form" });
  const run = async (start) => {
    setState({ step: "sending", done: 0, total: 0 });
    try {
      let version = await start();
      while (version.state === "proving") {
        setState({ step: "proving", version });
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        version = await get(`/v1/adapters/${encodeURIComponent(version.adapter)}/versions/${version.version}`);
      }
      setState({ step: version.state === "ready" ? "ready" : "rejected", version });
    } catch (error) {
      setState({ step: "form", error });
    }
  };
  const sending = (done, total) => setState({ step: "sending", done, total });
  return html`<${Dialog} title=${given ? `A version of ${given}` : "New adapter"} onClose=${onClose}>
    ${state.step === "form" && html`
      <div class="tabs" role="group" aria-label="Kind of version">${[["upload", "Upload a folder"], ["prompt", "From a prompt"]].map(([key, label]) => html`
        <button key=${key} type="button" aria-pressed=${tab === key} onClick=${() => setTab(key)}>${label}</button>`)}</div>
      ${!given && html`<${Field} label="Name" hint="Lower-case letters, digits, -, _ and .; applications put it into model.">
        <input value=${name} required autocomplete="off" spellcheck="false" placeholder="brand-voice" onInput=${(event) => setName(event.target.value.trim())} /><//>`}
      <${BaseField} bases=${bases} value=${base} onChange=${setBase} hint="The version serves on this base alone." auto=${tab === "upload" ? "the one that adapter_config.json names" : undefined} />
      ${tab === "upload" ? html`<${FolderForm} name=${name} base=${base} run=${run} sending=${sending} />` : html`<${PromptForm} name=${name} base=${base} run=${run} />`}
      ${state.error && html`<${Failure} error=${state.error} />`}`}
    ${state.step === "sending" && html`<${Progress} done=${state.done} total=${state.total}
      label=${state.total ? `Sending: ${bytes(state.done)} of ${bytes(state.total)}` : "Sending …"} />
      ${state.total > 0 && state.done === state.total && html`<p class="dim">Sent. The gateway inspects the files …</p>`}`}
    ${state.step === "proving" && html`<${Busy}>Proving ${state.version.adapter}@${state.version.version} …<//>
      <p class="dim">The engine answers fixed probes with and without it: it must have an effect, the same one that its trainer saw, and disturb no other adapter.
      You can close this; the proof goes on.</p>`}
    ${(state.step === "ready" || state.step === "rejected") && html`<${Result} version=${state.version} onDone=${onDone} onAgain=${() => setState({ step: "form" })} />`}
  <//>`;
}

function FolderForm({ name, base, run, sending }) {
  const [files, setFiles] = useState(null);
  const missing = files ? PARTS.filter(([field, , needed]) => needed && !files[field]).map(([, file]) => file) : [];
  const send = async () => {
    const fields = [["name", name], ...(base ? [["base", base]] : [])];
    for (const [field] of PARTS) {
      if (!files[field]) continue;
      fields.push([field, field === "settings" || field === "metadata" ? await files[field].text() : files[field]]);
    }
    return upload("/v1/adapters?wait=false", fields, sending);
  };
  return html`<form onSubmit=${(event) => { event.preventDefault(); run(send); }}>
    <${DropZone} folder label=${html`Drop the folder that PEFT's <code>save_pretrained</code> wrote`} button="Choose a folder" onFiles=${(found) => setFiles(pick(found))} />
    ${files && html`<ul class="files">${PARTS.filter(([field]) => files[field]).map(([field, file]) => html`<li key=${field}>
      <code>${file}</code> <span class="dim">${bytes(files[field].size)}</span></li>`)}</ul>`}
    ${missing.length > 0 && html`<div class="notice warn" role="alert"><strong>This is not a whole adapter</strong>
      <p>Missing: ${missing.map((each, index) => html`${index > 0 && " and "}<code>${each}</code>`)}. Was it saved as <code>.bin</code>? Save it again with <code>safe_serialization=True</code>.</p></div>`}
    <footer><button class="primary" disabled=${!name || !files || missing.length > 0}>Upload and prove</button></footer>
  </form>`;
}

function PromptForm({ name, base, run }) {
  const [prompt, setPrompt] = useState("");
  const send = () => post("/v1/adapters", { name, settings: { system_prompt: prompt }, ...(base ? { base } : {}) });
  return html`<form onSubmit=${(event) => { event.preventDefault(); run(send); }}>
    <${Field} label="System prompt" wide hint="The base with this prompt, as a version: it can be promoted, split, judged, and replaced by weights later.">
      <textarea rows="7" required value=${prompt} onInput=${(event) => setPrompt(event.target.value)}></textarea><//>
    <footer><button class="primary" disabled=${!name || !prompt.trim()}>Make a version</button></footer>
  </form>`;
}

function Result({ version, onDone, onAgain }) {
  const name = `${version.adapter}@${version.version}`;
  useEffect(() => { document.querySelector("dialog footer button")?.focus(); }, []);
  if (version.state !== "ready") {
    return html`<div class="notice bad" role="alert"><strong>${name} was refused</strong><p><${Words} text=${version.reason?.message || "The proof failed."} /></p></div>
      <footer><button onClick=${onAgain}>Try another</button><button class="primary" onClick=${() => onDone(version)}>Show it</button></footer>`;
  }
  if (version.servable === "corrupt") { // a push without waiting leaves it as it is until its proof has passed
    return html`<div class="notice warn" role="status"><strong>${name} is corrupt, and is being proven again</strong>
        <p>The gateway has these files already, and the engine failed under them. Once the proof passes it can serve again; if it fails, ${name} stays corrupt.</p></div>
      <footer><button class="primary" onClick=${() => onDone(version)}>Show it</button></footer>`;
  }
  return html`<div class="notice good" role="status"><strong>${name} is ready</strong>
      <p>${version.aliases.includes("live") ? html`It is live: applications can ask for <code>${version.adapter}</code>.`
        : html`It waits beside the live version. Ask it as <code>${name}</code>, then promote it.`}</p>
      ${version.warnings.map((each) => html`<p key=${each}>${each}</p>`)}</div>
    <footer><button class="primary" onClick=${() => onDone(version)}>Show it</button></footer>`;
}
