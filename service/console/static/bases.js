// The bases that the gateway serves, and a field to choose one; most gateways serve one, and show no field.

import { html } from "./vendor/preact.js";
import { get } from "./api.js";
import { Field, useLoaded } from "./ui.js";

/** The bases among what `GET /v1/models` lists, the default first. */
export const basesIn = (models) => models.filter((each) => each.type === "chat" && each.parent === null).map((each) => each.id);

/** The names of the bases, the default first; none while they are not known, or if the key may not ask models. */
export function useBases() {
  return useLoaded(async () => basesIn((await get("/v1/models")).data)).data || [];
}

/** Where there are several bases, a choice between them: the first is the default, or what `auto` says in words. */
export function BaseField({ bases, value, onChange, hint, auto }) {
  if (bases.length < 2) return null;
  return html`<${Field} label="Base" hint=${hint}><select value=${value || (auto ? "" : bases[0])} onChange=${(event) => onChange(event.target.value)}>
    ${auto && html`<option value="">${auto}</option>`}
    ${bases.map((each, index) => html`<option key=${each} value=${each}>${each}${index ? "" : " (the default)"}</option>`)}</select><//>`;
}
