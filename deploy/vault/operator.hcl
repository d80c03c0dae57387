# The operator: connects and disconnects grants.
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

# The certificate that workers trust.
path "wayleave-pki/cert/ca" {
  capabilities = ["read"]
}
