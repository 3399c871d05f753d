"""The engine's half of the fleet's limiter: the script that hands out slots and learns the rate.

A slot is a moment of the fleet's time. ``next`` is the first slot that nobody has taken; slots
that were given back are stored apart and go first. A member gets its share of all that wait, so
that all queues shrink alike. The more members there are, the longer each must do with its share,
so that the calls of the whole fleet do not grow with its number.

After an outage the members return one by one, and each that has not yet may still send its own part
of the quota. Until all have called again, no more than the parts of those that have is handed out.
"""

from __future__ import annotations

from aioivschat.redis._engine import Script
from aioivschat.redis._fleet_time import FLEET_TIME

# Times are in microseconds of the fleet's, rates in thousandths of a request per second.
#
# KEYS     state_key      hash: what FIELDS names
#          members_key    hash, by member: '<last call> <last call for slots> <slots it lacks>
#                         <when it calls again at the latest>', the last 0 if it lacks none
#          returned_key   sorted set: slots that were given back
#          clock_key      string, see FLEET_TIME
# ARGV     member         the caller's name
#          ceiling        the highest rate
#          burst          how far back slots may lie that are handed out at once
#          purpose        'work'; 'join': the member returns to the fleet; 'leave': it closes
#          wanted         slots that it lacks
#          waiting_here   its callers that wait, with a slot or without
#          served         its requests that got through since its last call
#          throttled      its requests that were throttled since then
#          told           how many members there are, as far as it knows; 0: not at all
#          expected       the time at which it asks, as far as it knows; 0: not at all
#          patience       how long it waits for the answer
#          known_next     the first slot that nobody has taken, as far as it knows
#          shaken         1: a call of its has failed since the last that did not; 2: was late
#          resting        for 'join': how long it must not send
#          ...            slots that it gives back
# RETURNS  now, rate, number of members, callers of the fleet that wait without a slot,
#          pause until the member's next call, late, missing, next, {slots}, dropped
#          late           1: the caller has given up by now, or the engine's clock was set
#          missing        how many members may go by themselves
#          dropped        how many values were outside their limits
_SOURCE = """
local state_key, members_key, returned_key, clock_key = unpack(KEYS)
local member, ceiling, burst, purpose = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wanted, waiting_here = tonumber(ARGV[5]), tonumber(ARGV[6])
local served, throttled, told = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local expected, patience, known_next = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local shaken, resting, FIRST_RETURNED = tonumber(ARGV[13]), tonumber(ARGV[14]), 15

local SECOND, PROBE_SHARE, GROWTH_FACTOR = 1000000, 0.05, 2
local CALLS = 50                -- calls a second aimed at, of the fleet under load
local LOAD = 0.75               -- share of the rate below which no member need pause
local ALL_BATCHES = 0.2         -- seconds of slots that all members together take ahead at least
local EACH_BATCH = 1 / 40       -- ... and for each member that waits
local LONGEST_BATCH = 0.25      -- seconds of slots that one member gets at most
local MOST = 1000000            -- of things that are counted
local CAUTION = 0.9             -- of a pace while members may go by themselves
local CROWDED = 0.04 * SECOND   -- of slots that are taken: more callers than the quota has permits
local HELD = 0.2 * SECOND       -- how far ahead others may hold slots that are not known of
local MEMBER_TIMEOUT = 25 * SECOND
local LATENESS = 0.05 * SECOND  -- of a member's next call
local FORGET_AFTER = 60         -- seconds

local now, back = read_clock(clock_key)
-- As after SIGCONT, when a server does what was asked of it long ago.
local late = expected > 0 and math.abs(now - expected) > patience
if late then wanted, FIRST_RETURNED = 0, #ARGV + 1 end

local FIELDS = {'next', 'rate', 'epoch', 'served', 'throttled', 'calls', 'granted',
                'waiting', 'active', 'pause', 'since', 'lacking'}
local stored = run_on(state_key, 'HMGET', unpack(FIELDS))
local state = {}
for index, field in ipairs(FIELDS) do state[field] = stored[index] end
local is_new = not state.epoch

local function parse_member(entry)
  local seen, asked, lacks, due = entry:match('^(%d+) (%d+) (%d+) (%d+)$')
  return within(seen, 0, now), within(asked, 0, now), within(lacks, 0, MOST), tonumber(due)
end
state.rate = within(state.rate, math.floor(PROBE_SHARE * ceiling), ceiling, ceiling)
state.epoch = within(state.epoch, 0, now + SECOND, now + SECOND)
state.since = within(state.since, 0, now, 0)
state.pause = within(state.pause, 0, SECOND, 0)
for _, field in ipairs({'served', 'throttled', 'calls', 'granted', 'waiting', 'active',
                        'lacking'}) do
  state[field] = within(state[field], 0, MOST, 0)
end

-- Who may go by itself: who has not called since `since`, and who should have called again by now.
-- `lacking` is how many there may be in all.
local is_lost = is_new or back > 0 or shaken == 2
if is_lost or shaken > 0 then
  -- Those that return within a second have been away together.
  if is_lost or now > state.since + SECOND then state.since = now end
  state.lacking = math.max(state.lacking, told)
end
local entries, others, joined = run_on(members_key, 'HGETALL'), 0, late and 0 or 1
for index = 1, #entries, 2 do
  if entries[index] ~= member then
    local seen, _, _, due = parse_member(entries[index + 1])
    others = others + 1
    if seen and seen >= state.since and (due == 0 or due > now) then joined = joined + 1 end
  end
end
local members = math.max(state.lacking, others + 1)
if joined == members or now > state.since + MEMBER_TIMEOUT then
  state.since, state.lacking = 0, 0
end
local missing = members - joined
local pace = state.rate * math.max(1, joined) / members * (missing > 0 and CAUTION or 1)

-- All members together take no more ahead than a batch each. If what was stored is lost, the caller
-- knows of slots that were taken, and others of some more.
local spacing = math.ceil(1000 * SECOND / pace)
local furthest = now + SECOND + members * (LONGEST_BATCH * SECOND + spacing)
state.next = within(state.next, 0, furthest, 0)
if not late then
  local first = math.max(known_next, resting > 0 and now + resting or 0)
  if is_lost and known_next > now + CROWDED then first = math.max(first, now + HELD) end
  state.next = math.max(state.next, math.min(first, furthest))
end

-- Once a second: learn the rate, which is what was served and a probe; count the members.
state.served = state.served + served
state.throttled = state.throttled + throttled
state.calls = state.calls + 1
if now >= state.epoch then
  local seconds = 1 + math.floor((now - state.epoch) / SECOND)
  local clean = seconds
  if state.throttled > 0 then
    clean = clean - 1
    local share = (state.served + 1) / (state.served + 1 + state.throttled)
    state.rate = state.rate * share + PROBE_SHARE * ceiling
  end
  state.rate = math.min(ceiling, math.floor(state.rate * GROWTH_FACTOR ^ math.min(clean, 50)))
  state.waiting, state.active = 0, 0
  local asking = 0
  for index = 1, #entries, 2 do
    local seen, asked, lacks = parse_member(entries[index + 1])
    if not (seen and asked and lacks) or seen < now - MEMBER_TIMEOUT then
      redis.call('HDEL', members_key, entries[index])
    else
      state.waiting = state.waiting + lacks
      if lacks > 0 then state.active = state.active + 1 end
      if asked > now - 2 * (SECOND + state.pause) then asking = asking + 1 end
    end
  end
  -- Each member pauses between its calls, so that all together make about CALLS a second; never
  -- longer than a second.
  local longest = math.min(SECOND, asking * SECOND / CALLS)
  local pause = state.pause / 2
  if state.granted / seconds > LOAD * state.rate / 1000 then
    pause = math.max(state.pause, longest / 3) * state.calls / seconds / CALLS
  end
  state.pause = math.floor(math.min(longest, pause))
  state.served, state.throttled, state.calls, state.granted = 0, 0, 0, 0
  state.epoch = now + SECOND
end

-- Replace what the member reported last by what it wants now.
local _, asked, lacked = parse_member(redis.call('HGET', members_key, member) or '0 0 0 0')
asked, lacked = string.format('%.0f', asked or 0), lacked or 0
state.waiting = state.waiting - lacked + wanted
state.active = state.active + math.min(wanted, 1) - math.min(lacked, 1)

-- Its share of the slots, by its share of all that wait, with a slot or without.
local count = 0
if wanted > 0 then
  asked = string.format('%.0f', now)
  local waiting_anywhere = state.waiting + math.max(0, state.next - now) / spacing
  local seconds = math.max(ALL_BATCHES, EACH_BATCH * state.active)
                  * math.min(1, waiting_here / waiting_anywhere)
  local share = math.ceil(math.min(seconds, LONGEST_BATCH) * pace / 1000)
  count = math.min(wanted, math.max(1, share))
  -- Slots of a slow pace reach far ahead, and would be lost when the pace is whole again.
  if missing > 0 and state.next > now + LONGEST_BATCH * SECOND then
    count, state.pause = 0, math.max(state.pause, members * SECOND / CALLS)
  end
end
local left = wanted - count
state.granted = state.granted + count
state.waiting = state.waiting - count
if count > 0 and left == 0 then state.active = state.active - 1 end

-- Slots that were given back come first.
for index = FIRST_RETURNED, #ARGV do
  local slot = ARGV[index]
  run_on(returned_key, 'ZADD', slot, slot)
end
run_on(returned_key, 'ZREMRANGEBYSCORE', '-inf', string.format('%.0f', now))
local slots = {}
if count > 0 then
  local popped = redis.call('ZPOPMIN', returned_key, count)
  for index = 1, #popped, 2 do slots[#slots + 1] = within(popped[index], now, state.next) end
  state.next = math.max(state.next, now - burst)
  while #slots < count do
    slots[#slots + 1] = state.next
    state.next = state.next + spacing
  end
end

if purpose == 'leave' then
  redis.call('HDEL', members_key, member)
  state.lacking = math.max(0, state.lacking - 1)
elseif not late then
  local due = math.max(slots[#slots] or now, now + state.pause + LATENESS)
  local entry = string.format('%.0f %s %d %.0f', now, asked, left, left > 0 and due or 0)
  redis.call('HSET', members_key, member, entry)
end
local values = {}
for _, field in ipairs(FIELDS) do
  values[#values + 1] = field
  values[#values + 1] = string.format('%.0f', state[field])
end
redis.call('HSET', state_key, unpack(values))
for _, key in ipairs({state_key, members_key, returned_key}) do
  redis.call('EXPIRE', key, FORGET_AFTER)
end
members = math.max(redis.call('HLEN', members_key), state.lacking)
return {now, state.rate, members, state.waiting, state.pause, late and 1 or 0,
        missing, math.ceil(state.next), slots, dropped}
"""
SYNC = Script(FLEET_TIME + _SOURCE)
