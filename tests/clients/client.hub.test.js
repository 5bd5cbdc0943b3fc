// The browser client with a real hub: in Node, over npm's ws, directly and through a proxy that treats it badly.
import assert from 'node:assert/strict';
import { after, before, test as declare } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';
import { Refused, Ringhub } from '../../src/control/web/ringhub.js';
import { Hub, WAIT_MS, admin, token, until } from './hub.js';
import { LossyProxy, seeded } from './lossy.js';
import { failure } from './script.js';

// What does not happen at all is a failure with a name.
const test = (name, ...more) => {
  const run = more.pop();
  declare(name, { timeout: 60_000, ...more[0] }, run);
};
const open = [];
let shared;
let rooms = 0;
const freshRoom = (kind = 'project') => `${kind}:client-${process.pid}-${rooms++}`;

before(async () => {
  shared = await Hub.start({ 'rooms.project.presence_events': true, 'session.resume_window_s': 5 });
});
after(async () => {
  for (const client of open) client.close();
  await shared.stop();
}, { timeout: 60_000 });

/** A client that keeps what went wrong, and comes back fast. */
function client(options = {}) {
  const hub = new Ringhub({ url: shared.url, token: token(), WebSocket, reconnect_min_ms: 20, reconnect_max_ms: 100, ...options });
  hub.errors = [];
  hub.states = [];
  hub.on('error', (error) => hub.errors.push(error));
  hub.on('state', ({ state }) => hub.states.push(state));
  hub.connect();
  open.push(hub);
  return hub;
}

/** A subscription, and the events that came. */
async function listen(hub, room, options) {
  const events = [];
  const subscription = hub.subscribe(room, (event) => events.push(event), options);
  await subscription.ready;
  return { subscription, events, seqs: () => events.map(({ seq }) => seq) };
}

const count = (list, number) => until(() => list.length >= number, () => `${number} of ${JSON.stringify(list)}`);
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => from + n);

/** Waits for an event of the client. */
const told = (emitter, type) => new Promise((resolve) => emitter.on(type, resolve));

// ---- what it can do ----

test('it publishes, receives, sends, asks and is told who it is', async () => {
  const [alice, bob] = [client(), client({ token: token('bob') })];
  const room = freshRoom();
  const session = await alice.connect();
  assert.deepEqual([session.user_id, session.resumed], ['alice', false]);
  const { events } = await listen(bob, room);
  const published = await alice.publish(room, 'note.added', { text: 'ünï' });
  assert.equal(published.duplicate, false);
  const again = await alice.publish(room, 'note.added', { text: 'ünï' }, { key: 'same' });
  assert.deepEqual(await alice.publish(room, 'note.added', {}, { key: 'same' }), { ...again, duplicate: true });
  await until(() => events.some(({ seq }) => seq === again.seq), 'both are there');
  const mine = events.find(({ seq }) => seq === published.seq);
  assert.deepEqual([mine.type, mine.room, mine.data, mine.id], ['note.added', room, { text: 'ünï' }, published.id]);

  const direct = told(alice, 'event');
  assert.deepEqual(await bob.send({ user: 'alice' }, 'notification.created', { title: 'hello' }), { delivered: 1, queued: 0 });
  assert.deepEqual((await direct).data, { title: 'hello' });
  await alice.message({ question: 6 });
  const received = await shared.api('GET', `/api/v1/sessions/${session.session_id}/messages?timeout_s=5`);
  assert.deepEqual(received.data, { question: 6 });
  assert.deepEqual(await alice.metadata({ tab: 1, gone: null }), { tab: 1 });
  assert.deepEqual(await alice.metadata(), { tab: 1 });
  assert.deepEqual(await alice.request('ping', { any: 1 }), { any: 1 });

  const refused = await failure(alice.publish('admin:x', 'n'));
  assert.ok(refused instanceof Refused);
  assert.equal(refused.code, 'forbidden');
  assert.deepEqual(alice.errors, []);
});

