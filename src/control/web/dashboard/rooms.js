/**
 * All rooms, and beside them the one that is looked at.
 *
 * @module
 */

import { roomHref } from './address.js';
import { Beside } from './beside.js';
import { h, write } from './dom.js';
import { bytes, count, many, plain, rate, short } from './format.js';
import { Listing } from './listing.js';
import { Room } from './room.js';
import { Table } from './table.js';

const INTERVAL_MS = 2000;
/** Rates are taken over at least so long, so that one event does not look like many. */
const RATE_MS = 1500;
/** Kinds that there always are; those of the configuration are learned from the rooms. */
const KINDS = ['project', 'user', 'agent', 'session', 'quote', 'analytics', 'workflow', 'admin', 'global'];

/**
 * @typedef {object} RoomRow
 * @property {string} room
 * @property {string} kind
 * @property {number} members
 * @property {number} seq
 * @property {string} epoch
 * @property {number} history_events
 * @property {number} history_bytes
 * @property {number | null} first_seq
 * @property {number} shard
 * @property {number | undefined} per_s events a second, once there were two looks
 */

export class Rooms {
  /** @param {import('./app.js').App} app */
  constructor(app) {
    /** @type {Map<string, { seq: number, epoch: string, at: number, per_s: number | undefined }>} */
    this._before = new Map();
    this._search = h('input', { type: 'search', 'aria-label': 'Search rooms', placeholder: 'Search rooms', maxlength: 200, spellcheck: 'false', oninput: () => this._ask() });
    this._kind = h('select', { 'aria-label': 'Kind', onchange: () => this._ask() }, h('option', { value: '' }, 'all kinds'));
    this._kinds = new Set();
    this._learn(KINDS);
    this._occupied = h('input', { type: 'checkbox', onchange: () => this._ask() });
    this._status = h('p', { class: 'note' }, 'Loading…');
    this._table = new Table({
      label: 'Rooms',
      key: (row) => row.room,
      empty: 'Loading…',
      sortBy: 'room',
      columns: /** @type {import('./table.js').Column<RoomRow>[]} */ ([
        { name: 'room', title: 'Room', text: (row) => plain(row.room), by: (row) => row.room, href: (row) => roomHref(row.room) },
        { name: 'members', title: 'Members', text: (row) => count(row.members), by: (row) => row.members, isNumber: true, width: 6 },
        { name: 'rate', title: 'Events/s', text: (row) => rate(row.per_s), by: (row) => row.per_s ?? -1, isNumber: true, width: 6 },
        { name: 'seq', title: 'Seq', hint: 'Number of the last event', text: (row) => count(row.seq), by: (row) => row.seq, isNumber: true, isWide: true, width: 7 },
        { name: 'events', title: 'Kept', hint: 'Events in the log', text: (row) => count(row.history_events), by: (row) => row.history_events, isNumber: true, isWide: true, width: 5 },
        { name: 'bytes', title: 'Log', hint: 'Bytes of the log', text: (row) => bytes(row.history_bytes), by: (row) => row.history_bytes, isNumber: true, isWide: true, width: 6 },
        { name: 'shard', title: 'Shard', hint: 'The shard that is its home', text: (row) => String(row.shard), by: (row) => row.shard, isNumber: true, isWide: true, width: 5 },
      ]),
    });
    const bar = h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Rooms'), this._search, this._kind, h('label', { class: 'check' }, this._occupied, 'with members'));
    this._beside = new Beside([bar, this._status, this._table.element], this._table, (name) => new Room(app, name));
    this.element = this._beside.element;
    this._listing = new Listing({
      session: app.session,
      path: '/api/v1/rooms',
      field: 'rooms',
      interval_ms: INTERVAL_MS,
      signal: app.signal,
      changed: (listed) => this._changed(listed),
      failed: (error) => write(this._status, error.message),
    });
  }

  /** @param {string | undefined} name of the room to look at */
  show(name) {
    this._beside.show(name);
  }

  close() {
    this._beside.close();
  }

  _ask() {
    this._listing.ask({ search: this._search.value, kind: this._kind.value, occupied: this._occupied.checked ? 'true' : undefined });
  }

  /** @param {string[]} kinds */
  _learn(kinds) {
    for (const kind of kinds) {
      if (this._kinds.has(kind) || this._kinds.size >= 100) continue;
      this._kinds.add(kind);
      this._kind.append(h('option', { value: kind }, plain(kind)));
    }
  }

  /** @param {import('./listing.js').Listed<RoomRow>} listed */
  _changed({ rows, total }) {
    const now = performance.now();
    const before = this._before;
    this._before = new Map();
    for (const row of rows) {
      const was = before.get(row.room);
      if (was && now - was.at < RATE_MS) {
        row.per_s = was.per_s;
        this._before.set(row.room, was);
        continue;
      }
      row.per_s = was && was.epoch === row.epoch ? Math.max(0, row.seq - was.seq) / ((now - was.at) / 1000) : undefined;
      this._before.set(row.room, { seq: row.seq, epoch: row.epoch, at: now, per_s: row.per_s });
    }
    this._learn(rows.map(({ kind }) => kind));
    const per_s = rows.reduce((sum, row) => sum + (row.per_s ?? 0), 0);
    const part = rows.length < total ? `the first ${count(rows.length)} of ${count(total)} rooms: search for others` : many(total, 'room');
    write(this._status, `${part}, ${short(per_s)} events/s`);
    this._table.say('No room fits.');
    this._table.set(rows);
  }
}
