// Which of two answers is better, without knowing whose they are. One key a choice.

import { html, useEffect, useState } from "./vendor/preact.js";
import { get, list, post, url } from "./api.js";
import { ago, decimal, plural } from "./format.js";
import { IntervalBar } from "./chart.js";
import { Badge, Confirm, Empty, Failure, Field, Loaded, Progress, useLoaded } from "./ui.js";

const KEYS = { 1: "first", ArrowLeft: "first", 2: "second", ArrowRight: "second", 0: "tie", "=": "tie" };

export function ReviewView({ evaluation }) {
  return html`<header class="view"><div><h1>Review</h1><p>Choose the better of two answers, without knowing whose they are. A judge counts only if people agree with it.</p></div></header>
    ${evaluation ? html`<${Pair} key=${evaluation} evaluation=${evaluation} />` : html`<${Queues} />`}`;
}

function Start({ evaluation, onDone }) {
  const [wanted, setWanted] = useState({ pairs: 50, reviewers: 1 });
  const [state, setState] = useState({ busy: false, error: null });
  const start = async (event) => {
    event.preventDefault();
    setState({ busy: true, error: null });
    try {
      await post("/v1/reviews", { evaluation, ...wanted });
      onDone();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  const number = (name) => (event) => setWanted({ ...wanted, [name]: Number(event.target.value) });
  return html`<form class="panel" onSubmit=${start}><h2>Review ${evaluation} without a judge</h2>
    <p>Pairs are drawn at random from the answers of the candidate and of the strongest base, where these differ. What people prefer is shown here and in the report once all pairs are reviewed; it decides nothing in the verdict.</p>
    <${Field} label="Pairs" hint="Fewer if there are not so many different answers."><input type="number" min="1" max="1000" required value=${wanted.pairs} onInput=${number("pairs")} /><//>
    <${Field} label="Reviewers of each pair" hint="Each with a key of their own. With two or more it is shown how far they agree, and the outcome waits until all have chosen, or the review is ended."><input type="number" min="1" max="5" required value=${wanted.reviewers} onInput=${number("reviewers")} /><//>
    ${state.error && html`<${Failure} error=${state.error} />`}
    <div class="actions"><button class="primary" disabled=${state.busy}>Start the review</button></div></form>`;
}

/** Ending a review takes its reviewers their say, so it is asked again. */
function EndDialog({ queue, onClose, onDone }) {
  return html`<${Confirm} title="End the review of ${queue.id}" action="End the review" danger
      run=${() => post(`/v1/reviews/${encodeURIComponent(queue.id)}/end`)} onClose=${onClose} onDone=${onDone}>
    <p>${queue.reviewed} of ${plural(queue.pairs, "pair")} ${queue.reviewed === 1 ? "has" : "have"} all choices. Nobody can choose any more, nothing can be changed, and an evaluation is reviewed once:
      what people prefer is shown by the choices made so far.</p><//>`;
}

function Queues() {
  const queues = useLoaded(() => list("/v1/reviews"));
  const [ending, setEnding] = useState(null);
  return html`${ending && html`<${EndDialog} queue=${ending} onClose=${() => setEnding(null)} onDone=${() => { setEnding(null); queues.reload(); }} />`}
    <${Loaded} of=${queues}>${({ data }) => (data.length ? html`<div class="scroll"><table class="cards">
    <thead><tr><th>Evaluation</th><th>Reviewed</th><th>What people prefer</th><th>Judge</th><th></th></tr></thead>
    <tbody>${data.map((each) => html`<tr key=${each.id}><td data-label="Evaluation"><strong class="mono">${each.id}</strong><div class="dim small">${ago(each.created_at)}</div></td>
      <td data-label="Reviewed">${each.reviewed} of ${each.pairs}${each.reviewers > 1 ? html`<div class="dim small">by ${each.reviewers} reviewers each</div>` : ""}</td>
      <td data-label="What people prefer">${each.people ? html`<${People} people=${each.people} />` : html`<span class="dim">${each.final ? "nobody has chosen" : "not shown before all pairs are reviewed"}</span>`}</td>
      <td data-label="Judge">${each.judge ? html`<${Judge} queue=${each} />` : html`<span class="dim">none</span>`}</td>
      <td class="row-actions">${each.final ? html`<${Badge}>${each.ended_at ? "ended early" : "finished"}<//>` : html`<a class="button" href="#/review/${each.id}">Review</a>
        <button class="danger" aria-label="End the review of ${each.id}" onClick=${() => setEnding(each)}>End …</button>`}</td></tr>`)}</tbody></table></div>`
    : html`<${Empty} title="Nothing to review"><p>Evaluations with a judge leave pairs of answers for people to choose between; their choices say whether the judge is to be believed.</p>
      <p>Of any other evaluation that has ended, and of a job, people can compare the answers, too: open it under <a href="#/train">Train</a>, and choose "Review its answers".</p>
      <p>Start one with a judge with <code>hatrack evaluate NAME@VERSION --held-out FILE --judge JUDGE</code>; the operator names the judges in <code>HATRACK_TRAINER_ENDPOINTS</code>.</p><//>`)}<//>`;
}

/** What people preferred; 50 of 100 is even. It decides nothing in a verdict, which its sentence says. */
export function People({ people }) {
  const share = (value) => decimal(100 * value, 1);
  return html`<div><strong>${share(people.mean)}</strong> <span class="dim small">of 100, ${share(people.low)} to ${share(people.high)}; 50 is even</span>
    <${IntervalBar} ...${people} max=${1} /></div>
    <div class="dim small">${people.sentence}</div>`;
}

function Judge({ queue }) {
  const { agreement } = queue;
  return html`${queue.judge} ${queue.counted && html`<${Badge} tone="good" title="People agree with it">counts<//>`}
    <div>${agreement.kappa === null ? "" : html`kappa ${decimal(agreement.kappa)} <span class="dim small">${decimal(agreement.low)} to ${decimal(agreement.high)}</span>`}</div>
    <div class="dim small">${queue.sentence}</div>
    ${queue.more_reviews ? html`<div class="dim small">${plural(queue.more_reviews, "more review")} may make the judge count</div>` : ""}`;
}

/** Whether an evaluation has pairs to review: {there}. */
const queueOf = async (evaluation) => ({ there: (await list("/v1/reviews", {}, Infinity)).data.some((each) => each.id === evaluation) });

function Pair({ evaluation }) {
  const [after, setAfter] = useState(undefined);
  const [state, setState] = useState({ turn: 0, last: null, error: null, busy: false });
  const queue = useLoaded(() => queueOf(evaluation), [evaluation]);
  const started = Boolean(queue.data?.there);
  const next = useLoaded(() => (started ? get(url("/v1/reviews/next", { evaluation, after })) : null), [evaluation, after, state.turn, started]);
  const pair = next.data?.review;
  const choose = async (choice, id = pair?.id) => {
    if (!id || state.busy) return;
    setState({ ...state, busy: true, error: null });
    try {
      await post(`/v1/reviews/${encodeURIComponent(id)}`, { choice });
      setState({ turn: state.turn + 1, last: id, error: null, busy: false });
    } catch (error) {
      // others have made the last choices on this pair: the next one comes instead
      setState({ ...state, turn: state.turn + (error.code === "review_taken"), busy: false, error });
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
  const crumb = html`<p class="crumb"><a href="#/review">All reviews</a></p>`;
  if (queue.data && !started) return html`${crumb}<${Start} evaluation=${evaluation} onDone=${queue.reload} />`;
  if (queue.error) return html`${crumb}<${Failure} error=${queue.error} retry=${queue.reload} />`;
  return html`${crumb}<${Loaded} of=${next}>${(data) => html`
    <${Progress} done=${data.reviewed} total=${data.total} label="${data.reviewed} of ${data.total} reviewed" />
    ${state.error && html`<${Failure} error=${state.error} />`}
    ${pair ? html`<${Choice} pair=${pair} busy=${state.busy || next.loading} choose=${choose} skip=${skip} />`
      : html`<${Empty} title=${after ? "Nothing else to review" : "No pairs left to review"}>
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
