// Where a clip comes from: camera and microphone, a chosen file, a dropped one. And the player that shows it.

import { byId, clock, element, tell } from "./dom.js";
import { describe, nameOf, NONE, Recorder } from "./recorder.js";

const LONGEST_RECORDING_S = 60;
const FAR = 1e7; // seconds; beyond the end of any clip
const CONTROLS = ["open-camera", "start", "stop", "cancel", "choose"];
const SHOWN = { idle: ["open-camera", "choose"], live: ["start", "cancel"], recording: ["stop"] };

export class ClipSource {
  #recorder = new Recorder();
  #url = null;
  #ticker = null;
  #loads = 0;
  #isOpening = false;
  isPlayable = false; // of the clip that is there
  isWithoutPictures = false;

  /** @param onClip called with {blob, name, hasPictures, hasSound, isPlayable, durationS}; unknown values are null. */
  constructor(onClip) {
    this.onClip = onClip;
    this.player = byId("player");
    this.live = byId("live");
    this.problem = byId("clip-problem");
    byId("open-camera").addEventListener("click", () => this.#open(null, null));
    byId("start").addEventListener("click", () => this.#record());
    byId("stop").addEventListener("click", () => this.#recorder.stop());
    byId("cancel").addEventListener("click", () => this.#leave("open-camera"));
    byId("choose").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = ""; // so that the same file can be chosen again
      if (file) this.#take(file, file.name);
    });
    for (const id of ["camera", "microphone"]) {
      byId(id).addEventListener("change", () => this.#open(byId("camera").value, byId("microphone").value, id));
    }
    this.#takeDrops();
    this.#show("idle");
  }

  #takeDrops() {
    const stage = byId("stage");
    const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      stage.classList.add("over");
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && stage.classList.remove("over"));
    addEventListener("drop", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      stage.classList.remove("over");
      const [file] = event.dataTransfer.files;
      if (file && this.mode !== "recording") this.#take(file, file.name);
    });
  }

