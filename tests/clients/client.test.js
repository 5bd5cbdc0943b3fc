// The browser client against a scripted hub and a clock that the test moves. What it does with a real hub is in
// client.hub.test.js, in a browser in client.browser.test.js.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { buildSync, transformSync } from 'esbuild';
import { ConnectionClosed, QueueFull, Refused, Ringhub, RinghubError, Timeout } from '../../src/control/web/ringhub.js';
import { START_MS, World, failure, jwt, settled, standing } from './script.js';

const MODULE = fileURLToPath(new URL('../../src/control/web/ringhub.js', import.meta.url));
const GZIPPED_BYTES_MAX = 12 * 1024;

// ---- the module ----

test('its types hold, strictly', () => {
  const tsc = fileURLToPath(new URL('../node_modules/.bin/tsc', import.meta.url));
  const options = ['--checkJs', '--noEmit', '--strict', '--target', 'es2022', '--module', 'es2022', '--lib', 'es2022,dom,dom.iterable'];
  execFileSync(tsc, [...options, MODULE], { stdio: 'inherit' });
});

test('it is small', () => {
  const { code } = transformSync(readFileSync(MODULE, 'utf8'), { minify: true, format: 'esm' });
  const bytes = gzipSync(code, { level: 9 }).length;
  assert.ok(bytes < GZIPPED_BYTES_MAX, `${bytes} bytes, minified and gzipped`);
});

test('it imports nothing', () => {
  const { metafile } = buildSync({ entryPoints: [MODULE], bundle: true, write: false, metafile: true, format: 'esm' });
  assert.deepEqual(Object.values(metafile.inputs).map(({ imports }) => imports), [[]]);
});

