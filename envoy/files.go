package envoy

import "golang.org/x/sys/unix"

// Connections is how many workers may be connected to an Envoy that this process starts, each of which has a connection to a provider too:
// Envoy raises its limit of open files as far as it may, and at that limit it crashes, with everything in it. Zero: as ever.
func Connections() int64 {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return 0
	}
	return connectionsFor(files.Max)
}

func connectionsFor(files uint64) int64 {
	const others = 200 // gates, logs, listeners
	if files/2 <= others {
		return 1
	}
	return int64(min(files/2-others, defaultConnections))
}
