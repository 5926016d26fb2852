-- Holds a call's estimates against all its limits, or against none.
-- KEYS: the holders, the list of counters, then the counter of each rule.
-- ARGV: holder, call id, now (s),
--       then for each rule: amount (-1 = shadow), needed, what of it stays counted if the holder dies,
--       part (0 = none), oldest part, when the counter may go (epoch s; 0 = with its last call),
--       used as far as the roll-ups know (negative: said only to a counter that is new)
-- Returns 1 and the totals of all counters, or 0 and of each rule that is full its number, total and fields.
local BACKSTOP = 40 * 86400  -- s; Redis' own clock may be set: counters go by ours (forget.lua)
local function whole(number) return string.format('%.0f', number) end
local holder, call, now = ARGV[1], '@' .. ARGV[1] .. ':' .. ARGV[2], tonumber(ARGV[3])
local function listed(key, ends)
    redis.call('ZADD', KEYS[2], ends, key)
    redis.call('EXPIRE', key, whole(ends - now + BACKSTOP))
end

local counters, totals, full = {}, {}, {}
for number = 1, #KEYS - 2 do
    local key, at = KEYS[number + 2], 3 + (number - 1) * 7
    local amount, needed, part = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 4]
    local oldest, ends, recorded = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
    local said = redis.call('HMGET', key, 'total', 'held', 'first', part, call)
    local total, held = tonumber(said[1] or '0'), tonumber(said[2] or '0')
    local first = tonumber(said[3] or part)
    if part ~= '0' then
        if first < oldest then
            local fields = redis.call('HGETALL', key)
            for place = 1, #fields, 2 do
                local old = tonumber(fields[place])
                if old and old < oldest then
                    total = total - tonumber(fields[place + 1])
                    redis.call('HDEL', key, fields[place])
                end
            end
            first = oldest
            redis.call('HSET', key, 'total', whole(total), 'first', oldest)
        end
    elseif (recorded < 0 and not said[1]) or (recorded > 0 and recorded + held > total) then
        total = recorded < 0 and -recorded or recorded + held
        redis.call('HSET', key, 'total', whole(total))
        listed(key, ends)  -- here too: it may be full, and then no call comes to do so
    end
    if said[5] then needed = 0 end  -- held already: it is told again
    if amount >= 0 and total + needed > amount then
        full[#full + 1] = {number, total, part ~= '0' and redis.call('HGETALL', key) or {}}
    end
    counters[number] = {said, total + needed, held + needed, first}
    totals[number] = total + needed
end
if #full > 0 then return {0, full} end
redis.call('HSETNX', KEYS[1], holder, 0)
for number = 1, #KEYS - 2 do
    local key, at = KEYS[number + 2], 3 + (number - 1) * 7
    local needed, stays, part, ends = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], tonumber(ARGV[at + 6])
    local said, total, held, first = unpack(counters[number])
    if not said[5] then
        local lease = needed .. ' ' .. stays .. ' ' .. part
        redis.call('HSET', key, 'total', whole(total), 'held', whole(held), call, lease)
        if part ~= '0' then
            local there = tonumber(said[4] or '0') + tonumber(needed)
            redis.call('HSET', key, part, whole(there), 'first', math.min(first, tonumber(part)))
        end
        if ends > 0 and (not said[1] or (part ~= '0' and not said[4])) then listed(key, ends) end
    end
end
return {1, totals}