test('everything public is documented', () => {
  const lines = readFileSync(MODULE, 'utf8').split('\n');
  const isPublic = (line) => /^export |^ {2}(?:async \*?|\*|get )?[a-z]\w*\(.*\{$|^ {4}this\.[a-z]\w* = /.test(line) && !/^ {2}constructor|^ {4}this\.(name|[a-z]\w*\() /.test(line);
  const undocumented = lines.filter((line, at) => isPublic(line) && !lines[at - 1].endsWith('*/'));
  assert.deepEqual(undocumented, []);
  assert.ok(lines.filter(isPublic).length > 40, 'there are public things');
});

test('the README has every option, method and event', () => {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8').split('\n## Browser client\n')[1].split('\n## ')[0];
  const text = readFileSync(MODULE, 'utf8');
  const named = (typedef) => {
    const block = text.split(`@typedef {object} ${typedef}\n`)[1].split('*/')[0];
    return [...block.matchAll(/@property \{.+\} \[?(\w+)\]?/g)].map(([, name]) => name);
  };
  const options = named('Options');
  const methods = Object.getOwnPropertyNames(Ringhub.prototype).filter((name) => name !== 'constructor');
  assert.ok(options.length > 8 && methods.length > 12, [options, methods].join());
  for (const name of [...options, ...named('HubEvents'), ...named('SubscriptionEvents')]) assert.ok(readme.includes(`\`${name}\``), name);
  for (const name of methods) assert.match(readme, new RegExp(`\`${name}[(\`]`));
});

test('its address is given, or that of the hub it came from', () => {
  const WebSocket = class {};
  assert.throws(() => new Ringhub({ WebSocket }), /url is needed/, 'a file has no hub');
  assert.throws(() => new Ringhub({ WebSocket, url: 'ftp://hub.example' }), TypeError);
  assert.throws(() => new Ringhub({ WebSocket: null, url: 'ws://hub.example/ws' }), /WebSocket is needed/);
});

test('in a page its address may be a path', async () => {
  globalThis.location = new URL('https://app.example.com/notes/1');
  const world = new World({ url: '/hub/ws' });
  delete globalThis.location;
  world.hub.connect();
  await settled();
  assert.equal(world.socket.url, 'wss://app.example.com/hub/ws');
});

test('it names itself, its session and its token in the handshake', async () => {
  const world = new World({ url: 'https://hub.example/x/ws?a=b', client_id: 'c:1', session_id: 's', token: 'a.b.c' });
  world.hub.connect();
  await settled();
  assert.equal(world.socket.url, 'wss://hub.example/x/ws?a=b&client_id=c%3A1&session_id=s');
  assert.deepEqual(world.socket.protocols, ['ringhub.v1.json', 'bearer.a.b.c']);
  const other = await World.connected();
  assert.deepEqual(other.socket.protocols, ['ringhub.v1.json']);
  assert.equal(other.socket.url, 'ws://hub.example/ws');
});

test('events that come in one frame are handled in order, none after a handler has closed', async () => {
  const world = await World.connected({ batch: true, token: 'a.b.c' });
  assert.deepEqual(world.socket.protocols, ['ringhub.v1.json.batch', 'ringhub.v1.json', 'bearer.a.b.c']);
  const got = [];
  world.hub.subscribe('project:1', ({ seq }) => {
    got.push(seq);
    if (seq === 4) world.hub.close();
  });
  await settled();
  world.socket.subscribed('project:1');
  const events = (...seqs) => seqs.map((seq) => ({ type: 'n', id: `${seq}`, room: 'project:1', seq, data: {} }));
  world.socket.frame(events(1, 2));
  world.socket.event('project:1', 3);
  await settled();
  assert.deepEqual(got, [1, 2, 3]);
  world.socket.frame(events(4, 5));
  await settled();
  assert.deepEqual(got, [1, 2, 3, 4]);
});

// ---- coming back ----

test('pauses are drawn from ranges that double up to the largest', async () => {
  const world = await World.connected();
  world.random = 0.999;
  for (const expected of [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]) {
    world.socket.hangUp();
    const { state, code, retry_in_ms } = world.states.at(-1);
    assert.deepEqual([state, code, retry_in_ms], ['waiting', 1006, Math.round(expected * 0.999)]);
    const before = world.sockets.length;
    await world.pass(retry_in_ms - 1);
    assert.equal(world.sockets.length, before);
    await world.pass(1);
    assert.equal(world.sockets.length, before + 1);
  }
  world.random = 0;
  world.socket.hangUp();
  assert.equal(world.states.at(-1).retry_in_ms, 0, 'full jitter begins at nothing');
});

test('a connection that held makes pauses short again, one that did not does not', async () => {
  const world = await World.connected();
  world.random = 0.5;
  const pause = () => {
    world.socket.hangUp();
    return world.states.at(-1).retry_in_ms;
  };
  const back = async () => {
    await world.comeBack();
    world.socket.greet();
    await settled();
    world.socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results: [] }, 'resumed');
  };
  assert.equal(pause(), 250);
  await back();
  await world.pass(4000);
  assert.equal(pause(), 500);
  await back();
  await world.pass(5000);
  assert.equal(pause(), 250);
});

test('what the hub says about coming back is kept to', async () => {
  const world = await World.connected();
  const told = [];
  world.hub.on('draining', (data) => told.push(data));
  world.socket.say({ type: 'draining', data: { reconnect_after_ms: 1234 } });
  assert.deepEqual(told, [{ reconnect_after_ms: 1234 }]);
  assert.equal(world.hub.state, 'connected', 'the hub closes when it is ready');
  world.socket.hangUp(1001, '777');
  assert.equal(world.states.at(-1).retry_in_ms, 777);
  world.window.dispatchEvent(new Event('online'));
  assert.equal(world.sockets.length, 1, 'the hub knows better than the browser');
  await world.pass(777);
  assert.equal(world.sockets.length, 2);
  world.socket.hangUp(1006);
  assert.equal(world.states.at(-1).retry_in_ms, 250, 'the hint was for once');
  await world.comeBack();
  world.socket.greet();
  world.socket.say({ type: 'draining', data: { reconnect_after_ms: 1234 } });
  world.socket.hangUp(1006);
  assert.equal(world.states.at(-1).retry_in_ms, 1234, 'though the farewell did not arrive');
  await world.pass(1234);
  world.socket.hangUp(1001, 'a proxy says something else');
  assert.ok(world.states.at(-1).retry_in_ms < 30_000);
});

test('a Retry-After is waited for, and others that were told the same come at other times', async () => {
  const world = await World.connected();
  world.socket.hangUp();
  await world.comeBack();
  world.socket.refuseUpgrade(503, { 'retry-after': '5' });
  const { state, code, reason, retry_in_ms } = world.states.at(-1);
  assert.deepEqual([state, code, reason, retry_in_ms], ['waiting', 1006, 'the answer is 503', 5500], 'the pause that was due comes on top');
  assert.ok(world.socket.closed);
  world.window.dispatchEvent(new Event('online'));
  await world.pass(5499);
  assert.equal(world.sockets.length, 2, 'the hub knows better than the browser');
  await world.pass(1);
  assert.equal(world.sockets.length, 3);
  world.socket.refuseUpgrade(429, { 'retry-after': 'Wed, 21 Oct 2026 07:28:00 GMT' });
  assert.equal(world.states.at(-1).retry_in_ms, 250, 'a date is a proxy\'s: it counts as none');
  assert.deepEqual(world.asked, [], 'where the answer is known nobody has to ask for it');
});

test('where a refusal is not shown, /ready says when to come back', async () => {
  const world = new World({ url: 'https://hub.example/some/where/ws' });
  const draining = { status: 503, headers: { 'retry-after': '3' } };
  world.hub.connect();
  await settled();
  const refuse = async (...answers) => {
    world.answers = answers;
    world.socket.hangUp();
    await settled();
    return world.states.at(-1).retry_in_ms;
  };
  assert.equal(await refuse(draining), 3250);
  assert.deepEqual(world.asked, ['https://hub.example/some/where/ready']);
  await world.pass(3249);
  assert.equal(world.sockets.length, 1);
  await world.pass(1);
  assert.equal(world.sockets.length, 2);
  assert.equal(await refuse({ status: 200 }), 500, 'it takes connections: why not this one is not known');
  for (let pause = 1000; pause <= 4000; pause *= 2) {
    await world.comeBack();
    assert.equal(await refuse({ status: 200 }), pause);
  }
  await world.comeBack();
  assert.equal(await refuse(draining), 8000, 'a pause is made no shorter');
  await world.comeBack();
  assert.equal(await refuse(), 15_000);
  const { length } = world.asked;
  await world.comeBack();
  await refuse(draining);
  assert.equal(world.asked.length, length, 'where nobody answers it is not asked each time');
  await world.comeBack();
  world.socket.greet();
  world.socket.hangUp();
  await settled();
  assert.equal(world.asked.length, length, 'and not where a connection was open');
  await world.comeBack();
  await refuse(draining);
  assert.equal(world.asked.length, length + 1, 'but once more, since there was somebody meanwhile');
  world.hub.close();
});

test('an answer that comes too late changes nothing', async () => {
  const world = new World();
  let answer;
  world.answer = new Promise((resolve) => (answer = resolve));
  world.hub.connect();
  await settled();
  world.socket.hangUp();
  world.hub.close();
  answer({ status: 503, headers: { 'retry-after': '3' } });
  await settled();
  assert.deepEqual([world.asked.length, world.hub.state, world.clock.timers.size], [1, 'closed', 0]);
});

test('a hub that does not greet in time is left', async () => {
  const world = new World({ connect_timeout_ms: 3000 });
  world.hub.connect();
  await world.pass(2999);
  assert.equal(world.hub.state, 'connecting');
  await world.pass(1);
  assert.equal(world.hub.state, 'waiting');
  assert.ok(world.sockets[0].closed);
});

for (const [code, options] of [[4403, {}], [4500, {}], [4401, { token: 'a.b.c' }], [4409, { session_id: 'mine' }]]) {
  test(`after ${code} it stays away until it is told to come back`, async () => {
    const world = await World.connected(options);
    world.hub.subscribe('project:1', () => {});
    const waits = failure(world.hub.publish('project:1', 'n'));
    world.socket.hangUp(code, 'enough');
    const error = await waits;
    assert.ok(error instanceof ConnectionClosed);
    assert.deepEqual([error.code, error.close_code, error.reason], ['connection_closed', code, 'enough']);
    const { state, error: why } = world.states.at(-1);
    assert.equal(state, 'closed');
    assert.equal(why, error);
    await world.pass(3_600_000);
    world.window.dispatchEvent(new Event('online'));
    assert.equal(world.sockets.length, 1);
    assert.ok((await failure(world.hub.publish('project:1', 'n'))) instanceof ConnectionClosed, 'nothing is queued for never');
    const back = world.hub.connect();
    await settled();
    world.socket.greet();
    world.socket.refuse('resume', 'not_found');
    assert.equal((await back).session_id, 's2');
    assert.equal(world.socket.take('subscribe').data.room, 'project:1', 'subscriptions come back');
  });
}

test('a session that was taken by somebody else is not taken back: another one begins', async () => {
  const world = await World.connected();
  const socket = await world.reconnect(4409);
  socket.greet();
  assert.deepEqual(socket.sent, []);
  assert.equal(world.hub.session.session_id, 's2');
});

test('connect says why it will not become anything', async () => {
  const world = new World();
  const error = failure(world.hub.connect());
  await settled();
  world.socket.hangUp(4403, 'no');
  assert.equal((await error).close_code, 4403);
  const broken = new World({
    WebSocket: class {
      constructor() {
        throw new SyntaxError('no address');
      }
    },
  });
  assert.match((await failure(broken.hub.connect())).message, /no address/);
  assert.equal(broken.hub.state, 'closed');
});

test('the browser says that it is online: it reconnects at once', async () => {
  const world = await World.connected();
  for (let n = 0; n < 6; n++) await world.reconnect();
  world.socket.hangUp();
  const { length } = world.sockets;
  world.window.dispatchEvent(new Event('online'));
  await settled();
  assert.equal(world.sockets.length, length + 1);
  world.socket.hangUp();
  assert.equal(world.states.at(-1).retry_in_ms, 250, 'and begins anew with its pauses');
});

test('a page that is looked at again reconnects at once, or asks for a sign of life', async () => {
  const world = await World.connected();
  world.pongs = false;
  world.document.visibilityState = 'hidden';
  world.document.dispatchEvent(new Event('visibilitychange'));
  assert.deepEqual(world.socket.sent, []);
  world.document.visibilityState = 'visible';
  world.document.dispatchEvent(new Event('visibilitychange'));
  assert.equal(world.socket.take('ping').type, 'ping');
  await world.pass(4999);
  assert.equal(world.hub.state, 'connected');
  await world.pass(1);
  assert.equal(world.hub.state, 'waiting', 'nothing was heard for five seconds');
  world.document.dispatchEvent(new Event('visibilitychange'));
  await settled();
  assert.equal(world.sockets.length, 2);
});

test('offline is believed only when the hub does not answer', async () => {
  const world = await World.connected();
  world.pongs = false;
  world.window.dispatchEvent(new Event('offline'));
  const { id } = world.socket.take('ping');
  world.socket.say({ type: 'pong', ref: id, data: {} });
  await world.pass(5000);
  assert.equal(world.hub.state, 'connected');
});

test('a silent connection is asked for a sign of life, and left where none comes', async () => {
  const world = await World.connected();
  world.pongs = false;
  await world.pass(29_999);
  assert.deepEqual(world.socket.sent, []);
  world.socket.event('global', 1);
  await world.pass(29_999);
  assert.deepEqual(world.socket.sent, [], 'any message is a sign of life');
  await world.pass(1);
  world.socket.take('ping');
  await world.pass(9000);
  world.socket.event('global', 2);
  await world.pass(1000);
  assert.equal(world.hub.state, 'connected', 'an event will do for an answer');
  await world.pass(29_000);
  world.socket.take('ping');
  await world.pass(9999);
  assert.equal(world.hub.state, 'connected');
  await world.pass(1);
  assert.deepEqual([world.hub.state, world.states.at(-1).code], ['waiting', 1006]);
  assert.ok(world.sockets[0].closed);
  world.sockets[0].hangUp();
  assert.equal(world.states.at(-1).state, 'waiting', 'its late farewell means nothing');
});

test('close refuses what waits, and listens to the page no longer', async () => {
  const world = await World.connected();
  const { subscription } = await world.subscribe('project:1');
  const waits = failure(world.hub.publish('project:1', 'n'));
  world.hub.close();
  assert.ok((await waits) instanceof ConnectionClosed);
  assert.ok(world.socket.closed && subscription.active);
  for (const type of ['online', 'offline', 'pageshow']) world.window.dispatchEvent(new Event(type));
  await world.pass(1_000_000);
  assert.equal(world.sockets.length, 1);
  assert.equal(world.clock.timers.size, 0, 'no timer is left');
});

// ---- tokens ----

const inSeconds = (seconds) => jwt({ exp: START_MS / 1000 + seconds });

test('a token is replaced ahead of its end', async () => {
  const asked = [];
  const tokens = [inSeconds(600), inSeconds(1200)];
  const world = new World({ token: ({ reason }) => (asked.push(reason), tokens.shift()) });
  world.random = 0;
  const greeted = world.hub.connect();
  await settled();
  world.socket.greet();
  await greeted;
  await world.pass(539_999);
  assert.deepEqual(asked, ['connect']);
  await world.pass(1);
  assert.deepEqual(asked, ['connect', 'expiring']);
  const { token } = world.socket.answer('auth.refresh', { expires_at: '…' }, 'auth.refreshed');
  assert.equal(token, inSeconds(1200));
});

test('the end of a token counts by the clock of the hub', async () => {
  const skew = 3_600_000;
  const world = new World({ token: () => jwt({ exp: (START_MS + skew) / 1000 + 600 }) });
  world.skew = skew;
  world.random = 0;
  world.hub.connect();
  await settled();
  world.socket.greet();
  await world.pass(539_999);
  assert.deepEqual(world.socket.sent, []);
  await world.pass(1);
  world.socket.take('auth.refresh');
});

test('the hub asks for a new token, and gets one; a failure is told and tried again', async () => {
  let fails = false;
  const expiring = [];
  const world = await World.connected({
    token: async () => {
      if (fails) throw new Error('the login service is down');
      return 'x.y.z';
    },
  });
  world.hub.on('expiring', (data) => expiring.push(data));
  world.socket.say({ type: 'auth.expiring', data: { expires_at: '2026-07-01T10:00:00Z' } });
  await settled();
  world.socket.answer('auth.refresh', {}, 'auth.refreshed');
  assert.deepEqual(expiring, [{ expires_at: '2026-07-01T10:00:00Z' }]);
  await settled();
  fails = true;
  world.socket.say({ type: 'auth.expiring', data: { expires_at: null } });
  await settled();
  assert.deepEqual(world.errors.map(({ message }) => message), ['the login service is down']);
  fails = false;
  await world.pass(5000);
  world.socket.refuse('auth.refresh', 'unauthorized');
  await settled();
  assert.equal(world.errors[1].code, 'unauthorized');
  await world.pass(5000);
  const done = world.hub.refresh();
  world.socket.answer('auth.refresh', {}, 'auth.refreshed');
  await done;
  assert.equal(world.hub.state, 'connected');
});

test('4401 asks for one new token; a second one in a row ends it', async () => {
  const asked = [];
  const world = await World.connected({ token: ({ reason }) => (asked.push(reason), `token.${asked.length}.x`) });
  world.socket.hangUp(4401, 'expired');
  await settled();
  assert.deepEqual(asked, ['connect', 'refused']);
  assert.deepEqual(world.socket.protocols[1], 'bearer.token.2.x');
  world.socket.greet();
  await settled();
  world.socket.hangUp(4401, 'expired');
  assert.equal(world.hub.state, 'closed');
  assert.equal(world.states.at(-1).error.close_code, 4401);
  const again = await World.connected({ token: () => 'a.b.c' });
  for (let round = 0; round < 3; round++) {
    await again.pass(5000);
    again.socket.hangUp(4401);
    await settled();
    assert.equal(again.sockets.length, round + 2, 'each that held may ask once');
    again.socket.greet();
    again.socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results: [] }, 'resumed');
  }
});

