// One piece of advice: what is being measured, rung by rung, what follows from it, and the rung that is put live.

import { html, useState } from "./vendor/preact.js";
import { get, list, post, send } from "./api.js";
import { ADVICE, ADVICE_TONES, ago, clock, count, duration, isOver, LADDER_STAGES, plural } from "./format.js";
import { Badge, Busy, Confirm, download, Loaded, Progress, useEvery, useLoaded } from "./ui.js";
import { Status, waitingWords } from "./train.js";
import { liveVersions } from "./versions.js";
import { PromoteDialog } from "./alias_dialogs.js";
import { AdviceReport, Rungs } from "./advice_report.js";
import { isPriced, yearParts, yearTotal } from "./year.js";

/** How far the run is that a ladder waits for: {id, words, done, total}; null where none is under way. */
async function childOf(ladder) {
  const child = ladder.children.at(-1);
  if (!child || ladder.status !== "running") return null;
  const words = LADDER_STAGES[child.purpose] || child.purpose;
  if (ladder.labels && !ladder.labels.file && !ladder.labels.error) {
    const { teacher, answered, refused, truncated, prompts } = ladder.labels;
    return { words: `${teacher} answers prompts`, done: answered + refused + truncated, total: prompts };
  }
  if (!child.purpose.startsWith("job")) {
    const { progress } = await get(`/v1/evaluations/${encodeURIComponent(child.id)}`);
    return { id: child.id, words, done: progress?.done, total: progress?.total };
  }
  const events = await get(`/v1/fine_tuning/jobs/${encodeURIComponent(child.id)}/events?limit=20`);
  const step = events.data.find((each) => each.type === "metrics")?.data;
  return { id: child.id, words, done: step?.step, total: step?.total_steps };
}

/** Everything that a ladder's page shows; the adapter is null until a rung has become a version of it. */
async function ladderPage(path) {
  const [ladder, events] = await Promise.all([get(path), get(`${path}/events?limit=100`)]);
  const made = ladder.rungs.some((each) => each.model.includes("@"));
  const [report, child, adapters] = await Promise.all([
    ladder.status === "succeeded" ? get(`${path}/report`) : null, childOf(ladder), made ? list("/v1/adapters", {}, Infinity) : { data: [] },
  ]);
  return { ladder, report, child, events: events.data, adapter: adapters.data.find((each) => each.name === ladder.adapter) || null };
}

export function LadderView({ id }) {
  const path = `/v1/ladders/${encodeURIComponent(id)}`;
  const [asking, setAsking] = useState(null); // "cancel", or the model of the rung to promote
  const loaded = useLoaded(() => ladderPage(path), [id]);
  const over = loaded.data && isOver(loaded.data.ladder.status);
  useEvery(over ? 30 : 5, loaded.poll, !asking && !loaded.denied);
  const page = async () => download(`${id}.html`, await (await send("GET", `${path}/report.html`)).blob());
  const done = () => { setAsking(null); loaded.reload(); };
  return html`<p class="crumb"><a href="#/train">Train</a></p><${Loaded} of=${loaded}>${({ ladder, report, child, events, adapter }) => html`
    <header class="view"><div><h1>Is fine-tuning ${ladder.adapter} worth it? <${Status} status=${ladder.status} /></h1>
        <p>${ladder.id}, begun ${ago(ladder.created_at)}${ladder.seconds ? `, took ${duration(ladder.seconds)}` : ""}${ladder.quick ? ", the quick way" : ""}</p></div>
      <div class="actions">${report && html`<button onClick=${page}>Download the whole report</button>`}
        ${!over && html`<button class="danger" onClick=${() => setAsking("cancel")}>Cancel</button>`}</div></header>
    ${asking === "cancel" && html`<${Confirm} title="Cancel the advice on ${ladder.adapter}" action="Cancel it" danger run=${() => post(`${path}/cancel`)}
      onClose=${() => setAsking(null)} onDone=${done}><p>Its evaluations and its job end, too. What was measured so far stays to be seen.</p><//>`}
    ${asking && asking !== "cancel" && html`<${PromoteRung} adapter=${adapter} model=${asking} report=${report} onClose=${() => setAsking(null)} onDone=${done} />`}
    ${ladder.error && html`<div class="notice bad" role="alert"><strong>It failed</strong><p>${ladder.error.message}</p></div>`}
    ${ladder.waiting && html`<div class="notice"><strong>Waiting</strong><p>${waitingWords(ladder.waiting)}</p></div>`}
    ${!over && html`<${Doing} child=${child} />`}
    ${ladder.advice && html`<${Advice} ladder=${ladder} report=${report} adapter=${adapter} promote=${setAsking} />`}
    <${Rungs} ladder=${ladder} report=${report} live=${liveModels(adapter)} promote=${adapter && setAsking} />
    ${!ladder.rungs.length && !over && html`<p class="dim">The first scores come when the prompts have been compared; rungs appear here, the simplest first.</p>`}
    ${report && html`<${AdviceReport} ladder=${ladder} report=${report} />`}
    <details open=${!over}><summary>${plural(events.length, "event")}</summary><ol class="log">${events.map((each) => html`<li key=${each.id}>
      <time class="dim">${clock(each.created_at)}</time> ${each.message}</li>`)}</ol></details>`}<//>`;
}

