// What advice is asked for with: the name, how thorough it is, documents, prompts to try, a target, the traffic, a teacher.

import { html, useState } from "./vendor/preact.js";
import { list, post } from "./api.js";
import { Busy, Failure, Field, useLoaded } from "./ui.js";
import { useStored } from "./files.js";
import { useBases } from "./bases.js";

const MAX_PROMPTS = 4;
const START = { adapter: "", quick: true, lora: true, stores: [], prompts: [""], target: "", traffic: "", teacher: "", unlabelled: null };

/** Models and outside endpoints that may answer prompts, and the stores; none of what the key may not see. */
async function choices() {
  const optional = async (path) => {
    try { return (await list(path)).data; } catch (error) { if (error.status === 403) return []; throw error; }
  };
  const [models, teachers, stores] = await Promise.all(["/v1/models", "/v1/teachers", "/v1/vector_stores"].map(optional));
  return { models: models.filter((each) => each.type === "chat").map((each) => each.id), teachers: teachers.map((each) => each.id), stores };
}

function bodyOf(form, training_file, unlabelled_file) {
  const prompts = form.prompts.map((each) => each.trim()).filter(Boolean);
  return {
    training_file, adapter: form.adapter, quick: form.quick, lora: form.lora,
    ...(form.stores.length ? { vector_store_ids: form.stores } : {}),
    ...(prompts.length ? { instructions: prompts } : {}),
    ...(form.target === "" ? {} : { target: Number(form.target) / 100 }),
    ...(form.traffic === "" ? {} : { requests_per_month: Math.round(Number(form.traffic)) }),
    ...(form.teacher ? { teacher: form.teacher, unlabelled_file } : {}),
  };
}

/** `stored` stores the training file, and gives what to name it by. */
export function AdviceForm({ stored }) {
  const [form, setForm] = useState(START);
  const [state, setState] = useState({ busy: false, error: null });
  const known = useLoaded(choices);
  const bases = useBases();
  const unlabelled = useStored(form.unlabelled, null, "user_data");
  const set = (more) => { setForm({ ...form, ...more }); setState({ busy: false, error: null }); };
  const typed = (name) => (event) => set({ [name]: event.target.value.trim() });
  const start = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      const body = bodyOf(form, await stored(), form.teacher && await unlabelled());
      location.hash = `#/train/${(await post("/v1/ladders", body)).id}`;
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<form class="job-form" onSubmit=${start}>
    <p>Each rung becomes a version that can be asked and promoted; nothing goes live by itself.${bases.length > 1 && ` All of it is measured on ${bases[0]}.`}</p>
    <div class="grid">
      <${Field} label="Adapter" hint="Whose versions the rungs become: a new name, or one that there is"><input required value=${form.adapter} autocomplete="off" spellcheck="false" placeholder="brand-voice" onInput=${typed("adapter")} /><//>
      <${Field} label="How thorough" hint=${form.quick ? "At most 80 held-out questions and 600 examples to learn from; half an hour or less" : "Up to 300 held-out questions, all examples, and whether more of them would help"}>
        <select value=${form.quick ? "quick" : "whole"} onChange=${(event) => set({ quick: event.target.value === "quick" })}>
        <option value="quick">quick: minutes</option><option value="whole">whole: hours</option></select><//>
      <${Field} label="Good enough at" hint="A score of 100; the first rung that reaches it ends the measuring"><input type="number" min="0" max="100" step="any" placeholder="the best" value=${form.target} onInput=${typed("target")} /><//>
      <${Field} label="Requests a month" hint="For the cost of a year; empty: the operator's setting"><input type="number" min="0" step="1" value=${form.traffic} onInput=${typed("traffic")} /><//>
    </div>
    <${Stores} stores=${known.data?.stores || []} chosen=${form.stores} onChange=${(stores) => set({ stores })} />
    <label class="check"><input type="checkbox" checked=${form.lora} onChange=${(event) => set({ lora: event.target.checked, ...(event.target.checked ? {} : { teacher: "" }) })} /> Train a LoRA, too, where it could matter</label>
    <details><summary>System prompts of your own, to try beside those that are made from the examples</summary>
      ${form.prompts.map((prompt, index) => html`<${Field} key=${index} label=${`Prompt ${index + 1}`} wide><textarea rows="3" value=${prompt}
        onInput=${(event) => set({ prompts: form.prompts.map((each, at) => (at === index ? event.target.value : each)) })}></textarea><//>`)}
      ${form.prompts.length < MAX_PROMPTS && html`<button type="button" class="link" onClick=${() => set({ prompts: [...form.prompts, ""] })}>another one</button>`}</details>
    ${form.lora && html`<details><summary>A teacher that answers more prompts, for a LoRA to learn from</summary><div class="grid">
      <${Field} label="Teacher" hint="A model of this gateway, or an endpoint that the operator has set up"><select value=${form.teacher} onChange=${typed("teacher")}><option value="">none</option>
        ${known.data?.teachers.length > 0 && html`<optgroup label="outside">${known.data.teachers.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</optgroup>`}
        <optgroup label="of this gateway">${(known.data?.models || []).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</optgroup></select><//>
      <${Field} label="Prompts without answers" hint="JSONL with messages or prompt, or a text file with one on each line"><input type="file" accept=".jsonl,.txt" required=${Boolean(form.teacher)}
        onChange=${(event) => set({ unlabelled: event.target.files[0] || null })} /><//></div></details>`}
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${known.error && html`<${Failure} error=${known.error} retry=${known.reload} />`}
    ${state.busy ? html`<${Busy}>Starting …<//>` : html`<footer class="actions"><button class="primary" disabled=${!form.adapter || (form.teacher && !form.unlabelled)}>Measure it</button></footer>`}
  </form>`;
}

function Stores({ stores, chosen, onChange }) {
  if (!stores.length) return null;
  const change = (id) => (event) => onChange(event.target.checked ? [...chosen, id] : chosen.filter((each) => each !== id));
  return html`<fieldset class="plain-set"><legend>Documents that answers may depend on</legend>${stores.map((each) => html`<label key=${each.id} class="check">
    <input type="checkbox" checked=${chosen.includes(each.id)} onChange=${change(each.id)} /> ${each.name || each.id}</label>`)}</fieldset>`;
}
