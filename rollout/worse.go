package rollout

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
)

// What counts as worse. The fleet is looked at every second or so, and each look is a chance to be wrong: so the test asks for much.
const (
	certainty  = 1e-4 // that it is chance, at most
	difference = 0.01 // of the shares, at least
	fewest     = 3    // requests that must have gone wrong
)

// worse reports whether k of n are more than k0 of n0 by more than chance: Fisher's exact test, one-sided, which holds for small
// counts too. Under the hypothesis that both shares are the same, the number of failures among n is hypergeometric.
func worse(k, n, k0, n0 int) bool {
	if k < fewest || n == 0 || n0 == 0 || float64(k)/float64(n)-float64(k0)/float64(n0) < difference {
		return false
	}
	return fisher(k, n, k0, n0) <= certainty
}

// fisher is how likely it is that of k+k0 failures among n+n0 requests k or more are among the n.
func fisher(k, n, k0, n0 int) float64 {
	failed := k + k0
	all := choose(n+n0, failed)
	sum := 0.0
	for i := k; i <= min(n, failed); i++ {
		p := math.Exp(choose(n, i) + choose(n0, failed-i) - all)
		sum += p
		if p < sum*1e-12 { // beyond the mode terms only fall, and k is beyond it
			break
		}
	}
	return min(sum, 1)
}

// choose is the logarithm of the binomial coefficient; -Inf where it is 0.
func choose(n, k int) float64 {
	if k < 0 || k > n {
		return math.Inf(-1)
	}
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}

// byHash orders ids by a hash of them, so that which Envoys are first has nothing to do with their names, and is always the same.
func byHash(ids []string) {
	sum := func(id string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id))
		// FNV's last bytes barely reach its high bits; mix them, as splitmix64 does.
		x := h.Sum64()
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(cmp.Compare(sum(a), sum(b)), cmp.Compare(a, b)) })
}
