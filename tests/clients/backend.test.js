// A backend in Node, with nothing but fetch: it makes every call that /openapi.json names. The client that it talks to is
// npm's ws. Started by hub.py, which puts the address and tokens into the environment.
import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';

const { HUB_URL: url, HUB_HTTP_URL: http, HUB_TOKEN: token, HUB_ADMIN_TOKEN: admin, GITHUB_SECRET: secret } = process.env;
const WAIT_MS = 10_000;
const room = `project:node/${process.pid}`;
const driven = new Set();

/** Makes a call by its path in the description; its answer's body. Notes calls that were carried out. */
async function call(method, path, { body, names = {}, query, expected = 200, headers = {} } = {}) {
  const target = new URL(path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(names[name])), http);
  for (const [name, value] of Object.entries(query ?? {})) target.searchParams.set(name, value);
  const sent = { Authorization: `Bearer ${admin}`, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers };
  const text = typeof body === 'string' || body === undefined ? body : JSON.stringify(body);
  const answer = await fetch(target, { method, headers: sent, body: text, signal: AbortSignal.timeout(WAIT_MS) });
  const received = await answer.text();
  assert.equal(answer.status, expected, `${method} ${target}: ${received}`);
  driven.add(`${method} ${path}`);
  return answer.headers.get('content-type')?.startsWith('application/json') ? JSON.parse(received) : received;
}

/** A client's side of the hub: what arrived, and waiting for more of it. */
class Client {
  static async join(id) {
    const client = new Client();
    client.inbox = [];
    client.socket = new WebSocket(`${url}/ws?client_id=${id}&session_id=s-${id}`, { headers: { Authorization: `Bearer ${token}` } });
    client.socket.on('message', (bytes) => client.inbox.push(JSON.parse(bytes)));
    client.closed = once(client.socket, 'close').then(([code, reason]) => [code, reason.toString()]);
    await client.next((message) => message.type === 'connection_established');
    return client;
  }

  async next(wanted) {
    const until = Date.now() + WAIT_MS;
    for (;;) {
      const at = this.inbox.findIndex(wanted);
      if (at >= 0) return this.inbox.splice(at, 1)[0];
      assert(Date.now() < until, `nothing of the kind; there is ${JSON.stringify(this.inbox)}`);
      await once(this.socket, 'message', { signal: AbortSignal.timeout(WAIT_MS) });
    }
  }

  async ask(type, data) {
    const id = randomUUID();
    this.socket.send(JSON.stringify({ type, id, data }));
    const answer = await this.next((message) => message.ref === id);
    assert.notEqual(answer.type, 'error', JSON.stringify(answer));
    return answer.data;
  }

  async event(type) {
    return (await this.next((message) => message.type === type)).data;
  }
}

let client;
before(async () => {
  client = await Client.join('node-1');
  await client.ask('subscribe', { room });
});
after(() => client.socket.terminate());

test('health, figures, alerts and stored performance are read', async () => {
  for (const path of ['/live', '/ready', '/ws/health']) {
    assert.equal((await call('GET', path)).status, 'ok');
  }
  assert.match(await call('GET', '/metrics'), /^ringhub_connections/m);
  assert((await call('GET', '/api/v1/websocket/stats')).lately);
  assert.deepEqual((await call('GET', '/api/v1/alerts')).active, []);
  assert.equal((await call('GET', '/api/v1/performance', { query: { step: 60 } })).step_s, 60);
});

test('the browser client is served', async () => {
  assert.match(await call('GET', '/ringhub.js'), /^export class Ringhub /m);
  assert.match(await call('GET', '/dashboard'), /^<!doctype html>[^]*dashboard\/app\.js/);
  assert.match(await call('GET', '/dashboard/{file}', { names: { file: 'app.js' } }), /^import /m);
  // There is no demo beside this hub.
  const { error } = await call('GET', '/demo', { expected: 404 });
  assert.equal(error.code, 'not_found');
  await call('GET', '/demo/{file}', { names: { file: 'demo.js' }, expected: 404 });
});

test('events are published, several at a time, broadcast, and to everyone', async () => {
  const event = { room, type: 'note.added', data: { text: 'ünï' } };
  assert.equal((await call('POST', '/api/v1/publish', { body: event })).seq, 1);
  const both = await call('POST', '/api/v1/publish', { body: [event, event] });
  assert.deepEqual(both.map((one) => one.seq), [2, 3]);
  for (let n = 0; n < 3; n++) assert.deepEqual(await client.event('note.added'), event.data);
  const sent = await call('POST', '/api/v1/broadcast', { body: { rooms: [room], type: 'b' } });
  assert.deepEqual([sent.rooms, sent.delivered], [1, 1]);
  await client.event('b');
  assert((await call('POST', '/ws/broadcast/test')).connections >= 1);
  assert.equal((await client.event('system_alert')).test, true);
});

