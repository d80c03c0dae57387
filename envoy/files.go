package envoy

import "golang.org/x/sys/unix"

// Connections is how many workers may be connected to an Envoy that this process starts, and how many connections it may have for each of the
// clusters that lead to hosts: one connection of a worker's may have hundreds of tunnels in it. Envoy raises its limit of open files as far as it
// may, and at that limit it crashes, with everything in it. Zero and nil: as ever.
func Connections(clusters ...string) (workers int64, hosts map[string]int64) {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return 0, nil
	}
	workers, each := connectionsFor(files.Max, uint64(len(clusters)))
	hosts = map[string]int64{}
	for _, cluster := range clusters {
		hosts[cluster] = each
	}
	return workers, hosts
}

// connectionsFor gives workers half of the files, and each of some kinds of hosts an equal part of the rest.
func connectionsFor(files, kinds uint64) (workers, each int64) {
	const (
		others = 200     // gates, logs, listeners
		most   = 100_000 // as clusters have it themselves
	)
	if files/2 <= others {
		return 1, 1
	}
	w := min(files/2-others, defaultConnections)
	return int64(w), int64(min((files-others-w)/max(kinds, 1), most)) //nolint:gosec // bounded
}
