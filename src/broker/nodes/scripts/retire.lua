-- A node ends as it should: its lease is over at once, and the first who looks cleans up after it.
--
-- KEYS: index, dead, lease (as in beat.lua)
-- ARGV: run
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return redis.call('DEL', KEYS[3])