test('no token after 4401 ends it, a callback that fails does not', async () => {
  let answer = () => 'a.b.c';
  const world = await World.connected({ token: () => answer() });
  answer = () => {
    throw new Error('offline');
  };
  world.socket.hangUp(4401);
  await settled();
  assert.equal(world.hub.state, 'waiting');
  answer = () => null;
  await world.comeBack();
  assert.equal(world.hub.state, 'closed');
  assert.equal(world.states.at(-1).error.close_code, 4401);
});

test('a token is kept for the next connection, unless it may have been the reason', async () => {
  let asked = 0;
  const world = await World.connected({ token: () => `a.${++asked}.c` });
  await world.reconnect();
  assert.equal(asked, 1);
  await world.reconnect();
  assert.equal(asked, 2, 'no greeting: it may have been a 401, which browsers do not show');
  const late = new World({ token: () => (asked++, inSeconds(3)) });
  late.hub.connect();
  await settled();
  late.socket.greet();
  late.socket.hangUp();
  asked = 0;
  await late.pass(1000);
  assert.equal(asked, 1, 'one that is about to end is not worth trying');
});

// ---- commands ----

test('what is asked before there is a connection is sent in order when there is one', async () => {
  const world = new World();
  assert.ok((await failure(world.hub.publish('project:1', 'n'))) instanceof ConnectionClosed, 'connect was not called');
  world.hub.connect();
  for (let n = 0; n < 5; n++) world.hub.publish('project:1', 'n', { n });
  await settled();
  assert.deepEqual(world.socket.sent, []);
  world.socket.greet();
  assert.deepEqual(world.socket.sent.map(({ data }) => data.data.n), [0, 1, 2, 3, 4]);
});

test('an answer settles its promise, an error is a Refused with all that the hub said', async () => {
  const world = await World.connected();
  const published = world.hub.publish('project:1', 'n', { a: 1 }, { key: 'mine', echo: true });
  assert.deepEqual(world.socket.answer('publish', { seq: 7 }), { room: 'project:1', type: 'n', data: { a: 1 }, key: 'mine', echo: true });
  assert.deepEqual(await published, { seq: 7 });
  const refused = failure(world.hub.send({ user: 'bob' }, 'n'));
  world.socket.refuse('send', 'rate_limited', { details: { retry_after_ms: 70 } });
  const error = await refused;
  assert.ok(error instanceof Refused && error instanceof RinghubError && error instanceof Error);
  assert.deepEqual([error.name, error.code, error.retry_after_ms], ['Refused', 'rate_limited', 70]);
  const asked = world.hub.request('rooms');
  world.socket.answer('rooms', { rooms: ['global'] });
  assert.deepEqual(await asked, { rooms: ['global'] });
  const accepted = world.hub.message('any');
  assert.equal(world.socket.answer('message', {}, 'accepted'), 'any');
  assert.equal(await accepted, undefined);
  const metadata = world.hub.metadata({ tab: 1 });
  assert.deepEqual(world.socket.answer('metadata', { tab: 1 }), { set: { tab: 1 } });
  assert.deepEqual(await metadata, { tab: 1 });
});

test('the queue is bounded', async () => {
  const world = new World({ queue_max: 3 });
  world.hub.connect();
  const waiting = [1, 2, 3].map((n) => world.hub.publish('project:1', 'n', n));
  const error = await failure(world.hub.publish('project:1', 'n', 4));
  assert.ok(error instanceof QueueFull);
  assert.deepEqual([error.code, error.name], ['queue_full', 'QueueFull']);
  world.socket.greet();
  for (const n of [1, 2, 3]) assert.equal(world.socket.answer('publish', {}).data, n);
  await Promise.all(waiting);
});

test('a publish that was not answered is published again under its key, and others are not', async () => {
  const world = await World.connected();
  const results = {
    publish: world.hub.publish('project:1', 'n', 1),
    keyless: failure(world.hub.publish('project:1', 'n', 2, { key: null })),
    send: failure(world.hub.send({ user: 'bob' }, 'n')),
    message: failure(world.hub.message(1)),
    presence: world.hub.presence('project:1'),
  };
  const first = world.socket.take('publish');
  assert.match(first.data.key, /^[0-9a-z]{18}-\d+$/);
  assert.equal(world.socket.take('publish').data.key, undefined);
  world.socket.hangUp(1006);
  for (const lost of [results.keyless, results.send, results.message]) {
    const error = await lost;
    assert.ok(error instanceof ConnectionClosed);
    assert.equal(error.close_code, 1006);
  }
  const later = world.hub.publish('project:1', 'n', 3);
  await world.comeBack();
  world.socket.greet();
  world.socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results: [] }, 'resumed');
  assert.deepEqual(world.socket.sent.map(({ type }) => type), ['publish', 'presence', 'publish'], 'what was first stays first');
  assert.deepEqual(world.socket.answer('publish', { seq: 1, duplicate: true }), first.data);
  assert.equal((await results.publish).duplicate, true);
  world.socket.answer('presence', { count: 0 });
  await results.presence;
  world.socket.answer('publish', { seq: 2 });
  await later;
});

test('a key that the hub may have forgotten is not used again', async () => {
  const world = await World.connected();
  const lost = failure(world.hub.publish('project:1', 'n', 1, { timeout_ms: 1_000_000 }));
  await world.pass(270_000);
  world.socket.hangUp();
  assert.ok((await lost) instanceof ConnectionClosed);
});

test('what the hub closed a connection for is not sent again', async () => {
  for (const code of [1002, 1003, 1007, 1008, 1009]) {
    const world = await World.connected();
    const lost = failure(world.hub.publish('project:1', 'n'));
    world.socket.hangUp(code, 'bad');
    assert.equal((await lost).close_code, code);
    assert.equal(world.hub.state, 'waiting');
  }
});

test('a message that the hub would not take is refused here', async () => {
  const world = await World.connected();
  const error = await failure(world.hub.publish('project:1', 'n', 'x'.repeat(1000)));
  assert.deepEqual([error.constructor, error.code], [Refused, 'too_large']);
  assert.equal((await failure(world.hub.publish('project:1', 'n', 'é'.repeat(480)))).code, 'too_large', 'bytes count');
  world.hub.publish('project:1', 'n', 'x'.repeat(800));
  world.socket.take('publish');
});