test('with batch it has the same events in fewer frames', async () => {
  const frames = { one: 0, batch: 0 };
  const counting = (name) => class extends WebSocket {
    constructor(...given) {
      super(...given);
      this.addEventListener('message', () => frames[name]++);
    }
  };
  const [one, batch] = [client({ WebSocket: counting('one') }), client({ batch: true, WebSocket: counting('batch') })];
  const room = freshRoom('quote');
  const [all, same] = [await listen(one, room), await listen(batch, room)];
  await shared.api('POST', '/api/v1/publish', Array.from({ length: 200 }, (_, n) => ({ room, type: 'note.added', data: n })));
  await count(all.events, 200);
  await count(same.events, 200);
  assert.deepEqual(same.events, all.events);
  assert.ok(frames.batch < frames.one / 2, JSON.stringify(frames));
  assert.deepEqual([...one.errors, ...batch.errors], []);
});

test('history is walked through in both directions', async () => {
  const hub = client();
  const room = freshRoom('quote');
  for (let n = 1; n <= 25; n++) hub.publish(room, 'n', n);
  await hub.request('ping');
  const walk = async (options) => {
    const seqs = [];
    for await (const { seq } of hub.history(room, options)) seqs.push(seq);
    return seqs;
  };
  assert.deepEqual(await walk({ page: 10 }), range(1, 25));
  assert.deepEqual(await walk({ page: 4, limit: 10, since: { seq: 5 } }), range(6, 15));
  assert.deepEqual(await walk({ page: 7, since: { last: 12 } }), range(14, 25));
  assert.deepEqual(await walk({ page: 10, reverse: true }), range(1, 25).reverse());
  assert.deepEqual(await walk({ page: 3, limit: 4, reverse: true, since: { seq: 20 } }), [19, 18, 17, 16]);
  assert.deepEqual(await walk({ since: { seconds: 60 }, page: 1000 }), range(1, 25));
});

test('subscriptions of one room have each its own beginning, types and filters', async () => {
  const hub = client();
  const room = freshRoom('quote');
  for (let n = 1; n <= 10; n++) await hub.publish(room, n % 2 ? 'odd' : 'even', { n });
  const live = await listen(hub, room);
  const late = await listen(hub, room, { since: { seq: 3 }, types: ['even'] });
  const few = await listen(hub, room, { since: { last: 2 }, filters: { n: { min: 10 } } });
  assert.equal((await late.subscription.ready).replayed, 4);
  for (let n = 11; n <= 14; n++) await hub.publish(room, n % 2 ? 'odd' : 'even', { n });
  await count(live.events, 4);
  await count(few.events, 5);
  assert.deepEqual([live.seqs(), late.seqs(), few.seqs()], [[11, 12, 13, 14], [4, 6, 8, 10, 12, 14], [10, 11, 12, 13, 14]]);
  assert.deepEqual((await hub.request('rooms')).rooms.filter((name) => name === room), [room]);
  for (const { subscription } of [live, late, few]) subscription.unsubscribe();
  await until(async () => !(await hub.request('rooms')).rooms.includes(room), 'the room is left with its last subscription');
});

