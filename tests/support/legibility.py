"""Which texts of a page are too faint to read, by WCAG 2.2's contrast ratio (1.4.3, level AA)."""

from __future__ import annotations

from tests.support.browser import Browser

FAINT = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {  // whatever notation the style has
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = (top, below) => [...[0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3])), 1];
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [red, green, blue] = colour.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const faint = (element, style, text) => {
    const seen = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!seen || element.closest(":disabled")) return [];
    const below = ground(element);
    const ink = channels(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    for (let at = element; at; at = at.parentElement) ink[3] *= Number(getComputedStyle(at).opacity);
    const [dark, bright] = [light(below), light(over(ink, below))].sort((one, other) => one - other);
    const size = parseFloat(style.fontSize);
    const enough = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (bright + 0.05) / (dark + 0.05);
    return ratio < enough ? [`${ratio.toFixed(2)}: ${text.trim().slice(0, 60)}`] : [];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { parentElement, data } = texts.currentNode;
    if (data.trim()) found.push(...faint(parentElement, getComputedStyle(parentElement), data));
  }
  for (const field of document.querySelectorAll("input:not(.hidden), textarea")) {
    const style = getComputedStyle(field, field.value ? null : "::placeholder");
    if (field.value || field.placeholder) found.push(...faint(field, style, field.value || field.placeholder));
  }
  return [...new Set(found)];
})()"""
"""Texts of disabled controls are left out, as WCAG does; of large ones 3 is asked for, of all others 4.5."""


def faint_texts(page: Browser) -> list[str]:
    """The visible texts of the page that are too faint, each with its contrast ratio."""
    found: list[str] = page.run(FAINT)
    return found


def check_legible(page: Browser) -> None:
    """Fail if a text of the page is too faint to read, in light or in dark."""
    for dark in (True, False):
        page.prefer(dark=dark)
        faint = faint_texts(page)
        assert not faint, f"too faint in {'dark' if dark else 'light'}: {faint}"
