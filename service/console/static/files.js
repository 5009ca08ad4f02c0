// Files of examples: chosen from the datasets or dropped, and stored once.

import { html, useRef, useState } from "./vendor/preact.js";
import { list, send, upload } from "./api.js";
import { bytes, plural } from "./format.js";
import { DropZone, Failure, Field, useLoaded } from "./ui.js";

export const EXAMPLE_FILES = ".jsonl,.csv,.json,.parquet";

/** Store a file; its id. Raises ApiError. */
export const store = async (file, purpose = "fine-tune") => (await upload("/v1/files", [["purpose", purpose], ["file", file]])).id;

/** A function that stores a file when it is first called, whichever form asks, and returns what to name it by: its id, or the dataset that it came from. */
export function useStored(file, dataset, purpose) {
  const stored = useRef({ file, name: dataset });
  if (stored.current.file !== file) stored.current = { file, name: dataset };
  const current = stored.current;
  return async () => { current.name ||= await store(file, purpose); return current.name; };
}

/** All datasets' versions, the newest of each first; none where the key may not see them. */
function useDatasetVersions() {
  const datasets = useLoaded(() => list("/v1/datasets"));
  return (datasets.data?.data || []).flatMap((each) => [...each.versions].reverse());
}

const called = (version) => `${version.dataset}@${version.version}`;
const described = (version) => `${called(version)}, ${plural(version.rows, "row")}${version.note ? `: ${version.note}` : ""}`;

/** The project's datasets, to be read: `onChosen(file, "name@3")`. Nothing where there are none. */
export function ReadDataset({ onChosen }) {
  const versions = useDatasetVersions();
  const [error, setError] = useState(null);
  if (!versions.length) return null;
  const choose = async (event) => {
    const version = versions.find((each) => called(each) === event.target.value);
    if (!version) return;
    try {
      const content = await (await send("GET", `/v1/files/${version.file}/content`)).blob();
      onChosen(new File([content], `${version.dataset}.jsonl`), called(version));
    } catch (failure) {
      setError(failure);
    }
  };
  return html`<${Field} label="A dataset"><select onChange=${choose}><option value="">choose one, or drop a file below</option>
    ${versions.map((each) => html`<option key=${called(each)} value=${called(each)}>${described(each)}</option>`)}</select><//>
    ${error && html`<${Failure} error=${error} />`}`;
}

/** Examples to name in a request: a file that is dropped, a dataset, or one of `known`, [[id, words], …]. `onChange({ file })` or `({ name })`, null for none. */
export function ExamplesField({ label, hint, known = [], value, onChange }) {
  const versions = useDatasetVersions();
  const options = [...known, ...versions.map((each) => [called(each), described(each)])];
  if (value?.file) {
    return html`<div class="field"><span>${label}</span><p class="links"><strong class="wrap">${value.file.name}</strong> <span class="dim">${bytes(value.file.size)}</span>
      <button type="button" class="link" onClick=${() => onChange(null)}>choose another</button></p></div>`;
  }
  return html`${options.length > 0 && html`<${Field} label=${label} hint=${hint}><select value=${value?.name || ""} onChange=${(event) => onChange(event.target.value ? { name: event.target.value } : null)}>
      <option value="">choose some, or drop a file below</option>
      ${options.map(([id, words]) => html`<option key=${id} value=${id}>${words}</option>`)}</select><//>`}
    ${!value && html`<${DropZone} accept=${EXAMPLE_FILES} label=${options.length ? "or drop a file of examples here" : `Drop a file of ${label.toLowerCase()} here`} button="Choose a file" onFiles=${(found) => found[0] && onChange({ file: found[0].file })} />
      ${!options.length && hint && html`<p class="dim small">${hint}</p>`}`}`;
}
