// What advice rests on: the rungs' scores and costs, whether more examples would help, what was left out, and answers.

import { html } from "./vendor/preact.js";
import { capital, count, decimal, duration, isOver, percent, plural } from "./format.js";
import { Badge, Words } from "./ui.js";
import { IntervalBar } from "./chart.js";
import { isPriced, MissingPrices, money, yearParts, yearTotal } from "./year.js";

const points = (value) => decimal(100 * value, 1);
const signed = (value) => `${value > 0 ? "+" : ""}${points(value)}`;

/** A rung's score in points of 100; without one, whether it may still get one. */
export function scoreOf(rung, ladder) {
  if (rung.mean !== null) return points(rung.mean);
  return isOver(ladder.status) ? "not measured" : "…";
}

/** The rungs with their scores; intervals, gains and costs are the report's, which comes at the end. `live` has the models that are live;
 * `promote` is null where no rung has become a version yet. */
export function Rungs({ ladder, report, live, promote }) {
  if (!ladder.rungs.length) return null;
  const measured = new Map((report?.rungs || []).map((each) => [each.key, each]));
  const priced = report && isPriced(report.prices);
  const rows = ladder.rungs.map((each) => ({ rung: each, full: measured.get(each.key) }));
  return html`<section aria-label="Rungs"><h2>Measured, the simplest first</h2>
    ${report && html`<p class="dim">By ${report.metric}, in points of 100 (${report.why_metric}). Every rung answered the same ${plural(report.counts.held_out, "held-out example")}.
      ${report.common_answer > 0 && ` Always giving the most frequent answer would score ${points(report.common_answer)}.`}${report.target !== null && ` Good enough: ${points(report.target)}.`}</p>`}
    <div class="scroll"><table class="cards"><thead><tr><th>Rung</th><th class="num">Score</th>${report && html`<th class="bar-cell">95% interval</th>
      <th class="num">Gain on the rung below</th><th class="num">First token</th><th class="num">A year</th>`}<th></th></tr></thead>
    <tbody>${rows.map(({ rung, full }) => html`<tr key=${rung.key} class=${rung.key === ladder.rung ? "chosen" : ""}>
      <td data-label="Rung"><strong>${capital(rung.title)}</strong> ${rung.key === ladder.rung && html`<${Badge} tone="info">advised<//>`} ${live.has(rung.model) && html`<${Badge} tone="live">live<//>`}
        <div class="dim small mono">${rung.model}</div></td>
      <td data-label="Score" class="num"><b>${scoreOf(rung, ladder)}</b>
        ${rung.mean === null && rung.provisional && html`<div class="dim small">${points(rung.provisional.mean)} so far (${points(rung.provisional.low)} to ${points(rung.provisional.high)}), on ${rung.provisional.questions} of ${rung.provisional.of}</div>`}</td>
      ${report && (full ? html`<td data-label="95% interval" class="bar-cell"><${IntervalBar} ...${full.mean} max=${1} /><span class="dim small">${points(full.mean.low)} to ${points(full.mean.high)}</span></td>
        <td data-label="Gain on the rung below" class="num">${full.against_below ? html`${signed(full.against_below.estimate)}<div class="dim small">${signed(full.against_below.low)} to ${signed(full.against_below.high)}</div>` : "–"}</td>
        <td data-label="First token" class="num">${full.first_token ? duration(full.first_token.median_seconds) : "–"}<div class="dim small">answer ${duration(full.seconds)}</div></td>
        <td data-label="A year" class="num">${yearTotal(full.year, priced, report.prices.currency)}</td>` : html`<td colspan="4"></td>`)}
      <td class="row-actions">${rung.mean !== null && html`<a class="button" href="#/playground/${encodeURIComponent(rung.model)}">Ask</a>`}
        ${promote && rung.model.includes("@") && !live.has(rung.model) && rung.mean !== null && html`<button aria-label="Promote ${rung.model}" onClick=${() => promote(rung.model)}>Promote …</button>`}</td></tr>`)}</tbody></table></div></section>`;
}

/** Everything of the report but the rungs' scores. */
export function AdviceReport({ ladder, report }) {
  return html`<${Costs} report=${report} />
    ${report.curve && html`<${Curve} report=${report} />`}
    ${report.skipped.length > 0 && html`<section aria-label="Not measured"><h2>Not measured</h2><ul class="plain">${report.skipped.map((each) => html`<li key=${each.title}><strong>${each.title}</strong>: <${Words} text=${each.reason} /></li>`)}</ul></section>`}
    ${report.labels && html`<${Labels} labels=${report.labels} currency=${report.prices.currency} />`}
    ${ladder.vector_store_id && html`<p>The rungs with retrieved examples are served with <a href="#/stores/${encodeURIComponent(ladder.vector_store_id)}">a store that was made for them</a>. If you ship another rung, delete it there; it names the versions that need it.</p>`}
    ${report.facts.warnings?.length > 0 && html`<details><summary>${plural(report.facts.warnings.length, "finding")} of the data report</summary><ul class="plain small">${report.facts.warnings.map((each) => html`<li key=${each}>${each}</li>`)}</ul></details>`}
    ${report.notes.length > 0 && html`<details><summary>${plural(report.notes.length, "note")}</summary><ul class="plain small">${report.notes.map((each) => html`<li key=${each}>${each}</li>`)}</ul></details>`}
    <section aria-label="Answers"><h2>Answers</h2>${report.rungs.map((each) => html`<${Answers} key=${each.key} rung=${each} />`)}</section>
    <p class="dim small">${plural(report.counts.training, "example")} to learn from, ${count(report.counts.choosing)} to choose the instructions on, ${count(report.counts.held_out)} held out, of ${report.file}. Base: ${report.base}.</p>`;
}

