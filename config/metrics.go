package config

import (
	"fmt"
	"net/netip"
	"slices"
)

// Metrics says where a gate tells how it is: /metrics for Prometheus, /livez and /readyz for whoever starts and stops it. Whoever
// reaches it reads the names of grants and how they are; nothing in it is secret.
type Metrics struct {
	// IP address and port, without TLS and without a log-in. Of the gates of listen.replicas the first has this port, and the
	// others the ports after it, in their order. Default: none.
	Listen string `yaml:"listen"`

	// Listen beyond loopback: let only Prometheus and the platform reach it.
	AllowRemote bool `yaml:"allow_remote"`
}

// MetricsAddress is where the replica, empty where there are none, has its figures; empty: nowhere.
func (c *Config) MetricsAddress(replica string) string {
	a, err := netip.ParseAddrPort(c.Metrics.Listen)
	if err != nil {
		return "" // checked before
	}
	i := max(slices.Index(c.Listen.Replicas, replica), 0)
	return netip.AddrPortFrom(a.Addr(), a.Port()+uint16(i)).String()
}

func (k *checker) metrics() {
	m := k.Metrics
	if m.Listen == "" {
		if k.doc.given("metrics.allow_remote") {
			k.fault("metrics.allow_remote", "has no effect without metrics.listen", "write metrics.listen: 0.0.0.0:9180, or remove it")
		}
		return
	}
	a, err := netip.ParseAddrPort(m.Listen)
	last := int(a.Port()) + max(len(k.Listen.Replicas), 1) - 1
	switch {
	case err != nil || a.Port() == 0:
		k.fault("metrics.listen", quote(m.Listen)+" is not an IP address and a port", "write 127.0.0.1:9180 for this machine, or 0.0.0.0:9180 with allow_remote: true")
		return
	case last > 65535:
		k.fault("metrics.listen", fmt.Sprintf("leaves no port for each of the %d gates of listen.replicas", len(k.Listen.Replicas)), "write a lower port")
		return
	case !a.Addr().IsLoopback() && !m.AllowRemote:
		k.fault("metrics.listen", "is not on loopback, and whoever reaches it reads the names of grants", "write metrics.allow_remote: true and let only Prometheus reach it, or listen on 127.0.0.1")
	}
	for _, used := range append(k.Listen.Addresses(), k.Console.Listen) {
		b, err := netip.ParseAddrPort(used)
		same := a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
		if err == nil && same && b.Port() >= a.Port() && int(b.Port()) <= last {
			k.fault("metrics.listen", "would take "+used+", which is an address of listen or console too", "give it a port of its own: workers must not reach it")
		}
	}
}
