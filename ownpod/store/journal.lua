-- Journals: what is recorded of a job besides its chunks. journal.py puts the constants in front: JOB, CHUNKS, RUNS, WAITING,
-- ENDPOINT, JOURNAL (keys.py), IN_QUEUE, IN_PROGRESS, JOURNAL_ENTRIES, JOURNAL_BYTES, JOURNAL_CALLS_LENGTH; scripts.py adds `now`. The helpers
-- are for the commands of any file that has this one in front; the commands here need common.lua in front.
--
-- JOURNAL<id>               list   JSON lists [attempt, number of chunks, ms, event, data], the oldest first: the last JOURNAL_ENTRIES
--                                  and JOURNAL_BYTES. Attempt 0 is before the first claim. It expires with the record, and a
--                                  retry deletes it
-- JOB<id>                   hash   journal_first, number of the list's first entry, where entries that were dropped or deleted
--                                  count, too; journal_base, how many were deleted by retries; journal_bytes, the size of the
--                                  list; journal_calls, the tokens of the last calls

-- Adds an entry to a job's journal. `data` is the JSON of an object; with an `attempt` only while this is the job's
-- last one. -> whether the job has not ended, and is in this attempt
local function add_entry(id, event, data, attempt)
  local key, list = JOB .. id, JOURNAL .. id
  local status, current, followed, first, bytes =
    unpack(redis.call('HMGET', key, 'status', 'attempt', 'followed', 'journal_first', 'journal_bytes'))
  current = tonumber(current)
  if not current or status ~= IN_QUEUE and status ~= IN_PROGRESS or attempt and tonumber(attempt) ~= current then
    return false
  end
  local chunks = redis.call('LLEN', CHUNKS .. id)
  local entry = string.format('[%d,%d,%d,"%s",%s]', current, chunks, now, event, data)
  local entries = redis.call('RPUSH', list, entry)
  first, bytes = tonumber(first) or 0, (tonumber(bytes) or 0) + #entry
  while entries > JOURNAL_ENTRIES or bytes > JOURNAL_BYTES and entries > 0 do
    first, bytes, entries = first + 1, bytes - #redis.call('LPOP', list), entries - 1
  end
  redis.call('HSET', key, 'journal_first', first, 'journal_bytes', bytes)
  for channel in string.gmatch(followed or '', '%S+') do
    redis.call('PUBLISH', channel, id .. ' JOURNAL')
  end
  return true
end

-- A retry begins a new journal; the numbers of entries go on, because a client may have some of the old one.
local function forget_journal(id)
  local entries = redis.call('LLEN', JOURNAL .. id)
  if entries > 0 then
    redis.call('DEL', JOURNAL .. id)
    redis.call('HSET', JOB .. id, 'journal_base', redis.call('HINCRBY', JOB .. id, 'journal_first', entries), 'journal_bytes', 0)
  end
end

-- Calls `what` with the id, and perhaps the attempt, of each job that waits in the worker's own queue or runs on it.
local function for_jobs_of(endpoint, worker_id, what)
  local suffix = '.' .. worker_id
  for _, queue in ipairs(redis.call('HKEYS', ENDPOINT .. endpoint .. ':queues')) do
    if string.sub(queue, -#suffix) == suffix then
      for _, id in ipairs(redis.call('ZRANGE', WAITING .. queue, 0, -1)) do
        what(id)
      end
    end
  end
  for _, run in ipairs(redis.call('HKEYS', RUNS .. worker_id)) do
    local id, attempt = string.match(run, '^(.+):(%d+)$')
    if id then
      what(id, attempt)
    end
  end
end

-- The same for a step that has something else to do, which a key of a wrong type must not prevent.
local function try_add_entry(id, event, data, attempt)
  pcall(add_entry, id, event, data, attempt)
end

-- Adds an entry to the journals of the jobs that wait in a worker's own queue or run on it.
local function add_entries(endpoint, worker_id, event, data)
  pcall(for_jobs_of, endpoint, worker_id, function(id, attempt)
    try_add_entry(id, event, data, attempt)
  end)
end

-- The same, once for each token.
local function add_entry_once(call, id, event, data, attempt)
  local key = JOB .. id
  local calls = redis.call('HGET', key, 'journal_calls') or ''
  if string.find(calls, call, 1, true) then
    return true
  end
  if not add_entry(id, event, data, attempt) then
    return false
  end
  redis.call('HSET', key, 'journal_calls', string.sub(call .. ' ' .. calls, 1, JOURNAL_CALLS_LENGTH))
  return true
end

-- id, event, data, attempt or '' -> 1, or 0 if the job has ended, or is in another attempt
function commands.add_entry()
  return add_entry_once(token, ARGV[3], ARGV[4], ARGV[5], ARGV[6] ~= '' and ARGV[6] or nil) and 1 or 0
end

-- endpoint, worker id, event, data: adds an entry to the journals of the jobs that wait for this worker only, or run on it
function commands.add_entries()
  for_jobs_of(ARGV[3], ARGV[4], function(id, attempt)
    add_entry_once(token, id, ARGV[5], ARGV[6], attempt)
  end)
  return 1
end
