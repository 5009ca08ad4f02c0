// Which of two answers is better, without knowing whose they are. One key a choice.

import { html, useEffect, useState } from "./vendor/preact.js";
import { get, list, post, url } from "./api.js";
import { ago, decimal, plural } from "./format.js";
import { Badge, Empty, Failure, Loaded, Progress, useLoaded } from "./ui.js";

const KEYS = { 1: "first", ArrowLeft: "first", 2: "second", ArrowRight: "second", 0: "tie", "=": "tie" };

export function ReviewView({ evaluation }) {
  return html`<header class="view"><div><h1>Review</h1><p>Choose the better of two answers, without knowing whose they are. A judge counts only if people agree with it.</p></div></header>
    ${evaluation ? html`<${Pair} key=${evaluation} evaluation=${evaluation} />` : html`<${Queues} />`}`;
}

function Queues() {
  const queues = useLoaded(() => list("/v1/reviews"));
  return html`<${Loaded} of=${queues}>${({ data }) => (data.length ? html`<div class="scroll"><table class="cards">
    <thead><tr><th>Evaluation</th><th>Judge</th><th>Reviewed</th><th>Agreement, kappa</th><th></th></tr></thead>
    <tbody>${data.map((each) => html`<tr key=${each.id}><td data-label="Evaluation"><strong class="mono">${each.id}</strong><div class="dim small">${ago(each.created_at)}</div></td>
      <td data-label="Judge">${each.judge} ${each.counted && html`<${Badge} tone="good" title="People agree with it">counts<//>`}</td>
      <td data-label="Reviewed">${each.reviewed} of ${each.pairs}${each.more_reviews ? html`<div class="dim small">${plural(each.more_reviews, "more review")} may make the judge count</div>` : ""}</td>
      <td data-label="Agreement">${each.agreement.kappa === null ? "–" : html`${decimal(each.agreement.kappa)} <span class="dim small">${decimal(each.agreement.low)} to ${decimal(each.agreement.high)}</span>`}
        <div class="dim small">${each.sentence}</div></td>
      <td class="row-actions">${each.final ? html`<${Badge}>finished<//>` : html`<a class="button" href="#/review/${each.id}">Review</a>`}</td></tr>`)}</tbody></table></div>`
    : html`<${Empty} title="Nothing to review"><p>Evaluations with a judge leave pairs of answers for people to choose between; their choices say whether the judge is to be believed.</p>
      <p>Start one with <code>hatrack evaluate NAME@VERSION --held-out FILE --judge JUDGE</code>; the operator names the judges in <code>HATRACK_TRAINER_ENDPOINTS</code>.</p><//>`)}<//>`;
}

function Pair({ evaluation }) {
  const [after, setAfter] = useState(undefined);
  const [state, setState] = useState({ turn: 0, last: null, error: null, busy: false });
  const next = useLoaded(() => get(url("/v1/reviews/next", { evaluation, after })), [evaluation, after, state.turn]);
  const pair = next.data?.review;
  const choose = async (choice, id = pair?.id) => {
    if (!id || state.busy) return;
    setState({ ...state, busy: true, error: null });
    try {
      await post(`/v1/reviews/${encodeURIComponent(id)}`, { choice });
      setState({ turn: state.turn + 1, last: id, error: null, busy: false });
    } catch (error) {
      setState({ ...state, busy: false, error });
    }
  };
  const skip = () => setAfter(pair.id);
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // a key that is held down would go on to choose for pairs that nobody has read, as Enter would on a button
      if (event.repeat) { if (KEYS[event.key] || event.key === "Enter") event.preventDefault(); return; }
      if (next.loading || !pair) return;
      if (KEYS[event.key]) { event.preventDefault(); choose(KEYS[event.key]); } else if (event.key === "s") skip();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });
  return html`<p class="crumb"><a href="#/review">All reviews</a></p><${Loaded} of=${next}>${(data) => html`
    <${Progress} done=${data.reviewed} total=${data.total} label="${data.reviewed} of ${data.total} reviewed" />
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${pair ? html`<${Choice} pair=${pair} busy=${state.busy || next.loading} choose=${choose} skip=${skip} />`
      : html`<${Empty} title=${after ? "Nothing else to review" : "All pairs are reviewed"}>
        ${after ? html`<p><button class="link" onClick=${() => setAfter(undefined)}>Show the skipped pairs again</button></p>` : html`<p>Thank you. <a href="#/review">What came of it</a></p>`}<//>`}`}<//>`;
}

function Choice({ pair, busy, choose, skip }) {
  return html`<section class="panel">${pair.asked.map((turn, index) => html`<p key=${index} class="quoted"><b>${turn.role}:</b> ${turn.content}</p>`)}
      ${pair.reference && html`<details><summary>What the author answered</summary><p class="quoted">${pair.reference}</p></details>`}</section>
    <div class="panes">${[["first", pair.first, "1 or ←"], ["second", pair.second, "2 or →"]].map(([which, text, key]) => html`<article key=${which} class="pane">
      <header><h3>The ${which} answer</h3></header><div class="answer">${text}</div>
      <footer><button class="primary" disabled=${busy} onClick=${() => choose(which)}>The ${which} is better <kbd>${key}</kbd></button></footer></article>`)}</div>
    <div class="actions choices"><button disabled=${busy} onClick=${() => choose("tie")}>Equally good <kbd>0</kbd></button>
      <button class="quiet" disabled=${busy} onClick=${skip}>Skip <kbd>s</kbd></button></div>`;
}
