// The server's routes. A key that it asks for is kept for this tab alone; a busy server is asked again when it says.

const KEY = "mtsk-api-key";
const MAX_TRIES = 6;
const LONGEST_WAIT_S = 30;

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may do better later. */
  get isPassing() {
    return ![400, 404, 413, 415, 422].includes(this.status);
  }
}

let memoryKey = null; // where the browser forbids storage

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? memoryKey;
  } catch {
    return memoryKey;
  }
}

function keepKey(key) {
  memoryKey = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // memory has it
  }
}

export class Api {
  /**
   * @param askKey called with whether an earlier key was refused; gives a key or null.
   */
  constructor(askKey) {
    this.askKey = askKey;
  }

  async models() {
    return (await (await this.#send("/v1/models", {})).json()).data;
  }

  /**
   * The answer: text, words, segments, duration, and what it took in `mtsk`. `choice` is a scale's name or "auto".
   * `onText` is called with the text so far, as it comes.
   */
  async transcribe(file, name, choice, { onText = () => {}, ...options }) {
    const response = await this.#transcription(file, name, choice, "verbose_json", options);
    let text = "";
    for await (const { type, ...record } of eventsOf(response)) {
      if (record.error) throw new ApiError(sentence(record.error.message ?? "The server failed"));
      if (type === "transcript.text.done") return record;
      text += record.delta ?? "";
      onText(text);
    }
    throw new ApiError("The server stopped before the text was complete.");
  }

  /** Subtitles as text. */
  async subtitles(file, name, choice, format, options) {
    return (await this.#transcription(file, name, choice, format, options)).text();
  }

  async compare(file, name, scales, options) {
    const form = new FormData();
    form.append("file", file, name);
    form.append("scales", scales.join(","));
    return (await this.#send("/v1/mtsk/compare", { ...options, form })).json();
  }

  async mouth(file, name, options) {
    const form = new FormData();
    form.append("file", file, name);
    return (await this.#send("/v1/mtsk/mouth", { ...options, form })).json();
  }

  #transcription(file, name, choice, format, options) {
    const form = new FormData();
    form.append("file", file, name);
    form.append("model", "mtsk");
    form.append("response_format", format);
    if (choice === "auto") form.append("policy", "auto");
    else form.append("scale", choice);
    if (format === "verbose_json") {
      form.append("timestamp_granularities[]", "word");
      form.append("timestamp_granularities[]", "segment");
      form.append("stream", "true");
    }
    return this.#send("/v1/audio/transcriptions", { ...options, form });
  }

  /** Sends, asks for a key if one is needed, waits while the server is busy. `onWait` is told how many seconds. */
  async #send(path, { form = null, signal = null, onWait = () => {} }) {
    for (let tries = 1; ; tries++) {
      const key = readKey();
      const headers = key ? { Authorization: `Bearer ${key}` } : {};
      let response;
      try {
        response = await fetch(path, { method: form ? "POST" : "GET", body: form, headers, signal });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The server can't be reached. Is it still running?");
      }
      if (response.ok) return response;
      if (response.status === 401) {
        const given = await this.askKey(key !== null);
        if (!given) throw new ApiError("This server answers only with an API key.", 401);
        keepKey(given);
        continue;
      }
      const waitS = waitOf(response);
      if (waitS === null || tries >= MAX_TRIES) throw await errorOf(response);
      onWait(waitS);
      await pause(waitS, signal);
    }
  }
}

/** The records of server-sent events. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection to the server was lost.");
    }
    if (part.done) return;
    const events = (rest + part.value).replaceAll("\r\n", "\n").split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function waitOf(response) {
  if (response.status !== 429 && response.status !== 503) return null;
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return Number.isFinite(seconds) ? Math.min(LONGEST_WAIT_S, Math.max(1, Math.ceil(seconds))) : null;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("given up", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The server's words ("file: no face was found") as a sentence. */
function sentence(message) {
  const told = message.replace(/^file: /, "").trim();
  return told && `${told[0].toUpperCase()}${told.slice(1)}${/[.!?]$/.test(told) ? "" : "."}`;
}

async function errorOf(response) {
  let [said, code] = ["", null];
  try {
    const { error } = await response.json();
    [said, code] = [sentence(error?.message ?? ""), error?.code ?? null];
  } catch {
    // not JSON: the status must do
  }
  const meaning = {
    413: "The clip is too large for this server.",
    429: "The server is busy. Try again in a moment.",
    503: "The server is not ready. Try again in a moment.",
  };
  const about = meaning[response.status] ?? "";
  const message = [about, said].filter(Boolean).join(" ") || `The server answered with status ${response.status}.`;
  return new ApiError(message, response.status, code);
}
