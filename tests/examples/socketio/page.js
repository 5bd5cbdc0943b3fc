// Follows a room and writes into it. It comes back by itself, and then has whatever it missed.
import { io } from 'socket.io-client';

const asked = new URLSearchParams(location.search);
const room = asked.get('room');
const token = asked.get('token');
const transports = asked.get('transports');

const socket = io(asked.get('hub'), {
  // Without a token the cookie is the credential.
  auth: token ? { token } : {},
  withCredentials: !token,
  reconnectionDelayMax: 1000,
  ...(transports && { transports: transports.split(',') }),
});

const show = (id, text) => (document.getElementById(id).textContent = text);
let seen;

socket.on('connect', async () => {
  // The hub has put a recovered client back into its rooms, and sends what it missed.
  if (!socket.recovered) {
    const answer = await socket.timeout(5000).emitWithAck('subscribe', { room, since: seen ?? { last: 100 } });
    if (answer.type === 'error') return show('state', `refused: ${answer.data.code}`);
    seen ??= { seq: 0, epoch: answer.data.epoch };
  }
  show('state', socket.recovered ? 'recovered' : 'connected');
});
socket.on('disconnect', (reason) => show('state', `away: ${reason}`));
socket.on('connect_error', (error) => show('state', `refused: ${error.data?.code ?? error.message}`));

socket.on('note.added', ({ seq, data }) => {
  seen = { ...seen, seq };
  const line = document.createElement('li');
  line.textContent = data.text;
  line.dataset.seq = seq;
  document.getElementById('events').append(line);
});

document.getElementById('say').addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = document.getElementById('text').value;
  const answer = await socket.timeout(5000).emitWithAck('publish', { room, type: 'note.added', data: { text } });
  show('answer', `${answer.type} ${answer.data.seq ?? answer.data.code}`);
});

// For whoever looks from outside: the transport in use.
window.transport = () => socket.io.engine.transport.name;
