// One question to several versions and the base, side by side.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, get, list, send } from "./api.js";
import { count, decimal, duration, plural } from "./format.js";
import { Badge, Empty, Failure, Field, Loaded, useLoaded } from "./ui.js";
import { basesIn } from "./bases.js";
import { SaveExample } from "./save_example.js";

const MAX_MODELS = 5; // a browser opens six connections to one address
const REMEMBERED = "hatrack.playground";
const START = { question: "", system: "", max_tokens: 200, temperature: "", top_p: "", seed: "", grounding: "version", results: "", threshold: "" };

const remembered = () => { try { return JSON.parse(sessionStorage.getItem(REMEMBERED)) || {}; } catch { return {}; } };

async function choices() {
  const models = (await get("/v1/models")).data.filter((model) => model.type !== "embedding");
  const optional = async (path) => {
    try { return (await list(path)).data; } catch (error) { if (error.status === 403) return null; throw error; }
  };
  const [adapters, stores] = await Promise.all([optional("/v1/adapters"), optional("/v1/vector_stores")]);
  return { bases: basesIn(models), models, adapters, stores };
}

export function PlaygroundView({ first }) {
  const loaded = useLoaded(choices);
  return html`<header class="view"><div><h1>Playground</h1><p>Ask one question of several versions, and of the base, side by side.</p></div></header>
    <${Loaded} of=${loaded}>${(known) => html`<${Playground} key=${first} known=${known} first=${first} />`}<//>`;
}

