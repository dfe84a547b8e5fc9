// Small helpers for the document. Text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (null and false are left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Text for screen readers alone. */
export const spoken = (text) => element("span", { class: "visually-hidden" }, text);

/** 0:07 */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Three figures at most, as people write them. */
export function figure(value, digits = 3) {
  return Number(value).toLocaleString("en", { maximumSignificantDigits: digits });
}

/** Shows a message (and a button) in one of the page's boxes, or clears it with null. */
export function tell(box, message, action = null) {
  box.replaceChildren();
  box.hidden = message === null;
  if (message === null) return;
  box.append(element("p", {}, message));
  if (action) {
    const button = element("button", { type: "button" }, action.label);
    button.addEventListener("click", action.run);
    box.append(button);
  }
}
