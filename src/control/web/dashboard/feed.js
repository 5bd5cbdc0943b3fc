/**
 * Rooms that are followed: over the live connection, or, where there is none, by reading their logs again and again.
 *
 * @module
 */

import { every } from './session.js';

/** Events of a log that are read at a time. */
const PAGE = 500;
const POLL_MS = 1000;

/**
 * @typedef {import('../ringhub.js').Event} Event
 *
 * @typedef {object} Follow
 * @property {(event: Event) => void} event each event, in order and none twice
 * @property {(note: string) => void} [note] something that one should know of the events: some were left out
 * @property {(error: Error) => void} [error] it can't be followed, or not any longer
 * @property {string[]} [types] none takes all
 * @property {Record<string, any>} [filters]
 * @property {number} [last] begin with so many of the newest events
 * @property {number} [seconds] begin with those of so many seconds
 * @property {AbortSignal} signal ends it
 */

/** The rooms of one session. */
export class Feed {
  /** @param {import('./session.js').Session} session */
  constructor(session) {
    this._session = session;
    /** @type {Set<{ room: string, follow: Follow, seq: number | undefined, epoch: string | undefined }>} */
    this._polled = new Set();
    this._isPolling = false;
  }

  /**
   * @param {string} room
   * @param {Follow} follow
   */
  follow(room, follow) {
    if (this._session.state === 'polling') return this._poll(room, follow);
    const { event, note, error, types, filters, last, seconds, signal } = follow;
    const since = last ? { last } : seconds ? { seconds } : undefined;
    const options = { types, filters, since, signal };
    const subscription = this._session.hub.subscribe(room, event, options);
    const refused = (/** @type {any} */ reason) => signal.aborted || error?.(reason);
    subscription.ready.catch(refused);
    subscription.on('end', refused);
    subscription.on('gap', ({ from_seq, to_seq, reason }) => {
      note?.(from_seq === null ? `events were left out: ${reason}` : `events ${from_seq} to ${to_seq} were left out: ${reason}`);
    });
    subscription.on('recovered', ({ recovered, missed }) => {
      if (!recovered) note?.(`${missed ?? 'an unknown number of'} events were missed while the connection was away`);
    });
  }

  /**
   * @param {string} room
   * @param {Follow} follow
   */
  _poll(room, follow) {
    if (follow.filters && Object.keys(follow.filters).length > 0) {
      follow.error?.(new Error('filters need the live connection, which this page does not have'));
      return;
    }
    const polled = { room, follow, seq: undefined, epoch: undefined };
    this._polled.add(polled);
    follow.signal.addEventListener('abort', () => this._polled.delete(polled));
    if (this._isPolling) return;
    this._isPolling = true;
    every(this._session.signal, POLL_MS, async () => {
      for (const one of [...this._polled]) await this._look(one);
    });
  }

  /** @param {{ room: string, follow: Follow, seq: number | undefined, epoch: string | undefined }} polled */
  async _look(polled) {
    const { room, follow } = polled;
    const { last = 0, seconds } = follow;
    const first = seconds ? `seconds=${seconds}` : `last=${Math.max(last, 1)}`;
    const next = `since=${polled.seq}${polled.epoch ? `&epoch=${encodeURIComponent(polled.epoch)}` : ''}`;
    const from = polled.seq === undefined ? first : next;
    let log;
    try {
      log = await this._session.api(`/api/v1/rooms/${encodeURIComponent(room)}/history?limit=${PAGE}&${from}`);
    } catch (error) {
      const { status } = /** @type {import('./session.js').ApiError} */ (error);
      // What is away may be back; what is forbidden is not followed any longer.
      if (status === 403 || status === 400) {
        this._polled.delete(polled);
        follow.error?.(/** @type {Error} */ (error));
      }
      return;
    }
    if (!this._polled.has(polled)) return;
    const isFirst = polled.seq === undefined;
    const isOther = !isFirst && polled.epoch !== (log.epoch ?? undefined);
    const before = isOther ? 0 : polled.seq;
    if (isOther && polled.epoch) follow.note?.('the room’s log was lost and began anew');
    const events = isFirst && !last && !seconds ? [] : log.events;
    if (!isFirst && !isOther && events.length > 0 && events[0].seq > /** @type {number} */ (before) + 1) {
      follow.note?.(`events ${/** @type {number} */ (before) + 1} to ${events[0].seq - 1} were left out: history`);
    }
    for (const event of events) {
      if (!isFirst && event.seq <= /** @type {number} */ (before)) continue;
      if (!follow.types?.length || follow.types.includes(event.type)) follow.event(event);
    }
    polled.epoch = log.epoch ?? undefined;
    polled.seq = log.events.at(-1)?.seq ?? (isOther ? 0 : Math.max(polled.seq ?? 0, isFirst ? log.seq : 0));
  }
}