function Playground({ known, first }) {
  const kept = useRef(remembered()).current;
  const [form, setForm] = useState({ ...START, ...kept.form });
  const [chosen, setChosen] = useState(first ? [...new Set([baseOf(known, first), first])] : kept.chosen || defaultModels(known));
  const [answers, setAnswers] = useState({});
  const running = useRef(null);
  const [busy, setBusy] = useState(false);
  const [example, setExample] = useState(null);
  useEffect(() => sessionStorage.setItem(REMEMBERED, JSON.stringify({ form, chosen })), [form, chosen]);
  useEffect(() => () => running.current?.abort(), []);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const askAll = async () => {
    if (!form.question.trim() || !chosen.length || busy) return;
    running.current = new AbortController();
    setBusy(true);
    setAnswers(Object.fromEntries(chosen.map((model) => [model, { text: "", state: "waiting" }])));
    const update = (model) => (more) => setAnswers((old) => ({ ...old, [model]: { ...old[model], ...more } }));
    await Promise.all(chosen.map((model) => ask(model, form, running.current.signal, update(model))));
    setBusy(false);
  };
  const keys = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); askAll(); } };
  return html`<form class="ask" onSubmit=${(event) => { event.preventDefault(); askAll(); }}>
      <${Field} label="Question" wide><textarea id="question" rows="3" value=${form.question} onInput=${set("question")} onKeyDown=${keys}
        placeholder="What a customer would write"></textarea><//>
      <${ModelPicker} known=${known} chosen=${chosen} onChange=${setChosen} />
      <${SettingsFields} form=${form} set=${set} stores=${known.stores} />
      <div class="actions">${busy ? html`<button type="button" onClick=${() => running.current.abort()}>Stop</button>` : html`
        <button class="primary" disabled=${!form.question.trim() || !chosen.length}>Ask ${plural(chosen.length, "model")}</button>`}
        <span class="dim small">Ctrl+Enter asks, too</span></div>
    </form>
    <div class="panes">${chosen.filter((model) => answers[model]).map((model) => html`<${Answer} key=${model} model=${model} isBase=${known.bases.includes(model)}
      answer=${answers[model]} onSave=${() => setExample({ question: form.question, answer: answers[model].text })} />`)}</div>
    ${!Object.keys(answers).length && html`<${Empty} title="No answers yet"><p>Write a question above, choose up to ${MAX_MODELS} models, and ask: the answers appear here side by side.</p>
      ${!(known.adapters || known.models.filter((each) => !known.bases.includes(each.id))).length && html`<p>There is only the base so far: <a href="#/adapters">make an adapter</a> from a prompt or a folder, or <a href="#/train">train one</a>, to compare it.</p>`}<//>`}
    ${example && html`<${SaveExample} ...${example} onClose=${() => setExample(null)} />`}`;
}

/** The base under a model: of a version its own, of an adapter that of what is live. */
function baseOf(known, model) {
  const [name, number] = model.split("@");
  const version = known.adapters?.find((each) => each.name === name)?.versions.find((each) => each.version === Number(number));
  return version?.base_name || known.models.find((each) => each.id === model)?.parent || (known.bases.includes(model) ? model : known.bases[0]);
}

function defaultModels(known) {
  const others = known.models.filter((each) => !known.bases.includes(each.id)).map((each) => each.id);
  return [known.bases[0], ...others.slice(0, 2)];
}

function ModelPicker({ known, chosen, onChange }) {
  const options = known.adapters
    ? known.adapters.map((each) => [each.name, [
      ...(each.aliases.live || each.splits.live ? [[each.name, `${each.name} (live)`]] : []),
      ...each.versions.filter((version) => version.state === "ready").map((version) => [`${each.name}@${version.version}`, `${each.name}@${version.version}`]),
    ]])
    : [["Adapters", known.models.filter((each) => !known.bases.includes(each.id)).map((each) => [each.id, each.id])]];
  const add = (event) => { if (event.target.value) onChange([...chosen, event.target.value]); event.target.value = ""; };
  return html`<div class="field wide"><span id="models-label">Models</span>
    <div class="chips" role="group" aria-labelledby="models-label">${chosen.map((model) => html`<span key=${model} class="chip">${model}
        <button type="button" aria-label="Remove ${model}" onClick=${() => onChange(chosen.filter((each) => each !== model))}>✕</button></span>`)}
      ${chosen.length < MAX_MODELS ? html`<select aria-label="Add a model" onChange=${add}><option value="">+ add a model</option>
        ${known.bases.filter((each) => !chosen.includes(each)).map((each) => html`<option key=${each} value=${each}>${each} (${known.bases.length > 1 ? "a" : "the"} base)</option>`)}
        ${options.map(([label, models]) => html`<optgroup key=${label} label=${label}>${models.filter(([id]) => !chosen.includes(id)).map(([id, text]) => html`
          <option key=${id} value=${id}>${text}</option>`)}</optgroup>`)}</select>` : html`<span class="dim small">at most ${MAX_MODELS}</span>`}</div></div>`;
}

function SettingsFields({ form, set, stores }) {
  const number = (name, label, hint, more = {}) => html`<${Field} label=${label} hint=${hint}><input type="number" inputmode="decimal" value=${form[name]}
    onInput=${set(name)} ...${more} /><//>`;
  const grounded = form.grounding !== "version" && form.grounding !== "off";
  return html`<details><summary>Settings and grounding</summary><div class="grid">
    ${number("max_tokens", "max_tokens", "of the answer", { min: 1 })}
    ${number("temperature", "temperature", "empty: the version's", { min: 0, max: 2, step: 0.1 })}
    ${number("top_p", "top_p", "empty: the version's", { min: 0.01, max: 1, step: 0.05 })}
    ${number("seed", "seed", "the same answer again", { step: 1 })}
    <${Field} label="Grounding" hint="Where passages come from"><select value=${form.grounding} onChange=${set("grounding")}>
      <option value="version">as each version says</option><option value="off">none</option>
      ${(stores || []).map((each) => html`<option key=${each.id} value=${each.id}>${each.name || each.id}</option>`)}</select><//>
    ${grounded && number("results", "max_num_results", "empty: 4", { min: 1, max: 50 })}
    ${grounded && number("threshold", "score_threshold", "0 to 1", { min: 0, max: 1, step: 0.05 })}
    <${Field} label="System message" wide hint="Empty: the version's own"><textarea rows="2" value=${form.system} onInput=${set("system")}></textarea><//>
  </div>${stores === null && html`<p class="dim">This key may not list vector stores; it lacks the scope <code>knowledge</code>.</p>`}</details>`;
}

