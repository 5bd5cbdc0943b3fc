/**
 * All connections, and beside them the one that is looked at.
 *
 * @module
 */

import { connectionHref } from './address.js';
import { Beside } from './beside.js';
import { h, write } from './dom.js';
import { ago, bytes, count, json, many, plain } from './format.js';
import { Connection } from './connection.js';
import { Listing } from './listing.js';
import { Table } from './table.js';

const INTERVAL_MS = 2000;

/**
 * @typedef {object} ConnectionRow
 * @property {string} client_id
 * @property {string} session_id
 * @property {string} user_id
 * @property {string | null} name
 * @property {string[]} roles
 * @property {string} protocol
 * @property {string[]} rooms
 * @property {Record<string, unknown>} metadata
 * @property {string} connected_at
 * @property {string} last_activity
 * @property {string | null} expires_at
 * @property {number} queue_bytes
 * @property {number} slow_rooms
 * @property {number} received_bytes
 * @property {number} sent_bytes
 * @property {string | null} address
 * @property {number} shard
 */

export class Connections {
  /** @param {import('./app.js').App} app */
  constructor(app) {
    /** @type {ConnectionRow[]} */
    this._rows = [];
    this._total = 0;
    /** Whether the hub was asked to choose. */
    this._isAsked = false;
    this._search = h('input', { type: 'search', 'aria-label': 'Search connections', placeholder: 'Client, user, room, metadata…', maxlength: 200, spellcheck: 'false', oninput: () => this._choose() });
    this._slow = h('input', { type: 'checkbox', onchange: () => this._choose() });
    this._status = h('p', { class: 'note' }, 'Loading…');
    const now = () => app.session.now();
    this._table = new Table({
      label: 'Connections',
      key: (row) => row.client_id,
      empty: 'Loading…',
      sortBy: 'queue',
      descending: true,
      rowTone: (row) => (isSlow(row) ? 'warn' : undefined),
      columns: /** @type {import('./table.js').Column<ConnectionRow>[]} */ ([
        { name: 'client', title: 'Client', text: (row) => plain(row.client_id), by: (row) => row.client_id, href: (row) => connectionHref(row.client_id) },
        { name: 'user', title: 'User', text: (row) => plain(row.user_id), by: (row) => row.user_id, isWide: true },
        { name: 'queue', title: 'Queue', hint: 'Bytes that wait to be sent to it', text: (row) => bytes(row.queue_bytes), by: (row) => row.queue_bytes + (isSlow(row) ? 1 : 0), isNumber: true, width: 6 },
        { name: 'slow', title: 'Behind', hint: 'Rooms whose events it can’t take at the moment', text: (row) => (row.slow_rooms ? count(row.slow_rooms) : ''), by: (row) => row.slow_rooms, isNumber: true, isWide: true, width: 5 },
        { name: 'rooms', title: 'Rooms', text: (row) => count(row.rooms.length), by: (row) => row.rooms.length, isNumber: true, width: 5 },
        { name: 'in', title: 'In', hint: 'Bytes that came from it', text: (row) => bytes(row.received_bytes), by: (row) => row.received_bytes, isNumber: true, isWide: true, width: 6 },
        { name: 'out', title: 'Out', hint: 'Bytes that were sent to it', text: (row) => bytes(row.sent_bytes), by: (row) => row.sent_bytes, isNumber: true, isWide: true, width: 6 },
        { name: 'age', title: 'Since', hint: 'How long it has been connected', text: (row) => ago(row.connected_at, now()), by: (row) => -Date.parse(row.connected_at), isNumber: true, isWide: true, width: 6 },
        { name: 'heard', title: 'Heard', hint: 'How long ago something came from it', text: (row) => ago(row.last_activity, now()), by: (row) => -Date.parse(row.last_activity), isNumber: true, isWide: true, width: 5 },
        { name: 'metadata', title: 'Metadata', text: (row) => (Object.keys(row.metadata).length > 0 ? json(row.metadata, 120) : ''), isWide: true },
      ]),
    });
    const bar = h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Connections'), this._search, h('label', { class: 'check' }, this._slow, 'slow only'));
    this._beside = new Beside([bar, this._status, this._table.element], this._table, (name) => new Connection(app, name));
    this.element = this._beside.element;
    this._listing = new Listing({
      session: app.session,
      path: '/api/v1/connections',
      field: 'connections',
      interval_ms: INTERVAL_MS,
      signal: app.signal,
      changed: ({ rows, total }) => {
        this._rows = rows;
        this._total = total;
        this._table.say('No connection fits.');
        this._choose();
      },
      failed: (error) => write(this._status, error.message),
    });
  }

  /** @param {string | undefined} client_id of the connection to look at */
  show(client_id) {
    this._beside.show(client_id);
  }

  close() {
    this._beside.close();
  }

  /** Chooses from the rows that are here; where those are not all, the hub is asked. */
  _choose() {
    /** @type {string[]} */
    const words = this._search.value.toLowerCase().split(/\s+/).filter(Boolean);
    this._isAsked = (this._isAsked || this._rows.length < this._total) && words.length > 0;
    // The hub looks into ids only; the rest is chosen here.
    this._listing.ask({ search: this._isAsked ? words[0] : undefined });
    const rows = this._rows.filter((row) => (!this._slow.checked || isSlow(row)) && words.every((word) => textOf(row).includes(word)));
    const slow = this._rows.filter(isSlow).length;
    const part = this._rows.length < this._total ? `the first ${count(this._rows.length)} of ${count(this._total)} connections: search for others` : many(this._total, 'connection');
    write(this._status, `${part}${rows.length < this._rows.length ? `, ${count(rows.length)} shown` : ''}${slow > 0 ? `, ${count(slow)} slow` : ''}`);
    this._table.set(rows);
  }
}

/** @param {ConnectionRow} row */
function isSlow({ slow_rooms, queue_bytes }) {
  return slow_rooms > 0 || queue_bytes >= 64 * 1024;
}

/** @type {WeakMap<ConnectionRow, string>} */
const texts = new WeakMap();

/** @param {ConnectionRow} row what a search looks at */
function textOf(row) {
  let text = texts.get(row);
  if (text === undefined) {
    const { client_id, session_id, user_id, name, roles, rooms, protocol, address, metadata } = row;
    text = [client_id, session_id, user_id, name ?? '', ...roles, ...rooms, protocol, address ?? '', JSON.stringify(metadata)].join('\n').toLowerCase();
    texts.set(row, text);
  }
  return text;
}
