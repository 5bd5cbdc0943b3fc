// A backend that publishes, in Node with nothing but fetch.
//
//     echo '{"name":"hello"}' | RINGHUB_TOKEN=… node publisher.mjs project:1 project.updated
//
// Each line of the input is the data of one event. An event has an idempotency key of its own, so that it may be sent again
// where no answer came: the hub publishes it once.
import { randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const ATTEMPTS_MAX = 10;
const PAUSE_MAX_MS = 10_000;
const TIMEOUT_MS = 10_000;
// What passes by itself. Anything else the hub says is said for good.
const PASSING = [408, 429, 500, 502, 503, 504];

/** Publishes to the hub at `url`, with a token that grants `websocket:publish` and `{kind}:{name}:write`. */
export class Publisher {
  constructor({ url, token }) {
    this.url = new URL('/api/v1/publish', url);
    this.token = token;
  }

  /**
   * Publishes one event: `room`, `id`, `seq`, `duplicate`. Give a key that follows from your data where one does, as in
   * `order-7-paid`: then it is published once even if this process dies and another one tries again.
   */
  async publish(room, type, data, { key = randomUUID() } = {}) {
    const body = JSON.stringify({ room, type, data, key });
    const headers = { Authorization: `Bearer ${this.token}`, 'Content-Type': 'application/json' };
    let problem;
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      let pause_ms = Math.random() * Math.min(PAUSE_MAX_MS, 100 * 2 ** attempt);
      try {
        const answer = await fetch(this.url, { method: 'POST', headers, body, signal: AbortSignal.timeout(TIMEOUT_MS) });
        const text = await answer.text();
        if (answer.ok) return JSON.parse(text);
        problem = new Error(`${room}: ${answer.status} ${text}`);
        pause_ms += Number(answer.headers.get('Retry-After') ?? 0) * 1000;
        if (!PASSING.includes(answer.status)) break;
      } catch (error) {
        // No connection, no answer, or half of one: it may have been published. The key sees to it.
        problem = error;
      }
      await sleep(pause_ms);
    }
    throw problem;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [room, type] = process.argv.slice(2);
  const publisher = new Publisher({ url: process.env.RINGHUB_URL ?? 'http://127.0.0.1:8000', token: process.env.RINGHUB_TOKEN });
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await publisher.publish(room, type, JSON.parse(line))));
  }
}
