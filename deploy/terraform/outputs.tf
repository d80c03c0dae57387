output "ca" {
  description = "PEM of the root that workers trust."
  value       = vault_pki_secret_backend_root_cert.root.certificate
}

output "policies" {
  description = "Names of the policies, by role. People get operator or viewer."
  value       = { for role, policy in vault_policy.role : role => policy.name }
}
