// An evaluation's report in place: the verdict, what it rests on, and answers side by side.

import { html, useState } from "./vendor/preact.js";
import { get, post, send } from "./api.js";
import { ago, capital, count, decimal, duration, isOver, plural, VERDICTS } from "./format.js";
import { Confirm, download, Loaded, Progress, useEvery, useLoaded } from "./ui.js";
import { Status, waitingWords } from "./train.js";
import { IntervalBar } from "./chart.js";
import { People } from "./review.js";

const MARKS = { kept: ["✓", "good", "kept"], broken: ["✗", "bad", "broken"], open: ["?", "warn", "not shown either way"] };
const TONES = { pass: "good", fail: "bad", not_enough_evidence: "warn" };
/** Above this the metric is no share between 0 and 1. */
const UNIT = 1.000001;

export function EvaluationView({ id }) {
  const loaded = useLoaded(async () => {
    const evaluation = await get(`/v1/evaluations/${encodeURIComponent(id)}`);
    const report = evaluation.status === "succeeded" ? await get(`/v1/evaluations/${encodeURIComponent(id)}/report`) : null;
    return { evaluation, report };
  }, [id]);
  const [asking, setAsking] = useState(false);
  const over = loaded.data && isOver(loaded.data.evaluation.status);
  useEvery(4, loaded.poll, !over && !loaded.denied);
  const page = async () => download(`${id}.html`, await (await send("GET", `/v1/evaluations/${encodeURIComponent(id)}/report.html`)).blob());
  return html`<p class="crumb"><a href="#/train">Train</a></p><${Loaded} of=${loaded}>${({ evaluation, report }) => html`
    <header class="view"><div><h1>${evaluation.model || "Comparison"} <${Status} status=${evaluation.status} /></h1>
        <p>${evaluation.id}, begun ${ago(evaluation.created_at)}${evaluation.seconds ? `, took ${duration(evaluation.seconds)}` : ""}</p></div>
      <div class="actions">${report && html`<button onClick=${page}>Download the whole report</button>`}
        ${report?.verdict && html`<a class="button" href="#/review/${encodeURIComponent(id)}">Review its answers</a>`}
        ${!over && html`<button class="danger" onClick=${() => setAsking(true)}>Cancel the evaluation</button>`}</div></header>
    ${asking && html`<${Confirm} title="Cancel the evaluation" action="Cancel the evaluation" danger run=${() => post(`/v1/evaluations/${encodeURIComponent(id)}/cancel`)}
      onClose=${() => setAsking(false)} onDone=${() => { setAsking(false); loaded.reload(); }}><p>It ends without a verdict. Answers that were given so far are lost.</p><//>`}
    ${evaluation.error && html`<div class="notice bad" role="alert"><strong>It failed</strong><p>${evaluation.error.message}</p></div>`}
    ${evaluation.waiting && html`<div class="notice"><strong>Waiting</strong><p>${waitingWords(evaluation.waiting)}</p></div>`}
    ${evaluation.progress && !over && html`<${Progress} done=${evaluation.progress.done} total=${evaluation.progress.total}
      label="${evaluation.progress.stage}: ${count(evaluation.progress.done)} of ${count(evaluation.progress.total)}" />`}
    ${evaluation.note && html`<p>${capital(evaluation.note)}</p>`}
    ${report && html`<${EvaluationReport} report=${report} />`}`}<//>`;
}

/** The report on a version's latest verdict, whichever run it comes from. */
export function VersionReport({ model }) {
  const [name, number] = model.split("@");
  const loaded = useLoaded(async () => {
    const version = await get(`/v1/adapters/${encodeURIComponent(name)}/versions/${number}`);
    const file = version.verdict?.files?.report;
    return { version, report: file ? await (await send("GET", `/v1/files/${file}/content`)).json() : null };
  }, [model]);
  const page = (verdict) => async () => download(`${model}.html`, await (await send("GET", `/v1/files/${verdict.files.page}/content`)).blob());
  return html`<p class="crumb"><a href="#/adapters/${encodeURIComponent(name)}">${name}</a></p><${Loaded} of=${loaded}>${({ version, report }) => html`
    <header class="view"><div><h1>${model}</h1><p>${version.verdict ? `judged ${ago(version.verdict.created_at)}` : "never judged"}</p></div>
      <div class="actions">${version.verdict?.files?.page && html`<button onClick=${page(version.verdict)}>Download the whole report</button>`}</div></header>
    ${report ? html`<${EvaluationReport} report=${report} />` : html`<p>${version.verdict ? version.verdict.sentence : "No evaluation has judged this version."}
      ${version.verdict && " Its report is no longer stored."}</p>`}`}<//>`;
}

