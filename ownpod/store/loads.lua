-- Since when managed workers are idle, for the scaler, and the installation's id. loads.py puts the constants in
-- front: IDLE (see managed.lua), INSTANCE (keys.py).
--
-- INSTANCE                  string  the id of this installation of OwnPod
-- INSTANCE:restored         string  ms when Redis was last found without that id, by an agent that remembers it

local commands = {}

-- number of busy workers, busy workers, idle workers -> for each idle worker: ms since it was first seen idle
function commands.saw()
  local busy, idle_ms = tonumber(ARGV[2]), {}
  for i = 3, #ARGV do
    if i < 3 + busy then
      redis.call('HDEL', IDLE, ARGV[i])
    else
      redis.call('HSETNX', IDLE, ARGV[i], now)
      idle_ms[#idle_ms + 1] = now - (tonumber(redis.call('HGET', IDLE, ARGV[i])) or now)
    end
  end
  return idle_ms
end

-- an id, whether an agent remembers it (0|1) -> the id of this installation, which is this one if there was none, and
-- ms since Redis came back without it, -1: it has never done so
function commands.instance()
  if redis.call('SET', INSTANCE, ARGV[2], 'NX') and ARGV[3] == '1' then
    redis.call('SET', INSTANCE .. ':restored', now)
  end
  local restored = redis.call('GET', INSTANCE .. ':restored')
  return {redis.call('GET', INSTANCE), restored and now - restored or -1}
end
