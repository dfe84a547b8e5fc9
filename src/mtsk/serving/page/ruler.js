// The ruler: a clip's time from left to right, a block for each token that the model reads, the words above.

import { element } from "./dom.js";
import { FEATURES_PER_SECOND } from "./scales.js";

const MIN_PX_PER_S = 110; // longer clips are shown page by page
const MIN_PAGE_S = 4;
const LANE_PX = 22;
const GAP_PX = 2;
const LABEL_GAP_PX = 5;
const SVG = "http://www.w3.org/2000/svg";

/** Start and end, in seconds, of each token of one modality; an incomplete last group of features is dropped. */
export function tokenSpans(rate, featuresPerSecond, spans) {
  if (rate === null) return [];
  const tokenS = rate / featuresPerSecond;
  return spans.flatMap(([start, end]) => {
    const count = Math.floor((end - start) / tokenS + 1e-6);
    return Array.from({ length: count }, (_, index) => [start + index * tokenS, start + (index + 1) * tokenS]);
  });
}

export class Ruler {
  /** @param onSeek called with a time in seconds. */
  constructor(box, onSeek) {
    this.box = box;
    this.shown = null;
    this.page = 0;
    this.timeS = 0;
    this.words = element("div", { class: "ruler-words" });
    this.sound = new Lane("sound");
    this.lips = new Lane("lips");
    this.times = element("div", { class: "ruler-times" });
    this.pages = element("div", { class: "ruler-pages" });
    this.head = element("div", { class: "playhead", hidden: true });
    this.field = element("div", { class: "ruler-field" }, this.words, this.sound.svg, this.lips.svg, this.times, this.head);
    box.append(element("div", { class: "ruler-names" }, this.sound.label, this.lips.label, this.pages), this.field);
    this.field.addEventListener("click", (event) => {
      if (!this.shown?.isClip) return;
      onSeek(this.#startS() + (event.clientX - this.field.getBoundingClientRect().left) / this.#pxPerS());
    });
    new ResizeObserver(() => this.#draw()).observe(this.field);
  }

  /** `words` are {word, start, end}; `spans` the stretches that are read, as [start, end] in seconds. */
  show({ scale, durationS, words = [], spans = [[0, durationS]], isClip = true }) {
    this.shown = { scale, durationS, words, spans, isClip };
    this.#draw();
  }

  at(timeS) {
    if (!this.shown) return;
    this.timeS = timeS;
    if (this.#pageOf(timeS) !== this.page) this.#draw();
    else this.#placeHead();
  }

  /** Pages are equally long. */
  #numPages() {
    const longestS = Math.max(MIN_PAGE_S, this.field.clientWidth / MIN_PX_PER_S);
    return Math.max(1, Math.ceil(this.shown.durationS / longestS));
  }

  #pageS() {
    return Math.max(0.5, this.shown.durationS / this.#numPages());
  }

  #pageOf(timeS) {
    return Math.min(this.#numPages() - 1, Math.floor(timeS / this.#pageS()));
  }

  #startS() {
    return this.page * this.#pageS();
  }

  #pxPerS() {
    return this.field.clientWidth / this.#pageS();
  }

  /** A line as long as each word lasts, its name above; in a second row, or not at all, where there is no room. */
  #drawWords(words, startS, px) {
    const widthOf = measurer(this.words);
    const ends = [0, 0];
    const placed = [];
    for (const word of words) {
      const left = Math.max(0, (word.start - startS) * px);
      const line = element("i", {});
      line.style.left = `${left}px`;
      line.style.width = `${Math.max(2, (word.end - startS) * px - left - GAP_PX)}px`;
      placed.push(line);
      const row = ends.findIndex((end) => left >= end);
      if (row < 0) continue;
      ends[row] = left + widthOf(word.word);
      const label = element("span", { class: row ? "upper" : null }, word.word);
      label.style.left = `${left}px`;
      placed.push(label);
    }
    this.words.replaceChildren(...placed);
  }

  #placeHead() {
    this.head.hidden = !this.shown.isClip;
    const x = (this.timeS - this.#startS()) * this.#pxPerS();
    this.head.style.transform = `translateX(${Math.min(x, this.field.clientWidth - 1)}px)`;
  }

  #draw() {
    if (!this.shown || !this.field.clientWidth) return;
    const { scale, durationS, words, spans, isClip } = this.shown;
    this.page = this.#pageOf(this.timeS);
    const [startS, endS] = [this.#startS(), this.#startS() + this.#pageS()];
    const px = this.#pxPerS();
    const sound = tokenSpans(scale.audio, FEATURES_PER_SECOND.audio, spans);
    const lips = tokenSpans(scale.video, FEATURES_PER_SECOND.video, spans);
    this.sound.draw(sound, startS, endS, px);
    this.lips.draw(lips, startS, endS, px);
    this.#drawWords(words.filter((word) => word.end > startS && word.start < endS), startS, px);
    this.pages.textContent = this.#numPages() > 1 ? `${this.page + 1} of ${this.#numPages()}` : "";
    const step = px > 60 ? 1 : 5;
    this.times.replaceChildren();
    for (let at = Math.ceil(startS / step) * step; at < endS - 0.2; at += step) {
      const mark = element("span", {}, `${at} s`);
      mark.style.left = `${(at - startS) * px}px`;
      this.times.append(mark);
    }
    this.#placeHead();
    const what = isClip ? `${durationS.toFixed(1)} seconds` : "Three seconds of speech";
    this.box.setAttribute("aria-label", `${what} as tokens: ${sound.length} of sound, ${lips.length} of lips`);
  }
}

function measurer(box) {
  const context = document.createElement("canvas").getContext("2d");
  const style = getComputedStyle(box);
  context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`; // the shorthand is empty with tabular figures
  return (text) => context.measureText(text).width + LABEL_GAP_PX;
}

class Lane {
  constructor(kind) {
    this.kind = kind;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("class", `lane ${kind}`);
    this.path = this.svg.appendChild(document.createElementNS(SVG, "path"));
    this.count = element("span", { class: "count" });
    this.label = element("div", { class: "lane-name" }, kind, this.count);
  }

  draw(tokens, startS, endS, px) {
    const seen = tokens.filter(([start, end]) => end > startS && start < endS);
    const block = ([start, end]) => {
      const width = Math.max(1, (end - start) * px - GAP_PX);
      return `M${((start - startS) * px).toFixed(2)} 0h${width.toFixed(2)}v${LANE_PX}h${(-width).toFixed(2)}z`;
    };
    this.path.setAttribute("d", seen.map(block).join(""));
    this.svg.classList.toggle("unused", tokens.length === 0);
    this.label.classList.toggle("unused", tokens.length === 0);
    this.count.textContent = tokens.length ? String(tokens.length) : "–";
  }
}

