package operate

import (
	"regexp"
	"strings"

	"wayleave/worker"
)

// longestValue is what fits the headers of common servers.
const longestValue = 8 << 10

// shapes are values that are not credentials, by how they look. They are matched without regard to case; the first one that
// matches gives the reason.
var shapes = []struct {
	like   *regexp.Regexp
	reason string
}{
	{regexp.MustCompile(`^-----begin `), "it is a PEM file, and a header takes one line; a client's key is named in client_key_file of its provider"},
	{regexp.MustCompile(`^(authorization|proxy-authorization|x-[a-z-]+|api-key|cookie):`), "it is a whole header line; import what stands after the colon, without the word before it"},
	{regexp.MustCompile(`^(bearer|basic|token|apikey|key) `), "it begins with the word that goes before a credential; import what follows it, and write the word as header.out_scheme of the route or provider"},
	{regexp.MustCompile(`^(export +)?[a-z_][a-z0-9_]*_(key|token|secret|password|pat)=`), "it is the setting of a variable; import what stands after the ="},
	{regexp.MustCompile(`^\$\{.*\}$|^\$[a-z_][a-z0-9_]*$|^\$\(.*\)$|^%[a-z_][a-z0-9_]*%$|^\{\{.*\}\}$`), "it is the name of a variable, which nothing fills in here"},
	{regexp.MustCompile(`^<.*>$|^\[.*\]$`), "it is a blank to be filled in"},
	{regexp.MustCompile(`^\{.*\}$`), "it is JSON; import the bare value in it"},
	{regexp.MustCompile(`^https?://|^file://`), "it is an address"},
	{regexp.MustCompile(`^(\.\.?|~)/|^[a-z]:\\|^/(etc|home|mnt|opt|private|root|run|tmp|users|usr|var)/`), "it is the name of a file; import what is in it, with --from-file"},
	{regexp.MustCompile(`\.\.\.|\*{3}`), "parts of it are left out, as pages show keys that can be read once only"},
	{regexp.MustCompile(`^(.*[-_])?x{3,}$|^x+$|^[0x]+$`), "it is an example"},
	{regexp.MustCompile(`^(your|my|the|insert|enter|paste|put|replace|add)[-_ ].*(key|token|secret|password|pat|value|credential|here|me)s?$|[-_](here|goes[-_]here)$`), "it is an example"},
	{regexp.MustCompile(`^(sk|pk|key|ghp|gho|token|api)[-_](your|my|test|example|dummy|fake|placeholder)?([-_]?(key|token|secret|here))*$`), "it is an example"},
	{regexp.MustCompile(`^(change[-_]?me|replace[-_]?me|fix[-_]?me|todo|tbd|none|null|nil|undefined|n/a|foo|bar|foobar|dummy|example|fake|placeholder|secret|password|passwd|token|api[-_]?key|apikey|key|test|testing|1234567?8?9?0?|abc123)$`), "it is an example"},
}

// valueProblem says why a value cannot be a credential to put into a header, or "" when it can be one. It never repeats it.
func valueProblem(value string, exists func(path string) bool) string {
	switch {
	case strings.TrimSpace(value) == "":
		return "there is nothing in it"
	case strings.HasPrefix(strings.TrimSpace(strings.ToLower(value)), "-----begin "):
		return shapes[0].reason
	case strings.ContainsAny(value, "\r\n"):
		return "it has several lines, and a credential is one"
	case strings.TrimSpace(value) != value:
		return "it has white space around it; remove that"
	case len(value) > 1 && strings.ContainsRune("\"'`", rune(value[0])) && value[len(value)-1] == value[0]:
		return "it has quotes around it; remove them"
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
		return "it has characters that no header takes: only visible ASCII characters"
	case len(value) > longestValue:
		return "it is longer than 8 KiB, which servers refuse in a header"
	case strings.Contains(value, worker.Marker):
		return "it is a placeholder of ours, as workers hold it; import the real value"
	}
	for _, s := range shapes {
		if s.like.MatchString(strings.ToLower(value)) {
			return s.reason
		}
	}
	switch {
	case strings.HasPrefix(value, "/") && exists(value):
		return "it is the name of a file; import what is in it, with --from-file"
	case strings.Contains(value, " "):
		return "it has a space in it, and a credential in a header has none"
	}
	return ""
}
