package vault

import (
	"errors"
	"fmt"
	"strings"
)

func (a Auth) appRole() (proof, error) {
	id, err := credential("secret id", a.SecretID, a.SecretIDFile)
	if err != nil {
		return proof{}, fmt.Errorf("AppRole needs a role id and a secret id: %w", err)
	}
	if a.RoleID == "" {
		return proof{}, errors.New("AppRole needs a role id and a secret id: no role id was given")
	}
	return proof{
		what: "role id and secret id",
		body: map[string]any{"role_id": a.RoleID, "secret_id": id.Reveal()},
		advice: func(said string) string {
			if strings.Contains(said, "CIDR") {
				return "let secret_id_bound_cidrs of the role, or of the secret id, include the address that the server sees us come from"
			}
			if text := id.Reveal(); strings.HasPrefix(text, "s.") || strings.HasPrefix(text, "hvs.") {
				return "it looks like a token: a wrapped secret id is to be unwrapped first (`bao unwrap`)"
			}
			return "make a new secret id for the role of this role id; the old one has expired, was used up or withdrawn, or is of another role or namespace"
		},
	}, nil
}