const SHOWN_SAMPLES = 3; // the others are a click away

/** A report: the verdict with what it rests on, scores, suites, and answers side by side. `told`: the page has said the verdict already. */
export function EvaluationReport({ report, told }) {
  const { verdict } = report;
  const max = report.means.every((each) => each.high <= UNIT) ? 1 : Math.max(...report.means.map((each) => each.high));
  const points = (value) => (max === 1 ? decimal(100 * value, 1) : decimal(value, 2));
  return html`
    ${verdict && html`${!told && html`<div class="notice ${TONES[verdict.word]}"><strong>Verdict: ${VERDICTS[verdict.word]}</strong><p>${verdict.sentence}</p></div>`}
      <ul class="findings">${verdict.checks.map((each) => html`<li key=${each.name}><span class="mark ${MARKS[each.state][1]}" title=${MARKS[each.state][2]}>${MARKS[each.state][0]}</span>
        <span>${each.sentence}</span></li>`)}</ul>`}
    <section aria-label="Scores"><h2>Scores by ${report.metric}</h2>
      <p class="dim">${plural(report.held_out, "held-out example")}${max === 1 ? ", in points of 100" : ""}. ${report.why && report.why !== "requested" ? `Why this metric: ${report.why}.` : ""}</p>
      <div class="scroll"><table class="cards"><thead><tr><th>Arm</th><th class="num">Mean</th><th class="num">95% interval</th><th class="bar-cell"></th></tr></thead>
      <tbody>${report.means.map((each) => html`<tr key=${each.label}><td data-label="Arm"><strong>${each.label}</strong><div class="dim small mono">${report.served?.[each.label] || ""}</div></td>
        <td data-label="Mean" class="num">${points(each.mean)}</td><td data-label="95% interval" class="num dim">${points(each.low)} to ${points(each.high)}</td><td class="bar-cell"><${IntervalBar} ...${each} max=${max} /></td></tr>`)}</tbody></table></div></section>
    ${report.differences.length > 0 && html`<section aria-label="Differences"><h2>Differences</h2><ul class="plain">${report.differences.map((each) => html`<li key=${each.of + each.against}>
      <strong>${each.of}</strong> against <strong>${each.against}</strong>: ${each.estimate > 0 ? "+" : ""}${points(each.estimate)}
      <span class="dim"> (${points(each.low)} to ${points(each.high)}), better ${plural(each.wins, "time")}, worse ${plural(each.losses, "time")}</span></li>`)}</ul></section>`}
    ${report.suites.length > 0 && html`<section aria-label="Suites"><h2>Suites</h2><ul class="findings">${report.suites.map((each) => html`<li key=${each.name}>
      <span class="mark ${MARKS[each.state][1]}">${MARKS[each.state][0]}</span><span>${each.sentence}</span></li>`)}</ul></section>`}
    ${report.judged && html`<p>${report.judged.sentence}</p>`}
    ${report.people && html`<section aria-label="What people prefer"><h2>What people prefer</h2><${People} people=${report.people} /></section>`}
    ${report.notes.length > 0 && html`<details><summary>${plural(report.notes.length, "note")}</summary><ul class="plain small">${report.notes.map((each) => html`<li key=${each}>${each}</li>`)}</ul></details>`}
    ${report.samples.length > 0 && html`<section aria-label="Answers"><h2>Answers</h2><${Samples} samples=${report.samples.slice(0, SHOWN_SAMPLES)} points=${points} />
      ${report.samples.length > SHOWN_SAMPLES && html`<details><summary>${plural(report.samples.length - SHOWN_SAMPLES, "more question")}</summary><${Samples} samples=${report.samples.slice(SHOWN_SAMPLES)} points=${points} /></details>`}</section>`}`;
}

const KINDS = { best: "where it gained most", worst: "where it lost most", random: "drawn at random" };

const Samples = ({ samples, points }) => samples.map((each) => html`<${Sample} key=${each.kind + each.id} sample=${each} points=${points} />`);

function Sample({ sample, points }) {
  return html`<article class="panel sample"><p class="dim small">${KINDS[sample.kind]}</p><p class="quoted">${sample.asked}</p>
    <div class="panes">${[["as the author answered", sample.reference, null], ["base", sample.base, sample.base_score], ["candidate", sample.candidate, sample.candidate_score]]
      .map(([label, text, score]) => html`<div key=${label}><h4>${label} ${score !== null && html`<span class="mono">${points(score)}</span>`}</h4><div class="answer">${text}</div></div>`)}</div></article>`;
}
