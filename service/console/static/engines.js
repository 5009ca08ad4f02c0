// The engines of a gateway that has several: each one's base, state, queue, slots and rates.

import { html } from "./vendor/preact.js";
import { ago, count, decimal } from "./format.js";
import { Badge, useEvery, useLoaded } from "./ui.js";
import { total } from "./metrics.js";

const TONES = { ready: "good", starting: "info", stalled: "warn", down: "bad" };
const POLL_S = 10;

/** The engines as `/readyz` lists them; none where there is one alone. It answers 503 while none is ready, with the same body. */
async function engines() {
  return (await (await fetch("/readyz", { cache: "no-store" })).json()).engines || [];
}

/** `readings`: the last two scrapes, [{at (ms), samples}], the newest last; none where the key may not read `/metrics`. */
export function Engines({ readings }) {
  const loaded = useLoaded(engines);
  useEvery(POLL_S, loaded.poll);
  if (!loaded.data?.length) return null;
  const [before, now] = readings.length > 1 ? readings : [null, readings[0]];
  const value = (name, labels) => (now ? total(now.samples, name, labels) : null);
  const rate = (name, labels, digits) => (!before ? "…" : `${decimal((value(name, labels) - total(before.samples, name, labels)) / ((now.at - before.at) / 1000), digits)}/s`);
  const share = (part, whole, labels) => (value(part, labels) === null ? "–" : `${count(value(part, labels))} of ${count(value(whole, labels))}`);
  return html`<section aria-label="Engines"><h2>By engine</h2><div class="scroll"><table class="cards"><thead><tr><th>Engine</th><th>Base</th><th>State</th>${now && html`<th class="num">Requests</th><th class="num">Tokens out</th>
      <th class="num">In it</th><th class="num">Waiting</th><th class="num">Slots in use</th><th class="num">Loaded</th><th class="num">Restarts</th>`}</tr></thead>
    <tbody>${loaded.data.map((each) => {
      const labels = { engine: each.name };
      return html`<tr key=${each.name}><td data-label="Engine"><strong>${each.name}</strong></td><td data-label="Base">${each.base}</td>
        <td data-label="State"><${Badge} tone=${TONES[each.state]}>${each.state}<//> <span class="dim small">since ${ago(each.since)}</span>${each.state !== "ready" && each.reason && html`<div class="small">${each.reason}</div>`}</td>
        ${now && html`<td data-label="Requests" class="num">${rate("hatrack_admission_granted_total", labels, 1)}</td>
        <td data-label="Tokens out" class="num">${rate("hatrack_engine_generation_tokens_total", labels, 0)}</td>
        <td data-label="In it" class="num">${count(value("hatrack_admission_in_engine", labels) ?? 0)}</td>
        <td data-label="Waiting" class="num">${count(value("hatrack_admission_queued", labels) ?? 0)}</td>
        <td data-label="Slots in use" class="num">${share("hatrack_engine_slots_in_use", "hatrack_engine_slots", labels)}</td>
        <td data-label="Loaded" class="num">${share("hatrack_engine_resident_adapters", "hatrack_engine_resident_limit", labels)}</td>
        <td data-label="Restarts" class="num">${count(value("hatrack_engine_restarts_total", labels) ?? 0)}</td>`}</tr>`;
    })}</tbody></table></div>
    <p class="dim small">Each adapter is loaded by one engine of its base; requests to a bare base go where the fewest are. Usage and cost are counted over all engines.</p></section>`;
}
