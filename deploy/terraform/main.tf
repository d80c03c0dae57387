# What `wayleave vault setup` makes, for those who keep it in Terraform or OpenTofu: use one of the two. docs/vault.md says what each part is for.
terraform {
  required_version = ">= 1.5"
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
    }
  }
}

locals {
  policies = { for role in ["gateway", "operator", "viewer"] : role => replace(replace(replace(
    file("${path.module}/../vault/${role}.hcl"),
    "path \"wayleave/", "path \"${var.mount}/"),
    "path \"wayleave-pki/", "path \"${var.pki_mount}/"),
    "path \"auth/approle/", "path \"auth/${var.approle_mount}/")
  }
  ten_years = 10 * 365 * 24 * 3600
}

resource "vault_mount" "documents" {
  path        = var.mount
  type        = "kv"
  description = "Wayleave grants and keys"
  options     = { version = "2" }

  lifecycle {
    prevent_destroy = true # every consent is in it
  }
}

# One version: an old one would keep a refresh token readable that the provider still knows the family of.
resource "vault_kv_secret_backend_v2" "documents" {
  mount        = vault_mount.documents.path
  cas_required = true
  max_versions = 1
}

resource "vault_mount" "pki" {
  path                  = var.pki_mount
  type                  = "pki"
  description           = "Wayleave egress CA"
  max_lease_ttl_seconds = local.ten_years

  lifecycle {
    prevent_destroy = true # every worker trusts its root
  }
}

resource "vault_pki_secret_backend_config_auto_tidy" "pki" {
  backend           = vault_mount.pki.path
  enabled           = true
  tidy_cert_store   = true
  interval_duration = "24h"
}

# The first root. It is replaced with `wayleave ca`, and not by a change here: after that, `terraform state rm` it.
resource "vault_pki_secret_backend_root_cert" "root" {
  backend         = vault_mount.pki.path
  type            = "internal"
  common_name     = "Wayleave egress CA"
  key_type        = "ec"
  key_bits        = 256
  ttl             = tostring(local.ten_years)
  max_path_length = 1

  lifecycle {
    prevent_destroy = true
    ignore_changes  = all
  }
}

resource "vault_policy" "role" {
  for_each = local.policies
  name     = "wayleave-${each.key}"
  policy   = each.value
}

# How gates log in, whichever of these there is.

resource "vault_auth_backend" "approle" {
  count = var.approle ? 1 : 0
  type  = "approle"
  path  = var.approle_mount
}

resource "vault_approle_auth_backend_role" "gateway" {
  count              = var.approle ? 1 : 0
  backend            = vault_auth_backend.approle[0].path
  role_name          = "wayleave-gateway"
  token_policies     = [vault_policy.role["gateway"].name]
  token_period       = 900
  token_type         = "service"
  bind_secret_id     = true
  secret_id_num_uses = 0
  token_num_uses     = 0
}

resource "vault_auth_backend" "kubernetes" {
  count = var.kubernetes == null ? 0 : 1
  type  = "kubernetes"
  path  = var.kubernetes.mount
}

resource "vault_kubernetes_auth_backend_config" "kubernetes" {
  count              = var.kubernetes == null ? 0 : 1
  backend            = vault_auth_backend.kubernetes[0].path
  kubernetes_host    = var.kubernetes.host
  kubernetes_ca_cert = var.kubernetes.ca_cert
}

resource "vault_kubernetes_auth_backend_role" "gateway" {
  count                            = var.kubernetes == null ? 0 : 1
  backend                          = vault_auth_backend.kubernetes[0].path
  role_name                        = "wayleave-gateway"
  bound_service_account_names      = [var.kubernetes.service_account]
  bound_service_account_namespaces = [var.kubernetes.namespace]
  audience                         = "vault"
  token_policies                   = [vault_policy.role["gateway"].name]
  token_period                     = 900
}

resource "vault_jwt_auth_backend" "jwt" {
  count        = var.jwt == null ? 0 : 1
  path         = var.jwt.mount
  jwks_url     = var.jwt.jwks_url
  bound_issuer = var.jwt.issuer
}

resource "vault_jwt_auth_backend_role" "gateway" {
  count           = var.jwt == null ? 0 : 1
  backend         = vault_jwt_auth_backend.jwt[0].path
  role_name       = "wayleave-gateway"
  role_type       = "jwt"
  user_claim      = "sub"
  bound_audiences = ["vault"]
  bound_claims    = var.jwt.claims
  token_policies  = [vault_policy.role["gateway"].name]
  token_period    = 900
}
