// A question and its answer, mended where needed, as one more line of a dataset.

import { html, useState } from "./vendor/preact.js";
import { list, post, send, upload } from "./api.js";
import { Confirm, Field } from "./ui.js";

/** The newest version's lines, without a trailing newline; empty if the dataset does not exist. */
async function linesOf(name) {
  const dataset = (await list("/v1/datasets")).data.find((each) => each.name === name);
  if (!dataset) return "";
  const newest = dataset.versions.find((each) => each.version === dataset.latest);
  return (await (await send("GET", `/v1/files/${newest.file}/content`)).text()).replace(/\n+$/, "");
}

export function SaveExample({ question, answer: given, onClose }) {
  const [name, setName] = useState(sessionStorage.getItem("hatrack.dataset") || "");
  const [answer, setAnswer] = useState(given);
  const run = async () => {
    const line = JSON.stringify({ messages: [{ role: "user", content: question }, { role: "assistant", content: answer }] });
    const lines = await linesOf(name);
    const file = new File([lines ? `${lines}\n${line}\n` : `${line}\n`], `${name}.jsonl`);
    const stored = await upload("/v1/files", [["purpose", "fine-tune"], ["file", file]]);
    sessionStorage.setItem("hatrack.dataset", name);
    return post("/v1/datasets", { name, file: stored.id, note: "one more example, from the console" });
  };
  return html`<${Confirm} title="Save as an example" action="Save" disabled=${!name || !answer.trim()} run=${run} onClose=${onClose} onDone=${onClose}>
    <p>It becomes the last line of the dataset's next version. Earlier versions stay as they are.</p>
    <${Field} label="Dataset" hint="A new name begins a new dataset."><input value=${name} autocomplete="off" spellcheck="false"
      placeholder="support" onInput=${(event) => setName(event.target.value.trim())} /><//>
    <h4>Question</h4><p class="quoted">${question}</p>
    <${Field} label="Answer, as it should have been" wide><textarea rows="6" value=${answer} onInput=${(event) => setAnswer(event.target.value)}></textarea><//>
  <//>`;
}
