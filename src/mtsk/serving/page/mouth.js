// The mouth crop, in step with the player; where the browser can't play a clip, on its own.

import { byId } from "./dom.js";

export class Mouth {
  #sheet = null;
  #timer = null;
  #loads = 0;

  constructor(player) {
    this.player = player;
    this.canvas = byId("mouth");
    this.note = byId("mouth-note");
    this.button = byId("mouth-play");
    this.hint = this.note.textContent;
    this.button.addEventListener("click", () => (this.#timer ? this.#halt() : this.#playAlone()));
    this.clear();
  }

  /** Empties it, and says why. */
  clear(message = this.hint) {
    this.#loads += 1;
    this.#halt();
    this.#sheet = null;
    this.button.hidden = true;
    this.note.textContent = message;
    this.canvas.setAttribute("aria-label", "No mouth yet");
    this.canvas.classList.add("empty");
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Takes a sheet of crops: {image, columns, size, fps, num_frames}. `isPlayable`: whether the player shows the clip. */
  async load(sheet, isPlayable) {
    this.clear();
    const load = this.#loads;
    const image = new Image();
    image.src = sheet.image;
    await image.decode();
    if (load !== this.#loads) return;
    this.#sheet = { ...sheet, image };
    this.canvas.width = this.canvas.height = sheet.size;
    this.canvas.classList.remove("empty");
    this.canvas.setAttribute("aria-label", `The mouth in ${sheet.num_frames} grey pictures, in step with the clip`);
    this.button.hidden = isPlayable;
    this.at(this.player.currentTime);
  }

  /** Shows the crop of a time in seconds. */
  at(timeS) {
    if (!this.#sheet) return;
    const { image, columns, size, fps, num_frames: count } = this.#sheet;
    const frame = Math.max(0, Math.min(count - 1, Math.floor(timeS * fps + 1e-3)));
    const [x, y] = [(frame % columns) * size, Math.floor(frame / columns) * size];
    this.canvas.getContext("2d").drawImage(image, x, y, size, size, 0, 0, size, size);
  }

  #playAlone() {
    const { fps, num_frames: count } = this.#sheet;
    let frame = 0;
    this.button.textContent = "Pause the mouth";
    this.#timer = setInterval(() => this.at((frame++ % count) / fps), 1000 / fps);
  }

  #halt() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.button.textContent = "Play the mouth";
  }
}
