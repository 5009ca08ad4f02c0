// Promotions, splits, rollbacks, pins and deletions: each shows what changes before it is done.

import { html, useState } from "./vendor/preact.js";
import { get, post, put, remove } from "./api.js";
import { ago, percent, splitShares, VERDICTS } from "./format.js";
import { Busy, Confirm, Failure, Field, useLoaded } from "./ui.js";
import { Target } from "./adapters.js";

const aliasPath = (adapter, alias) => `/v1/adapters/${encodeURIComponent(adapter.name)}/aliases/${encodeURIComponent(alias)}`;
const modelName = (adapter, alias) => (alias === "live" ? adapter.name : `${adapter.name}:${alias}`);

/** What an alias points to now, and what it will. */
function Change({ adapter, alias, children }) {
  return html`<div class="change"><div><small>now</small><${Target} adapter=${adapter} alias=${alias} /></div>
    <span aria-hidden="true">→</span><div><small>then</small>${children}</div></div>`;
}

const Shares = ({ weights }) => html`<span class="shares">${splitShares(weights).map(([number, share]) => html`<span key=${number} class="mono">
  @${number} <b>${percent(share)}</b></span>`)}</span>`;

export function PromoteDialog({ adapter, version, onClose, onDone }) {
  const [alias, setAlias] = useState("live");
  const [force, setForce] = useState(false);
  const now = adapter.aliases[alias];
  const same = now === version.version;
  const run = () => put(aliasPath(adapter, alias), {
    version: version.version, ...(now ? { expected: now } : {}), ...(force ? { force: true } : {}),
  });
  const held = version.held_back && alias === "live";
  return html`<${Confirm} title="Promote ${adapter.name}@${version.version}" action=${same ? "Already there" : `Point ${alias} to @${version.version}`}
      disabled=${same || !/^[a-z0-9][a-z0-9._-]*$/.test(alias) || (held && !force)} run=${run} onClose=${onClose} onDone=${onDone}>
    <${Change} adapter=${adapter} alias=${alias}><span class="mono">@${version.version}</span><//>
    <p>Requests for <code>${modelName(adapter, alias)}</code> are answered by <code>@${version.version}</code> from the next one on. It is loaded first, so none fails.
      ${adapter.splits[alias] && html` <strong>This ends the split.</strong>`}</p>
    ${!version.verdict && html`<p class="warn">This version was never judged: nothing shows that it is better than what answers now.</p>`}
    ${version.verdict && version.verdict.verdict !== "pass" && html`<p class="warn">Its verdict is “${VERDICTS[version.verdict.verdict]}”: ${version.verdict.sentence}</p>`}
    ${held && html`<div class="notice warn"><p>${version.held_back.message}</p>
      <label class="check"><input type="checkbox" checked=${force} onChange=${(event) => setForce(event.target.checked)} /> Move live to it all the same</label></div>`}
    <details><summary>Another alias</summary><${Field} label="Alias" hint="For example canary; applications ask for ${adapter.name}:canary.">
      <input value=${alias} onInput=${(event) => setAlias(event.target.value.trim())} /><//></details>
  <//>`;
}

export function SplitDialog({ adapter, alias, onClose, onDone }) {
  const versions = adapter.versions.filter((each) => each.state === "ready" && each.servable === "ok");
  const current = adapter.splits[alias] || (adapter.aliases[alias] ? { [adapter.aliases[alias]]: 100 } : {});
  const [weights, setWeights] = useState(current);
  const set = (number, value) => setWeights({ ...weights, [number]: Math.max(0, Math.round(Number(value) || 0)) });
  const chosen = Object.fromEntries(Object.entries(weights).filter(([, weight]) => weight > 0));
  const enough = Object.keys(chosen).length >= 2 && Object.keys(chosen).length <= 8;
  return html`<${Confirm} title="Split ${modelName(adapter, alias)}" action="Split the traffic" disabled=${!enough}
      run=${() => put(aliasPath(adapter, alias), { split: chosen })} onClose=${onClose} onDone=${onDone}>
    <p>Give two to eight versions a weight. Requests with the same user keep one version.</p>
    <div class="weights">${versions.map((each) => html`<label key=${each.version}><span class="mono">@${each.version}</span>
      <span class="dim">${each.verdict ? VERDICTS[each.verdict.verdict] : "not judged"}</span>
      <input type="number" min="0" max="1000000" inputmode="numeric" value=${weights[each.version] || 0}
        onInput=${(event) => set(each.version, event.target.value)} aria-label="Weight of version ${each.version}" /></label>`)}</div>
    <${Change} adapter=${adapter} alias=${alias}>${enough ? html`<${Shares} weights=${chosen} />` : html`<span class="dim">choose two versions</span>`}<//>
    <p class="dim">If a version of the split cannot serve, its share of the requests gets an error; no other version takes over.</p>
  <//>`;
}