function bodyOf(model, form) {
  const body = { model, stream: true, stream_options: { include_usage: true }, messages: [{ role: "user", content: form.question }] };
  if (form.system.trim()) body.messages.unshift({ role: "system", content: form.system });
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) if (form[name] !== "") body[name] = Number(form[name]);
  if (form.grounding === "off") body.grounding = false;
  else if (form.grounding !== "version") {
    body.grounding = { vector_store_ids: [form.grounding] };
    if (form.results !== "") body.grounding.max_num_results = Number(form.results);
    if (form.threshold !== "") body.grounding.score_threshold = Number(form.threshold);
  }
  return body;
}

/** Ask one model and pass on what comes: text, citations, tokens, times in seconds. Never raises. */
async function ask(model, form, signal, update) {
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  try {
    const response = await send("POST", "/v1/chat/completions", { json: bodyOf(model, form), signal });
    update({ state: "answering", by: response.headers.get("x-hatrack-adapter"), grounding: response.headers.get("x-hatrack-grounding") });
    let text = "";
    let firstAt = null;
    for await (const chunk of events(response)) {
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), { code: chunk.error.code });
      if (chunk.citations) update({ citations: chunk.citations });
      if (chunk.usage) update({ usage: chunk.usage });
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) update({ finish: choice.finish_reason });
      if (choice?.delta?.content) {
        text += choice.delta.content;
        firstAt ??= elapsed();
        update({ text, first: firstAt });
      }
    }
    update({ state: "done", seconds: elapsed() });
  } catch (error) {
    update(error.name === "AbortError" ? { state: "stopped", seconds: elapsed() } : { state: "failed", error });
  }
}

/** Why an answer has no passages (`x-hatrack-grounding`, GROUNDING.md). */
const GROUNDINGS = {
  empty: "no passage was found", no_room: "the context had no space for a passage",
  late: "the passages came too late, so the answer was made without them", broken: "the search failed, so the answer was made without passages",
};
const FINISHES = { length: "cut at max_tokens", content_filter: "filtered", tool_calls: "called a tool" };

function Answer({ model, isBase, answer, onSave }) {
  const { usage } = answer;
  // the first token was there when the time began; an answer of one token has no speed
  const speed = usage?.completion_tokens > 1 && answer.seconds > answer.first ? (usage.completion_tokens - 1) / (answer.seconds - answer.first) : null;
  return html`<article class="pane" aria-busy=${answer.state === "waiting" || answer.state === "answering"}>
    <header><h3>${model}</h3>${isBase ? html`<${Badge}>base<//>` : answer.by && answer.by !== model && html`<${Badge} title="The version that answered">${answer.by}<//>`}</header>
    ${answer.error ? html`<${Failure} error=${answer.error} />` : html`<div class="answer" aria-live="polite">${answer.text
      || (answer.state === "waiting" || answer.state === "answering" ? html`<span class="busy"><span class="spinner" aria-hidden="true"></span>waiting for the first token</span>`
        : answer.state === "done" ? html`<span class="dim">an empty answer</span>` : "")}</div>`}
    ${answer.citations?.length > 0 && html`<details class="citations"><summary>${plural(answer.citations.length, "passage")} in the prompt</summary>
      <ol>${answer.citations.map((each) => html`<li key=${each.id}><strong>${each.source}</strong> <span class="dim">score ${decimal(each.score)}${each.used === false ? ", not used" : ""}</span>
        <p>${each.text}</p></li>`)}</ol></details>`}
    ${answer.grounding && answer.grounding !== "ok" && html`<p class="warn small">Grounding: ${GROUNDINGS[answer.grounding] || answer.grounding}</p>`}
    <footer>${answer.seconds !== undefined && html`<span title="Time to the first token">first token ${duration(answer.first)}</span>
        <span>all ${duration(answer.seconds)}</span>`}
      ${usage && html`<span>${count(usage.prompt_tokens)} → ${count(usage.completion_tokens)} tokens</span>`}
      ${speed !== null && html`<span>${decimal(speed, 1)} tokens/s</span>`}
      ${FINISHES[answer.finish] && html`<span class="warn">${FINISHES[answer.finish]}</span>`}
      ${answer.state === "stopped" && html`<span class="warn">stopped</span>`}
      ${answer.state === "done" && answer.text && html`<button class="link" onClick=${onSave}>save as an example</button>`}</footer>
  </article>`;
}
