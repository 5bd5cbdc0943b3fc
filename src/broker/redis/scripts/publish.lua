-- Publishes events in one room, all in this order and at once, or none of them.
--
-- Any program may call this. In a cluster all keys of a room are in one slot, since {ROOM} is in braces.
--
-- KEYS  1    PREFIX:{ROOM}:meta        hash: epoch, seq and id of the last event, from (the first number not cleared)
--       2    PREFIX:{ROOM}:log         stream: one entry per call; its id is the number of its last event, -0
--       3    PREFIX:{ROOM}:run:RUN     only where NUMBER is given: what RUN submitted last
--       ...  PREFIX:{ROOM}:key:KEY     one for each event that has a key, in the events' order; a hub's own events have
--                                      PREFIX:{ROOM}:hub:KEY
-- ARGV  1    the channel, PREFIX:{ROOM}:events
--       2    PUBLISH, or SPUBLISH in a cluster
--       3    the epoch that the log gets should nobody know the room: a number below 2^64, drawn at random
--       4    NUMBER: empty, or a number that grows with each call of RUN. A call that is made again with the same NUMBER
--            publishes nothing and is answered as before; one with a smaller NUMBER is an error
--       5    how many events the log keeps, as far as whole calls allow
--       6    how many milliseconds the log is kept after its last event
--       7    how many milliseconds the epoch and the number are kept after the last event
--       8    empty, or the last event that the caller knows of, as EPOCH SEQ ID (- where it does not know the id): a log that
--            is in that epoch and has not come so far, or has another event there, has lost its end, and gets the epoch of 3
--            with the first of these events, so that no number stands for two events
--       then three for each part:
--            the count of events in it, or `key` for one event that has a key
--            the id of its last event
--            the events: each is six fields as netstrings (LENGTH:BYTES,), one behind the other: id (36 bytes, a UUID),
--            milliseconds since 1970, type, key or nothing, who must not get it (NODE SHARD SLOT GENERATION, as numbers)
--            or nothing, data (JSON)
--
-- Returns two: "EPOCH FIRST COUNT" and behind it " INDEX SEQ ID" for each event (from 0) that was published under its key
-- before; and how many connections got the message. The events that are not listed have the numbers from FIRST on.
--
-- What is published in the channel, and is in the field `m` of an entry of the log:
--       EPOCH FIRST COUNT PREVIOUS EVENTS
-- PREVIOUS is the id of the event before FIRST, or - where there is none. COUNT is 0 where the log was cleared: events
-- before FIRST are not kept any more.

local KEY_MS = 300000
local RUN_MS = 600000

local function text(number)
  return string.format('%.0f', number)
end

local number = ARGV[4]
local next_key = 3
if number ~= '' then
  next_key = 4
  local said = redis.call('GET', KEYS[3])
  if said then
    local before, receivers, answer = string.match(said, '^(%d+) (%d+) (.*)$')
    if tonumber(before) == tonumber(number) then
      -- A write, so that a WAIT behind this waits for what was written then.
      redis.call('PEXPIRE', KEYS[3], RUN_MS)
      return {answer, tonumber(receivers)}
    elseif tonumber(before) > tonumber(number) then
      return redis.error_reply('OVERTAKEN a later submission of this run is here already')
    end
  end
end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'id')
local epoch, seq, last = state[1], tonumber(state[2] or '0'), state[3] or '-'
local is_new = not epoch
if is_new then
  epoch, seq, last = ARGV[3], 0, '-'
end

local first, previous = seq + 1, last
local parts, repeats, keyed, own = {}, {}, {}, {}
local index = 0
for at = 9, #ARGV, 3 do
  if ARGV[at] == 'key' then
    local key = KEYS[next_key]
    next_key = next_key + 1
    local before = own[key] or redis.call('GET', key)
    if before then
      repeats[#repeats + 1] = ' ' .. index .. ' ' .. before
    else
      seq, last = seq + 1, ARGV[at + 1]
      local place = text(seq) .. ' ' .. last
      own[key] = place
      keyed[#keyed + 1] = key
      parts[#parts + 1] = ARGV[at + 2]
    end
    index = index + 1
  else
    seq, last = seq + tonumber(ARGV[at]), ARGV[at + 1]
    index = index + tonumber(ARGV[at])
    parts[#parts + 1] = ARGV[at + 2]
  end
end

local count = seq - first + 1
if count > 0 and ARGV[8] ~= '' and not is_new then
  local of, known, id = string.match(ARGV[8], '^(%d+) (%d+) (.+)$')
  known = tonumber(known)
  if of == epoch and (first <= known or (first == known + 1 and id ~= '-' and id ~= previous)) then
    epoch = ARGV[3]
  end
end
local answer = epoch .. ' ' .. text(first) .. ' ' .. text(count) .. table.concat(repeats)
local receivers = 0
if count > 0 then
  local message = epoch .. ' ' .. text(first) .. ' ' .. text(count) .. ' ' .. previous .. ' ' .. table.concat(parts)
  local keep = tonumber(ARGV[5])
  local function remember()
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', text(seq), 'id', last)
    redis.call('PEXPIRE', KEYS[1], ARGV[7])
  end
  -- The first write is one that a server without memory refuses, or one that may find the log in disorder: then nothing is
  -- done by halves.
  local is_emptied = is_new or keep == 0
  if is_emptied then
    remember()
    redis.call('DEL', KEYS[2])
  end
  if keep > 0 then
    if seq > keep then
      redis.call('XADD', KEYS[2], 'MINID', text(seq - keep + 1), text(seq) .. '-0', 'm', message)
    else
      redis.call('XADD', KEYS[2], text(seq) .. '-0', 'm', message)
    end
    redis.call('PEXPIRE', KEYS[2], ARGV[6])
  end
  if not is_emptied then
    remember()
  end
  for _, key in ipairs(keyed) do
    redis.call('SET', key, own[key], 'PX', KEY_MS)
  end
  receivers = redis.call(ARGV[2], ARGV[1], message)
end
if number ~= '' then
  redis.call('SET', KEYS[3], number .. ' ' .. receivers .. ' ' .. answer, 'PX', RUN_MS)
end
return {answer, receivers}