test('sending keeps to the rate that the hub has told', async () => {
  const limits = { message_bytes_max: 1000, rooms_max: 10, messages_per_s: 10 };
  const world = await World.connected({}, { limits });
  for (let n = 0; n < 25; n++) world.hub.publish('project:1', 'n', n);
  const sent = () => world.socket.sent.length;
  assert.equal(sent(), 10);
  await world.pass(99);
  assert.equal(sent(), 10);
  await world.pass(1);
  assert.equal(sent(), 11);
  await world.pass(900);
  assert.equal(sent(), 20);
  await world.pass(1000);
  assert.deepEqual(world.socket.sent.map(({ data }) => data.data), [...Array(25).keys()]);
});

test('hundreds of rooms are taken up again at the rate that the hub has told', async () => {
  const limits = { message_bytes_max: 1000, rooms_max: 100, messages_per_s: 10 };
  const world = await World.connected({}, { limits });
  const names = Array.from({ length: 30 }, (_, n) => `project:${n}`);
  for (const name of names) world.hub.subscribe(name, () => {});
  await settled();
  world.socket.answer('subscribe', { results: names.map((name) => standing(name)) });
  await world.reconnect();
  world.socket.greet({ limits });
  world.socket.refuse('resume', 'not_found');
  world.hub.publish('project:1', 'n');
  assert.equal(world.socket.sent.length, 9, 'the tenth was the resume');
  await world.pass(3000);
  assert.deepEqual(world.socket.sent.map(({ type }) => type), [...names.map(() => 'subscribe'), 'publish']);
});

test('a slow way up is not filled with more than it takes', async () => {
  const world = await World.connected();
  world.socket.bufferedAmount = 1 << 20;
  world.hub.publish('project:1', 'n');
  await world.pass(1000);
  assert.equal(world.socket.sent.length, 0);
  world.socket.bufferedAmount = 0;
  await world.pass(50);
  world.socket.take('publish');
});

test('an answer that does not come in time is a Timeout, counted from sending on', async () => {
  const world = new World({ timeout_ms: 2000 });
  world.hub.connect();
  const slow = failure(world.hub.presence('project:1'));
  const patient = world.hub.presence('project:2', { timeout_ms: 5000 });
  await world.pass(9000);
  world.socket.greet();
  await world.pass(1999);
  assert.equal(world.socket.sent.length, 2);
  await world.pass(1);
  const error = await slow;
  assert.ok(error instanceof Timeout);
  assert.deepEqual([error.code, error.name], ['timeout', 'Timeout']);
  const [first, second] = world.socket.sent;
  world.socket.say({ type: 'presence', ref: first.id, data: {} });
  world.socket.say({ type: 'presence', ref: second.id, data: { count: 2 } });
  assert.deepEqual(await patient, { count: 2 });
});

test('a signal gives up: what was not sent is not, and the answer to what was is passed over', async () => {
  const world = new World();
  world.hub.connect();
  const [early, late] = [new AbortController(), new AbortController()];
  const one = failure(world.hub.publish('project:1', 'n', 1, { signal: early.signal }));
  const two = failure(world.hub.publish('project:1', 'n', 2, { signal: late.signal }));
  early.abort('changed my mind');
  assert.equal(await one, 'changed my mind');
  world.socket?.greet();
  await settled();
  world.socket.greet();
  const { id, data } = world.socket.take('publish');
  assert.equal(data.data, 2);
  late.abort();
  assert.equal((await two).name, 'AbortError');
  world.socket.say({ type: 'published', ref: id, data: {} });
  assert.equal((await failure(world.hub.publish('a:1', 'n', 3, { signal: AbortSignal.abort('too late') }))), 'too late');
  world.socket.hangUp();
  await world.comeBack();
  world.socket.greet();
  world.socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results: [] }, 'resumed');
  assert.deepEqual(world.socket.sent, [], 'what was given up is not repeated');
});

// ---- subscriptions ----

test('handlers by type say which types are wanted', async () => {
  const world = await World.connected();
  const got = [];
  const handler = (name) => (event) => got.push([name, event.type]);
  world.hub.subscribe('project:1', { b: handler('b'), a: handler('a') });
  await settled();
  assert.deepEqual(world.socket.subscribed('project:1'), { room: 'project:1', types: ['a', 'b'] });
  world.socket.event('project:1', 1, 'a');
  world.socket.event('project:1', 2, 'constructor');
  world.hub.subscribe('project:2', { a: handler('a'), '*': handler('*') });
  await settled();
  assert.deepEqual(world.socket.subscribed('project:2'), { room: 'project:2' });
  world.socket.event('project:2', 1, 'a');
  world.socket.event('project:2', 2, 'constructor');
  assert.deepEqual(got, [['a', 'a'], ['a', 'a'], ['*', 'constructor']]);
});

test('subscriptions to a room share one at the hub, which changes with them', async () => {
  const world = await World.connected();
  const all = [];
  const subscribe = (name, options) => world.hub.subscribe('project:1', ({ seq }) => all.push(`${name}${seq}`), options);
  const asked = async () => (await settled(), world.socket.subscribed('project:1'));
  const a = subscribe('a', { types: ['x'], filters: { n: 1 } });
  assert.deepEqual(await asked(), { room: 'project:1', types: ['x'], filters: { n: 1 } });
  await a.ready;
  const b = subscribe('b', { types: ['y'], filters: { n: { min: 2 } } });
  assert.deepEqual(await asked(), { room: 'project:1', types: ['x', 'y'], filters: { any: [{ n: 1 }, { n: { min: 2 } }] } });
  await b.ready;
  const c = subscribe('c', { types: ['y'], filters: { n: 1 } });
  await c.ready;
  assert.deepEqual(world.socket.sent, [], 'it is in what is chosen already');
  const d = subscribe('d');
  assert.deepEqual(await asked(), { room: 'project:1' });
  await d.ready;
  world.socket.event('project:1', 1, 'x', { n: 1 });
  world.socket.event('project:1', 2, 'y', { n: 1 });
  world.socket.event('project:1', 3, 'y', { n: 5 });
  world.socket.event('project:1', 4, 'z', { n: 5 });
  assert.deepEqual(all, ['a1', 'd1', 'c2', 'd2', 'b3', 'd3', 'd4']);
  d.unsubscribe();
  assert.deepEqual(await asked(), { room: 'project:1', types: ['x', 'y'], filters: { any: [{ n: 1 }, { n: { min: 2 } }] } });
  for (const one of [a, b]) one.unsubscribe();
  assert.deepEqual(await asked(), { room: 'project:1', types: ['y'], filters: { n: 1 } });
  c.unsubscribe();
  c.unsubscribe();
  await settled();
  assert.deepEqual(world.socket.answer('unsubscribe', { room: 'project:1' }), { room: 'project:1' });
  world.socket.event('project:1', 5, 'y', { n: 1 });
  assert.equal(all.length, 7, 'what was on its way comes to nobody');
  subscribe('e');
  assert.deepEqual(await asked(), { room: 'project:1' });
});

test('changes while the hub has not answered are made one after the other', async () => {
  const world = await World.connected();
  const first = world.hub.subscribe('project:1', () => {}, { types: ['a'] });
  await settled();
  world.hub.subscribe('project:1', () => {}, { types: ['b'] });
  first.unsubscribe();
  await settled();
  assert.equal(world.socket.sent.length, 1);
  assert.deepEqual(world.socket.subscribed('project:1').types, ['a']);
  assert.deepEqual(world.socket.subscribed('project:1').types, ['b']);
  assert.equal((await failure(first.ready)).code, 'unsubscribed');
});

test('rooms that are alike go into one command', async () => {
  const world = new World();
  const live = [];
  for (let n = 1; n <= 3; n++) world.hub.subscribe(`project:${n}`, ({ seq }) => live.push(seq));
  const lone = world.hub.subscribe('project:4', () => {}, { since: { last: 3 } });
  world.hub.connect();
  await settled();
  world.socket.greet();
  assert.deepEqual(world.socket.sent.map(({ data }) => data), [
    { rooms: ['project:1', 'project:2', 'project:3'] },
    { room: 'project:4', since: { last: 3 } },
  ]);
  const [many] = world.socket.sent;
  world.socket.event('project:1', 8);
  const results = [standing('project:3', { seq: 1 }), { room: 'project:2', error: { code: 'forbidden', message: 'no' } }, standing('project:1', { seq: 7 })];
  world.socket.say({ type: 'subscribed', ref: many.id, data: { results } });
  world.socket.event('project:1', 9);
  assert.deepEqual(live, [8, 9], 'what came ahead of the answer comes behind it');
  world.socket.sent.shift();
  world.socket.subscribed('project:4', { seq: 10, replayed: 2 });
  assert.deepEqual(await lone.ready, standing('project:4', { seq: 10, replayed: 2 }));
});

