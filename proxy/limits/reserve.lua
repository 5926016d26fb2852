-- Holds a call's estimates against all its limits, or against none.
-- KEYS: the leases, then the counter of each rule.
-- ARGV: now (s), end of the lease (s), call id, what the call holds (for expire.lua),
--       then for each rule: amount (-1 = shadow), needed, part (0 = none), oldest part, seconds the counter is kept,
--       used as far as the roll-ups know (negative: said only to a counter that is new)
-- Returns 1 and the totals of all counters, or 0, the number of the first rule that is full, its total, its parts.
local totals = {}
for number = 1, #KEYS - 1 do
    local key, at = KEYS[number + 1], 4 + (number - 1) * 6
    local amount, needed = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local part, oldest, kept = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    local recorded = tonumber(ARGV[at + 6])
    local total = tonumber(redis.call('HGET', key, 'total') or '0')
    if part ~= 0 then
        local first = tonumber(redis.call('HGET', key, 'first') or part)
        if first < oldest then
            for _, field in ipairs(redis.call('HKEYS', key)) do
                local old = tonumber(field)
                if old and old < oldest then
                    total = total - tonumber(redis.call('HGET', key, field))
                    redis.call('HDEL', key, field)
                end
            end
            redis.call('HSET', key, 'total', total, 'first', oldest)
        end
    elseif recorded < 0 then
        if redis.call('EXISTS', key) == 0 then
            total = -recorded
            redis.call('HSET', key, 'total', total)
            redis.call('EXPIRE', key, kept)  -- here too: it may be full, and then no call comes to renew it
        end
    elseif recorded > 0 then
        local known = recorded + tonumber(redis.call('HGET', key, 'held') or '0')
        if known > total then
            total = known
            redis.call('HSET', key, 'total', total)
            redis.call('EXPIRE', key, kept)
        end
    end
    if amount >= 0 and total + needed > amount then
        return {0, number, total, part ~= 0 and redis.call('HGETALL', key) or {}}
    end
    totals[number] = total + needed
end
for number = 1, #KEYS - 1 do
    local key, at = KEYS[number + 1], 4 + (number - 1) * 6
    local needed, part, kept = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 5])
    redis.call('HINCRBY', key, 'total', needed)
    redis.call('HINCRBY', key, 'held', needed)
    if part ~= 0 then
        redis.call('HINCRBY', key, part, needed)
        local first = tonumber(redis.call('HGET', key, 'first') or part)
        if part <= first then redis.call('HSET', key, 'first', part) end
    end
    if kept > 0 then redis.call('EXPIRE', key, kept) end
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[1] .. ':held', ARGV[3], ARGV[4])
return {1, totals}
