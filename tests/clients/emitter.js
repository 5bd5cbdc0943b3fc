// Emits what standard input says, a JSON list per line: [rooms, namespace, name, ...arguments]; then ends.
import { Emitter } from '@socket.io/redis-emitter';
import { createClient } from 'redis';
import { createInterface } from 'node:readline';

const redis = createClient({ url: process.argv[2] });
await redis.connect();
const emitter = new Emitter(redis, { key: process.argv[3] ?? 'socket.io' });
for await (const line of createInterface({ input: process.stdin })) {
  const [rooms, namespace, name, ...args] = JSON.parse(line);
  let to = emitter.of(namespace);
  for (const room of rooms) to = to.to(room);
  to.emit(name, ...args);
}
// What was published is answered in order.
await redis.ping();
await redis.close();
