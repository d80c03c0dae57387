# The operator: connects and disconnects grants, ends sessions, and decides about requests that wait.
# It writes a grant's tokens once, at connect, and can never read them back.

path "wayleave/data/grants/*" {
  capabilities = ["create", "update"]
}
# The version, which check-and-set needs, is metadata; so is removing a grant.
path "wayleave/metadata/grants/*" {
  capabilities = ["delete", "list", "read"]
}
path "wayleave/data/status/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/metadata/status/*" {
  capabilities = ["delete", "list", "read"]
}

# What it asks of a running gate: to refresh a grant, or to revoke it at the provider.
path "wayleave/data/requests/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/metadata/requests/*" {
  capabilities = ["list", "read"]
}

# The live sessions, and which of them it ends. No token is in either.
path "wayleave/data/sessions/*" {
  capabilities = ["read"]
}
path "wayleave/data/sessions/revoked" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/metadata/sessions/*" {
  capabilities = ["list", "read"]
}

# The requests that wait for an operator, who allows or denies them.
path "wayleave/data/approvals/*" {
  capabilities = ["create", "read", "update"]
}

# The fleet: what gates see of their Envoys, the configurations, which it stores, and how far a rollout is, which it starts and ends.
path "wayleave/data/fleet/*" {
  capabilities = ["read"]
}
path "wayleave/data/fleet/state" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/data/fleet/revisions/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/metadata/fleet/*" {
  capabilities = ["list", "read"]
}

# The key of the fingerprints in the audit, by which a token that somebody has found is looked up there.
path "wayleave/data/keys/audit" {
  capabilities = ["read"]
}

# The roots that workers trust: the one that signs, and those beside it while one replaces another.
path "wayleave-pki/cert/ca" {
  capabilities = ["read"]
}
path "wayleave-pki/issuers" {
  capabilities = ["list"]
}
path "wayleave-pki/issuer/+/json" {
  capabilities = ["read"]
}

# What the policy "default" lets everybody do, for log-ins without it: look at, and renew, its own log-in.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}