test('filters mean here what they mean at the hub', async () => {
  const filters = [
    { n: 1 }, { n: '1' }, { n: null }, { n: true }, { n: { min: 1 } }, { n: { max: 1 } }, { n: { min: 0.5, max: 1.5 } },
    { n: { in: [1, 'x', null] } }, { n: { prefix: 'x' } }, { n: { exists: true } }, { n: { exists: false } }, { n: { not: 1 } },
    { n: { not: { exists: true } } }, { n: { not: { in: ['xy'] }, exists: true } }, { 'a.b': 1 }, { 'a.b.c': 1 }, { a: { exists: true } },
    { any: [{ n: 1 }, { 'a.b': 1 }] }, { any: [{ n: { min: 2 } }], m: 1 }, { n: 1, m: 1 }, { any: 5 }, { 'x.any': 1 }, { constructor: { exists: true } },
  ];
  const data = [
    {}, { n: 1 }, { n: 1, m: 1 }, { n: 2, m: 1 }, { n: '1' }, { n: null }, { n: true }, { n: 'xy' }, { n: [1] }, { n: { b: 1 } }, { n: 1.5 },
    { a: { b: 1 } }, { 'a.b': 1 }, { 'a.b': 2, a: { b: 1 } }, { 'a.b': null, a: { b: 1 } }, { a: { b: { c: 1 } } }, { a: [{ b: 1 }] }, { any: 5 },
    { 'x.any': 1 }, [1], 'n', null, 5, { n: -0 }, { n: 1e300 }, { constructor: 1 },
  ];
  const [there, here] = [client(), client()];
  for (const filter of filters) {
    const room = freshRoom('quote');
    const atHub = await listen(there, room, { filters: filter });
    await listen(here, room);
    const local = await listen(here, room, { filters: filter });
    for (const one of data) there.publish(room, 'n', one);
    there.publish(room, 'n', { n: 1, m: 1, a: { b: 1 } });
    const { seq } = await there.publish(room, 'last');
    for (const hub of [there, here]) await hub.request('ping');
    const settled = await listen(here, room, { since: { seq: seq - 1 } });
    await count(settled.events, 1);
    await until(() => atHub.events.length === local.events.length, () => JSON.stringify([filter, atHub.seqs(), local.seqs()]));
    assert.deepEqual(local.seqs(), atHub.seqs(), JSON.stringify(filter));
  }
});

test('a presence view follows who comes and goes', async () => {
  const [watcher, bob] = [client(), client({ token: token('bob') })];
  const room = freshRoom();
  const names = (view) => view.members.map(({ user_id }) => user_id).sort().join();
  const view = watcher.watchPresence(room);
  await view.ready;
  await until(() => names(view) === 'alice', () => names(view));
  await bob.metadata({ name: 'Bob' });
  const { subscription } = await listen(bob, room);
  await until(() => names(view) === 'alice,bob', () => names(view));
  assert.deepEqual(view.members.find(({ user_id }) => user_id === 'bob').metadata, { name: 'Bob' });
  assert.equal((await watcher.presence(room)).count, view.count);
  subscription.unsubscribe();
  await until(() => names(view) === 'alice' && view.count === 1, () => names(view));
  view.close();
});

test('a lock is one\'s own, renewed, and lost when it is taken away', async () => {
  const [alice, bob] = [client(), client({ token: token('bob') })];
  const room = freshRoom('quote');
  const lock = await alice.lock(room, 'premium', { ttl_s: 1 });
  const refused = await failure(bob.lock(room, 'premium'));
  assert.deepEqual([refused.code, refused.details.holder.user_id], ['lock_held', 'alice']);
  await sleep(1500);
  assert.equal(lock.held, true, 'it was renewed');
  assert.equal((await failure(bob.lock(room, 'premium'))).code, 'lock_held');
  const waiting = bob.lock(room, 'premium', { wait_ms: WAIT_MS });
  await lock.release();
  const next = await waiting;
  assert.ok(next.token > lock.token);
  const lost = told(next, 'lost');
  await shared.api('DELETE', `/api/v1/locks/${encodeURIComponent(room)}/premium`);
  assert.deepEqual(await lost, { reason: 'forced' });
  assert.equal(next.held, false);
  assert.deepEqual([...alice.errors, ...bob.errors], []);
});

test('what was handled is acknowledged', async () => {
  const hub = client();
  const room = freshRoom('quote');
  const { events } = await listen(hub, room, { ack: true });
  for (let n = 0; n < 5; n++) await hub.publish(room, 'n', n);
  await count(events, 5);
  const { session_id, resume, client_id } = hub.session;
  await until(async () => JSON.stringify(await shared.api('GET', `/api/v1/connections/${client_id}/trace`)).includes('"ack"'), 'the hub has it');
  hub.close();
  const heir = client();
  await heir.connect();
  await shared.publish(room, 'n', 5);
  const { results } = await heir.request('resume', { session_id, token: resume.token });
  assert.deepEqual([results.find((one) => one.room === room).replayed], [1], 'the five are not sent to whoever resumes it');
});

