// Jobs, advice and evaluations, and the way to a new job.

import { html, useState } from "./vendor/preact.js";
import { get, url } from "./api.js";
import { ADVICE, ago, decimal, duration, isOver, plural, STATUSES, STATUS_TONES, VERDICTS, VERDICT_TONES } from "./format.js";
import { Badge, Empty, Loaded, useEvery, useLoaded } from "./ui.js";
import { scoreOf } from "./advice_report.js";
import { NewJob } from "./new_job.js";
import { EvaluateDialog } from "./evaluate.js";

const NEWEST = 30;

export function TrainView() {
  const [making, setMaking] = useState(null); // "train", "advice" or "judge"
  const opened = making === "train" || making === "advice";
  const runs = useLoaded(async () => {
    const [jobs, ladders, evaluations] = await Promise.all(["/v1/fine_tuning/jobs", "/v1/ladders", "/v1/evaluations"]
      .map(async (path) => (await get(url(path, { limit: NEWEST }))).data));
    return { jobs, ladders, evaluations };
  });
  useEvery(5, runs.poll, !making && !runs.denied);
  return html`<header class="view"><div><h1>Train</h1><p>Make a version from examples, and see whether it is better than what you have.</p></div>
      <div class="actions">${!opened && html`<button onClick=${() => setMaking("judge")}>Judge a version</button>
        <button onClick=${() => setMaking("advice")}>Is training worth it?</button>
        <button class="primary" onClick=${() => setMaking("train")}>Train from a file</button>`}</div></header>
    ${opened && html`<${NewJob} key=${making} aim=${making} onClose=${() => setMaking(null)} />`}
    ${making === "judge" && html`<${EvaluateDialog} onClose=${() => setMaking(null)} />`}
    <${Loaded} of=${runs}>${({ jobs, ladders, evaluations }) => html`
      ${(jobs.length > 0 || !opened) && html`<section aria-label="Jobs"><h2>Jobs</h2>${jobs.length ? html`<${Jobs} jobs=${jobs} />` : html`<${FirstJob} start=${setMaking} />`}</section>`}
      ${ladders.length > 0 && html`<section aria-label="Advice"><h2>Advice: is fine-tuning worth it?</h2><${Ladders} ladders=${ladders} /></section>`}
      ${evaluations.length > 0 && html`<section aria-label="Evaluations"><h2>Evaluations</h2><${Evaluations} evaluations=${evaluations} /></section>`}`}<//>`;
}

export const Status = ({ status }) => html`<${Badge} tone=${STATUS_TONES[status]}>${STATUSES[status] || status}<//>`;
export const Word = ({ verdict }) => (verdict ? html`<${Badge} tone=${VERDICT_TONES[verdict]}>${VERDICTS[verdict]}<//>` : html`<span class="dim">–</span>`);

/** Why a run waits; the message has its place in the line. Empty where it does not wait. */
export const waitingWords = (waiting) => (waiting ? `${waiting.message[0].toUpperCase()}${waiting.message.slice(1)}` : "");

function Jobs({ jobs }) {
  return html`<div class="scroll"><table class="cards"><thead><tr><th>Adapter</th><th>Status</th><th>Begun</th><th class="num">Examples</th><th class="num">Final loss</th><th>Verdict</th></tr></thead>
    <tbody>${jobs.map((job) => html`<tr key=${job.id}>
      <td data-label="Adapter"><a href="#/train/${job.id}"><strong>${job.hatrack.adapter}</strong></a>
        <div class="dim small">${job.fine_tuned_model || job.id}</div></td>
      <td data-label="Status"><${Status} status=${job.status} /> <span class="dim small">${timeLeft(job)}</span>
        ${job.hatrack.waiting && html`<div class="dim small">${waitingWords(job.hatrack.waiting)}</div>`}
        ${job.error && html`<div class="bad small">${job.error.message}</div>`}</td>
      <td data-label="Begun">${ago(job.created_at)}</td>
      <td data-label="Examples" class="num">${job.hatrack.report?.trained_on ?? "–"}</td>
      <td data-label="Final loss" class="num">${decimal(job.hatrack.final_loss, 3)}</td>
      <td data-label="Verdict"><${Word} verdict=${job.hatrack.verdict?.verdict} /></td></tr>`)}</tbody></table></div>`;
}

export function timeLeft(job) {
  if (isOver(job.status)) return job.hatrack.seconds ? `took ${duration(job.hatrack.seconds)}` : "";
  const left = job.estimated_finish && job.estimated_finish - Date.now() / 1000;
  return left > 0 ? `about ${duration(left)} left` : "";
}

function Ladders({ ladders }) {
  return html`<div class="scroll"><table class="cards"><thead><tr><th>Adapter</th><th>Status</th><th>Begun</th><th>Measured so far</th><th>Advice</th></tr></thead>
    <tbody>${ladders.map((ladder) => html`<tr key=${ladder.id}>
      <td data-label="Adapter"><a href="#/train/${ladder.id}"><strong>${ladder.adapter}</strong></a></td>
      <td data-label="Status"><${Status} status=${ladder.status} />${ladder.waiting && html`<div class="dim small">${waitingWords(ladder.waiting)}</div>`}
        ${ladder.error && html`<div class="bad small">${ladder.error.message}</div>`}</td>
      <td data-label="Begun">${ago(ladder.created_at)}</td>
      <td data-label="Measured so far">${ladder.rungs.length ? html`<ul class="plain small">${ladder.rungs.map((rung) => html`<li key=${rung.key}>${rung.title} <b class="mono">${scoreOf(rung, ladder)}</b></li>`)}</ul>` : html`<span class="dim">–</span>`}</td>
      <td data-label="Advice">${ladder.advice ? html`<${Badge} tone="info">${ADVICE[ladder.advice]}<//><p class="small">${ladder.sentence}</p>` : html`<span class="dim">–</span>`}</td></tr>`)}</tbody></table></div>`;
}

function Evaluations({ evaluations }) {
  return html`<div class="scroll"><table class="cards"><thead><tr><th>Compared</th><th>Status</th><th>Begun</th><th class="num">Examples</th><th>Verdict</th></tr></thead>
    <tbody>${evaluations.map((each) => html`<tr key=${each.id}>
      <td data-label="Compared"><a href="#/train/${each.id}"><strong>${each.model || each.arms.map((arm) => arm.label).join(", ")}</strong></a>
        ${each.kind === "revalidation" && html` <${Badge}>revalidation<//>`}</td>
      <td data-label="Status"><${Status} status=${each.status} />${each.progress && html` <span class="dim small">${each.progress.stage} ${each.progress.done} of ${each.progress.total}</span>`}
        ${each.waiting && html`<div class="dim small">${waitingWords(each.waiting)}</div>`}${each.error && html`<div class="bad small">${each.error.message}</div>`}</td>
      <td data-label="Begun">${ago(each.created_at)}</td>
      <td data-label="Examples" class="num">${each.examples ?? "–"}</td>
      <td data-label="Verdict"><${Word} verdict=${each.verdict} /></td></tr>`)}</tbody></table></div>`;
}

function FirstJob({ start }) {
  return html`<${Empty} title="No jobs yet">
    <p>A job needs a JSONL file of ${plural(10, "example")} or more: a question, and the answer as you would have written it.</p>
    <ul><li><button class="link" onClick=${() => start("train")}>Train from a file</button>: it is checked first, and nothing starts before you say so.</li>
      <li>Not sure yet? <button class="link" onClick=${() => start("advice")}>Is training worth it?</button> measures prompts, examples, retrieval and a LoRA side by side.</li></ul>
  <//>`;
}
