-- Forgets the events of a room; its numbers go on.
--
-- KEYS  1  PREFIX:{ROOM}:meta
--       2  PREFIX:{ROOM}:log
-- ARGV  1  the channel
--       2  PUBLISH, or SPUBLISH in a cluster
--       3  how many milliseconds the epoch and the number are kept
--
-- Returns how many events went.

local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'id')
if not state[1] then
  return 0
end
local seq = tonumber(state[2] or '0')
local count = 0
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
if entries[1] then
  local first = string.match(entries[1][2][2], '^%d+ (%d+) ')
  count = seq - (tonumber(first) or seq) + 1
end
local from = string.format('%.0f', seq + 1)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'from', from)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call(ARGV[2], ARGV[1], state[1] .. ' ' .. from .. ' 0 ' .. (state[3] or '-') .. ' ')
return count
