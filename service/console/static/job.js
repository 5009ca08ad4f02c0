// One job: how far it is, its loss as it falls, and what came of it.

import { html, useEffect, useState } from "./vendor/preact.js";
import { events, get, list, post, send } from "./api.js";
import { ago, clock, count, decimal, duration, isOver, plural, VERDICTS } from "./format.js";
import { Badge, Busy, Confirm, Failure, Loaded, Progress, useEvery, useLoaded } from "./ui.js";
import { Status, timeLeft, waitingWords } from "./train.js";
import { LineChart } from "./chart.js";
import { DataReport } from "./data_report.js";
import { EvaluationReport } from "./evaluation.js";
import { PromoteDialog } from "./alias_dialogs.js";

const AGAIN_MS = 3000;

/** All events of a job, oldest first, as they come; a connection that breaks is opened again after the last event. */
function useEvents(id) {
  const [all, setAll] = useState([]);
  const [error, setError] = useState(null);
  useEffect(() => {
    const controller = new AbortController();
    const known = new Map();
    const follow = async () => {
      let last;
      while (!controller.signal.aborted) {
        try {
          const response = await send("GET", `/v1/fine_tuning/jobs/${encodeURIComponent(id)}/events?stream=true`, {
            signal: controller.signal, more: last ? { "last-event-id": last } : {},
          });
          for await (const event of events(response)) {
            known.set(event.id, event);
            last = event.id;
            setError(null);
            setAll([...known.values()]);
          }
          if (isOver((await get(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}`, { signal: controller.signal })).status)) return;
        } catch (failure) {
          if (controller.signal.aborted) return;
          setError(failure);
        }
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    };
    follow();
    return () => controller.abort();
  }, [id]);
  return { all, error };
}

export function JobView({ id }) {
  const job = useLoaded(() => get(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}`), [id]);
  const [asking, setAsking] = useState(null);
  const { all, error } = useEvents(id);
  const product = useLoaded(() => made(job.data?.fine_tuned_model), [job.data?.fine_tuned_model, job.data?.status]);
  const over = job.data && isOver(job.data.status);
  useEvery(4, job.poll, !over && !job.denied);
  return html`<p class="crumb"><a href="#/train">Train</a></p><${Loaded} of=${job}>${(data) => {
    const metrics = all.filter((each) => each.type === "metrics").map((each) => each.data);
    return html`<header class="view"><div><h1>${data.hatrack.adapter} <${Status} status=${data.status} /></h1>
        <p>${data.id}, begun ${ago(data.created_at)}${timeLeft(data) && `, ${timeLeft(data)}`}</p></div>
      <div class="actions">${!over && html`${data.status === "paused" ? html`<button onClick=${() => setAsking("resume")}>Resume</button>` : html`<button onClick=${() => setAsking("pause")}>Pause</button>`}
        <button class="danger" onClick=${() => setAsking("cancel")}>Cancel the job</button>`}</div></header>
      ${ACTIONS[asking] && html`<${AskJob} job=${data} what=${asking} onClose=${() => setAsking(null)} onDone=${() => { setAsking(null); job.reload(); }} />`}
      ${asking === "promote" && html`<${PromoteDialog} ...${product.data} onClose=${() => setAsking(null)} onDone=${() => { setAsking(null); product.reload(); }} />`}
      ${data.error && html`<div class="notice bad" role="alert"><strong>The job failed</strong><p>${data.error.message}</p></div>`}
      ${data.hatrack.wanted && html`<p class="warn">It will ${data.hatrack.wanted} after the step that it is in.</p>`}
      ${data.hatrack.waiting && html`<div class="notice"><strong>Waiting</strong><p>${waitingWords(data.hatrack.waiting)}</p></div>`}
      <${Outcome} job=${data} version=${product.data?.version} promote=${() => setAsking("promote")} />
      ${!over && html`<${Judging} all=${all} />`}
      <${Loss} job=${data} metrics=${metrics} over=${over} />
      ${product.error && !product.denied && html`<${Failure} error=${product.error} retry=${product.reload} />`}
      ${product.data?.report && html`<section aria-label="Report"><h2>The report</h2><${EvaluationReport} report=${product.data.report} told /></section>`}
      <${Plan} job=${data} />
      ${data.hatrack.report && html`<${Report} id=${id} />`}
      <${Log} all=${all} error=${error} />`;
  }}<//>`;
}

const ACTIONS = {
  pause: ["Pause", "It stops after the step that it is in, keeps what it has learned, and lets the next run start."],
  resume: ["Resume", "It goes on where it was, as soon as its turn comes."],
  cancel: ["Cancel", "It ends for good. What it has learned so far is lost, except for checkpoints of whole epochs."],
};

function AskJob({ job, what, onClose, onDone }) {
  const [label, sentence] = ACTIONS[what];
  return html`<${Confirm} title="${label} the training of ${job.hatrack.adapter}" action="${label} the job" danger=${what === "cancel"}
    run=${() => post(`/v1/fine_tuning/jobs/${job.id}/${what}`)} onClose=${onClose} onDone=${onDone}><p>${sentence}</p><//>`;
}

/** The verdict, and the way to live: `version` is null until it is loaded, or where it is gone. */
function Outcome({ job, version, promote }) {
  const { verdict } = job.hatrack;
  if (!verdict && !job.fine_tuned_model) return null;
  const tone = { pass: "good", fail: "bad", not_enough_evidence: "warn" }[verdict?.verdict] || "";
  const name = job.fine_tuned_model;
  return html`<div class="notice ${tone}"><strong>${verdict ? `Verdict: ${VERDICTS[verdict.verdict]}` : `${name} is ready, without a verdict`}</strong>
    ${verdict && html`<p>${verdict.sentence}</p>`}
    ${name && html`<div class="actions">${version && (version.aliases.includes("live") ? html`<${Badge} tone="live">${name} is live<//>`
        : html`<button class="primary" onClick=${promote}>Promote ${name} …</button>`)}
      <a class="button" href="#/playground/${encodeURIComponent(name)}">Ask it</a> <a class="button" href="#/adapters/${encodeURIComponent(name.split("@")[0])}">Its adapter</a>
      ${verdict && html`<a class="button" href="#/review/${encodeURIComponent(job.id)}">Review its answers</a>`}</div>`}</div>`;
}

function Loss({ job, metrics, over }) {
  const last = metrics.at(-1);
  if (!last) return over ? null : html`<section><h2>Loss</h2><${Busy}>The curve begins with the first step.<//></section>`;
  const points = (name) => metrics.filter((each) => Number.isFinite(each[name])).map((each) => [each.step, each[name]]);
  const series = [{ name: "training loss", points: points("train_loss") }, { name: "validation loss", points: points("full_valid_loss").length ? points("full_valid_loss") : points("valid_loss"), marks: true }];
  return html`<section aria-label="Loss"><h2>Loss</h2>
    ${!over && last.step < last.total_steps && html`<${Progress} done=${last.step} total=${last.total_steps}
      label="Step ${count(last.step)} of ${count(last.total_steps)}, ${decimal(last.tokens_per_s, 0)} tokens/s${last.seconds_left ? `, about ${duration(last.seconds_left)} of training left` : ""}" />`}
    <div class="panel"><${LineChart} series=${series} until=${last.total_steps} xLabel="by step" label="Loss by step; the training loss is now ${decimal(last.train_loss, 3)}" /></div>
    ${job.hatrack.pauses.count > 0 && html`<p class="dim small">Paused ${plural(job.hatrack.pauses.count, "time")} for callers' requests, ${duration(job.hatrack.pauses.seconds)} in all.</p>`}</section>`;
}

/** How far the questions of the verdict are, once the training has ended. */
function Judging({ all }) {
  const last = all.findLast((each) => each.type === "metrics" || (each.data?.stage && each.data.total));
  if (!last || last.type === "metrics") return null;
  const { stage, done, total } = last.data;
  return html`<section aria-label="Judging"><h2>Judging</h2><${Progress} done=${done} total=${total} label="${stage}: ${count(done)} of ${count(total)}" />
    <p class="dim small">The version and the base answer questions that neither was trained on; callers' requests go first.</p></section>`;
}

/** What a job has made: {adapter, version, report}, each null where it is gone. */
async function made(model) {
  if (!model) return null;
  const adapter = (await list("/v1/adapters", {}, Infinity)).data.find((each) => each.name === model.split("@")[0]) || null;
  const version = adapter?.versions.find((each) => `${each.adapter}@${each.version}` === model) || null;
  const file = version?.verdict?.files?.report;
  return { adapter, version, report: file ? await (await send("GET", `/v1/files/${file}/content`)).json() : null };
}

function Plan({ job }) {
  const { plan } = job.hatrack;
  if (!plan) return null;
  const rows = Object.entries(plan.chosen);
  return html`<details><summary>What the trainer chose, and why</summary><dl class="names">
    ${plan.primary && html`<div><dt>metric</dt><dd>${plan.primary.name}: ${plan.primary.why}</dd></div>`}
    ${rows.map(([name, why]) => html`<div key=${name}><dt class="mono">${name}</dt><dd>${why}</dd></div>`)}</dl></details>`;
}

function Report({ id }) {
  const [open, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.target.open)}><summary>The data report</summary>${open && html`<${LoadedReport} id=${id} />`}</details>`;
}

function LoadedReport({ id }) {
  const report = useLoaded(() => get(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}/report`), [id]);
  return html`<${Loaded} of=${report}>${(data) => html`<${DataReport} report=${data} />`}<//>`;
}

function Log({ all, error }) {
  const messages = all.filter((each) => each.type === "message");
  return html`<details><summary>${plural(messages.length, "event")}</summary>
    ${error && html`<${Failure} error=${error} />`}
    <ol class="log">${messages.map((each) => html`<li key=${each.id} class=${each.level === "error" ? "bad" : each.level === "warn" ? "warn" : ""}>
      <time class="dim">${clock(each.created_at)}</time> ${each.message}</li>`)}</ol></details>`;
}
