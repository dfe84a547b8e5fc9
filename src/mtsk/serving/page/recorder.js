// Camera and microphone: choosing them, looking at them, recording them.

export const NONE = "none";

const TYPES = [
  "video/webm;codecs=vp8,opus",
  "video/webm;codecs=vp9,opus",
  "video/webm",
  "video/mp4",
];
const SOUND_TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];

/** What went wrong with a device, in words that say what to do. */
export function describe(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return "The browser did not let this page use the camera or microphone. Allow both in the address bar, then try again, or choose a file.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "No such camera or microphone was found. Connect one, or choose a file.";
    case "NotReadableError":
    case "AbortError":
      return "The camera or microphone is in use by another program, or failed. Close the other program and try again.";
    default:
      return error.message || "Recording failed.";
  }
}

/** `camera` and `microphone` are device ids, NONE, or null for any. */
async function openStream(camera, microphone) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("Browsers give camera and microphone only to pages from https or localhost. Choose a file instead.");
  }
  const exactly = (id) => (id ? { deviceId: { exact: id } } : {});
  const picture = { ...exactly(camera), width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25 } };
  // The browser's clean-up is made for people who listen; the model was trained without it.
  const sound = { ...exactly(microphone), echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  const wanted = { video: camera === NONE ? false : picture, audio: microphone === NONE ? false : sound };
  if (!wanted.video && !wanted.audio) throw new Error("Choose a camera, a microphone, or both.");
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    // No camera at all: sound alone will do, if nobody asked for a certain one.
    if (error.name !== "NotFoundError" || camera !== null || !wanted.audio) throw error;
    return navigator.mediaDevices.getUserMedia({ video: false, audio: sound });
  }
}

export class Recorder {
  #stream = null;
  #recorder = null;
  #context = null;
  #analyser = null;

  get isOpen() {
    return this.#stream !== null;
  }

  get hasPictures() {
    return (this.#stream?.getVideoTracks().length ?? 0) > 0;
  }

  get hasSound() {
    return (this.#stream?.getAudioTracks().length ?? 0) > 0;
  }

  /** Opens the devices; gives the stream to look at. */
  async open(camera, microphone) {
    this.close();
    this.#stream = await openStream(camera, microphone);
    if (this.hasSound && window.AudioContext) {
      this.#context = new AudioContext();
      this.#analyser = this.#context.createAnalyser();
      this.#analyser.fftSize = 1024;
      this.#context.createMediaStreamSource(this.#stream).connect(this.#analyser);
    }
    return this.#stream;
  }

  /** Devices by kind, and which are open. Their names are known only while some are. */
  async devices() {
    const all = await navigator.mediaDevices.enumerateDevices();
    const idOf = (tracks) => (tracks[0] ? (tracks[0].getSettings().deviceId ?? null) : NONE);
    return {
      cameras: all.filter((device) => device.kind === "videoinput" && device.deviceId),
      microphones: all.filter((device) => device.kind === "audioinput" && device.deviceId),
      camera: idOf(this.#stream?.getVideoTracks() ?? []),
      microphone: idOf(this.#stream?.getAudioTracks() ?? []),
    };
  }

  /** How loud it is, from 0 to 1. */
  level() {
    if (!this.#analyser) return 0;
    const samples = new Float32Array(this.#analyser.fftSize);
    this.#analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
    const decibels = 10 * Math.log10(power + 1e-10);
    return Math.min(1, Math.max(0, (decibels + 60) / 55));
  }

  /** Records until `stop`; resolves with the recording as a Blob. */
  record() {
    const types = this.hasPictures ? TYPES : SOUND_TYPES;
    const mimeType = types.find((type) => MediaRecorder.isTypeSupported(type));
    const parts = [];
    const recorder = new MediaRecorder(this.#stream, {
      ...(mimeType ? { mimeType } : {}),
      videoBitsPerSecond: 2_500_000,
      audioBitsPerSecond: 96_000,
    });
    this.#recorder = recorder;
    return new Promise((resolve, reject) => {
      recorder.addEventListener("dataavailable", (event) => event.data.size && parts.push(event.data));
      recorder.addEventListener("error", (event) => reject(event.error ?? new Error("Recording failed.")));
      recorder.addEventListener("stop", () => {
        const type = (recorder.mimeType || mimeType || "video/webm").split(";")[0];
        resolve(new Blob(parts, { type }));
      });
      recorder.start();
    });
  }

  stop() {
    if (this.#recorder?.state === "recording") this.#recorder.stop();
    this.#recorder = null;
  }

  /** Turns the devices off. */
  close() {
    this.stop();
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    [this.#stream, this.#context, this.#analyser] = [null, null, null];
  }
}

/** recording.webm, a name that tells the server what it is. */
export function nameOf(blob) {
  const ends = { "video/webm": "webm", "audio/webm": "webm", "video/mp4": "mp4", "audio/mp4": "m4a", "audio/ogg": "ogg" };
  return `recording.${ends[blob.type] ?? "webm"}`;
}
