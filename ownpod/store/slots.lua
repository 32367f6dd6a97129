-- Slots of devices, for the commands of managed.lua and sharing.lua. The constants of managed.lua and the helpers of
-- offers.lua are in front. A slot is the field "<host>/<device>#<number>" of HELD and NEXT.

-- Frees the devices of a host that a worker holds.
local function free(host)
  local all, prefix = redis.call('HGETALL', HELD), host .. '/'
  for i = 1, #all, 2 do
    if all[i + 1] == worker and string.sub(all[i], 1, #prefix) == prefix then
      redis.call('HDEL', HELD, all[i])
    end
  end
end

-- Whether a device of a host is an operator's now.
local function is_reserved(device)
  local until_ms = tonumber(string.match(redis.call('HGET', RESERVED, device) or '', '^%d+'))
  return until_ms ~= nil and (until_ms == 0 or until_ms > now)
end

-- Whether a slot is kept for another wanted worker. A worker that is not wanted any more gets none.
local function is_kept(slot)
  local other = redis.call('HGET', NEXT, slot)
  if not other or other == worker then
    return false
  end
  if redis.call('HGET', MANAGED .. ':' .. other, 'phase') == 'wanted' then
    return true
  end
  redis.call('HDEL', NEXT, slot)
  return false
end

-- Keeps no slots for the worker any more. -> how many were kept
local function let_go()
  local all, count = redis.call('HGETALL', NEXT), 0
  for i = 1, #all, 2 do
    if all[i + 1] == worker then
      count = count + redis.call('HDEL', NEXT, all[i])
    end
  end
  return count
end
