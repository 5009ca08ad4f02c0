// From a dropped file to a job or to advice: the data report, then what to do with the examples.

import { html, useState } from "./vendor/preact.js";
import { upload, url } from "./api.js";
import { bytes } from "./format.js";
import { Busy, DropZone, Failure, Progress } from "./ui.js";
import { EXAMPLE_FILES, ReadDataset, useStored } from "./files.js";
import { DataReport } from "./data_report.js";
import { MendLines, linesOf, refusedLines } from "./mend.js";
import { JobForm } from "./job_form.js";
import { AdviceForm } from "./advice_form.js";

const AIMS = [["train", "Train it"], ["advice", "Is training worth it?"]];

/** `aim`: "train" or "advice", whichever the visitor came for; the other stays a click away. */
export function NewJob({ aim: first, onClose }) {
  const [state, setState] = useState({ step: "drop" });
  // `dataset` is the name of the version that the file was read from; a mended file is no longer that version, and is stored as its own
  const check = async (file, dataset = null, mended = false) => {
    setState({ step: "sending", file, done: 0, total: file.size });
    try {
      const report = await upload(url("/v1/fine_tuning/data_check", { filename: file.name }), [["file", file]],
        (done, total) => setState({ step: "sending", file, done, total }));
      setState({ step: "report", file, dataset, mended, report });
    } catch (error) {
      setState({ step: "drop", error, file, dataset });
    }
  };
  const mend = (file) => check(file, state.dataset, true);
  return html`<section class="panel" aria-label="New job">
    <header><h2>${first === "advice" ? "Is training worth it?" : "Train from a file"}</h2><button class="quiet" aria-label="Close" onClick=${onClose}>✕</button></header>
    ${state.step === "drop" && html`${first === "advice" && html`<p>Prompts, examples in the prompt, retrieval and a LoRA answer the same held-out questions, the simplest first. The advice is the simplest one that is good enough.</p>`}
      <${ReadDataset} onChosen=${check} /><${DropZone} accept=${EXAMPLE_FILES} label="Drop a file of examples: JSONL with messages, prompt and completion, or OpenAI's preference format"
      button="Choose a file" onFiles=${(found) => found[0] && check(found[0].file)} />
      <p class="dim small">Each line: <code>${'{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'}</code></p>
      ${state.error && html`<${Failure} error=${state.error} />
        ${state.error.code === "invalid_training_file" && html`<${MendLines} key=${state.file} file=${state.file} named=${refusedLines(state.error)} onMended=${mend} />`}`}`}
    ${state.step === "sending" && (state.done < state.total
      ? html`<${Progress} done=${state.done} total=${state.total} label="Sending ${state.file.name}: ${bytes(state.done)} of ${bytes(state.total)}" />`
      : html`<${Busy}>Checking ${state.file.name}: format, lengths, duplicates, contradictions, personal data …<//>`)}
    ${state.step === "report" && html`<p><strong>${state.dataset || state.file.name}${state.mended && ", mended"}</strong> <button class="link" onClick=${() => setState({ step: "drop" })}>choose another</button></p>
      <${DataReport} report=${state.report}><${MendLines} key=${state.report.sha256} file=${state.file} named=${linesOf(state.report)} onMended=${mend} /><//>
      ${!state.report.refused && html`<${Forms} key=${state.report.sha256} first=${first} file=${state.file} dataset=${state.mended ? null : state.dataset} />`}`}
  </section>`;
}

/** What can be done with examples; the file is stored once for both. */
function Forms({ first, file, dataset }) {
  const [aim, setAim] = useState(first);
  const stored = useStored(file, dataset);
  return html`<div class="tabs" role="group" aria-label="What to do with the examples">${AIMS.map(([key, label]) => html`
      <button key=${key} type="button" aria-pressed=${aim === key} onClick=${() => setAim(key)}>${label}</button>`)}</div>
    ${aim === "train" ? html`<${JobForm} stored=${stored} />` : html`<${AdviceForm} stored=${stored} />`}`;
}
