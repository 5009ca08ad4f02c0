// The API's report on training data, in words.

import { html } from "./vendor/preact.js";
import { count, percent, plural } from "./format.js";
import { Badge } from "./ui.js";

const TONES = { refused: "bad", warning: "warn", note: "info" };

export function DataReport({ report, children }) {
  const { lengths, held_out: held } = report;
  const facts = [
    ["Format", report.format],
    ["Examples", `${count(report.examples)}, of which ${count(report.trained_on)} are trained on`],
    ["Held out", held.examples ? `${plural(held.examples, "example")} ${held.source === "split" ? "of the file, never trained on, to judge by" : "of their own"}` : "none: nothing to judge by"],
    report.validation && ["Validation", `${plural(report.validation.examples, "example")} choose the best epoch`],
    lengths && ["Lengths", `median ${count(lengths.median)} tokens, longest ${count(lengths.longest)} of ${count(report.max_length)}; ${count(lengths.total)} in all`],
    report.dropped > 0 && ["Left out", `${plural(report.dropped, "example")}, longer than ${count(report.max_length)} tokens`],
    report.shortened > 0 && ["Shortened", plural(report.shortened, "example")],
    ["Answers", report.distinct_answers === 1 ? "all the same" : `${count(report.distinct_answers)} different ones`],
  ].filter(Boolean);
  return html`<div class="report">
    <div class="notice ${report.refused ? "bad" : report.findings.some((each) => each.severity === "warning") ? "warn" : "good"}" role="status">
      <strong>${report.refused ? "This file cannot be trained on as it is" : report.findings.length ? "This file can be trained on" : "This file can be trained on; nothing stood out"}</strong>
      <p>${report.size}</p></div>
    <dl>${facts.map(([term, value]) => html`<div key=${term}><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>
    ${report.findings.length > 0 && html`<h4>What stood out</h4><ul class="findings">${report.findings.map((each) => html`<li key=${each.code + each.file}>
      <${Badge} tone=${TONES[each.severity]}>${each.severity}<//> <span>${each.message}
      ${each.lines?.length > 0 && html`<span class="dim small"> ${each.lines.length > 1 ? "lines" : "line"} ${each.lines.slice(0, 8).join(", ")}${each.count > 8 ? " …" : ""}</span>`}</span></li>`)}</ul>`}
    ${children}
    ${report.answers?.length > 0 && html`<details><summary>The most frequent answers</summary><ul class="plain small">${report.answers.map((each) => html`<li key=${each.answer}>
      ${percent(each.examples / report.examples)} <q>${each.answer}</q></li>`)}</ul></details>`}
    ${report.shown?.length > 0 && html`<details><summary>Examples as the model sees them; what is trained on is marked</summary>
      ${report.shown.map((each) => html`<h4 key=${`h${each.line}`}>line ${each.line}</h4><pre key=${each.line} class="text">${each.pieces.map((piece, index) => (piece.trained
        ? html`<mark key=${index}>${piece.text}</mark>` : piece.text))}</pre>`)}</details>`}
  </div>`;
}
