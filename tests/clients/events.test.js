// Streams of events through Node's own EventSource, which is a browser's: it takes no headers, and comes back by itself.
// Started by hub.py, which puts the address and tokens into the environment.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';

const { HUB_HTTP_URL: http, HUB_TOKEN: token, HUB_ADMIN_TOKEN: admin, HUB_EXPIRED_TOKEN: expired } = process.env;
const WAIT_MS = 15_000;
let rooms = 0;
const freshRoom = () => `project:events-${process.pid}-${rooms++}`;

const api = async (method, path, body) => {
  const headers = { Authorization: `Bearer ${admin}`, 'Content-Type': 'application/json' };
  const answer = await fetch(http + path, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status}`);
  return answer.json();
};
const publish = (room, data) => api('POST', '/api/v1/publish', { room, type: 'n', data });

/** A stream that keeps the events of rooms, and the hub's own words by their names. */
class Stream {
  constructor(query) {
    this.events = [];
    this.said = [];
    this.ids = [];
    this.opened = 0;
    this.source = new EventSource(`${http}/events?${query}`);
    this.source.onopen = () => this.opened++;
    this.source.onmessage = ({ data, lastEventId }) => {
      this.events.push(JSON.parse(data));
      this.ids.push(lastEventId);
    };
    for (const name of ['gap', 'close', 'draining', 'auth.expiring']) {
      this.source.addEventListener(name, ({ data }) => this.said.push([name, JSON.parse(data)]));
    }
  }

  async until(condition) {
    const deadline = Date.now() + WAIT_MS;
    while (!condition(this)) {
      assert.ok(Date.now() < deadline, `not within ${WAIT_MS} ms; there is ${JSON.stringify([this.events, this.said])}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

test('an EventSource gets events with a token in its address', async () => {
  const room = freshRoom();
  const stream = new Stream(`room=${room}&room=global&token=${token}`);
  await stream.until((s) => s.opened === 1);
  await publish(room, { text: 'ünï\n' });
  await stream.until((s) => s.events.length === 1);
  const [event] = stream.events;
  assert.deepEqual([event.room, event.seq, event.data], [room, 1, { text: 'ünï\n' }]);
  assert.match(stream.ids[0], /^[\w-]+~1\.[\w-]+~[\w-]+$/);
  stream.source.close();
});

test('an EventSource that is cut off comes back by itself and misses nothing', async () => {
  const room = freshRoom();
  const stream = new Stream(`room=${room}&token=${token}`);
  await stream.until((s) => s.opened === 1);
  const find = async () => (await api('GET', '/api/v1/connections?room=' + room)).connections;
  // Before it has had any event, and after.
  for (const round of [1, 2]) {
    const [{ client_id, protocol }] = await find();
    assert.equal(protocol, 'sse');
    await api('DELETE', `/api/v1/connections/${client_id}?code=4500&reason=again`);
    await stream.until((s) => s.said.length === round);
    assert.deepEqual(stream.said.at(-1), ['close', { code: 4500, reason: 'again' }]);
    await publish(room, round);
    await stream.until((s) => s.opened === round + 1);
    await stream.until((s) => s.events.length === round);
  }
  assert.deepEqual(stream.events.map(({ seq, data }) => [seq, data]), [[1, 1], [2, 2]]);
  stream.source.close();
});

test('an EventSource that is refused does not come back', async () => {
  const source = new EventSource(`${http}/events?room=global&token=${expired}`);
  await once(source, 'error');
  assert.equal(source.readyState, EventSource.CLOSED);
});
