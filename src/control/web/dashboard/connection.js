/**
 * One connection: what it is, what happened to it, what became of an event for it, and its end.
 *
 * @module
 */

import { roomHref } from './address.js';
import { fill, h, show, write } from './dom.js';
import { ago, bytes, clock, count, json, many, plain, pretty, time, words } from './format.js';
import { ask, fillFailure, input, notify } from './dialog.js';
import { every } from './session.js';
import { Facts } from './facts.js';

const INTERVAL_MS = 2000;
const RECORDS = 200;
/** As many as can be had, where some of them are chosen. */
const RECORDS_MAX = 1000;
const BY_ADMIN = '4500';

/** Records that say that something is not as it should be. */
const TROUBLE = new Set(['fell_behind', 'gap', 'waits', 'refused', 'closing', 'began_anew']);
/** Those, and the beginning and end of what they belong to. */
const TELLING = new Set([...TROUBLE, 'opened', 'drained', 'caught_up', 'closed']);

export class Connection {
  /**
   * @param {import('./app.js').App} app
   * @param {string} client_id
   */
  constructor({ session, signal }, client_id) {
    this._session = session;
    this._id = client_id;
    this._path = `/api/v1/connections/${encodeURIComponent(client_id)}`;
    this._over = new AbortController();
    this._facts = new Facts();
    this._note = h('p', { class: 'note', role: 'status', hidden: true });
    this._trace = h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Trace' });
    this._what = '';
    this._wasThere = false;
    /** @type {any} the last answer */
    this._told = undefined;
    this._follows = h('input', { type: 'checkbox', checked: true });
    this._chooses = h('input', { type: 'checkbox', onchange: () => this._told && this._showTrace(this._told) });
    this._event = input({ label: 'Event id', hint: 'what became of it for this client' });
    this._explained = h('div', { role: 'status' });
    this._heading = h('h2', { tabindex: -1, title: plain(client_id) }, h('bdi', null, plain(client_id)));
    this._actions = h(
      'div',
      { class: 'buttons' },
      h('button', { type: 'button', onclick: () => this._change() }, 'Change metadata…'),
      h('button', { type: 'button', class: 'danger', onclick: () => this._disconnect() }, 'Disconnect…'),
    );
    this.element = h(
      'article',
      null,
      h('div', { class: 'bar' }, this._heading, h('a', { class: 'button', href: '#/connections' }, 'Close')),
      this._note,
      this._facts.element,
      this._actions,
      h('section', null, h('div', { class: 'bar' }, h('h3', null, 'Trace'), h('label', { class: 'check' }, this._chooses, 'trouble only'), h('label', { class: 'check' }, this._follows, 'follow')), this._trace),
      h(
        'form',
        { class: 'filters', onsubmit: (/** @type {SubmitEvent} */ event) => (event.preventDefault(), this._explain()) },
        this._event.label,
        h('button', { type: 'submit' }, 'Explain'),
      ),
      this._explained,
    );
    const both = AbortSignal.any([signal, this._over.signal]);
    every(both, INTERVAL_MS, () => this._look(both));
  }

  focus() {
    this._heading.focus({ preventScroll: true });
  }

  close() {
    this._over.abort();
  }

  /** @param {AbortSignal} signal */
  async _look(signal) {
    try {
      this._showFacts(await this._session.api(this._path, { signal }));
      this._wasThere = true;
      show(this._actions, true);
      show(this._note, false);
    } catch (error) {
      if (signal.aborted) return;
      show(this._actions, false);
      const { status } = /** @type {import('./session.js').ApiError} */ (error);
      write(this._note, status === 404 ? `This client is not connected.${this._wasThere ? ' What follows is how it stood last.' : ''}` : plain(/** @type {Error} */ (error).message));
      show(this._note, true);
    }
    if (!this._follows.checked && this._trace.firstChild) return;
    try {
      this._showTrace(await this._session.api(`${this._path}/trace?limit=${this._chooses.checked ? RECORDS_MAX : RECORDS}`, { signal }));
    } catch (error) {
      if (signal.aborted) return;
      const { status } = /** @type {import('./session.js').ApiError} */ (error);
      if (status === 404) fill(this._trace, h('p', { class: 'empty' }, 'The recorder has nothing of it: it ended too long ago, or nothing is recorded.'));
      else fillFailure(this._trace, error);
    }
  }

