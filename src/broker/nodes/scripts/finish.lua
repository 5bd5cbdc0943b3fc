-- What a dead node left behind is gone.
--
-- KEYS: dead, infos (as in beat.lua)
-- ARGV: run
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
