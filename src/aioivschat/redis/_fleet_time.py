"""The time of a fleet, which all scripts go by: the engine's, except that it never goes back.

After a failover the engine's clock may be behind that of the server before. Were it used as it is,
tokens would seem to live longer than they do, leases would hold for longer, and what is minted
after an invalidation would seem to have been minted before it.
"""

from __future__ import annotations

from aioivschat.redis._engine import RUN_ON

KEPT_SECONDS = 900
"""Seconds that an invalidation is remembered: a token's life, and the longest queue before it.
Nothing that is written lives longer, and the clock by which it is read lives as long."""

# The clock's key holds '<seen> <added>': the latest time that a script was given, and what is added
# to the engine's.
FLEET_TIME = f"""{RUN_ON}
-- What is stored may have been written by anybody: each value has its limits, and begins anew where
-- it is outside them.
local dropped = 0
local function within(text, lowest, highest, otherwise)
  local number = tonumber(text)
  if number and number >= lowest and number <= highest then return number end
  if text then dropped = dropped + 1 end
  return otherwise
end

-- Returns the fleet's time in microseconds, and how far the engine's clock went back before it.
local function read_clock(key)
  local LATEST = 2 ^ 52  -- in the year 2112
  local time = redis.call('TIME')
  local seen, added = string.match(run_on(key, 'GET') or '0 0', '^(%S*) ?(%S*)')
  added = within(added, 0, LATEST, 0)
  local now = time[1] * 1000000 + time[2] + added
  local back = math.max(0, within(seen, 0, LATEST, 0) - now)
  now = now + back
  redis.call('SET', key, string.format('%.0f %.0f', now, added + back), 'EX', {KEPT_SECONDS})
  return now, back
end
"""
"""What scripts begin with that tell the time."""
