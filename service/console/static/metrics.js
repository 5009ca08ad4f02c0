// What only `/metrics` says: which versions are loaded, the queue, latencies. Some keys may not read it.

import { send } from "./api.js";

const LINE = /^([a-z_:]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-z_]+)="((?:[^"\\]|\\.)*)"/g;

/** The samples of `/metrics` as [{name, labels, value}]; null where the key may not read them. */
export async function metrics() {
  let text;
  try {
    text = await (await send("GET", "/metrics")).text();
  } catch (error) {
    if (error.status === 403 || error.status === 404) return null;
    throw error;
  }
  const samples = [];
  for (const line of text.split("\n")) {
    const match = line.startsWith("hatrack_") && LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(LABEL)) labels[name] = value;
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

/** The sum of a metric's samples, of those whose labels match; null if there is none. */
export function total(samples, name, labels = {}) {
  const entries = Object.entries(labels);
  const matching = samples.filter((each) => each.name === name && entries.every(([label, value]) => each.labels[label] === value));
  return matching.length ? matching.reduce((sum, each) => sum + each.value, 0) : null;
}

/**
 * A quantile of a histogram over all samples whose labels match, by linear interpolation within its bucket as
 * Prometheus' `histogram_quantile` does it; null if nothing was observed.
 */
export function quantile(samples, name, share, labels = {}) {
  const entries = Object.entries(labels);
  const buckets = new Map();
  for (const each of samples) {
    if (each.name !== `${name}_bucket` || !entries.every(([label, value]) => each.labels[label] === value)) continue;
    const bound = each.labels.le === "+Inf" ? Infinity : Number(each.labels.le);
    buckets.set(bound, (buckets.get(bound) || 0) + each.value);
  }
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const all = sorted.at(-1)?.[1];
  if (!all) return null;
  let [below, before] = [0, 0];
  for (const [bound, counted] of sorted) {
    if (counted >= share * all) return bound === Infinity ? below : below + (bound - below) * ((share * all - before) / (counted - before || 1));
    [below, before] = [bound, counted];
  }
  return below;
}

/** The names (`brand-voice@3`) of a project's versions in the engine's memory; null if the key may not know. */
export function loadedVersions(samples, project) {
  if (!samples || samples.some((each) => each.labels.adapter === "(all)")) return null;
  return new Set(samples.filter((each) => each.name === "hatrack_adapter_resident" && each.labels.project === project && each.value > 0)
    .map((each) => `${each.labels.adapter}@${each.labels.version}`));
}
