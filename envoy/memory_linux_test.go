package envoy

import (
	"math"
	"os"
	"testing"
)

func TestGroupMemory(t *testing.T) {
	const none = math.MaxUint64
	for name, c := range map[string]struct {
		groups string
		files  map[string]string
		want   uint64
	}{
		"no groups":            {"", nil, none},
		"no limit":             {"0::/system.slice/x.service\n", map[string]string{"/sys/fs/cgroup/system.slice/x.service/memory.max": "max\n"}, none},
		"its own":              {"0::/system.slice/x.service\n", map[string]string{"/sys/fs/cgroup/system.slice/x.service/memory.max": "1073741824\n"}, 1 << 30},
		"of a group above":     {"0::/a/b\n", map[string]string{"/sys/fs/cgroup/a/b/memory.max": "1000\n", "/sys/fs/cgroup/a/memory.max": "500\n"}, 500},
		"of a container":       {"0::/\n", map[string]string{"/sys/fs/cgroup/memory.max": "700\n"}, 700},
		"seen from inside":     {"0::/../../kubepods/pod1\n", map[string]string{"/sys/fs/cgroup/memory.max": "700\n"}, 700},
		"version 1":            {"5:cpu,cpuacct:/x\n4:memory:/docker/1\n", map[string]string{"/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "900\n"}, 900},
		"version 1, contained": {"4:memory:/docker/1\n0::/\n", map[string]string{"/sys/fs/cgroup/memory/memory.limit_in_bytes": "900\n"}, 900},
	} {
		read := func(name string) ([]byte, error) {
			if text, ok := c.files[name]; ok {
				return []byte(text), nil
			}
			return nil, os.ErrNotExist
		}
		if got := groupMemory(c.groups, read); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if Memory() == 0 {
		t.Error("nothing is known of this machine")
	}
}
