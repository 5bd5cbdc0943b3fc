/**
 * One room: where it stands, who is in it, what comes, and a way to put something into it.
 *
 * @module
 */

import { connectionHref } from './address.js';
import { fill, h, show, write } from './dom.js';
import { bytes, clock, count, json, many, plain } from './format.js';
import { ask, input, notify } from './dialog.js';
import { every } from './session.js';
import { Facts } from './facts.js';
import { Tail } from './tail.js';

const INTERVAL_MS = 2000;
/** Members that are listed. */
const MEMBERS_MAX = 100;

export class Room {
  /**
   * @param {import('./app.js').App} app
   * @param {string} name
   */
  constructor({ session, feed, signal }, name) {
    this._session = session;
    this._name = name;
    this._path = `/api/v1/rooms/${encodeURIComponent(name)}`;
    this._over = new AbortController();
    this._tail = new Tail(feed, name);
    this._facts = new Facts();
    this._note = h('p', { class: 'note', role: 'status', hidden: true });
    this._members = new Members();
    this._published = h('p', { class: 'note', role: 'status' });
    this._type = input({ label: 'Type', value: 'note.added' });
    this._data = input({ label: 'Data (JSON)', value: '{"text":"hello"}', rows: 3 });
    this._key = input({ label: 'Key', hint: 'published once within five minutes; may be empty' });
    this._failure = h('p', { class: 'failure', role: 'alert', hidden: true });
    this._heading = h('h2', { tabindex: -1, title: plain(name) }, h('bdi', null, plain(name)));
    const publish = h(
      'form',
      { class: 'publish', onsubmit: (/** @type {SubmitEvent} */ event) => (event.preventDefault(), this._publish()) },
      h('h3', null, 'Publish'),
      this._type.label,
      this._data.label,
      this._key.label,
      this._failure,
      h('div', { class: 'buttons' }, h('button', { type: 'submit', class: 'primary' }, 'Publish'), this._published),
    );
    this.element = h(
      'article',
      null,
      h('div', { class: 'bar' }, this._heading, h('a', { class: 'button', href: '#/rooms' }, 'Close')),
      this._note,
      this._facts.element,
      this._tail.element,
      publish,
      h('section', null, h('h3', null, 'Members'), this._members.element),
      h('div', { class: 'buttons' }, h('button', { type: 'button', class: 'danger', onclick: () => this._empty() }, 'Empty the history…')),
    );
    const both = AbortSignal.any([signal, this._over.signal]);
    every(both, INTERVAL_MS, () => this._look(both));
  }

  focus() {
    this._heading.focus({ preventScroll: true });
  }

  close() {
    this._over.abort();
    this._tail.close();
  }

  /** @param {AbortSignal} signal */
  async _look(signal) {
    try {
      const room = await this._session.api(this._path, { signal });
      this._facts.set([
        ['Members', count(room.members)],
        ['Last event', `#${count(room.seq)}`],
        ['Log', room.history_events > 0 ? `${count(room.history_events)} events from #${count(room.first_seq)}, ${bytes(room.history_bytes)}` : 'empty'],
        ['Home', `shard ${room.shard}`],
        ['Epoch', plain(room.epoch)],
      ]);
      show(this._note, false);
      const { count: present, members } = await this._session.api(`${this._path}/presence?limit=${MEMBERS_MAX}`, { signal });
      this._members.set(members, present, present - room.members);
    } catch (error) {
      if (signal.aborted) return;
      const { status } = /** @type {import('./session.js').ApiError} */ (error);
      write(this._note, status === 404 ? 'There is no such room at the moment: nobody is in it, and its log is empty.' : plain(/** @type {Error} */ (error).message));
      show(this._note, true);
    }
  }

  async _publish() {
    show(this._failure, false);
    write(this._published, '');
    try {
      let data;
      try {
        data = JSON.parse(this._data.control.value);
      } catch (error) {
        throw new Error(`the data is no JSON: ${/** @type {Error} */ (error).message}`);
      }
      const event = { room: this._name, type: this._type.control.value.trim(), data, key: this._key.control.value || undefined };
      const { seq, delivered, duplicate } = await this._session.api('/api/v1/publish', { method: 'POST', body: event });
      write(this._published, duplicate ? `It was published before, as #${seq}.` : `#${seq} went to ${many(delivered, 'connection')}.`);
    } catch (error) {
      write(this._failure, plain(/** @type {Error} */ (error).message));
      show(this._failure, true);
    }
  }

  async _empty() {
    const isDone = await ask({
      title: 'Empty the history?',
      text: `The events that the log of ${plain(this._name, 80)} keeps are gone for everybody who comes back or reads the past. Numbers go on.`,
      action: 'Empty the history',
      act: () => this._session.api(`${this._path}/history`, { method: 'DELETE' }),
    });
    if (isDone) notify('The history is empty.');
  }
}

/** Who is in the room: those that joined first. */
class Members {
  constructor() {
    this._note = h('p', { class: 'note' }, 'Loading…');
    this._list = h('ul', { class: 'plain', tabindex: 0, 'aria-label': 'Members' });
    this.element = h('div', null, this._note, this._list);
  }

  /**
   * @param {import('../ringhub.js').Member[]} members
   * @param {number} present how many there are
   * @param {number} away how many of them have no connection at the moment
   */
  set(members, present, away) {
    const notes = [present === 0 ? 'Nobody is here' : many(present, 'session')];
    if (away > 0) notes.push(`${count(away)} away, which may still be resumed`);
    if (present > members.length) notes.push(`the first ${count(members.length)} are listed`);
    write(this._note, `${notes.join('; ')}.`);
    const items = members.map(({ client_id, user_id, joined_at, metadata }) => {
      const said = Object.keys(metadata).length > 0 ? json(metadata, 120) : '';
      return h('li', null, h('a', { href: connectionHref(client_id) }, h('bdi', null, plain(user_id))), h('span', { class: 'quiet' }, ` since ${clock(joined_at)} ${said}`));
    });
    const isSame = items.length === this._list.children.length && items.every((item, index) => item.isEqualNode(this._list.children[index]));
    if (!isSame) fill(this._list, items);
  }
}
