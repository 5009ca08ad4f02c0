// A question and its answer, mended where needed, as one more line of a dataset.

import { html, useState } from "./vendor/preact.js";
import { list, Notice, post, remove, send, upload } from "./api.js";
import { Confirm, Field } from "./ui.js";

/** The dataset's versions, oldest first; none if it does not exist: what may not exist is looked for in the list. */
const versionsOf = async (name) => (await list("/v1/datasets", {}, Infinity)).data.find((each) => each.name === name)?.versions || [];

/** A version's lines, without a trailing newline. */
const linesOf = async ({ file }) => (await (await send("GET", `/v1/files/${encodeURIComponent(file)}/content`)).text()).replace(/\n+$/, "");

const messages = (question, answer) => ({ messages: [{ role: "user", content: question }, { role: "assistant", content: answer }] });
/** Who speaks in a ShareGPT file goes by several names: the one that the file uses. */
const speaker = (turns, names) => (Array.isArray(turns) ? turns.find((each) => names.includes(each?.from))?.from : null) ?? names[0];

/** An example in each format that a file can have, by the key that tells it (`adapters/dataset/formats.py`). */
const SHAPES = {
  messages,
  prompt: (question, answer) => ({ prompt: question, completion: answer }),
  instruction: (question, answer) => ({ instruction: question, input: "", output: answer }),
  conversations: (question, answer, { conversations }) => ({ conversations: [
    { from: speaker(conversations, ["human", "user"]), value: question },
    { from: speaker(conversations, ["gpt", "assistant", "chatgpt", "bard", "bing"]), value: answer }] }),
  preferred_output: null, // a pair: the worse answer is not known here
};

/** The line of an example as the dataset's own lines are. Raises Notice for a format that a question and an answer do not fill. */
function lineLike(lines, question, answer, name) {
  if (!lines.trim()) return JSON.stringify(messages(question, answer));
  for (const text of lines.replace(/^\uFEFF/, "").split("\n")) {
    let row = null;
    try { row = JSON.parse(text); } catch { continue; }
    const keys = row && typeof row === "object" ? Object.keys(SHAPES).filter((key) => key in row) : [];
    if (keys.length !== 1) continue;
    if (SHAPES[keys[0]]) return JSON.stringify(SHAPES[keys[0]](question, answer, row));
    throw new Notice("This dataset has pairs of answers", `Each line of ${name} has a better and a worse answer, and here there is only one. `
      + "Choose a dataset of questions and answers, or a new name.");
  }
  throw new Notice("The dataset's format is not known", `No line of ${name} is an example in a format that can be continued here (${Object.keys(SHAPES).join(", ")}). `
    + "Choose another dataset, or a new name.");
}

const called = (name, version) => (version ? `${name}@${version.version}` : `no version of ${name}`);

/** Make the dataset's newest version, with one more line, its next one. A push names no version that it continues, so the
 * newest is looked at again right before and after it: nobody's lines are left out without a word. Raises ApiError, Notice. */
async function append(name, question, answer) {
  const newest = (await versionsOf(name)).at(-1);
  const lines = newest ? await linesOf(newest) : "";
  const line = lineLike(lines, question, answer, called(name, newest));
  const file = new File([lines ? `${lines}\n${line}\n` : `${line}\n`], `${name}.jsonl`);
  const stored = await upload("/v1/files", [["purpose", "fine-tune"], ["file", file]]);
  const now = (await versionsOf(name)).at(-1);
  if (now?.version !== newest?.version) {
    await remove(`/v1/files/${encodeURIComponent(stored.id)}`).catch(() => {}); // of no use to anyone; that it stays does no harm
    throw new Notice("Nothing was saved yet", `The dataset changed while the example was added: it was read when the newest was ${called(name, newest)}, `
      + `and now there is ${called(name, now)}. Save again to add the example to that.`);
  }
  const pushed = await post("/v1/datasets", { name, file: stored.id, note: "one more example, from the console" });
  const before = (await versionsOf(name).catch(() => [])).filter((each) => each.version < pushed.version).at(-1);
  if (before && before.version > (newest?.version ?? 0)) {
    throw new Notice("Saved, but another version came between", `The example is in ${called(name, pushed)}, which continues ${called(name, newest)}. `
      + `What ${called(name, before)} has is not in it. Compare the two before you train.`);
  }
  return pushed;
}

export function SaveExample({ question, answer: given, onClose }) {
  const [name, setName] = useState(sessionStorage.getItem("hatrack.dataset") || "");
  const [answer, setAnswer] = useState(given);
  const run = async () => {
    const pushed = await append(name, question, answer);
    sessionStorage.setItem("hatrack.dataset", name);
    return pushed;
  };
  return html`<${Confirm} title="Save as an example" action="Save" disabled=${!name || !answer.trim()} run=${run} onClose=${onClose} onDone=${onClose}>
    <p>It becomes the last line of the dataset's next version, in the format of the lines before it. Earlier versions stay as they are.</p>
    <${Field} label="Dataset" hint="A new name begins a new dataset."><input value=${name} autocomplete="off" spellcheck="false"
      placeholder="support" onInput=${(event) => setName(event.target.value.trim())} /><//>
    <h4>Question</h4><p class="quoted">${question}</p>
    <${Field} label="Answer, as it should have been" wide><textarea rows="6" value=${answer} onInput=${(event) => setAnswer(event.target.value)}></textarea><//>
  <//>`;
}