test('a subscription that was refused says why, and is over', async () => {
  const world = await World.connected();
  const ends = [];
  const subscription = world.hub.subscribe('admin:1', () => {});
  subscription.on('end', (error) => ends.push(error.code));
  await settled();
  world.socket.refuse('subscribe', 'forbidden');
  const error = await failure(subscription.ready);
  assert.ok(error instanceof Refused);
  assert.deepEqual([error.code, ends, subscription.active], ['forbidden', ['forbidden'], false]);
  assert.deepEqual(world.socket.sent, []);
});

test('a filter that is none spoils nothing for others', async () => {
  const world = await World.connected();
  const { subscription, got } = await world.subscribe('project:1', { types: ['a'], filters: { n: 1 } });
  const bad = world.hub.subscribe('project:1', () => {}, { types: ['a'], filters: { n: [] } });
  await settled();
  world.socket.refuse('subscribe', 'bad_filter');
  assert.equal((await failure(bad.ready)).code, 'bad_filter');
  assert.deepEqual(world.socket.subscribed('project:1', { seq: 3 }), { room: 'project:1', types: ['a'], filters: { n: 1 } });
  world.socket.event('project:1', 4, 'a', { n: 1 });
  assert.deepEqual([got, subscription.active], [[4], true]);
  const good = world.hub.subscribe('project:2', () => {});
  const worse = world.hub.subscribe('project:2', () => {}, { types: ['x'], filters: { n: [] } });
  await settled();
  world.socket.subscribed('project:2');
  await Promise.all([good.ready, worse.ready]);
});

test('what the hub can not do right now is asked for again', async () => {
  const world = await World.connected();
  const subscription = world.hub.subscribe('project:1', () => {});
  await settled();
  world.socket.refuse('subscribe', 'unavailable');
  await world.pass(1499);
  assert.deepEqual(world.socket.sent, []);
  await world.pass(1);
  world.socket.subscribed('project:1');
  await subscription.ready;
});

test('a permission that is withdrawn ends the subscriptions of the room', async () => {
  const world = await World.connected();
  const { subscription } = await world.subscribe('project:1');
  const ends = [];
  subscription.on('end', (error) => ends.push([error.constructor, error.code]));
  world.socket.say({ type: 'unsubscribed', data: { room: 'project:1', reason: 'forbidden' } });
  assert.deepEqual([ends, subscription.active], [[[Refused, 'forbidden']], false]);
  world.socket.say({ type: 'error', data: { code: 'forbidden', message: 'no more', details: { room: 'project:1' } } });
  assert.equal(world.errors[0].details.room, 'project:1', 'what nobody asked for is told as an error');
});

test('a signal ends a subscription', async () => {
  const world = await World.connected();
  const controller = new AbortController();
  const { subscription } = await world.subscribe('project:1', { signal: controller.signal });
  controller.abort();
  assert.equal(subscription.active, false);
  await settled();
  world.socket.take('unsubscribe');
  const late = world.hub.subscribe('project:2', () => {}, { signal: AbortSignal.abort('over') });
  assert.equal(await failure(late.ready), 'over');
  assert.deepEqual(world.socket.sent, []);
});

test('past events that all want come with the subscription', async () => {
  const world = await World.connected();
  const got = [];
  for (const name of ['a', 'b']) world.hub.subscribe('project:1', ({ seq }) => got.push(name + seq), { since: { last: 2 } });
  await settled();
  assert.deepEqual(world.socket.subscribed('project:1', { seq: 9, replayed: 2 }), { room: 'project:1', since: { last: 2 } });
  for (const seq of [8, 9, 10]) world.socket.event('project:1', seq);
  assert.deepEqual(got, ['a8', 'b8', 'a9', 'b9', 'a10', 'b10']);
});

test('past events that one of several wants are read from the log, in order and before the live ones', async () => {
  const world = await World.connected();
  const { got: live } = await world.subscribe('project:1', {}, { seq: 5 });
  const got = [];
  const late = world.hub.subscribe('project:1', ({ seq }) => got.push(seq), { since: { seq: 1, epoch: 'e1' }, types: ['n'] });
  await settled();
  assert.deepEqual(world.socket.sent.map(({ type }) => type), ['history']);
  world.socket.event('project:1', 6);
  const event = (seq, type = 'n') => ({ type, room: 'project:1', seq, data: {} });
  const log = (events, more) => world.socket.answer('history', { room: 'project:1', events, seq: 6, epoch: 'e1', more });
  assert.deepEqual(log([event(3), event(4, 'other')], true), { room: 'project:1', since: { seq: 1, epoch: 'e1' }, limit: 1000 });
  await settled();
  assert.deepEqual(log([event(5), event(6)], false).since, { seq: 4, epoch: 'e1' });
  world.socket.event('project:1', 7);
  const answer = await late.ready;
  assert.deepEqual([answer.recovered, answer.missed, answer.replayed, answer.seq], [false, 1, 2, 5]);
  await settled();
  assert.deepEqual(got, [3, 5, 6, 7]);
  assert.deepEqual(live, [6, 7], 'the other one does not notice');
});

test('a log that is lost while its past is read is told, and what comes then is not mixed with it', async () => {
  const world = await World.connected();
  await world.subscribe('project:1', {}, { seq: 5 });
  const got = [];
  const late = world.hub.subscribe('project:1', ({ seq }) => got.push(seq), { since: { seq: 1 } });
  await settled();
  world.socket.take('history');
  const socket = await world.reconnect();
  socket.greet();
  socket.refuse('resume', 'not_found');
  socket.answer('history', { events: [{ type: 'n', room: 'project:1', seq: 2 }], seq: 2, epoch: 'e2', more: false });
  socket.subscribed('project:1', { seq: 2, epoch: 'e2', recovered: false, replayed: 2, missed: null });
  for (const seq of [1, 2, 3]) socket.event('project:1', seq);
  const { recovered, missed } = await late.ready;
  await settled();
  assert.deepEqual([recovered, missed, got], [false, null, [1, 2, 3]]);
});

test('a place in a log that is no more is answered with all of the one there is', async () => {
  const world = await World.connected();
  await world.subscribe('project:1', {}, { seq: 2 });
  const got = [];
  const late = world.hub.subscribe('project:1', ({ seq }) => got.push(seq), { since: { seq: 70, epoch: 'old' } });
  await settled();
  const event = (seq) => ({ type: 'n', room: 'project:1', seq });
  assert.deepEqual(world.socket.answer('history', { events: [event(1), event(2)], seq: 2, epoch: 'e1', more: false }).since, { seq: 0 });
  const { recovered, missed, replayed } = await late.ready;
  await settled();
  assert.deepEqual([recovered, missed, replayed, got], [false, null, 2, [1, 2]]);
});

test('events of rooms that were joined without asking are told, until somebody subscribes', async () => {
  const world = await World.connected({}, { rooms: ['user:ann', 'global'] });
  world.socket.event('user:ann', 12);
  assert.deepEqual(world.socket.take('subscribe').data, { rooms: ['user:ann', 'global'] }, 'to know where they stand');
  world.socket.say({ type: 'subscribed', ref: 1, data: { results: [standing('user:ann', { seq: 11 }), standing('global', { seq: 3 })] } });
  world.socket.event('user:ann', 13);
  world.socket.event('global', 4);
  assert.deepEqual(world.events.map(({ room, seq }) => room + seq), ['user:ann12', 'user:ann13', 'global4']);
  const got = [];
  const subscription = world.hub.subscribe('global', ({ seq }) => got.push(seq), { types: ['a'] });
  await settled();
  world.socket.subscribed('global', { seq: 4 });
  world.socket.event('global', 5, 'a');
  world.socket.event('user:ann', 14);
  assert.deepEqual([got, world.events.length], [[5], 4]);
  subscription.unsubscribe();
  await settled();
  assert.deepEqual(world.socket.subscribed('global'), { room: 'global' }, 'one is still in it');
  world.socket.event('global', 6);
  assert.equal(world.events.length, 5);
});

test('a hub that does not say where those rooms stand is not asked again', async () => {
  const world = await World.connected({}, { rooms: ['user:ann'] });
  world.socket.refuse('subscribe', 'forbidden');
  await world.pass(10_000);
  assert.deepEqual(world.socket.sent, []);
  world.socket.event('user:ann', 1);
  assert.equal(world.events.length, 1);
  const { data } = { data: await world.resume([standing('user:ann', { seq: 1 })]) };
  assert.deepEqual(data.cursors, { 'user:ann': { seq: 1 } });
});

test('a handler that fails is told of and stops nobody', async () => {
  const world = await World.connected();
  const got = [];
  world.hub.subscribe('project:1', () => {
    throw new Error('one');
  });
  world.hub.subscribe('project:1', async () => {
    throw new Error('two');
  });
  world.hub.subscribe('project:1', ({ seq }) => got.push(seq));
  await settled();
  world.socket.subscribed('project:1');
  world.socket.event('project:1', 1);
  await settled();
  assert.deepEqual([got, world.errors.map(({ message }) => message)], [[1], ['one', 'two']]);
});

