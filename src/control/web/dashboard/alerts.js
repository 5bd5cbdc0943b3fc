/**
 * What is not as it should be, and was not: alerts that are raised, and what was raised and cleared.
 *
 * @module
 */

import { fill, h, write } from './dom.js';
import { ago, clock, count, many, plain, short } from './format.js';
import { Table } from './table.js';

const INTERVAL_MS = 5000;
const LIMIT = 1000;
const HOUR_S = 3600;
const RANGES = [
  { name: '1 h', back_s: HOUR_S },
  { name: '24 h', back_s: 24 * HOUR_S },
  { name: '7 d', back_s: 168 * HOUR_S },
];

/** @typedef {{ at: string, alert: string, state: string, severity: string, message: string, value: number, threshold: number }} AlertRow */

export class Alerts {
  /** @param {import('./app.js').App} app */
  constructor({ session, watch, figures, signal, every }) {
    this._session = session;
    this._signal = signal;
    this._range = RANGES[1];
    this._active = h('div', { class: 'active' });
    this._status = h('p', { class: 'note' }, 'Loading…');
    this._ranges = RANGES.map((range) => h('button', { type: 'button', 'aria-pressed': String(range === this._range), onclick: () => this._choose(range) }, range.name));
    this._figures = figures;
    this._table = new Table({
      label: 'What was raised and cleared',
      key: (row) => `${row.at} ${row.alert} ${row.state}`,
      empty: 'Loading…',
      sortBy: 'at',
      descending: true,
      columns: /** @type {import('./table.js').Column<AlertRow>[]} */ ([
        { name: 'at', title: 'When', text: (row) => clock(row.at), by: (row) => row.at, width: 9 },
        { name: 'state', title: 'State', text: (row) => row.state, by: (row) => row.state, width: 6, tone: (row) => (row.state !== 'raised' ? 'good' : row.severity === 'critical' ? 'bad' : 'warn') },
        { name: 'alert', title: 'Alert', text: (row) => plain(row.alert), by: (row) => row.alert, width: 9 },
        { name: 'message', title: 'What', text: (row) => plain(row.message), isWide: true },
        { name: 'value', title: 'Value', text: (row) => short(row.value), by: (row) => row.value, isNumber: true, isWide: true, width: 6 },
        { name: 'threshold', title: 'Threshold', text: (row) => short(row.threshold), isNumber: true, isWide: true, width: 7 },
      ]),
    });
    this.element = h(
      'div',
      { class: 'view' },
      h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Alerts'), h('div', { class: 'segments', role: 'group', 'aria-label': 'Range' }, this._ranges)),
      this._active,
      this._status,
      this._table.element,
    );
    // What is told now is looked at now.
    watch.addEventListener('alert', () => this._load(), { signal });
    every(INTERVAL_MS, () => this._load());
  }

  close() {
    this._table.close();
  }

  /** @param {typeof RANGES[0]} range */
  _choose(range) {
    this._range = range;
    RANGES.forEach((one, index) => this._ranges[index].setAttribute('aria-pressed', String(one === range)));
    this._load();
  }

  async _load() {
    const range = this._range;
    const since = Math.floor(this._session.now() / 1000) - range.back_s;
    let page;
    try {
      page = await this._session.api(`/api/v1/alerts?since=${since}&limit=${LIMIT}`, { signal: this._signal });
    } catch (error) {
      if (!this._signal.aborted) write(this._status, /** @type {Error} */ (error).message);
      return;
    }
    if (range !== this._range) return;
    const now = this._session.now();
    const cards = page.active.map((/** @type {any} */ { alert, severity, message, value, threshold, since: from }) =>
      h('section', { class: `card alert ${severity === 'critical' ? 'bad' : 'warn'}` }, h('h2', null, plain(alert)), h('p', null, plain(message)), h('p', { class: 'quiet' }, `${plain(severity)}, for ${ago(from, now)}; now ${short(value)}, threshold ${short(threshold)}`)),
    );
    fill(this._active, cards.length > 0 ? cards : h('p', { class: 'card good' }, 'No alert is raised.'));
    const isStored = this._figures.stats?.store !== undefined;
    const changes = page.alerts.length === LIMIT ? `the newest ${count(LIMIT)} changes` : many(page.alerts.length, 'change');
    write(this._status, `${changes} in this time${isStored ? '' : '; without store.path only what happened since the hub’s start is known'}`);
    this._table.say('Nothing was raised in this time.');
    this._table.set(page.alerts);
  }
}
