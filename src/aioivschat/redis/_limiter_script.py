"""The engine's side of the pace: the script that hands slots out, and learns the rate.

Slots are moments of the engine's clock. ``next`` is the first that nobody has taken; those given
back are kept apart and go first. What each process gets at a time is its part of all that wait, so
that all crowds shrink alike; and the more processes there are, the longer each must do with it, so
that the calls of all together do not grow with their number.
"""

from __future__ import annotations

from aioivschat.redis._engine import Script

TRIP = Script("""
-- KEYS: state, members, slots given back. ARGV: member, the highest rate in thousandths a second,
-- the burst in microseconds, what the call is for, slots wanted, callers that wait with a slot or
-- without, requests served, requests throttled, slots given back ... Times are microseconds.
local SECOND, PROBE, GROWTH = 1000000, 0.05, 2
local CALLS = 50                -- a second, of the fleet under load: what is aimed at
local LOAD = 0.75               -- of the rate: below it nobody need pause to spare the engine
local ROUND = 0.2               -- seconds of all slots that are leased at a time at least
local EACH = 1 / 40             -- seconds of the fleet's slots for each process that waits
local MOST = 0.25               -- seconds of the fleet's slots that one lease is at most
local MEMBER_FOR, HANDOVER = 25 * SECOND, 1.5 * SECOND
local FORGOTTEN = 60            -- seconds; also how far ahead a slot may be at all

local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]
local member, ceiling, burst, purpose = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wanted, here = tonumber(ARGV[5]), tonumber(ARGV[6])

local NAMES = {'next', 'rate', 'epoch', 'served', 'throttled', 'calls', 'granted', 'waiting',
               'active', 'pause', 'handover'}
local state = {}
for place, value in ipairs(redis.call('HMGET', KEYS[1], unpack(NAMES))) do
  state[NAMES[place]] = tonumber(value or 0)
end
if state.epoch == 0 then
  state.rate, state.epoch = ceiling, now + SECOND
end
if state.next > now + FORGOTTEN * SECOND then
  state.next = now  -- a successor's clock is behind
end

-- Learn as a process alone does, and take stock of the members once a second.
state.served = state.served + ARGV[7]
state.throttled = state.throttled + ARGV[8]
state.calls = state.calls + 1
if now >= state.epoch then
  local seconds = 1 + math.floor((now - state.epoch) / SECOND)
  local clean = seconds
  if state.throttled > 0 then
    clean = clean - 1
    local share = (state.served + 1) / (state.served + 1 + state.throttled)
    state.rate = state.rate * share + PROBE * ceiling
  end
  state.rate = math.min(ceiling, math.floor(state.rate * GROWTH ^ math.min(clean, 50)))
  state.waiting, state.active = 0, 0
  local busy, all = 0, redis.call('HGETALL', KEYS[2])
  for place = 1, #all, 2 do
    local seen, asked, waits = all[place + 1]:match('(%d+) (%d+) (%d+)')
    if tonumber(seen) < now - MEMBER_FOR then
      redis.call('HDEL', KEYS[2], all[place])
    else
      state.waiting = state.waiting + waits
      if tonumber(waits) > 0 then state.active = state.active + 1 end
      if tonumber(asked) > now - 2 * (SECOND + state.pause) then busy = busy + 1 end
    end
  end
  -- Each pauses between its calls for as long as brings all of them near what is aimed at, and
  -- never so long that callers mind.
  local most = math.min(SECOND, busy * SECOND / CALLS)
  local pause = state.pause / 2
  if state.granted / seconds > LOAD * state.rate / 1000 then
    pause = math.max(state.pause, most / 3) * state.calls / seconds / CALLS
  end
  state.pause = math.floor(math.min(most, pause))
  state.served, state.throttled, state.calls, state.granted = 0, 0, 0, 0
  state.epoch = now + SECOND
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, FORGOTTEN) end
end

-- Who waits without a slot, before the member gets any.
local before = redis.call('HGET', KEYS[2], member)
local _, asked, waited = (before or '0 0 0'):match('(%d+) (%d+) (%d+)')
waited = tonumber(waited)
state.waiting = state.waiting - waited + wanted
state.active = state.active + math.min(wanted, 1) - math.min(waited, 1)

local count, apart = 0, math.ceil(1000 * SECOND / state.rate)
if wanted > 0 then
  asked = string.format('%.0f', now)
  local all = state.waiting + math.max(0, state.next - now) / apart
  local share = math.max(ROUND, EACH * state.active) * math.min(1, here / all)
  count = math.min(wanted, math.max(1, math.ceil(math.min(share, MOST) * state.rate / 1000)))
end
local left = wanted - count
state.granted = state.granted + count
state.waiting = state.waiting - count
if count > 0 and left == 0 then state.active = state.active - 1 end

-- Slots that somebody gave back come first.
for place = 9, #ARGV do
  redis.call('ZADD', KEYS[3], ARGV[place], ARGV[place])
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now))
local slots = {}
if count > 0 then
  local back = redis.call('ZPOPMIN', KEYS[3], count)
  for place = 1, #back, 2 do slots[#slots + 1] = tonumber(back[place]) end
  state.next = math.max(state.next, now - burst)
  while #slots < count do
    slots[#slots + 1] = state.next
    state.next = state.next + apart
  end
end

if purpose == 'leave' then
  redis.call('HDEL', KEYS[2], member)
else
  redis.call('HSET', KEYS[2], member, string.format('%.0f %s %d', now, asked, left))
end
if purpose == 'join' and state.handover < now - 5 * SECOND then
  state.handover = now + HANDOVER
end
local values = {}
for _, name in ipairs(NAMES) do
  values[#values + 1] = name
  values[#values + 1] = string.format('%.0f', state[name])
end
redis.call('HSET', KEYS[1], unpack(values))
return {now, state.rate, redis.call('HLEN', KEYS[2]), state.waiting, state.pause,
        state.handover, math.ceil(state.next), slots}
""")