test('who subscribes and then publishes gets it: the one is sent before the other', async () => {
  const world = await World.connected();
  world.hub.subscribe('project:1', () => {});
  world.hub.publish('project:1', 'n');
  assert.deepEqual(world.socket.sent.map(({ type }) => type), ['subscribe', 'publish']);
});

// ---- going on where it was ----

test('a session goes on behind the last event of each room, and nothing comes twice', async () => {
  const world = await World.connected({}, { rooms: ['user:ann'] });
  world.socket.answer('subscribe', standing('user:ann', { seq: 2, epoch: 'u' }));
  const { subscription, got } = await world.subscribe('project:1', {}, { seq: 10 });
  const back = [];
  subscription.on('recovered', (how) => back.push(how));
  world.socket.event('project:1', 11);
  assert.deepEqual(subscription.position, { seq: 11, epoch: 'e1' });
  const socket = await world.reconnect();
  socket.greet({ rooms: ['user:ann', 'session:s2'] });
  socket.event('user:ann', 5);
  assert.equal(world.hub.state, 'connecting', 'it is not back before the session is');
  const asked = socket.answer(
    'resume',
    {
      session_id: 's1',
      resume: { token: 'another' },
      locks: [],
      results: [standing('user:ann', { seq: 5, epoch: 'u', replayed: 3 }), standing('session:s1'), standing('project:1', { seq: 13, replayed: 2 })],
    },
    'resumed',
  );
  const cursors = { 'user:ann': { seq: 2, epoch: 'u' }, 'project:1': { seq: 11, epoch: 'e1' } };
  assert.deepEqual(asked, { session_id: 's1', token: 'resume 1', cursors });
  assert.equal(world.hub.state, 'connected');
  const { session_id, resumed, client_id, resume } = world.hub.session;
  assert.deepEqual([session_id, resumed, client_id, resume.token], ['s1', true, 'c2', 'another']);
  for (const seq of [3, 4, 5]) socket.event('user:ann', seq);
  for (const seq of [12, 13, 13, 12, 14]) socket.event('project:1', seq);
  assert.deepEqual(world.events.map(({ seq }) => seq), [3, 4, 5]);
  assert.deepEqual(got, [11, 12, 13, 14]);
  assert.deepEqual(back, [standing('project:1', { seq: 13, replayed: 2 })]);
  assert.deepEqual(socket.sent, []);
});

test('live events that come ahead of the answer for several rooms are not lost', async () => {
  const world = await World.connected();
  const quiet = await world.subscribe('project:1', {}, { seq: 10 });
  const busy = await world.subscribe('project:2', {}, { seq: 10 });
  const socket = await world.reconnect();
  socket.greet();
  socket.event('project:1', 11);
  socket.event('project:1', 12);
  socket.event('project:2', 12);
  const results = [standing('project:1', { seq: 10 }), standing('project:2', { seq: 12, replayed: 2 })];
  socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results }, 'resumed');
  for (const seq of [11, 12, 13]) socket.event('project:2', seq);
  socket.event('project:1', 13);
  assert.deepEqual([quiet.got, busy.got], [[11, 12, 13], [11, 12, 13]]);
});

test('a connection that is lost while the session is taken up does not lose the session', async () => {
  const world = await World.connected();
  const socket = await world.reconnect();
  socket.greet();
  socket.take('resume');
  const next = await world.reconnect();
  next.greet();
  assert.deepEqual([next.take('resume').data.session_id], ['s1']);
  const busy = await world.reconnect();
  busy.greet();
  busy.refuse('resume', 'unavailable');
  assert.equal(world.hub.state, 'waiting');
  await world.comeBack();
  world.socket.greet();
  assert.deepEqual([world.socket.take('resume').data.session_id], ['s1']);
  await world.pass(10_000);
  assert.equal(world.hub.state === 'connected', false, 'a hub that says nothing is left');
});

test('where the session is gone, rooms are subscribed to from where they were', async () => {
  const world = await World.connected({}, { rooms: ['user:ann', 'session:s1'] });
  world.socket.answer('subscribe', { results: [standing('user:ann', { seq: 2, epoch: 'u' }), standing('session:s1')] });
  const one = await world.subscribe('project:1', { types: ['n'] }, { seq: 10 });
  const other = await world.subscribe('project:2', {}, { seq: 4 });
  const back = [];
  one.subscription.on('recovered', (how) => back.push(how));
  const socket = await world.reconnect();
  const late = world.hub.subscribe('project:2', () => {});
  socket.greet({ rooms: ['user:ann', 'session:s2'] });
  socket.refuse('resume', 'not_found');
  assert.equal(world.hub.state, 'connected');
  assert.deepEqual([world.hub.session.session_id, world.hub.session.resumed], ['s2', false]);
  socket.event('user:ann', 4);
  const asked = socket.sent.map(({ data }) => data);
  assert.deepEqual(asked, [
    { room: 'user:ann', since: { seq: 2, epoch: 'u' } },
    { room: 'project:1', types: ['n'], since: { seq: 10, epoch: 'e1' } },
    { room: 'project:2', since: { seq: 4, epoch: 'e1' } },
    { room: 'session:s2' },
  ]);
  socket.subscribed('user:ann', { seq: 4, epoch: 'u', replayed: 2 });
  socket.event('user:ann', 3);
  socket.event('user:ann', 4);
  assert.deepEqual(world.events.map(({ seq }) => seq), [3, 4], 'what came before the answer comes once, in its place');
  const missed = standing('project:1', { seq: 90, recovered: false, replayed: 1, missed: 79 });
  socket.subscribed('project:1', missed);
  socket.event('project:1', 90);
  assert.deepEqual([one.got, back], [[90], [missed]]);
  const lost = standing('project:2', { seq: 2, epoch: 'e2', recovered: false, replayed: 2, missed: null });
  socket.subscribed('project:2', lost);
  for (const seq of [1, 2, 3]) socket.event('project:2', seq);
  assert.deepEqual(other.got, [1, 2, 3], 'another log is read from its beginning');
  assert.deepEqual(other.subscription.position, { seq: 3, epoch: 'e2' });
  assert.equal((await late.ready).seq, 2);
});

test('a log that went back is read from its beginning', async () => {
  const world = await World.connected();
  const { got } = await world.subscribe('project:1', {}, { seq: 100 });
  await world.resume([standing('project:1', { seq: 7, recovered: false, replayed: 1, missed: null })]);
  world.socket.event('project:1', 7);
  world.socket.event('project:1', 8);
  assert.deepEqual(got, [7, 8]);
});

test('with filters, a cursor moves on though nothing was wanted', async () => {
  const world = await World.connected();
  const { subscription } = await world.subscribe('project:1', { types: ['rare'] }, { seq: 10 });
  await world.resume([standing('project:1', { seq: 500 })]);
  assert.equal(subscription.position.seq, 500);
});

test('subscriptions that were made or ended while away are brought in order', async () => {
  const world = await World.connected();
  const gone = await world.subscribe('project:1');
  const stays = await world.subscribe('project:2', { types: ['a'] }, { seq: 3 });
  const socket = await world.reconnect();
  gone.subscription.unsubscribe();
  const got = [];
  const late = world.hub.subscribe('project:2', ({ seq }) => got.push(seq), { types: ['a', 'b'] });
  const fresh = world.hub.subscribe('project:3', () => {}, { since: { last: 1 } });
  socket.greet();
  const results = [standing('project:1', { seq: 5, replayed: 5 }), standing('project:2', { seq: 5, replayed: 2 })];
  socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results }, 'resumed');
  assert.deepEqual(socket.sent.map(({ type, data }) => [type, data]), [
    ['unsubscribe', { room: 'project:1' }],
    ['subscribe', { room: 'project:2', types: ['a', 'b'] }],
    ['subscribe', { room: 'project:3', since: { last: 1 } }],
  ]);
  socket.event('project:2', 4, 'a');
  socket.event('project:2', 5, 'a');
  socket.answer('unsubscribe', { room: 'project:1' });
  socket.subscribed('project:2', { seq: 6 });
  socket.event('project:2', 7, 'b');
  socket.subscribed('project:3', { seq: 1, replayed: 1 });
  await Promise.all([late.ready, fresh.ready]);
  assert.deepEqual([stays.got, got], [[4, 5], [7]], 'what came before it was subscribed to is not its');
});