  /** @param {import('./connections.js').ConnectionRow} row */
  _showFacts(row) {
    const now = this._session.now();
    const rooms = row.rooms.slice(0, 100).map((room) => h('li', null, h('a', { href: roomHref(room) }, plain(room))));
    const waits = row.queue_bytes > 0 ? `${bytes(row.queue_bytes)} wait` : 'empty';
    this._facts.set([
      ['User', `${plain(row.user_id)}${row.name ? ` (${plain(row.name)})` : ''}`],
      ['Roles', row.roles.map((role) => plain(role)).join(', ') || 'none'],
      ['Queue', row.slow_rooms > 0 ? h('span', { class: 'warn' }, `${waits}; behind in ${many(row.slow_rooms, 'room')}`) : waits],
      ['Traffic', `${bytes(row.received_bytes)} in, ${bytes(row.sent_bytes)} out`],
      ['Connected', `${clock(row.connected_at)}, ${ago(row.connected_at, now)} ago`],
      ['Last heard', `${ago(row.last_activity, now)} ago`],
      ['Token ends', row.expires_at ? clock(row.expires_at) : 'never'],
      ['From', `${plain(row.address ?? 'unknown address')}, ${plain(row.protocol)}, shard ${row.shard}`],
      ['Session', plain(row.session_id)],
      [`Rooms (${count(row.rooms.length)})`, h('ul', { class: 'inline' }, withRest(rooms, row.rooms.length))],
      ['Metadata', Object.keys(row.metadata).length > 0 ? h('pre', null, pretty(row.metadata, 4000)) : 'none'],
    ]);
  }

  /** @param {{ connections: any[] }} trace */
  _showTrace(trace) {
    this._told = trace;
    const isChosen = (/** @type {any} */ { what }) => !this._chooses.checked || TELLING.has(what);
    const connections = trace.connections.map((one) => ({ ...one, records: one.records.filter(isChosen) }));
    const text = JSON.stringify(connections);
    if (text === this._what) return;
    this._what = text;
    if (connections.length === 0) return fill(this._trace, h('p', { class: 'empty' }, 'Nothing is recorded.'));
    fill(this._trace, connections.map(connectionTrace));
  }

  async _explain() {
    const event = this._event.control.value.trim();
    if (!event) return;
    try {
      const explanation = await this._session.api(`${this._path}/explain?event=${encodeURIComponent(event)}`);
      const facts = Object.entries(explanation).filter(([, value]) => value !== null && value !== undefined);
      const list = new Facts();
      list.set(facts.map(([name, value]) => [words(name), typeof value === 'object' ? json(value) : plain(value)]));
      fill(this._explained, list.element);
    } catch (error) {
      fillFailure(this._explained, error);
    }
  }

  async _disconnect() {
    const isDone = await ask({
      title: 'Disconnect this client?',
      text: 'It is closed at once. With 4500 well-behaved clients don’t come back by themselves; with 1000, or 4000 to 4399, they may.',
      action: 'Disconnect',
      fields: [
        { name: 'code', label: 'Close code', value: BY_ADMIN, type: 'number' },
        { name: 'reason', label: 'Reason', hint: 'the client is told; at most 123 bytes' },
      ],
      act: ({ code, reason }) => this._session.api(`${this._path}?${new URLSearchParams({ code, reason })}`, { method: 'DELETE' }),
    });
    if (isDone) notify(`${plain(this._id, 80)} was disconnected.`);
  }

  async _change() {
    await ask({
      title: 'Change metadata',
      text: 'An object that is merged into what there is; null removes a key.',
      action: 'Change',
      isHarmless: true,
      fields: [{ name: 'metadata', label: 'JSON', value: '{}', rows: 5 }],
      act: ({ metadata }) => this._session.api(this._path, { method: 'PATCH', body: { metadata: JSON.parse(metadata) } }),
    });
  }
}

/**
 * @param {HTMLElement[]} items
 * @param {number} total
 */
function withRest(items, total) {
  return total > items.length ? [...items, h('li', null, `and ${count(total - items.length)} more`)] : items;
}

/** @param {any} trace of one connection of the client */
function connectionTrace({ connected_at, closed_at, unsent_bytes, truncated, records }) {
  const end = closed_at ? ` to ${clock(closed_at)}${unsent_bytes > 0 ? `, ${bytes(unsent_bytes)} were not sent` : ''}` : '';
  return h(
    'div',
    null,
    h('p', { class: 'note' }, closed_at ? `From ${clock(connected_at)}${end}` : `Since ${clock(connected_at)}, open`),
    h('ol', { class: 'trace' }, [...records].reverse().map(record)),
    truncated && h('p', { class: 'note' }, 'What was before is not listed.'),
  );
}

/** @param {any} entry of the recorder */
function record({ at, what, room, type, from_seq, to_seq, events, bytes: size, filter, code, reason, payload }) {
  const numbers = from_seq === undefined ? to_seq !== undefined && `#${to_seq}` : to_seq === undefined || to_seq === from_seq ? `#${from_seq}` : `#${from_seq}–${to_seq}`;
  const details = [type && plain(type), numbers, events !== undefined && events !== 1 && `${events} events`, size > 0 && bytes(size), code && plain(code), reason && `${what === 'closing' ? 'by ' : ''}${plain(reason)}`, filter && plain(filter)];
  return h(
    'li',
    { class: TROUBLE.has(what) ? 'warn' : null },
    h('time', null, time(at)),
    h('b', null, words(what)),
    h('span', null, room && h('a', { href: roomHref(room) }, plain(room)), ` ${details.filter(Boolean).join(' · ')}`),
    payload !== undefined && h('code', null, plain(payload, 2000)),
  );
}
