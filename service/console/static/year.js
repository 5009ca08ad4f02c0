// What a year of an adapter costs, version by version: at the traffic that was measured, or at one that is given.

import { html, useState } from "./vendor/preact.js";
import { get, url } from "./api.js";
import { ago, amount, count, decimal, duration, plural } from "./format.js";
import { Badge, Field, Loaded, useLoaded } from "./ui.js";

const SOURCES = {
  given: () => "as given",
  usage: (traffic) => `${plural(traffic.requests, "request")} in ${decimal(traffic.days, 1)} days, scaled`,
  setting: () => "the operator's setting: no caller has asked it yet, and what evaluations ask does not count",
};

/** Money with its currency. */
export const money = (value, currency) => (value === null || value === undefined ? "–" : `${amount(value)}${currency ? ` ${currency}` : ""}`);

/** Whether the operator has set the prices that a year is added up from; what was not measured may be missing still. */
export const isPriced = (prices) => prices.device_hour !== null && prices.person_hour !== null;

const PRICES = { device_hour: "HATRACK_PRICE_DEVICE_HOUR", person_hour: "HATRACK_PRICE_PERSON_HOUR" };

/** Which prices the operator has not set, and what follows. */
export function MissingPrices({ prices }) {
  const missing = Object.keys(PRICES).filter((each) => prices[each] === null);
  return missing.length > 0 && html`The operator has not set ${missing.map((each, index) => html`${index > 0 && " and "}<code key=${each}>${PRICES[each]}</code>`)}, so there are hours and no money.`;
}

/** What a year consists of, in words: money where it is priced, else hours. */
export function yearParts(year, priced) {
  if (!priced) return `${decimal(year.device_hours, 1)} h of the device, ${decimal(year.people_hours, 1)} h of people's work`;
  return ["requests", "retraining", "judging", "data", "checks"].map((each) => `${each} ${amount(year[each])}`).join(", ");
}

/** What stands for the whole year: its price, or where there is none the device's hours. */
export const yearTotal = (year, priced, currency) => (priced ? money(year.total, currency) : `${decimal(year.device_hours, 1)} h`);

/** A part of an adapter's page that is loaded once it is opened. */
export function YearSection({ name }) {
  const [open, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.target.open)}><summary>What a year costs</summary>${open && html`<${Year} name=${name} />`}</details>`;
}

function Year({ name }) {
  const [typed, setTyped] = useState("");
  const [perDay, setPerDay] = useState("");
  const year = useLoaded(() => get(url("/v1/costs/year", { adapter: name, requests_per_day: perDay })), [name, perDay]);
  return html`<form class="in-line" onSubmit=${(event) => { event.preventDefault(); setPerDay(typed); }}>
      <${Field} label="Requests a day"><input type="number" min="0" step="any" inputmode="decimal" placeholder="as measured" value=${typed}
        onInput=${(event) => setTyped(event.target.value)} /><//><button>Compute</button></form>
    <${Loaded} of=${year}>${(data) => html`<${YearTable} answer=${data} />`}<//>`;
}

function YearTable({ answer }) {
  const priced = isPriced(answer.prices);
  const { traffic, rhythm, training } = answer;
  const rule = answer.versions.find((each) => each.year.rule_of_thumb)?.year.rule_of_thumb;
  return html`<p>A year of <b>${plural(traffic.requests_per_year, "request")}</b> <span class="dim">(${SOURCES[traffic.source](traffic)})</span>, if all of them went to one version:</p>
    <div class="scroll"><table class="cards"><thead><tr><th>Version</th><th class="num">Tokens of a request</th><th class="num">${priced ? `A year${answer.currency ? `, ${answer.currency}` : ""}` : "Device hours"}</th><th>Of which</th></tr></thead>
    <tbody>${answer.versions.map((each) => html`<tr key=${each.name}><td data-label="Version"><strong class="mono">@${each.version}</strong> ${each.live && html`<${Badge} tone="live">live<//>`}
        <div class="dim small">${each.has_weights ? "with weights" : "without weights"}</div></td>
      <td data-label="Tokens of a request" class="num">${each.request ? `${count(Math.round(each.request.prompt_tokens))} + ${count(Math.round(each.request.completion_tokens))}` : html`<span class="dim" title="Callers have not asked it in the last 30 days">not asked yet</span>`}</td>
      <td data-label="A year" class="num"><b>${each.request || priced ? yearTotal(each.year, priced) : "–"}</b></td>
      <td data-label="Of which" class="small">${!each.request && !priced && "requests –, the rest "}${yearParts(each.year, priced)}</td></tr>`)}</tbody></table></div>
    <p class="dim small">${plural(rhythm.retrainings_per_year, "retraining")} and ${decimal(rhythm.revalidations_per_year, 1)} revalidations a year; at each of them people check as many answers as ${decimal(100 * rhythm.checked_share, 0)}% of the training examples.
      ${training && ` The last training took ${duration(training.seconds)} on ${plural(training.examples, "example")}, ${ago(training.finished_at)}.`}
      ${rule && ` The field's rule of thumb, three to five times the cost of one training, would give ${money(rule[0], answer.currency)} to ${money(rule[1], answer.currency)}.`}
      ${!answer.runs.available && ` The last training is not available: ${answer.runs.reason}`}</p>
    ${answer.long_prompt && html`<p class="dim small">A long prompt takes ${count(Math.round(answer.long_prompt.tokens_per_request))} tokens a request that weights do not need: ${count(answer.long_prompt.tokens_per_year)} a year.</p>`}
    ${answer.versions.some((each) => (priced ? each.year.total === null : !each.request)) && html`<p class="dim small">–: not known. What a request takes is measured once callers have asked the version, the rest once the adapter was trained and judged here.</p>`}
    <p class="dim small"><${MissingPrices} prices=${answer.prices} /></p>`;
}
