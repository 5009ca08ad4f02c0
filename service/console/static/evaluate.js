// An evaluation that is asked for: which version, on which examples, by what, and what follows from a pass.

import { html, useState } from "./vendor/preact.js";
import { get, list, post } from "./api.js";
import { plural, VERDICTS } from "./format.js";
import { Confirm, Field, useLoaded } from "./ui.js";
import { ExamplesField, store } from "./files.js";

const versionPath = (model) => {
  const [name, number] = model.split("@");
  return `/v1/adapters/${encodeURIComponent(name)}/versions/${number}`;
};

/** What a version's last verdict was judged by, so that it can be asked for again; null where it was never judged. */
async function lastEvaluation(model) {
  const { data } = await get(`${versionPath(model)}/verdicts?limit=1`);
  const body = data[0]?.evaluation;
  return body ? { held_out: body.held_out, verdict: data[0] } : null;
}

/** The versions that can be judged, by adapter. */
async function readyVersions() {
  const { data } = await list("/v1/adapters");
  return data.flatMap((adapter) => adapter.versions.filter((each) => each.state === "ready" && each.servable === "ok").map((each) => `${each.adapter}@${each.version}`).reverse());
}

function ModelField({ value, onChange }) {
  const versions = useLoaded(readyVersions);
  return html`<${Field} label="Version" hint="It is compared with the base at its best, and with what is live."><select required value=${value} onChange=${(event) => onChange(event.target.value)}>
    <option value="">${versions.data ? "choose one" : "…"}</option>${(versions.data || []).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select><//>`;
}

/** `model` is given where a version is judged from its own page; else it is chosen. */
export function EvaluateDialog({ model: given, onClose }) {
  const [model, setModel] = useState(given || "");
  const [examples, setExamples] = useState(null);
  const [form, setForm] = useState({ metric: "", suites: "general", judge: "", max_tokens: "", promote: false });
  const last = useLoaded(async () => (model ? lastEvaluation(model) : null), [model]);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value.trim() });
  const known = last.data ? [[last.data.held_out, `those of its last verdict: ${plural(last.data.verdict.examples, "example")}, ${VERDICTS[last.data.verdict.verdict]}`]] : [];
  const run = async () => {
    const held_out = examples.name || await store(examples.file, "evals");
    if (examples.file) setExamples({ ...examples, name: held_out });
    return post("/v1/evaluations", {
      model, held_out, suites: form.suites.split(/[\s,]+/).filter(Boolean), promote: form.promote ? "auto" : "never",
      ...(form.metric ? { metric: form.metric } : {}), ...(form.judge ? { judge: form.judge } : {}), ...(form.max_tokens ? { max_tokens: Number(form.max_tokens) } : {}),
    });
  };
  return html`<${Confirm} title=${given ? `Judge ${given}` : "Judge a version"} action="Start the evaluation" disabled=${!model || !examples} run=${run} onClose=${onClose}
      onDone=${(evaluation) => { location.hash = `#/train/${evaluation.id}`; }}>
    <p>The version and the base answer the same questions, which neither was trained on; a paired test says whether the version is better, and what it forgot. A pass needs 30 examples or more.</p>
    ${!given && html`<${ModelField} value=${model} onChange=${(value) => { setModel(value); setExamples(null); }} />`}
    <${ExamplesField} label="Held-out examples" hint="Questions with the answers as they should be, never trained on." known=${known} value=${examples} onChange=${setExamples} />
    <label class="check"><input type="checkbox" checked=${form.promote} onChange=${(event) => setForm({ ...form, promote: event.target.checked })} /> If it passes, it goes live at once</label>
    <details><summary>How it is judged: chosen from the examples unless you say otherwise</summary><div class="grid">
      <${Field} label="Metric" hint="Such as exact_match, json_fields or similarity"><input value=${form.metric} placeholder="auto" autocomplete="off" spellcheck="false" onInput=${set("metric")} /><//>
      <${Field} label="Suites" hint="What may not be forgotten; empty: nothing is asked"><input value=${form.suites} autocomplete="off" spellcheck="false" onInput=${set("suites")} /><//>
      <${Field} label="Judge" hint="One that the operator has set up"><input value=${form.judge} placeholder="none" autocomplete="off" spellcheck="false" onInput=${set("judge")} /><//>
      <${Field} label="max_tokens" hint="Of an answer"><input type="number" min="1" max="8192" value=${form.max_tokens} placeholder="auto" onInput=${set("max_tokens")} /><//></div></details>
  <//>`;
}