test('a rate limit is kept to', async () => {
  const hub = await Hub.start({ 'limits.messages_per_s': 50, 'limits.messages_burst': 60 });
  const one = client({ url: hub.url });
  const room = freshRoom();
  const results = await Promise.all(range(1, 150).map((n) => one.publish(room, 'n', n)));
  assert.deepEqual(results.map(({ seq }) => seq), range(1, 150));
  one.close();
  await hub.stop();
});

// ---- tokens ----

test('a token is refreshed before it ends, and the connection stays', async () => {
  let asked = 0;
  const hub = client({ token: () => (asked++, token('alice', { ttl_s: 4 })) });
  await hub.connect();
  // The first one has long ended by then.
  await until(() => asked >= 4, () => `asked ${asked} times`);
  assert.deepEqual(hub.states, ['connecting', 'connected']);
});

test('a token that ended is replaced once it was refused', async () => {
  const hub = await Hub.start({ 'auth.leeway_s': 0 });
  const reasons = [];
  let fails = false;
  const one = client({
    url: hub.url,
    token: ({ reason }) => {
      reasons.push(reason);
      if (reason === 'expiring' && fails) throw new Error('the login service is down');
      return token('alice', { ttl_s: fails ? 600 : 3 });
    },
  });
  await one.connect();
  fails = true;
  await until(() => reasons.includes('refused'), 'the hub closes with 4401');
  await until(() => one.state === 'connected', 'it is back');
  assert.equal(one.session.resumed, true);
  const fixed = client({ url: hub.url, token: token('alice', { ttl_s: 1 }) });
  await fixed.connect();
  await until(() => fixed.state === 'closed', 'a token that can not be replaced ends it');
  one.close();
  await hub.stop();
});

test('an administrator ends it, and a permission that is withdrawn', async () => {
  const hub = client();
  const room = freshRoom();
  const { subscription } = await listen(hub, room);
  const end = told(subscription, 'end');
  const target = { session: hub.session.session_id };
  await shared.api('POST', '/api/v1/withdraw', { ...target, permissions: [`${room}:read`] });
  assert.equal((await end).code, 'forbidden');
  await shared.api('POST', '/api/v1/disconnect', { ...target, reason: 'enough' });
  await until(() => hub.state === 'closed', 'it is closed');
  const greeted = await hub.connect();
  assert.equal(greeted.resumed, true, 'it comes back when it is told to');
});

// ---- a bad network ----

/** A client behind a proxy of its own. */
async function behind(options, seed) {
  const proxy = await LossyProxy.start(shared.port, seed);
  const hub = client({ url: proxy.url, ...options });
  await hub.connect();
  return { proxy, hub };
}

const misfortunes = {
  cut: (proxy) => proxy.cut(),
  'ended without a farewell': (proxy) => proxy.end(),
  'half-closed towards the hub': (proxy) => proxy.halfClose('hub'),
  'half-closed towards the client': (proxy) => proxy.halfClose('client'),
};

for (const [name, strikes] of Object.entries(misfortunes)) {
  test(`a connection that is ${name} comes back with everything`, async () => {
    const { proxy, hub } = await behind();
    const room = freshRoom('quote');
    const { subscription, seqs, events } = await listen(hub, room);
    const lock = await hub.lock(room, 'premium', { ttl_s: 30 });
    await hub.metadata({ tab: 1 });
    const session = hub.session.session_id;
    const back = told(subscription, 'recovered');
    const direct = told(hub, 'event');
    strikes(proxy);
    for (let n = 0; n < 5; n++) await shared.publish(room, 'n', n);
    await shared.api('POST', `/api/v1/sessions/${session}/messages`, { type: 'n', data: {} });
    const { recovered, missed } = await back;
    assert.deepEqual([recovered, missed], [true, 0]);
    await count(events, 6);
    assert.deepEqual(seqs(), range(1, 6));
    assert.equal((await direct).room, `session:${session}`);
    assert.deepEqual([hub.session.session_id, hub.session.resumed, lock.held], [session, true, true]);
    assert.deepEqual(await hub.metadata(), { tab: 1 });
    await lock.release();
    proxy.stop();
  });
}

