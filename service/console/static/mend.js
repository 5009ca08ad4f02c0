// Lines of a training file that the report or a refusal names, to be mended in place.

import { html, useState } from "./vendor/preact.js";
import { bytes, plural } from "./format.js";

const MAX_SHOWN = 12;
const MAX_BYTES = 20 * 2 ** 20; // larger files are mended where they come from

/** The question and the answer of a line in the chat format; null where it has another shape. */
function pairOf(text) {
  try {
    const { messages } = JSON.parse(text);
    const answer = messages.findLastIndex((each) => each.role === "assistant" && typeof each.content === "string");
    return answer < 0 ? null : { messages, answer, question: messages.slice(0, answer).map((each) => each.content).join("\n") };
  } catch {
    return null;
  }
}

/** The lines that a report's findings name. */
export const linesOf = (report) => report.findings.filter((each) => each.file === "training").flatMap((each) => each.lines);

/** The lines that a refusal of the whole file names: "line 3: not JSON …; line 4: …". */
export const refusedLines = (error) => [...error.message.matchAll(/(?:^|; )line (\d+): /gi)].map((each) => Number(each[1]));

/** Why a file's lines cannot be mended here, and what to do instead; null where they can. */
function obstacleOf(file) {
  if (!/\.jsonl$/i.test(file.name)) return `Only JSONL is mended here, one example a line. Correct the rows in ${file.name} where it comes from and drop it again, or save it as JSONL first.`;
  if (file.size > MAX_BYTES) return `Files over ${bytes(MAX_BYTES)} are not mended here. Correct the lines in ${file.name} where it comes from and drop it again.`;
  return null;
}

export function MendLines({ file, named, onMended }) {
  const [lines, setLines] = useState(null);
  const [edits, setEdits] = useState({});
  const numbers = [...new Set(named)].sort((a, b) => a - b);
  if (!numbers.length) return null;
  const obstacle = obstacleOf(file);
  if (obstacle) return html`<p class="dim small">${obstacle}</p>`;
  if (!lines) {
    return html`<button type="button" onClick=${async () => setLines((await file.text()).split("\n"))}>Mend ${plural(numbers.length, "line")} here …</button>`;
  }
  const save = () => {
    const mended = lines.map((line, index) => (index + 1 in edits ? edits[index + 1] : line)).filter((line) => line !== null);
    onMended(new File([mended.join("\n")], file.name));
  };
  const change = (number, pair, value) => {
    const messages = pair.messages.map((each, index) => (index === pair.answer ? { ...each, content: value } : each));
    setEdits({ ...edits, [number]: JSON.stringify({ ...JSON.parse(lines[number - 1]), messages }) });
  };
  return html`<fieldset class="mend"><legend>Mend lines</legend>
    ${numbers.slice(0, MAX_SHOWN).map((number) => {
      const text = edits[number] === undefined ? lines[number - 1] : edits[number];
      const pair = text === null ? null : pairOf(text);
      return html`<div key=${number} class="mend-line"><div><b>line ${number}</b>
          <button type="button" class="link" onClick=${() => setEdits({ ...edits, [number]: text === null ? lines[number - 1] : null })}>${text === null ? "keep it" : "leave it out"}</button></div>
        ${text === null ? html`<p class="dim">left out</p>` : pair ? html`<p class="quoted">${pair.question}</p>
          <textarea rows="2" aria-label="Answer of line ${number}" value=${pair.messages[pair.answer].content} onInput=${(event) => change(number, pair, event.target.value)}></textarea>`
          : html`<textarea rows="2" class="mono" aria-label="Line ${number}" value=${text} onInput=${(event) => setEdits({ ...edits, [number]: event.target.value })}></textarea>`}
      </div>`;
    })}
    ${numbers.length > MAX_SHOWN && html`<p class="dim">These are the first ${MAX_SHOWN} of ${numbers.length}; check again for the next.</p>`}
    <button type="button" class="primary" disabled=${!Object.keys(edits).length} onClick=${save}>Check again with ${plural(Object.keys(edits).length, "change")}</button>
  </fieldset>`;
}