function Costs({ report }) {
  const priced = isPriced(report.prices);
  const { currency } = report.prices;
  const rule = report.rungs.find((each) => each.year.rule_of_thumb)?.year.rule_of_thumb;
  return html`<section aria-label="Costs"><h2>What it costs</h2>
    <p class="dim">Measured time${priced ? ` at the operator's prices` : ""}, for ${plural(report.requests_per_month, "request")} a month and ${plural(report.prices.retrainings_per_year, "retraining")} a year.
      ${" "}<${MissingPrices} prices=${report.prices} /></p>
    <div class="scroll"><table class="cards"><thead><tr><th>Rung</th><th class="num">Tokens in + out</th><th class="num">Once</th><th class="num">1,000 requests</th><th class="num">A year</th><th>Of which</th><th>To change it</th></tr></thead>
    <tbody>${report.rungs.map((each) => html`<tr key=${each.key}><td data-label="Rung"><strong>${capital(each.title)}</strong></td>
      <td data-label="Tokens in + out" class="num">${count(Math.round(each.request.prompt_tokens))} + ${count(Math.round(each.request.completion_tokens))}</td>
      <td data-label="Once" class="num">${priced && each.once.money !== null ? money(each.once.money, currency) : duration(each.once.device_seconds)}</td>
      <td data-label="1,000 requests" class="num">${priced && each.request.per_thousand !== null ? money(each.request.per_thousand, currency) : duration(1000 * each.request.engine_seconds)}
        ${each.request.hosted_per_thousand !== null && html`<div class="dim small">hosted ${money(each.request.hosted_per_thousand, currency)}</div>`}</td>
      <td data-label="A year" class="num"><b>${yearTotal(each.year, priced, currency)}</b></td>
      <td data-label="Of which" class="small">${yearParts(each.year, priced)}</td><td data-label="To change it" class="small">${each.update}</td></tr>`)}</tbody></table></div>
    ${rule && html`<p class="dim small">The field's rule of thumb, three to five times the cost of one training, would give ${money(rule[0], currency)} to ${money(rule[1], currency)} for the upkeep of a LoRA.</p>`}</section>`;
}

function Curve({ report }) {
  const { curve } = report;
  return html`<section aria-label="Learning curve"><h2>Would more examples help${curve.cleanest ? ", or cleaner ones" : ""}?</h2><p>${curve.sentence}</p>
    <div class="scroll"><table class="cards"><thead><tr><th>Trained on</th><th class="num">Examples</th><th class="num">Score</th><th class="bar-cell">95% interval</th></tr></thead>
    <tbody>${[...curve.points, ...(curve.cleanest ? [curve.cleanest] : [])].map((each) => html`<tr key=${each.model}><td data-label="Trained on"><strong>${each.part}</strong><div class="dim small mono">${each.model}</div></td>
      <td data-label="Examples" class="num">${count(each.examples)}</td><td data-label="Score" class="num"><b>${points(each.mean.mean)}</b></td>
      <td data-label="95% interval" class="bar-cell"><${IntervalBar} ...${each.mean} max=${1} /><span class="dim small">${points(each.mean.low)} to ${points(each.mean.high)}</span></td></tr>`)}</tbody></table></div>
    ${report.subsets_kept_days !== null && html`<p class="dim small">Versions trained on a part of the examples are deleted ${plural(report.subsets_kept_days, "day")} after they were made, unless they are promoted.</p>`}</section>`;
}

function Labels({ labels, currency }) {
  return html`<section aria-label="Teacher"><h2>The teacher</h2><p><strong>${labels.teacher}</strong> answered ${count(labels.answered)} of ${plural(labels.prompts, "prompt")};
    ${plural(labels.refused, "refusal")} and ${plural(labels.truncated, "cut answer")} are set aside. That took ${count(labels.prompt_tokens)} + ${count(labels.completion_tokens)} tokens${labels.outside
      ? labels.money === null ? "; the operator has not set what they cost" : ` for ${money(labels.money, currency)}` : ` and ${duration(labels.engine_seconds)} of the engine`}.</p></section>`;
}

function Answers({ rung }) {
  return html`<details><summary>${capital(rung.title)} <span class="dim">scores ${points(rung.mean.mean)}, and ${points(rung.control)} where its answers are swapped between questions</span></summary>
    ${rung.system_prompt && html`<h4>Instructions</h4><pre class="text">${rung.system_prompt}</pre>`}
    ${rung.shown.map((each, index) => html`<article key=${index} class="panel sample"><p class="quoted">${each.asked}</p><div class="panes">
      <div><h4>as the author answered</h4><div class="answer">${each.reference}</div></div>
      <div><h4>${rung.title} <span class="mono">${percent(each.score)}</span></h4><div class="answer">${each.answer}</div></div></div></article>`)}</details>`;
}
