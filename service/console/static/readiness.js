// Whether engines answer: a word in the frame, and a banner while none does. From `/readyz`, which needs no key.

import { html, useEffect, useState } from "./vendor/preact.js";
import { sentence, useEvery, Words } from "./ui.js";

const POLL_S = 10;
const LOST = { status: "unreachable", engine: { state: "down", reason: "" }, trainer: {} };

/** What `/readyz` says, again and again: null before the first answer; its status is "unreachable" where nothing answers. */
export function useReadiness() {
  const [ready, setReady] = useState(null);
  const load = async () => {
    try {
      setReady(await (await fetch("/readyz", { cache: "no-store" })).json());
    } catch {
      setReady(LOST);
    }
  };
  useEffect(() => { load(); }, []);
  useEvery(POLL_S, load);
  return ready;
}

/** The engines' and the trainer's state in a few words. */
export function State({ ready }) {
  if (!ready) return html`<span class="dim">…</span>`;
  const { engines } = ready;
  const up = engines?.filter((each) => each.state === "ready").length;
  const tone = ready.status !== "ready" ? "bad" : engines && up < engines.length ? "warn" : "good";
  const title = engines ? engines.map((each) => `${each.name} (${each.base}): ${each.state}${each.reason ? `, ${each.reason}` : ""}`).join("\n") : ready.engine.reason;
  const words = ready.status === "unreachable" ? "no gateway" : engines ? html`${up} of ${engines.length} <span class="wide-only">engines </span>ready` : `engine ${ready.engine.state}`;
  return html`<span class="state" title=${title}><span class="dot ${tone}" aria-hidden="true"></span>
    ${words}<span class="wide-only">${ready.trainer.state && ready.trainer.state !== "off" ? `, trainer ${ready.trainer.state}` : ""}</span></span>`;
}

const TITLES = { starting: "The engine is starting", stalled: "The engine has stalled", down: "No engine answers", stopping: "The gateway is about to stop", unreachable: "The gateway cannot be reached" };
const ADVICE = {
  starting: "No model answers before it is ready. Everything else here works meanwhile.",
  stalled: "It takes requests and gives no tokens; the gateway restarts it. Models do not answer meanwhile, everything else here works.",
  down: "Models do not answer until it runs again; the gateway starts it anew. Everything else here works. `hatrack doctor`, on the gateway's machine, says what is wrong.",
  stopping: "It takes requests until the balancers before it send them elsewhere.",
  unreachable: "Is it running, and is the network up? What is shown here may be old.",
};

/** Said over every view while no engine answers. */
export function EngineBanner({ ready }) {
  if (!ready || ready.status === "ready") return null;
  const several = ready.engines?.length > 1 && !["unreachable", "stopping"].includes(ready.status);
  return html`<div class="banner ${["starting", "stopping"].includes(ready.status) ? "warn" : "bad"}" role="status"><strong>${several ? "No engine is ready" : TITLES[ready.status] || "No engine answers"}.</strong>
    ${" "}<${Words} text=${ADVICE[ready.status] || ADVICE.down} />${ready.status !== "stopping" && ready.engine.reason && html` <span class="dim">${sentence(ready.engine.reason)}</span>`}</div>`;
}
