// The text of a clip. Its words are one stop of the tab key; arrow keys go from word to word, Enter plays from there.

import { element } from "./dom.js";
import { wordsOf } from "./words.js";

export class Said {
  #buttons = [];
  #words = [];

  /** @param onSeek called with a time in seconds. */
  constructor(box, onSeek) {
    this.box = box;
    this.onSeek = onSeek;
    box.addEventListener("keydown", (event) => this.#move(event));
    box.addEventListener("click", (event) => {
      const index = this.#buttons.indexOf(event.target.closest("button"));
      if (index < 0) return;
      this.#stopAt(index);
      this.onSeek(this.#words[index].start);
    });
  }

  placeholder(text) {
    this.#clear();
    this.box.replaceChildren(element("p", { class: "placeholder" }, text));
  }

  /** `words` are {word, start, end}; without them the text is plain. */
  show(text, words) {
    this.#clear();
    this.box.classList.toggle("long", wordsOf(text).length > 40);
    if (!words.length) {
      this.box.replaceChildren(element("p", {}, text));
      return;
    }
    this.#words = words;
    this.#buttons = words.map((word, index) => {
      const label = `${word.word}, at ${word.start.toFixed(1)} seconds`;
      return element("button", { type: "button", class: "word", tabindex: index ? "-1" : "0", "aria-label": label }, word.word);
    });
    this.box.replaceChildren(element("p", {}, ...this.#buttons.flatMap((button, index) => (index ? [" ", button] : [button]))));
  }

  /** Marks the word that is spoken at a time; null marks none. */
  at(timeS) {
    for (const [index, word] of this.#words.entries()) {
      const isNow = timeS !== null && timeS >= word.start && timeS < word.end;
      this.#buttons[index].classList.toggle("now", isNow);
    }
  }

  #clear() {
    [this.#buttons, this.#words] = [[], []];
    this.box.classList.remove("long");
  }

  #stopAt(index) {
    for (const [other, button] of this.#buttons.entries()) button.tabIndex = other === index ? 0 : -1;
  }

  #move(event) {
    const now = this.#buttons.indexOf(document.activeElement);
    const last = this.#buttons.length - 1;
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: last }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(last, next));
    this.#stopAt(index);
    this.#buttons[index].focus();
  }
}
