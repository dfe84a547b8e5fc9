// Scales: a4v2 means that 4 features of sound (of 50 a second) and 2 of lips (of 25 a second) become one token each.

export const FEATURES_PER_SECOND = { audio: 50, video: 25 };

/** Reads "a4v2", "a16" or "v5"; null for anything else. */
export function parseScale(name) {
  const match = /^(?:a(\d+))?(?:v(\d+))?$/.exec(name);
  if (!name || !match) return null;
  const audio = match[1] ? Number(match[1]) : null;
  const video = match[2] ? Number(match[2]) : null;
  if (audio === 0 || video === 0) return null;
  const soundPerSecond = audio ? FEATURES_PER_SECOND.audio / audio : 0;
  const lipsPerSecond = video ? FEATURES_PER_SECOND.video / video : 0;
  return { name, audio, video, soundPerSecond, lipsPerSecond, tokensPerSecond: soundPerSecond + lipsPerSecond };
}

/** The trained scales of the server's model list, those of few tokens first. */
export function scalesOfModels(models) {
  const scales = models.map((model) => parseScale(String(model.id).split("@")[1] ?? "")).filter(Boolean);
  const unique = [...new Map(scales.map((scale) => [scale.name, scale])).values()];
  return unique.sort((a, b) => a.tokensPerSecond - b.tokensPerSecond || a.name.localeCompare(b.name));
}

/** Those that a clip can be read at. What is not known of a clip (null) excludes nothing. */
export function scalesOfClip(scales, clip) {
  return scales.filter(
    (scale) => (scale.audio === null || clip?.hasSound !== false) && (scale.video === null || clip?.hasPictures !== false),
  );
}

export function uses(scale) {
  if (scale.audio === null) return "lips alone";
  return scale.video === null ? "sound alone" : "sound and lips";
}

/** 12.5; as short as it can be. */
export const rateText = (scale) => `${Number(scale.tokensPerSecond.toFixed(1))} tokens/s`;

/** What a token of this scale stands for. */
export function meaning({ audio, video }) {
  const lasts = (rate, perSecond) => `${Math.round((1000 * rate) / perSecond)} ms`;
  const parts = [];
  if (audio) parts.push(`each ${lasts(audio, FEATURES_PER_SECOND.audio)} of sound`);
  if (video) parts.push(`each ${lasts(video, FEATURES_PER_SECOND.video)} of lips`);
  return `One token for ${parts.join(", and one for ")}.`;
}
