-- Runs on the answer to each attempt of a request, between the upstream's connection and everything else.
--
-- It notes a 401 to a swapped request, which lets the gate try once more with another token, and gRPC's word for it, which has the
-- gate get another for the next one. It takes the credential that was sent out of the headers and trailers that come back. A fault
-- in it must not let a header through unseen. Bodies are searched by the gate. Where a WebSocket was asked for they are not, so that
-- only a WebSocket may have one.

-- Compiling costs more than it saves here: the work on an answer is short, and made of calls that are not compiled.
if jit then
  jit.off()
end

-- Nearly all of the time goes into calls of Envoy's, so none is made twice.
local find = string.find

-- What stands differently in a URL (RFC 3986 section 2.3).
local reserved = "[^%w%-._~]"

-- Adds the forms of a text to all.
local function add(all, text)
  if text == "" then
    return
  end
  all[#all + 1] = text
  if find(text, reserved) then
    for _, form in ipairs({ "%%%02X", "%%%02x" }) do
      all[#all + 1] = text:gsub(reserved, function(c) return form:format(c:byte()) end)
    end
  end
end

-- The texts in which a credential may come back: as it was sent, what is inside Basic, and both as they stand in a URL.
local function needles(handle, decision)
  local value = handle:requestHeaders():get(decision.header) or ""
  local credential = value:match("^%S+ +(%S.*)$") or value
  local all = {}
  add(all, credential)
  if decision.user or decision.password then
    local user, password = handle:base64Decode(credential):match("^([^:]*):(.*)$")
    if decision.user then
      add(all, user)
    end
    if decision.password then
      add(all, password)
    end
  end
  return all
end

-- Each hit becomes asterisks of the same length.
local function masked(value, texts)
  for _, text in ipairs(texts) do
    local from, to = value:find(text, 1, true)
    while from do
      value = value:sub(1, from - 1) .. ("*"):rep(to - from + 1) .. value:sub(to + 1)
      from, to = value:find(text, to + 1, true)
    end
  end
  return value
end

-- Whether a text is in the name of a header, which Envoy has in lower case.
local function named(name, texts)
  for _, text in ipairs(texts) do
    if find(name, text:lower(), 1, true) then
      return true
    end
  end
  return false
end

-- Nearly every answer holds none of the texts: that is found out without making anything. Envoy wants each pairs() brought to
-- its end before the map is changed.
local function holds(map, texts)
  local hit, first, count = false, texts[1], #texts
  if count == 0 then
    return false
  end
  local shortest = #first
  for i = 2, count do
    shortest = math.min(shortest, #texts[i])
  end
  for name, value in pairs(map) do
    hit = hit or #name >= shortest and named(name, texts) or find(value, first, 1, true)
    for i = 2, count do
      hit = hit or find(value, texts[i], 1, true)
    end
  end
  return hit
end

local function scrub(map, texts)
  if not holds(map, texts) then
    return
  end
  local values, hit = {}, {}
  for name, value in pairs(map) do
    local clean = masked(value, texts)
    values[name] = values[name] or {}
    table.insert(values[name], clean)
    hit[name] = hit[name] or clean ~= value
  end
  for name in pairs(hit) do
    local whole = named(name, texts)
    if hit[name] or whole then
      map:remove(name)
    end
    if hit[name] and not whole then
      for _, value in ipairs(values[name]) do
        map:add(name, value)
      end
    end
  end
end

local function empty(map)
  local names = {}
  for name in pairs(map) do
    names[#names + 1] = name
  end
  for _, name in ipairs(names) do
    if name:sub(1, 1) ~= ":" then
      map:remove(name)
    end
  end
end

-- Whether nobody searches the body, so that there may be none.
local function unsearched(decision, status)
  return decision and decision.unsearched and status ~= "101"
end

-- Notes what the provider answered to the token, where that matters.
local function answered(handle, status)
  handle:streamInfo():dynamicMetadata():set("wayleave", "answered", status)
end

-- What gRPC has for a 401, in the headers of an answer or in its trailers.
local function unauthenticated(map)
  return map:get("grpc-status") == "16"
end

-- The texts that were searched for, or nothing where nothing is to be; and whether there may be no body.
local function search(handle)
  local decision = handle:streamInfo():dynamicMetadata():get("wayleave")
  if not decision or decision.verdict ~= "swap" then
    return nil
  end
  local headers = handle:headers()
  local status = headers:get(":status")
  if status == "401" then
    answered(handle, "401")
  elseif unauthenticated(headers) then
    answered(handle, "16")
  end
  local texts = needles(handle, decision)
  scrub(headers, texts)
  return texts, unsearched(decision, status)
end

function envoy_on_response(handle)
  local ok, texts, bodiless = pcall(search, handle)
  if not ok then
    handle:logErr("wayleave: the headers of an answer could not be searched, and were dropped")
    local headers = handle:headers()
    empty(headers)
    bodiless = unsearched(handle:streamInfo():dynamicMetadata():get("wayleave"), headers:get(":status"))
  elseif not texts then
    return
  end
  if bodiless then
    handle:headers():remove("content-length")
    for chunk in handle:bodyChunks() do
      chunk:setBytes("")
    end
  end
  local trailers = handle:trailers()
  if trailers and not (ok and pcall(scrub, trailers, texts)) then
    empty(trailers)
  elseif trailers and unauthenticated(trailers) then
    answered(handle, "16")
  end
end
