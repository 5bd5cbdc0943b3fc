/**
 * Names with values, and small tables. What has not changed stays as it is, so that text can be selected while it is kept up
 * to date.
 *
 * @module
 */

import { fill, h, write } from './dom.js';

/** A list of facts. */
export class Facts {
  constructor() {
    this.element = h('dl', { class: 'facts' });
    /** @type {{ name: string, dd: HTMLElement }[]} */
    this._shown = [];
  }

  /** @param {[string, string | Node][]} facts names and values, in their order */
  set(facts) {
    if (facts.length !== this._shown.length || facts.some(([name], index) => name !== this._shown[index].name)) {
      this._shown = facts.map(([name]) => ({ name, dd: h('dd') }));
      fill(this.element, this._shown.map(({ name, dd }) => h('div', null, h('dt', null, name), dd)));
    }
    facts.forEach(([, value], index) => {
      const { dd } = this._shown[index];
      if (typeof value === 'string') write(dd, value);
      else if (dd.childNodes.length !== 1 || !dd.firstChild?.isEqualNode(value)) fill(dd, value);
    });
  }
}

/** A table of some rows, the first cell of which is their name. */
export class SmallTable {
  /**
   * @param {string} label
   * @param {string[]} heads
   */
  constructor(label, heads) {
    this._body = h('tbody');
    const head = h('tr', null, heads.map((one) => h('th', { scope: 'col' }, one)));
    this.element = h('div', { class: 'wide-table', tabindex: 0, role: 'region', 'aria-label': label }, h('table', null, h('thead', null, head), this._body));
  }

  /** @param {string[][]} rows */
  set(rows) {
    while (this._body.children.length > rows.length) this._body.lastElementChild?.remove();
    rows.forEach((cells, index) => {
      const row = this._body.children[index] ?? this._body.appendChild(h('tr', null, cells.map((_, at) => (at === 0 ? h('th', { scope: 'row' }) : h('td', { class: 'number' })))));
      cells.forEach((cell, at) => write(row.children[at], cell));
    });
  }
}
