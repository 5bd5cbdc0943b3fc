// Starts hubs for tests in Node that need some of their own: hub.py, in short.
import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';

const SECRET = 'a secret that only the tests use, long enough for every algorithm: HS512 too';
const START_MS = 15_000;

// One machine and one user carry every test, so the limits per address, user and second are off unless a test wants them.
const SETTINGS = {
  'auth.secret': SECRET,
  'drain.seconds': 2,
  'drain.spread_ms': 200,
  'limits.connects_per_s': 0,
  'limits.messages_per_s': 0,
  'limits.connections_per_user_max': 0,
  'limits.connections_per_address_max': 0,
};

const MEMBER = [
  'websocket:connect',
  'websocket:subscribe',
  'websocket:publish',
  'project:*:read',
  'project:*:write',
  'user:*:write',
  'session:*:write',
  'client:*:write',
];

/** A JWT as a deployment's login service would mint it. */
export function token(sub = 'alice', { permissions = MEMBER, ttl_s = 600, secret = SECRET, ...claims } = {}) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub, iat: now, exp: now + ttl_s, permissions, ...claims })}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}

/** A token that may do everything. */
export const admin = (sub = 'root') => token(sub, { permissions: ['websocket:admin'] });

/** Waits for what can only be looked at. */
export async function until(condition, what, { within_ms = 10_000 } = {}) {
  const deadline = Date.now() + within_ms;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${within_ms} ms: ${typeof what === 'function' ? what() : what}`);
    await pause(10);
  }
}

/** A port nobody listens on, below the range that the kernel draws outgoing ports from. */
export async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!free) continue;
    await new Promise((resolve) => probe.close(resolve));
    return port;
  }
}

// Hubs that run: none outlives its tests, however they end.
const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** A running hub; `settings` are options by key. It keeps its port over `stop` and `start`. */
export class Hub {
  static async start(settings = {}, { port } = {}) {
    const hub = new Hub();
    hub.settings = { ...SETTINGS, ...settings };
    hub.port = port ?? (await freePort());
    hub.url = `http://127.0.0.1:${hub.port}`;
    await hub.start();
    return hub;
  }

  async start() {
    const settings = Object.entries(this.settings).flatMap(([key, value]) => ['--set', `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`]);
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('RINGHUB_')));
    this.log = '';
    this.process = spawn(process.env.HUB_BIN, ['serve', '--listen', `127.0.0.1:${this.port}`, '--shards', '2', ...settings], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: environment,
    });
    const child = this.process;
    running.add(child);
    for (const output of [child.stdout, child.stderr]) output.on('data', (bytes) => (this.log += bytes));
    this.ended = once(child, 'exit').then(([status, signal]) => {
      running.delete(child);
      return status ?? signal;
    });
    const ready = () => {
      if (this.process.exitCode !== null) throw new Error(`the hub ended at start\n${this.log}`);
      return fetch(`${this.url}/ready`).then((answer) => answer.ok, () => false);
    };
    await until(ready, () => `the hub is ready\n${this.log}`, { within_ms: START_MS });
  }

  /** Ends it as an operator would: it tells its clients. */
  async stop() {
    this.process.kill('SIGTERM');
    const status = await this.ended;
    if (status !== 0 || this.log.includes('panicked at')) throw new Error(`the hub ended with ${status}\n${this.log}`);
  }

  /** Ends it as a power failure would. */
  async kill() {
    this.process.kill('SIGKILL');
    await this.ended;
  }

  /** A call of the HTTP API that must succeed: its answer's body, none of a 204. */
  async api(method, path, body) {
    const headers = { Authorization: `Bearer ${admin()}`, 'Content-Type': 'application/json' };
    const answer = await fetch(this.url + path, { method, headers, body: body && JSON.stringify(body) });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text ? JSON.parse(text) : undefined;
  }

  publish(room, data, type = 'n') {
    return this.api('POST', '/api/v1/publish', { room, type, data });
  }

  /** How the API sees a connection; none where there is no such. */
  async connection(client_id) {
    const { connections } = await this.api('GET', `/api/v1/connections?search=${client_id}`);
    return connections.find((one) => one.client_id === client_id);
  }
}
