// Lines over a training's steps, as SVG that the script draws.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";

const HEIGHT = 240;
const LEFT = 48;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 28;

/** The width that an element has on the page, so that a chart's letters are as large as all others: [ref, width]. */
function useWidth() {
  const element = useRef(null);
  const [width, setWidth] = useState(600);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(240, Math.round(entry.contentRect.width))));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

/** Round numbers that divide a range into about `count` parts. */
export function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/**
 * A chart of `series`: [{name, points: [[x, y], …], marks}]. With `marks` the points are shown, too.
 * The x-axis goes to `until`, so that what is still to come has its place.
 */
export function LineChart({ series, until, xLabel, label }) {
  const [element, width] = useWidth();
  const shown = series.filter((each) => each.points.length);
  const values = shown.flatMap((each) => each.points.map(([, y]) => y));
  const xMax = Math.max(until || 1, ...shown.flatMap((each) => each.points.map(([x]) => x)));
  const [low, high] = [Math.min(0, ...values), Math.max(...values) * 1.05 || 1];
  const x = (value) => LEFT + (value / xMax) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  return html`<figure class="chart" ref=${element}>
    <svg viewBox="0 0 ${width} ${HEIGHT}" role="img" aria-label=${label}>
      ${ticks(low, high, 4).map((tick) => html`<g key=${`y${tick}`}><line class="grid-line" x1=${LEFT} x2=${width - RIGHT} y1=${y(tick)} y2=${y(tick)} />
        <text x=${LEFT - 8} y=${y(tick) + 4} text-anchor="end">${tick}</text></g>`)}
      ${ticks(0, xMax, Math.min(10, width / 80)).map((tick) => html`<text key=${`x${tick}`} x=${x(tick)} y=${HEIGHT - 8} text-anchor="middle">${tick}</text>`)}
      ${shown.map((each, index) => html`<g key=${each.name} class="series-${index}">
        <polyline points=${each.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ")} />
        ${(each.marks || each.points.length < 3) && each.points.map(([a, b]) => html`<circle key=${a} cx=${x(a)} cy=${y(b)} r="3.5"><title>${each.name} ${b.toFixed(4)} at ${a}</title></circle>`)}
      </g>`)}
    </svg>
    <figcaption>${shown.map((each, index) => html`<span key=${each.name} class="key-${index}">${each.name} <b>${each.points.at(-1)[1].toFixed(3)}</b></span>`)}<span class="dim">${xLabel}</span></figcaption>
  </figure>`;
}

/** A bar with its interval, of a mean between `low` and `high` on a scale to `max`. */
export function IntervalBar({ mean, low, high, max }) {
  const at = (value) => 100 * Math.max(0, Math.min(1, value / max));
  return html`<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">
    <rect class="track" x="0" y="4" width="100" height="4" /><rect class="value" x="0" y="2" width=${at(mean)} height="8" />
    ${high > low && html`<rect class="interval" x=${at(low)} y="5" width=${at(high) - at(low)} height="2" />`}</svg>`;
}

/** Bars over time: [{at, value, bad}], where `bad` is the part of `value` that failed. */
export function BarChart({ bars, label, tickOf }) {
  const [element, width] = useWidth();
  const high = Math.max(1, ...bars.map((each) => each.value)) * 1.05;
  const slot = (width - LEFT - RIGHT) / bars.length;
  const y = (value) => TOP + (1 - value / high) * (HEIGHT - TOP - BOTTOM);
  const every = Math.ceil((bars.length * 70) / width);
  return html`<figure class="chart" ref=${element}><svg viewBox="0 0 ${width} ${HEIGHT}" role="img" aria-label=${label}>
    ${ticks(0, high, 4).filter(Number.isInteger).map((tick) => html`<g key=${tick}><line class="grid-line" x1=${LEFT} x2=${width - RIGHT} y1=${y(tick)} y2=${y(tick)} />
      <text x=${LEFT - 8} y=${y(tick) + 4} text-anchor="end">${tick >= 10000 ? `${tick / 1000}k` : tick}</text></g>`)}
    ${bars.map((each, index) => html`<g key=${each.at}><title>${tickOf(each.at)}: ${each.value}${each.bad ? `, ${each.bad} failed` : ""}</title>
      <rect class="bar-good" x=${LEFT + index * slot + slot * 0.12} width=${slot * 0.76} y=${y(each.value)} height=${y(0) - y(each.value)} />
      <rect class="bar-bad" x=${LEFT + index * slot + slot * 0.12} width=${slot * 0.76} y=${y(each.bad)} height=${y(0) - y(each.bad)} />
      ${index % every === 0 && html`<text x=${LEFT + (index + 0.5) * slot} y=${HEIGHT - 8} text-anchor="middle">${tickOf(each.at)}</text>`}</g>`)}
  </svg></figure>`;
}
