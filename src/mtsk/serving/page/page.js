// The page: a clip goes to the server, its text comes back at the chosen scale, and is kept for when it is asked again.

import { Api } from "./api.js";
import { ClipSource } from "./clip.js";
import { drawComparison } from "./compare.js";
import { byId, element, figure, tell } from "./dom.js";
import { Mouth } from "./mouth.js";
import { Rate } from "./rate.js";
import { Ruler } from "./ruler.js";
import { Said } from "./said.js";
import { scalesOfClip, scalesOfModels } from "./scales.js";

const REST_MS = 350; // the slider rests so long before the server is asked
const EXAMPLE_S = 3; // what the ruler shows while there is no clip

const api = new Api(askKey);
const source = new ClipSource(takeClip);
const { player } = source;
const mouth = new Mouth(player);
const rate = new Rate(choose);
const ruler = new Ruler(byId("ruler"), seek);
const said = new Said(byId("said"), seek);

let scales = [];
let clip = null; // what ClipSource gives, with results by choice, rows of the comparison, and what ends its requests
let reading = null; // AbortController of the request under way
let restTimer = null;
let question = null; // the open question for a key

start();

async function start() {
  try {
    scales = scalesOfModels(await api.models());
  } catch (error) {
    complain("text-problem", error, start);
    return;
  }
  rate.offer(scales);
  if (clip) takeClip(clip);
  else showRuler(null);
}

function takeClip(taken) {
  reading?.abort();
  clip?.aborter.abort();
  clip = { ...taken, results: new Map(), rows: null, aborter: new AbortController() };
  said.placeholder("…");
  showResult(null);
  byId("comparison").replaceChildren();
  byId("against-label").hidden = true;
  for (const id of ["text-problem", "compare-problem"]) tell(byId(id), null);
  const offered = scalesOfClip(scales, clip);
  rate.offer(offered);
  byId("compare").disabled = offered.length < 2;
  if (rate.choice) choose(rate.choice, true);
  if (clip.hasPictures !== false) loadMouth(clip);
  else mouth.clear("The clip has no pictures, so the model only listens.");
}

async function loadMouth(ofClip) {
  mouth.clear("Looking for the mouth …");
  try {
    const sheet = await api.mouth(ofClip.blob, ofClip.name, { signal: ofClip.aborter.signal });
    if (ofClip !== clip) return;
    if (!sheet.num_frames) throw new Error("No face was found.");
    await mouth.load(sheet, ofClip.isPlayable);
  } catch (error) {
    if (ofClip !== clip) return;
    if (/\bface\b/.test(error.message)) mouth.clear(`${error.message} Scales of sound alone do without.`);
    else mouth.clear(error.code === "too_long" ? `Too long to show: ${error.message}` : "The mouth can't be shown.");
  }
}

/** The slider or `auto` was moved; not final while the slider may be on its way. */
function choose(choice, isFinal) {
  clearTimeout(restTimer);
  giveUp();
  tell(byId("text-problem"), null);
  if (!clip) {
    showRuler(null);
    return;
  }
  const kept = clip.results.get(choice);
  if (kept) {
    showResult(kept);
    return;
  }
  showRuler(null);
  byId("said").classList.add("stale");
  if (isFinal) read(choice);
  else restTimer = setTimeout(() => read(choice), REST_MS);
}

async function read(choice) {
  const ofClip = clip;
  clearTimeout(restTimer);
  reading?.abort();
  const own = (reading = new AbortController());
  const at = choice === "auto" ? "at a scale of the model's choice" : `at ${choice}`;
  showStatus(`Reading ${at} …`);
  const onWait = (waitS) => {
    const text = `The server is busy. Trying again in ${waitS} s …`;
    showStatus(text);
    byId("announce").textContent = text;
  };
  let partial = "";
  const onText = (text) => {
    partial = text;
    if (!own.signal.aborted) said.show(text, []);
  };
  try {
    const result = await api.transcribe(ofClip.blob, ofClip.name, choice, { signal: own.signal, onWait, onText });
    if (own.signal.aborted || ofClip !== clip) return;
    if (!result.mtsk.degraded) clip.results.set(choice, result);
    showResult(result);
  } catch (error) {
    if (own.signal.aborted || ofClip !== clip) return;
    showResult(null); // no figures of another scale beside the error
    if (!partial) said.placeholder("No text.");
    complain("text-problem", error, () => choose(choice, true));
  } finally {
    if (reading === own) {
      reading = null;
      showStatus(null);
    }
  }
}

/** Ends the request under way. */
function giveUp() {
  reading?.abort();
  reading = null;
  showStatus(null);
}

/** Shows an error, with a button if trying again may help. */
function complain(id, error, again) {
  const run = () => {
    tell(byId(id), null);
    again();
  };
  tell(byId(id), error.message, error.isPassing === false ? null : { label: "Try again", run });
}

function showStatus(text) {
  byId("status").hidden = text === null;
  byId("status-text").textContent = text ?? "";
  byId("said").classList.toggle("stale", text !== null);
}

function showRuler(result) {
  const scale = (result && scales.find((each) => each.name === result.mtsk.scale)) ?? rate.scale;
  if (!scale) return;
  const durationS = result?.duration ?? clip?.durationS ?? EXAMPLE_S;
  const spans = result?.segments?.length ? result.segments.map((segment) => [segment.start, segment.end]) : undefined;
  ruler.show({ scale, durationS, words: result?.words ?? [], spans, isClip: clip !== null });
}

