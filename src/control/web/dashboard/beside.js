/**
 * A list, and beside it the one of its entries that is looked at.
 *
 * @module
 */

import { h, show } from './dom.js';

/** @typedef {{ element: HTMLElement, focus: () => void, close: () => void }} Detail */

export class Beside {
  /**
   * @param {Node[]} list
   * @param {import('./table.js').Table<any>} table the list's
   * @param {(name: string) => Detail} make what shows an entry
   */
  constructor(list, table, make) {
    this._table = table;
    this._make = make;
    /** @type {Detail | undefined} */
    this._detail = undefined;
    this._aside = h('div', { class: 'detail', hidden: true });
    this.element = h('div', { class: 'view split' }, h('div', { class: 'list' }, list), this._aside);
  }

  /** @param {string | undefined} name of the entry to look at */
  show(name) {
    this._detail?.close();
    this._detail = name === undefined ? undefined : this._make(name);
    this._aside.replaceChildren(...(this._detail ? [this._detail.element] : []));
    show(this._aside, this._detail !== undefined);
    this._table.select(name);
    this._detail?.focus();
  }

  close() {
    this._detail?.close();
    this._table.close();
  }
}
