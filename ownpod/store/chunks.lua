-- What a running job's handler yields. See common.lua for the keys and the helpers.

-- id, attempt, ttl, chunk, ... -> 1, or 0 if the job no longer runs this attempt. A token that has
-- added its chunks adds them no second time. A job with more than CHUNK_BYTES of chunks is FAILED.
function commands.chunks()
  local id, key, job = ARGV[3], JOB .. ARGV[3], read(ARGV[3])
  if not is_running(job, ARGV[4]) then
    return 0
  end
  local bytes, calls = unpack(redis.call('HMGET', key, 'chunk_bytes', 'chunk_calls'))
  if token ~= '' and string.find(calls or '', token, 1, true) then
    return 1
  end
  bytes = tonumber(bytes) or 0
  for i = 6, #ARGV do
    bytes = bytes + #ARGV[i]
  end
  if bytes > CHUNK_BYTES then
    local limit = string.format('%d MiB', CHUNK_BYTES / 1024 / 1024)
    finish(id, job, S.FAILED, ARGV[5], {'error', 'the handler yielded more than ' .. limit
      .. ' of chunks, the most that is kept of a job'})
    return 0
  end
  local length
  for i = 6, #ARGV do
    length = redis.call('RPUSH', CHUNKS .. id, ARGV[i])
  end
  -- The tokens of several calls are kept, because a late copy of one call may arrive after the next call.
  calls = string.sub(token .. ' ' .. (calls or ''), 1, CALLS_LENGTH)
  redis.call('HSET', key, 'chunk_bytes', bytes, 'chunk_calls', calls)
  if #ARGV == 6 and #ARGV[6] <= ANSWER_BYTES then
    -- Otherwise every reader would ask Redis for the chunk of which it was just notified.
    publish(job.followed, string.format('%s CHUNK %s %d %s', id, ARGV[4], length - 1, ARGV[6]))
  else
    publish(job.followed, id .. ' CHUNK')
  end
  return 1
end

-- id, attempt, output -> 1, or 0 if the job no longer runs this attempt
function commands.progress()
  if not is_running(read(ARGV[3]), ARGV[4]) then
    return 0
  end
  redis.call('HSET', JOB .. ARGV[3], 'progress', ARGV[5])
  if #ARGV[5] <= JOURNAL_PROGRESS then
    add_entry_once(token, ARGV[3], 'worker', '{"status":"working","progress":' .. ARGV[5] .. '}')
  end
  return 1
end

-- id, old cursor, new cursor: moves /stream's own cursor, unless another request has moved it
function commands.save_cursor()
  local id = ARGV[3]
  if (redis.call('HGET', JOB .. id, 'drained') or '') == ARGV[4] and redis.call('EXISTS', JOB .. id) == 1 then
    redis.call('HSET', JOB .. id, 'drained', ARGV[5])
  end
  return 1
end