const liveModels = (adapter) => new Set(adapter ? liveVersions(adapter).map((each) => `${adapter.name}@${each.version}`) : []);

/** What is being measured now, and where to watch it. */
function Doing({ child }) {
  if (!child) return html`<${Busy}>Checking the data, and preparing the next step …<//>`;
  const label = html`${child.words}${child.total ? `: ${count(child.done)} of ${count(child.total)}` : ""}${child.id && html` · <a href="#/train/${encodeURIComponent(child.id)}">watch it</a>`}`;
  return html`<${Progress} done=${child.done} total=${child.total || 0} label=${label} name=${child.words} />`;
}

function Advice({ ladder, report, adapter, promote }) {
  const live = liveModels(adapter).has(ladder.model);
  const isVersion = ladder.model?.includes("@") && adapter?.versions.some((each) => `${adapter.name}@${each.version}` === ladder.model);
  return html`<div class="notice ${ADVICE_TONES[ladder.advice]}"><strong>Advice: ${ADVICE[ladder.advice]}</strong><p>${ladder.sentence}</p>
    ${report?.advice.reasons.length > 0 && html`<ul class="small">${report.advice.reasons.map((each) => html`<li key=${each}>${each}</li>`)}</ul>`}
    ${report?.advice.would_change.length > 0 && html`<p class="small"><b>What would change it</b></p><ul class="small">${report.advice.would_change.map((each) => html`<li key=${each}>${each}</li>`)}</ul>`}
    ${ladder.model && html`<div class="actions">${isVersion && (live ? html`<${Badge} tone="live">${ladder.model} is live<//>`
      : html`<button class="primary" onClick=${() => promote(ladder.model)}>Promote ${ladder.model} …</button>`)}
      <a class="button" href="#/playground/${encodeURIComponent(ladder.model)}">Ask ${ladder.model}</a></div>`}</div>`;
}

/** The promotion of a rung, with what its year costs. */
function PromoteRung({ adapter, model, report, onClose, onDone }) {
  const version = adapter.versions.find((each) => `${adapter.name}@${each.version}` === model);
  const rung = report?.rungs.find((each) => each.model === model);
  const priced = report && isPriced(report.prices);
  return html`<${PromoteDialog} adapter=${adapter} version=${version} onClose=${onClose} onDone=${onDone}>
    ${rung && html`<p>A year of it: <b>${yearTotal(rung.year, priced, report.prices.currency)}</b> <span class="dim">(${yearParts(rung.year, priced)}).</span></p>`}
    <p class="dim small">It was compared with the other rungs, which is no verdict: “Judge …” on its page gives one, on examples that the advice has not seen.</p><//>`;
}
