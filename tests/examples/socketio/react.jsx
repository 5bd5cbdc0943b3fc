// Follows a room and writes into it, with hooks: one for the connection, one for a room.
import { StrictMode, useCallback, useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { io } from 'socket.io-client';

/** A connection that lives as long as its component, and how it is. */
function useSocket(hub, token, transports) {
  const [socket, setSocket] = useState(null);
  const [state, setState] = useState('connecting');
  useEffect(() => {
    const socket = io(hub, {
      auth: token ? { token } : {},
      withCredentials: !token,
      reconnectionDelayMax: 1000,
      ...(transports && { transports: transports.split(',') }),
    });
    socket.on('connect', () => setState(socket.recovered ? 'recovered' : 'connected'));
    socket.on('disconnect', (reason) => setState(`away: ${reason}`));
    socket.on('connect_error', (error) => setState(`refused: ${error.data?.code ?? error.message}`));
    setSocket(socket);
    window.transport = () => socket.io.engine.transport.name;
    return () => socket.disconnect();
  }, [hub, token, transports]);
  return [socket, state];
}

/** The events of one type in a room, from what its log has, and a way to add one. */
function useRoom(socket, room, type) {
  const [events, setEvents] = useState([]);
  useEffect(() => {
    if (!socket) return undefined;
    let seen;
    const subscribe = async () => {
      // The hub has put a recovered client back into its rooms, and sends what it missed.
      if (socket.recovered) return;
      const answer = await socket.timeout(5000).emitWithAck('subscribe', { room, since: seen ?? { last: 100 } });
      if (answer.type === 'subscribed') seen ??= { seq: 0, epoch: answer.data.epoch };
    };
    const add = (event) => {
      if (event.room !== room) return;
      seen = { ...seen, seq: event.seq };
      setEvents((events) => [...events, event]);
    };
    socket.on('connect', subscribe);
    socket.on(type, add);
    if (socket.connected) subscribe();
    return () => {
      socket.off('connect', subscribe);
      socket.off(type, add);
    };
  }, [socket, room, type]);
  const publish = useCallback(
    (data) => socket.timeout(5000).emitWithAck('publish', { room, type, data }),
    [socket, room, type],
  );
  return [events, publish];
}

function Room({ hub, token, room, transports }) {
  const [socket, state] = useSocket(hub, token, transports);
  const [events, publish] = useRoom(socket, room, 'note.added');
  const [text, setText] = useState('');
  const [answer, setAnswer] = useState('');
  const say = async (event) => {
    event.preventDefault();
    const { type, data } = await publish({ text });
    setAnswer(`${type} ${data.seq ?? data.code}`);
  };
  return (
    <>
      <p id="state">{state}</p>
      <ol id="events">
        {events.map(({ id, seq, data }) => (
          <li key={id} data-seq={seq}>{data.text}</li>
        ))}
      </ol>
      <form id="say" onSubmit={say}>
        <input id="text" value={text} onChange={(event) => setText(event.target.value)} autoComplete="off" aria-label="what to say" />
        <button>Say</button>
      </form>
      <p id="answer">{answer}</p>
    </>
  );
}

const asked = Object.fromEntries(new URLSearchParams(location.search));
createRoot(document.getElementById('root')).render(
  <StrictMode>
    <Room {...asked} />
  </StrictMode>,
);
