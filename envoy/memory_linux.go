package envoy

import (
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory is how much this process, and an Envoy that it starts, may use: all that this machine has, or what a control group leaves
// them (cgroups(7)). Zero: nobody knows.
func Memory() uint64 {
	least := uint64(math.MaxUint64)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		least = uint64(info.Totalram) * uint64(info.Unit) //nolint:unconvert // the types differ between architectures
	}
	groups, _ := os.ReadFile("/proc/self/cgroup") // without one there are none
	least = min(least, groupMemory(string(groups), os.ReadFile))
	if least == math.MaxUint64 {
		return 0
	}
	return least
}

// groupMemory is the least that the control groups of /proc/self/cgroup, and those above them, leave. In a container they may have another path
// than they seem to, and what is then found at the top is its own.
func groupMemory(groups string, read func(string) ([]byte, error)) uint64 {
	least := uint64(math.MaxUint64)
	for line := range strings.Lines(groups) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		root, file := "/sys/fs/cgroup", "memory.max"
		switch controllers {
		case "": // version 2
		case "memory":
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for group = path.Clean("/" + group); ; group = path.Dir(group) {
			if text, err := read(path.Join(root, group, file)); err == nil {
				if limit, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // "max" is none
					least = min(least, limit)
				}
			}
			if group == "/" {
				break
			}
		}
	}
	return least
}
