-- Gives a room's log another epoch, because its end was lost: events with the same numbers as before are others now. Of
-- several that want this, the first does it.
--
-- KEYS  1  PREFIX:{ROOM}:meta
-- ARGV  1  the channel
--       2  PUBLISH, or SPUBLISH in a cluster
--       3  the epoch whose end was lost
--       4  the new one
--
-- Returns the epoch that the log has now.

local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'id', 'from')
if state[1] ~= ARGV[3] then
  return state[1] or ''
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[4])
redis.call(ARGV[2], ARGV[1], ARGV[4] .. ' ' .. (state[4] or '1') .. ' 0 - ')
return ARGV[4]
