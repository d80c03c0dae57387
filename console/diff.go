package console

import "strings"

const (
	diffContext = 3
	diffLongest = 4000 // lines of a text; a longer one is not compared
)

// diff is what changed from one text to another, line by line, as `diff -u` shows it without its headers; "" for nothing.
func diff(before, after string) string {
	if before == after {
		return ""
	}
	a, b := strings.Split(strings.TrimSuffix(before, "\n"), "\n"), strings.Split(strings.TrimSuffix(after, "\n"), "\n")
	if len(a) > diffLongest || len(b) > diffLongest {
		return "the files are too long to be compared here"
	}
	// same[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	same := make([][]int32, len(a)+1)
	for i := range same {
		same[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				same[i][j] = same[i+1][j+1] + 1
			} else {
				same[i][j] = max(same[i+1][j], same[i][j+1])
			}
		}
	}
	var lines []string
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			lines = append(lines, " "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && same[i+1][j] >= same[i][j+1]:
			lines = append(lines, "-"+a[i])
			i++
		default:
			lines = append(lines, "+"+b[j])
			j++
		}
	}
	return strings.Join(hunks(lines), "\n")
}

// hunks leaves out what is far from any change.
func hunks(lines []string) []string {
	near := make([]bool, len(lines))
	for i, l := range lines {
		if l[0] == ' ' {
			continue
		}
		for k := max(0, i-diffContext); k <= min(len(lines)-1, i+diffContext); k++ {
			near[k] = true
		}
	}
	var out []string
	for i, l := range lines {
		switch {
		case near[i]:
			out = append(out, l)
		case len(out) > 0 && out[len(out)-1] != "…":
			out = append(out, "…")
		}
	}
	if len(out) > 0 && out[len(out)-1] == "…" {
		out = out[:len(out)-1]
	}
	return out
}
