-- Drops counters whose windows are over, by the clock of the gateway: Redis' own may be set.
-- KEYS: the list of counters. ARGV: now (s), how many at most. Returns how many.
local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, key in ipairs(over) do
    redis.call('UNLINK', key)
    redis.call('ZREM', KEYS[1], key)
end
return #over
