# The gateway: keeps grants usable and holds the key of a short-lived intermediate CA.
# It cannot change a policy, or read anything outside these paths. What its console does for operators, it does itself.

# Grants with their tokens, their public summaries, and the keys: of sessions, and of the spool on disk.
path "wayleave/data/grants/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/data/status/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/data/keys/*" {
  capabilities = ["create", "read", "update"]
}
# The live sessions, and which of them were ended before their time.
path "wayleave/data/sessions/*" {
  capabilities = ["create", "read", "update"]
}
# What operators ask of it, with their own Vault tokens or in its console.
path "wayleave/data/requests/*" {
  capabilities = ["create", "read", "update"]
}
# The digests of operators' API tokens.
path "wayleave/data/operators/*" {
  capabilities = ["create", "read", "update"]
}
# What gates have told operators.
path "wayleave/data/notifications/*" {
  capabilities = ["create", "read", "update"]
}
# The requests that wait for an operator.
path "wayleave/data/approvals/*" {
  capabilities = ["create", "read", "update"]
}
# The configurations that its Envoys and those of other gates have, how far a rollout is, and what each gate sees.
path "wayleave/data/fleet/*" {
  capabilities = ["create", "read", "update"]
}
path "wayleave/metadata/fleet/*" {
  capabilities = ["delete", "list", "read"]
}
# Its console disconnects grants.
path "wayleave/metadata/grants/*" {
  capabilities = ["delete", "list", "read"]
}
path "wayleave/metadata/status/*" {
  capabilities = ["delete", "list", "read"]
}
path "wayleave/metadata/keys/*" {
  capabilities = ["list", "read"]
}
path "wayleave/metadata/sessions/*" {
  capabilities = ["list", "read"]
}
path "wayleave/metadata/requests/*" {
  capabilities = ["list", "read"]
}
path "wayleave/metadata/operators/*" {
  capabilities = ["list", "read"]
}
path "wayleave/metadata/notifications/*" {
  capabilities = ["list", "read"]
}

# How long its own secret id still works, to warn in time. It tells nothing to whoever has no secret id.
path "auth/approle/role/wayleave-gateway/secret-id/lookup" {
  capabilities = ["update"]
}

# An intermediate CA is signed, by any root that workers trust, only with name constraints, and never one that could sign
# further CAs. A parameter that is not listed (use_csr_values, not_after, alt_names, issuer_ref, ...) is refused.
path "wayleave-pki/issuer/+/sign-intermediate" {
  capabilities        = ["create", "update"]
  required_parameters = ["permitted_dns_domains", "max_path_length", "ttl"]
  allowed_parameters = {
    "csr"                   = []
    "common_name"           = ["Wayleave gateway"]
    "permitted_dns_domains" = []
    "max_path_length"       = ["0"]
    "not_before_duration"   = ["168h", "5m"] # the second of earlier releases
    "ttl"                   = []
    "exclude_cn_from_sans"  = ["true"]
  }
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
