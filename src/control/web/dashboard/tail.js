/**
 * The events of a room as they come: chosen by type and filter, held where one wants to read, and each to be looked at.
 *
 * @module
 */

import { fill, h, inFrame, notInFrame, show, write } from './dom.js';
import { count, json, many, plain, pretty, time } from './format.js';
import { input, notify } from './dialog.js';
import { Table } from './table.js';

/** Events that are kept. */
const EVENTS_MAX = 2000;
/** With how many of the past it begins. */
const LAST = 50;

/** @typedef {import('../ringhub.js').Event} Event */

export class Tail {
  /**
   * @param {import('./feed.js').Feed} feed
   * @param {string} room
   */
  constructor(feed, room) {
    this._feed = feed;
    this._room = room;
    /** @type {Event[]} the newest at the end */
    this._events = [];
    /** @type {Event[]} what is shown where it is held */
    this._held = [];
    this._isHeld = false;
    this._came = 0;
    this._following = new AbortController();
    this._types = input({ label: 'Types', hint: 'separated by blanks; none takes all' });
    this._filters = input({ label: 'Filters', hint: 'JSON over the data, as {"progress":{"min":50}}' });
    this._hold = h('button', { type: 'button', 'aria-pressed': 'false', onclick: () => this._toggle() }, 'Hold');
    this._failure = h('p', { class: 'failure', role: 'alert', hidden: true });
    this._status = h('p', { class: 'note' }, 'Waiting for events…');
    this._notes = h('ul', { class: 'notes' });
    this._event = h('div', { class: 'event', hidden: true });
    this._table = new Table({
      label: `Events of ${plain(room, 80)}`,
      key: (event) => String(event.seq),
      empty: 'No events yet.',
      sortBy: 'seq',
      descending: true,
      columns: /** @type {import('./table.js').Column<Event>[]} */ ([
        { name: 'seq', title: 'Seq', text: (event) => `#${event.seq}`, by: (event) => event.seq, isNumber: true, isWide: true, width: 5 },
        { name: 'time', title: 'Time', text: (event) => time(event.timestamp), isWide: true, width: 8 },
        { name: 'type', title: 'Type', text: (event) => plain(event.type), width: 11, tone: () => 'type' },
        { name: 'data', title: 'Data', text: (event) => json(event.data, 300) },
        { name: 'open', title: 'Event', text: () => '', width: 5.2, button: { label: 'Show', click: (event) => this._open(event) } },
      ]),
    });
    const form = h(
      'form',
      { class: 'filters', onsubmit: (/** @type {SubmitEvent} */ event) => (event.preventDefault(), this._follow()) },
      this._types.label,
      this._filters.label,
      h('button', { type: 'submit' }, 'Apply'),
    );
    this.element = h(
      'section',
      { class: 'tail' },
      h('div', { class: 'bar' }, h('h3', null, 'Live tail'), this._hold, h('button', { type: 'button', onclick: () => this._clear() }, 'Clear')),
      form,
      this._failure,
      this._status,
      h('div', { role: 'status' }, this._notes),
      this._table.element,
      this._event,
    );
    this._follow();
  }

  close() {
    this._following.abort();
    this._table.close();
    notInFrame(this);
  }

  _follow() {
    show(this._failure, false);
    let filters;
    try {
      filters = this._filters.control.value.trim() ? JSON.parse(this._filters.control.value) : undefined;
    } catch (error) {
      return this._fail(new Error(`the filters are no JSON: ${/** @type {Error} */ (error).message}`));
    }
    if (filters !== undefined && (filters === null || typeof filters !== 'object' || Array.isArray(filters))) {
      return this._fail(new Error('filters are an object: field to condition'));
    }
    const types = this._types.control.value.split(/[\s,]+/).filter(Boolean);
    this._following.abort();
    this._following = new AbortController();
    this._clear();
    this._feed.follow(this._room, {
      event: (event) => this._take(event),
      note: (note) => this._note(note),
      error: (error) => this._fail(error),
      types: types.length > 0 ? types : undefined,
      filters,
      last: LAST,
      signal: this._following.signal,
    });
  }

  /** @param {Error} error */
  _fail(error) {
    write(this._failure, plain(error.message));
    show(this._failure, true);
  }

  /** @param {string} note */
  _note(note) {
    this._notes.append(h('li', null, `${time(Date.now())} ${plain(note)}`));
    while (this._notes.children.length > 3) this._notes.firstChild?.remove();
  }

  /** @param {Event} event */
  _take(event) {
    // Where the log began anew, what there is belongs to another one.
    const newest = this._events.at(-1);
    if (newest && event.seq <= newest.seq) this._events = [];
    this._events.push(event);
    // Not one by one: moving them costs as much as they are many.
    if (this._events.length > EVENTS_MAX * 1.25) this._events = this._events.slice(-EVENTS_MAX);
    this._came++;
    this._later();
  }

  _later() {
    inFrame(this, () => {
      const newest = this._events.at(-1);
      const shown = this._isHeld ? this._held : this._events;
      const waiting = this._isHeld && newest ? newest.seq - (this._held.at(-1)?.seq ?? 0) : 0;
      write(this._status, this._came === 0 ? 'Waiting for events…' : `${many(this._came, 'event')}${this._isHeld ? `, held${waiting > 0 ? `: up to ${count(waiting)} newer` : ''}` : ''}`);
      this._table.set([...shown]);
    });
  }

  _toggle() {
    this._isHeld = !this._isHeld;
    this._held = this._isHeld ? [...this._events] : [];
    this._hold.setAttribute('aria-pressed', String(this._isHeld));
    this._later();
  }

  _clear() {
    this._events = [];
    this._held = [];
    this._came = 0;
    fill(this._notes);
    show(this._event, false);
    this._later();
  }

  /** @param {Event} event */
  _open(event) {
    const text = JSON.stringify(event, undefined, 2);
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(text);
        notify('Copied.');
      } catch {
        notify('The browser does not let this page copy.', 'bad');
      }
    };
    fill(
      this._event,
      h(
        'div',
        { class: 'bar' },
        h('h3', { tabindex: -1 }, `#${event.seq} ${plain(event.type)}`),
        h('button', { type: 'button', onclick: copy }, 'Copy'),
        h('button', { type: 'button', onclick: () => show(this._event, false) }, 'Close'),
      ),
      h('pre', { tabindex: 0 }, pretty(event)),
    );
    show(this._event, true);
    this._event.querySelector('h3')?.focus();
  }
}
