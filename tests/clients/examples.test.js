// The examples that are backends and agents do what they say, also when the network does not.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test as declare } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Publisher } from '../examples/publisher.mjs';
import { Hub, token, until } from './hub.js';
import { LossyProxy, seeded } from './lossy.js';

const test = (name, run) => declare(name, { timeout: 60_000 }, run);
const path = (name) => fileURLToPath(new URL(`../examples/${name}`, import.meta.url));
const PYTHON = process.env.PYTHON ?? 'python3';
let hub, proxy;

before(async () => {
  hub = await Hub.start();
  proxy = await LossyProxy.start(hub.port);
});
after(async () => {
  proxy.stop();
  await hub.stop();
});

/** Runs an example through the proxy; `lines` has what it has printed so far. */
function run(command, ...args) {
  const environment = { ...process.env, RINGHUB_URL: `http://127.0.0.1:${proxy.port}`, RINGHUB_TOKEN: token() };
  const program = spawn(command, args, { env: environment, stdio: ['pipe', 'pipe', 'pipe'] });
  program.text = program.errors = '';
  program.stdout.on('data', (bytes) => (program.text += bytes));
  program.stderr.on('data', (bytes) => (program.errors += bytes));
  program.lines = () => program.text.split('\n').slice(0, -1);
  program.ended = once(program, 'exit').then(([status]) => status);
  return program;
}

const history = async (room) => (await hub.api('GET', `/api/v1/rooms/${encodeURIComponent(room)}/history?limit=1000`)).events;
const range = (count) => Array.from({ length: count }, (_, n) => n);

for (const [name, command] of [['publisher.py', PYTHON], ['publisher.mjs', process.execPath]]) {
  test(`${name} publishes each line once, however often it has to be sent`, async () => {
    const room = `project:${name}`;
    const program = run(command, path(name), room, 'project.updated');
    const random = seeded(7);
    for (const n of range(40)) {
      program.stdin.write(`${JSON.stringify({ n })}\n`);
      // The hub gets some of them, and the publisher hears nothing of it.
      if (n % 4 === 1) await until(() => proxy.pairs.size > 0 || program.lines().length > n, 'it is at work');
      if (n % 4 === 1) random() < 0.5 ? proxy.cutAnswers() : proxy.cut();
      await until(() => program.lines().length > n, () => `line ${n}: ${program.errors}`);
    }
    program.stdin.end();
    assert.equal(await program.ended, 0, program.errors);
    assert.deepEqual((await history(room)).map(({ type, data }) => [type, data.n]), range(40).map((n) => ['project.updated', n]));
    assert.deepEqual(program.lines().map((line) => JSON.parse(line).seq), range(40).map((n) => n + 1));
  });

  test(`${name} says what the hub refuses, and does not try again`, async () => {
    const program = run(command, path(name), 'admin:x', 'project.updated');
    program.stdin.end('{}\n');
    assert.notEqual(await program.ended, 0);
    assert.match(program.errors, /403 .*forbidden/);
  });
}

test('publisher.mjs is a module too, with keys of one\'s own', async () => {
  const publisher = new Publisher({ url: hub.http, token: token() });
  const first = await publisher.publish('project:own', 'note.added', { n: 1 }, { key: 'order-7-paid' });
  const again = await publisher.publish('project:own', 'note.added', { n: 1 }, { key: 'order-7-paid' });
  assert.deepEqual([first.duplicate, again.duplicate, again.seq], [false, true, first.seq]);
});

test('publisher.mjs waits for a hub that is about to come back', async () => {
  const own = await Hub.start();
  const publisher = new Publisher({ url: own.http, token: token() });
  await own.stop();
  const published = publisher.publish('project:patient', 'note.added', {});
  await own.again();
  assert.equal((await published).seq, 1);
  await own.stop();
});

test('agent.py tells every step once and in order, over several connections', async () => {
  const steady = run(PYTHON, path('agent.py'), 'steady', '0');
  assert.equal(await steady.ended, 0, steady.errors);
  const expected = (await history('agent:steady')).map(({ type, data }) => ({ type, data: { ...data, agent_id: 'a1' } }));
  const kinds = ['agent.connected', 'agent.status_changed', 'epistemic_update', 'pattern_alert', 'prediction_update', 'agent.disconnected'];
  for (const kind of kinds) assert.ok(expected.some(({ type }) => type === kind), kind);
  const beliefs = expected.filter(({ type }) => type === 'epistemic_update').map(({ data }) => data);
  assert.ok(beliefs.length >= 3 && beliefs.at(-1).confidence_level >= 0.95, JSON.stringify(beliefs));
  for (const { belief } of beliefs) assert.ok(Math.abs(Object.values(belief).reduce((a, b) => a + b) - 1) < 0.01);

  const accepted = proxy.accepted;
  const agent = run(PYTHON, path('agent.py'), 'a1', '0.3');
  for (const told of [2, 4, 6]) {
    await until(() => agent.lines().length >= told, () => agent.errors);
    told === 4 ? proxy.cut() : proxy.cutAnswers();
  }
  assert.equal(await agent.ended, 0, agent.errors);
  assert.ok(proxy.accepted - accepted >= 3, 'it was cut off');
  assert.deepEqual((await history('agent:a1')).map(({ type, data }) => ({ type, data })), expected);
});

test('agent.py says what the hub refuses', async () => {
  const agent = run(PYTHON, path('agent.py'), 'x'.repeat(300), '0');
  assert.notEqual(await agent.ended, 0);
  assert.match(agent.errors, /Refused: .*bad_room/);
});
