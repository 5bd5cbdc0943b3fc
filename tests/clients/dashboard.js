// What tests of the dashboard share: a page that is watched, and clients for it to show.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import WebSocket from 'ws';
import { admin, token, until } from './hub.js';

/** A page; what goes wrong in it is kept in `problems`, a breach of its policy included. */
export async function watched(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, ...options });
  const page = await context.newPage();
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(String(error)));
  // A refusal is one of the things that pages are tried with; the browser tells of each.
  page.on('console', (message) => message.type() === 'error' && !/Failed to load resource|WebSocket connection to/.test(message.text()) && page.problems.push(message.text()));
  page.on('dialog', (dialog) => page.problems.push(`a dialog: ${dialog.message()}`));
  page.on('request', (request) => new URL(request.url()).hostname === '127.0.0.1' || request.url().startsWith('data:') || page.problems.push(`asks ${request.url()}`));
  await page.exposeFunction('breach', (what) => page.problems.push(what));
  await page.addInitScript(() => addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI }) => window.breach(`${violatedDirective} ${blockedURI}`)));
  page.leave = async () => {
    assert.deepEqual(page.problems, []);
    await context.close();
  };
  return page;
}

/** The dashboard of a hub, signed in by its address. */
export async function dashboard(browser, hub, { view = 'overview', as = admin(), base = hub.http, ...options } = {}) {
  const page = await watched(browser, options);
  await page.goto(`${base}/dashboard#token=${as}`);
  await page.getByRole('navigation', { name: 'Views' }).waitFor();
  await go(page, view);
  return page;
}

/** Goes to a view. */
export async function go(page, view) {
  await page.evaluate((hash) => (location.hash = hash), `#/${view}`);
}

/** The texts of a table's rows that are in the page. */
export const rowsOf = (page, label) => page.getByRole('table', { name: label }).locator('tbody tr:not(.space)').allInnerTexts();

/** Waits until one of a table's rows has all of some texts. */
export function row(page, label, ...texts) {
  const found = async () => (await rowsOf(page, label)).find((one) => texts.every((text) => one.includes(text)));
  return until(found, async () => `a row with ${texts}: ${await rowsOf(page, label)}`);
}

/** Waits until the page says something. */
export const says = (page, text) => page.getByText(text).first().waitFor({ timeout: 15_000 });

/** A client of the hub. */
export class Client {
  static async join(hub, { client_id, as = admin('client'), rooms = [], metadata } = {}) {
    const client = new Client();
    const query = client_id ? `?client_id=${client_id}` : '';
    client.socket = new WebSocket(`${hub.url}${query}`, ['ringhub.v1.json'], { headers: { Authorization: `Bearer ${as}` }, perMessageDeflate: false });
    client.closed = once(client.socket, 'close').then(([code]) => code);
    await once(client.socket, 'open');
    if (metadata) await client.ask('metadata', { set: metadata });
    if (rooms.length > 0) await client.ask('subscribe', { rooms });
    return client;
  }

  async ask(type, data) {
    const id = String(Math.random());
    const answer = new Promise((resolve) => {
      const look = (text) => {
        const message = JSON.parse(text);
        if (message.ref !== id) return;
        this.socket.off('message', look);
        resolve(message);
      };
      this.socket.on('message', look);
    });
    this.socket.send(JSON.stringify({ type, id, data }));
    const { type: answered, data: told } = await answer;
    assert.notEqual(answered, 'error', JSON.stringify(told));
    return told;
  }

  /** Reads nothing from now on, as somebody whose network is bad. */
  stall() {
    this.socket._socket.pause();
  }

  leave() {
    this.socket.terminate();
  }
}

/** How long the frames of a page took while it was left to itself, in milliseconds. */
export async function frames(page, during_ms) {
  const { times, longest_task } = await page.evaluate(
    (during_ms) =>
      new Promise((resolve) => {
        const times = [];
        let longest_task = 0;
        const tasks = new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (longest_task = Math.max(longest_task, duration))));
        tasks.observe({ type: 'longtask' });
        const begin = performance.now();
        let last = begin;
        const look = (now) => {
          times.push(now - last);
          last = now;
          if (now - begin < during_ms) requestAnimationFrame(look);
          else resolve({ times: times.slice(1), longest_task });
        };
        requestAnimationFrame(look);
      }),
    during_ms,
  );
  times.sort((a, b) => a - b);
  return { count: times.length, p50: times[Math.floor(times.length * 0.5)], p95: times[Math.floor(times.length * 0.95)], most: times.at(-1), longest_task };
}

export { token };
