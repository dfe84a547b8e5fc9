// Which words of a text differ from those of another.

const plain = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}']/gu, "");

export const wordsOf = (text) => text.split(/\s+/).filter(Boolean);

/**
 * Aligns a text with a reference at the least number of edits.
 * Returns steps in order: {kind: "same" | "other" | "extra" | "missing", word, instead}.
 */
export function differences(text, reference) {
  const ours = wordsOf(text);
  const theirs = wordsOf(reference);
  const cost = costs(ours.map(plain), theirs.map(plain));
  const steps = [];
  let [i, j] = [ours.length, theirs.length];
  while (i > 0 || j > 0) {
    const isSame = i > 0 && j > 0 && plain(ours[i - 1]) === plain(theirs[j - 1]);
    if (i > 0 && j > 0 && cost[i][j] === cost[i - 1][j - 1] + (isSame ? 0 : 1)) {
      [i, j] = [i - 1, j - 1];
      steps.push({ kind: isSame ? "same" : "other", word: ours[i], instead: isSame ? null : theirs[j] });
    } else if (i > 0 && cost[i][j] === cost[i - 1][j] + 1) {
      i -= 1;
      steps.push({ kind: "extra", word: ours[i], instead: null });
    } else {
      j -= 1;
      steps.push({ kind: "missing", word: theirs[j], instead: null });
    }
  }
  return steps.reverse();
}

function costs(ours, theirs) {
  const cost = Array.from({ length: ours.length + 1 }, () => new Uint32Array(theirs.length + 1));
  for (let i = 0; i <= ours.length; i++) {
    for (let j = 0; j <= theirs.length; j++) {
      if (i === 0 || j === 0) cost[i][j] = i + j;
      else {
        const changed = cost[i - 1][j - 1] + (ours[i - 1] === theirs[j - 1] ? 0 : 1);
        cost[i][j] = Math.min(changed, cost[i - 1][j] + 1, cost[i][j - 1] + 1);
      }
    }
  }
  return cost;
}

/** The text that most have; of several the first. */
export function majority(texts) {
  const key = (text) => wordsOf(text).map(plain).join(" ");
  const counts = new Map();
  for (const text of texts) counts.set(key(text), (counts.get(key(text)) ?? 0) + 1);
  const most = Math.max(...counts.values());
  return texts.find((text) => counts.get(key(text)) === most) ?? "";
}