test('a session with a name of one\'s own goes on, until another connection takes it', async () => {
  const options = { session_id: `tab-${process.pid}` };
  const { proxy, hub } = await behind(options);
  const room = freshRoom('quote');
  const { subscription, events } = await listen(hub, room, { types: ['wanted'] });
  const back = told(subscription, 'recovered');
  proxy.cut();
  for (const type of ['wanted', 'other', 'wanted']) await shared.publish(room, type);
  const { recovered, replayed } = await back;
  await count(events, 2);
  assert.deepEqual([recovered, replayed, hub.session.session_id, hub.session.resumed], [true, 2, options.session_id, true]);
  const other = client(options);
  await other.connect();
  await until(() => hub.state === 'closed', 'the older one does not take it back');
  assert.equal(other.session.session_id, options.session_id);
  proxy.stop();
});

test('a half-open connection is noticed and left', async () => {
  const own = await Hub.start({ 'heartbeat.interval_s': 1, 'heartbeat.timeout_s': 1 });
  const proxy = await LossyProxy.start(own.port);
  const hub = client({ url: proxy.url });
  const { events, seqs } = await listen(hub, 'project:half-open');
  const session = hub.session.session_id;
  proxy.freeze();
  const began = Date.now();
  await own.publish('project:half-open', 'n', {});
  await count(events, 1);
  assert.ok(Date.now() - began < 4000, 'within interval and timeout');
  assert.deepEqual([seqs(), hub.session.session_id, hub.session.resumed], [[1], session, true]);
  proxy.stop();
  hub.close();
  await own.stop();
});

test('a page that wakes up on a dead connection notices within five seconds', async () => {
  const window = new EventTarget();
  const { proxy, hub } = await behind({ platform: { window } });
  proxy.freeze();
  window.dispatchEvent(new Event('pageshow'));
  const began = Date.now();
  await until(() => hub.states.includes('waiting'), 'the probe was not answered');
  assert.ok(Date.now() - began < 6000);
  await hub.connect();
  proxy.stop();
});

test('a publish whose answer was lost is published once', async () => {
  const { proxy, hub } = await behind();
  const room = freshRoom('quote');
  for (let n = 0; n < 10; n++) {
    const publishing = [hub.publish(room, 'n', 2 * n), hub.publish(room, 'n', 2 * n + 1)];
    proxy.cutAnswers();
    await Promise.all(publishing);
  }
  const { events } = await shared.api('GET', `/api/v1/rooms/${encodeURIComponent(room)}/history?limit=100`);
  assert.deepEqual(events.map(({ data }) => data), range(0, 19));
  proxy.stop();
});

test('while it is away, what is asked for waits; a hub that is not there is tried again', async () => {
  const { proxy, hub } = await behind();
  const room = freshRoom('quote');
  proxy.refuses = true;
  proxy.cut();
  await until(() => hub.state === 'waiting', 'it is away');
  const answers = [...range(1, 5).map((n) => hub.publish(room, 'n', n)), hub.presence(room)];
  const early = hub.subscribe(room, () => {});
  const { accepted } = proxy;
  await until(() => proxy.accepted > accepted + 3, 'it tries');
  proxy.refuses = false;
  assert.deepEqual((await Promise.all(answers)).slice(0, 5).map(({ seq }) => seq), range(1, 5));
  await early.ready;
  proxy.stop();
});

test('a hub that is full says when to come back, and is not asked before', async () => {
  const full = await Hub.start({ 'limits.connections_max': 1 });
  const first = client({ url: full.url });
  await first.connect();
  const second = client({ url: full.url });
  const { state, reason, retry_in_ms } = await new Promise((resolve) => second.on('state', (change) => change.state === 'waiting' && resolve(change)));
  assert.deepEqual([state, reason], ['waiting', 'the answer is 503']);
  assert.ok(retry_in_ms >= 5000 && retry_in_ms <= 5000 + 100, String(retry_in_ms));
  first.close();
  await second.connect();
  second.close();
  await full.stop();
});

