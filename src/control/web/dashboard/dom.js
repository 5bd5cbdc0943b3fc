/**
 * Elements, built node by node. What others wrote only ever becomes a text node or an attribute's value, so that there is
 * nothing to escape; and what a frame draws is gathered, so that a burst of events costs one drawing.
 *
 * @module
 */

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * Makes an element.
 *
 *     h('button', { class: 'quiet', type: 'button', onclick: () => close() }, 'Close')
 *
 * @param {string} tag
 * @param {Record<string, any> | null} [props] attributes by their names; `onclick` and its like are listeners; false, null and
 *     undefined leave one out, true is an empty value
 * @param {...(Child | Child[])} children
 * @returns {any} the element
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else set(element, name, value);
  }
  element.append(...nodes(children));
  return element;
}

/**
 * Sets an attribute, or takes it away.
 * @param {Element} element
 * @param {string} name
 * @param {any} value as for {@link h}
 */
export function set(element, name, value) {
  if (value === false || value === null || value === undefined) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? '' : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/**
 * Changes an element's text; one that has it already is left alone.
 * @param {Node} node
 * @param {string} text
 */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Puts other children in the place of those that there are.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/**
 * Shows or hides.
 * @param {HTMLElement} element
 * @param {boolean} isShown
 */
export function show(element, isShown) {
  if (element.hidden === isShown) element.hidden = !isShown;
}

/** @param {(Child | Child[])[]} children */
function nodes(children) {
  const present = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  return /** @type {(Node | string)[]} */ (present.map((child) => (child instanceof Node ? child : String(child))));
}

/** @type {Map<unknown, () => void>} */
const due = new Map();

/**
 * Draws in the next frame: once, however often it was asked for until then. A page that nobody looks at draws nothing.
 * @param {unknown} key whose drawing it is
 * @param {() => void} draw
 */
export function inFrame(key, draw) {
  if (due.size === 0) requestAnimationFrame(drawAll);
  due.set(key, draw);
}

/** @param {unknown} key whose drawing is not wanted any more */
export function notInFrame(key) {
  if (due.has(key)) due.set(key, () => {});
}

function drawAll() {
  const drawings = [...due.values()];
  due.clear();
  for (const draw of drawings) {
    try {
      draw();
    } catch (error) {
      reportError(error);
    }
  }
}

let ids = 0;

/** An id that no other element has, for labels. */
export function freshId() {
  return `e${++ids}`;
}
