// One adapter: its aliases, its versions, and everything that can be done to them.

import { html, useState } from "./vendor/preact.js";
import { get, shownProject } from "./api.js";
import { ago, bytes, clock, count, decimal, percent, plural, splitShares } from "./format.js";
import { Badge, Empty, Loaded, useEvery, useLoaded, Verdict, Words } from "./ui.js";
import { loadedVersions, metrics } from "./metrics.js";
import { baseWord, ownAliases, Target, usageByVersion } from "./versions.js";
import { YearSection } from "./year.js";
import { EvaluateDialog } from "./evaluate.js";
import { DeleteDialog, PinDialog, PromoteDialog, RemoveAliasDialog, RollbackDialog, SplitDialog } from "./alias_dialogs.js";
import { UploadDialog } from "./upload.js";

const DIALOGS = { promote: PromoteDialog, split: SplitDialog, rollback: RollbackDialog, remove: DeleteDialog, pin: PinDialog, unalias: RemoveAliasDialog };
const SERVABLE = {
  other_base: "was made for another base", damaged: "its files are damaged", corrupt: "the engine found it corrupt",
};

export function AdapterView({ name }) {
  const [dialog, setDialog] = useState(null);
  const path = `/v1/adapters/${encodeURIComponent(name)}`;
  const loaded = useLoaded(async () => {
    const [adapter, usage, samples] = await Promise.all([get(path), usageByVersion(name), metrics()]);
    return { adapter, usage, loaded: loadedVersions(samples, shownProject()) };
  }, [name]);
  const proving = loaded.data?.adapter.versions.some((each) => each.state === "proving");
  useEvery(proving ? 2 : 15, loaded.poll, !dialog && !loaded.denied);
  const close = () => setDialog(null);
  const done = (answer) => {
    close();
    if (dialog.kind === "remove" && (!dialog.version || loaded.data.adapter.versions.length === 1)) location.hash = "#/adapters";
    else loaded.reload(answer);
  };
  return html`<p class="crumb"><a href="#/adapters">Adapters</a></p>
    <${Loaded} of=${loaded}>${({ adapter, usage, loaded: inEngine }) => {
      const open = (kind, more = {}) => setDialog({ kind, ...more });
      const Shown = dialog && DIALOGS[dialog.kind];
      return html`<header class="view"><div><h1>${adapter.name} ${adapter.pinned && html`<${Badge}>pinned<//>`}</h1>
          <p>${plural(adapter.versions.length, "version")}, made ${ago(adapter.created_at)}</p></div>
        <div class="actions"><a class="button" href="#/playground/${encodeURIComponent(name)}">Ask it</a>
          <button onClick=${() => open("pin")}>${adapter.pinned ? "Unpin" : "Pin"}</button>
          <button onClick=${() => open("upload")}>Add a version</button>
          <button class="danger" onClick=${() => open("remove")}>Delete</button></div></header>
        ${Shown && html`<${Shown} adapter=${adapter} usage=${usage} ...${dialog} onClose=${close} onDone=${done} />`}
        ${dialog?.kind === "judge" && html`<${EvaluateDialog} model=${`${name}@${dialog.version.version}`} onClose=${close} />`}
        ${dialog?.kind === "upload" && html`<${UploadDialog} kind="upload" name=${name} onClose=${close} onDone=${done} />`}
        <${Aliases} adapter=${adapter} open=${open} />
        <${Versions} adapter=${adapter} usage=${usage} loaded=${inEngine} open=${open} />
        ${adapter.versions.length > 0 && html`<${YearSection} name=${name} />`}`;
    }}<//>`;
}

function Aliases({ adapter, open }) {
  const names = [...new Set(["live", ...ownAliases(Object.keys(adapter.aliases))])];
  const checkpoints = Object.keys(adapter.aliases).length - ownAliases(Object.keys(adapter.aliases)).length;
  const splittable = adapter.versions.filter((each) => each.state === "ready").length > 1;
  return html`<section aria-label="Aliases"><h2>Aliases</h2>
    <div class="scroll"><table class="cards"><thead><tr><th>Alias</th><th>Model name</th><th>Points to</th><th></th></tr></thead>
    <tbody>${names.map((alias) => html`<tr key=${alias}>
      <td data-label="Alias"><strong>${alias}</strong></td>
      <td data-label="Model name"><code>${alias === "live" ? adapter.name : `${adapter.name}:${alias}`}</code></td>
      <td data-label="Points to"><${Target} adapter=${adapter} alias=${alias} /></td>
      <td class="row-actions"><button onClick=${() => open("split", { alias })} disabled=${!splittable}
          title=${splittable ? "" : "A split needs two ready versions"}>Split …</button>
        <button onClick=${() => open("rollback", { alias })}>Roll back …</button>
        ${alias !== "live" && html`<button class="danger" onClick=${() => open("unalias", { alias })}>Remove …</button>`}</td></tr>`)}</tbody></table></div>
    ${checkpoints > 0 && html`<p class="dim small">Besides, ${plural(checkpoints, "checkpoint")} of trainings, asked as <code>${adapter.name}:ckpt-…</code>: <code>hatrack show ${adapter.name}</code> names them.</p>`}
  </section>`;
}

function Versions({ adapter, usage, loaded, open }) {
  const newest = [...adapter.versions].sort((a, b) => b.version - a.version);
  if (!newest.length) return html`<${Empty} title="No versions"><p>Upload a folder that PEFT saved, or <a href="#/train">train one</a>.</p><//>`;
  return html`<section aria-label="Versions"><h2>Versions</h2>
    ${newest.map((version, index) => html`<${Version} key=${version.version} version=${version} adapter=${adapter} newest=${index === 0}
      usage=${usage.of.get(`${adapter.name}@${version.version}`)} byThisKey=${usage.byThisKey} loaded=${loaded?.has(`${adapter.name}@${version.version}`)} open=${open} />`)}
  </section>`;
}

