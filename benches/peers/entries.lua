-- Requests of wrk for one of many entries. Arguments: "each" (one after the other) or "any" (at random), and how many there are.
local any, count, at = false, 1, 0

function init(args)
    any, count = args[1] == "any", tonumber(args[2])
    math.randomseed(os.time())
end

function request()
    at = any and math.random(count) or at % count + 1
    return "GET /entry/" .. at .. " HTTP/1.1\r\nHost: entries\r\n\r\n"
end