  #show(mode, focus = null) {
    this.mode = mode;
    for (const id of CONTROLS) byId(id).hidden = !SHOWN[mode].includes(id);
    const hasClip = this.#url !== null;
    byId("open-camera").textContent = hasClip ? "Record another" : "Use camera and microphone";
    byId("open-camera").classList.toggle("primary", !hasClip);
    byId("choose").textContent = hasClip ? "Choose another file" : "Choose a file";
    const isLive = mode !== "idle";
    this.live.hidden = !isLive || !this.#recorder.hasPictures;
    this.player.hidden = isLive || !this.isPlayable;
    byId("invite").hidden = isLive || hasClip;
    byId("devices").hidden = mode !== "live";
    byId("level").hidden = !isLive || !this.#recorder.hasSound;
    byId("recording").hidden = mode !== "recording";
    byId("clip-name").hidden = isLive || !hasClip;
    const isSound = isLive ? !this.#recorder.hasPictures : hasClip && this.isWithoutPictures;
    const isDark = isSound || (!isLive && hasClip && !this.isPlayable); // no picture to show
    byId("remark").hidden = !isDark;
    byId("remark").textContent = isSound ? "Sound only" : "This browser can't play the clip. The server may still read it.";
    this.#fit(isLive ? this.live : this.player, isDark);
    if (focus) byId(focus).focus();
  }

  /** The stage takes the picture's form, within reason. */
  #fit({ videoWidth, videoHeight }, isDark) {
    const ratio = videoHeight ? Math.min(16 / 9, Math.max(1, videoWidth / videoHeight)) : isDark ? 5 / 2 : 4 / 3;
    byId("stage").style.aspectRatio = String(ratio);
    byId("stage").classList.toggle("lit", byId("invite").hidden);
  }

  async #open(camera, microphone, focus = "start") {
    if (this.#isOpening) return; // a second click while the browser asks
    this.#isOpening = true;
    tell(this.problem, null);
    this.player.pause();
    try {
      this.live.srcObject = await this.#recorder.open(camera || null, microphone || null);
      if (this.#recorder.hasPictures) await this.live.play();
      this.#offer(await this.#recorder.devices());
    } catch (error) {
      this.#leave("open-camera");
      tell(this.problem, describe(error), { label: "Try again", run: () => this.#open(null, null) });
      return;
    } finally {
      this.#isOpening = false;
    }
    this.#show("live", focus);
    this.#watchLevel();
  }

  #offer({ cameras, microphones, camera, microphone }) {
    const fill = (select, devices, chosen, none, what) => {
      const option = (value, text) => element("option", { value, selected: value === chosen }, text);
      const named = devices.map((device, index) => option(device.deviceId, device.label || `${what} ${index + 1}`));
      select.replaceChildren(...named, option(NONE, none));
      select.value = chosen ?? select.options[0].value;
    };
    fill(byId("camera"), cameras, camera, "None: sound alone", "Camera");
    fill(byId("microphone"), microphones, microphone, "None: lips alone", "Microphone");
  }

  #watchLevel() {
    const bar = byId("level").firstElementChild;
    const draw = () => {
      if (!this.#recorder.isOpen) return;
      bar.style.transform = `scaleX(${this.#recorder.level().toFixed(3)})`;
      requestAnimationFrame(draw);
    };
    draw();
  }

  async #record() {
    const known = { hasPictures: this.#recorder.hasPictures, hasSound: this.#recorder.hasSound };
    const startMs = performance.now();
    const passed = () => (performance.now() - startMs) / 1000;
    byId("clock").textContent = clock(0);
    this.#ticker = setInterval(() => {
      byId("clock").textContent = clock(passed());
      if (passed() >= LONGEST_RECORDING_S) this.#recorder.stop();
    }, 250);
    this.#show("recording", "stop");
    try {
      const blob = await this.#recorder.record();
      const lengthS = passed();
      this.#leave("open-camera");
      if (!blob.size) throw new Error("Nothing was recorded. Record for a second or more.");
      await this.#take(blob, nameOf(blob), { ...known, durationS: lengthS });
    } catch (error) {
      this.#leave("open-camera");
      tell(this.problem, describe(error));
    }
  }

  /** Turns the devices off and goes back to what was there before. */
  #leave(focus) {
    clearInterval(this.#ticker);
    this.#recorder.close();
    this.live.srcObject = null;
    this.#show("idle", focus);
  }

  async #take(blob, name, known = {}) {
    tell(this.problem, null);
    if (this.#recorder.isOpen) this.#leave(null);
    if (!blob.size) {
      tell(this.problem, `${name} is empty.`);
      return;
    }
    const load = ++this.#loads;
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(blob);
    const seen = await this.#play();
    if (load !== this.#loads) return;
    const clip = { blob, name, hasSound: null, hasPictures: null, durationS: null, ...seen, ...known };
    this.isWithoutPictures = clip.hasPictures === false;
    this.isPlayable = clip.isPlayable;
    byId("clip-name").textContent = name;
    this.#show("idle");
    this.onClip(clip);
  }

  /** Puts the clip into the player; tells what that finds out. */
  async #play() {
    const { player } = this;
    const isPlayable = await new Promise((resolve) => {
      player.onloadedmetadata = () => resolve(true);
      player.onerror = () => resolve(false);
      player.src = this.#url;
    });
    player.onloadedmetadata = player.onerror = null;
    if (!isPlayable) return { isPlayable };
    if (player.duration === Infinity) await seekOnce(player, FAR); // a browser's own recordings tell no duration
    if (player.currentTime > 0) await seekOnce(player, 0);
    const durationS = Number.isFinite(player.duration) ? player.duration : null;
    return { isPlayable, hasPictures: player.videoWidth > 0, durationS };
  }
}

function seekOnce(player, timeS) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 3000); // better without a duration than never
    player.addEventListener("seeked", () => (clearTimeout(timer), resolve()), { once: true });
    player.currentTime = timeS;
  });
}
