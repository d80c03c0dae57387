# The viewer: sees which grants and sessions there are and how they are. No secret is in what it may read.

path "wayleave/data/status/*" {
  capabilities = ["read"]
}
path "wayleave/metadata/status/*" {
  capabilities = ["list", "read"]
}

path "wayleave/data/sessions/*" {
  capabilities = ["read"]
}
path "wayleave/metadata/sessions/*" {
  capabilities = ["list", "read"]
}

# The requests that wait for an operator.
path "wayleave/data/approvals/*" {
  capabilities = ["read"]
}

# The fleet, and its configurations, in which no secret is.
path "wayleave/data/fleet/*" {
  capabilities = ["read"]
}
path "wayleave/metadata/fleet/*" {
  capabilities = ["list", "read"]
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
