// Numbers, times and words as people read them.

const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? "–" : value >= 100000 ? compact.format(value) : number.format(value));
export const decimal = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
/** An amount of money with as many digits as it needs, two significant ones at least: 1,250 · 12.40 · 0.0034. */
export function amount(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return number.format(Math.round(value));
  return value.toFixed(size === 0 || size >= 0.01 ? 2 : Math.min(10, 1 - Math.floor(Math.log10(size))));
}
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
export const plural = (value, word, words = `${word}s`) => `${count(value)} ${value === 1 ? word : words}`;

export function bytes(value) {
  if (!value) return "0 B";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${(value / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

/** Two units at most, and no second one that is 0. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  if (seconds < 3599.5) return inTwo(Math.round(seconds), 60, "min", "s");
  if (seconds < 86370) return inTwo(Math.round(seconds / 60), 60, "h", "min");
  return `${(seconds / 86400).toFixed(1)} days`;
}

const inTwo = (value, size, unit, smaller) => `${Math.floor(value / size)} ${unit}${value % size ? ` ${value % size} ${smaller}` : ""}`;

/** How long ago a Unix time was. */
export function ago(unix) {
  const seconds = Date.now() / 1000 - unix;
  if (seconds < 0) return `in ${duration(-seconds)}`;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  const days = Math.floor(seconds / 86400);
  return days === 1 ? "yesterday" : days < 60 ? `${days} days ago` : new Date(unix * 1000).toLocaleDateString("en-GB");
}

export const clock = (unix) => new Date(unix * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const VERDICTS = { pass: "pass", fail: "fail", not_enough_evidence: "not enough evidence" };
export const VERDICT_TONES = { pass: "good", fail: "bad", not_enough_evidence: "warn" };
export const STATUSES = {
  validating_files: "checking the file", queued: "queued", running: "running", paused: "paused",
  succeeded: "succeeded", failed: "failed", cancelled: "cancelled", in_progress: "in progress", completed: "completed",
};
export const STATUS_TONES = { running: "info", succeeded: "good", completed: "good", failed: "bad", paused: "warn", in_progress: "info" };
export const ADVICE = {
  do_not_fine_tune: "do not fine-tune", prompt: "a prompt is enough", examples: "examples in the prompt",
  retrieval: "retrieval", fine_tune: "fine-tune", cannot_tell: "cannot tell",
};
export const ADVICE_TONES = { cannot_tell: "warn", do_not_fine_tune: "good", prompt: "good", examples: "good", retrieval: "good", fine_tune: "good" };
/** What a ladder does while a run of this purpose is under way. */
export const LADDER_STAGES = {
  choose: "Choosing instructions", prompts: "Comparing prompts", job: "Training a LoRA", lora: "Asking the LoRA",
  "job:lora_examples": "Training a LoRA with retrieved examples", lora_examples: "Asking the LoRA with retrieved examples",
  "job:lora_documents": "Training a LoRA with retrieved documents", lora_documents: "Asking the LoRA with retrieved documents",
  "job:distilled": "Training a LoRA on the teacher's answers", distilled: "Asking the LoRA that learnt from the teacher",
  "job:half": "Training a LoRA on half of the examples", half: "Asking the LoRA on half of the examples",
  "job:quarter": "Training a LoRA on a quarter of the examples", quarter: "Asking the LoRA on a quarter of the examples",
  "job:cleanest_half": "Training a LoRA on the cleanest half", cleanest_half: "Asking the LoRA on the cleanest half",
};
/** A text that stands alone, with a capital. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const isOver = (status) => ["succeeded", "failed", "cancelled"].includes(status);

/** "3 90%, 4 10%" of a split's weights. */
export function splitShares(weights) {
  const total = Object.values(weights).reduce((sum, weight) => sum + weight, 0);
  return Object.entries(weights).map(([version, weight]) => [Number(version), weight / total]);
}