export function RollbackDialog({ adapter, alias, onClose, onDone }) {
  const history = useLoaded(async () => (await get(aliasPath(adapter, alias))).history, [alias]);
  const body = () => {
    if (history.error) return html`<${Failure} error=${history.error} />`;
    if (!history.data) return html`<${Busy} />`;
    return html`<p>Requests for <code>${modelName(adapter, alias)}</code> go back to what <code>${alias}</code> pointed to before its last move. These were its moves, newest first:</p>
      <ol class="moves">${history.data.map((move, index) => html`<li key=${index}>
        ${move.split ? html`<${Shares} weights=${move.split} />` : move.version ? html`<span class="mono">@${move.version}</span>` : "deleted"}
        <span class="dim"> ${move.action}, ${ago(move.created_at)}${index === 0 ? ", now" : ""}</span></li>`)}</ol>`;
  };
  return html`<${Confirm} title="Roll back ${modelName(adapter, alias)}" action="Roll back" disabled=${!history.data || history.data.length < 2}
    run=${() => post(`${aliasPath(adapter, alias)}/rollback`)} onClose=${onClose} onDone=${onDone}>
    <${Change} adapter=${adapter} alias=${alias}><${Before} moves=${history.data} /><//>${body()}<//>`;
}

/** What a rollback restores: the target before the last move that was not itself taken back; undefined if there is none. */
function earlierTarget(moves) {
  const targets = [];
  for (const move of [...moves].reverse()) {
    const target = JSON.stringify(move.split || move.version);
    if (move.action === "rollback" && targets.includes(target)) targets.length = targets.lastIndexOf(target) + 1;
    else targets.push(target);
  }
  const before = targets.slice(0, -1).filter((each) => each !== "null" && each !== targets.at(-1)).at(-1);
  return before && JSON.parse(before);
}

function Before({ moves }) {
  const target = moves && earlierTarget(moves);
  if (!target) return html`<span class="dim">${moves ? "no earlier target" : "…"}</span>`;
  return typeof target === "number" ? html`<span class="mono">@${target}</span>` : html`<${Shares} weights=${target} />`;
}

export function PinDialog({ adapter, onClose, onDone }) {
  const path = `/v1/adapters/${encodeURIComponent(adapter.name)}/pin`;
  if (adapter.pinned) {
    return html`<${Confirm} title="Unpin ${adapter.name}" action="Unpin" run=${() => remove(path)} onClose=${onClose} onDone=${onDone}>
      <p>Its live version may be unloaded when other adapters need the slot. The first request after that waits until it is loaded again.</p><//>`;
  }
  return html`<${Confirm} title="Pin ${adapter.name}" action="Pin" run=${() => put(path)} onClose=${onClose} onDone=${onDone}>
    <p>Its live version stays loaded, so no request waits for it. It takes a slot from all other adapters for good.</p><//>`;
}

export function RemoveAliasDialog({ adapter, alias, onClose, onDone }) {
  return html`<${Confirm} title="Remove ${modelName(adapter, alias)}" action="Remove the alias" danger run=${() => remove(aliasPath(adapter, alias))} onClose=${onClose} onDone=${onDone}>
    <p>Requests for <code>${modelName(adapter, alias)}</code> will get an error from the next one on. The versions stay.</p><//>`;
}

export function DeleteDialog({ adapter, version, onClose, onDone }) {
  const [force, setForce] = useState(false);
  const [typed, setTyped] = useState("");
  const name = version ? `${adapter.name}@${version.version}` : adapter.name;
  const aliases = version ? version.aliases.filter((each) => !each.startsWith("ckpt-"))
    : Object.keys(adapter.aliases).filter((each) => !each.startsWith("ckpt-"));
  const base = `/v1/adapters/${encodeURIComponent(adapter.name)}`;
  const path = version ? `${base}/versions/${version.version}` : base;
  return html`<${Confirm} title="Delete ${name}" action="Delete ${name}" danger disabled=${typed !== name || (aliases.length > 0 && !force)}
      run=${() => remove(force ? `${path}?force=true` : path)} onClose=${onClose} onDone=${onDone}>
    <p>${version ? "The version and its files are gone for good." : `All ${adapter.versions.length} versions and their files are gone for good.`}</p>
    ${aliases.length > 0 && html`<div class="notice bad"><strong>Applications will break</strong>
      <p>Requests for ${aliases.map((each, index) => html`${index > 0 && ", "}<code>${modelName(adapter, each)}</code>`)} will get an error from the next one on.
        ${version && aliases.some((each) => adapter.splits[each]) && " A split that names this version is deleted with it."}</p>
      <label class="check"><input type="checkbox" checked=${force} onChange=${(event) => setForce(event.target.checked)} /> I know; delete it all the same</label></div>`}
    <${Field} label="Type ${name} to confirm"><input value=${typed} autocomplete="off" spellcheck="false" onInput=${(event) => setTyped(event.target.value)} /><//>
  <//>`;
}