test('a hub that drains and comes back is found again; rooms that it lost are told', async () => {
  const own = await Hub.start();
  const hub = client({ url: own.url });
  const { subscription, events } = await listen(hub, 'project:restart');
  await own.publish('project:restart', 'n', 1);
  await count(events, 1);
  const draining = told(hub, 'draining');
  const back = told(subscription, 'recovered');
  await own.stop();
  assert.equal(typeof (await draining).reconnect_after_ms, 'number');
  await own.again();
  await own.publish('project:restart', 'n', 2);
  const { recovered, missed, epoch } = await back;
  assert.deepEqual([recovered, missed], [false, null]);
  await count(events, 2);
  assert.deepEqual(events.map(({ seq, data }) => [seq, data]), [[1, 1], [1, 2]]);
  assert.deepEqual(subscription.position, { seq: 1, epoch });
  assert.equal(hub.session.resumed, false);
  hub.close();
  await own.stop();
});

test('events that the log has lost while one was away are counted', async () => {
  const own = await Hub.start({ 'rooms.project.history_events_max': 10 });
  const proxy = await LossyProxy.start(own.port);
  const hub = client({ url: proxy.url });
  const { subscription, events, seqs } = await listen(hub, 'project:lossy');
  await own.publish('project:lossy', 'n', 0);
  await count(events, 1);
  proxy.refuses = true;
  proxy.cut();
  const back = told(subscription, 'recovered');
  for (let n = 1; n < 50; n++) await own.publish('project:lossy', 'n', n);
  proxy.refuses = false;
  const { recovered, missed } = await back;
  await count(events, 11);
  assert.equal(recovered, false);
  assert.equal(missed, 50 - events.length);
  assert.deepEqual(seqs(), [1, ...range(missed + 2, 50)]);
  proxy.stop();
  hub.close();
  await own.stop();
});

test('a reader that is too slow is told what it did not get', async () => {
  const own = await Hub.start({ 'limits.outbox_bytes_max': 65_536, 'history.events_max': 20 });
  const proxy = await LossyProxy.start(own.port);
  const hub = client({ url: proxy.url });
  const gaps = [];
  const { subscription, events } = await listen(hub, 'project:slow');
  subscription.on('gap', (gap) => gaps.push(gap));
  const flow = proxy.stall();
  const body = 'x'.repeat(10_000);
  for (let n = 0; n < 30; n++) await own.api('POST', '/api/v1/publish', range(1, 30).map((n) => ({ room: 'project:slow', type: 'n', data: { n, body } })));
  flow();
  await until(() => events.at(-1)?.seq === 900, () => `the last event; there are ${events.length}`);
  assert.ok(gaps.length > 0);
  const skipped = gaps.flatMap(({ from_seq, to_seq }) => range(from_seq, to_seq));
  assert.deepEqual([...events.map(({ seq }) => seq), ...skipped].sort((a, b) => a - b), range(1, 900), 'each event came or was told to be left out');
  proxy.stop();
  hub.close();
  await own.stop();
});

// ---- chaos ----

