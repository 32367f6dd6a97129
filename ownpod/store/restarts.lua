-- Restarts of managed workers that pull: the worker has asked for one (`refresh_worker` of RunPod's SDK), and keeps its id, its devices
-- and its queue. Each command is one atomic step. The locals of managed.lua, with its constants, are in front, so ARGV[2] is the
-- worker's id.
--
-- MANAGED:<worker>          hash    restart: 1, it has asked for a restart; 2, its next process runs, and has not asked for a job yet

-- worker, host, digest of its next key -> 1: its earlier process has ended, and it may be started again
function commands.restarting()
  local phase, at, endpoint = known()
  if at ~= ARGV[3] or phase ~= 'ready' or redis.call('HGET', record, 'restart') ~= '1' then
    return 0
  end
  redis.call('HSET', record, 'key', ARGV[4])
  -- The next process writes its output from the beginning.
  redis.call('HDEL', OUTPUT .. worker .. ':state', 'position', 'state')
  redis.call('HDEL', base, 'take', 'stopping')
  redis.call('PUBLISH', base, '@worker left')
  write_entry()
  add_worker_entries(endpoint, 'initializing', {message = 'it is started again, as it has asked for'})
  return 1
end

-- worker, host -> 1: its next process runs
function commands.restarted()
  local phase, at = known()
  if at ~= ARGV[3] or phase ~= 'ready' then
    return 0
  elseif redis.call('HGET', base, 'take') then
    redis.call('HDEL', record, 'restart')
  else
    redis.call('HSET', record, 'restart', 2)
  end
  if redis.call('HEXISTS', record, 'role') == 1 then
    redis.call('HSET', record, 'active_ms', now)
  end
  return 1
end
