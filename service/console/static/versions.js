// What several views show of adapters and their versions.

import { html } from "./vendor/preact.js";
import { get, shownProject, url } from "./api.js";
import { percent, splitShares } from "./format.js";

/** What a request names to be answered by an alias. */
export const modelName = (adapter, alias) => (alias === "live" ? adapter.name : `${adapter.name}:${alias}`);

/** Those of some aliases that people have set: `live` first, and none of a training's checkpoints, which come and go by themselves. */
export const ownAliases = (aliases) => aliases.filter((each) => !each.startsWith("ckpt-")).sort((a, b) => (b === "live") - (a === "live"));

/**
 * Usage of the last 24 hours in the shown project: `of` has {requests, errors} by `name` and `name@version`.
 * `byThisKey`: only this key's own requests are counted, since it is not an admin's.
 */
export async function usageByVersion(adapter) {
  const of = new Map();
  const { rows, byThisKey } = await usageRows({ group_by: "project,adapter,version", adapter });
  for (const row of rows) {
    if (!byThisKey && row.project !== shownProject()) continue;
    for (const name of [row.adapter, `${row.adapter}@${row.version}`]) {
      const sum = of.get(name) || { requests: 0, errors: 0 };
      of.set(name, { requests: sum.requests + row.requests, errors: sum.errors + row.errors });
    }
  }
  return { of, byThisKey };
}

/** All rows of a query for usage, every page of the first one's period, and whether they are of this key alone. */
async function usageRows(query) {
  const rows = [];
  let asked = { ...query, limit: 1000 };
  for (;;) {
    const page = await get(url("/v1/usage", asked));
    rows.push(...page.data);
    if (!page.has_more || !page.data.length) return { rows, byThisKey: page.only_key !== null };
    asked = { ...asked, start: page.start, end: page.end, after: page.data.at(-1).id };
  }
}

/** Where an alias points, in words: `@3`, or the shares of a split. */
export function Target({ adapter, alias }) {
  const version = adapter.aliases[alias];
  if (version) return html`<span class="mono">@${version}</span>`;
  if (adapter.splits[alias]) {
    return html`<span class="shares">${splitShares(adapter.splits[alias]).map(([number, share]) => html`<span key=${number} class="mono">
      @${number} <b>${percent(share)}</b></span>`)}</span>`;
  }
  return html`<span class="dim">nothing is live</span>`;
}

/** The versions that `live` points to. */
export function liveVersions(adapter) {
  const numbers = adapter.splits.live ? Object.keys(adapter.splits.live).map(Number) : [adapter.aliases.live];
  return adapter.versions.filter((each) => numbers.includes(each.version));
}

/** The base that a version serves on, as a word. */
export const baseWord = (version) => version.base_name ?? "a base that is not served";
