// The slider over the trained scales. Its stops are drawn as bars: as high as the tokens they cost.

import { byId, element } from "./dom.js";
import { meaning, rateText, uses } from "./scales.js";

const MAX_NAMED = 12; // more have no room for their names

export class Rate {
  #scales = [];

  /** @param onChoose called with a scale's name or "auto", and whether that is final: a slider may be on its way. */
  constructor(onChoose) {
    this.input = byId("rate");
    this.bars = byId("bars");
    this.label = byId("rate-label");
    this.meaning = byId("rate-meaning");
    this.auto = byId("auto");
    this.onChoose = onChoose;
    this.used = null;
    this.input.addEventListener("input", () => this.#moved(false));
    this.auto.addEventListener("change", () => {
      this.used = null;
      this.#show();
      onChoose(this.choice, true);
    });
    this.bars.addEventListener("click", (event) => {
      const bar = event.target.closest("[data-stop]");
      if (!bar || this.input.disabled) return;
      this.input.value = bar.dataset.stop;
      this.#moved(true);
    });
  }

  /** Offers scales, those of few tokens first. Keeps what was chosen if it is among them, else takes the finest. */
  offer(scales) {
    const kept = this.scale?.name;
    this.#scales = scales;
    this.input.max = Math.max(0, scales.length - 1);
    this.input.disabled = scales.length === 0;
    const index = scales.findIndex((scale) => scale.name === kept);
    this.input.value = index < 0 ? scales.length - 1 : index;
    this.#drawBars();
    this.#show();
  }

  /** Where the slider stands; null without scales. */
  get scale() {
    return this.#scales[Number(this.input.value)] ?? null;
  }

  get choice() {
    return this.auto.checked ? "auto" : (this.scale?.name ?? null);
  }

  /** Moves the slider to a scale. */
  choose(name) {
    const index = this.#scales.findIndex((scale) => scale.name === name);
    if (index < 0) return;
    this.input.value = index;
    this.#moved(true);
  }

  #moved(isFinal) {
    this.auto.checked = false;
    this.used = null;
    this.#show();
    this.onChoose(this.choice, isFinal);
  }

  /** Tells which scale `auto` (or a busy server) took. */
  showUsed(name) {
    this.used = name;
    this.#show();
  }

  #drawBars() {
    const most = Math.max(...this.#scales.map((scale) => scale.tokensPerSecond), 1);
    this.bars.parentElement.style.setProperty("--stops", String(Math.max(1, this.#scales.length)));
    this.bars.classList.toggle("unnamed", this.#scales.length > MAX_NAMED);
    this.bars.replaceChildren(
      ...this.#scales.map((scale, index) => {
        const part = (kind, perSecond) => {
          const block = element("i", { class: kind });
          block.style.height = `${(100 * perSecond) / most}%`;
          return block;
        };
        const stack = element(
          "div",
          { class: "stack" },
          scale.video ? part("lips", scale.lipsPerSecond) : null,
          scale.audio ? part("sound", scale.soundPerSecond) : null,
        );
        return element("div", { class: "bar", "data-stop": String(index) }, stack, element("span", {}, scale.name));
      }),
    );
  }

  #show() {
    const { scale } = this;
    if (!scale) {
      this.label.textContent = "";
      return;
    }
    const isAuto = this.auto.checked;
    const used = this.used ? this.#scales.find((each) => each.name === this.used) : null;
    for (const [index, bar] of [...this.bars.children].entries()) {
      bar.classList.toggle("chosen", !isAuto && index === Number(this.input.value));
      bar.classList.toggle("used", used !== null && this.#scales[index] === used);
    }
    const told = (each) => `${each.name}, ${rateText(each)}, ${uses(each)}`;
    this.input.setAttribute("aria-valuetext", told(scale));
    const name = (each) => [element("strong", {}, each.name), ` ${rateText(each)} · ${uses(each)}`];
    const shown = isAuto ? used : scale;
    this.meaning.textContent = shown ? meaning(shown) : "Starts with few tokens, and takes more if the sound is poor or the text unsure.";
    if (!isAuto) this.label.replaceChildren(...name(scale));
    else if (used) this.label.replaceChildren("auto took ", ...name(used));
    else this.label.replaceChildren(element("strong", {}, "auto"), " the model chooses");
  }
}