test('200 reconnects under load lose nothing, repeat nothing and keep the order', { timeout: 120_000 }, async (context) => {
  const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1_000_000);
  context.diagnostic(`CHAOS_SEED=${seed}`);
  const RECONNECTS = 200;
  const random = seeded(seed);
  // A frozen connection is noticed by its silence; so that this does not take most of the time, the hub is talkative.
  const own = await Hub.start({ 'heartbeat.interval_s': 1, 'heartbeat.timeout_s': 1 });
  const proxy = await LossyProxy.start(own.port, seed);
  const hub = client({ url: proxy.url, reconnect_min_ms: 10, reconnect_max_ms: 40 });
  const names = range(1, 5).map((n) => `project:chaos-${n}`);
  const listening = await Promise.all(names.map((name) => listen(hub, name)));
  const filtered = await listen(hub, names[0], { filters: { n: { in: range(0, 5000).filter((n) => n % 10 === 0).slice(0, 20) } } });
  const problems = [];
  hub.on('gap', (gap) => problems.push(gap));
  for (const { subscription } of listening) {
    subscription.on('end', (error) => problems.push(error));
    subscription.on('recovered', (how) => how.recovered || problems.push(how));
  }

  let over = false;
  // A test that fails ends nevertheless.
  context.after(() => (over = true));
  const published = Object.fromEntries(names.map((name) => [name, 0]));
  // A backend that does not know of any of this, over HTTP and with keys.
  const backend = (async () => {
    while (!over) {
      const batch = range(1, 1 + Math.floor(random() * 10)).map(() => {
        const room = names[Math.floor(random() * names.length)];
        const n = published[room]++;
        return { room, type: 'n', data: { n }, key: `${room}-${n}` };
      });
      const answers = await own.api('POST', '/api/v1/publish', batch);
      for (const answer of answers) if (!answer.seq || answer.duplicate) problems.push(answer);
      await sleep(random() * 20);
    }
  })();
  // And the client itself, which must not be heard twice.
  const mine = [];
  const results = [];
  const publishing = (async () => {
    for (let n = 0; !over; n++) {
      mine.push(n);
      results.push(hub.publish('project:mine', 'n', { n }));
      await sleep(random() * 20);
    }
  })();

  let reconnects = 0;
  hub.on('state', ({ state }) => (reconnects += Number(state === 'connected')));
  const strikes = [
    () => proxy.cut(),
    () => proxy.cut(),
    () => proxy.end(),
    () => proxy.cutAnswers(),
    () => proxy.halfClose('hub'),
    () => proxy.halfClose('client'),
  ];
  const began = Date.now();
  while (reconnects < RECONNECTS) {
    assert.ok(Date.now() - began < 90_000, `only ${reconnects} reconnects`);
    proxy.delay_ms = random() < 0.5 ? 0 : random() * 10;
    // Also before it has greeted, and while the session is taken up.
    await sleep(random() * (random() < 0.2 ? 10 : 200));
    if (reconnects % 50 === 49 && hub.state === 'connected') {
      const before = reconnects;
      proxy.freeze();
      // It may be back before this looks.
      await until(() => hub.state !== 'connected' || reconnects > before, 'silence is noticed');
    } else {
      strikes[Math.floor(random() * strikes.length)]();
    }
  }
  over = true;
  await Promise.all([backend, publishing]);
  proxy.delay_ms = 0;
  context.diagnostic(`${reconnects} reconnects in ${Date.now() - began} ms, ${Object.values(published).reduce((a, b) => a + b)} events, ${mine.length} of its own`);

  const answers = await Promise.all(results);
  for (const [at, { events }] of listening.entries()) {
    const total = published[names[at]];
    await until(() => events.length >= total, () => `${events.length} of ${total} events of ${names[at]}; missing ${range(1, total).filter((seq) => !events.some((event) => event.seq === seq))}`);
    assert.deepEqual(events.map(({ seq }) => seq), range(1, total), names[at]);
    assert.deepEqual(events.map(({ data }) => data.n), range(0, total - 1), names[at]);
  }
  assert.deepEqual(filtered.events.map(({ data }) => data.n), range(0, published[names[0]] - 1).filter((n) => n % 10 === 0).slice(0, 20));
  assert.deepEqual(problems, []);
  assert.deepEqual(answers.map(({ seq }) => seq), mine.map((n) => n + 1));
  const { seq } = await own.api('GET', '/api/v1/rooms/project%3Amine');
  assert.equal(seq, mine.length, 'what it published was published once');
  assert.deepEqual(hub.errors, []);
  assert.ok(reconnects >= RECONNECTS);
  proxy.stop();
  hub.close();
  await own.stop();
});

test('Node\'s own WebSocket will do', { skip: !globalThis.WebSocket && 'this Node has none' }, async () => {
  const { proxy, hub } = await behind({ WebSocket: undefined });
  const room = freshRoom('quote');
  const { events } = await listen(hub, room);
  await hub.publish(room, 'n', 1);
  proxy.cut();
  await shared.publish(room, 'n', 2);
  await count(events, 2);
  proxy.stop();
  hub.close();
});