function showResult(result) {
  byId("facts").hidden = byId("downloads").hidden = byId("notes").hidden = result === null;
  byId("said").classList.remove("stale");
  showRuler(result);
  if (!result) return;
  clip.shown = result;
  const { mtsk } = result;
  if (result.text.trim()) said.show(result.text, result.words ?? []);
  else said.placeholder("No words were found in this clip.");
  rate.showUsed(mtsk.scale);
  const facts = [
    ["Scale used", mtsk.scale],
    ["Tokens", figure(mtsk.tokens, 6)],
    ["TFLOPs", mtsk.tflops === null || mtsk.tflops === undefined ? "–" : figure(mtsk.tflops)],
    ["Time of the model", `${figure(Math.round(millisecondsOf(mtsk)), 6)} ms`],
  ];
  byId("facts").replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  showNotes(mtsk);
  byId("announce").textContent = `Text at ${mtsk.scale}: ${result.text.trim() || "no words"}`;
}

/** Encoding and decoding; what came before, such as finding the face, is the same at all scales. */
function millisecondsOf({ ms, seconds = {} }) {
  return ms ?? 1000 * ((seconds.encode ?? 0) + (seconds.decode ?? 0));
}

function showNotes(mtsk) {
  const notes = [...(mtsk.warnings ?? [])].map((warning) => element("li", {}, `Note: ${warning}.`));
  if (mtsk.degraded) {
    const again = element("button", { type: "button" }, "Ask again");
    again.addEventListener("click", () => choose(rate.choice, true));
    notes.push(element("li", {}, `The server is busy, so it answered at ${mtsk.scale}. `, again));
  }
  byId("notes").replaceChildren(...notes);
  byId("notes").hidden = notes.length === 0;
}

async function compare() {
  const ofClip = clip;
  const button = byId("compare");
  tell(byId("compare-problem"), null);
  button.disabled = true;
  button.textContent = "Comparing …";
  const onWait = (waitS) => (button.textContent = `The server is busy, again in ${waitS} s …`);
  try {
    const names = scalesOfClip(scales, ofClip).map((scale) => scale.name);
    const answer = await api.compare(ofClip.blob, ofClip.name, names, { signal: ofClip.aborter.signal, onWait });
    if (ofClip !== clip) return;
    clip.rows = answer.scales;
    for (const { scale, used, text, words, segments, ...cost } of answer.scales) {
      const result = { text, words, segments, duration: answer.duration_s, mtsk: { scale: used ?? scale, asked: scale, ...cost } };
      if (!clip.results.has(scale)) clip.results.set(scale, result);
    }
    showComparison();
  } catch (error) {
    if (ofClip === clip) complain("compare-problem", error, compare);
  } finally {
    button.disabled = false;
    button.textContent = "Compare";
  }
}

function showComparison() {
  byId("against-label").hidden = false;
  drawComparison(byId("comparison"), clip.rows, byId("against").value, (name) => {
    rate.choose(name);
    byId("text-heading").focus({ preventScroll: true });
    byId("text-heading").scrollIntoView({ block: "start" });
  });
}

async function download(format) {
  const { blob, name, shown } = clip;
  const { scale, policy } = shown.mtsk;
  const choice = policy === "auto" ? "auto" : scale; // of several segments each may have a scale of its own
  try {
    const isPlain = format === "json";
    const text = isPlain ? `${JSON.stringify({ file: name, ...shown }, null, 2)}\n` : await api.subtitles(blob, name, choice, format, {});
    save(text, `${name}.${scale}.${format}`);
  } catch (error) {
    tell(byId("text-problem"), error.message);
  }
}

function save(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Asks for the API key, once however many requests want it. */
function askKey(wasRefused) {
  question ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-note").textContent = wasRefused
      ? "The server did not accept this key."
      : "This server answers only with a key. It is kept until you close the tab.";
    byId("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      question = null;
      resolve(dialog.returnValue === "ok" ? byId("key").value.trim() || null : null);
    }, { once: true });
    dialog.showModal();
  });
  return question;
}

function seek(timeS) {
  if (!clip?.isPlayable) {
    mouth.at(timeS);
    follow(timeS);
    return;
  }
  player.currentTime = timeS;
  player.play().catch(() => {}); // the browser may want a click on the player first
}

function follow(timeS) {
  ruler.at(timeS);
  said.at(timeS);
}

function followPlayer() {
  follow(player.currentTime);
  if (!player.requestVideoFrameCallback || !player.videoWidth) mouth.at(player.currentTime);
  if (!player.paused && !player.ended) requestAnimationFrame(followPlayer);
}

function followPictures(_, picture) {
  mouth.at(picture.mediaTime);
  player.requestVideoFrameCallback(followPictures);
}

for (const event of ["play", "seeked", "pause", "ended"]) player.addEventListener(event, followPlayer);
player.requestVideoFrameCallback?.(followPictures);
byId("compare").addEventListener("click", compare);
byId("against").addEventListener("change", showComparison);
byId("abort").addEventListener("click", () => {
  giveUp();
  showResult(null);
  said.placeholder("Cancelled. Move the slider to read the clip again.");
});
for (const button of byId("downloads").querySelectorAll("button")) {
  button.addEventListener("click", () => download(button.dataset.format));
}
