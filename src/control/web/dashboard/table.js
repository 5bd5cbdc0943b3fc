/**
 * A table of any length: only the rows that are seen are in the page. It is sorted by its heads, walked through with the
 * arrow keys, and rows keep their elements while they move, so that focus and selection stay where they are.
 *
 * @module
 */

import { h, inFrame, notInFrame, set, show, write } from './dom.js';

/** The height of a row in pixels, as the style sheet has it. */
const ROW = 34;
/** Rows above and below those that are seen. */
const SPARE = 8;

/**
 * @template T
 * @typedef {object} Column
 * @property {string} name
 * @property {string} title its head
 * @property {string} [hint]
 * @property {(row: T) => string} text
 * @property {(row: T) => string | number} [by] what it is sorted by; not at all where it is left out
 * @property {number} [width] in `rem`; the rest is shared by those that have none
 * @property {boolean} [isNumber]
 * @property {boolean} [isWide] left out where there is little room
 * @property {(row: T) => string | undefined} [href] makes it a link
 * @property {(row: T) => string | undefined} [tone] a class
 * @property {{ label: string, click: (row: T) => void }} [button] instead of text
 */

/** @template T */
export class Table {
  /**
   * @param {object} options
   * @param {string} options.label what it lists, for those who don't see it
   * @param {Column<T>[]} options.columns
   * @param {(row: T) => string} options.key what tells rows apart
   * @param {string} options.empty what it says without rows
   * @param {string} options.sortBy a column's name
   * @param {boolean} [options.descending]
   * @param {(row: T) => string | undefined} [options.rowTone]
   */
  constructor({ label, columns, key, empty, sortBy, descending = false, rowTone }) {
    this._columns = columns;
    this._key = key;
    this._rowTone = rowTone;
    this._sortBy = sortBy;
    this._descending = descending;
    /** @type {T[]} */
    this._rows = [];
    /** @type {Map<string, any>} rows that are in the page */
    this._shown = new Map();
    /** @type {any[]} */
    this._spare = [];
    this._top = 0;
    this._height = 0;
    /** @type {string | undefined} the row that is to have the focus */
    this._wanted = undefined;
    /** @type {string | undefined} */
    this._selected = undefined;
    this._heads = columns.map((column) => this._head(column));
    this._above = h('tr', { class: 'space', 'aria-hidden': 'true' }, h('td'));
    this._below = h('tr', { class: 'space', 'aria-hidden': 'true' }, h('td'));
    this._body = h('tbody', null, this._above, this._below);
    this._table = h('table', { 'aria-label': label }, h('thead', null, h('tr', { 'aria-rowindex': 1 }, this._heads)), this._body);
    this._empty = h('p', { class: 'empty' }, empty);
    this._scroll = h('div', { class: 'table', tabindex: 0, role: 'region', 'aria-label': label }, this._table, this._empty);
    this.element = this._scroll;
    this._scroll.addEventListener('scroll', () => {
      this._top = this._scroll.scrollTop;
      this._later();
    });
    this._scroll.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this._walk(event));
    this._observer = new ResizeObserver(([entry]) => {
      this._height = entry.contentRect.height;
      this._later();
    });
    this._observer.observe(this._scroll);
    this._showOrder();
  }

  close() {
    this._observer.disconnect();
    notInFrame(this);
  }

  /** How many rows there are. */
  get length() {
    return this._rows.length;
  }

  /** @param {T[]} rows the table may put them into another order */
  set(rows) {
    this._rows = rows;
    this._sort();
    this._later();
  }

  /** @param {string} text what it says without rows */
  say(text) {
    write(this._empty, text);
  }

  /** @param {string | undefined} key of the row that is looked at */
  select(key) {
    this._selected = key;
    this._later();
  }

  /** Writes what is seen again, for instance since time has gone on. */
  refresh() {
    this._later();
  }

  _later() {
    inFrame(this, () => this._draw());
  }

  /** @param {Column<T>} column */
  _head(column) {
    const { name, title, hint, by, width, isNumber, isWide } = column;
    const inside = by ? h('button', { type: 'button', title: hint, onclick: () => this._order(name) }, title) : title;
    const head = h('th', { scope: 'col', class: classes(isNumber && 'number', isWide && 'wide'), title: by ? null : hint }, inside);
    if (width) head.style.width = `${width}rem`;
    return head;
  }

  /** @param {string} name */
  _order(name) {
    const column = this._columns.find((one) => one.name === name);
    this._descending = this._sortBy === name ? !this._descending : Boolean(column?.isNumber);
    this._sortBy = name;
    this._showOrder();
    this.set(this._rows);
  }

  _showOrder() {
    this._columns.forEach(({ name, by }, index) => {
      const order = this._descending ? 'descending' : 'ascending';
      set(this._heads[index], 'aria-sort', by ? (name === this._sortBy ? order : 'none') : null);
    });
  }

  _sort() {
    const by = this._columns.find(({ name }) => name === this._sortBy)?.by;
    if (!by) return;
    const [less, more] = this._descending ? [1, -1] : [-1, 1];
    const places = this._rows.map((row) => ({ row, at: by(row), key: this._key(row) }));
    // What is the same is ordered by name, so that nothing jumps to and fro.
    places.sort((a, b) => (a.at < b.at ? less : a.at > b.at ? more : a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
    this._rows = places.map(({ row }) => row);
  }

  _draw() {
    const first = Math.max(0, Math.floor(this._top / ROW) - SPARE);
    const last = Math.min(this._rows.length, Math.ceil((this._top + this._height) / ROW) + SPARE);
    const rows = this._rows.slice(first, last);
    show(this._empty, this._rows.length === 0);
    set(this._table, 'aria-rowcount', this._rows.length + 1);
    const keys = new Set(rows.map(this._key));
    for (const [key, element] of this._shown) {
      if (keys.has(key)) continue;
      this._shown.delete(key);
      element.remove();
      this._spare.push(element);
    }
    resize(this._above, first * ROW);
    resize(this._below, (this._rows.length - last) * ROW);
    let place = this._above.nextSibling;
    rows.forEach((row, index) => {
      const key = this._key(row);
      let element = this._shown.get(key);
      if (!element) {
        element = this._spare.pop() ?? this._element();
        this._shown.set(key, element);
      }
      this._write(element, row, key, first + index);
      if (element === place) place = element.nextSibling;
      else this._body.insertBefore(element, place);
    });
    if (this._wanted !== undefined && keys.has(this._wanted)) {
      this._shown.get(this._wanted).querySelector('a, button')?.focus({ preventScroll: true });
      this._wanted = undefined;
    }
  }

  _element() {
    const element = h('tr');
    element.cells_ = this._columns.map((column) => {
      const cell = h('td', { class: classes(column.isNumber && 'number', column.isWide && 'wide') });
      if (column.button) {
        const { label, click } = column.button;
        cell.append(h('button', { type: 'button', class: 'small', onclick: () => click(element.row_) }, label));
        return { cell, inside: undefined };
      }
      const inside = column.href ? h('a') : cell;
      if (column.href) cell.append(inside);
      return { cell, inside };
    });
    element.append(...element.cells_.map((/** @type {any} */ { cell }) => cell));
    return element;
  }

  /**
   * @param {any} element
   * @param {T} row
   * @param {string} key
   * @param {number} index
   */
  _write(element, row, key, index) {
    element.row_ = row;
    element.key_ = key;
    set(element, 'aria-rowindex', index + 2);
    set(element, 'aria-current', key === this._selected ? 'true' : null);
    set(element, 'class', this._rowTone?.(row));
    this._columns.forEach((column, at) => {
      const { cell, inside } = element.cells_[at];
      if (!inside) return;
      const text = column.text(row);
      if (inside.text_ !== text) {
        inside.text_ = text;
        write(inside, text);
        // What is cut off can be read all the same.
        set(cell, 'title', text.length > 12 ? text : null);
      }
      if (column.href) set(inside, 'href', column.href(row));
      if (column.tone) set(cell, 'class', classes(column.isNumber && 'number', column.isWide && 'wide', column.tone(row)));
    });
  }

  /** @param {KeyboardEvent} event */
  _walk(event) {
    const here = /** @type {any} */ (/** @type {Element} */ (event.target).closest('tbody tr'));
    const page = Math.max(1, Math.floor(this._height / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const step = steps[/** @type {keyof typeof steps} */ (event.key)];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey || this._rows.length === 0) return;
    // Without a row it is the browser that scrolls, but for the way into the rows.
    if (!here && event.key !== 'ArrowDown') return;
    event.preventDefault();
    // Keys may come faster than frames.
    const key = this._wanted ?? here?.key_;
    const from = key === undefined ? -1 : this._rows.findIndex((row) => this._key(row) === key);
    const to = Math.min(this._rows.length - 1, Math.max(0, from + step));
    this._wanted = this._key(this._rows[to]);
    const above = to * ROW;
    const room = this._height - ROW * 2;
    if (above < this._top) this._scroll.scrollTop = above;
    else if (above > this._top + room) this._scroll.scrollTop = above - room;
    this._later();
  }
}

/** @param {...(string | false | undefined)} names */
function classes(...names) {
  return names.filter(Boolean).join(' ') || null;
}

/**
 * @param {any} space
 * @param {number} height
 */
function resize(space, height) {
  const text = `${height}px`;
  if (space.firstChild.style.height !== text) space.firstChild.style.height = text;
  show(space, height > 0);
}
