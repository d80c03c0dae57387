variable "mount" {
  description = "Path of the KV version 2 mount: vault.mount in the configuration."
  type        = string
  default     = "wayleave"
}

variable "pki_mount" {
  description = "Path of the PKI mount: vault.pki_mount in the configuration."
  type        = string
  default     = "wayleave-pki"
}

variable "approle" {
  description = "Whether gates log in with an AppRole role."
  type        = bool
  default     = true
}

variable "approle_mount" {
  description = "Path where AppRole is mounted: vault.auth.mount in the configuration."
  type        = string
  default     = "approle"
}

variable "kubernetes" {
  description = "Gates in pods of this cluster. ca_cert is the one of its API server, for a Vault outside."
  type = object({
    mount           = optional(string, "kubernetes")
    host            = optional(string, "https://kubernetes.default.svc")
    ca_cert         = optional(string)
    namespace       = optional(string, "wayleave")
    service_account = optional(string, "wayleave")
  })
  default = null
}

variable "jwt" {
  description = "Gates with JSON web tokens of this issuer, in which these claims are."
  type = object({
    mount    = optional(string, "jwt")
    jwks_url = string
    issuer   = optional(string)
    claims   = map(string)
  })
  default = null

  validation {
    condition     = var.jwt == null || length(try(var.jwt.claims, {})) > 0
    error_message = "Without claims every token of the issuer would be the gate's; name some, such as sub."
  }
}
