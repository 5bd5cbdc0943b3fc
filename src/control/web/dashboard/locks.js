/**
 * Who edits what: the field locks that are held.
 *
 * @module
 */

import { connectionHref, roomHref } from './address.js';
import { h, write } from './dom.js';
import { count, plain, span } from './format.js';
import { ask, notify } from './dialog.js';
import { Table } from './table.js';

const INTERVAL_MS = 2000;
const PAGE = 1000;
const LOCKS_MAX = 10_000;

/** @typedef {{ room: string, field: string, token: number, expires_at: string, holder: { client_id: string, session_id: string, user_id: string } }} LockRow */

export class Locks {
  /** @param {import('./app.js').App} app */
  constructor({ session, signal, every }) {
    this._session = session;
    this._signal = signal;
    /** @type {LockRow[]} */
    this._rows = [];
    this._total = 0;
    this._search = h('input', { type: 'search', 'aria-label': 'Search locks', placeholder: 'Room, field, user…', maxlength: 200, spellcheck: 'false', oninput: () => this._show() });
    this._status = h('p', { class: 'note' }, 'Loading…');
    this._table = new Table({
      label: 'Locks',
      key: (row) => JSON.stringify([row.room, row.field]),
      empty: 'Loading…',
      sortBy: 'room',
      columns: /** @type {import('./table.js').Column<LockRow>[]} */ ([
        { name: 'room', title: 'Room', text: (row) => plain(row.room), by: (row) => row.room, href: (row) => roomHref(row.room) },
        { name: 'field', title: 'Field', text: (row) => plain(row.field), by: (row) => row.field },
        { name: 'user', title: 'Held by', text: (row) => plain(row.holder.user_id), by: (row) => row.holder.user_id },
        { name: 'client', title: 'Client', text: (row) => plain(row.holder.client_id), by: (row) => row.holder.client_id, href: (row) => connectionHref(row.holder.client_id), isWide: true },
        { name: 'token', title: 'Token', hint: 'The fencing number: it grows with every grant', text: (row) => String(row.token), by: (row) => row.token, isNumber: true, isWide: true, width: 12 },
        { name: 'ends', title: 'Ends in', text: (row) => span(Date.parse(row.expires_at) - session.now()), by: (row) => row.expires_at, isNumber: true, isWide: true, width: 6 },
        { name: 'unlock', title: 'Force', text: () => '', width: 6.5, button: { label: 'Unlock…', click: (row) => this._unlock(row) } },
      ]),
    });
    this.element = h('div', { class: 'view' }, h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Locks'), this._search), this._status, this._table.element);
    every(INTERVAL_MS, () => this._load());
  }

  close() {
    this._table.close();
  }

  async _load() {
    /** @type {LockRow[]} */
    let rows = [];
    let after;
    let total = 0;
    try {
      do {
        const query = new URLSearchParams({ limit: String(PAGE), ...(after && { after }) });
        const page = await this._session.api(`/api/v1/locks?${query}`, { signal: this._signal });
        rows = rows.concat(page.locks);
        total = page.total;
        after = page.next;
      } while (after && rows.length < LOCKS_MAX);
    } catch (error) {
      if (!this._signal.aborted) write(this._status, /** @type {Error} */ (error).message);
      return;
    }
    this._rows = rows;
    this._total = total;
    this._table.say('Nothing is locked.');
    this._show();
  }

  _show() {
    /** @type {string[]} */
    const words = this._search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const textOf = (/** @type {LockRow} */ { room, field, holder }) => [room, field, ...Object.values(holder)].join('\n').toLowerCase();
    const rows = this._rows.filter((row) => words.every((word) => textOf(row).includes(word)));
    write(this._status, this._rows.length < this._total ? `the first ${count(this._rows.length)} of ${count(this._total)} locks` : `${count(this._total)} held${rows.length < this._rows.length ? `, ${count(rows.length)} shown` : ''}`);
    this._table.set(rows);
  }

  /** @param {LockRow} row */
  async _unlock({ room, field, holder }) {
    const isDone = await ask({
      title: 'Take this lock away?',
      text: `${plain(holder.user_id, 80)} edits ${plain(field, 80)} in ${plain(room, 80)}. The room is told, and somebody else may have the field.`,
      action: 'Unlock',
      act: () => this._session.api(`/api/v1/locks/${encodeURIComponent(room)}/${encodeURIComponent(field)}`, { method: 'DELETE' }),
    });
    if (isDone) notify(`${plain(field, 80)} is free.`);
    this._load();
  }
}
