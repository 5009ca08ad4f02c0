// Who asks what: now, and over the last days; what it costs.

import { html, useState } from "./vendor/preact.js";
import { get, session, url } from "./api.js";
import { amount, count, decimal, duration, percent } from "./format.js";
import { Badge, Empty, Failure, Field, Loaded, useEvery, useLoaded } from "./ui.js";
import { BarChart } from "./chart.js";
import { Engines } from "./engines.js";
import { metrics, quantile, total } from "./metrics.js";

const HOUR = 3600;
const DAY = 24 * HOUR;
const PERIODS = { "24 hours": DAY, "7 days": 7 * DAY, "30 days": 30 * DAY };
const GROUPS = { adapter: "adapter", "adapter,version": "version", key: "key", project: "project" };

export function TrafficView() {
  const [period, setPeriod] = useState("24 hours");
  const [group, setGroup] = useState("adapter");
  const page = useLoaded(() => traffic(PERIODS[period], group), [period, group]);
  useEvery(30, page.poll, !page.denied);
  return html`<header class="view"><div><h1>Traffic</h1><p>What this key may see of the requests, their tokens and their cost.</p></div>
      <div class="actions"><${Field} label="Period"><select value=${period} onChange=${(event) => setPeriod(event.target.value)}>
          ${Object.keys(PERIODS).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select><//>
        <${Field} label="By"><select value=${group} onChange=${(event) => setGroup(event.target.value)}>
          ${Object.entries(GROUPS).map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select><//></div></header>
    <${Now} />
    <${Loaded} of=${page}>${(data) => (data.rows.length ? html`<${Over} ...${data} period=${period} />` : html`<${Empty} title="No requests in the last ${period}">
      <p>Ask a model in the <a href="#/playground">playground</a>, or point an OpenAI client at <code>${location.origin}/v1</code> with a key of this gateway.</p><//>`)}<//>
    ${page.data && html`<${Budgets} costs=${page.data.costs} />`}`;
}

async function traffic(seconds, group) {
  const bucket = seconds > 2 * DAY ? DAY : HOUR;
  const end = Math.ceil(Date.now() / 1000 / bucket) * bucket;
  const range = { start: end - seconds, end, project: session.project };
  const [byTime, usage, costs] = await Promise.all([
    get(url("/v1/usage", { ...range, bucket: bucket === DAY ? "day" : "hour", group_by: "hour", limit: 1000 })),
    get(url("/v1/usage", { ...range, group_by: group, limit: 1000 })),
    get(url("/v1/costs", { ...range, group_by: group, limit: 1000 })).catch((error) => ({ error, data: [], budgets: [] })),
  ]);
  const sums = new Map(byTime.data.map((each) => [each.start, each]));
  const bars = Array.from({ length: seconds / bucket }, (_, index) => {
    const at = range.start + index * bucket;
    return { at, value: sums.get(at)?.requests ?? 0, bad: sums.get(at)?.errors ?? 0 };
  });
  const cost = new Map(costs.data.map((each) => [each.id, each]));
  const asked = new Set(usage.data.map((each) => each.id));
  // what was trained, or charged by endpoints outside, costs without a request here
  const others = costs.data.filter((each) => !asked.has(each.id) && !each.requests).map((each) => ({ errors: 0, cached_tokens: 0, ...each }));
  return { bars, bucket, group, rows: [...usage.data, ...others].map((each) => ({ ...each, cost: cost.get(each.id) })), costs };
}

function nameOf(row, group) {
  if (group === "key") return row.key_name ? html`<strong>${row.key_name}</strong> <span class="dim small mono">${row.key}</span>` : html`<span class="mono">${row.key}</span>`;
  if (group === "project") return html`<strong>${row.project}</strong>`;
  return html`<strong>${row.adapter || (row.requests ? "no such model" : "endpoints outside")}${row.version ? `@${row.version}` : ""}</strong>`;
}

function Over({ bars, bucket, group, rows, costs, period }) {
  const label = (at) => new Date(at * 1000).toLocaleString("en-GB", bucket === DAY ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" });
  const priced = Boolean(costs.prices?.device_hour);
  const costLabel = costs.currency ? `Cost, ${costs.currency}` : "Cost";
  const all = rows.reduce((sum, each) => sum + each.requests, 0);
  return html`<section aria-label="Requests over time"><h2>Requests ${bucket === DAY ? "a day" : "an hour"}</h2>
      <div class="panel"><${BarChart} bars=${bars} tickOf=${label} label="Requests over the last ${period}; ${all} in all" /></div></section>
    <section aria-label="Usage"><h2>Usage and cost by ${GROUPS[group]}</h2>
    <div class="scroll"><table class="cards"><thead><tr><th>${GROUPS[group]}</th><th class="num">Requests</th><th class="num">Errors</th><th class="num">Tokens in</th>
      <th class="num">from the cache</th><th class="num">Tokens out</th><th class="num">Device time</th>${priced && html`<th class="num">${costLabel}</th>`}</tr></thead>
    <tbody>${rows.map((each) => html`<tr key=${each.id}><td data-label=${GROUPS[group]}>${nameOf(each, group)}</td>
      <td data-label="Requests" class="num">${count(each.requests)}</td>
      <td data-label="Errors" class=${each.errors ? "num warn" : "num"}>${count(each.errors)}</td>
      <td data-label="Tokens in" class="num">${count(each.prompt_tokens)}</td>
      <td data-label="from the cache" class="num">${each.prompt_tokens ? percent(each.cached_tokens / each.prompt_tokens) : "–"}</td>
      <td data-label="Tokens out" class="num">${count(each.completion_tokens)}</td>
      <td data-label="Device time" class="num" title=${seconds(each.cost)}>${each.cost?.device_hours === null || !each.cost ? "–" : duration(each.cost.device_hours * HOUR)}</td>
      ${priced && html`<td data-label="Cost" class="num" title=${outside(each.cost)}>${amount(each.cost?.money?.total)}</td>`}</tr>`)}</tbody></table></div>
    ${costs.error && html`<${Failure} error=${costs.error} />`}
    ${!costs.error && !priced && html`<p class="dim small">No price is set, so there is device time and no money: <code>HATRACK_PRICE_DEVICE_HOUR</code>.</p>`}
    ${costs.runs && !costs.runs.available && html`<p class="dim small">Training, and what endpoints outside charged, is not counted: ${costs.runs.reason}</p>`}</section>`;
}

/** Budgets are of the calendar month, whatever the period shows. */
function Budgets({ costs }) {
  return costs.budgets.length > 0 && html`<section aria-label="Budgets"><h2>Budgets of this month</h2><ul class="plain">${costs.budgets.map((each) => html`<li key=${each.project}>
    <strong>${each.project}</strong> ${amount(each.spent)} of ${amount(each.monthly)} ${costs.currency || ""}
    ${each.exhausted && html` <${Badge} tone="bad">used up<//>`}</li>`)}</ul></section>`;
}

const seconds = (cost) => (cost ? ["serving", "evaluating", "training"].map((each) => `${each} ${duration(cost.seconds[each])}`).join(", ") : "");

/** What teachers and judges outside have charged, as a part of the cost; empty where none was asked. */
const outside = (cost) => (cost?.outside?.requests ? `outside ${amount(cost.outside.money)}` : "");

const RATE_S = 5;
const FIRST_TOKEN = "hatrack_time_to_first_token_seconds";

/** The state of this moment, and rates between two readings of `/metrics`. */
function Now() {
  const [readings, setReadings] = useState([]);
  const first = useLoaded(async () => { const samples = await metrics(); setReadings([{ at: performance.now(), samples }]); return samples; });
  useEvery(RATE_S, async () => {
    const samples = await metrics().catch(() => null);
    if (samples) setReadings((old) => [...old.slice(-1), { at: performance.now(), samples }]);
  }, Boolean(first.data));
  if (first.data === null) {
    return first.loading || first.error ? null : html`<p class="dim">The queue and rates of this moment are in <code>/metrics</code>, which this key may not read.</p><${Engines} readings=${[]} />`;
  }
  const [before, now] = readings.length > 1 ? readings : [null, readings[0]];
  if (!now) return null;
  const value = (name, labels) => total(now.samples, name, labels);
  const rate = (name, labels) => (before ? (value(name, labels) - total(before.samples, name, labels)) / ((now.at - before.at) / 1000) : null);
  const perSecond = (name, digits, labels) => (before ? `${decimal(rate(name, labels), digits)}/s` : "…");
  const of = (part, whole) => (part === null ? "–" : whole === null ? count(part) : `${count(part)} of ${count(whole)}`);
  const tiles = [
    ["Requests", perSecond("hatrack_requests_total", 1)], ["Tokens out", perSecond("hatrack_completion_tokens_total", 0)],
    ["In flight", count(value("hatrack_requests_in_flight"))], ["Waiting", count(value("hatrack_adapter_requests_queued") ?? 0)],
    ["Slots in use", of(value("hatrack_engine_slots_in_use"), value("hatrack_engine_slots"))],
    ["Loaded", of(value("hatrack_engine_resident_adapters"), value("hatrack_engine_resident_limit"))],
    ["First token, p50", duration(quantile(now.samples, FIRST_TOKEN, 0.5))], ["First token, p99", duration(quantile(now.samples, FIRST_TOKEN, 0.99))],
  ];
  return html`<section aria-label="Now"><h2>Now</h2><dl class="tiles">${tiles.map(([term, shown]) => html`<div key=${term}><dt>${term}</dt><dd>${shown}</dd></div>`)}</dl>
    <${Versions} samples=${now.samples} perSecond=${perSecond} value=${value} /></section><${Engines} readings=${readings} />`;
}

/** Labels of `/metrics` that are no adapter's name. */
const WORDS = { "(base)": "the base", "(none)": "no such model", "(embedder)": "the embedder", "(other)": "all others" };

/** Every version that has answered since the gateway started: rates, queue and latencies. */
function Versions({ samples, perSecond, value }) {
  const names = new Map();
  for (const { name, labels } of samples) if (name === "hatrack_requests_total") names.set(JSON.stringify([labels.project, labels.adapter, labels.version]), labels);
  if (!names.size || samples.some((each) => each.labels.adapter === "(all)")) return null;
  const rows = [...names].map(([id, { project, adapter, version }]) => {
    const labels = { project, adapter, version };
    return { id, labels, project, name: version ? `${adapter}@${version}` : WORDS[adapter] || adapter };
  }).sort((a, b) => a.name.localeCompare(b.name));
  const several = new Set(rows.map((each) => each.project)).size > 1;
  return html`<details><summary>By version: rates, queue and latency</summary><div class="scroll"><table class="cards"><thead><tr><th>Version</th><th class="num">Requests</th><th class="num">Tokens out</th>
      <th class="num">Waiting</th><th class="num">Running</th><th class="num">Queued, p50</th><th class="num">First token, p50</th><th class="num">First token, p99</th><th>Loaded</th></tr></thead>
    <tbody>${rows.map(({ id, labels, project, name }) => html`<tr key=${id}><td data-label="Version"><strong>${name}</strong>${several && html` <span class="dim">${project}</span>`}</td>
      <td data-label="Requests" class="num">${perSecond("hatrack_requests_total", 1, labels)}</td><td data-label="Tokens out" class="num">${perSecond("hatrack_completion_tokens_total", 0, labels)}</td>
      <td data-label="Waiting" class="num">${count(value("hatrack_adapter_requests_queued", labels) ?? 0)}</td><td data-label="Running" class="num">${count(value("hatrack_adapter_requests_running", labels) ?? 0)}</td>
      <td data-label="Queued, p50" class="num">${duration(quantile(samples, "hatrack_queue_seconds", 0.5, labels))}</td>
      <td data-label="First token, p50" class="num">${duration(quantile(samples, FIRST_TOKEN, 0.5, labels))}</td><td data-label="First token, p99" class="num">${duration(quantile(samples, FIRST_TOKEN, 0.99, labels))}</td>
      <td data-label="Loaded">${value("hatrack_adapter_resident", labels) ? "yes" : "–"}</td></tr>`)}</tbody></table></div>
    <p class="dim small">Rates over the last ${RATE_S} seconds, latencies since the gateway started; first tokens are counted for streams.</p></details>`;
}
