// The settings of a training job, what it will take, and its start.

import { html, useState } from "./vendor/preact.js";
import { get, post } from "./api.js";
import { amount, count, duration, plural } from "./format.js";
import { Busy, Failure, Field } from "./ui.js";
import { BaseField, useBases } from "./bases.js";
import { EXAMPLE_FILES, useStored } from "./files.js";

/** Name, whether it is a number, and what it does; empty means that the trainer chooses. */
const HYPERPARAMETERS = [
  ["n_epochs", "number", "times through the examples"], ["learning_rate", "number", "for example 0.0005"],
  ["lora_rank", "number", "higher learns more, serves slower"], ["batch_size", "number", "examples a step"],
  ["held_out_share", "number", "kept to judge by, such as 0.2"], ["metric", "text", "such as exact_match or rouge_l"], ["suites", "text", "none: nothing asks what was forgotten"],
];

/** The hyperparameters that have the value which was requested, or a reason in the plan. */
const RECIPE = ["n_epochs", "learning_rate", "batch_size", "lora_rank", "lora_alpha", "max_length", "quantization", "early_stopping_patience", "beta"];

/** [name, value, why] of an estimate's hyperparameters; `why` is null for a requested one. */
function recipeOf({ hyperparameters, plan }) {
  const rows = [...new Set([...RECIPE, ...Object.keys(plan.chosen)])].map((name) => {
    const reason = plan.chosen[name];
    if (!reason) return [name, hyperparameters[name], null];
    const end = reason.indexOf(": ");
    return [name, reason.slice(0, end), reason.slice(end + 2)];
  });
  if (plan.primary) rows.push(["metric", plan.primary.name, plan.primary.why]);
  return rows.filter(([, value]) => value !== undefined && value !== null);
}

/** `stored` stores the training file, and gives what to name it by. */
export function JobForm({ stored }) {
  const [form, setForm] = useState({ adapter: "", promote: "auto" });
  const [state, setState] = useState({ busy: null, error: null, estimate: null });
  const bases = useBases();
  const heldOut = useStored(form.heldOut, null);
  const set = (name) => (event) => {
    setForm({ ...form, [name]: event.target.value.trim() });
    setState({ ...state, estimate: null, error: null });
  };
  const run = async (busy, use) => {
    setState({ ...state, busy, error: null });
    try {
      await use(bodyOf(form, await stored(), form.heldOut && await heldOut(), form.base || bases[0] || (await get("/")).base));
    } catch (error) {
      setState((old) => ({ ...old, busy: null, error }));
    }
  };
  const estimate = () => run("Measuring how fast this machine trains …", async (body) => {
    const answer = await post("/v1/fine_tuning/jobs/estimate", body);
    setState((old) => ({ ...old, busy: null, estimate: answer }));
  });
  const start = () => run("Starting …", async (body) => { location.hash = `#/train/${(await post("/v1/fine_tuning/jobs", body)).id}`; });
  const taken = Object.fromEntries(state.estimate ? recipeOf(state.estimate).filter(([, , why]) => why !== null) : []);
  return html`<form class="job-form" onSubmit=${(event) => { event.preventDefault(); start(); }}>
    <h3>The job</h3>
    <div class="grid">
      <${Field} label="Adapter" hint="A new name, or one that gets a next version"><input required value=${form.adapter} autocomplete="off" spellcheck="false" placeholder="brand-voice" onInput=${set("adapter")} /><//>
      <${Field} label="If it passes its evaluation"><select value=${form.promote} onChange=${set("promote")}>
        <option value="auto">it goes live at once</option><option value="never">it waits for a promotion</option></select><//>
      <${BaseField} bases=${bases} value=${form.base} hint="The version is trained for this base, and serves on it." onChange=${(base) => { setForm({ ...form, base }); setState({ ...state, estimate: null, error: null }); }} />
      <${Field} label="Held-out examples" hint="Optional: another file, never trained on (validation_file). Else a part of this one is kept."><input type="file" accept=${EXAMPLE_FILES}
        onChange=${(event) => { setForm({ ...form, heldOut: event.target.files[0] }); setState({ ...state, estimate: null }); }} /><//>
    </div>
    <details><summary>Hyperparameters: the trainer chooses what is left empty, and says why</summary><div class="grid">
      ${HYPERPARAMETERS.map(([name, kind, hint]) => html`<${Field} key=${name} label=${name} hint=${hint}><input type=${kind === "number" ? "number" : "text"} step="any" min="0"
        placeholder=${name === "held_out_share" ? "0.2" : taken[name] === undefined ? "auto" : `auto: ${taken[name]}`} value=${form[name] || ""} onInput=${set(name)} /><//>`)}</div></details>
    ${state.estimate && html`<${Estimate} estimate=${state.estimate} />`}
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${state.busy ? html`<${Busy}>${state.busy}<//>` : html`<footer class="actions"><button class="primary" disabled=${!form.adapter}>Start the job</button>
      <button type="button" onClick=${estimate} disabled=${!form.adapter}>How long will it take?</button></footer>`}
  </form>`;
}

function bodyOf(form, training_file, heldOut, model) {
  const hyperparameters = { adapter: form.adapter, promote: form.promote };
  for (const [name, kind] of HYPERPARAMETERS) if (form[name]) hyperparameters[name] = kind === "number" ? Number(form[name]) : form[name];
  return { model, training_file, hyperparameters, ...(heldOut ? { validation_file: heldOut } : {}) };
}

function Estimate({ estimate }) {
  const { seconds, money } = estimate;
  return html`<div class="notice" role="status"><strong>About ${duration(seconds.total ?? seconds.starting + seconds.training)}${seconds.judging === null ? ", without the judging" : ""}</strong>
    <p>${plural(estimate.epochs, "epoch")} over ${plural(estimate.examples, "example")}, ${count(estimate.tokens)} tokens at ${count(Math.round(estimate.speed.tokens_per_second))} tokens/s on ${estimate.device}:
      training ${duration(seconds.training)}${seconds.judging === null ? "" : `, judging ${duration(seconds.judging)}`}${money?.total ? `, ${amount(money.total)} ${estimate.currency || ""}` : ""}.
      It pauses while callers wait.</p>
    <h4>The hyperparameters that it would take</h4>
    <div class="scroll"><table class="cards"><thead><tr><th>hyperparameter</th><th>value</th><th>why</th></tr></thead><tbody>${recipeOf(estimate).map(([name, value, why]) => html`<tr key=${name}>
      <td data-label="Hyperparameter" class="mono">${name}</td><td data-label="Value">${value}</td><td data-label="Why">${why === null ? "as you set it" : why}</td></tr>`)}</tbody></table></div></div>`;
}
