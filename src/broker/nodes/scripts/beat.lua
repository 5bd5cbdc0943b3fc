-- A node says that it lives, and is told who else does, and after whom it has to clean up.
--
-- KEYS: index   sorted set: run of a node -> until when its lease lasts, in milliseconds of this server's clock
--       infos   hash: run -> what the node says of itself, JSON
--       dead    sorted set: run of a node that is dead -> until when another one is cleaning up after it
--       lease   a string that is there as long as the lease lasts, for other scripts to look at
-- ARGV: run, JSON, milliseconds of a lease, milliseconds that cleaning up may take, 1 where those whose lease is over
--       are dead
--
-- Answer: what this run was before ('known', 'new', or 'dead': then it may come back when it was cleaned up after),
--         the time, {run, until when, JSON, ...} of all that live, {run, JSON, ...} of those to clean up after.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run, lease = ARGV[1], tonumber(ARGV[3])
local was = 'known'
if redis.call('ZSCORE', KEYS[3], run) then
    was = 'dead'
else
    if not redis.call('ZSCORE', KEYS[1], run) then
        was = 'new'
    end
    redis.call('ZADD', KEYS[1], now + lease, run)
    redis.call('HSET', KEYS[2], run, ARGV[2])
    redis.call('SET', KEYS[4], ARGV[2], 'PX', lease)
end
local mine = {}
if ARGV[5] == '1' then
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
        redis.call('ZREM', KEYS[1], other)
        redis.call('ZADD', KEYS[3], now, other)
    end
end
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 64)) do
    redis.call('ZADD', KEYS[3], now + tonumber(ARGV[4]), other)
    table.insert(mine, other)
    table.insert(mine, redis.call('HGET', KEYS[2], other) or '{}')
end
local living = {}
local index = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 1, #index, 2 do
    table.insert(living, index[at])
    table.insert(living, index[at + 1])
    table.insert(living, redis.call('HGET', KEYS[2], index[at]) or '{}')
end
return {was, tostring(now), living, mine}