test('a subscribe whose answer was lost is asked for again', async () => {
  const world = await World.connected();
  const { got } = await world.subscribe('project:1', { types: ['a'] }, { seq: 3 });
  const wider = world.hub.subscribe('project:1', () => {});
  const first = world.hub.subscribe('project:2', () => {}, { since: { last: 5 } });
  await settled();
  await world.resume([standing('project:1', { seq: 3 }), standing('project:2', { seq: 9 })]);
  assert.deepEqual(world.socket.sent.map(({ data }) => data), [{ room: 'project:1' }, { room: 'project:2', since: { last: 5 } }]);
  world.socket.subscribed('project:1', { seq: 3 });
  world.socket.subscribed('project:2', { seq: 9, replayed: 5 });
  await Promise.all([wider.ready, first.ready]);
  world.socket.event('project:1', 4, 'a');
  assert.deepEqual(got, [4]);
});

test('a room that may not be entered any more ends its subscriptions', async () => {
  const world = await World.connected();
  const { subscription } = await world.subscribe('project:1');
  const ends = [];
  subscription.on('end', ({ code }) => ends.push(code));
  await world.resume([{ room: 'project:1', error: { code: 'forbidden', message: 'no' } }]);
  assert.deepEqual([ends, subscription.active, world.socket.sent], [['forbidden'], false, []]);
});

test('a gap is told to the room it is in, and is not asked for again', async () => {
  const world = await World.connected();
  const { subscription, got } = await world.subscribe('project:1');
  const gaps = [];
  subscription.on('gap', (gap) => gaps.push(['room', gap.to_seq]));
  world.hub.on('gap', (gap) => gaps.push(['hub', gap.to_seq]));
  world.socket.event('project:1', 1);
  world.socket.say({ type: 'gap', data: { room: 'project:1', from_seq: 2, to_seq: 40, reason: 'history' } });
  world.socket.event('project:1', 41);
  assert.deepEqual([gaps, got], [[['hub', 40], ['room', 40]], [1, 41]]);
  world.socket.say({ type: 'gap', data: { room: 'project:1', from_seq: 42, to_seq: 50, reason: 'latest' } });
  assert.deepEqual((await world.resume([standing('project:1', { seq: 50 })])).cursors['project:1'].seq, 50);
});

test('numbers begin anew where a gap tells that the log is another one', async () => {
  const world = await World.connected();
  const { got } = await world.subscribe('project:1');
  for (const seq of [1, 2, 3]) world.socket.event('project:1', seq);
  world.socket.say({ type: 'gap', data: { room: 'project:1', from_seq: 1, to_seq: 0, reason: 'epoch', epoch: 'other' } });
  for (const seq of [1, 2]) world.socket.event('project:1', seq);
  assert.deepEqual(got, [1, 2, 3, 1, 2]);
  const resumed = await world.resume([standing('project:1', { seq: 2, epoch: 'other' })]);
  assert.deepEqual(resumed.cursors['project:1'], { seq: 2, epoch: 'other' });
});

test('an event that its publisher did not want back is not brought by a replay either', async () => {
  const world = await World.connected();
  const { got } = await world.subscribe('project:1');
  const published = world.hub.publish('project:1', 'n', {}, { echo: false });
  world.socket.answer('publish', { id: 'project:1#1', seq: 1 });
  await published;
  await world.resume([standing('project:1', { seq: 2, replayed: 2 })]);
  world.socket.event('project:1', 1);
  world.socket.event('project:1', 2);
  assert.deepEqual(got, [2]);
});

test('what is handled is acknowledged, once it is', async () => {
  const world = await World.connected();
  const slow = [];
  world.hub.subscribe('project:1', () => new Promise((resolve) => slow.push(resolve)), { ack: true });
  world.hub.subscribe('project:2', () => {}, { ack: true });
  world.hub.subscribe('project:3', () => {});
  await settled();
  world.socket.answer('subscribe', { results: [1, 2, 3].map((n) => standing(`project:${n}`)) });
  for (const room of ['project:1', 'project:2', 'project:3']) for (const seq of [1, 2, 3]) world.socket.event(room, seq);
  await world.pass(500);
  assert.deepEqual(world.socket.answer('ack', {}), { room: 'project:2', seq: 3 });
  slow[1]();
  await world.pass(500);
  assert.deepEqual(world.socket.sent, [], 'the first one is still at work');
  slow[0]();
  await world.pass(500);
  assert.deepEqual(world.socket.take('ack').data, { room: 'project:1', seq: 2 });
  assert.equal(world.socket.sent.length, 0);
});

// ---- from within ----

test('a handler may close the connection, whenever it is called', async () => {
  for (const when of ['recovered', 'event', 'lost', 'connecting', 'connected']) {
    const world = await World.connected();
    const room = await world.subscribe('project:1');
    await world.subscribe('project:2');
    const { lock } = await locked(world);
    room.subscription.on('recovered', () => when === 'recovered' && world.hub.close());
    world.hub.subscribe('project:1', () => when === 'event' && world.hub.close());
    lock.on('lost', () => when === 'lost' && world.hub.close());
    await settled();
    world.hub.on('state', ({ state }) => state === when && world.hub.close());
    world.socket.hangUp();
    await world.comeBack();
    const { socket } = world;
    if (when !== 'connecting') {
      socket.greet();
      socket.event('project:1', 1);
      const results = [standing('project:1'), standing('project:2')];
      socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results }, 'resumed');
    }
    await settled();
    assert.deepEqual([world.hub.state, world.sockets.length], ['closed', when === 'connecting' ? 1 : 2], when);
    assert.ok(socket.closed);
    assert.deepEqual(world.errors, []);
    if (when === 'connecting' || when === 'connected') continue;
    world.hub.connect();
    await settled();
    world.socket.greet();
    world.socket.refuse('resume', 'not_found');
    const asked = world.socket.sent.map(({ data }) => data.room);
    assert.deepEqual(asked, ['project:1', 'project:2'], `${when}: everything comes back when it is opened again`);
  }
});

test('whoever is told that it is closed may open it again', async () => {
  const world = await World.connected();
  let back;
  world.hub.on('state', ({ state }) => state === 'closed' && (back = world.hub.connect()));
  world.socket.hangUp(4500);
  await settled();
  world.socket.greet();
  world.socket.refuse('resume', 'not_found');
  assert.equal((await back).session_id, 's2');
});

// ---- history ----

test('history is read page by page, as far as somebody reads', async () => {
  const world = await World.connected();
  const event = (seq) => ({ type: 'n', room: 'project:1', seq });
  const walk = world.hub.history('project:1', { since: { seconds: 60 }, page: 2, limit: 5 });
  const got = [];
  const reading = (async () => {
    for await (const { seq } of walk) got.push(seq);
  })();
  const answer = async (events, more, epoch = 'e1') => {
    await settled();
    return world.socket.answer('history', { events: events.map(event), more, epoch, seq: 9 });
  };
  assert.deepEqual(await answer([1, 2], true), { room: 'project:1', since: { seconds: 60 }, reverse: false, limit: 2 });
  assert.deepEqual(await answer([3, 4], true), { room: 'project:1', since: { seq: 2, epoch: 'e1' }, reverse: false, limit: 2 });
  assert.equal((await answer([5], true)).limit, 1);
  await reading;
  assert.deepEqual([got, world.socket.sent], [[1, 2, 3, 4, 5], []]);
  const back = world.hub.history('project:1', { reverse: true, page: 1 });
  const first = back.next();
  assert.equal((await answer([9], true)).reverse, true);
  assert.equal((await first).value.seq, 9);
  const next = failure(back.next());
  assert.deepEqual((await answer([8], true, 'e2')).since, { seq: 9, epoch: 'e1' });
  assert.equal((await next).code, 'conflict');
});

// ---- locks ----

const granted = (token = 7) => ({ room: 'quote:1', field: 'premium', token, expires_at: '2026-07-01T09:00:30.000Z' });

async function locked(world, options) {
  const pending = world.hub.lock('quote:1', 'premium', options);
  world.socket.answer('lock.acquire', granted(), 'lock.acquired');
  const lock = await pending;
  const lost = [];
  lock.on('lost', ({ reason }) => lost.push(reason));
  return { lock, lost };
}

test('a lock is renewed until it is released', async () => {
  const world = await World.connected();
  const pending = world.hub.lock('quote:1', 'premium', { ttl_s: 60 });
  assert.deepEqual(world.socket.answer('lock.acquire', granted(), 'lock.acquired'), { room: 'quote:1', field: 'premium', ttl_s: 60 });
  const lock = await pending;
  assert.deepEqual([lock.token, lock.held, lock.room, lock.field], [7, true, 'quote:1', 'premium']);
  for (let n = 0; n < 10; n++) {
    await world.pass(20_000);
    assert.deepEqual(world.socket.answer('lock.renew', { ...granted(), expires_at: `later ${n}` }, 'lock.renewed'), {
      room: 'quote:1', field: 'premium', token: 7, ttl_s: 60,
    });
  }
  assert.equal(lock.expires_at, 'later 9');
  const released = lock.release();
  assert.deepEqual(world.socket.answer('lock.release', {}, 'lock.released'), { room: 'quote:1', field: 'premium', token: 7 });
  await released;
  assert.equal(lock.held, false);
  await lock.release();
  world.socket.sent = [];
  await world.pass(25_000);
  assert.deepEqual(world.socket.sent, []);
});

