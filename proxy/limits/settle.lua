-- Ends a call: what it held is replaced by what it used.
-- KEYS: the counter of each rule.
-- ARGV: who held it, call id, whether it may have been told before (1), then for each rule: used (all = as held), part (0 = none)
-- Where a counter does not know the call any more (its holder was taken for dead, or Redis lost it), the call holds
-- nothing there: only what it used is added, unless that was done before.
local function whole(number) return string.format('%.0f', number) end
local call = '@' .. ARGV[1] .. ':' .. ARGV[2]
for number = 1, #KEYS do
    local key, at = KEYS[number], 3 + (number - 1) * 2
    local used, part, change = tonumber(ARGV[at + 1]), ARGV[at + 2], 0
    local said = redis.call('HMGET', key, 'total', 'held', part, call)
    if said[1] then
        local total, held = tonumber(said[1]), tonumber(said[2] or '0')
        if said[4] then
            local needed = tonumber(string.match(said[4], '^%d+'))
            change, held = used and used - needed or 0, held - needed
            redis.call('HDEL', key, call)
        elseif used and ARGV[3] == '0' then
            change = used
        end
        if part == '0' then
            total = total + change
        elseif said[3] then
            total = total + change
            redis.call('HSET', key, part, whole(tonumber(said[3]) + change))
        end
        redis.call('HSET', key, 'total', whole(total), 'held', whole(held))
        -- That of concurrent calls ends with the last of them; the others end with their window.
        if total == 0 and held == 0 and redis.call('TTL', key) == -1 then redis.call('DEL', key) end
    end
end
return #KEYS
