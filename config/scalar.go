package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"
)

// This file parses the values that are written as a string and mean something else.
// The functions return what is wrong and the fix, both empty when the text is right.

var days = regexp.MustCompile(`^(\d{1,4})d$`)

func parseDuration(s string) (v time.Duration, what, fix string) {
	v, err := time.ParseDuration(s)
	if err == nil {
		return v, "", ""
	}
	fix = "write a number and a unit: 90s, 15m, 24h"
	if m := days.FindStringSubmatch(s); m != nil {
		n, _ := strconv.Atoi(m[1])
		fix = fmt.Sprintf("write days in hours: %dh", 24*n)
	} else if _, err := strconv.Atoi(s); err == nil {
		fix = fmt.Sprintf("add a unit: %ss, %sm or %sh", s, s, s)
	}
	return 0, quote(s) + " is not a duration", fix
}

func parsePrefix(s string) (v netip.Prefix, what, fix string) {
	v, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return v, quote(s) + " is an address, not a network", fmt.Sprintf("write %s/%d for this address alone", a, a.BitLen())
		}
		return v, quote(s) + " is not a network in CIDR notation", "write an address, a slash and a length: 10.0.0.0/8"
	}
	if m := v.Masked(); m != v {
		return v, quote(s) + " has bits set beyond its length", "write " + m.String()
	}
	return v, "", ""
}

func parseAddrPort(s string) (v netip.AddrPort, what, fix string) {
	v, err := netip.ParseAddrPort(s)
	switch {
	case err == nil && v.Port() != 0:
		return v, "", ""
	case err == nil:
		return v, "port 0 cannot be reached", "write a port from 1 to 65535"
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return v, quote(s) + " has no port", "write " + netip.AddrPortFrom(a, 53).String()
	}
	return v, quote(s) + " is not an IP address and a port", "write them as 192.0.2.1:53 or [2001:db8::1]:53"
}