test('a lock is lost when the hub says so, whichever way', async () => {
  for (const [how, expected] of [
    [async (world) => (await world.pass(10_000), world.socket.refuse('lock.renew', 'lock_lost')), 'lock_lost'],
    [async (world) => (await world.pass(10_000), world.socket.refuse('lock.renew', 'forbidden')), 'forbidden'],
    [async (world) => {
      await world.subscribe('quote:1');
      world.socket.event('quote:1', 1, 'lock.released', { field: 'premium', token: 6, reason: 'old' });
      world.socket.event('quote:1', 2, 'lock.released', { field: 'premium', token: 7, reason: 'forced' });
    }, 'forced'],
    [async (world) => {
      const details = { room: 'quote:1', field: 'premium', token: 7 };
      world.socket.say({ type: 'error', data: { code: 'lock_lost', message: 'an operator has freed this lock', details } });
      assert.deepEqual(world.errors, []);
    }, 'forced'],
    [async (world) => world.resume(), 'session_ended'],
    [async (world) => {
      (await world.reconnect()).greet();
      world.socket.refuse('resume', 'not_found');
    }, 'session_ended'],
  ]) {
    const world = await World.connected({ reconnect_max_ms: 100 });
    const { lock, lost } = await locked(world, { ttl_s: 30 });
    await how(world);
    assert.deepEqual([lost, lock.held], [[expected], false]);
    await lock.release();
    assert.ok(!world.socket.sent.some(({ type }) => type === 'lock.release'), 'nothing is left to give back');
  }
});

test('a lock whose renewal does not come through is given up before the hub gives it to others', async () => {
  const world = await World.connected({ reconnect_min_ms: 1_000_000, reconnect_max_ms: 1_000_000 });
  const { lock, lost } = await locked(world, { ttl_s: 30 });
  await world.pass(10_000);
  world.socket.answer('lock.renew', granted(), 'lock.renewed');
  await world.pass(5000);
  world.socket.hangUp();
  await world.pass(24_999);
  assert.equal(lock.held, true);
  await world.pass(1);
  assert.deepEqual([lost, lock.held], [['expired'], false]);
});

test('a lock outlives a reconnect with its session, and is renewed at once', async () => {
  const world = await World.connected();
  const { lock, lost } = await locked(world, { ttl_s: 30 });
  await world.resume([], { locks: [{ room: 'quote:1', field: 'premium', token: 7, expires_at: '…' }] });
  world.socket.answer('lock.renew', granted(), 'lock.renewed');
  assert.deepEqual([lost, lock.held], [[], true]);
});

test('a lock that somebody else has is waited for as long as is wanted', async () => {
  const world = await World.connected();
  const holder = { client_id: 'c', session_id: 's', user_id: 'bob' };
  const refuse = () => world.socket.refuse('lock.acquire', 'lock_held', { details: { holder } });
  const never = failure(world.hub.lock('quote:1', 'premium'));
  refuse();
  assert.deepEqual((await never).details.holder, holder);
  const patient = world.hub.lock('quote:1', 'premium', { wait_ms: 5000 });
  refuse();
  await world.pass(1000);
  refuse();
  await world.pass(1000);
  world.socket.answer('lock.acquire', granted(8), 'lock.acquired');
  assert.equal((await patient).token, 8);
  const impatient = failure(world.hub.lock('quote:1', 'other', { wait_ms: 1500 }));
  for (const ms of [1000, 500]) {
    refuse();
    await world.pass(ms);
  }
  refuse();
  assert.equal((await impatient).code, 'lock_held');
  const controller = new AbortController();
  const aborted = failure(world.hub.lock('quote:1', 'other', { wait_ms: 5000, signal: controller.signal }));
  refuse();
  await settled();
  controller.abort('enough');
  assert.equal(await aborted, 'enough');
});

test('a lock that is granted to somebody who has given up is given back', async () => {
  const world = await World.connected();
  const controller = new AbortController();
  const given_up = failure(world.hub.lock('quote:1', 'premium', { signal: controller.signal }));
  const { id } = world.socket.take('lock.acquire');
  controller.abort();
  await given_up;
  world.socket.say({ type: 'lock.acquired', ref: id, data: granted() });
  assert.equal(world.socket.take('lock.release').data.token, 7);
});

test('a lock that was asked for, and given up while it was away, is given back as well', async () => {
  const world = await World.connected();
  const controller = new AbortController();
  const given_up = failure(world.hub.lock('quote:1', 'premium', { signal: controller.signal }));
  world.socket.take('lock.acquire');
  world.socket.hangUp();
  controller.abort();
  await given_up;
  await world.comeBack();
  world.socket.greet();
  world.socket.answer('resume', { session_id: 's1', resume: {}, locks: [], results: [] }, 'resumed');
  world.socket.answer('lock.acquire', granted(), 'lock.acquired');
  assert.equal(world.socket.take('lock.release').data.token, 7);
});

test('a field is given back when nobody here wants it any more', async () => {
  const world = await World.connected();
  const { lock: first } = await locked(world);
  const { lock: second } = await locked(world);
  await first.release();
  assert.deepEqual([world.socket.sent, second.held], [[], true], 'the hub has one lock for both');
  const third = world.hub.lock('quote:1', 'premium');
  await second.release();
  assert.deepEqual(world.socket.sent.map(({ type }) => type), ['lock.acquire'], 'one more is on its way');
  world.socket.answer('lock.acquire', granted(), 'lock.acquired');
  (await third).release();
  world.socket.take('lock.release');
});

test('close gives locks back', async () => {
  const world = await World.connected();
  const { lock, lost } = await locked(world);
  world.hub.close();
  world.socket.take('lock.release');
  assert.deepEqual([lock.held, lost], [false, []]);
});

// ---- presence ----

test('a view of a room changes with those who come and go', async () => {
  const world = await World.connected();
  const member = (name) => ({ session_id: name, client_id: `c-${name}`, user_id: name, metadata: {}, joined_at: '' });
  const seen = [];
  const view = world.hub.watchPresence('project:1', ({ count, members }) => seen.push([count, members.map(({ user_id }) => user_id).join()]));
  await settled();
  assert.deepEqual(world.socket.subscribed('project:1', { seq: 4 }).types, ['presence.joined', 'presence.left']);
  await settled();
  world.socket.event('project:1', 5, 'presence.joined', member('bob'));
  world.socket.event('project:1', 6, 'presence.joined', member('cid'));
  const told = { room: 'project:1', seq: 5, count: 2, members: [member('ann'), member('bob')], more: false };
  assert.deepEqual(world.socket.answer('presence', told), { room: 'project:1' });
  await view.ready;
  world.socket.event('project:1', 7, 'presence.left', member('ann'));
  world.socket.event('project:1', 8, 'presence.joined', { ...member('bob'), metadata: { tab: 2 } });
  assert.deepEqual(seen, [[3, 'ann,bob,cid'], [2, 'bob,cid'], [2, 'bob,cid']]);
  world.socket.say({ type: 'gap', data: { room: 'project:1', from_seq: 9, to_seq: 20, reason: 'history' } });
  await settled();
  world.socket.answer('presence', { ...told, seq: 20, count: 1, members: [member('dan')] });
  await settled();
  assert.deepEqual(seen.at(-1), [1, 'dan']);
  await world.resume([standing('project:1', { seq: 90, recovered: false, missed: 70 })]);
  world.socket.answer('presence', { ...told, seq: 90, count: 0, members: [] });
  await settled();
  assert.deepEqual([view.count, view.members], [0, []]);
  view.close();
  await settled();
  world.socket.take('unsubscribe');
});

test('a view of a room that tells nothing asks now and then', async () => {
  const world = await World.connected();
  const view = world.hub.watchPresence('project:1', undefined, { poll_s: 15 });
  await settled();
  world.socket.subscribed('project:1');
  await settled();
  const answer = { room: 'project:1', seq: 0, members: [], more: false };
  world.socket.answer('presence', { ...answer, count: 3 });
  await view.ready;
  assert.equal(view.count, 3);
  await world.pass(15_000);
  world.socket.answer('presence', { ...answer, count: 4 });
  await settled();
  assert.equal(view.count, 4);
  view.close();
  await settled();
  world.socket.answer('unsubscribe', {});
  await world.pass(20_000);
  assert.deepEqual(world.socket.sent, []);
  const refused = world.hub.watchPresence('admin:1');
  await settled();
  world.socket.refuse('subscribe', 'forbidden');
  assert.equal((await failure(refused.ready)).code, 'forbidden');
});