function Version({ version, adapter, newest, usage, byThisKey, loaded, open }) {
  const ready = version.state === "ready" && version.servable === "ok";
  const aliases = ownAliases(version.aliases);
  return html`<article class="version">
    <header><h3><span class="mono">@${version.version}</span> ${aliases.map((each) => html`<${Badge} key=${each} tone=${each === "live" ? "live" : ""}>${each}${shareOf(adapter, each, version)}<//> `)}
        <${ServingState} version=${version} /> <${Verdict} verdict=${version.verdict} revalidation=${version.revalidation} />
        ${loaded && html` <${Badge} title="In the engine's memory">loaded<//>`}</h3>
      <div class="row-actions">
        <a class="button" href="#/playground/${encodeURIComponent(`${adapter.name}@${version.version}`)}">Ask</a>
        <button class=${newest && ready && adapter.aliases.live !== version.version ? "primary" : ""} disabled=${!ready || adapter.aliases.live === version.version}
          onClick=${() => open("promote", { version })}>Promote …</button>
        <button disabled=${!ready} onClick=${() => open("judge", { version })}>Judge …</button>
        <button class="danger" onClick=${() => open("remove", { version })}>Delete …</button></div></header>
    <p>${version.digest ? `LoRA, rank ${version.rank}, alpha ${version.alpha}, ${bytes(version.bytes)}` : "No weights: the base with its settings"},
      on <strong>${baseWord(version)}</strong> <span class="dim">· ${ago(version.created_at)} · ${plural(usage?.requests ?? 0, "request")}${byThisKey ? " by this key" : ""} in 24 h${usage?.errors ? html`, <span class="warn">${plural(usage.errors, "error")}</span>` : ""}</span></p>
    ${version.reason && html`<div class="notice bad"><strong>Refused</strong><p><${Words} text=${version.reason.message} /></p></div>`}
    ${version.held_back && html`<div class="notice warn"><strong>Held back from live</strong><p><${Words} text=${version.held_back.message} /></p></div>`}
    ${version.verdict && html`<blockquote>${version.verdict.sentence}
      <footer>judged on ${plural(version.verdict.examples, "example")} by ${version.verdict.metric}, ${ago(version.verdict.created_at)}
      ${version.verdict.files?.report && html` · <a href="#/train/${encodeURIComponent(`${adapter.name}@${version.version}`)}">the report</a>`}</footer></blockquote>`}
    <${Details} version=${version} />
  </article>`;
}

/** " 90%" of a split alias's requests; nothing where all of them come. */
function shareOf(adapter, alias, version) {
  const share = adapter.splits[alias] && splitShares(adapter.splits[alias]).find(([number]) => number === version.version);
  return share ? ` ${percent(share[1])}` : "";
}

function ServingState({ version }) {
  if (version.state === "proving") return html`<${Badge} tone="info">being proven<//>`;
  if (version.state === "rejected") return html`<${Badge} tone="bad">rejected<//>`;
  if (version.servable !== "ok") return html`<${Badge} tone="bad" title=${version.servable}>cannot serve: ${SERVABLE[version.servable]}<//>`;
  return html`<${Badge} tone="good" title="Proven to work in this engine">ready<//>`;
}

function Details({ version }) {
  const { proof, settings } = version;
  const rows = [
    ["Made", clock(version.created_at)],
    version.expires_at && ["Deleted on", clock(version.expires_at)],
    version.digest && ["Digest", html`<code class="wrap">${version.digest}</code>`],
    version.target_modules.length && ["Modules", version.target_modules.join(", ")],
    proof && ["Proof", proof.kind === "settings"
      ? `the prompt takes ${count(proof.prompt_tokens)} of ${count(proof.context_tokens)} tokens`
      : `effect ${proof.effect.replace("_", " ")}; log-probabilities moved by ${decimal(proof.distance, 3)}, noise ${decimal(proof.noise, 3)}`],
    proof?.perplexity && ["Plain text", `${decimal(proof.perplexity.ratio)} times as perplexing as to the base`],
    ["Base", baseWord(version)],
    ["Engine", `${version.base.engine_version}, ${version.base.dtype}`],
  ].filter(Boolean);
  return html`<details><summary>Settings and proof</summary>
    <dl>${rows.map(([term, value]) => html`<div key=${term}><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>
    ${version.warnings.map((each) => html`<p key=${each} class="warn">${each}</p>`)}
    ${settings.system_prompt && html`<h4>System prompt</h4><pre class="text">${settings.system_prompt}</pre>`}
    ${settings.examples?.length > 0 && html`<h4>${plural(settings.examples.length, "example")} before each conversation</h4>
      <pre class="text">${settings.examples.map((each) => `${each.user}\n→ ${each.assistant}`).join("\n\n")}</pre>`}
    ${Object.keys(settings.sampling || {}).length > 0 && html`<h4>Sampling</h4><pre class="text">${JSON.stringify(settings.sampling, null, 1)}</pre>`}
    ${settings.grounding && html`<h4>Grounding</h4><pre class="text">${JSON.stringify(settings.grounding, null, 1)}</pre>`}
    ${Object.keys(version.metadata).length > 0 && html`<details><summary>Metadata</summary><pre class="text">${JSON.stringify(version.metadata, null, 1)}</pre></details>`}
  </details>`;
}
