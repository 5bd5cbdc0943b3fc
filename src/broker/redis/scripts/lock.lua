-- Takes, renews, looks at or frees the lock of a field.
--
-- KEYS  1  PREFIX:{ROOM}:locks   hash by field: number, end in milliseconds since 1970 by the server's clock, session,
--                                holder, the node through which it is held and the turn of the session's connection that
--                                asked last, packed by MessagePack
--       2  PREFIX:{ROOM}:fence   the last number given in the room
-- ARGV  1  the field
--       2  how many milliseconds the last number is kept
--       3  acquire, renew, look or free
--       4  the node through which it is held or is to be
--          acquire: 5 for how many milliseconds, 6 the session, 7 the holder, as others are told of it, 8 the turn, as 16
--                   hexadecimal digits
--          renew:   5 for how many milliseconds, 6 the number that it is held with, 7 the turn
--          look:    5 the number that it was held with
--          free:    5 the number that it is held with through that node, or nothing for any through whichever
--
-- A number is larger than all before it in the room: by one, or the time in microseconds where that is more, so that this
-- holds as well after the room's last number was forgotten or lost. A session that has the lock already is given another
-- number: the answer with the first one was lost.
--
-- A session that goes to another node takes its locks along: from the renewal on the lock is held through that one, and what
-- the former one frees by its clock is free no more. Nor does the former one get it back for a command that the session sent
-- it before: a session has a lock through another node only with a later turn.
--
-- Returns  granted NUMBER | held MILLISECONDS_LEFT HOLDER | renewed HOLDER | elsewhere | freed NUMBER HOLDER | none

local locks, fence, field = KEYS[1], KEYS[2], ARGV[1]
local action, node = ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local held
local packed = redis.call('HGET', locks, field)
if packed then
  held = cmsgpack.unpack(packed)
  if held[2] <= now then
    redis.call('HDEL', locks, field)
    held = nil
  end
end

-- Never for less long than before: its holder was told that.
local function hold(number, session, holder, before, turn)
  local ends = math.max(now + ARGV[5], before)
  if held and held[6] and held[6] > turn then
    turn = held[6]
  end
  redis.call('HSET', locks, field, cmsgpack.pack({number, ends, session, holder, node, turn}))
  -- The key lives as long as the last of its locks.
  local left = redis.call('PTTL', locks)
  if left < ends - now + 1000 then
    redis.call('PEXPIRE', locks, text(ends - now + 1000))
  end
end

-- Whether it has gone to another node since that connection was its session's.
local function was_left_behind(turn)
  return held[5] and held[6] and held[5] ~= node and held[6] >= turn
end

if action == 'acquire' then
  if held and (held[3] ~= ARGV[6] or was_left_behind(ARGV[8])) then
    return {'held', text(held[2] - now), held[4]}
  end
  local last = tonumber(redis.call('GET', fence) or '0')
  local number = text(math.max(last + 1, now_us))
  redis.call('SET', fence, number, 'PX', ARGV[2])
  hold(number, ARGV[6], ARGV[7], 0, ARGV[8])
  return {'granted', number}
end
if action == 'renew' then
  if not held or held[1] ~= ARGV[6] or was_left_behind(ARGV[7]) then
    return {'none'}
  end
  hold(held[1], held[3], held[4], held[2], ARGV[7])
  return {'renewed', held[4]}
end
if action == 'look' then
  if not held or held[1] ~= ARGV[5] then
    return {'none'}
  end
  if held[5] ~= node then
    return {'elsewhere'}
  end
  return {'held', text(held[2] - now), held[4]}
end
if not held or (ARGV[5] ~= '' and held[1] ~= ARGV[5]) then
  return {'none'}
end
if ARGV[5] ~= '' and held[5] and held[5] ~= node then
  return {'elsewhere'}
end
redis.call('HDEL', locks, field)
return {'freed', held[1], held[4]}
