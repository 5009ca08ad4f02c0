// Promotions, splits, rollbacks, pins and deletions: each shows what changes before it is done.

import { html, useState } from "./vendor/preact.js";
import { get, Notice, post, put, remove } from "./api.js";
import { ago, percent, plural, splitShares, VERDICTS } from "./format.js";
import { Busy, Confirm, Failure, Field, useLoaded } from "./ui.js";
import { modelName, ownAliases, Target } from "./versions.js";

const aliasPath = (adapter, alias) => `/v1/adapters/${encodeURIComponent(adapter.name)}/aliases/${encodeURIComponent(alias)}`;

/** What an alias points to now, and what it will. */
function Change({ adapter, alias, children }) {
  return html`<div class="change"><div><small>now</small><${Target} adapter=${adapter} alias=${alias} /></div>
    <span aria-hidden="true">→</span><div><small>then</small>${children}</div></div>`;
}

const Shares = ({ weights }) => html`<span class="shares">${splitShares(weights).map(([number, share]) => html`<span key=${number} class="mono">
  @${number} <b>${percent(share)}</b></span>`)}</span>`;

/** `children`: what else is worth knowing before it is done. */
export function PromoteDialog({ adapter, version, onClose, onDone, children }) {
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
    ${children}
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

/** The adapter as it is now, the alias's moves, newest first, and what a rollback would go to. */
async function rollbackOf(name, alias) {
  const [adapter, { history }] = await Promise.all([get(`/v1/adapters/${encodeURIComponent(name)}`), get(aliasPath({ name }, alias))]);
  return { adapter, moves: history, target: earlierTarget(history, open(adapter, alias)) };
}

const named = (target) => (!target ? "nowhere" : typeof target === "number" ? `to @${target}`
  : `to ${splitShares(target).map(([number, share]) => `@${number} ${percent(share)}`).join(", ")}`);

export function RollbackDialog({ adapter, alias, onClose, onDone }) {
  const [moved, setMoved] = useState(false);
  const plan = useLoaded(() => rollbackOf(adapter.name, alias), [adapter.name, alias]);
  const { moves, target } = plan.data || {};
  const run = async () => {
    // the API takes no expected target, so what the dialog shows is compared with what holds now, and then with what was done
    const now = await rollbackOf(adapter.name, alias);
    if (JSON.stringify([now.moves[0], now.target]) !== JSON.stringify([moves[0], target])) {
      plan.reload();
      throw new Notice("Nothing was rolled back", `${modelName(adapter, alias)} or its versions changed while this was open: a rollback now goes ${named(now.target)}. `
        + "Look again, and confirm if that is right.");
    }
    const done = await post(`${aliasPath(adapter, alias)}/rollback`);
    const went = done.split || done.version;
    if (JSON.stringify(went) === JSON.stringify(target)) return done;
    setMoved(true);
    plan.reload();
    throw new Notice("Rolled back to something else", `${modelName(adapter, alias)} went ${named(went)}, not ${named(target)}: the gateway passes over what it finds unfit to answer.`);
  };
  const body = () => {
    if (plan.error) return html`<${Failure} error=${plan.error} />`;
    if (!plan.data) return html`<${Busy} />`;
    return html`<p>Requests for <code>${modelName(adapter, alias)}</code> go back to what <code>${alias}</code> pointed to before its last move, as far as those versions can still answer.
        These were its moves, newest first:</p>
      <ol class="moves">${moves.map((move, index) => html`<li key=${index}>
        ${move.split ? html`<${Shares} weights=${move.split} />` : move.version ? html`<span class="mono">@${move.version}</span>` : "deleted"}
        <span class="dim"> ${move.action}, ${ago(move.created_at)}${index === 0 ? " (this is how it is)" : ""}</span></li>`)}</ol>`;
  };
  return html`<${Confirm} title="Roll back ${modelName(adapter, alias)}" action="Roll back" disabled=${!target || plan.loading}
    run=${run} onClose=${moved ? onDone : onClose} onDone=${onDone}>
    <${Change} adapter=${plan.data?.adapter || adapter} alias=${alias}><${Before} loaded=${plan.data} /><//>${body()}<//>`;
}

/** The numbers of the versions that an alias may go back to: the ready ones; `live` goes back to none that is held back from it. */
const open = (adapter, alias) => new Set(adapter.versions
  .filter((each) => each.state === "ready" && !(alias === "live" && each.held_back)).map((each) => each.version));

/** What a rollback restores: the target before the last move that was not itself taken back, if all its versions are in
 * `allowed`, else an earlier one; undefined if there is none. `moves` are an alias's history, newest first. */
export function earlierTarget(moves, allowed) {
  const targets = [];
  for (const move of [...moves].reverse()) {
    const target = JSON.stringify(move.split || move.version);
    if (move.action === "rollback" && targets.includes(target)) targets.length = targets.lastIndexOf(target) + 1;
    else targets.push(target);
  }
  const now = targets.pop();
  const numbers = (target) => (typeof target === "number" ? [target] : Object.keys(target).map(Number));
  return targets.filter((each) => each !== "null" && each !== now).map((each) => JSON.parse(each))
    .findLast((each) => numbers(each).every((number) => allowed.has(number)));
}

function Before({ loaded }) {
  if (!loaded?.target) return html`<span class="dim">${loaded ? "no earlier target" : "…"}</span>`;
  return typeof loaded.target === "number" ? html`<span class="mono">@${loaded.target}</span>` : html`<${Shares} weights=${loaded.target} />`;
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

/** What callers notice once a version is gone, and how many there were. `usage`: see `usageByVersion`; nothing is said of it where it is not known. */
function Callers({ name, usage }) {
  const requests = usage?.of.get(name)?.requests ?? 0;
  return html`<p>Requests for <code>${name}</code> get 404 from the next one on; its number is not given to another version.
    ${usage && html` ${requests ? html`It had <strong>${plural(requests, "request")}</strong>` : "It had no requests"}${usage.byThisKey ? " by this key" : ""} in the last 24 hours, by whichever name.
      ${usage.byThisKey && " What other keys ask is not counted here."}`}</p>`;
}

/** `usage`: what `usageByVersion` has told the page behind the dialog. */
export function DeleteDialog({ adapter, version, usage, onClose, onDone }) {
  const [force, setForce] = useState(false);
  const [typed, setTyped] = useState("");
  const name = version ? `${adapter.name}@${version.version}` : adapter.name;
  const aliases = ownAliases(version ? version.aliases : Object.keys(adapter.aliases));
  const base = `/v1/adapters/${encodeURIComponent(adapter.name)}`;
  const path = version ? `${base}/versions/${version.version}` : base;
  return html`<${Confirm} title="Delete ${name}" action="Delete ${name}" danger disabled=${typed !== name || (aliases.length > 0 && !force)}
      run=${() => remove(force ? `${path}?force=true` : path)} onClose=${onClose} onDone=${onDone}>
    <p>${version ? "The version and its files are gone for good." : `All ${adapter.versions.length} versions and their files are gone for good.`}</p>
    ${version && html`<${Callers} name=${name} usage=${usage} />`}
    ${aliases.length > 0 && html`<div class="notice bad"><strong>Applications will break</strong>
      <p>Requests for ${aliases.map((each, index) => html`${index > 0 && ", "}<code>${modelName(adapter, each)}</code>`)} will get an error from the next one on.
        ${version && aliases.some((each) => adapter.splits[each]) && " A split that names this version is deleted with it."}</p>
      <label class="check"><input type="checkbox" checked=${force} onChange=${(event) => setForce(event.target.checked)} /> I know; delete it all the same</label></div>`}
    <${Field} label="Type ${name} to confirm"><input value=${typed} autocomplete="off" spellcheck="false" onInput=${(event) => setTyped(event.target.value)} /><//>
  <//>`;
}
