-- Restarts of managed workers that pull: the worker has asked for one (`refresh_worker` of RunPod's SDK), and keeps its id, its devices
-- and its queue. Each command is one atomic step. The locals of managed.lua, with its constants, are in front, so ARGV[2] is the
-- worker's id.
--
-- MANAGED:<worker>          hash    restart: 1, it has asked for a restart; 2, its next process runs, and has not asked for a job yet; 3, it
--                                  is to be started again at once, because its handler still runs although its job has ended

-- worker -> 1: it is to be started again, whatever it runs
function commands.restart()
  if known() ~= 'ready' then
    return 0
  end
  redis.call('HSET', record, 'restart', 3)
  notify('restart')
  return 1
end

-- worker, host, digest of its next key -> 1: its earlier process has ended, and it may be started again
function commands.restarting()
  local phase, at, endpoint = known()
  local restart = redis.call('HGET', record, 'restart')
  if at ~= ARGV[3] or phase ~= 'ready' or restart ~= '1' and restart ~= '3' then
    return 0
  end
  redis.call('HSET', record, 'key', ARGV[4])
  -- The next process writes its output from the beginning.
  redis.call('HDEL', OUTPUT .. worker .. ':state', 'position', 'state')
  redis.call('HDEL', base, 'take', 'stopping')
  redis.call('PUBLISH', base, '@worker left')
  write_entry()
  add_worker_entries(endpoint, 'initializing', {message = 'its process is replaced'})
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
