// Elements from data. Text becomes text nodes and values become attributes: nothing that a server says is markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a new element; `onNAME` attributes are listeners, and children are nodes or texts. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return a new element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Set the text of an element, if it differs: an unchanged page costs no layout. */
export function setText(element, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Set or remove an attribute, if it differs. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const shown = new WeakMap();

/**
 * Make the children of `parent` those of `items`, in order: elements are made once for each key, then updated, so that
 * focus, selection and scroll positions stay. At most `most` new ones are made; return whether all items are shown.
 */
export function keyed(parent, items, keyOf, create, update, most = Infinity) {
  const before = shown.get(parent) ?? new Map();
  const after = new Map();
  let place = parent.firstChild;
  let made = 0;
  let complete = true;
  for (const item of items) {
    let key = keyOf(item);
    while (after.has(key)) key = `${key}+`;
    let element = before.get(key);
    if (element === undefined) {
      if (made++ >= most) {
        complete = false;
        break;
      }
      element = create(item);
    }
    before.delete(key);
    after.set(key, element);
    update(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const element of before.values()) element.remove();
  shown.set(parent, after);
  return complete;
}

/** Call `draw` in the next animation frame, at most once for all requests and every `interval` milliseconds. */
export function throttled(draw, interval = 0) {
  let isDue = false;
  let last = -Infinity;
  return () => {
    if (isDue) return;
    isDue = true;
    const run = () =>
      requestAnimationFrame((now) => {
        isDue = false;
        last = now;
        draw();
      });
    const wait = last + interval - performance.now();
    if (wait > 0) setTimeout(run, wait);
    else run();
  };
}
