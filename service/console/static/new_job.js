// From a dropped file to a job: the data report, the settings, what it will take, and the start.

import { html, useState } from "./vendor/preact.js";
import { get, list, post, send, upload, url } from "./api.js";
import { bytes, count, duration, plural } from "./format.js";
import { Busy, DropZone, Failure, Field, Progress, useLoaded } from "./ui.js";
import { DataReport } from "./data_report.js";
import { MendLines } from "./mend.js";

/** Name, whether it is a number, and what it does; empty means that the trainer chooses. */
const HYPERPARAMETERS = [
  ["n_epochs", "number", "times through the examples"], ["learning_rate", "number", "for example 0.0005"],
  ["lora_rank", "number", "higher learns more, serves slower"], ["batch_size", "number", "examples a step"],
  ["held_out_share", "number", "kept to judge by, such as 0.2"], ["metric", "text", "such as exact_match or rouge_l"], ["suites", "text", "none: nothing asks what was forgotten"],
];

export function NewJob({ onClose }) {
  const [state, setState] = useState({ step: "drop" });
  const check = async (file, dataset = null) => {
    setState({ step: "sending", file, done: 0, total: file.size });
    try {
      const report = await upload(url("/v1/fine_tuning/data_check", { filename: file.name }), [["file", file]],
        (done, total) => setState({ step: "sending", file, done, total }));
      setState({ step: "report", file, dataset, report });
    } catch (error) {
      setState({ step: "drop", error });
    }
  };
  return html`<section class="panel" aria-label="New job">
    <header><h2>Train from a file</h2><button class="quiet" aria-label="Close" onClick=${onClose}>✕</button></header>
    ${state.step === "drop" && html`<${Datasets} onChosen=${check} /><${DropZone} accept=".jsonl,.csv,.json,.parquet" label="Drop a file of examples: JSONL with messages, prompt and completion, or OpenAI's preference format"
      button="Choose a file" onFiles=${(found) => found[0] && check(found[0].file)} />
      <p class="dim small">Each line: <code>${'{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'}</code></p>
      ${state.error && html`<${Failure} error=${state.error} />`}`}
    ${state.step === "sending" && (state.done < state.total
      ? html`<${Progress} done=${state.done} total=${state.total} label="Sending ${state.file.name}: ${bytes(state.done)} of ${bytes(state.total)}" />`
      : html`<${Busy}>Checking ${state.file.name}: format, lengths, duplicates, contradictions, personal data …<//>`)}
    ${state.step === "report" && html`<p><strong>${state.dataset || state.file.name}</strong> <button class="link" onClick=${() => setState({ step: "drop" })}>choose another</button></p>
      <${DataReport} report=${state.report}><${MendLines} key=${state.report.sha256} file=${state.file} report=${state.report} onMended=${(file) => check(file)} /><//>
      ${!state.report.refused && html`<${JobForm} key=${state.report.sha256} file=${state.file} dataset=${state.dataset} />`}`}
  </section>`;
}

/** The project's datasets, newest version first; nothing where there are none, or the key may not see them. */
function Datasets({ onChosen }) {
  const datasets = useLoaded(() => list("/v1/datasets"));
  const [error, setError] = useState(null);
  if (!datasets.data?.data.length) return null;
  const versions = datasets.data.data.flatMap((each) => [...each.versions].reverse());
  const choose = async (event) => {
    const version = versions.find((each) => each.file === event.target.value);
    if (!version) return;
    try {
      const content = await (await send("GET", `/v1/files/${version.file}/content`)).blob();
      onChosen(new File([content], `${version.dataset}.jsonl`), `${version.dataset}@${version.version}`);
    } catch (failure) {
      setError(failure);
    }
  };
  return html`<${Field} label="A dataset"><select onChange=${choose}><option value="">choose one, or drop a file below</option>
    ${versions.map((each) => html`<option key=${each.file + each.version} value=${each.file}>${each.dataset}@${each.version}, ${plural(each.rows, "row")}${each.note ? `: ${each.note}` : ""}</option>`)}</select><//>
    ${error && html`<${Failure} error=${error} />`}`;
}

function JobForm({ file, dataset }) {
  const [form, setForm] = useState({ adapter: "", promote: "auto" });
  const [state, setState] = useState({ busy: null, error: null, stored: dataset, heldOut: null, estimate: null });
  const set = (name) => (event) => {
    setForm({ ...form, [name]: event.target.value.trim() });
    setState({ ...state, estimate: null, error: null });
  };
  const run = async (busy, use) => {
    setState({ ...state, busy, error: null });
    try {
      const stored = state.stored || await store(file);
      const heldOut = form.heldOut && (state.heldOut || await store(form.heldOut));
      setState((old) => ({ ...old, stored, heldOut }));
      await use(bodyOf(form, stored, heldOut, (await get("/")).base));
    } catch (error) {
      setState((old) => ({ ...old, busy: null, error }));
    }
  };
  const estimate = () => run("Measuring how fast this machine trains …", async (body) => {
    const answer = await post("/v1/fine_tuning/jobs/estimate", body);
    setState((old) => ({ ...old, busy: null, estimate: answer }));
  });
  const advise = () => run("Starting …", async ({ training_file }) => {
    location.hash = `#/train/${(await post("/v1/ladders", { training_file, adapter: form.adapter, quick: true })).id}`;
  });
  const start = () => run("Starting …", async (body) => { location.hash = `#/train/${(await post("/v1/fine_tuning/jobs", body)).id}`; });
  return html`<form class="job-form" onSubmit=${(event) => { event.preventDefault(); start(); }}>
    <h3>The job</h3>
    <div class="grid">
      <${Field} label="Adapter" hint="A new name, or one that gets a next version"><input required value=${form.adapter} autocomplete="off" spellcheck="false" placeholder="brand-voice" onInput=${set("adapter")} /><//>
      <${Field} label="If it passes its evaluation"><select value=${form.promote} onChange=${set("promote")}>
        <option value="auto">it goes live at once</option><option value="never">it waits for a promotion</option></select><//>
      <${Field} label="Held-out examples" hint="Optional: another file, never trained on. Else some of the first are kept."><input type="file" accept=".jsonl,.csv,.json,.parquet"
        onChange=${(event) => { setForm({ ...form, heldOut: event.target.files[0] }); setState({ ...state, heldOut: null, estimate: null }); }} /><//>
    </div>
    <details><summary>Hyperparameters: the trainer chooses what is left empty, and says why</summary><div class="grid">
      ${HYPERPARAMETERS.map(([name, kind, hint]) => html`<${Field} key=${name} label=${name} hint=${hint}><input type=${kind === "number" ? "number" : "text"} step="any" min="0"
        placeholder=${name === "held_out_share" ? "0.2" : "auto"} value=${form[name] || ""} onInput=${set(name)} /><//>`)}</div></details>
    ${state.estimate && html`<${Estimate} estimate=${state.estimate} />`}
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${state.busy ? html`<${Busy}>${state.busy}<//>` : html`<footer class="actions"><button class="primary" disabled=${!form.adapter}>Start the job</button>
      <button type="button" onClick=${estimate} disabled=${!form.adapter}>How long will it take?</button>
      <button type="button" onClick=${advise} disabled=${!form.adapter} title="Prompts, examples, retrieval and a LoRA, measured side by side">Is it worth it at all?</button></footer>`}
  </form>`;
}

const store = async (file) => (await upload("/v1/files", [["purpose", "fine-tune"], ["file", file]])).id;

function bodyOf(form, training_file, heldOut, model) {
  const hyperparameters = { adapter: form.adapter, promote: form.promote };
  for (const [name, kind] of HYPERPARAMETERS) if (form[name]) hyperparameters[name] = kind === "number" ? Number(form[name]) : form[name];
  return { model, training_file, hyperparameters, ...(heldOut ? { validation_file: heldOut } : {}) };
}

function Estimate({ estimate }) {
  const { seconds, money } = estimate;
  return html`<div class="notice" role="status"><strong>About ${duration(seconds.total ?? seconds.starting + seconds.training)}${seconds.judging === null ? ", without the judging" : ""}</strong>
    <p>${plural(estimate.epochs, "epoch")} over ${plural(estimate.examples, "example")}, ${count(estimate.tokens)} tokens at ${count(Math.round(estimate.speed.tokens_per_second))} tokens/s on ${estimate.device}:
      training ${duration(seconds.training)}${seconds.judging === null ? "" : `, judging ${duration(seconds.judging)}`}${money?.total ? `, ${money.total.toFixed(2)} ${estimate.currency || ""}` : ""}.
      It pauses while callers wait.</p></div>`;
}
