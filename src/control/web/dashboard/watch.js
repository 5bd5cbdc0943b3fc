/**
 * Looks after the alerts, whatever is looked at.
 *
 * @module
 */

import { every } from './session.js';

const INTERVAL_MS = 10_000;

/** @typedef {{ alert: string, severity: string, message: string }} Active */

/** Tells `change` when other alerts are raised, and `alert` when one was raised or cleared. */
export class Watch extends EventTarget {
  /**
   * @param {import('./session.js').Session} session
   * @param {import('./feed.js').Feed} feed
   */
  constructor(session, feed) {
    super();
    /** @type {Active[]} */
    this.active = [];
    const load = async () => {
      const { active } = await session.api('/api/v1/alerts?limit=1');
      this.active = active;
      this.dispatchEvent(new Event('change'));
    };
    const event = () => {
      this.dispatchEvent(new Event('alert'));
      load().catch(() => {});
    };
    feed.follow('admin:alerts', { event, types: ['system_alert'], signal: session.signal });
    every(session.signal, INTERVAL_MS, load);
  }
}
