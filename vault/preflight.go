package vault

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// need is one path a role works on, with the capabilities it must have there.
type need struct {
	path         string
	capabilities []string
}

// needs lists what a role works with; the policies in deploy/vault grant exactly this, and reading the roots, which servers
// let everybody do. "any" stands for the name of any document or issuer.
func (c *Client) needs(role Role) []need {
	data, metadata := c.cfg.Mount+"/data/", c.cfg.Mount+"/metadata/"
	switch role {
	case Gateway:
		write := []string{"create", "read", "update"}
		look := []string{"list", "read"}
		remove := []string{"delete", "list", "read"}
		return []need{
			{data + "grants/any", write}, {data + "status/any", write}, {data + "keys/any", write}, {data + "sessions/any", write}, {data + "sessions/revoked", write}, {data + "requests/any", write}, {data + "operators/any", write}, {data + "notifications/any", write}, {data + "approvals/any", write}, {data + "fleet/any", write},
			{metadata + "grants/any", remove}, {metadata + "status/any", remove}, {metadata + "keys/any", look}, {metadata + "sessions/any", look}, {metadata + "requests/any", look}, {metadata + "operators/any", look}, {metadata + "notifications/any", look}, {metadata + "fleet/any", remove},
			{c.cfg.PKIMount + "/issuer/any/sign-intermediate", []string{"update"}},
			{c.cfg.PKIMount + "/cert/ca", []string{"read"}},
		}
	case Operator:
		write := []string{"create", "read", "update"}
		look := []string{"delete", "list", "read"}
		return []need{
			{data + "grants/any", []string{"create", "update"}}, {data + "status/any", write}, {data + "requests/any", write},
			{metadata + "grants/any", look}, {metadata + "status/any", look}, {metadata + "requests/any", []string{"list", "read"}},
			{data + "sessions/any", []string{"read"}}, {data + "sessions/revoked", write}, {metadata + "sessions/any", []string{"list", "read"}},
			{data + "approvals/any", write}, {data + "keys/audit", []string{"read"}},
			{data + "fleet/any", []string{"read"}}, {data + "fleet/state", write}, {data + "fleet/revisions/any", write}, {metadata + "fleet/any", []string{"list", "read"}},
			{c.cfg.PKIMount + "/cert/ca", []string{"read"}},
		}
	default:
		return []need{
			{data + "status/any", []string{"read"}}, {metadata + "status/any", []string{"list", "read"}},
			{data + "sessions/any", []string{"read"}}, {metadata + "sessions/any", []string{"list", "read"}},
			{data + "approvals/any", []string{"read"}},
			{data + "fleet/any", []string{"read"}}, {metadata + "fleet/any", []string{"list", "read"}},
			{c.cfg.PKIMount + "/cert/ca", []string{"read"}},
		}
	}
}

// Preflight checks that the role can do its work: the server is unsealed, the mount is KV version 2, and every
// capability the role needs is there. The error lists all that is missing, and the fix. It is [ErrUnavailable] for a
// sealed server and [ErrDenied] for missing capabilities.
func (c *Client) Preflight(ctx context.Context, role Role) error {
	// This answer is not wrapped in "data".
	var seal struct{ Initialized, Sealed bool }
	if err := c.read(ctx, "sys/seal-status", &seal); err != nil {
		return fmt.Errorf("asking vault whether it is sealed: %w", err)
	}
	if seal.Sealed || !seal.Initialized {
		return fmt.Errorf("%w: it is sealed or not initialised: unseal it", ErrUnavailable)
	}
	if err := c.checkMount(ctx); err != nil {
		return err
	}
	needs := c.needs(role)
	paths := make([]string, len(needs))
	for i, n := range needs {
		paths[i] = n.path
	}
	var have map[string]any // each path is a key, next to one named "capabilities"
	if err := c.write(ctx, callTimeout, "sys/capabilities-self", map[string]any{"paths": paths}, &have); err != nil {
		return fmt.Errorf("asking vault what we may do: %w", err)
	}
	var missing []string
	for _, n := range needs {
		if lacking := lacking(have[n.path], n.capabilities); len(lacking) > 0 {
			missing = append(missing, fmt.Sprintf("%s on %s", strings.Join(lacking, ", "), n.path))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: the %s lacks %s: run `wayleave vault setup`, or give its token the policy of deploy/vault/%s.hcl",
			ErrDenied, role, strings.Join(missing, "; "), role)
	}
	return nil
}

// lacking returns what is wanted and not among got, as capabilities-self answered it.
func lacking(got any, want []string) (missing []string) {
	list, _ := got.([]any)
	for _, w := range want {
		if !slices.Contains(list, any(w)) && !slices.Contains(list, any("root")) {
			missing = append(missing, w)
		}
	}
	return missing
}

// mountInfo is the part of a mount's description that says which engine it is.
type mountInfo struct {
	Type    string            `json:"type"`
	Options map[string]string `json:"options"`
}

// checkMount refuses a KV version 1 mount, which ignores check-and-set: two replicas would overwrite each other's
// tokens.
func (c *Client) checkMount(ctx context.Context) error {
	var m struct {
		Data mountInfo `json:"data"`
	}
	// Any token that may do anything below a mount may ask for its type here.
	if err := c.read(ctx, "sys/internal/ui/mounts/"+c.cfg.Mount, &m); err != nil {
		return fmt.Errorf("looking at the mount %s (is it there, in this namespace? run `wayleave vault setup`): %w", c.cfg.Mount, err)
	}
	return m.Data.isKV2(c.cfg.Mount)
}

func (m mountInfo) isKV2(name string) error {
	if m.Type == "kv" && m.Options["version"] == "2" {
		return nil
	}
	if m.Type == "kv" || m.Type == "generic" {
		return fmt.Errorf("the mount %s is KV version 1, which has no check-and-set: use a KV version 2 mount (vault.mount in the configuration)", name)
	}
	return fmt.Errorf("the mount %s is of type %s, not KV version 2: choose another (vault.mount in the configuration)", name, m.Type)
}
