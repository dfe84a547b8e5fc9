// The same clip at all scales: a table, with the words that differ marked by weight and line as well as by colour.

import { element, figure, spoken } from "./dom.js";
import { parseScale, rateText, uses } from "./scales.js";
import { differences, majority } from "./words.js";

/**
 * Draws the table.
 * @param rows of the server: {scale, text, words, tokens, tflops, ms}.
 * @param against "finest" or "majority".
 * @param onChoose called with a scale's name.
 */
export function drawComparison(box, rows, against, onChoose) {
  const told = rows
    .map((row) => ({ ...row, parsed: parseScale(row.scale) }))
    .filter((row) => row.parsed)
    .sort((a, b) => b.parsed.tokensPerSecond - a.parsed.tokensPerSecond || a.scale.localeCompare(b.scale));
  if (!told.length) {
    box.replaceChildren(element("p", {}, "The server compared no scales of this clip."));
    return;
  }
  const reference = against === "majority" ? majority(told.map((row) => row.text)) : told[0].text;
  const most = Math.max(...told.map((row) => row.parsed.tokensPerSecond));
  const head = (text, className) => element("th", { role: "columnheader", scope: "col", class: className ?? null }, text);
  const table = element(
    "table",
    { role: "table", "aria-labelledby": "compare-heading" },
    element("thead", { role: "rowgroup" },
      element("tr", { role: "row" }, head("Scale"), head("Text"), head("Tokens", "number"), head("TFLOPs", "number"), head("ms", "number"))),
    element("tbody", { role: "rowgroup" }, ...told.map((row) => tableRow(row, reference, most, onChoose))),
  );
  box.replaceChildren(summary(told, reference, against), table);
}

function tableRow(row, reference, most, onChoose) {
  const { parsed } = row;
  const choose = element("button", { type: "button", class: "scale-name", "aria-label": `Show the text at ${row.scale}` }, row.scale);
  choose.addEventListener("click", () => onChoose(row.scale));
  const bar = (kind, perSecond) => {
    const block = element("i", { class: kind });
    block.style.width = `${(100 * perSecond) / most}%`;
    return block;
  };
  const bars = element(
    "div",
    { class: "row-bars", "aria-hidden": "true" },
    parsed.audio ? bar("sound", parsed.soundPerSecond) : null,
    parsed.video ? bar("lips", parsed.lipsPerSecond) : null,
  );
  const number = (value, unit) =>
    element("td", { role: "cell", class: "number" }, value, element("span", { class: "unit", "aria-hidden": "true" }, ` ${unit}`));
  return element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, choose, element("span", { class: "about" }, about(row)), bars),
    element("td", { role: "cell", class: "row-text" }, ...markedText(row.text, reference)),
    number(figure(row.tokens, 6), "tokens"),
    number(row.tflops === null || row.tflops === undefined ? "–" : figure(row.tflops), "TFLOPs"),
    number(row.ms === null || row.ms === undefined ? "–" : figure(Math.round(row.ms), 6), "ms"),
  );
}

function about({ parsed, scale, used }) {
  const read = used && used !== scale ? `, read at ${used}` : "";
  return `${rateText(parsed)}, ${uses(parsed)}${read}`;
}

function markedText(text, reference) {
  const pieces = differences(text, reference).map((step) => {
    switch (step.kind) {
      case "other":
        return element("mark", { title: `instead of “${step.instead}”` }, step.word, spoken(` (instead of ${step.instead})`));
      case "extra":
        return element("mark", { title: "an added word" }, step.word, spoken(" (added)"));
      case "missing":
        return element("del", { title: "a missing word" }, step.word, spoken(" (missing)"));
      default:
        return step.word;
    }
  });
  if (!pieces.length) return [element("em", {}, "no words")];
  return pieces.flatMap((piece, index) => (index ? [" ", piece] : [piece]));
}

function summary(rows, reference, against) {
  const isSame = (row) => differences(row.text, reference).every((step) => step.kind === "same");
  const alike = rows.filter(isSame);
  const fewest = alike.reduce((least, row) => (row.tokens < least.tokens ? row : least), alike[0]);
  const what = against === "majority" ? "the majority" : `the finest, ${rows[0].scale}`;
  let text = `${alike.length} of ${rows.length} scales give the text of ${what}`;
  if (fewest && fewest !== rows[0]) text += `; the cheapest of them, ${fewest.scale}, reads ${fewest.tokens} tokens instead of ${rows[0].tokens}`;
  return element("p", { class: "summary" }, `${text}.`);
}
