// One piece of advice: what was measured, rung by rung, and what follows from it.

import { html, useState } from "./vendor/preact.js";
import { get, post, send } from "./api.js";
import { ADVICE, ago, clock, decimal, duration, isOver, plural } from "./format.js";
import { Busy, Confirm, download, Loaded, useEvery, useLoaded } from "./ui.js";
import { Status, waitingWords } from "./train.js";
import { IntervalBar } from "./chart.js";

export function LadderView({ id }) {
  const path = `/v1/ladders/${encodeURIComponent(id)}`;
  const [asking, setAsking] = useState(false);
  const loaded = useLoaded(async () => {
    const [ladder, events] = await Promise.all([get(path), get(`${path}/events?limit=100`)]);
    const report = ladder.status === "succeeded" ? await get(`${path}/report`) : null;
    return { ladder, report, events: events.data };
  }, [id]);
  const over = loaded.data && isOver(loaded.data.ladder.status);
  useEvery(5, loaded.poll, !over && !loaded.denied);
  const page = async () => download(`${id}.html`, await (await send("GET", `${path}/report.html`)).blob());
  return html`<p class="crumb"><a href="#/train">Train</a></p><${Loaded} of=${loaded}>${({ ladder, report, events }) => html`
    <header class="view"><div><h1>Is fine-tuning ${ladder.adapter} worth it? <${Status} status=${ladder.status} /></h1>
        <p>${ladder.id}, begun ${ago(ladder.created_at)}${ladder.seconds ? `, took ${duration(ladder.seconds)}` : ""}${ladder.quick ? ", the quick way" : ""}</p></div>
      <div class="actions">${report && html`<button onClick=${page}>Download the whole report</button>`}
        ${!over && html`<button class="danger" onClick=${() => setAsking(true)}>Cancel</button>`}</div></header>
    ${asking && html`<${Confirm} title="Cancel the advice on ${ladder.adapter}" action="Cancel it" danger run=${() => post(`${path}/cancel`)}
      onClose=${() => setAsking(false)} onDone=${() => { setAsking(false); loaded.reload(); }}><p>Its evaluations and its job end, too. What was measured so far stays to be seen.</p><//>`}
    ${ladder.error && html`<div class="notice bad" role="alert"><strong>It failed</strong><p>${ladder.error.message}</p></div>`}
    ${ladder.waiting && html`<div class="notice"><strong>Waiting</strong><p>${waitingWords(ladder.waiting)}</p></div>`}
    ${ladder.advice && html`<div class="notice good"><strong>Advice: ${ADVICE[ladder.advice]}</strong><p>${ladder.sentence}</p>
      ${ladder.model && html`<p><a href="#/playground/${encodeURIComponent(ladder.model)}">Ask ${ladder.model}</a></p>`}</div>`}
    <${Rungs} ladder=${ladder} report=${report} over=${over} />
    <details open=${!over}><summary>${plural(events.length, "event")}</summary><ol class="log">${events.map((each) => html`<li key=${each.id}>
      <time class="dim">${clock(each.created_at)}</time> ${each.message}</li>`)}</ol></details>`}<//>`;
}

/** The rungs with their scores; the intervals are the report's, which comes at the end. */
function Rungs({ ladder, report, over }) {
  if (!ladder.rungs.length) return over ? null : html`<${Busy}>Nothing is measured yet.<//>`;
  const measured = new Map((report?.rungs || []).map((each) => [each.key, each]));
  const rows = ladder.rungs.map((each) => {
    const rung = measured.get(each.key);
    return { ...each, ...(rung ? rung.mean : { low: each.mean, high: each.mean }), year: rung?.year?.total };
  });
  const max = Math.max(1, ...rows.map((each) => each.high));
  const points = (value) => (max === 1 ? decimal(100 * value, 1) : decimal(value, 2));
  return html`<section aria-label="Rungs"><h2>Measured, from the cheapest${report ? ` by ${report.metric}` : ""}</h2>
    <div class="scroll"><table class="cards"><thead><tr><th>Rung</th><th class="num">Score</th>${report && html`<th class="num">95% interval</th>`}<th class="bar-cell"></th></tr></thead>
    <tbody>${rows.map((each) => html`<tr key=${each.key}><td data-label="Rung"><strong>${each.title}</strong><div class="dim small mono">${each.model}</div></td>
      <td data-label="Score" class="num">${points(each.mean)}</td>${report && html`<td data-label="95% interval" class="num dim">${points(each.low)} to ${points(each.high)}</td>`}
      <td class="bar-cell"><${IntervalBar} mean=${each.mean} low=${each.low} high=${each.high} max=${max} /></td></tr>`)}</tbody></table></div></section>`;
}
