// What several views show of adapters and their versions.

import { html } from "./vendor/preact.js";
import { get, url } from "./api.js";
import { percent, splitShares } from "./format.js";

/** What a request names to be answered by an alias. */
export const modelName = (adapter, alias) => (alias === "live" ? adapter.name : `${adapter.name}:${alias}`);

/** Those of some aliases that people have set: `live` first, and none of a training's checkpoints, which come and go by themselves. */
export const ownAliases = (aliases) => aliases.filter((each) => !each.startsWith("ckpt-")).sort((a, b) => (b === "live") - (a === "live"));

/** Usage of the last 24 hours by `name` and `name@version`: {requests, errors}. Empty where the key may not see it. */
export async function usageByVersion(adapter) {
  const sums = new Map();
  let page;
  try {
    page = await get(url("/v1/usage", { group_by: "adapter,version", adapter, limit: 1000 }));
  } catch (error) {
    if (error.status === 403) return sums;
    throw error;
  }
  for (const row of page.data) {
    for (const name of [row.adapter, `${row.adapter}@${row.version}`]) {
      const sum = sums.get(name) || { requests: 0, errors: 0 };
      sums.set(name, { requests: sum.requests + row.requests, errors: sum.errors + row.errors });
    }
  }
  return sums;
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