test('connections are listed, shown and changed', async () => {
  for (const path of ['/api/v1/connections', '/ws/connections']) {
    const page = await call('GET', path, { query: { room } });
    assert.deepEqual(page.connections.map((one) => one.client_id), ['node-1']);
  }
  const names = { client_id: 'node-1' };
  const body = { metadata: { tab: 'quotes' } };
  assert.deepEqual(await call('PATCH', '/api/v1/connections/{client_id}', { names, body }), { ...names, ...body });
  assert.deepEqual((await call('GET', '/api/v1/connections/{client_id}', { names })).metadata, body.metadata);
  assert(await call('GET', '/api/v1/connections/{client_id}/trace', { names, query: { limit: 5 } }));
  const { events } = await call('GET', '/api/v1/rooms/{room}/history', { names: { room }, query: { last: 1 } });
  const told = await call('GET', '/api/v1/connections/{client_id}/explain', { names, query: { event: events[0].id } });
  assert.equal(told.outcome, 'written');
});

test('sessions are sent to and heard', async () => {
  const names = { session_id: 's-node-1' };
  assert.equal((await call('GET', '/api/v1/sessions/{session_id}', { names })).client_id, 'node-1');
  const event = { type: 'notification.created', data: { title: 'hello' } };
  const path = '/api/v1/sessions/{session_id}/messages';
  assert.deepEqual(await call('POST', path, { names, body: event }), { delivered: 1, queued: 0 });
  const many = await call('POST', '/api/v1/messages', { body: { clients: ['node-1'], sessions: ['s-node-1'], ...event } });
  assert.deepEqual([many.delivered, many.failed], [2, []]);
  for (let n = 0; n < 3; n++) assert.deepEqual(await client.event('notification.created'), event.data);
  const waiting = call('GET', path, { names, query: { timeout_s: 5 } });
  await client.ask('message', { question: 6 });
  assert.deepEqual((await waiting).data, { question: 6 });
  assert.equal(await call('GET', path, { names, query: { timeout_s: 0 }, expected: 204 }), '');
});

test('rooms are looked into, and their history is emptied', async () => {
  const names = { room };
  const page = await call('GET', '/api/v1/rooms', { query: { search: room } });
  assert.deepEqual(page.rooms.map((one) => one.room), [room]);
  assert.equal((await call('GET', '/api/v1/rooms/{room}', { names })).members, 1);
  const there = await call('GET', '/api/v1/rooms/{room}/presence', { names });
  assert.deepEqual([there.count, there.members[0].client_id, there.members[0].metadata], [1, 'node-1', { tab: 'quotes' }]);
  const history = await call('GET', '/api/v1/rooms/{room}/history', { names, query: { since: 2 } });
  assert.deepEqual(history.events.map((event) => event.seq), [3, 4]);
  assert.deepEqual(await call('DELETE', '/api/v1/rooms/{room}/history', { names }), { room, deleted: 4 });
});

test('locks are listed and taken away', async () => {
  const lock = await client.ask('lock.acquire', { room, field: 'title/1', ttl_s: 60 });
  const { locks } = await call('GET', '/api/v1/locks', { query: { limit: 1000 } });
  const mine = locks.find((one) => one.room === room);
  assert.deepEqual([mine.field, mine.token, mine.holder.client_id], ['title/1', lock.token, 'node-1']);
  await call('DELETE', '/api/v1/locks/{room}/{field}', { names: { room, field: 'title/1' } });
  assert.equal((await client.event('lock.released')).reason, 'forced');
});

test('access is taken away: a new proof, fewer permissions, the connection', async () => {
  assert.deepEqual(await call('POST', '/api/v1/reauthenticate', { body: { client: 'node-1', grace_s: 60 } }), { asked: 1 });
  await client.event('auth.expiring');
  await client.ask('auth.refresh', { token });
  const withdrawn = await call('POST', '/api/v1/withdraw', { body: { session: 's-node-1', permissions: [`${room}:read`] } });
  assert.deepEqual(withdrawn, { connections: 1, closed: 0, sessions: 0 });
  assert.equal((await client.event('unsubscribed')).room, room);
  const other = await Client.join('node-2');
  assert.deepEqual(await call('DELETE', '/api/v1/connections/{client_id}', { names: { client_id: 'node-2' }, query: { code: 4000 } }), { disconnected: 1 });
  assert.deepEqual(await other.closed, [4000, '']);
  assert.deepEqual(await call('POST', '/api/v1/disconnect', { body: { session: 's-node-1', reason: 'enough' } }), { disconnected: 1 });
  assert.deepEqual(await client.closed, [4500, 'enough']);
});

test('a signed webhook is taken', async () => {
  const body = JSON.stringify({ zen: 'Design for failure.', hook_id: 1 });
  const signature = `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`;
  const headers = { 'X-GitHub-Event': 'ping', 'X-GitHub-Delivery': randomUUID(), 'X-Hub-Signature-256': signature };
  assert.deepEqual(await call('POST', '/webhooks/github', { body, headers }), { pong: true });
});

test('every call of the description was made', async () => {
  const { paths } = await call('GET', '/openapi.json');
  const named = Object.entries(paths).flatMap(([path, calls]) => Object.keys(calls).map((method) => `${method.toUpperCase()} ${path}`));
  assert.deepEqual([...driven].sort(), named.sort());
});
